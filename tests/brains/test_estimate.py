"""What a run is expected to take, and what it takes."""

from types import SimpleNamespace

import pytest

from speechbrain_sim.brains import base as resumable
from speechbrain_sim.brains import estimate
from speechbrain_sim.brains.estimate import CHECKPOINTS, MEASURED, SKIPPED
from tests.conftest import make_brain, make_loader

FIRST = SKIPPED + MEASURED


class Clock:
    """Stands in for the module `time`: only who is told to takes time."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def slowed(self, function, seconds):
        def slow(*args, **options):
            self.now += seconds
            return function(*args, **options)

        return slow


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(estimate, "time", clock)
    return clock


def fit(brain, batches):
    brain.fit(brain.hparams.epoch_counter, make_loader(batches))


def test_a_step_is_what_a_step_takes(clock, tmp_path, caplog):
    brain = make_brain(tmp_path, epochs=2, channels=48, context_channels=48)
    brain.fit_batch = clock.slowed(brain.fit_batch, 0.02)
    with caplog.at_level("INFO"):
        fit(brain, batches=40)
    found = brain.estimate
    assert caplog.text.count("Expected from 15 steps") == 1
    assert found.step == pytest.approx(0.02)
    assert found.epoch == pytest.approx(40 * 0.02)
    # the step that begins the epoch is not timed
    assert found.left == pytest.approx((80 - FIRST - 1) * 0.02)
    assert 1e8 < found.memory < 1e11
    (newest, *_) = sorted((tmp_path / "save").glob("CKPT*"))[::-1]
    size = sum(path.stat().st_size for path in newest.iterdir())
    assert found.disk / CHECKPOINTS == pytest.approx(size, rel=0.2)


def test_short_epochs_are_timed_without_what_lies_between(clock, tmp_path):
    brain = make_brain(tmp_path, epochs=6)
    brain.fit_batch = clock.slowed(brain.fit_batch, 0.02)
    brain.end_epoch = clock.slowed(brain.end_epoch, 0.5)
    fit(brain, batches=5)
    assert brain.estimate.step == pytest.approx(0.02)


def test_a_run_of_a_few_steps_has_none(tmp_path, caplog):
    brain = make_brain(tmp_path)
    with caplog.at_level("INFO"):
        fit(brain, batches=FIRST)
    assert brain.estimate is None and "Expected" not in caplog.text


def test_a_full_disk_is_warned_of(tmp_path, caplog, monkeypatch):
    full = SimpleNamespace(free=1000)
    monkeypatch.setattr(resumable.shutil, "disk_usage", lambda folder: full)
    fit(make_brain(tmp_path), batches=FIRST + 1)
    assert "has only 0.00 GB of disk free" in caplog.text


def test_measuring_changes_no_weight(tmp_path, monkeypatch):
    logs = []
    for name in ("a", "b"):
        brain = make_brain(tmp_path / name)
        fit(brain, batches=FIRST + 2)
        logs.append((tmp_path / name / "train_log.txt").read_text())
        monkeypatch.setattr(estimate.Stopwatch, "lap", lambda self: None)
    assert logs[0] == logs[1]
