"""What a file is, by its content: endings are not to be trusted. For what is no checkpoint: what it is, what helps."""

import json
import pickle
import re
import tarfile
import zipfile
from pathlib import Path

import torch

AGAIN = "copy or download it again"
ZIP = b"PK\x03\x04"
MAGIC = {
    b"\x89HDF\r\n": "an HDF5 file, as Keras and TensorFlow write them; only weights of PyTorch can be read: look for a "
    ".pth, .bin or .safetensors of the same model",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself; `git lfs pull` in its repository gets it",
    b"\x1f\x8b": "compressed with gzip; unpack it first (gunzip)",
    b"BZh": "compressed with bzip2; unpack it first (bunzip2)",
    b"\xfd7zXZ": "compressed with xz; unpack it first (unxz)",
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard; unpack it first (unzstd)",
    b"7z\xbc\xaf": "a 7z archive; unpack it first and give the file within",
    b"Rar!": "a RAR archive; unpack it first and give the file within",
    b"\x93NUMPY": "an array of NumPy, not a dict of weights by name",
}
WEB_PAGE = (b"<!doctype", b"<html", b"<head", b"<?xml")
LEGACY_TAR = {"sys_info", "pickle", "storages", "tensors"}
"""What PyTorch wrote before version 0.1.10."""
NUMPY = re.compile(r"^(numpy\.(_?core\.multiarray\.(scalar|_reconstruct)|dtype|dtypes\..*|ndarray)|_codecs\.encode)$")
"""What a pickled number or array of NumPy asks for."""
SHOWN = 3


def foreign_format(path: Path) -> str | None:
    """What a file is that is no checkpoint, and what helps; None for one that can be read, or whose fault shows then.

    Raises:
        OSError: it cannot be opened.
        Exception: an archive that is damaged inside.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return f"damaged: it is empty (0 bytes); {AGAIN}"
    named = next((text for magic, text in MAGIC.items() if head.startswith(magic)), None)
    if named is not None:
        return f"is {named}"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(WEB_PAGE):
        return (
            "is a web page, not a checkpoint: the link leads to a page in front of the file, a login, a warning or "
            "a preview; download the file itself"
        )
    if head.startswith(ZIP):
        return _foreign_zip(path) if zipfile.is_zipfile(path) else f"damaged: {size} bytes, its end is missing; {AGAIN}"
    if head[257:262] == b"ustar":
        return _foreign_tar(path)
    return None


def _foreign_zip(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    ends = {name.rsplit("/", 1)[-1] for name in names}
    if "constants.pkl" in ends:
        return (
            "is a TorchScript archive: a program, which is not loaded since it can run code. Ask its author for the "
            f"weights alone, or, {trusting(path)}"
        )
    if "data.pkl" in ends:
        return None
    if "model.weights.h5" in ends:
        return "is a model of Keras; only weights of PyTorch can be read"
    inside = ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
    return f"is a zip archive without a checkpoint of PyTorch (it holds {inside or 'nothing'}); unpack it first"


def _foreign_tar(path: Path) -> str:
    with tarfile.open(path) as archive:
        names = set(archive.getnames())
    if names >= LEGACY_TAR:
        return (
            "is a tar file of a PyTorch before version 0.1.10, whose reader can run code. Ask its author for a newer "
            f"one, or, {trusting(path)}"
        )
    return f"is a tar archive (it holds {', '.join(sorted(names)[:SHOWN])}); unpack it first and give the file within"


def trusting(path: Path) -> str:
    """What a person does who trusts a file."""
    return f"if you trust it, convert it: python tools/convert_checkpoint.py --trust {path}"


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as a file of safetensors: the length of a JSON object, and the object."""
    with path.open("rb") as file:
        head = file.read(9)
    return len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 1 << 30


def reading_problem(path: Path, error: Exception) -> str:
    """Why a file that looked like a checkpoint could not be read, and what helps."""
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read: {error.strerror}"
    refused = refused_types(path, error)
    if refused:
        more = f" and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
        return (
            f"holds more than tensors and plain values ({', '.join(refused[:SHOWN])}{more}) and is not loaded, since "
            f"such a file can run code. Ask its author for one with the weights alone, or, {trusting(path)}"
        )
    if is_safetensors(path):
        size, whole = path.stat().st_size, _safetensors_size(path)
        if whole is None or size < whole:
            return f"damaged: {size} bytes of {whole or 'unknown'} are there; {AGAIN}"
    with path.open("rb") as file:
        head = file.read(64)
    if head.isascii() and head.decode().replace("\n", " ").replace("\r", " ").replace("\t", " ").isprintable():
        start = " ".join(head.decode().split())[:40]
        return f'is text, not a checkpoint; it begins with "{start}". Download the file itself'
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return f"damaged, or not a PyTorch checkpoint: {said}; {AGAIN}"


def _safetensors_size(path: Path) -> int | None:
    """How many bytes the head of a file of safetensors speaks of; None where that is damaged."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            entries = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in entries.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, IndexError):
            return None
    return 8 + length + max(ends, default=0)


def refused_types(path: Path, error: Exception) -> list[str]:
    """What a pickle asks for beside tensors and plain values, in words; empty where that is not what is wrong.

    Args:
        error: what `torch.load(weights_only=True)` said of the file.
    """
    first = re.findall(r"GLOBAL ([\w.]+)|Unsupported class:? ([\w.]+)|got <class '([\w.]+)'>", str(error))
    if not first or not isinstance(error, pickle.UnpicklingError):
        return []
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)  # files of PyTorch 1.6 and later
    except (ValueError, RuntimeError, OSError, KeyError):
        found = []
    names = dict.fromkeys([name for match in first for name in match if name] + sorted(found))
    names.pop("argparse.Namespace", None)  # which is admitted
    others = [f"class {name}" if name.rsplit(".", 1)[-1][:1].isupper() else name for name in names]
    numpy = [name for name in names if NUMPY.match(name)]
    if numpy:
        kind = "scalar" if any(name.endswith("scalar") for name in numpy) else "array"
        others = [f"numpy {kind}: {numpy[0]}", *(name for name in others if not NUMPY.match(name))]
    return others
