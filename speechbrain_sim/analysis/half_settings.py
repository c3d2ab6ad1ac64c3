"""How halves are measured: what `--reading` changes."""

from typing import NamedTuple

from speechbrain_sim.analysis.intervals import check_controls

#: kinds of probes: of the mean over frames, or of single frames, linear and with
#: a hidden layer; and the paper's, linear on frames that are pooled by attention
LINEAR, HIDDEN, PAPER = PROBES = "linear", "hidden layer", "paper"
#: settings that are 2 at least
COUNTS = "recordings", "frame_rows", "test_rows", "passes", "hidden", "bins"


class Settings(NamedTuple):
    """How halves are measured.

    Arguments
    ---------
    seed : int
        Of all draws.
    recordings : int
        Most recordings of each part.
    probes : tuple of str
        Of `PROBES`.
    frame_rows, test_rows : int
        Most frames, drawn, that probes of frames are trained and tested on.
    strengths : tuple of float
        Of L2, to choose from on the validation part.
    passes : int
        Most passes of the solver of linear probes.
    hidden, hidden_passes : int
        Units of a hidden layer; most passes of its solver, whose loss falls ever
        on where labels are shuffled.
    controls : int
        Probes with shuffled labels.
    epochs, lr : int, float
        Of the probes of sequences: CTC, and `PAPER`.
    bins : int
        Quantile bins of a number.
    draws : bool
        Whether draws of codes are read beside means, with noise as in training.
    device : str
        Where probes are solved.
    """

    seed: int = 1
    recordings: int = 4_000
    probes: tuple = (LINEAR, HIDDEN)
    frame_rows: int = 10_000
    test_rows: int = 20_000
    strengths: tuple = (1e-1, 1e-2, 1e-3)
    passes: int = 300
    hidden: int = 32
    hidden_passes: int = 60
    controls: int = 10
    epochs: int = 15
    lr: float = 1e-2
    bins: int = 4
    draws: bool = True
    device: str = "cpu"


def read_settings(given):
    """Checks what differs from `Settings`, a dict; returns them.

    Raises a ValueError that names what there is instead.
    """
    for name in given.keys() - Settings._fields:
        known = ", ".join(Settings._fields)
        raise ValueError(f"--reading has no setting '{name}': {known}.")
    kinds = {tuple: (list, tuple), float: (int, float)}
    for name, value in given.items():
        like = type(Settings._field_defaults[name])
        if not isinstance(value, kinds.get(like, like)):
            what = {tuple: "a list", int: "a whole number"}
            what = what.get(like, f"a {like.__name__}")
            raise ValueError(f"--reading: {name} is {value!r}, not {what}.")
    settings = Settings(**given)
    for kind in {*settings.probes} - {*PROBES}:
        raise ValueError(f"--reading: probes has '{kind}', not of {PROBES}.")
    if not settings.probes:
        raise ValueError(f"--reading: probes is empty, choose of {PROBES}.")
    for name in COUNTS:
        if not getattr(settings, name) >= 2:
            value = getattr(settings, name)
            raise ValueError(f"--reading: {name} is {value}, not 2 or more.")
    if not settings.strengths or min(settings.strengths) < 0:
        raise ValueError("--reading: strengths is a list of 0 or more each.")
    if settings.epochs < (PAPER in settings.probes):
        raise ValueError(
            f"--reading: epochs is {settings.epochs}, which trains nothing: give "
            f"1 or more, or 0 without '{PAPER}' among probes to leave the text out."
        )
    check_controls(settings.controls, 2)
    return settings
