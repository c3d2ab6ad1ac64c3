"""Any folder of audio → train, valid and test manifests.

For recordings that a user already has: found recursively, divided by hashes
of their paths, optionally labelled with a speaker.
"""

import csv
from collections import defaultdict
from pathlib import Path

from speechbrain_sim.data.manifests import hash_split, write_manifests


def prepare_folder(
    data_folder,
    save_folder,
    min_samples,
    extensions=(".wav", ".flac", ".ogg"),
    speakers=None,
    valid_share=0.1,
    test_share=0.1,
    seed=1234,
    on_bad_audio="fail",
    skip_prep=False,
):
    """Write ``train.csv``, ``valid.csv`` and ``test.csv`` for a folder.

    A file's side depends on ``seed`` and on the paths of the files it is
    divided with: all, or, with speakers, those of its speaker, so that every
    speaker with three files or more is on all sides; one with fewer is in
    ``train.csv``. Hidden files are left out.

    Arguments
    ---------
    data_folder : str or Path
        Folder that is searched with all folders below it.
    save_folder : str or Path
        Where manifests go.
    min_samples : int
        Shortest file allowed, in samples at 16 kHz.
    extensions : iterable of str
        Which files are audio, in any case.
    speakers : str, Path or None
        None for no labels; "folder" takes the first folder below
        ``data_folder``; else a csv with the columns ``path`` (relative to
        ``data_folder``) and ``speaker``. Labels fill a column ``speaker``.
    valid_share, test_share : float
        Shares in [0, 1); zero writes no such manifest.
    seed : int
        Seed of the division.
    on_bad_audio : str
        "fail" or "skip", see ``write_manifests``.
    skip_prep : bool
        Do nothing: the manifests are there.

    Raises
    ------
    FileNotFoundError
        If the folder, any audio in it, or the csv is missing.
    ValueError
        For files without a speaker or csv lines without a file, two files
        with one ID, too few files to divide, and as ``write_manifests``.

    Example
    -------
    >>> import numpy as np, soundfile as sf
    >>> folder = getfixture("tmp_path")
    >>> for name in "abcde":
    ...     sf.write(folder / f"{name}.wav", np.ones(16000) / 2, 16000)
    >>> prepare_folder(folder, folder / "save", min_samples=8000)
    >>> sorted(path.name for path in (folder / "save").iterdir())
    ['prepare.json', 'test.csv', 'train.csv', 'valid.csv']
    """
    if skip_prep:
        return
    arguments = dict(locals())
    names = _find_audio(Path(data_folder), extensions)
    _check_ids(names)
    labels = _label_speakers(names, Path(data_folder), speakers)
    groups = defaultdict(list)
    for name in names:
        groups[labels.get(name)].append(name)

    shares = {"valid": valid_share, "test": test_share}
    sides = {}
    for group in groups.values():
        sides |= hash_split(group, shares, seed)
    splits = {"train": [], **{name: [] for name in shares if shares[name]}}
    for name in names:
        row = {"ID": _id(name), "wav": Path(data_folder, name)}
        if labels:
            row["speaker"] = labels[name]
        splits[sides[name]].append(row)
    if not all(splits.values()):
        whose = " of one speaker" if labels else ""
        raise ValueError(
            f"{data_folder}: {len(names)} files are too few for "
            f"{', '.join(splits)}: that takes {len(splits)} files{whose}. "
            "Add files, or set valid_share or test_share to 0."
        )
    write_manifests(
        splits,
        save_folder,
        data_folder,
        min_samples,
        on_bad_audio,
        arguments=arguments,
    )


def _find_audio(folder, extensions):
    """Sorted relative paths, with "/", of all audio below a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}")
    endings = {f".{e.lstrip('.')}".lower() for e in extensions}
    names = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.suffix.lower() in endings
        and not path.name.startswith(".")
        and path.is_file()
    )
    if not names:
        raise FileNotFoundError(
            f"No file below {folder} ends in {', '.join(sorted(endings))}"
        )
    return names


def _id(name):
    """Relative path without extension, folders joined with "-"."""
    return Path(name).with_suffix("").as_posix().replace("/", "-")


def _check_ids(names):
    """Raise if two files, on whichever side, would share an ID."""
    seen = {}
    for name in names:
        other = seen.setdefault(_id(name), name)
        if other != name:
            raise ValueError(
                f"{other} and {name} would both have the ID {_id(name)}: "
                "rename one of them."
            )


def _label_speakers(names, folder, speakers):
    """Path to speaker, for all files; {} if no labels are wanted."""
    if speakers is None:
        return {}
    if speakers == "folder":
        for name in names:
            if "/" not in name:
                raise ValueError(
                    f"{folder / name} lies in no folder that could name its "
                    "speaker: move it into one, or use a csv."
                )
        return {name: name.split("/")[0] for name in names}
    labels = _read_speakers(speakers)
    for name in labels:
        if not (folder / name).is_file():
            raise ValueError(f"{speakers} lists {name}: not in {folder}.")
    for name in names:
        if name not in labels:
            raise ValueError(f"{speakers} gives no speaker for {name}.")
    return labels


def _read_speakers(path):
    """Path to speaker, from a csv."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        if not {"path", "speaker"} <= set(reader.fieldnames or []):
            raise ValueError(
                f"{path} needs the columns path and speaker, it has "
                f"{reader.fieldnames}."
            )
        labels = {}
        for row in reader:
            name = Path(row["path"].strip()).as_posix()
            speaker = (row["speaker"] or "").strip()
            if not speaker or labels.setdefault(name, speaker) != speaker:
                raise ValueError(
                    f"{path}: {name} has no speaker, or two of them."
                )
    return labels
