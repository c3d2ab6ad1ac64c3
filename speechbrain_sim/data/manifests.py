"""Rows of labelled audio files -> SpeechBrain CSV manifests.

Every corpus lists its files as rows; here they are inspected and written, with
`$data_root` in place of the data folder, so that manifests survive a move of
the data. `hash_split` divides names the same way on every machine.
"""

import hashlib
import json
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from speechbrain.utils.logger import get_logger

from speechbrain_sim import __version__ as VERSION
from speechbrain_sim.console import Bar
from speechbrain_sim.data.audio import (
    BadAudio,
    inspect_audio,
    num_samples_at,
    readable,
)
from speechbrain_sim.data.tables import (
    OWN,
    RECORD,
    in_threads,
    manifest_hash,
    row_hashes,
    write_csv,
)
from speechbrain_sim.files import (
    content_hash,
    read_json,
    sha256,
    text_hash,
    write_json,
)

logger = get_logger(__name__)

#: columns beside the audio that a resumed run's data are compared in
DATA_COLUMNS = "start", "stop"


class Problem(NamedTuple):
    """What is wrong with a corpus, where, and a remedy."""

    path: object
    problem: str
    remedy: str


def refuse(problems, save_folder):
    """Raises if there are problems, and lists all of them in a file.

    Arguments
    ---------
    problems : list of Problem
        What is wrong with the corpus.
    save_folder : str or Path
        Where `problems.csv` goes; an old one is removed.

    Raises
    ------
    ValueError
        If there are any; counts them by kind, and names some of each.
    """
    path = Path(save_folder, "problems.csv")
    listed = _list_csv(path, Problem._fields, problems)
    if problems:
        raise ValueError(f"{len(problems)} problems in the corpus:\n{listed}")


def hash_split(names, shares, seed=0, group=None):
    """Divides names into splits, in the order of their hashes.

    Each split gets its share, rounded, but at least one name, and "train"
    the rest. Too few names for one on every side are all "train".

    Arguments
    ---------
    names : iterable of str
        Their order does not matter.
    shares : dict
        Split to share in [0, 1). A share of zero makes no split.
    seed : int
        Seed of the hashes.
    group : callable, optional
        Name -> group, such as its speaker; each group is divided on its own.

    Returns
    -------
    dict
        Name to split, in the order of groups and hashes.

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
        raise ValueError(f"Shares need to be >= 0 and sum to < 1: {shares}")
    groups, sides = defaultdict(list), {}
    for name in names:
        groups[group(name) if group else None].append(name)
    for members in groups.values():
        members.sort(key=lambda name: (_hash(name, seed), name))
        wanted = [split for split, share in shares.items() if share]
        order = []
        if len(members) > len(wanted):
            for number, split in enumerate(wanted, start=1):
                count = max(1, round(shares[split] * len(members)))
                spare = len(members) - len(order) - (len(wanted) - number) - 1
                order += [split] * min(count, spare)
        order += ["train"] * (len(members) - len(order))
        sides |= zip(members, order, strict=True)
    return sides


def _hash(name, seed):
    key = f"{seed}/{name}".encode(errors="surrogateescape")
    return hashlib.sha256(key).digest()[:6]


def write_manifests(
    splits,
    save_folder,
    data_folder,
    min_samples,
    on_bad_audio="fail",
    arguments=None,
):
    """Inspects the files of every split and writes one manifest each.

    Writes `<split>.csv` with the columns `ID`, `duration` (seconds), `wav`,
    `sample_rate`, `num_samples` (at 16 kHz) and the labels, `prepare.json`,
    and `bad_audio.csv` if there is any. Nothing is done if all of this was
    written with the same arguments, from the same rows and files.

    Arguments
    ---------
    splits : dict
        Split to list of rows; a row is a dict with `ID`, `wav` (path of the
        file below `data_folder`) and labels, the same in every row. Of a part
        of a file, `start` and `stop`: samples at the file's own rate.
    save_folder, data_folder : str or Path
        Where manifests go, and what `$data_root` stands for in them.
    min_samples : int
        Shortest file allowed, in samples at 16 kHz.
    on_bad_audio : str
        "fail" raises one error for all bad files; "skip" drops them.
    arguments : dict, optional
        Arguments of the caller, kept in `prepare.json`.

    Returns
    -------
    dict
        Split to number of files.

    Raises
    ------
    ValueError
        Before any manifest is written: for bad audio under "fail", an empty
        split, two files with one ID, a part that its file does not have, or a
        "$" in a path or label, which SpeechBrain would replace.
    """
    if on_bad_audio not in ("fail", "skip"):
        raise ValueError(f"on bad audio 'fail' or 'skip', not {on_bad_audio!r}")
    splits = {k: _check_rows(k, splits[k], data_folder) for k in splits}
    limits = {"min_samples": min_samples, "on_bad_audio": on_bad_audio}
    made_of = {"arguments": limits | (arguments or {})}
    made_of["listing"] = _listing(splits, data_folder)
    if not is_prepared(save_folder, **made_of):
        lines, bad = _inspect_all(splits, data_folder, min_samples)
        _report_bad(bad, Path(save_folder, "bad_audio.csv"), on_bad_audio)
        _write_all(lines, save_folder, data_folder, made_of, bad)
    written = _read_record(save_folder)["splits"]
    return {name: split["files"] for name, split in written.items()}


def is_prepared(save_folder, arguments, **made_of):
    """Returns whether manifests were made of the same; if so, logs them.

    Arguments
    ---------
    save_folder : str or Path
        Where manifests are.
    arguments : dict
        As given to `write_manifests`, with what shows that files changed.
    **made_of :
        What else has to be the same in `prepare.json`.
    """
    record = _read_record(save_folder)
    made_of = _as_json({"arguments": arguments, "version": VERSION, **made_of})
    if not made_of.items() <= record.items():
        return False
    for name, split in record["splits"].items():
        path = Path(save_folder, f"{name}.csv")
        if not path.is_file() or sha256(path) != split.get("sha256"):
            return False
    _log_record("Already prepared", save_folder, record)
    return True


def check_same_data(path, manifests, data_folder, begun, columns=()):
    """Refuses to go on with a run whose audio, or label, has changed.

    Arguments
    ---------
    path : str or Path
        A json that keeps a hash of each row, ID by ID.
    manifests : list of str
        What the run is trained and validated on; they may move.
    data_folder, columns :
        See `speechbrain_sim.data.tables.row_hashes`.
    begun : bool
        Whether the run goes on; a run from before there was such a file may.

    Raises
    ------
    ValueError
        If files were added, removed or replaced; counts and names them.
    """
    columns = [*DATA_COLUMNS, *columns]
    now = [row_hashes(m, data_folder, columns) for m in manifests]
    before = read_json(path) if begun and Path(path).exists() else now
    changes = []
    for manifest, old, new in zip(manifests, before, now, strict=True):
        both = old.keys() & new.keys()
        named = {"added": new.keys() - both, "removed": old.keys() - both}
        named["replaced"] = {name for name in both if old[name] != new[name]}
        changes += [
            f"{len(names)} {what} in {manifest}, such as {min(names)}"
            for what, names in named.items()
            if names
        ]
    if changes:
        found = f"The run was begun with other files: {'; '.join(changes)}"
        remedy = "Bring them back, or choose another --output_folder"
        raise ValueError(f"{found}. {remedy}.")
    if not (begun and Path(path).exists()):
        write_json(path, now)


def _check_rows(split, rows, data_folder):
    """Rows of strings only, their wavs relative to the data folder."""
    folder, checked = os.path.abspath(data_folder), {}
    for row in rows:
        wav = Path(os.path.abspath(row["wav"])).relative_to(folder).as_posix()
        row = {key: str(value) for key, value in (row | {"wav": wav}).items()}
        name = row["ID"]
        for key, value in row.items():
            if "$" in value and key != "ID":
                what = f"{name}: the '$' in its {key} ({value})"
                raise ValueError(f"{what} is a placeholder: rename it.")
        if name in checked:
            both = f"{checked[name]['wav']} and {wav}"
            raise ValueError(f"In '{split}', two files have ID {name}: {both}.")
        if clash := row.keys() & OWN - {"ID", "wav", *DATA_COLUMNS}:
            raise ValueError(f"{name}: {clash} cannot be labels.")
        checked[name] = row
    return list(checked.values())


def _listing(splits, data_folder):
    """Count of the files, and hashes of their contents and of all rows."""
    wavs = sorted({row["wav"] for rows in splits.values() for row in rows})
    contents = contents_hash([Path(data_folder, wav) for wav in wavs])
    rows = text_hash(json.dumps(splits, sort_keys=True))
    return {"files": len(wavs), "contents": contents, "rows": rows}


def contents_hash(paths):
    """Returns a hash of the contents of files; those that are missing count."""

    def hashed(path):
        return content_hash(path) if path.is_file() else "missing"

    return text_hash(" ".join(in_threads(hashed, paths)))


def _inspect_all(splits, data_folder, min_samples):
    """Lines of the manifest of each split; and of `bad_audio.csv`."""

    def inspect(wav):
        try:
            return inspect_audio(Path(data_folder, wav), min_samples)
        except BadAudio as error:
            return error

    rows = [(name, row) for name, rows in splits.items() for row in rows]
    lines, bad = {name: [] for name in splits}, []
    wavs = list(dict.fromkeys(row["wav"] for _, row in rows))
    infos = in_threads(inspect, wavs)
    bar = Bar(infos, "Inspecting", len(wavs), unit="file", disable=None)
    infos = dict(zip(wavs, bar, strict=True))
    for name, row in rows:
        info = infos[row["wav"]]
        if isinstance(info, BadAudio):
            bad.append((name, readable(row["ID"]), info.path, info.reason))
            continue
        rate, part = info.sample_rate, {"start": 0, "stop": info.frames} | row
        start, stop = (int(part[column]) for column in DATA_COLUMNS)
        if not 0 <= start < stop <= info.frames:
            raise ValueError(
                f"{row['ID']} has start {start} and stop {stop}: not within the "
                f"{info.frames} samples of {row['wav']}."
            )
        samples = num_samples_at(stop, rate) - num_samples_at(start, rate)
        line = {
            "ID": row["ID"],
            "duration": round((stop - start) / rate, 6),
            "wav": f"$data_root/{row['wav']}",
            "sample_rate": rate,
            "num_samples": samples,
        }
        lines[name].append(line | row | line)
    return lines, bad


def _write_all(lines, save_folder, data_folder, made_of, bad):
    """Writes manifests and, last, `prepare.json`; removes older ones."""
    for name, rows in lines.items():
        if not rows:
            count = [split for split, *_ in bad].count(name)
            unusable = f"{count} files were listed, and none can be used"
            raise ValueError(f"{save_folder}: '{name}' is empty: {unusable}.")
    for name in _read_record(save_folder).get("splits", {}):
        if name not in lines:
            Path(save_folder, f"{name}.csv").unlink(missing_ok=True)
    record = {"version": VERSION, "splits": {}, "bad_audio": len(bad)}
    record |= _as_json(made_of)
    Path(save_folder, RECORD).unlink(missing_ok=True)
    for name, rows in lines.items():
        path = Path(save_folder, f"{name}.csv")
        write_csv(path, rows[0], [row.values() for row in rows])
        hours = round(sum(row["duration"] for row in rows) / 3600, 3)
        split = {"files": len(rows), "hours": hours, "sha256": sha256(path)}
        split["content"] = manifest_hash(path, data_folder)
        record["splits"][name] = split
    write_json(Path(save_folder, RECORD), record)
    _log_record("Prepared", save_folder, record)


def _report_bad(bad, path, on_bad_audio):
    """Writes `bad_audio.csv` and raises or warns, if there is bad audio."""
    listed = _list_csv(path, ["split", "ID", "wav", "reason"], bad, shown=2)
    if bad and on_bad_audio == "fail":
        what = f"{len(bad)} audio files cannot be used"
        remedy = "Repair or remove them, or --on_bad_audio skip."
        raise ValueError(f"{what}:\n{listed} {remedy}")
    if bad:
        logger.warning("Skipped %d bad audio files, see %s", len(bad), path)


def _list_csv(path, header, rows, shown=0):
    """Writes rows, or removes an old file; returns as text how many there are.

    Of each kind, the number, and two examples.
    """
    if not rows:
        path.unlink(missing_ok=True)
        return ""
    write_csv(path, header, rows)
    kinds = defaultdict(list)
    for row in rows:
        text = " ".join(row[shown + 1 :])
        # what differs between two of a kind: names, quoted, and with digits
        kind = re.sub(r"'[^']*'|\S*\d\S*", "...", text)
        kinds[kind].append(f"    {row[shown]}: {text}\n")
    ordered = sorted(kinds.values(), key=len, reverse=True)
    lines = [f"  {len(k)} of this kind:\n{''.join(k[:2])}" for k in ordered]
    more = f"  and {len(lines) - 9} further kinds\n" if len(lines) > 9 else ""
    return f"{''.join(lines[:9])}{more}All of them are listed in {path}."


def _as_json(value):
    """A value as it is read from the json file that it was written to."""
    return json.loads(json.dumps(value, default=str))


def _read_record(save_folder):
    """Content of `prepare.json`, {} if there is none or it is damaged."""
    try:
        return read_json(Path(save_folder, RECORD))
    except (OSError, ValueError):
        return {}


def _log_record(verb, save_folder, record):
    """Logs one line: files and hours per split, and what was left out."""
    parts = [
        f"{name} {split['files']} files ({split['hours']:.2f} h)"
        for name, split in record["splits"].items()
    ]
    parts.append(f"{record['bad_audio']} bad audio files skipped")
    logger.info("%s %s: %s", verb, save_folder, ", ".join(parts))
