"""Rows of labelled audio files → SpeechBrain CSV manifests.

Every corpus lists its files as rows; here they are inspected and written,
with ``$data_root`` in place of the data folder, so that manifests survive a
move of the data. ``hash_split`` divides names the same way on every machine.
"""

import csv
import hashlib
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from speechbrain.utils.logger import get_logger
from tqdm import tqdm

from speechbrain_sim.data.audio import BadAudio, inspect_audio

logger = get_logger(__name__)

COLUMNS = ["ID", "duration", "wav", "sample_rate", "num_samples"]
"""First columns of every manifest; label columns follow."""


class Problem(NamedTuple):
    """What is wrong with a corpus, where, and what to do about it."""

    path: object
    problem: str
    remedy: str


def refuse(problems, save_folder):
    """Raises if there are problems, and lists all of them in a file.

    Arguments
    ---------
    problems : list of Problem
        What was found.
    save_folder : str or Path
        Where `problems.csv` goes; an old one is removed.

    Raises
    ------
    ValueError
        If there are any; names the first five.

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> refuse([], folder)
    >>> try:
    ...     refuse([Problem("a/1", "It is empty.", "Delete it.")], folder)
    ... except ValueError as error:
    ...     print(str(error).splitlines()[1])
      a/1: It is empty. Delete it.
    """
    path = Path(save_folder, "problems.csv")
    if not problems:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    _replace(path, _csv_text(Problem._fields, problems))
    first = "\n".join(
        f"  {where}: {problem} {remedy}"
        for where, problem, remedy in problems[:5]
    )
    raise ValueError(
        f"{len(problems)} problems in the corpus:\n{first}\n"
        f"{'  ...' + chr(10) if len(problems) > 5 else ''}"
        f"All of them are listed in {path}."
    )


def hash_share(name, seed=0):
    """Place of a name in [0, 1), uniform over names and always the same.

    Arguments
    ---------
    name : str
        Any name.
    seed : int
        Another seed places all names anew.

    Returns
    -------
    float
        In [0, 1).

    Example
    -------
    >>> round(hash_share("baga_1"), 4), round(hash_share("baga_1", 1), 4)
    (0.5029, 0.3321)
    """
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def hash_split(names, shares, seed=0):
    """Divide one group of names into splits, in the order of their hashes.

    Each split gets its share, rounded, but at least one name, and "train"
    the rest. A group too small for one name on every side is all "train".

    Arguments
    ---------
    names : iterable of str
        The group; its order does not matter.
    shares : dict
        Split to share in [0, 1). A share of zero makes no split.
    seed : int
        Seed of the hashes.

    Returns
    -------
    dict
        Name to split, in the order of the hashes.

    Raises
    ------
    ValueError
        If a share is negative, or nothing would be left to train on.

    Example
    -------
    >>> sides = hash_split("abcdefghij", {"valid": 0.1, "test": 0.2}).values()
    >>> [list(sides).count(side) for side in ("train", "valid", "test")]
    [7, 1, 2]
    """
    if min(shares.values()) < 0 or sum(shares.values()) >= 1:
        raise ValueError(
            f"Shares must be at least 0 and sum to less than 1, got {shares}"
        )
    names = sorted(names, key=lambda name: (hash_share(name, seed), name))
    wanted = [split for split, share in shares.items() if share]
    sides = []
    if len(names) > len(wanted):
        for place, split in enumerate(wanted, start=1):
            count = max(1, round(shares[split] * len(names)))
            spare = len(names) - len(sides) - (len(wanted) - place) - 1
            sides += [split] * min(count, spare)
    sides += ["train"] * (len(names) - len(sides))
    return dict(zip(names, sides, strict=True))


def write_manifests(
    splits,
    save_folder,
    data_folder,
    min_samples,
    on_bad_audio="fail",
    check_content=True,
    workers=None,
    arguments=None,
):
    """Inspect the files of every split and write one manifest each.

    Writes ``<split>.csv`` with the columns ``ID, duration`` (seconds) ``,
    wav, sample_rate, num_samples`` (at 16 kHz) and the labels,
    ``prepare.json``, and ``bad_audio.csv`` if there is anything to say there.
    Nothing is done if ``prepare.json`` shows the same arguments, rows and
    file sizes.

    Arguments
    ---------
    splits : dict
        Split to list of rows; a row is a dict with ``ID``, ``wav`` (path of
        the file below ``data_folder``) and labels, the same in every row.
    save_folder : str or Path
        Where manifests go; made if needed.
    data_folder : str or Path
        What ``$data_root`` stands for in the manifests.
    min_samples : int
        Shortest file allowed, in samples at 16 kHz.
    on_bad_audio : str
        "fail" raises one error for all bad files; "skip" drops them.
    check_content : bool
        Decode every file to its end, see ``inspect_audio``.
    workers : int or None
        Threads that inspect; by default one per core, at most 8.
    arguments : dict or None
        Arguments of the caller, kept in ``prepare.json``.

    Returns
    -------
    dict
        Split to number of files written (or found written already).

    Raises
    ------
    ValueError
        Before any manifest is written: for bad audio under "fail", an empty
        split, two files with one ID, or a "$" in a path or label, which
        SpeechBrain would replace.

    Example
    -------
    >>> import numpy as np, soundfile as sf
    >>> folder = getfixture("tmp_path")
    >>> sf.write(folder / "a.wav", np.ones(16000) / 2, 16000)
    >>> rows = [{"ID": "a", "wav": folder / "a.wav", "speaker": "s1"}]
    >>> write_manifests({"train": rows}, folder, folder, min_samples=8000)
    {'train': 1}
    >>> print((folder / "train.csv").read_text().strip())
    ID,duration,wav,sample_rate,num_samples,speaker
    a,1.0,$data_root/a.wav,16000,16000,s1
    """
    if on_bad_audio not in ("fail", "skip"):
        raise ValueError(
            f"on_bad_audio must be 'fail' or 'skip', got {on_bad_audio!r}"
        )
    save_folder = Path(save_folder)
    splits = {
        name: [_portable(row, data_folder) for row in rows]
        for name, rows in splits.items()
    }
    for name, rows in splits.items():
        _check_ids(name, rows)
    prepared = {
        "arguments": {
            "min_samples": min_samples,
            "on_bad_audio": on_bad_audio,
            "check_content": check_content,
            **(arguments or {}),
        },
        "listing": _listing(splits, data_folder),
    }
    prepared = json.loads(json.dumps(prepared, default=str))
    before = _read_json(save_folder / "prepare.json")
    if prepared.items() <= before.items() and all(
        (save_folder / f"{name}.csv").is_file() for name in before["splits"]
    ):
        _log_summary("Already prepared", save_folder, before)
        return {name: s["files"] for name, s in before["splits"].items()}

    inspect = partial(
        _inspect,
        data_folder=data_folder,
        min_samples=min_samples,
        check_content=check_content,
    )
    rows = [row for rows in splits.values() for row in rows]
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(inspect, rows)
        bar = tqdm(found, "Inspecting", len(rows), unit="file", disable=None)
        found = iter(list(bar))

    bad, written, summary = [], {}, {}
    for name, rows in splits.items():
        good = []
        for row in rows:
            info = next(found)
            if isinstance(info, BadAudio):
                bad.append((name, row["ID"], info.path, info.reason))
                continue
            good.append(_line(row, info))
        seconds = sum(line["duration"] for line in good)
        written[name] = good
        summary[name] = {"files": len(good), "hours": round(seconds / 3600, 3)}
    save_folder.mkdir(parents=True, exist_ok=True)
    _report_bad(bad, save_folder / "bad_audio.csv", on_bad_audio)
    for name, lines in written.items():
        if not lines:
            raise ValueError(
                f"Split '{name}' is empty: {len(splits[name])} files were "
                f"listed and none of them could be used ({save_folder})."
            )
    (save_folder / "prepare.json").unlink(missing_ok=True)
    for name in before.get("splits", {}):
        if name not in written:
            (save_folder / f"{name}.csv").unlink(missing_ok=True)
    for name, lines in written.items():
        text = _csv_text(list(lines[0]), [line.values() for line in lines])
        _replace(save_folder / f"{name}.csv", text)
    prepared |= {"splits": summary, "bad_audio": len(bad)}
    _replace(save_folder / "prepare.json", json.dumps(prepared, indent=1))
    _log_summary("Prepared", save_folder, prepared)
    return {name: s["files"] for name, s in summary.items()}


def _portable(row, data_folder):
    """Row with strings only, its wav relative to the data folder."""
    folder = os.path.abspath(data_folder)
    wav = Path(os.path.abspath(row["wav"])).relative_to(folder).as_posix()
    row = {key: str(value) for key, value in (row | {"wav": wav}).items()}
    for key, value in row.items():
        if "$" in value and key != "ID":
            raise ValueError(
                f"{row['ID']}: '$' in its {key} ({value}) would be taken for "
                "a placeholder by SpeechBrain; rename it."
            )
    return row


def _check_ids(name, rows):
    """Raise if two files of a split have the same ID."""
    wavs = {}
    for row in rows:
        if row["ID"] in wavs:
            raise ValueError(
                f"Two files of split '{name}' have the ID {row['ID']}: "
                f"{wavs[row['ID']]} and {row['wav']}."
            )
        wavs[row["ID"]] = row["wav"]


def _listing(splits, data_folder):
    """Count, bytes and last change of the files, and a hash of all rows."""
    wavs = {row["wav"] for rows in splits.values() for row in rows}
    paths = [Path(data_folder, wav) for wav in wavs]
    rows = json.dumps(splits, sort_keys=True).encode()
    files = [path.stat() for path in paths if path.is_file()]
    return {
        "files": len(paths),
        "bytes": sum(file.st_size for file in files),
        "changed": max((file.st_mtime_ns for file in files), default=0),
        "rows": hashlib.sha256(rows).hexdigest(),
    }


def _inspect(row, data_folder, **limits):
    """AudioInfo of a row's file, or the BadAudio that it raised."""
    try:
        return inspect_audio(Path(data_folder, row["wav"]), **limits)
    except BadAudio as error:
        return error


def _line(row, info):
    """Line of a manifest: the columns of COLUMNS, then the labels."""
    line = {
        "ID": row["ID"],
        "duration": round(info.frames / info.sample_rate, 6),
        "wav": f"$data_root/{row['wav']}",
        "sample_rate": info.sample_rate,
        "num_samples": info.num_samples,
    }
    clash = set(row).intersection(COLUMNS) - {"ID", "wav"}
    if clash:
        raise ValueError(f"{row['ID']}: {clash} cannot be labels.")
    return line | {k: v for k, v in row.items() if k not in line}


def _report_bad(bad, path, on_bad_audio):
    """Write bad_audio.csv and raise or warn, if there is bad audio at all."""
    if not bad:
        path.unlink(missing_ok=True)
        return
    _replace(path, _csv_text(["split", "ID", "wav", "reason"], bad))
    if on_bad_audio == "skip":
        logger.warning(
            "Skipped %d bad audio files, listed in %s", len(bad), path
        )
        return
    first = "\n".join(f"  {wav}: {reason}" for _, _, wav, reason in bad[:5])
    raise ValueError(
        f"{len(bad)} audio files cannot be used:\n{first}\n"
        f"{'  ...' + chr(10) if len(bad) > 5 else ''}"
        f"All of them are listed in {path}. Repair or remove them, or leave "
        "them out with --on_bad_audio skip."
    )


def _csv_text(header, lines):
    """Lines of values as the text of a csv file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *lines])
    return text.getvalue()


def _replace(path, text):
    """Write a file whole, or leave the old one: never half of it."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8", newline="")
    os.replace(temporary, path)


def _read_json(path):
    """Content of a json file, {} if there is none or it is damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _log_summary(verb, save_folder, prepared):
    """Log one line: files and hours per split, and what was left out."""
    parts = [
        f"{name} {s['files']} files ({s['hours']:.2f} h)"
        for name, s in prepared["splits"].items()
    ]
    logger.info(
        "%s %s: %s; %d bad audio files skipped",
        verb,
        save_folder,
        ", ".join(parts),
        prepared["bad_audio"],
    )
