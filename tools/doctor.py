"""Says what was found of all that the op and the project need, what is missing, and the command that mends it.

usage: python tools/doctor.py
"""

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from util.files.console import show_any_character

NEEDED = ("torchvision", "numpy", "scipy", "pycocotools", "PIL", "addict", "yapf", "termcolor", "timm", "tqdm")
USEFUL = {
    "matplotlib": "curves.png",
    "faster_coco_eval": "the same evaluation, sooner",
    "tensorboard": "curves in TensorBoard",
    "wandb": "curves at Weights & Biases (--wandb)",
    "onnxruntime": "running exported models",
    "cv2": "detection in videos (opencv-python-headless)",
}


def print_finding(good: bool, subject: str, found: str, remedy: str = ""):
    """One line of the report."""
    print(
        f"{'ok     ' if good else 'MISSING'}  {subject:<16} {found}" + (f"\n         -> {remedy}" if not good else "")
    )


def version_of(*command: str) -> str:
    """The last line that a command prints about itself; empty when it is not there."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, capture_output=True, timeout=60, encoding="utf-8", errors="replace")
    lines = (done.stdout or done.stderr).strip().splitlines()
    return lines[0 if command[0] != "nvcc" else -1] if lines else ""


def packages():
    """Python packages."""
    for name in NEEDED:
        found = importlib.util.find_spec(name) is not None
        print_finding(found, name, "installed" if found else "not installed", "pip install -r requirements.txt")
    for name, purpose in USEFUL.items():
        found = importlib.util.find_spec(name) is not None
        print(f"{'ok     ' if found else 'without'}  {name:<16} {purpose}")


def compilers():
    """What builds the op."""
    compiler = version_of(os.environ.get("CXX", "c++"), "--version")
    print_finding(
        bool(compiler), "C++ compiler", compiler or "none", "install g++ or clang++, or set CXX; then: make ops"
    )
    ninja = version_of("ninja", "--version")
    print(f"{'ok     ' if ninja else 'without'}  {'ninja':<16} {ninja or 'builds are slower'}")
    nvcc = version_of("nvcc", "--version")
    print(f"{'ok     ' if nvcc else 'without'}  {'nvcc':<16} {nvcc or 'no CUDA kernels can be built'}")


def extension():
    """The compiled op, and what runs it."""
    import torch

    from models.ops import available_backends
    from models.ops.extension import has_compiled_kernels, load_extension
    from models.ops.linear import describe_products
    from models.ops.ms_deform_attn import cuda_architectures

    reason = load_extension()
    remedy = "make ops; plain PyTorch is used until then, which is slow" if reason == "not built" else "make clean ops"
    print_finding(not reason, "extension", reason or "loads", remedy)
    print_finding(has_compiled_kernels("CPU"), "CPU kernels", "registered" if not reason else "none", remedy)
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    print(f"{'ok     ' if gpus else 'without'}  {'GPU':<16} {', '.join(gpus) or 'none that PyTorch can use'}")
    if gpus:
        remedy = "install nvcc of CUDA " + str(torch.version.cuda) + "; then: make clean ops"
        built = f"for compute capability {cuda_architectures()}" if has_compiled_kernels("CUDA") else "none"
        print_finding("cuda" in available_backends(), "CUDA kernels", built, remedy)
    print(f"backends, fastest first: {', '.join(available_backends())}")
    print(f"linear layers on the CPU: {describe_products()}")


def main():
    print(f"Python {platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores")
    if importlib.util.find_spec("torch") is None:
        print_finding(False, "torch", "not installed", "pip install -r requirements.txt")
        sys.exit(1)
    import torch

    print(f"PyTorch {torch.__version__}, CUDA {torch.version.cuda}, {torch.get_num_threads()} threads")
    packages()
    compilers()
    extension()


if __name__ == "__main__":
    show_any_character()
    main()
