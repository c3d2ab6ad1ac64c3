"""LibriSpeech in its published layout → manifests with speakers and phones."""

from collections import defaultdict
from pathlib import Path

from speechbrain.utils.logger import get_logger

from speechbrain_sim.data.manifests import hash_split, write_manifests

logger = get_logger(__name__)

LABELS = "LibriSpeech100_labels_split"
PHONES = "converted_aligned_phones.txt"
TEST_SHARE = 0.2

PHONE_WINDOW, PHONE_HOP = 400, 160
"""Samples at 16 kHz that one phone label covers, and between two labels."""


def prepare_librispeech(
    data_folder,
    save_folder,
    subset="train-clean-100",
    labels_folder=None,
    valid_share=0.1,
    min_samples=20480,
    on_bad_audio="fail",
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
        A folder of the corpus, such as "train-clean-100".
    labels_folder : str, Path or None
        Holds ``train_split.txt`` and ``test_split.txt`` (one ID per line;
        without both, 20 % of each speaker's utterances are the test set) and
        ``converted_aligned_phones.txt`` (an ID and its phones per line). By
        default ``LibriSpeech100_labels_split`` beside ``LibriSpeech``.
    valid_share : float
        Share of each speaker's training utterances that becomes
        ``valid.csv``; zero writes none. A single utterance stays in train.
    min_samples : int
        Shortest utterance allowed, in samples.
    on_bad_audio : str
        "fail" or "skip", see ``write_manifests``.
    skip_prep : bool
        Do nothing: the manifests are there.
    seed : int
        Seed of the divisions that no list gives.

    Raises
    ------
    FileNotFoundError
        If the corpus, the subset, a labels folder that was asked for, one of
        the two lists, or the audio of a listed ID is missing.
    ValueError
        If an ID is on both lists, if an utterance has not exactly ``1 +
        (num_samples - 400) // 160`` phones, and as ``write_manifests``.

    Example
    -------
    >>> prepare_librispeech("nowhere", "save", skip_prep=True)
    """
    if skip_prep:
        return
    arguments = dict(locals())
    root = Path(data_folder, "LibriSpeech")
    root = root if root.is_dir() else Path(data_folder)
    wavs = _find_audio(root, subset)
    if labels_folder is None:
        labels_folder = root.parent / LABELS
    elif not Path(labels_folder).is_dir():
        raise FileNotFoundError(f"There is no folder {labels_folder}")
    labels_folder = Path(labels_folder)

    sides = _read_lists(labels_folder, wavs)
    if sides is None:
        logger.info(
            "No train_split.txt in %s: %d %% of each speaker's utterances are "
            "the test set, by hash",
            labels_folder,
            100 * TEST_SHARE,
        )
        sides = _split_speakers(wavs, {"test": TEST_SHARE}, seed)
    trained = [name for name, side in sides.items() if side == "train"]
    sides |= _split_speakers(trained, {"valid": valid_share}, seed)

    sexes = _read_sexes(root / "SPEAKERS.TXT")
    transcripts = _read_pairs((root / subset).glob("*/*/*.trans.txt"))
    phones_file = labels_folder / PHONES
    phones = _read_pairs([phones_file] if phones_file.is_file() else [])
    splits = {"train": [], **({"valid": []} if valid_share else {}), "test": []}
    for name in sorted(sides):
        row = {
            "ID": name,
            "wav": wavs[name],
            "speaker": _speaker(name),
            "sex": sexes.get(_speaker(name), ""),
            "transcript": transcripts.get(name, ""),
            "phones": phones.get(name, ""),
        }
        splits[sides[name]].append(row)
    rows = [row for rows in splits.values() for row in rows]
    logger.info(
        "%s: %d utterances of %d speakers, %d unlisted; %d without sex, %d "
        "without transcript, %d without phones",
        subset,
        len(rows),
        len({row["speaker"] for row in rows}),
        len(wavs) - len(rows),
        *(
            sum(not row[key] for row in rows)
            for key in ("sex", "transcript", "phones")
        ),
    )

    def check_phones(row, info):
        expected = 1 + (info.num_samples - PHONE_WINDOW) // PHONE_HOP
        found = len(row["phones"].split())
        if found not in (0, expected):
            raise ValueError(
                f"{row['ID']} has {found} phones in {phones_file}, but "
                f"{info.num_samples} samples make {expected}: these are "
                "labels of other audio, or of another hop."
            )

    write_manifests(
        splits,
        save_folder,
        data_folder,
        min_samples,
        on_bad_audio,
        check=check_phones,
        arguments=arguments,
    )


def _speaker(name):
    """Speaker of an utterance: the first field of its ID."""
    return name.split("-")[0]


def _find_audio(root, subset):
    """ID to path, for all utterances of a subset."""
    if not (root / subset).is_dir():
        present = sorted(
            path.name for path in root.glob("*-*") if path.is_dir()
        )
        raise FileNotFoundError(
            f"There is no subset {subset} in {root}; present: "
            f"{', '.join(present) or 'none'}."
        )
    wavs = {path.stem: path for path in (root / subset).glob("*/*/*.flac")}
    if not wavs:
        raise FileNotFoundError(
            f"No flac in {root / subset}/<speaker>/<chapter>"
        )
    return wavs


def _read_lists(folder, wavs):
    """ID to "train" or "test" from the two lists; None without lists."""
    lists = {side: folder / f"{side}_split.txt" for side in ("train", "test")}
    absent = [str(path) for path in lists.values() if not path.is_file()]
    if len(absent) == 2:
        return None
    if absent:
        raise FileNotFoundError(f"There is no {absent[0]}, only the other list")
    sides = {}
    for side, path in lists.items():
        for name in path.read_text(encoding="utf-8").split():
            if sides.setdefault(name, side) != side:
                raise ValueError(f"{name} is on both lists of {folder}")
    missing = [name for name in sides if name not in wavs]
    if missing:
        raise FileNotFoundError(
            f"{len(missing)} IDs listed in {folder} have no audio in the "
            f"subset, such as {', '.join(missing[:3])}"
        )
    return sides


def _split_speakers(names, shares, seed):
    """ID to split, each speaker divided on its own."""
    groups, sides = defaultdict(list), {}
    for name in names:
        groups[_speaker(name)].append(name)
    for group in groups.values():
        sides |= hash_split(group, shares, seed)
    return sides


def _read_sexes(path):
    """Speaker to F or M, from SPEAKERS.TXT; {} if it is absent."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    fields = [line.split("|") for line in lines if not line.startswith(";")]
    return {f[0].strip(): f[1].strip() for f in fields if len(f) > 1}


def _read_pairs(paths):
    """ID to the rest of its line, from files of such lines."""
    pairs = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, rest = line.strip().partition(" ")
            pairs[name] = rest.strip()
    return pairs
