"""Downloads that go on where they stopped, checked, and unpacked whole."""

import hashlib
import os
import shutil
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from speechbrain.utils.logger import get_logger
from tqdm import tqdm

logger = get_logger(__name__)

BLOCK = 1 << 20


def fetch(url, path, checksum=None, attempts=5, timeout=60):
    """Downloads a file, going on with what an earlier attempt left.

    What has arrived is kept in `<path>.part`; `path` appears once it is whole
    and checked.

    Arguments
    ---------
    url : str
        Where it is.
    path : str or Path
        Where it goes; nothing is done if it is there.
    checksum : str, optional
        Such as "md5:2a93..." or "sha256:d4dd...", by the algorithm's name in
        `hashlib`.
    attempts : int
        How often a connection may break in a row without a new byte.
    timeout : float
        Seconds without a byte after which it counts as broken.

    Raises
    ------
    FileNotFoundError
        If the server has no such file.
    ConnectionError
        If the connection keeps breaking; started again, it goes on.
    ValueError
        If the checksum is another. The file is deleted.
    """
    path = Path(path)
    if path.is_file():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    left = attempts
    while True:
        have = part.stat().st_size if part.exists() else 0
        try:
            if _receive(url, part, have, timeout):
                break
            trouble = "it ended early"
        except urllib.error.HTTPError as error:
            if error.code in (404, 410):
                raise FileNotFoundError(
                    f"{url} is not there (HTTP {error.code}): check the "
                    "address (--download_from) and the subset."
                ) from error
            trouble = error
        except OSError as error:
            trouble = error
        arrived = part.stat().st_size if part.exists() else 0
        left = attempts if arrived > have else left - 1
        logger.warning("%s: %s, after %d bytes", url, trouble, arrived)
        if not left:
            raise ConnectionError(
                f"{url} cannot be downloaded ({trouble}). Start again to go on "
                f"after the {arrived} bytes in {part}."
            )
    _check(part, checksum, url)
    os.replace(part, path)


def _receive(url, part, have, timeout):
    """Appends what is missing to a file; returns whether it is whole now."""
    headers = {"Range": f"bytes={have}-"} if have else {}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        total = error.headers.get("Content-Range", "").rpartition("/")[2]
        if error.code == 416 and total == str(have):
            return True  # all of it was there
        if error.code == 416:
            part.unlink()  # of another file
        raise
    with response:
        resumed = response.status == 206
        length = response.headers.get("Content-Length")
        start = have if resumed else 0
        total = start + int(length) if length else None
        bar = tqdm(
            desc=part.stem,
            initial=start,
            total=total,
            unit="B",
            unit_scale=True,
            disable=None,
        )
        with bar, open(part, "ab" if resumed else "wb") as file:
            while block := response.read(BLOCK):
                file.write(block)
                bar.update(len(block))
    return total is None or part.stat().st_size == total


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
    found = digest.hexdigest()
    if found != expected.lower():
        path.unlink()
        raise ValueError(
            f"{url} has the {algorithm} {found}, not {expected}: it was "
            "damaged on the way, or is another file. It was deleted; start "
            "again, or correct the checksum."
        )


def unpack(archive, folder):
    """Unpacks a tar archive; what is there is there whole.

    Goes to a folder beside it first, and from there into place: the
    directories of the second level last, each in one move. What is there
    already stays.

    Arguments
    ---------
    archive : str or Path
        A tar file, compressed or not.
    folder : str or Path
        Where its content goes.

    Raises
    ------
    ValueError
        If the archive is damaged. Nothing of it is left.
    """
    folder = Path(folder)
    partial = folder / f".{Path(archive).name}.partial"
    shutil.rmtree(partial, ignore_errors=True)  # of a killed run
    partial.mkdir(parents=True)
    try:
        with tarfile.open(archive) as tar:
            bar = tqdm(tar, f"Unpacking {Path(archive).name}", disable=None)
            for member in bar:
                tar.extract(member, partial, filter="data")
    except (tarfile.TarError, EOFError, OSError) as error:
        shutil.rmtree(partial)
        raise ValueError(
            f"{archive} cannot be unpacked ({error}): delete it, and download "
            "it again."
        ) from error
    entries = sorted(partial.glob("*/*"), key=lambda path: path.is_dir())
    for entry in entries:
        target = folder / entry.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            os.replace(entry, target)
    shutil.rmtree(partial)
