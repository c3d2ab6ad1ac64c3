"""Any folder of audio -> train, valid and test manifests.

For recordings that a user already has: searched recursively, divided by hashes
of their paths, optionally labelled with a speaker.
"""

from pathlib import Path

from speechbrain_sim.data.manifests import hash_split, write_manifests
from speechbrain_sim.data.tables import read_csv

#: endings of the files that are read, in any case
ENDINGS = (".flac", ".ogg", ".wav")


def prepare_folder(
    data_folder,
    save_folder,
    min_samples,
    speakers=None,
    valid_share=0.1,
    test_share=0.1,
    seed=1234,
    on_bad_audio="fail",
):
    """Writes `train.csv`, `valid.csv` and `test.csv` for a folder.

    A file's side depends on `seed` and on the paths of the files it is
    divided with: all, or, with speakers, those of its speaker, so that every
    speaker with three files or more is on all sides; one with fewer is in
    `train.csv`. Hidden files and folders are left out.

    Arguments
    ---------
    data_folder : str or Path
        Searched with all folders below it for wav, flac and ogg.
    save_folder, min_samples, on_bad_audio :
        See `speechbrain_sim.data.manifests.write_manifests`.
    speakers : str or Path, optional
        "folder" takes the first folder below `data_folder`; else a csv with
        the columns `path` (relative to `data_folder`) and `speaker`. Labels
        fill a column `speaker`.
    valid_share, test_share : float
        Shares in [0, 1); zero writes no such manifest.
    seed : int
        Seed of the division.

    Raises
    ------
    FileNotFoundError
        If the folder, any audio in it, or the csv is missing.
    ValueError
        For files without a speaker or csv lines without a file, two files
        with one ID, too few files to divide, and as `write_manifests`.
    """
    arguments = dict(locals())
    folder = Path(data_folder)
    names = _find_audio(folder)
    labels = _label_speakers(names, folder, speakers)
    shares = {"valid": valid_share, "test": test_share}
    sides = hash_split(names, shares, seed, labels.get)
    splits = {"train": []} | {name: [] for name in shares if shares[name]}
    for name in names:
        row = {"ID": _id(name), "wav": folder / name}
        row |= {"speaker": labels[name]} if labels else {}
        splits[sides[name]].append(row)
    if not all(splits.values()):
        few = f"{len(names)} files are too few for {', '.join(splits)}"
        needed = f"{len(splits)} files{' of one speaker' if labels else ''}"
        remedy = "Add files, or set valid_share or test_share to 0."
        raise ValueError(f"{folder}: {few}: that takes {needed}. {remedy}")
    how = min_samples, on_bad_audio, arguments
    write_manifests(splits, save_folder, folder, *how)


def _find_audio(folder):
    """Sorted relative paths, with "/", of all audio below a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}")
    names, ids = [], {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in name.parts)
        if not hidden and path.suffix.lower() in ENDINGS and path.is_file():
            names.append(name.as_posix())
    if not names:
        endings = ", ".join(ENDINGS)
        raise FileNotFoundError(f"No file below {folder} ends in {endings}")
    for name in sorted(names):
        if (other := ids.setdefault(_id(name), name)) != name:
            both = f"{other} and {name} would both have the ID {_id(name)}"
            raise ValueError(f"{both}: rename one of them.")
    return sorted(names)


def _id(name):
    """Relative path without extension, folders joined with "-"."""
    return Path(name).with_suffix("").as_posix().replace("/", "-")


def _label_speakers(names, folder, speakers):
    """Path to speaker, for all files; {} if no labels are wanted."""
    if speakers is None:
        return {}
    if speakers == "folder":
        if loose := [name for name in names if "/" not in name]:
            what = f"{folder / loose[0]} lies in no folder of a speaker"
            raise ValueError(f"{what}: move it into one, or use a csv.")
        return {name: name.split("/")[0] for name in names}
    labels = {}
    for row in read_csv(speakers, ["path", "speaker"]):
        name = Path(row["path"].strip()).as_posix()
        speaker = (row["speaker"] or "").strip()
        if not speaker or labels.setdefault(name, speaker) != speaker:
            raise ValueError(
                f"{speakers}: {name} has no speaker or two of them."
            )
        if not (folder / name).is_file():
            raise ValueError(f"{speakers} lists {name}: not in {folder}.")
    if unknown := [name for name in names if name not in labels]:
        raise ValueError(f"{speakers} gives no speaker for {unknown[0]}.")
    return labels
