"""Downloads that continue where they stopped, checked, and unpacked whole."""

import errno
import os
import shutil
import tarfile
import time
import zlib
from pathlib import Path

import requests
from filelock import FileLock, Timeout
from speechbrain.utils.logger import get_logger

from speechbrain_sim.console import Bar
from speechbrain_sim.files import sha256

logger = get_logger(__name__)

BLOCK = 1 << 16
#: what an archive may take: so much per byte of it, and besides; each member
#: counts as a block of the disk
LARGEST_RATIO, SLACK, MEMBER = 20, 1 << 28, 1 << 12
#: client errors that may pass: timeout, range, too many requests
PASSING = (408, 416, 429)


def fetch_archive(url, folder, checksum=None):
    """Downloads a tar archive into a folder, and unpacks it there.

    See `fetch` and `unpack`; raises a BlockingIOError if another run works on
    the same archive.
    """
    archive = Path(folder, url.rsplit("/", 1)[-1])
    archive.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{archive}.lock", timeout=0)
    try:
        with lock:
            fetch(url, archive, checksum)
            unpack(archive, folder)
            os.unlink(lock.lock_file)
    except Timeout as error:
        message = f"Another run works on {archive}: start again after its end."
        raise BlockingIOError(message) from error


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
    ValueError
        If the checksum is another. The file is deleted.
    """
    path = Path(path)
    if path.is_file():
        return
    part = path.with_name(f"{path.name}.part")
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
    OSError
        If the disk is full, or cannot be written. Nothing of it is left.
    """
    archive, folder = Path(archive), Path(folder)
    partial = folder / f".{archive.name}.partial"
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
            what = f"{url} cannot be downloaded ({error})"
            if 400 <= code < 500 and code not in PASSING:
                kind = FileNotFoundError if code == 404 else ConnectionError
                remedy = "correct the address, --download_from, or the subset"
                raise kind(f"{what}: {remedy}.") from error
            if not left or error.errno == errno.ENOSPC:
                remedy = f"Start again to continue after the {have} bytes"
                raise ConnectionError(f"{what}. {remedy} in {part}.") from error
            logger.warning("%s: %s, after %d bytes", url, error, have)
        time.sleep(2 ** (attempts - left))


def _receive(url, part, have):
    """Appends what is missing to a file; raises if the connection breaks."""
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={have}-"}
    with requests.get(url, headers=headers, stream=True, timeout=60) as answer:
        for hop in (*answer.history, answer):
            if url.startswith("https:") and not hop.url.startswith("https:"):
                raise ValueError(
                    f"{url} leads to {hop.url}, which is not safe from changes "
                    f"on the way: give another --download_from."
                )
        if answer.status_code == 416:  # beyond its end
            if answer.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()  # of another file
        answer.raise_for_status()
        start = have if answer.status_code == 206 else 0
        total = start + int(answer.headers.get("Content-Length", 0))
        bar = {"desc": part.stem, "initial": start, "total": total or None}
        with open(part, "ab" if start else "wb") as file:
            with Bar.wrapattr(file, "write", **bar, disable=None) as counted:
                for block in answer.iter_content(BLOCK):
                    counted.write(block)


def _size(path):
    return path.stat().st_size if path.exists() else 0


def _check(url, path, checksum):
    """Raises a ValueError, and deletes the file, if its checksum is another."""
    if checksum is None:
        logger.warning("%s has no known checksum: it is not checked.", url)
        return
    algorithm, _, expected = checksum.partition(":")
    digest = sha256(path, algorithm)
    if digest != expected.lower():
        path.unlink()
        why = f"{url} has the {algorithm} {digest}, not {expected}"
        raise ValueError(f"{why}: start again, or correct the checksum.")


def _take(tar, member, folder, budget):
    """Extracts a regular file or a folder; returns what is left of a budget.

    tarfile's data filter is missing before Python 3.10.12, and is passed by
    chains of links before 3.11.13. Names, modes and owners are not obeyed: a
    file is made where nothing is yet.
    """
    target = folder / member.name
    if not (member.isreg() or member.isdir()) or member.issparse():
        raise tarfile.TarError(f"{member.name} is a link or device")
    if ".." in target.parts or not target.is_relative_to(folder):
        raise tarfile.TarError(f"{member.name} lies outside")
    budget -= member.size + MEMBER
    if budget < 0:
        raise tarfile.TarError("it unpacks to more than its size allows")
    (target if member.isdir() else target.parent).mkdir(
        parents=True, exist_ok=True
    )
    if member.isreg():
        with open(target, "xb") as file:
            shutil.copyfileobj(tar.extractfile(member), file)
    return budget


def _extract(archive, folder):
    """Extracts an archive to its end, where gzip compares its checksum."""
    try:
        budget = LARGEST_RATIO * _size(archive) + SLACK
        with tarfile.open(archive) as tar:
            for member in Bar(tar, f"Unpacking {archive.name}", disable=None):
                budget = _take(tar, member, folder, budget)
            while tar.fileobj.read(BLOCK):
                pass
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        what = f"{archive} cannot be unpacked: it names {error.filename} twice"
        raise ValueError(f"{what}, or in two cases of letters.") from error
    except (
        tarfile.TarError,
        zlib.error,
        EOFError,
        OSError,
        ValueError,
    ) as error:
        if getattr(error, "errno", None):  # of the disk, not of the archive
            size = f"{archive} takes more than {_size(archive) / 1e9:.3g} GB"
            message = f"{error.strerror}: {size} in {folder}"
            raise OSError(error.errno, message) from error
        what = f"{archive} cannot be unpacked ({error}): delete it"
        raise ValueError(f"{what}, and download it again.") from error
