"""Checkpoints that survive kills and damage."""

import json

import pytest
import torch

from speechbrain_sim.brains.checkpointer import (
    HASHES,
    INCOMPLETE,
    AtomicCheckpointer,
    Averages,
    RewindingTrainLogger,
)
from speechbrain_sim.files import sha256, write_json


class Killed(BaseException):
    """Ends a saver as a kill would: nobody catches it."""


def checkpointer_in(folder, **objects):
    model = torch.nn.Linear(2, 2)
    return AtomicCheckpointer(folder, {"model": model, **objects}), model


def fill(model, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)


def value_of(model):
    values = torch.cat([p.flatten() for p in model.parameters()]).unique()
    return values.item()


def two_checkpoints(folder):
    """Saves 1.0, then 2.0; returns checkpointer, model and the newest."""
    checkpointer, model = checkpointer_in(folder)
    for value in (1.0, 2.0):
        fill(model, value)
        newest = checkpointer.save_checkpoint()
    return checkpointer, model, newest


# atomic saving --------------------------------------------------------------


def test_a_checkpoint_has_its_name_hashes_and_values(tmp_path):
    checkpointer, model, newest = two_checkpoints(tmp_path)
    assert newest.path.name.startswith("CKPT+")
    assert newest.paramfiles["model"].is_file()
    hashes = json.loads((newest.path / HASHES).read_text())
    assert set(hashes) == {"CKPT.yaml", "model.ckpt"}
    assert hashes["model.ckpt"] == sha256(newest.path / "model.ckpt")
    fill(model, 0.0)
    assert checkpointer.recover_if_possible().path == newest.path
    assert value_of(model) == 2.0


@pytest.mark.parametrize("moment", ["first saver", "last saver", "hashing"])
def test_killed_while_saving(tmp_path, monkeypatch, moment):
    checkpointer, model, newest = two_checkpoints(tmp_path)
    former = set(tmp_path.iterdir())
    fill(model, 3.0)

    def kill(*args):
        raise Killed

    if moment == "hashing":
        monkeypatch.setattr("speechbrain_sim.brains.checkpointer.sha256", kill)
    else:
        checkpointer.add_recoverable("other", object(), kill, kill)
        if moment == "first saver":
            checkpointer.recoverables = dict(
                reversed(checkpointer.recoverables.items())
            )
    with pytest.raises(Killed):
        checkpointer.save_checkpoint()
    monkeypatch.undo()
    (leftover,) = set(tmp_path.iterdir()) - former
    assert leftover.name.startswith(INCOMPLETE)
    leftover = leftover.rename(
        tmp_path / f"{INCOMPLETE}CKPT+2020-01-01+00-00-00+00"
    )

    again, model = checkpointer_in(tmp_path)  # as after a restart
    assert again.recover_if_possible().path == newest.path
    assert value_of(model) == 2.0
    again.save_checkpoint()
    assert not leftover.exists()
    assert len(list(tmp_path.iterdir())) == 3


def test_a_name_is_taken_over_whole(tmp_path):
    checkpointer, model = checkpointer_in(tmp_path)
    for value in (1.0, 2.0):
        fill(model, value)
        saved = checkpointer.save_checkpoint(name="best")
    assert [path.name for path in tmp_path.iterdir()] == ["CKPT+best"]
    assert saved.path == tmp_path / "CKPT+best"
    fill(model, 0.0)
    checkpointer.recover_if_possible()
    assert value_of(model) == 2.0


def truncate(folder):
    path = folder / "model.ckpt"
    path.write_bytes(path.read_bytes()[:-100])


def flip(folder):
    content = bytearray((folder / "model.ckpt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "model.ckpt").write_bytes(content)


DAMAGES = {
    "truncated": (truncate, "model.ckpt does not match its hash"),
    "one bit": (flip, "model.ckpt does not match its hash"),
    "a file less": (
        lambda folder: (folder / "model.ckpt").unlink(),
        "model.ckpt is missing",
    ),
    "no hashes": (
        lambda folder: (folder / HASHES).unlink(),
        f"{HASHES} is missing",
    ),
    "hashes cut": (
        lambda folder: (folder / HASHES).write_text('{"model'),
        f"{HASHES} is missing or unreadable",
    ),
    "meta emptied": (
        lambda folder: (folder / "CKPT.yaml").write_text(""),
        "CKPT.yaml does not match its hash",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_skipped(tmp_path, caplog, damage):
    checkpointer, model, newest = two_checkpoints(tmp_path)
    fill(model, 0.0)
    do, reason = DAMAGES[damage]
    do(newest.path)
    with caplog.at_level("WARNING"):
        recovered = checkpointer.recover_if_possible()
    assert recovered.path != newest.path and value_of(model) == 1.0
    assert str(newest.path) in caplog.text and reason in caplog.text


def test_all_damaged_is_refused(tmp_path):
    checkpointer, model, newest = two_checkpoints(tmp_path)
    fill(model, 0.0)
    for folder in tmp_path.iterdir():
        truncate(folder)
    with pytest.raises(ValueError, match="None of the checkpoints in .* CKPT"):
        checkpointer.recover_if_possible()
    assert value_of(model) == 0.0 and newest.path.exists()


def test_only_the_last_is_kept(tmp_path):
    checkpointer, model, newest = two_checkpoints(tmp_path)
    checkpointer.save_and_keep_only(num_to_keep=1, importance_keys=[])
    (kept,) = tmp_path.iterdir()
    assert kept != newest.path


# what else a checkpoint holds -----------------------------------------------


def test_averages_survive_exactly(tmp_path):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(50, generator=generator, dtype=torch.float64).tolist()
    whole, first, second = Averages(), Averages(), Averages()
    for value in values:
        whole.update({"loss": value})
    for value in values[:20]:
        first.update({"loss": value})
    first.save(tmp_path / "averages.ckpt")
    second.load(tmp_path / "averages.ckpt", False)
    for value in values[20:]:
        second.update({"loss": value})
    assert second.means() == whole.means()
    second.clear()
    assert second.means() == {}


def test_a_number_that_is_not_always_there_has_its_own_mean(tmp_path):
    averages, resumed = Averages(), Averages()
    averages.update({"loss": 1.0, "kl": 5.0})
    averages.update({"loss": 2.0})
    averages.save(tmp_path / "averages.ckpt")
    resumed.load(tmp_path / "averages.ckpt", False)
    resumed.update({"loss": 6.0, "kl": 7.0})
    assert resumed.means() == {"loss": 3.0, "kl": 6.0}


def test_the_log_is_rewound_with_its_checkpoint(tmp_path):
    log = tmp_path / "train_log.txt"
    logger = RewindingTrainLogger(log, 4)
    checkpointer, _ = checkpointer_in(tmp_path / "save", train_logger=logger)
    for epoch in (1, 2):
        logger.log_stats({"epoch": epoch}, {"loss": 1.5})
    kept = log.read_text()
    checkpointer.save_checkpoint()
    for epoch in (3, 4):
        logger.log_stats({"epoch": epoch}, {"loss": 1.5})
    assert log.read_text() != kept
    checkpointer.recover_if_possible()
    assert log.read_text() == kept
    logger.log_stats({"epoch": 3}, {"loss": 2.5})
    assert log.read_text().splitlines()[2].startswith("epoch: 3")
    logger.rewind()
    assert log.read_text() == ""


def test_a_log_that_is_gone_does_not_matter(tmp_path):
    logger = RewindingTrainLogger(tmp_path / "train_log.txt")
    checkpointer, _ = checkpointer_in(tmp_path / "save", train_logger=logger)
    checkpointer.save_checkpoint()
    checkpointer.recover_if_possible()
    assert not (tmp_path / "train_log.txt").exists()


def test_json_is_written_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
