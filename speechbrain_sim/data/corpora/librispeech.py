"""LibriSpeech in its published layout → manifests with speakers and phones."""

import hashlib
import os
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_sim import __version__
from speechbrain_sim.data.audio import BadAudio, inspect_audio
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
    skip_prep=False,
    seed=1234,
):
    """Write ``train.csv``, ``valid.csv`` and ``test.csv`` of one subset.

    All sides have the same speakers. Label columns: ``speaker`` (the first
    field of the ID), ``sex`` (F or M), ``transcript``, and ``phones``, one
    number per 10 ms separated by spaces; each is empty where nothing is
    known, and the log counts how often.

    Arguments
    ---------
    data_folder : str or Path
        Holds ``LibriSpeech/<subset>``, or is itself that ``LibriSpeech``.
    save_folder : str or Path
        Where manifests go.
    subset : str
        A folder of the corpus, such as "train-clean-100", or "train-clean-5"
        of Mini LibriSpeech.
    labels_folder : str, Path or None
        Holds ``train_split.txt`` and ``test_split.txt`` (one ID per line;
        without both, 20 % of each speaker's utterances are the test set) and
        ``converted_aligned_phones.txt`` (an ID and its phones per line). By
        default ``LibriSpeech100_labels_split`` beside ``LibriSpeech``, its
        lists only if they list any utterance of the subset.
    phones : str, Path or None
        Where phone labels come from, see `read_phones`: a list, a csv of
        intervals, or a folder of TextGrids. By default the list of
        ``labels_folder``, if it is there.
    valid_share : float
        Share of each speaker's training utterances that becomes
        ``valid.csv``; zero writes none. A single utterance stays in train.
    min_samples : int
        Shorter utterances are left out, and counted.
    on_bad_audio : str
        "fail" or "skip", see ``write_manifests``.
    incomplete : str
        "fail" if speakers, transcripts or audio are missing; "allow" for a
        part of the corpus: what is missing is counted.
    download : bool
        Get the subset's archive if the subset is not there.
    download_from : str
        The address that holds ``<subset>.tar.gz``.
    checksum : str or None
        Of the archive, such as "md5:2a93..."; by default LibriSpeech's own.
    skip_prep : bool
        Do nothing: the manifests are there.
    seed : int
        Seed of the divisions that no list gives.

    Raises
    ------
    FileNotFoundError
        If the corpus, the subset, a labels folder that was asked for, phone
        labels that were asked for, or one of the two lists is missing.
    ValueError
        If an ID is on both lists, or a text is not UTF-8; for what
        ``problems.csv`` then lists: gaps in the corpus, listed IDs without
        audio, labels that do not fit, a side without utterances; and as
        ``write_manifests``.

    Example
    -------
    >>> prepare_librispeech("nowhere", "save", skip_prep=True)
    """
    if skip_prep:
        return
    arguments = dict(locals())
    if incomplete not in ("fail", "allow"):
        raise ValueError(
            f"incomplete must be 'fail' or 'allow', got {incomplete!r}"
        )
    root = _find_root(data_folder, subset)
    if download and not (root / subset).is_dir():
        archive = root.parent / f"{subset}.tar.gz"
        fetch(
            f"{download_from.rstrip('/')}/{archive.name}",
            archive,
            checksum or CHECKSUMS.get(subset),
        )
        unpack(archive, root.parent)
    wavs = _find_audio(root, subset)
    lists = Path(labels_folder or root.parent / LABELS)
    if labels_folder and not lists.is_dir():
        raise FileNotFoundError(f"There is no folder {labels_folder}")
    source = phones
    if phones is None and (lists / PHONES).is_file():
        source = lists / PHONES
    arguments["inputs"] = _fingerprint(root, subset, lists, source)
    if is_prepared(save_folder, arguments):
        refuse([], save_folder)
        write_names(save_folder, source)
        return
    listed = _read_lists(lists)
    if not labels_folder and not listed.keys() & wavs:
        listed = {}  # those of another subset
    sides = _divide(listed, lists, wavs, valid_share, seed)

    problems = _check_folders(root / subset)
    transcripts, repeated = _read_transcripts(root / subset)
    problems += repeated
    sexes = _read_sexes(root / "SPEAKERS.TXT", subset)
    gaps = _find_gaps(root, subset, wavs, transcripts, sexes, listed)
    if incomplete == "fail":
        problems += gaps
    samples = _measure(wavs, sides)
    labels = {}
    if source is not None:
        whole = {name: n for name, n in samples.items() if n}
        labels, wrong = read_phones(source, whole)
        problems += wrong
        if phones is not None and not labels and not wrong:
            problems.append(
                Problem(
                    phones,
                    f"It has no labels of any utterance of {subset}.",
                    "Take those of this subset, or leave --phones out.",
                )
            )

    splits = {"train": [], **({"valid": []} if valid_share else {}), "test": []}
    short = {name for name, n in samples.items() if 0 < n < min_samples}
    for name in sorted(set(sides) - short):
        row = {
            "ID": name,
            "wav": wavs[name],
            "speaker": _speaker(name),
            "sex": sexes.get(_speaker(name), ("",))[0],
            "transcript": transcripts.get(name, ""),
            "phones": labels.get(name, ""),
        }
        splits[sides[name]].append(row)
    problems += [
        Problem(
            root / subset,
            f"No utterance is left for {split}.csv.",
            "Give more utterances per speaker, lists of them, or smaller "
            "--min_samples.",
        )
        for split, rows in splits.items()
        if not rows
    ]
    refuse(problems, save_folder)
    rows = [row for rows in splits.values() for row in rows]
    logger.info(
        "%s: %d utterances of %d speakers, %d unlisted, %d left out for fewer "
        "than %d samples; %d without sex, %d without transcript, %d without "
        "phones (%s); %d gaps",
        subset,
        len(rows),
        len({row["speaker"] for row in rows}),
        len(wavs) - len(sides),
        len(short),
        min_samples,
        *(
            sum(not row[key] for row in rows)
            for key in ("sex", "transcript", "phones")
        ),
        source or "no source",
        len(gaps),
    )
    write_manifests(
        splits,
        save_folder,
        data_folder,
        1,  # the short ones are gone
        on_bad_audio,
        arguments=arguments,
    )
    write_names(save_folder, source)


def _speaker(name):
    """Speaker of an utterance: the first field of its ID."""
    return name.split("-")[0]


def _place(folder, name):
    """Where the audio of an ID belongs."""
    return Path(folder, *name.split("-")[:2], f"{name}.flac")


def _find_root(data_folder, subset):
    """The folder `LibriSpeech`, there or not: the data folder or within it."""
    folder = Path(os.path.abspath(data_folder))
    if (folder / subset).is_dir() or (
        folder.name == "LibriSpeech" and (folder / "SPEAKERS.TXT").is_file()
    ):
        return folder
    return folder / "LibriSpeech"


def _fingerprint(root, subset, lists, source):
    """Hash of paths, sizes and times of all that manifests are made of."""
    paths = [
        root / "SPEAKERS.TXT",
        *(root / subset).glob("*/*"),
        *(root / subset).glob("*/*/*"),
        *lists.glob("*_split.txt"),
    ]
    if source is not None:
        paths += [Path(source), *Path(source).rglob("*.TextGrid")]
    digest = hashlib.sha256(__version__.encode())
    for path in sorted(path for path in paths if path.exists()):
        stat = path.stat()
        line = f"{path} {stat.st_size} {stat.st_mtime_ns}\n"
        digest.update(os.fsencode(line))
    return digest.hexdigest()


def _find_audio(root, subset):
    """ID to path, for all utterances of a subset."""
    if not root.parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {root.parent}: correct --data_folder. "
            f"--download True gets {subset} into it."
        )
    if not (root / subset).is_dir():
        present = sorted(
            path.name for path in root.glob("*-*") if path.is_dir()
        )
        raise FileNotFoundError(
            f"There is no subset {subset} in {root}; present: "
            f"{', '.join(present) or 'none'}. --download True gets it."
        )
    wavs = {path.stem: path for path in (root / subset).glob("*/*/*.flac")}
    if not wavs:
        raise FileNotFoundError(
            f"No flac in {root / subset}/<speaker>/<chapter>. {AGAIN}."
        )
    return wavs


def _divide(listed, lists, wavs, valid_share, seed):
    """ID to split, by the two lists or by hash; says which."""
    if listed:
        logger.info("Split: the two lists of %s", lists)
        sides = {name: listed[name] for name in listed if name in wavs}
    else:
        logger.info(
            "Split: no lists of this subset in %s, so %d %% of each speaker's "
            "utterances are the test set, by hash",
            lists,
            100 * TEST_SHARE,
        )
        sides = _split_speakers(wavs, {"test": TEST_SHARE}, seed)
    trained = [name for name, side in sides.items() if side == "train"]
    return sides | _split_speakers(trained, {"valid": valid_share}, seed)


def _read_lists(folder):
    """ID to "train" or "test" from the two lists; {} without lists."""
    lists = {side: folder / f"{side}_split.txt" for side in ("train", "test")}
    absent = [str(path) for path in lists.values() if not path.is_file()]
    if len(absent) == 2:
        return {}
    if absent:
        raise FileNotFoundError(f"There is no {absent[0]}, only the other list")
    sides = {}
    for side, path in lists.items():
        for name in read_text(path).split():
            if sides.setdefault(name, side) != side:
                raise ValueError(f"{name} is on both lists of {folder}")
    return sides


def _split_speakers(names, shares, seed):
    """ID to split, each speaker divided on its own."""
    groups, sides = defaultdict(list), {}
    for name in names:
        groups[_speaker(name)].append(name)
    for group in groups.values():
        sides |= hash_split(group, shares, seed)
    return sides


def _check_folders(folder):
    """Problems of chapters without audio, and of audio in another's folder."""
    problems = []
    for chapter in sorted(folder.glob("*/*")):
        if not chapter.is_dir():
            continue
        place = f"{chapter.parent.name}-{chapter.name}-"
        names = [path.name for path in sorted(chapter.glob("*.flac"))]
        if not names:
            problems.append(
                Problem(
                    chapter,
                    "This chapter has no audio.",
                    f"{AGAIN}, or delete the folder.",
                )
            )
        problems += [
            Problem(
                chapter / name,
                f"Its name does not begin with {place}.",
                "Move it to the folder of its speaker and chapter.",
            )
            for name in names
            if not name.startswith(place)
        ]
    return problems


def _read_transcripts(folder):
    """ID to transcript, and the problems of IDs that have two."""
    transcripts, problems = {}, []
    for path in sorted(folder.glob("*/*/*.trans.txt")):
        for line in read_text(path).splitlines():
            name, _, text = line.strip().partition(" ")
            if name in transcripts:
                problems.append(
                    Problem(
                        path,
                        f"{name} has two transcripts.",
                        f"Delete one of them, or {AGAIN.lower()}.",
                    )
                )
            if name:
                transcripts[name] = text.strip()
    return transcripts, problems


def _read_sexes(path, subset):
    """Speaker to (F or M, whether of this subset); {} without the file."""
    if not path.is_file():
        return {}
    fields = [
        [field.strip() for field in line.split("|")]
        for line in read_text(path).splitlines()
        if not line.startswith(";")
    ]
    return {f[0]: (f[1], f[2] == subset) for f in fields if len(f) > 2}


def _find_gaps(root, subset, wavs, transcripts, sexes, listed):
    """Problems of what an archive that was extracted whole would have."""
    folder, gaps = root / subset, []
    by_chapter = defaultdict(list)
    for name in sorted(
        set(wavs) - {n for n, text in transcripts.items() if text}
    ):
        by_chapter[wavs[name].parent].append(name)
    for chapter, names in by_chapter.items():
        path = chapter / f"{chapter.parent.name}-{chapter.name}.trans.txt"
        gaps.append(
            Problem(
                path,
                f"{len(names)} utterances have no transcript in it, such as "
                f"{names[0]}.",
                f"{AGAIN}, or --incomplete allow.",
            )
        )
    for name in sorted(set(transcripts) - set(wavs)):
        gaps.append(
            Problem(
                _place(folder, name),
                "It has a transcript, but the audio is missing.",
                f"{AGAIN}, or --incomplete allow.",
            )
        )
    for name in sorted(set(listed) - set(transcripts) - set(wavs)):
        gaps.append(
            Problem(
                _place(folder, name),
                "It is on a list, but the audio is missing.",
                f"{AGAIN}, take the lists of this subset, or --incomplete "
                "allow.",
            )
        )
    heard = {path.parents[1].name for path in wavs.values()}
    speakers = root / "SPEAKERS.TXT"
    if not speakers.is_file():
        gaps.append(
            Problem(
                speakers,
                "There is no such file.",
                f"{AGAIN}, or --incomplete allow.",
            )
        )
    for speaker in sorted(heard - set(sexes)) if sexes else ():
        gaps.append(
            Problem(
                folder / speaker,
                f"The speaker is unknown to {speakers}.",
                "Take the SPEAKERS.TXT of this corpus, or --incomplete allow.",
            )
        )
    listed = {speaker for speaker, (_, here) in sexes.items() if here}
    for speaker in sorted(listed - heard):
        gaps.append(
            Problem(
                folder / speaker,
                "SPEAKERS.TXT lists the speaker, but the audio is missing.",
                f"{AGAIN}, or --incomplete allow.",
            )
        )
    return gaps


def _measure(wavs, names):
    """ID to length at 16 kHz, from the header; 0 if it cannot be read."""
    names = list(names)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        lengths = pool.map(_length, (wavs[name] for name in names))
        return dict(zip(names, lengths, strict=True))


def _length(path):
    try:
        return inspect_audio(path, check_content=False).num_samples
    except BadAudio:
        return 0  # write_manifests will say so
