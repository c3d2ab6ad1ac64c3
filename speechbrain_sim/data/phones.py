"""Phone labels, one per 10 ms, from lists, TextGrids or a csv of intervals.

Label i of an utterance is the phone at sample 160 i + 200, the centre of its
25 ms window; an utterance has 1 + (samples - 400) // 160 of them.
"""

import textwrap
from collections import defaultdict
from pathlib import Path

import numpy as np

from speechbrain_sim.console import Bar
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.labels import HOP, WINDOW, num_labels
from speechbrain_sim.data.manifests import Problem
from speechbrain_sim.data.tables import read_csv, read_text
from speechbrain_sim.extras import import_extra
from speechbrain_sim.files import naming, write_text

#: seconds that an alignment may differ from the length of its audio
TOLERANCE = 0.05

ARPABET = """\
AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T
TH UH UW V W Y Z ZH"""

#: names of the classes of TextGrids and csv files, in the order of their ids
PHONES = ["SIL", "SPN", *ARPABET.split()]

#: the file with the number and the name of each class, one per line
NAMES = "phones.txt"

SILENCES = ("", "sil", "sp", "<eps>")

IDS = {name: number for number, name in enumerate(PHONES)}

#: the classes of lists
CLASSES = set(map(str, IDS.values()))


def phone_id(name):
    """Returns the class of an ARPAbet phone, None if it is unknown.

    Example
    -------
    >>> [phone_id(name) for name in ("AH0", "AH", "sil", "", "spn", "Q")]
    [4, 4, 0, 0, 1, None]
    """
    if name in SILENCES:
        return IDS["SIL"]
    return IDS.get(name.upper().rstrip("012"))


def label_windows(intervals, num_samples, ids=phone_id):
    """Returns the label of every 10 ms of an utterance.

    Arguments
    ---------
    intervals : list of (float, float, str)
        Start and end in seconds, and phone. What lies in none is silence, 0.
    num_samples : int
        Length of the utterance at 16 kHz.
    ids : callable
        Phone -> class, None for an unknown phone.

    Returns
    -------
    numpy.ndarray
        (labels,), int64.

    Raises
    ------
    ValueError
        If a phone is unknown, intervals overlap or are empty, or one ends more
        than 0.05 s behind the audio.

    Example
    -------
    >>> label_windows([(0, 0.03, "AA1"), (0.04, 0.07, "B")], 1200)
    array([2, 2, 0, 8, 8, 8])
    """
    intervals = sorted(intervals)
    seconds, before = num_samples / SAMPLE_RATE, 0.0
    for start, end, phone in intervals:
        where = f"'{phone}' from {start} to {end} s"
        if not before - 1e-6 <= start < end <= seconds + TOLERANCE:
            wrong = "is empty, overlaps the phone before, or lies outside"
            raise ValueError(f"{where} {wrong} the {seconds:.3f} s of audio.")
        if ids(phone) is None:
            raise ValueError(f"{where} is no phone of the map.")
        before = end
    centres = HOP * np.arange(num_labels(num_samples)) + WINDOW / 2
    centres = centres / SAMPLE_RATE  # (labels,), seconds
    starts, ends = (np.array([i[k] for i in intervals]) for k in (0, 1))
    classes = [ids(phone) for *_, phone in intervals]
    at = np.searchsorted(starts, centres, "right") - 1
    inside = (at >= 0) & (centres < np.append(ends, 0)[at])
    return np.where(inside, np.append(classes, 0)[at], 0).astype(np.int64)


def read_phones(source, samples):
    r"""Reads the phone labels of a corpus from any of three sources.

    Arguments
    ---------
    source : str or Path
        A list like converted_aligned_phones.txt (an ID and its classes, 0 to
        40, per line); a csv with the columns ID, start, end (seconds) and
        phone; or a folder with a Montreal Forced Aligner TextGrid per ID, at
        any depth. Phones of the latter two are ARPAbet; their classes are the
        places in `PHONES`.
    samples : dict of str to int
        Length at 16 kHz of each utterance; labels of others are ignored.

    Returns
    -------
    labels, problems : (dict of str to str, list of Problem)
        Of each utterance that has any, its classes separated by spaces; and
        what is wrong with others.

    Raises
    ------
    FileNotFoundError
        If there is no such file or folder.
    ValueError
        If the file is not UTF-8, or the csv lacks a column.
    ImportError
        If TextGrids cannot be read without the extra.

    Example
    -------
    >>> path = getfixture("tmp_path") / "phones.csv"
    >>> _ = path.write_text("ID,start,end,phone\na,0.01,0.03,AA1\n")
    >>> read_phones(path, {"a": 800, "b": 800})
    ({'a': '2 2 0'}, [])
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"There are no phone labels in {source}")
    if not has_names(source):
        return _read_list(source, samples)
    read = _read_textgrids if source.is_dir() else _read_intervals
    places, intervals, problems = read(source, samples)
    labels, remedy = {}, "Correct its intervals, or remove them."
    for name, phones in intervals.items():
        try:
            windows = label_windows(phones, samples[name])
            labels[name] = " ".join(map(str, windows))
        except ValueError as error:
            problems.append(Problem(places[name], f"{name}: {error}", remedy))
    return labels, problems


def has_names(source):
    """Returns whether labels are names, or the numbers of a list.

    Example
    -------
    >>> [has_names(source) for source in (None, "a.txt", "a.csv", ".")]
    [False, False, True, True]
    """
    return source is not None and (
        Path(source).is_dir() or Path(source).suffix.lower() == ".csv"
    )


def write_names(folder, source):
    """Writes `phones.txt`, the names of classes, or removes an old one.

    Arguments
    ---------
    folder : str or Path
        Where it goes, in the format of the synthetic corpus.
    source : str, Path or None
        Of the labels; the numbers of a list have no names.
    """
    lines = [f"{number} {name}\n" for number, name in enumerate(PHONES)]
    if has_names(source):
        write_text(Path(folder, NAMES), "".join(lines))
    else:
        Path(folder, NAMES).unlink(missing_ok=True)


def name_phones(label, classes, folder):
    r"""Names classes by the `<label>.txt` of a preparation, if there is one.

    Arguments
    ---------
    label : str
        The probed label.
    classes : list of str
        The classes.
    folder : str or Path
        Of the manifests; the numbers of the published list have no names.

    Returns
    -------
    list of str

    Example
    -------
    >>> folder = getfixture("tmp_path")
    >>> name_phones("phones", ["0", "1"], folder)
    ['0', '1']
    >>> _ = (folder / "phones.txt").write_text("0 SIL\n1 AA\n")
    >>> name_phones("phones", ["0", "1"], folder)
    ['SIL', 'AA']
    """
    path = Path(folder, f"{label}.txt")
    if not path.exists():
        return classes
    with naming(path, "a number and a name per line"):
        names = dict(line.split() for line in read_text(path).splitlines())
    return [names.get(number, number) for number in classes]


def _read_list(path, samples):
    """Labels from lines of an ID and its classes."""
    labels, problems = {}, []
    remedy = "Get the labels of this audio, or remove the line."
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        name, *phones = line.split() or [None]
        if name not in samples:
            continue
        count, length, wrong = len(phones), samples[name], None
        if name in labels:
            wrong = "a second line of labels"
        elif strange := set(phones) - CLASSES:
            wrong = f"the phone {min(strange)}; they are 0 to {len(PHONES) - 1}"
        elif count != (due := num_labels(length)):
            wrong = f"{count} labels, but its {length} samples make {due}"
        if wrong:
            wrong = f"{name} has {wrong}."
            problems.append(Problem(f"{path}:{number}", wrong, remedy))
        labels[name] = " ".join(phones)
    return labels, problems


def _read_textgrids(folder, samples):
    """Files and intervals of every utterance."""
    textgrid = import_extra("praatio.textgrid", "textgrid")
    errors = import_extra("praatio.utilities.errors", "textgrid")
    praatio_error = errors.PraatioException
    paths, intervals, problems = {}, {}, []
    for path in sorted(folder.rglob("*.TextGrid")):
        if path.stem in paths:
            problem = f"{paths[path.stem]} is of the same utterance."
            problems.append(Problem(path, problem, "Remove one of them."))
        elif path.stem in samples:
            paths[path.stem] = path
    for name, path in Bar(paths.items(), "TextGrids", disable=None):
        seconds = samples[name] / SAMPLE_RATE
        try:
            grid = textgrid.openTextgrid(str(path), includeEmptyIntervals=True)
            tier, end = grid.getTier("phones").entries, grid.maxTimestamp
            if abs(end - seconds) > TOLERANCE:
                raise ValueError(f"ends at {end} s, audio at {seconds} s")
            intervals[name] = [(i.start, i.end, i.label.strip()) for i in tier]
        except UnicodeDecodeError as error:
            byte = f"byte {error.object[error.start]:#x} at {error.start}"
            problem = f"It is neither UTF-8 nor UTF-16 ({byte})."
            problems.append(Problem(path, problem, "Save it as UTF-8."))
        except (praatio_error, KeyError, ValueError, IndexError) as error:
            # praatio's errors may repeat the file
            what = textwrap.shorten(f"{type(error).__name__}: {error}", 120)
            problem = f"It has no tier 'phones' of this audio ({what})."
            remedy = "Align this audio, or remove it."
            problems.append(Problem(path, problem, remedy))
    return paths, intervals, problems


def _read_intervals(path, samples):
    """First lines and intervals of every utterance from a csv."""
    places, intervals, problems = {}, defaultdict(list), []
    for line, row in read_csv(path, ["ID", "start", "end", "phone"]):
        name = row["ID"]
        try:
            times = float(row["start"]), float(row["end"])
            interval = (*times, row["phone"].strip())
        except (AttributeError, TypeError, ValueError):
            problem = "It needs a start and an end (seconds), and a phone."
            problems.append(Problem(line, problem, "Correct the line."))
            continue
        if name in samples:
            places.setdefault(name, line)
            intervals[name].append(interval)
    return places, intervals, problems
