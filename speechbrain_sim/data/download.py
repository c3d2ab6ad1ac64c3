"""Downloads that go on where they stopped, checked, and unpacked whole."""

import errno
import hashlib
import os
import shutil
import tarfile
import time
import zlib
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from filelock import FileLock, Timeout
from speechbrain.utils.logger import get_logger
from tqdm import tqdm

logger = get_logger(__name__)

BLOCK = 1 << 20
#: HTTP errors of clients that pass: timeout, range, too many requests
PASSING = (408, 416, 429)


def fetch(url, path, checksum=None, attempts=5):
    """Downloads a file, going on with what an earlier attempt left.

    What has arrived is kept in `<path>.part`; `path` appears once it is whole
    and checked. (huggingface_hub's `http_get` drops up to 10 MB with every
    broken connection, pooch and SpeechBrain's `download_file` everything.)

    Arguments
    ---------
    url : str
        Where it is: http, https or file.
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
        is full: started again, it goes on.
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
        part.touch()
        _receive_all(url, part, attempts)
        _check(part, checksum, url)
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
        raise BlockingIOError(
            f"Another run works on {path}: wait until it is done, or end it; "
            "then start again."
        ) from error
    try:
        yield
    finally:
        os.unlink(lock.lock_file)
        lock.release()


def _receive_all(url, part, attempts):
    """Appends to a file until it is whole, over as many connections."""
    left = attempts
    while True:
        have = part.stat().st_size
        try:
            return _receive(url, part, have)
        except (OSError, HTTPException) as error:
            arrived = part.stat().st_size
            left = attempts if arrived > have else left - 1
            _judge(error, url, part, left)
        time.sleep(2 ** (attempts - left))


def _judge(error, url, part, left):
    """Raises what another connection would not mend, and logs the rest."""
    code, size = getattr(error, "code", 0), part.stat().st_size
    if 400 <= code < 500 and code not in PASSING:
        if not size:
            part.unlink()
        raise (FileNotFoundError if code in (404, 410) else ConnectionError)(
            f"{url} cannot be downloaded ({error}): check the address "
            "(--download_from) and the subset."
        ) from error
    logger.warning("%s: %s, after %d bytes", url, error, size)
    if not left or getattr(error, "errno", None) == errno.ENOSPC:
        raise ConnectionError(
            f"{url} cannot be downloaded ({error}). Start again to go on after "
            f"the {size} bytes in {part}."
        ) from error


def _receive(url, part, have):
    """Appends what is missing to a file; raises if the connection breaks."""
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(request, timeout=60)
    except HTTPError as error:
        if error.code == 416:
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return  # all of it was there
            os.truncate(part, 0)  # of another file
        raise
    with response, open(part, "ab" if response.status == 206 else "wb") as file:
        total = response.headers.get("Content-Length")
        total = total and file.tell() + int(total)
        bar = {"desc": part.stem, "initial": file.tell(), "total": total}
        with tqdm.wrapattr(file, "write", **bar, disable=None) as counted:
            shutil.copyfileobj(response, counted)
        if total and file.tell() != total:
            raise HTTPException("it ended early")


def _check(path, checksum, url):
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
        raise ValueError(
            f"{url} has the {algorithm} {digest.hexdigest()}, not {expected}: "
            "it was damaged on the way, or is another file. It was deleted; "
            "start again, or correct the checksum."
        )


def _extract(archive, folder):
    """Extracts an archive to its end, where gzip compares its checksum."""
    try:
        with tarfile.open(archive) as tar:
            for member in tqdm(tar, f"Unpacking {archive.name}", disable=None):
                if not (member.isfile() or member.isdir()):
                    raise tarfile.TarError(f"{member.name} is a link or device")
                tar.extract(member, folder, filter="data")
            while tar.fileobj.read(BLOCK):
                pass
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        if getattr(error, "errno", None):  # of the disk, not of the archive
            size = archive.stat().st_size / 1e9
            why = f"{error.strerror}: {archive} takes more than {size:.3g} GB"
            raise OSError(error.errno, f"{why} in {folder}") from error
        raise ValueError(
            f"{archive} cannot be unpacked ({error}): delete it, and download "
            "it again."
        ) from error
