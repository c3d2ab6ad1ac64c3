"""Tests of bars and of what a log leaves out."""

import logging

import pytest

from speechbrain_sim.config import load_experiment
from speechbrain_sim.console import TALKATIVE, Bar


@pytest.fixture
def kept():
    """Restores what an option changes for the whole process."""
    off, loggers = Bar.off, [logging.getLogger(name) for name in TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.NOTSET)
    yield
    Bar.off = off
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


def show(**options):
    """Runs through a bar."""
    assert list(Bar([1, 2], "things", **options)) == [1, 2]


def test_an_option_turns_every_bar_off(kept, tiny_yaml, tmp_path, capsys):
    argv = [str(tiny_yaml), "--device", "cpu", "--output_folder"]
    load_experiment([*argv, str(tmp_path / "seen"), "--noprogressbar"])
    show()
    show(disable=None)
    assert "things" not in capsys.readouterr().err
    load_experiment([*argv, str(tmp_path / "unseen")])
    show(disable=True)
    assert "things" not in capsys.readouterr().err
    show()
    assert "things: 100%" in capsys.readouterr().err


def test_a_log_has_no_details_of_libraries(kept, tiny_yaml, tmp_path, caplog):
    caplog.set_level(logging.DEBUG)  # as SpeechBrain's log.txt
    names = "matplotlib.font_manager", "PIL.PngImagePlugin"
    argv = [str(tiny_yaml), "--device", "cpu"]
    load_experiment([*argv, "--output_folder", str(tmp_path)])
    for name in names:
        logging.getLogger(name).debug("a detail")
        logging.getLogger(name).warning("a warning")
    kept = [record.getMessage() for record in caplog.records]
    assert "a detail" not in kept and kept.count("a warning") == 2
