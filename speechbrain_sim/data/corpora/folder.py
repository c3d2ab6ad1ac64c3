"""Any folder of audio -> train, valid and test manifests.

For recordings that a user already has: searched recursively, divided by hashes
of their paths, optionally labelled with a speaker.
"""

from pathlib import Path

from speechbrain_sim.data.manifests import hash_split, write_manifests
from speechbrain_sim.data.search import AUDIO, list_files
from speechbrain_sim.data.tables import OWN, read_csv

SPLITS = "train", "valid", "test"


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
    divided with: all, or those of its speaker, so that every speaker with
    three files or more is on all sides; one with fewer is in `train.csv`. Other
    labels do not change it.

    Arguments
    ---------
    data_folder : str or Path
        Searched with all folders below it: see `list_files`.
    save_folder, min_samples, on_bad_audio :
        See `speechbrain_sim.data.manifests.write_manifests`.
    speakers : str or Path, optional
        "folder" takes the first folder below `data_folder` as `speaker`; else
        a csv with the columns `path` (relative to `data_folder`) and any of
        `speaker`, further labels, and `split`: train, valid or test, which
        then holds as it is.
    valid_share, test_share : float
        Shares in [0, 1); zero writes no such manifest.
    seed : int
        Seed of the division.

    Raises
    ------
    FileNotFoundError, ValueError
        If folder, audio or csv is missing; for files without a line, lines
        without a file, too few to divide, and as `write_manifests`.
    """
    arguments = dict(locals())
    folder = Path(data_folder)
    names = _find_audio(folder)
    labels = _find_labels(names, folder, speakers)
    shares = {"valid": valid_share, "test": test_share}
    groups = {name: row.get("speaker") for name, row in labels.items()}
    sides = hash_split(names, shares, seed, groups.get)
    given = {n: row.pop("split", None) for n, row in labels.items()}
    sides |= {name: side for name, side in given.items() if side}
    wanted = [n for n in shares if shares[n] or n in sides.values()]
    splits = {name: [] for name in ("train", *wanted)}
    for name in names:
        own = {"ID": _id(name), "wav": folder / name}
        splits[sides[name]].append(labels.get(name, {}) | own)
    if not all(splits.values()):
        few = f"{len(names)} files are too few for {', '.join(splits)}"
        needed = f"{len(splits)} files{' of a speaker' * any(groups.values())}"
        remedy = "Add files, set a share to 0, or correct the column split."
        raise ValueError(f"{folder}: {few}: that takes {needed}. {remedy}")
    how = min_samples, on_bad_audio, arguments
    write_manifests(splits, save_folder, folder, *how)


def _find_audio(folder):
    """Sorted relative paths, with "/", of all audio below a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}")
    paths, ids = list_files(folder), {}
    if not paths:
        endings = ", ".join(AUDIO)
        raise FileNotFoundError(f"No file below {folder} ends in {endings}")
    names = [path.relative_to(folder).as_posix() for path in paths]
    for name in names:
        if (other := ids.setdefault(_id(name), name)) != name:
            both = f"{other} and {name} would both have the ID {_id(name)}"
            raise ValueError(f"{both}: rename one of them.")
    return names


def _id(name):
    """Relative path without extension, folders joined with "-"."""
    return Path(name).with_suffix("").as_posix().replace("/", "-")


def _find_labels(names, folder, speakers):
    """Path to labels, for all files; {} if none are wanted."""
    if speakers is None:
        return {}
    if speakers == "folder":
        if loose := [name for name in names if "/" not in name]:
            what = f"{folder / loose[0]} lies in no folder of a speaker"
            raise ValueError(f"{what}: move it into one, or use a csv.")
        return {name: {"speaker": name.split("/")[0]} for name in names}
    labels = {}
    for where, row in read_csv(speakers, ["path"]):
        row = {k: (v or "").strip() for k, v in row.items() if k not in OWN}
        name = Path(row.pop("path")).as_posix()
        if labels.setdefault(name, row) != row or row.get("speaker") == "":
            raise ValueError(f"{where}: {name} has no speaker or two of them.")
        if row.get("split", "train") not in SPLITS:
            what = f"{where}: {name} has the split {row['split']!r}"
            raise ValueError(f"{what}, not one of {', '.join(SPLITS)}.")
        if not (folder / name).is_file():
            raise ValueError(f"{speakers} lists {name}: not in {folder}.")
    if unknown := [name for name in names if name not in labels]:
        raise ValueError(f"{speakers} gives no labels for {unknown[0]}.")
    return {name: labels[name] for name in names}
