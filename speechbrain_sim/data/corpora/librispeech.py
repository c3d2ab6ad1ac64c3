"""LibriSpeech in its published layout -> manifests with speakers and phones."""

import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from speechbrain.utils.logger import get_logger

from speechbrain_sim import __version__
from speechbrain_sim.data.audio import BadAudio, audio_info
from speechbrain_sim.data.download import fetch, unpack
from speechbrain_sim.data.manifests import (
    Problem,
    hash_split,
    is_prepared,
    read_text,
    refuse,
    write_manifests,
)
from speechbrain_sim.data.phones import read_phones, write_names

logger = get_logger(__name__)

LABELS = "LibriSpeech100_labels_split"
PHONES = "converted_aligned_phones.txt"
TEST_SHARE = 0.2

AGAIN = "Extract the archive again"
ALLOW = f"{AGAIN}, or --incomplete allow."

#: where the archives are, and the sums that are published beside them
ARCHIVES = "https://www.openslr.org/resources/12"
CHECKSUMS = {
    "dev-clean": "md5:42e2234ba48799c1f50f24a7926300a1",
    "dev-other": "md5:c8d0bcc9cca99d4f8b62fcc847357931",
    "test-clean": "md5:32fa31d27d2e1cad72775fee3f4849a9",
    "test-other": "md5:fb5a50374b501bb3bac4815ee91d3135",
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
):
    """Writes `train.csv`, `valid.csv` and `test.csv` of one subset.

    All sides have the same speakers. Columns: `speaker`, `sex` (F or M),
    `transcript`, and `phones`, a number per 10 ms; each empty where unknown.
    Raises ValueError for what `problems.csv` lists.

    Arguments
    ---------
    data_folder : str or Path
        Holds `LibriSpeech/<subset>`, or is itself that `LibriSpeech`.
    subset : str
        Such as "train-clean-100", or "train-clean-5" of Mini LibriSpeech.
    labels_folder, phones : str or Path, optional; see `_find`
    valid_share : float
        Share of each speaker's training utterances in `valid.csv`.
    min_samples : int
        Shorter utterances are left out, and counted.
    incomplete : str
        "fail" if speakers, transcripts or audio are missing, or "allow".
    download, download_from, checksum : bool, str, str
        Whether to get `<subset>.tar.gz`, from which address, and its sum.
    save_folder, on_bad_audio, seed :
        See `write_manifests` and `hash_split`.
    """
    arguments = dict(locals())
    if incomplete not in ("fail", "allow"):
        raise ValueError(f"incomplete is 'fail' or 'allow', got {incomplete!r}")
    folder = _find_root(data_folder, subset) / subset
    if download and not folder.is_dir():
        _download(folder, download_from, checksum)
    files = _find(folder, labels_folder, phones)
    arguments["inputs"] = _fingerprint(files)
    if is_prepared(save_folder, arguments):
        refuse([], save_folder)
    else:
        listed = _read_lists(files)
        sides = _divide(files, listed, valid_share, seed)
        names = ("train", "valid", "test") if valid_share else ("train", "test")
        splits = {name: [] for name in names}
        problems = _fill(splits, files, listed, sides, min_samples, incomplete)
        refuse(problems, save_folder)
        limits = 1, on_bad_audio  # the short ones are gone
        write_manifests(splits, save_folder, data_folder, *limits, arguments)
    write_names(save_folder, files.phones)


def _find_root(data_folder, subset):
    """The folder `LibriSpeech`, there or not: the data folder or within it."""
    folder = Path(os.path.abspath(data_folder))
    if (folder / subset).is_dir() or (
        folder.name == "LibriSpeech" and (folder / "SPEAKERS.TXT").is_file()
    ):
        return folder
    return folder / "LibriSpeech"


def _download(folder, address, checksum):
    """Gets the archive of a subset, and unpacks it."""
    place = folder.parents[1]
    archive = place / f"{folder.name}.tar.gz"
    checksum = checksum or CHECKSUMS.get(folder.name)
    fetch(f"{address.rstrip('/')}/{archive.name}", archive, checksum)
    unpack(archive, place)


def _find(folder, labels_folder, phones):
    """What there is of a subset; FileNotFoundError if it has to be there.

    `labels_folder` holds `train_split.txt` and `test_split.txt` (an ID per
    line; without them 20 % of each speaker's utterances are the test set) and
    `converted_aligned_phones.txt`; by default `LibriSpeech100_labels_split`
    beside `LibriSpeech`, if its lists have any utterance of the subset.
    `phones` are a source of `read_phones`; by default that list.
    """
    root, subset = folder.parent, folder.name
    if not root.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {root.parent}: correct --data_folder. "
            f"--download True gets {subset} into it."
        )
    if not folder.is_dir():
        present = sorted(p.name for p in root.glob("*-*") if p.is_dir())
        raise FileNotFoundError(
            f"There is no subset {subset} in {root}; present: "
            f"{', '.join(present) or 'none'}. --download True gets it."
        )
    wavs = {path.stem: path for path in folder.glob("*/*/[!.]*.flac")}
    if not wavs:
        raise FileNotFoundError(
            f"No flac in {folder}/<speaker>/<chapter>. {AGAIN}."
        )
    lists = Path(labels_folder or root.parent / LABELS)
    if labels_folder and not lists.is_dir():
        raise FileNotFoundError(f"There is no folder {labels_folder}")
    own = labels_folder is not None, phones is not None
    if phones is None and (lists / PHONES).is_file():
        phones = lists / PHONES
    return _Files(
        folder, wavs, root / "SPEAKERS.TXT", lists, own[0], phones, own[1]
    )


def _fingerprint(files):
    """Hash of paths, sizes and times of all that manifests are made of."""
    paths = [
        files.speakers,
        *files.folder.glob("*/*"),
        *files.folder.glob("*/*/*"),
        *files.lists.glob("*_split.txt"),
    ]
    if files.phones is not None:
        paths += [Path(files.phones), *Path(files.phones).rglob("*.TextGrid")]
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(path for path in paths if path.exists()):
        stat = path.stat()
        line = f"{path} {stat.st_size} {stat.st_mtime_ns}\n"
        digest.update(os.fsencode(line))
    return digest.hexdigest()


def _read_lists(files):
    """ID to "train" or "test" from the two lists; {} without lists."""
    sides, absent = {}, []
    for side in ("train", "test"):
        path = files.lists / f"{side}_split.txt"
        if not path.is_file():
            absent.append(path)
            continue
        for name in read_text(path).split():
            if sides.setdefault(name, side) != side:
                raise ValueError(f"{name} is on both lists of {files.lists}")
    if len(absent) == 1:
        raise FileNotFoundError(f"There is no {absent[0]}, only the other list")
    other_subset = not files.own_lists and not sides.keys() & files.wavs
    return {} if other_subset else sides


def _divide(files, listed, valid_share, seed):
    """ID to split, by the two lists or by hash; logs which."""
    if listed:
        logger.info("Split: the two lists of %s", files.lists)
        sides = {name: listed[name] for name in listed if name in files.wavs}
    else:
        logger.info(
            "Split: no lists of this subset in %s, so %d %% of each speaker's "
            "utterances are the test set, by hash",
            files.lists,
            100 * TEST_SHARE,
        )
        sides = hash_split(files.wavs, {"test": TEST_SHARE}, seed, _speaker)
    trained = [name for name, side in sides.items() if side == "train"]
    return sides | hash_split(trained, {"valid": valid_share}, seed, _speaker)


def _speaker(name):
    """Speaker of an utterance: the first field of its ID."""
    return name.split("-")[0]


def _fill(splits, files, listed, sides, min_samples, incomplete):
    """Appends the rows of every split; returns the problems of the corpus."""
    transcripts, repeated = _read_transcripts(files.folder)
    sexes = _read_sexes(files)
    gaps = [
        *_missing_texts(files, transcripts),
        *_missing_audio(files, transcripts, listed),
        *_missing_speakers(files, sexes),
    ]
    samples = _measure(files.wavs, sides)
    labels, wrong = _read_labels(files, samples)
    problems = [*_check_folders(files.folder), *repeated]
    problems += [*(gaps if incomplete == "fail" else ()), *wrong]
    short = {name for name, n in samples.items() if 0 < n < min_samples}
    for name in sorted(sides.keys() - short):
        row = {
            "ID": name,
            "wav": files.wavs[name],
            "speaker": _speaker(name),
            "sex": sexes.get(_speaker(name), ("",))[0],
            "transcript": transcripts.get(name, ""),
            "phones": labels.get(name, ""),
        }
        splits[sides[name]].append(row)
    for split, rows in splits.items():
        if not rows:
            problem = f"No utterance is left for {split}.csv."
            remedy = "Give more utterances per speaker, lists of them, or "
            remedy += "smaller --min_samples."
            problems.append(Problem(files.folder, problem, remedy))
    rows = [row for rows in splits.values() for row in rows]
    lacking = {
        key: sum(not row[key] for row in rows)
        for key in ("sex", "transcript", "phones")
    }
    logger.info(
        "%s: %d utterances of %d speakers, %d unlisted, %d left out for fewer "
        "than %d samples; %s (%s); %d gaps",
        files.folder.name,
        len(rows),
        len({row["speaker"] for row in rows}),
        len(files.wavs) - len(sides),
        len(short),
        min_samples,
        ", ".join(f"{count} without {key}" for key, count in lacking.items()),
        files.phones or "no source",
        len(gaps),
    )
    return problems


def _read_transcripts(folder):
    """ID to transcript, and the problems of IDs that have two."""
    transcripts, problems = {}, []
    for path in sorted(folder.glob("*/*/[!.]*.trans.txt")):
        for line in read_text(path).splitlines():
            name, _, text = line.strip().partition(" ")
            if name in transcripts:
                problem = f"{name} has two transcripts."
                remedy = f"Delete one of them, or {AGAIN.lower()}."
                problems.append(Problem(path, problem, remedy))
            if name:
                transcripts[name] = text.strip()
    return transcripts, problems


def _read_sexes(files):
    """Speaker to (F or M, whether of this subset); {} without the file."""
    if not files.speakers.is_file():
        return {}
    fields = [
        [field.strip() for field in line.split("|")]
        for line in read_text(files.speakers).splitlines()
        if not line.startswith(";")
    ]
    subset = files.folder.name
    return {f[0]: (f[1], f[2] == subset) for f in fields if len(f) > 2}


def _check_folders(folder):
    """Problems of chapters without audio, and of audio in another's folder."""
    for chapter in sorted(p for p in folder.glob("*/*") if p.is_dir()):
        place = f"{chapter.parent.name}-{chapter.name}-"
        paths = sorted(chapter.glob("[!.]*.flac"))
        if not paths:
            remedy = f"{AGAIN}, or delete the folder."
            yield Problem(chapter, "This chapter has no audio.", remedy)
        for path in paths:
            if not path.name.startswith(place):
                problem = f"Its name does not begin with {place}."
                remedy = "Move it to the folder of its speaker and chapter."
                yield Problem(path, problem, remedy)


def _missing_texts(files, transcripts):
    """Problems of utterances without a transcript, one per chapter."""
    chapters = defaultdict(list)
    for name in sorted(files.wavs):
        if not transcripts.get(name):
            chapters[files.wavs[name].parent].append(name)
    for chapter, names in chapters.items():
        path = chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"
        problem = f"{len(names)} utterances have no transcript in it, such as "
        yield Problem(path, f"{problem}{names[0]}.", ALLOW)


def _missing_audio(files, transcripts, listed):
    """Problems of transcripts and listed IDs without audio."""
    for name in sorted((transcripts.keys() | listed) - files.wavs.keys()):
        path = Path(files.folder, *name.split("-")[:2], f"{name}.flac")
        if name in transcripts:
            problem = "It has a transcript, but the audio is missing."
            yield Problem(path, problem, ALLOW)
        else:
            problem = "It is on a list, but the audio is missing."
            remedy = f"{AGAIN}, take the lists of this subset, or --incomplete allow."
            yield Problem(path, problem, remedy)


def _missing_speakers(files, sexes):
    """Problems of speakers that only audio or only SPEAKERS.TXT has."""
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


def _measure(wavs, names):
    """ID to length at 16 kHz, from the header; 0 if it cannot be read."""
    names = list(names)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        lengths = pool.map(_length, (wavs[name] for name in names))
        return dict(zip(names, lengths, strict=True))


def _length(path):
    try:
        return audio_info(path).num_samples
    except BadAudio:
        return 0  # write_manifests lists it
