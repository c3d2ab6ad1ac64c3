"""What a run shows in the terminal and keeps in its log."""

import logging

import tqdm

#: libraries that log each font and each chunk of a picture
TALKATIVE = "matplotlib", "PIL"


class Bar(tqdm.tqdm):
    """A progress bar, not shown where `Bar.off` is set, as by a recipe's option.

    Arguments
    ---------
    *args, **options :
        See `tqdm.tqdm`.
    disable : bool, optional
        Whether it is not shown; None: only in a terminal.
    """

    off = False

    def __init__(self, *args, disable=False, **options):
        super().__init__(*args, disable=Bar.off or disable, **options)


def set_console(noprogressbar):
    """Turns bars off, or on, and leaves libraries' details out of the log."""
    Bar.off = noprogressbar
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.INFO)
