"""Tables of text -> rows: csv files, and manifests of any origin.

A manifest is a csv or json as SpeechBrain's recipes write it. Everything that
reads one (training, probes, decoders, analysis) reads it here.
"""

import csv
import io
import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speechbrain_sim.data import audio
from speechbrain_sim.files import (
    content_hash,
    read_json,
    sha256,
    text_hash,
    write_text,
)

#: the record of a preparation, beside its manifests
RECORD = "prepare.json"
#: what stands for the data folder
ROOT = re.compile(r"\$\{?data_(?:root|folder)\b\}?|\{data_(?:root|folder)\}")
#: columns that are no labels
OWN = {"ID", "id", "wav", "duration", "sample_rate", "num_samples"}
OWN |= {"start", "stop"}

# a cell has a label per 10 ms, of hours
csv.field_size_limit(1 << 30)


def read_text(path):
    """Returns the text of a file in UTF-8, without a byte order mark.

    A ValueError names a file that is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        byte = f"byte {error.object[error.start]:#x} at {error.start}"
        message = f"{path} is not UTF-8 ({byte}): save it as UTF-8."
        raise ValueError(message) from error


def read_csv(path, columns):
    r"""Reads the rows of a csv, separated by commas, semicolons or tabs.

    Arguments
    ---------
    path : str or Path
        The file, in UTF-8.
    columns : list of str
        Columns that it needs.

    Returns
    -------
    list of (str, dict)
        Of each row that is not empty, its file and line, and its cells.

    Raises
    ------
    ValueError
        If it is no such csv, lacks a column, or has one twice.

    Example
    -------
    >>> path = getfixture("tmp_path") / "a.csv"
    >>> _ = path.write_text("ID;digit\na;1\n;\n")
    >>> read_csv(path, ["ID"])
    [('...a.csv:2', {'ID': 'a', 'digit': '1'})]
    """
    text, skipped = read_text(path), 0
    if text[:4].lower() == "sep=":  # Excel's first line
        text, skipped = text.partition("\n")[2], 1
    blank = len(text) - len(text.lstrip("\r\n"))
    text, skipped = text[blank:], skipped + text[:blank].count("\n")
    header = re.sub('"[^"]*"', "", text.partition("\n")[0])
    options = {"delimiter": max(",;\t", key=header.count), "strict": True}
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True, **options)
    try:
        names = [name.strip() for name in rows.fieldnames or ()]
        wrong = [f"{n} twice" for n in names if n and names.count(n) > 1]
        wrong += [f"no {name}" for name in columns if name not in names]
        if wrong:
            needs = (
                f"needs the columns {', '.join(columns)}: it has {wrong[-1]}"
            )
            raise ValueError(f"{path} {needs}, but {', '.join(names)}.")
        rows.fieldnames, found = names, []
        for row in rows:
            where = f"{path}:{rows.line_num + skipped}"
            row.pop("", None)  # the index of a data frame
            if any(row.pop(None, ())):
                raise ValueError(f"{where} has more cells than the header.")
            if any(row.values()):
                found.append((where, row))
        return found
    except csv.Error as error:
        where = f"{path}:{rows.line_num + skipped}"
        raise ValueError(f"{where} cannot be read: {error}.") from error


def write_csv(path, header, rows):
    """Writes a csv as a whole or not at all; makes its folder."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    write_text(path, text.getvalue())


def read_manifest(path, data_folder=None):
    """Reads a manifest: one of `write_manifests`, or any of SpeechBrain.

    Arguments
    ---------
    path : str or Path
        A csv with the columns `ID` and `wav`, or a json, ID to such a row.
        Further columns: `num_samples`, the length at 16 kHz; `start` and
        `stop`, if only a part of a file is meant, in samples at the file's
        own rate, as in SpeechBrain; labels.
    data_folder : str or Path, optional
        What `$data_root` stands for. Without it, no audio is opened.

    Returns
    -------
    dict of str to dict
        ID to row: `wav`, `start` and `num_samples` at 16 kHz, `duration` in
        seconds, and all other cells as text. Lengths come from the audio,
        unless this very audio was inspected in the preparation.

    Raises
    ------
    ValueError
        For what cannot be read, with file, line and column; for a length that
        the audio does not have; for a manifest that its preparation did not
        write like this.
    """
    made, rows = _prepared(path), manifest_rows(path)
    inspected = data_folder is None or (
        made and made.get("content") == manifest_hash(path, data_folder)
    )

    def measure(item):
        return _measure(*item, data_folder, inspected)

    return _by_id(measure, rows)


def _by_id(function, rows):
    names = [row["ID"] for _, row in rows]
    return dict(zip(names, in_threads(function, rows), strict=True))


def in_threads(function, items):
    """Yields the results of a function that reads files, in order."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        yield from pool.map(function, items)


def row_hashes(path, data_folder, columns=None):
    """Hashes each row of a manifest, and the content of its audio.

    Returns ID -> 16 hexadecimal digits. `columns` are those that count beside
    the audio, all by default. The data may move. A ValueError names a file
    that cannot be read, and its line.
    """

    def hashed(item):
        where, row = item
        wav = _place(row, data_folder)
        try:
            content = content_hash(wav)
        except OSError as error:
            problem = f"{wav} cannot be read: {error.strerror}"
            raise ValueError(f"{where}: {problem}.") from error
        cells = {name: row.get(name) for name in columns or row}
        text = json.dumps([content, cells], sort_keys=True)
        return text_hash(text)[:16]

    _prepared(path)
    return _by_id(hashed, manifest_rows(path))


def manifest_hash(path, data_folder):
    """Returns a hash of a manifest and of its audio, see `row_hashes`."""
    return text_hash(json.dumps(row_hashes(path, data_folder)))


def audio_of(path, data_folder):
    """Returns the audio file of each row of a manifest: ID -> str."""
    return {
        row["ID"]: _place(row, data_folder) for _, row in manifest_rows(path)
    }


def _place(row, data_folder):
    return ROOT.sub(lambda _: str(data_folder), row["wav"])


def manifest_rows(path):
    """File and line, and the texts of each row of a manifest."""
    if Path(path).suffix.lower() == ".json":
        rows = _json_rows(path)
    else:
        rows = read_csv(path, ["ID", "wav"])
    if not rows:
        raise ValueError(f"{path} lists no utterance.")
    places = {}
    for where, row in rows:
        if None in row.values():
            raise ValueError(f"{where} has fewer cells than the header.")
        for column in ("ID", "wav"):
            if not row.get(column, "").strip():
                raise ValueError(f"{where} has no {column}.")
        if (other := places.setdefault(row["ID"], where)) != where:
            raise ValueError(f"{where} has the ID {row['ID']} of {other}.")
    return rows


def _json_rows(path):
    """Rows of a json, like those of a csv."""
    rows, twice = {}, []

    def mapping(pairs):
        found = dict(pairs)
        names = [key for key, _ in pairs]
        twice.extend(key for key in found if names.count(key) > 1)
        return found

    content = read_json(path, mapping)
    if twice:
        raise ValueError(f"{path} has {twice[0]} twice: rename one of them.")
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no manifest, which maps IDs to columns.")
    for name, row in content.items():
        if not isinstance(row, dict):
            raise ValueError(f"{path}, {name} is no row: name its columns.")
        if isinstance(row.get("wav"), dict):  # of SpeechBrain's read_audio
            row = {**row, **row["wav"], "wav": row["wav"].get("file")}
        rows[name] = {key: _text(value) for key, value in row.items()}
    blank = dict.fromkeys([key for row in rows.values() for key in row], "")
    return [
        (f"{path}, {name}", {**blank, **row, "ID": name})
        for name, row in rows.items()
    ]


def _text(value):
    """A value of a json as the cell of a csv."""
    values = value if isinstance(value, list) else [value]
    return " ".join("" if value is None else str(value) for value in values)


def _prepared(path):
    """What the preparation of a csv recorded, {} if it was not prepared."""
    path = Path(path)
    record = path.with_name(RECORD)
    if path.suffix != ".csv" or not record.is_file():
        return {}
    made = read_json(record).get("splits", {}).get(path.stem, {})
    if made and made["sha256"] != sha256(path):
        problem = f"changed since {made['files']} files were prepared"
        remedy = f"Delete {record} to prepare again, or to use it as it is"
        raise ValueError(f"{path} was {problem}. {remedy}.")
    return made


def _measure(where, row, data_folder, inspected):
    """A row with its part of the audio; the audio is read if it has to be."""
    names = "num_samples", "start", "stop"
    length, start, stop = (_whole(where, row, name) for name in names)
    row = {k: v for k, v in row.items() if k not in ("ID", "id")} | {"start": 0}
    if inspected and start and (rate := _whole(where, row, "sample_rate")):
        row["start"] = audio.num_samples_at(start, rate)
    if data_folder is not None:
        row["wav"] = _place(row, data_folder)
    if not inspected:
        try:
            info = audio.audio_info(row["wav"])
        except audio.BadAudio as error:
            raise ValueError(f"{where}: {error}") from error
        if stop in (None, start or 0):  # all of it, as in SpeechBrain
            stop = info.frames
        rate, wav = info.sample_rate, row["wav"]
        first, end = (audio.num_samples_at(n, rate) for n in (start or 0, stop))
        if not first < end <= info.num_samples:
            part = f"{where} has start {start or 0} and stop {stop}: not within"
            raise ValueError(f"{part} the {info.frames} samples of {wav}.")
        if length not in (None, end - first, info.num_samples):
            states = f"{where} states num_samples {length}, but {wav} has"
            raise ValueError(f"{states} {end - first} at 16 kHz.")
        row["start"], length = first, end - first
    if length is not None:
        row |= {"num_samples": length, "duration": length / audio.SAMPLE_RATE}
    return row


def _whole(where, row, column):
    """A number of samples, None for an empty cell."""
    text = row.get(column, "").strip()
    try:
        value = float(text.replace(",", ".") or "nan")
    except ValueError:
        value = -1.0
    if re.fullmatch(r"[1-9]\d{0,2}[.,]\d{3}", text):  # 1.000 may be 1 or 1000
        value = -1.0
    if text and not (value >= 0 and value.is_integer()):
        what = f"{where} has the {column} {text!r}"
        raise ValueError(f"{what}: not a whole number of samples.")
    return int(value) if text else None
