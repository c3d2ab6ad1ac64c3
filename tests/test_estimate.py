"""What a run is expected to take, and what it takes."""

import time

import pytest

from speechbrain_sim.brains import resumable
from speechbrain_sim.brains.estimate import CHECKPOINTS, MEASURED, SKIPPED
from tests.conftest import make_brain, make_loader

FIRST = SKIPPED + MEASURED


def fit(brain, batches, seconds=0.02):
    """Trains with steps that take some time; returns how long it took."""
    plain = brain.fit_batch

    def slow(batch):
        time.sleep(seconds)
        return plain(batch)

    brain.fit_batch = slow
    start = time.perf_counter()
    brain.fit(brain.hparams.epoch_counter, make_loader(batches))
    return time.perf_counter() - start


def test_the_estimate_is_plausible(tmp_path, caplog):
    brain = make_brain(tmp_path, epochs=2, channels=48, context_channels=48)
    with caplog.at_level("INFO"):
        took = fit(brain, batches=40)
    found = brain.estimate
    assert caplog.text.count("Expected from 15 steps") == 1
    assert 0.02 < found.step < took / 80 * 3
    assert found.epoch == pytest.approx(40 * found.step)
    # the step that begins the epoch is not timed
    assert found.left == pytest.approx((80 - FIRST - 1) * found.step)
    assert 1e8 < found.memory < 1e11
    (newest, *_) = sorted((tmp_path / "save").glob("CKPT*"))[::-1]
    size = sum(path.stat().st_size for path in newest.iterdir())
    assert found.disk / CHECKPOINTS == pytest.approx(size, rel=0.2)


def test_short_epochs_are_timed_without_what_lies_between(tmp_path):
    brain = make_brain(tmp_path, epochs=6)
    validate = brain.end_epoch

    def slow(*args, **options):
        time.sleep(0.5)
        return validate(*args, **options)

    brain.end_epoch = slow
    fit(brain, batches=5)
    assert 0.02 < brain.estimate.step < 0.1


def test_a_run_of_a_few_steps_has_none(tmp_path, caplog):
    brain = make_brain(tmp_path)
    with caplog.at_level("INFO"):
        fit(brain, batches=FIRST, seconds=0)
    assert brain.estimate is None and "Expected" not in caplog.text


def test_a_full_disk_is_warned_of(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(resumable, "free_disk", lambda folder: 1000)
    fit(make_brain(tmp_path), batches=FIRST + 1, seconds=0)
    assert "Only 0.00 GB of disk are free" in caplog.text


def test_measuring_changes_no_weight(tmp_path, monkeypatch):
    logs = []
    for name in ("a", "b"):
        brain = make_brain(tmp_path / name)
        fit(brain, batches=FIRST + 2, seconds=0)
        logs.append((tmp_path / name / "train_log.txt").read_text())
        monkeypatch.setattr(resumable.Stopwatch, "lap", lambda self: None)
    assert logs[0] == logs[1]
