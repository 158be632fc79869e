"""Builds the compiled kernels of deformable attention: for CPUs, and for CUDA where PyTorch has it and nvcc is found.

usage: python setup.py build_ext --inplace     beside this file, where models.ops finds them
       python setup.py install                 into the environment

TORCH_CUDA_ARCH_LIST names the GPUs to build for: by default those that are there and later ones; "8.0;8.6;8.9;9.0+PTX"
if there are none. The least compute capability is 7.0, as far as the CUDA toolkit builds for it (13 needs 7.5).
LEANDETR_CUDA=0 leaves CUDA out. MAX_JOBS limits how many files are compiled at once.
"""

import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path

import torch
from setuptools import setup
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

HERE = Path(__file__).parent
CPU_FLAGS = ["-O3", "-fopenmp", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast", "-Wno-psabi"]


def sources(*patterns: str) -> list[str]:
    return sorted(path.relative_to(HERE).as_posix() for pattern in patterns for path in HERE.glob(pattern))


@cache
def nvcc(*arguments: str) -> str:
    """What nvcc says when it is called so; empty where there is none."""
    program = shutil.which("nvcc", path=f"{CUDA_HOME}/bin") if CUDA_HOME else None
    if program is None:
        return ""
    done = subprocess.run([program, *arguments], capture_output=True, check=False, encoding="utf-8", errors="replace")
    return done.stdout + done.stderr


def toolkit() -> Path:
    """The folder of the CUDA toolkit. Its nvcc says where that is: what stands in PATH may be a link or a script."""
    top = re.search(r"TOP=(.+)", nvcc("--dryrun", "-x", "cu", "-c", os.devnull))
    return Path(top[1].strip() if top else CUDA_HOME).resolve()


def cards() -> list[tuple[int, int]]:
    """Compute capabilities of the GPUs here that the kernels can serve."""
    found = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    return sorted(capability for capability in found if capability >= (7, 0))


def architectures() -> str:
    """What to build for, as TORCH_CUDA_ARCH_LIST says it. A build with PTX serves later cards too."""
    own = ";".join(f"{major}.{minor}" for major, minor in cards())
    return os.environ.get("TORCH_CUDA_ARCH_LIST") or f"{own or '8.0;8.6;8.9;9.0'}+PTX"


def why_without_cuda() -> str:
    """The reason for leaving CUDA out; empty when it can be built."""
    if os.environ.get("LEANDETR_CUDA") == "0":
        return "LEANDETR_CUDA=0"
    if torch.version.cuda is None:
        return "this PyTorch is built without CUDA"
    release = re.search(r"release (\d+)\.", nvcc("--version"))
    if release is None:
        return "no nvcc; install the CUDA toolkit and point CUDA_HOME at it"
    if release[1] != torch.version.cuda.split(".")[0]:
        return f"nvcc is of CUDA {release[1]}, PyTorch of CUDA {torch.version.cuda}"
    return ""


def pip_headers() -> list[str]:
    """Include folders of pip's nvidia packages, which hold what a slim toolkit lacks."""
    roots = {*site.getsitepackages(), sysconfig.get_paths()["purelib"]}
    major = (torch.version.cuda or "0").split(".")[0]
    found = [Path(root) / f"nvidia/cu{major}/include" for root in roots]
    return [str(path) for path in found if (path / "cuda_runtime_api.h").is_file()]


def extension():
    """The extension with everything that can be built here."""
    reason = why_without_cuda()
    common = {"name": "leandetr_ops", "extra_link_args": ["-fopenmp"]}
    if reason:
        print(f"leandetr_ops: CPU kernels only ({reason})", file=sys.stderr)
        return CppExtension(sources=sources("src/*.cpp", "src/cpu/*.cpp"), extra_compile_args=CPU_FLAGS, **common)
    os.environ["TORCH_CUDA_ARCH_LIST"] = architectures()
    # After the toolkit's own folder, so that its headers win where both have them: they belong to its nvcc.
    lacking = [flag for folder in pip_headers() for flag in ("-idirafter", folder)]
    return CUDAExtension(
        sources=sources("src/*.cpp", "src/cpu/*.cpp", "src/cuda/*.cpp", "src/cuda/*.cu"),
        include_dirs=[str(toolkit() / "include")],
        library_dirs=[str(folder) for name in ("lib64", "lib") if (folder := toolkit() / name).is_dir()],
        define_macros=[("LEANDETR_CUDA_ARCHITECTURES", f'"{architectures()}"')],
        extra_compile_args={"cxx": [*CPU_FLAGS, *lacking], "nvcc": ["-O3", "--expt-relaxed-constexpr"]},
        **common,
    )


setup(name="leandetr_ops", version="1.0", ext_modules=[extension()], cmdclass={"build_ext": BuildExtension})
