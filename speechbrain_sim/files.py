"""files."""

import hashlib
import json
import os
import pathlib
import platform
from importlib.metadata import version

import torch
from speechbrain.utils.logger import get_logger

from speechbrain_sim import __version__

logger = get_logger(__name__)


def sha256(path):
    """Hashes a file.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # hashlib.file_digest needs Python 3.11
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_text(path, text):
    """Writes a file in UTF-8 whole or not at all, ends of lines as they are.

    Arguments
    ---------
    path : str or pathlib.Path
        Where to; folders are made.
    text : str
        What to write.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(text, encoding="utf-8", newline="")
    os.replace(partial, path)


def write_json(path, content):
    """Writes a json file whole or not at all.

    Arguments
    ---------
    path : str or pathlib.Path
        Where to; folders are made.
    content : dict or list
        What to write.
    """
    write_text(path, json.dumps(content, indent=1) + "\n")


def remembered(path, made_of, compute):
    """Computes a result, or finds that it was computed from the same before.

    Arguments
    ---------
    path : str or pathlib.Path
        A json file that keeps the result.
    made_of : dict
        What it depends on: hashes and settings.
    compute : callable
        Returns the result, of json values.

    Returns
    -------
    dict or list
        The result as json gives it back.

    Raises
    ------
    ValueError
        If the result holds NaN or infinity.

    Example
    -------
    >>> path = getfixture("tmp_path") / "result.json"
    >>> remembered(path, {"seed": 1}, lambda: [1])
    [1]
    >>> remembered(path, {"seed": 1}, lambda: [2])
    [1]
    >>> remembered(path, {"seed": 2}, lambda: [2])
    [2]
    """
    path, made_of = pathlib.Path(path), json.loads(json.dumps(made_of))
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["made_of"] == made_of:
            return known["result"]
    result = json.loads(json.dumps(compute(), allow_nan=False))
    write_json(path, {"made_of": made_of, "result": result})
    return result


def versions():
    """Names what computed a result, as a dict of str to str."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "speechbrain")},
        "speechbrain_sim": __version__,
    }


def machine():
    """Tells where a result was computed, as a dict."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": list(os.getloadavg()),
        "gpu": torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else None,
        **versions(),
    }
