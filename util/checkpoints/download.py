"""Files behind URLs and names on the Hugging Face hub: downloaded once to a machine, whole or not at all.

Processes of one machine take turns by a lock file and do not speak to each other, so that any of them may ask alone.
"""

import hashlib
import logging
import os
import re
import shutil
import uuid
from http.client import HTTPException
from pathlib import Path
from urllib.request import Request, urlopen

import torch

from util.processes.distributed import file_lock

log = logging.getLogger(__name__)

HUB = "hf-hub:"
SILENCE = 60
"""Seconds after which a server that sends nothing is given up."""


class DownloadError(OSError):
    """A file that cannot be had; the message says why and what helps."""


def fetch_checkpoint(source: str) -> Path:
    """The file behind a path, a URL or "hf-hub:OWNER/NAME"; from this machine's cache if it is there.

    Raises:
        DownloadError: it cannot be downloaded.
    """
    if source.startswith(("http://", "https://")):
        return _from_url(source)
    if source.startswith(HUB):
        return _from_hub(source.removeprefix(HUB))
    return Path(source)


def cached_path(url: str) -> Path:
    """Where the file behind a URL is kept: in PyTorch's cache, under the last part of the URL.

    Where that holds no hash of the content (name-0123abcd.pth), a hash of the whole URL tells files of one name apart.
    """
    folder, name = Path(torch.hub.get_dir()) / "checkpoints", _last_part(url)
    if _content_hash(url) is None:
        name = f"{Path(name).stem}.{hashlib.sha256(url.encode()).hexdigest()[:12]}{Path(name).suffix}"
    return folder / name


def _last_part(url: str) -> str:
    return url.split("?")[0].split("#")[0].rstrip("/").rsplit("/", 1)[-1]


def _content_hash(url: str) -> str | None:
    """What the SHA-256 of the file has to begin with, if its name says so."""
    found = re.search(r"-([a-f0-9]{8,})\.", _last_part(url))
    return found and found[1]


def _from_hub(name: str) -> Path:
    """The weights of OWNER/NAME on the Hugging Face hub; its client locks and checks by itself."""
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(name, "model.safetensors"))
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DownloadError(f"{HUB}{name}: cannot be downloaded: {reason}. Get the file by hand and name it") from error


def _from_url(url: str) -> Path:
    path = cached_path(url)
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with file_lock(path):
            if not path.is_file():  # else another process has downloaded it meanwhile
                log.info("downloading %s to %s%s", url, path, _former(url, path))
                _download(url, path)
    except (OSError, ValueError, HTTPException) as error:  # ValueError: no URL at all
        by_hand = f"Put the file there by hand{_former(url, path)}"
        raise DownloadError(f"{url}: cannot be downloaded to {path}: {error}. {by_hand}") from error
    return path


def _former(url: str, path: Path) -> str:
    """What is to be said of a file under the bare name, as files of any URL were once kept."""
    former = path.with_name(_last_part(url))
    if former == path or not former.is_file():
        return ""
    return f" ({former} may come from another URL and is not used; if it does not, rename it)"


def _download(url: str, path: Path):
    """Writes the file under another name, and renames it once it is known to be whole.

    torch.hub.download_url_to_file does not notice a connection that ends early.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    try:
        with temporary.open("wb") as file:
            with urlopen(Request(url, headers={"User-Agent": "torch.hub"}), timeout=SILENCE) as answer:
                shutil.copyfileobj(answer, file)
                size, expected = file.tell(), answer.headers.get("Content-Length")
            file.flush()
            os.fsync(file.fileno())
        if expected is not None and size != int(expected):
            raise OSError(f"the connection ended after {size} of {expected} bytes")
        beginning, found = _content_hash(url), sha256(temporary)
        if beginning is not None and not found.startswith(beginning):
            raise OSError(f"its SHA-256 should begin with {beginning}, and is {found}")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            digest.update(chunk)
    return digest.hexdigest()
