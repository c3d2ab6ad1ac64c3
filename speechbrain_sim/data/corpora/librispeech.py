"""LibriSpeech in its published layout -> manifests with speakers and phones."""

import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from speechbrain.utils.logger import get_logger

from speechbrain_sim.data import manifests
from speechbrain_sim.data.audio import BadAudio, audio_info, readable
from speechbrain_sim.data.download import fetch_archive
from speechbrain_sim.data.manifests import Problem, hash_split
from speechbrain_sim.data.phones import read_phones, write_names
from speechbrain_sim.data.search import list_files
from speechbrain_sim.data.tables import in_threads, read_csv, read_text
from speechbrain_sim.files import text_hash

logger = get_logger(__name__)

LABELS = "LibriSpeech100_labels_split"
PHONES = "converted_aligned_phones.txt"
TEST_SHARE = 0.2

GET = "--download True gets"
AGAIN = "Extract the archive again"
ALLOW = f"{AGAIN}, or --incomplete allow."

#: where the archives are, and the sums that are published beside them
ARCHIVES = "https://www.openslr.org/resources/12"
CHECKSUMS = {
    "dev-clean-2": "md5:6d7ab67ac6a1d2c993d050e16d61080d",
    "dev-clean": "md5:42e2234ba48799c1f50f24a7926300a1",
    "dev-other": "md5:c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean": "md5:32fa31d27d2e1cad72775fee3f4849a9",
    "test-other": "md5:fb5a50374b501bb3bac4815ee91d3135",
    "train-clean-5": "md5:5df7d4e78065366204ca6845bb08f490",
    "train-clean-100": "md5:2a93770f6d5c6c964bc36631d331a522",
    "train-clean-360": "md5:c0e676e450a7ff2f54aeade5171606fa",
    "train-other-500": "md5:d1a0fd59409feb2c614ce4d30c387708",
}


class _Files(NamedTuple):
    """Files of a subset; whether lists and phones come from the caller."""

    folder: Path
    wavs: dict  # ID to path
    speakers: Path
    lists: Path
    own_lists: bool
    phones: Path | None
    own_phones: bool
    columns: Path | None


def prepare_librispeech(
    data_folder,
    save_folder,
    subset="train-clean-100",
    labels_folder=None,
    phones=None,
    valid_share=0.1,
    min_samples=20641,
    on_bad_audio="fail",
    incomplete="fail",
    download=False,
    download_from=ARCHIVES,
    checksum=None,
    seed=1234,
    columns=None,
):
    """Writes `train.csv`, `valid.csv` and `test.csv` of one subset.

    Columns: `speaker` (in all), `sex` (F or M), `transcript`, and `phones`, one
    per 10 ms; empty if unknown. Raises ValueError for what `problems.csv` lists.

    Arguments
    ---------
    data_folder : str or Path
        Holds `LibriSpeech/<subset>`, or is itself that `LibriSpeech`.
    subset : str
        Such as "train-clean-100".
    labels_folder, phones, columns : str or Path, optional; see `_find`
    valid_share : float
        Share of each speaker's training utterances in `valid.csv`.
    min_samples : int
        Shorter utterances are left out, and counted.
    incomplete : str
        "fail" if speakers, transcripts or audio are missing, or "allow".
    download, download_from, checksum : bool, str, str
        Whether to get `<subset>.tar.gz`, from which address, and its sum.
    save_folder, on_bad_audio, seed : see `write_manifests`, `hash_split`
    """
    made_of = dict(locals())
    if incomplete not in ("fail", "allow"):
        raise ValueError(f"incomplete is 'fail' or 'allow', got {incomplete!r}")
    folder = _find_root(data_folder, subset) / subset
    if download and not folder.is_dir():
        url = f"{download_from.rstrip('/')}/{subset}.tar.gz"
        checksum = checksum or CHECKSUMS.get(subset)
        fetch_archive(url, folder.parents[1], checksum)
    files = _find(folder, labels_folder, phones, columns)
    made_of["inputs"] = _fingerprint(files)
    if manifests.is_prepared(save_folder, made_of):
        manifests.refuse([], save_folder)
    else:
        listed = _read_lists(files)
        sides = _divide(files, listed, valid_share, seed)
        names = ("train", "valid", "test") if valid_share else ("train", "test")
        splits = {name: [] for name in names}
        problems = _fill(splits, files, listed, sides, min_samples, incomplete)
        manifests.refuse(problems, save_folder)
        how = 1, on_bad_audio, made_of  # the short ones are left out
        manifests.write_manifests(splits, save_folder, data_folder, *how)
    write_names(save_folder, files.phones)


def _find_root(data_folder, subset):
    """The folder `LibriSpeech`, there or not: the data folder or within it."""
    folder = Path(os.path.abspath(data_folder))
    root = folder.name == "LibriSpeech" and (folder / "SPEAKERS.TXT").is_file()
    root = root or (folder / subset).is_dir()
    return folder if root else folder / "LibriSpeech"


def _find(folder, labels_folder, phones, columns):
    """What there is of a subset; FileNotFoundError if it has to be there.

    `labels_folder` holds `train_split.txt` and `test_split.txt` (an ID per
    line; without them 20 % of each speaker's utterances are the test set) and
    `converted_aligned_phones.txt`; by default `LibriSpeech100_labels_split`
    beside `LibriSpeech`, if its lists have any utterance of the subset.
    `phones` are a source of `read_phones`; by default that list.
    `columns` is a csv of `ID` and further labels.
    """
    root, subset = folder.parent, folder.name
    if not root.parent.is_dir():
        missing = f"There is no folder {root.parent}: correct --data_folder"
        raise FileNotFoundError(f"{missing}; {GET} {subset} into it.")
    if not folder.is_dir():
        present = sorted(p.name for p in root.glob("*-*") if p.is_dir())
        missing = f"There is no subset {subset} in {root}; {GET} it; present: "
        raise FileNotFoundError(missing + (", ".join(present) or "none"))
    found = list_files(folder, [".flac", ".txt"])
    found = [path for path in found if path.parents[2] == folder]
    wavs = {path.stem: path for path in found if path.suffix == ".flac"}
    if not wavs:
        missing = f"No flac in {folder}/<speaker>/<chapter>"
        raise FileNotFoundError(f"{missing}. {AGAIN}.")
    lists = Path(labels_folder or root.parent / LABELS)
    if labels_folder and not lists.is_dir():
        raise FileNotFoundError(f"There is no folder {labels_folder}")
    own_lists, own_phones = labels_folder is not None, phones is not None
    if not own_phones and (lists / PHONES).is_file():
        phones = lists / PHONES
    labels = lists, own_lists, phones, own_phones, columns
    return _Files(folder, wavs, root / "SPEAKERS.TXT", *labels)


def _fingerprint(files):
    """Hash of the paths and contents of all that manifests are made of."""
    paths = [files.speakers, *files.lists.glob("*_split.txt")]
    paths += [Path(files.columns)] if files.columns else []
    paths += [*files.folder.glob("*/*"), *files.folder.glob("*/*/*")]
    if files.phones is not None:
        paths += [Path(files.phones), *Path(files.phones).rglob("*.TextGrid")]
    paths = sorted(path for path in paths if path.exists())
    names = "\n".join(map(str, paths))
    return text_hash(names + manifests.contents_hash(paths))


def _read_lists(files):
    """ID to "train" or "test" from the two lists; {} without lists."""
    lists = {s: files.lists / f"{s}_split.txt" for s in ("train", "test")}
    absent = [path for path in lists.values() if not path.is_file()]
    if len(absent) == 1:
        raise FileNotFoundError(f"There is no {absent[0]}, only the other list")
    sides = {}
    for side in lists if not absent else ():
        for name in read_text(lists[side]).split():
            if sides.setdefault(name, side) != side:
                raise ValueError(f"{name} is on both lists of {files.lists}")
    other_subset = not files.own_lists and not sides.keys() & files.wavs
    return {} if other_subset else sides


def _divide(files, listed, valid_share, seed):
    """ID to split, by the two lists or by hash; logs which."""
    if listed:
        logger.info("Split: the two lists of %s", files.lists)
        sides = {name: listed[name] for name in listed if name in files.wavs}
    else:
        place = f"no lists of this subset in {files.lists}"
        share = f"{100 * TEST_SHARE:g} % of each speaker's utterances"
        logger.info("Split: %s; by hash, %s are the test set", place, share)
        sides = hash_split(files.wavs, {"test": TEST_SHARE}, seed, _speaker)
    trained = [name for name, side in sides.items() if side == "train"]
    return sides | hash_split(trained, {"valid": valid_share}, seed, _speaker)


def _speaker(name):
    """Speaker of an utterance: the first field of its ID."""
    return name.split("-")[0]


def _fill(splits, files, listed, sides, min_samples, incomplete):
    """Appends the rows of every split; returns the problems of the corpus."""
    transcripts, repeated = _read_transcripts(files.folder)
    sexes, more = _read_sexes(files), _read_columns(files)
    gaps = list(_find_gaps(files, listed, transcripts, sexes))
    paths = [files.wavs[name] for name in sides]
    lengths = in_threads(_length, paths)
    samples = dict(zip(sides, lengths, strict=True))
    labels, wrong = _read_labels(files, samples)
    problems = [*_check_folders(files.folder), *repeated]
    problems += [*(gaps if incomplete == "fail" else ()), *wrong]
    short = {name for name, n in samples.items() if 0 < n < min_samples}
    for name in sorted(sides.keys() - short):
        row = {"ID": name, "wav": files.wavs[name], "speaker": _speaker(name)}
        row["sex"] = sexes.get(row["speaker"], ("",))[0]
        row["transcript"] = transcripts.get(name, "")
        row["phones"] = labels.get(name, "")
        row |= more.get(name, {})
        splits[sides[name]].append(row)
    for split in (name for name, rows in splits.items() if not rows):
        problem = f"No utterance is left for {split}.csv."
        remedy = "Give more utterances per speaker or smaller --min_samples."
        problems.append(Problem(files.folder, problem, remedy))
    rows = [row for rows in splits.values() for row in rows]
    lacking = [
        f"{sum(not row[key] for row in rows)} without {key}"
        for key in ("sex", "transcript", "phones")
    ]
    speakers = len({row["speaker"] for row in rows})
    logger.info(
        f"{files.folder.name}: {len(rows)} utterances of {speakers} speakers, "
        f"{len(files.wavs) - len(sides)} unlisted, {len(short)} left out for "
        f"fewer than {min_samples} samples; {', '.join(lacking)} "
        f"({files.phones or 'no source'}); {len(gaps)} gaps"
    )
    return problems


def _read_transcripts(folder):
    """ID to transcript, and the problems of IDs that have two."""
    transcripts, problems = {}, []
    for path in sorted(folder.glob("[!.]*/[!.]*/[!.]*.trans.txt")):
        for line in filter(str.strip, read_text(path).splitlines()):
            name, _, text = line.strip().partition(" ")
            if name in transcripts:
                what = f"{name} has two transcripts.", "Delete one of them."
                problems.append(Problem(path, *what))
            transcripts[name] = text.strip()
    return transcripts, problems


def _read_sexes(files):
    """Speaker to (F or M, whether of this subset); {} without the file."""
    if not files.speakers.is_file():
        return {}
    lines = read_text(files.speakers).splitlines()
    rows = [line.split("|") for line in lines if not line.startswith(";")]
    rows = [[field.strip() for field in row] for row in rows if len(row) > 2]
    return {row[0]: (row[1], row[2] == files.folder.name) for row in rows}


def _read_columns(files):
    """ID to further labels; {} without a csv of them."""
    if not files.columns:
        return {}
    rows = {row.pop("ID"): row for _, row in read_csv(files.columns, ["ID"])}
    if missing := sorted(files.wavs.keys() - rows.keys()):
        lacks = f"no row of {len(missing)} utterances, such as {missing[0]}"
        raise ValueError(f"{files.columns} has {lacks}: add them.")
    return rows


def _check_folders(folder):
    """Problems of chapters without audio, and of audio in another's folder."""
    for chapter in sorted(folder.glob("[!.]*/[!.]*")):
        if not chapter.is_dir():
            continue
        place = f"{chapter.parent.name}-{chapter.name}-"
        paths = sorted(chapter.glob("[!.]*.flac"))
        if not paths:
            remedy = f"{AGAIN}, or delete the folder."
            yield Problem(chapter, "This chapter has no audio.", remedy)
        for path in paths:
            if not path.name.startswith(place):
                problem = f"Its name does not begin with {place}."
                yield Problem(
                    readable(path), problem, "Move it to its chapter."
                )


def _find_gaps(files, listed, transcripts, sexes):
    """Problems of transcripts, audio and speakers that are missing."""
    chapters = defaultdict(list)
    for name in sorted(files.wavs):
        if not transcripts.get(name):
            chapters[files.wavs[name].parent].append(name)
    for chapter, names in chapters.items():
        path = chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"
        problem = f"{len(names)} utterances have no transcript in it, such as "
        yield Problem(path, f"{problem}{names[0]}.", ALLOW)
    for name in sorted((transcripts.keys() | listed) - files.wavs.keys()):
        path = Path(files.folder, *name.split("-")[:2], f"{name}.flac")
        if name in transcripts:
            problem = "It has a transcript, but the audio is missing."
            yield Problem(path, problem, ALLOW)
        else:
            problem = "It is on a list, but the audio is missing."
            yield Problem(path, problem, f"Take the subset's lists. {ALLOW}")
    if not files.speakers.is_file():
        yield Problem(files.speakers, "There is no such file.", ALLOW)
        return
    here = {path.parents[1].name for path in files.wavs.values()}
    for speaker in sorted(here - sexes.keys()) if sexes else ():
        problem = f"The speaker is unknown to {files.speakers}."
        remedy = "Take the SPEAKERS.TXT of this corpus, or --incomplete allow."
        yield Problem(files.folder / speaker, problem, remedy)
    listed = {speaker for speaker, (_, ours) in sexes.items() if ours}
    for speaker in sorted(listed - here):
        problem = "SPEAKERS.TXT lists the speaker, but the audio is missing."
        yield Problem(files.folder / speaker, problem, ALLOW)


def _read_labels(files, samples):
    """ID to labels of phones; and the problems of others."""
    if files.phones is None:
        return {}, []
    whole = {name: length for name, length in samples.items() if length}
    labels, problems = read_phones(files.phones, whole)
    if files.own_phones and not labels and not problems:
        problem = f"It has no labels of any utterance of {files.folder.name}."
        remedy = "Take those of this subset, or leave --phones out."
        problems = [Problem(files.phones, problem, remedy)]
    return labels, problems


def _length(path):
    """Length at 16 kHz, from the header; 0 if it cannot be read."""
    try:
        return audio_info(path).num_samples
    except BadAudio:
        return 0  # write_manifests lists it
