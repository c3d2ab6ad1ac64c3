"""What a study may be: its entries, checked before anything is made."""

from pathlib import Path

from speechbrain_sim import config
from speechbrain_sim.analysis import tools
from speechbrain_sim.analysis.folds import check_folds
from speechbrain_sim.data.labels import FRAMES, kind_of
from speechbrain_sim.options import check_ranges, typed

#: an entry of systems, and of labels: of which kinds their values are
SYSTEM = {"yaml": "", "encoder": "", "of": "", "per_label": False}
SYSTEM |= {"options": {}, "probe": {}, "seeds": [1]}
LABEL = {"probe": {}, "paper": {}, "supervised": {}}
FOLDS = {"option": "", "values": ["", 1]}


def check_entry(entry, value, example):
    """Raises a KeyError or ValueError if a mapping is unlike its example."""
    if not isinstance(value, dict):
        raise ValueError(f"{entry} is {value!r}, not a mapping.")
    config.check_keys(entry, example, value)
    for key in value:
        option = f"{entry[2:]}: {key}"
        typed(option, value[key], [{option: example[key]}])


def check_systems(systems):
    """Raises a KeyError or ValueError if one cannot be trained or read."""
    trained = {}
    for name, system in systems.items():
        entry = f"--systems: {name}"
        if name != Path(str(name)).name or name in ("", ".."):
            raise ValueError(f"{entry}: its name, of folders, is a plain word.")
        check_entry(entry, system, SYSTEM)
        if len({"yaml", "encoder", "of"} & system.keys()) != 1 and not (
            {"yaml", "of"} <= system.keys() and "encoder" not in system
        ):
            raise ValueError(
                f"{entry} needs one of yaml, encoder and of, or yaml and of."
            )
        seeds = system.get("seeds", [1])
        check_ranges({"seeds": seeds}, {"seeds": "not empty, unique, >= 0"})
        there = trained.get(system.get("of"), set())
        if "yaml" in system and not system.get("per_label"):
            trained[name] = {*seeds}
        if "encoder" in system:
            trained[name] = None  # of any seed
        if "of" in system and not (there is None or {*seeds} <= there):
            raise ValueError(
                f"{entry} is of {system['of']}, but no entry above it of that "
                f"name is trained once for each of the seeds {seeds}."
            )


def check(hparams):
    """Raises a ValueError if an entry names what there is not."""
    systems = hparams["systems"]
    check_systems(systems)
    for label, options in hparams["labels"].items():
        check_entry(f"--labels: {label}", options, LABEL)
    check_entry("--folds", hparams["folds"], FOLDS)
    check_folds(hparams["folds"], hparams["inside"])
    tools.choose_tools(hparams["tools"])
    names = ", ".join(systems)
    if hparams["labels"] and hparams["baseline"] not in (None, *systems):
        raise ValueError(
            f"The baseline {hparams['baseline']} is not among the systems: "
            f"give --baseline one of {names}."
        )
    for name in hparams["inside"]:
        if systems.get(name, {"per_label": True}).get("per_label"):
            raise ValueError(
                f"There is no encoder of {name} to look inside: give --inside "
                f"some of {names}, but none that is trained per label."
            )
    frames = kind_of(hparams["factor_label"], hparams["label_kinds"]) == FRAMES
    if hparams["factors_of"] is not None and not (
        hparams["factor_segments"] or frames
    ):
        raise ValueError(
            f"{hparams['factor_label']} is no label of frames: give "
            f"--factor_label one of label_kinds, or --factor_segments."
        )
    label = hparams["abx_label"]
    if label and kind_of(label, hparams["label_kinds"]) != FRAMES:
        raise ValueError(f"--abx_label {label} is no label of frames.")
