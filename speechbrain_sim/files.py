"""Files: hashes, atomic writes, json, arrays, results that are computed once."""

import errno
import hashlib
import json
import os
import platform
import zlib
from contextlib import contextmanager, nullcontext, suppress
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from ruamel.yaml.error import YAMLError

from speechbrain_sim import __version__

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

#: errors of a disk, or of a quota, that is full
FULL = errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)
#: longest name of a file in bytes; what is left of 255 is for endings
LONGEST = 200
#: locks that are held, by process and file
_locks = {}
#: a content hash reads so many pieces of so many bytes, or a smaller file whole
PIECES, PIECE = 16, 1 << 16
#: what readers of damaged files raise
DAMAGE = ValueError, LookupError, TypeError, AttributeError, EOFError, OSError
DAMAGE += BadZipFile, zlib.error, YAMLError


def text_hash(text):
    """Returns the sha256 of a text: 64 hexadecimal digits."""
    return hashlib.sha256(os.fsencode(text)).hexdigest()


def sha256(path, algorithm="sha256"):
    """Returns the hash of a file: hexadecimal digits."""
    digest = hashlib.new(algorithm)
    with open(path, "rb") as file:  # hashlib.file_digest needs Python 3.11
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def content_hash(path):
    """Returns a hash of a file's size and content: 32 hexadecimal digits.

    Cheap enough for every file of a corpus: beyond 1 MB, 16 pieces are read,
    from the first to the last byte. Name, place and dates do not count.
    """
    stat = os.stat(path)
    changed = stat.st_mtime_ns, stat.st_ctime_ns
    return _content_hash(os.path.abspath(path), stat.st_size, changed)


@lru_cache(maxsize=1 << 18)
def _content_hash(path, size, changed):
    """Hash of a file, kept in this process until the file changes."""
    digest = hashlib.sha256(str(size).encode())
    last, count = max(0, size - PIECE), max(1, min(PIECES, -(-size // PIECE)))
    with open(path, "rb") as file:
        for number in range(count):
            file.seek(number * last // max(1, count - 1))
            digest.update(file.read(PIECE))
    return digest.hexdigest()[:32]


@contextmanager
def atomic(path):
    """Yields a path to write to, which becomes `path` if nothing is raised.

    Makes its folder; an error leaves nothing, and is explained if the disk is
    full.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a/b.txt"
    >>> with atomic(path) as partial:
    ...     _ = partial.write_text("all of it")
    >>> [found.name for found in path.parent.iterdir()]
    ['b.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{short_name(path.name)}.part")
    try:
        with full_disk_explained(path):
            yield partial
        os.replace(partial, path)
    except Exception:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def full_disk_explained(path, size=None):
    """States what could not be written, and how to go on, if a disk is full.

    `size` is what `path` takes, in bytes, if it is known.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL or error.strerror is None:
            raise  # something else, or explained already
        need = f", which takes {size / 1e9:.3g} GB" if size else ""
        explained = OSError(
            f"{error.strerror}: {path} cannot be written{need}. Make room in "
            f"{Path(path).parent}, and start again."
        )
        explained.errno = error.errno
        raise explained from error


def allocate(file, size):
    """Reserves bytes on the disk for an open file, or raises an OSError.

    A sparse file that is mapped ends the process where the disk is full.
    """
    with full_disk_explained(file.name, size):
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except (AttributeError, OSError) as error:  # some systems cannot
            if getattr(error, "errno", None) in FULL:
                raise


def short_name(name):
    """Returns a file's name, or of a long one its beginning and a hash.

    Example
    -------
    >>> short_name("a.wav"), len(short_name("ä" * 300).encode())
    ('a.wav', 199)
    """
    text = os.fsencode(name)
    if len(text) <= LONGEST:
        return name
    begin = text[: LONGEST - 14].decode(errors="ignore")
    return f"{begin}-{text_hash(name)[:12]}"


def file_of(folder, name, ending=""):
    """Returns the path of a file that is named by an id, inside a folder.

    Example
    -------
    >>> file_of("audio", "../ann/1", ".wav").as_posix()
    'audio/_/ann/1.wav'
    """
    parts = [short_name(part) for part in name.split("/")]
    parts = ["_" if part in ("", ".", "..") else part for part in parts]
    return Path(folder, *parts[:-1], parts[-1] + ending)


def write_bytes(path, content):
    """Writes bytes to a file as a whole or not at all; makes its folder."""
    with atomic(path) as partial:
        partial.write_bytes(content)
        sync(partial)


def sync(path):
    """Waits until a file, or the names in a folder, are on the disk."""
    folder = os.path.isdir(path)
    # not every system can open, or sync, a folder
    with suppress(OSError) if folder else nullcontext():
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def lock_folder(folder):
    """Reserves a folder for this process, until it ends.

    The kernel releases the lock, also of a process that is killed. Worker
    processes do not inherit it. Raises a BlockingIOError that names the process
    that has it.
    """
    path = Path(folder).resolve() / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    held = os.getpid(), path
    if fcntl is None or (held in _locks and path.exists()):
        return
    file = open(path, "a+", encoding="utf-8")
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            return  # a file system without locks
        raise BlockingIOError(
            f"Another run works in {folder} ({owner or 'unknown process'}): "
            f"wait for its end, or choose another folder."
        ) from error
    _locks[held] = file
    with suppress(OSError):  # on a full disk it is held without name
        file.truncate(0)
        owner = f"process {os.getpid()} on {platform.node()}\n"
        os.write(file.fileno(), owner.encode())


def unlock_folder(folder):
    """Ends what `lock_folder` reserved, before the process ends."""
    held = os.getpid(), Path(folder).resolve() / ".lock"
    if held in _locks:
        _locks.pop(held).close()


def write_text(path, text):
    """Writes a text in UTF-8, its line ends as they are: see `write_bytes`."""
    write_bytes(path, text.encode())


def write_json(path, content):
    """Writes a json file as a whole or not at all; makes its folder.

    A ValueError is raised for NaN and infinity: json has no such numbers.
    """
    try:
        text = json.dumps(content, indent=1, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path} cannot be written: {error}.") from error
    write_bytes(path, (text + "\n").encode())


@contextmanager
def naming(path, kind):
    """Raises a ValueError that names a file if it turns out to be damaged.

    A file that does not exist raises its own FileNotFoundError.
    """
    try:
        yield
    except FileNotFoundError:
        raise
    except DAMAGE as error:
        remedy = "If it is damaged, delete it and start again what wrote it."
        raise ValueError(f"{path} is not {kind}: {error}. {remedy}") from error


def read_json(path, mapping=None):
    """Reads a json file; a ValueError names the file if it is not json.

    `mapping` makes a mapping of its list of (key, value); by default a dict.
    """
    with naming(path, "json"):
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
            return json.loads(text, object_pairs_hook=mapping)
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error


def read_arrays(path, mmap=False):
    """Reads a npy file, an array, or a npz file, a dict of arrays.

    `mmap` maps an array instead of reading it. A ValueError names the file if
    it is damaged.
    """
    with naming(path, "arrays"):
        arrays = np.load(path, mmap_mode="c" if mmap else None)
        return dict(arrays) if hasattr(arrays, "files") else arrays


def write_arrays(path, **arrays):
    """Writes a npz file as a whole or not at all; makes its folder."""
    with atomic(path) as partial, open(partial, "wb") as file:
        np.savez(file, **arrays)


def cached_result(path, made_of, compute):
    """Computes a result, unless it was computed from the same before.

    `path` is a json file that keeps it, with `made_of`, a dict of the hashes
    and settings that it depends on; this package's version is added. `compute`
    returns json values, without NaN and infinity. Returns the result as json
    gives it back.

    Example
    -------
    >>> path = getfixture("tmp_path") / "result.json"
    >>> cached_result(path, {"seed": 1}, lambda: [1])
    [1]
    >>> cached_result(path, {"seed": 1}, lambda: [2])
    [1]
    >>> cached_result(path, {"seed": 2}, lambda: [2])
    [2]
    """
    made_of = json.loads(json.dumps({"version": __version__, **made_of}))
    path = Path(path)
    known = read_json(path) if path.exists() else {}
    if isinstance(known, dict) and known.get("made_of") == made_of:
        return known["result"]
    result = json.loads(json.dumps(compute()))
    write_json(path, {"made_of": made_of, "result": result})
    return result


def versions():
    """Returns the versions of what computes here: dict of str to str."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "speechbrain")},
        "speechbrain_sim": __version__,
    }


def machine():
    """Describes this machine: dict of processor, cores, load, versions, ..."""
    import torch

    gpu = torch.cuda.is_available()
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": list(os.getloadavg()),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        **versions(),
    }
