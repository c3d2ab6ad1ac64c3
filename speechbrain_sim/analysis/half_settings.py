"""How halves are measured: what `--reading` changes."""

from typing import NamedTuple

from speechbrain_sim.analysis.intervals import check_controls
from speechbrain_sim.options import read_fields

#: kinds of probes: of the mean over frames, or of single frames, linear and with
#: a hidden layer; and the paper's, linear on frames that are pooled by attention
LINEAR, HIDDEN, PAPER = PROBES = "linear", "hidden layer", "paper"
#: ranges of settings
COUNTS = "recordings", "frame_rows", "test_rows", "passes", "hidden", "bins"
RULES = dict.fromkeys(COUNTS, ">= 2") | {"strengths": "not empty, >= 0"}
RULES |= {"seed": ">= 0", "hidden_passes": ">= 1", "epochs": ">= 0"}
RULES |= {"lr": "> 0", "probes": [*PROBES]}


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
    settings = read_fields("reading", given, Settings, RULES)
    if not settings.probes:
        raise ValueError(f"--reading: probes is empty: choose of {PROBES}.")
    if settings.epochs < (PAPER in settings.probes):
        raise ValueError(
            f"--reading: epochs is {settings.epochs}, which trains nothing: give "
            f"1 or more, or 0 without '{PAPER}' among probes to leave the text out."
        )
    check_controls(settings.controls, 2)
    return settings
