"""Downloads that continue where they stopped, checked, and unpacked whole."""

import errno
import hashlib
import os
import shutil
import tarfile
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import requests
from filelock import FileLock, Timeout
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

logger = get_logger(__name__)

BLOCK = 1 << 16
#: client errors that may pass: timeout, range, too many requests
PASSING = (408, 416, 429)


def fetch(url, path, checksum=None, attempts=5):
    """Downloads a file, continuing after what an earlier attempt left.

    What has arrived is kept in `<path>.part`; `path` appears once it is whole
    and checked. (huggingface_hub's `http_get` neither repeats after a 503 nor
    works under HF_HUB_OFFLINE.)

    Arguments
    ---------
    url : str
        Its address: http or https.
    path : str or Path
        Where it goes; nothing is done if it is there.
    checksum : str, optional
        Such as "md5:2a93..." or "sha256:d4dd...".
    attempts : int
        How often a connection may break in a row without a new byte.

    Raises
    ------
    FileNotFoundError
        If the server has no such file.
    ConnectionError
        If the server refuses; or if the connection keeps breaking or the disk
        is full: started again, it continues.
    BlockingIOError
        If another run downloads it.
    ValueError
        If the checksum is another. The file is deleted.
    """
    path = Path(path)
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with _lock(part):
        _receive_all(url, part, attempts)
        _check(url, part, checksum)
        os.replace(part, path)


def unpack(archive, folder):
    """Unpacks a tar archive; what is there is there whole.

    Files and directories go to a folder beside it first, and from there into
    place: the directories of the second level last, each in one move. What is
    there already stays.

    Arguments
    ---------
    archive : str or Path
        A tar file, plain or compressed by gzip.
    folder : str or Path
        Where its content goes.

    Raises
    ------
    ValueError
        If the archive is damaged, holds links or devices, or names a place
        outside the folder. Nothing of it is left.
    BlockingIOError
        If another run unpacks it.
    OSError
        If the disk is full, or cannot be written. Nothing of it is left.
    """
    archive, folder = Path(archive), Path(folder)
    partial = folder / f".{archive.name}.partial"
    with _lock(archive):
        shutil.rmtree(partial, ignore_errors=True)  # of a killed run
        partial.mkdir(parents=True)
        try:
            _extract(archive, partial)
            for entry in sorted(partial.glob("*/*"), key=Path.is_dir):
                target = folder / entry.relative_to(partial)
                target.parent.mkdir(parents=True, exist_ok=True)
                if not target.exists():
                    os.replace(entry, target)
        finally:
            shutil.rmtree(partial)


@contextmanager
def _lock(path):
    """Keeps other runs from a file, until this process ends at the latest."""
    lock = FileLock(f"{path}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        message = f"Another run works on {path}: start again after its end."
        raise BlockingIOError(message) from error
    try:
        yield
    finally:
        os.unlink(lock.lock_file)
        lock.release()


def _receive_all(url, part, attempts):
    """Appends to a file until it is whole, over as many connections."""
    have, left = _size(part), attempts
    while True:
        try:
            return _receive(url, part, have)
        except OSError as error:  # of the server, the network or the disk
            before, have = have, _size(part)
            left = attempts if have > before else left - 1
            code = getattr(getattr(error, "response", None), "status_code", 0)
            why = f"{url} cannot be downloaded ({error}):"
            if 400 <= code < 500 and code not in PASSING:
                kind = (
                    FileNotFoundError if code in (404, 410) else ConnectionError
                )
                raise kind(
                    f"{why} check the address (--download_from) and the subset."
                ) from error
            if not left or error.errno == errno.ENOSPC:
                raise ConnectionError(
                    f"{why} Start again to continue after the {have} bytes in {part}."
                ) from error
            logger.warning("%s: %s, after %d bytes", url, error, have)
        time.sleep(2 ** (attempts - left))


def _receive(url, part, have):
    """Appends what is missing to a file; raises if the connection breaks."""
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    with requests.get(url, headers=headers, stream=True, timeout=60) as answer:
        if answer.status_code == 416:
            if answer.headers.get("Content-Range") == f"bytes */{have}":
                return  # all of it was there
            part.unlink()  # of another file
        answer.raise_for_status()
        mode = "ab" if answer.status_code == 206 else "wb"
        with open(part, mode) as file:
            total = answer.headers.get("Content-Length")
            total = total and file.tell() + int(total)
            bar = {"desc": part.stem, "initial": file.tell(), "total": total}
            with tqdm.wrapattr(file, "write", **bar, disable=None) as counted:
                for block in answer.iter_content(BLOCK):
                    counted.write(block)
            if total and file.tell() != total:
                raise requests.ConnectionError("it ended early")


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _check(url, path, checksum):
    """Raises a ValueError, and deletes the file, if its checksum is another."""
    if checksum is None:
        logger.warning("%s has no known checksum: it is not checked.", url)
        return
    algorithm, _, expected = checksum.partition(":")
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    if digest.hexdigest() != expected.lower():
        path.unlink()
        why = f"{url} has the {algorithm} {digest.hexdigest()}, not {expected}"
        raise ValueError(f"{why}: start again, or correct the checksum.")


def _files_only(member, folder):
    """Is tarfile's data filter, without links and devices."""
    if not (member.isfile() or member.isdir()):
        raise tarfile.TarError(f"{member.name} is a link or device")
    return tarfile.data_filter(member, folder)


def _extract(archive, folder):
    """Extracts an archive to its end, where gzip compares its checksum."""
    try:
        with tarfile.open(archive) as tar:
            members = tqdm(tar, f"Unpacking {archive.name}", disable=None)
            tar.extractall(folder, members, filter=_files_only)
            while tar.fileobj.read(BLOCK):
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        if getattr(error, "errno", None):  # of the disk, not of the archive
            raise OSError(
                error.errno,
                f"{error.strerror}: {archive} takes more than {_size(archive) / 1e9:.3g} GB in {folder}",
            ) from error
        raise ValueError(
            f"{archive} cannot be unpacked ({error}): delete it, and download it again."
        ) from error
