"""Files: hashes, atomic writes, json, and results that are computed once."""

import hashlib
import json
import os
import platform
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from speechbrain_sim import __version__


def sha256(path):
    """Returns the hash of a file: 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # hashlib.file_digest needs Python 3.11
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def atomic(path):
    """Yields a path to write to, which becomes `path` if nothing is raised.

    Makes its folder.

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
    partial = path.with_name(f"{path.name}.part")
    yield partial
    os.replace(partial, path)


def write_bytes(path, content):
    """Writes bytes to a file as a whole or not at all; makes its folder."""
    with atomic(path) as partial:
        partial.write_bytes(content)


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


def read_json(path):
    """Reads a json file; a ValueError names the file if it is not json."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not json: {error}.") from error


def cached_result(path, made_of, compute):
    """Computes a result, unless it was computed from the same before.

    `path` is a json file that keeps it, with `made_of`, a dict of the hashes
    and settings that it depends on. `compute` returns json values, without NaN
    and infinity. Returns the result as json gives it back.

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
    path, made_of = Path(path), json.loads(json.dumps(made_of))
    known = read_json(path) if path.exists() else {}
    if known.get("made_of") == made_of:
        return known["result"]
    result = json.loads(json.dumps(compute(), allow_nan=False))
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
