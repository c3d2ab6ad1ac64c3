"""Bottlenecks of several layers in one pass: batches, loop, resume, refusals."""

import functools
import json
import logging

import numpy as np
import pytest
import speechbrain as sb
import torch
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_sim.activations import ALL, MEAN, ActivationStore
from speechbrain_sim.bottlenecks.sae import VARIANTS, SparseAutoencoder
from speechbrain_sim.brains.base import epoch_line
from speechbrain_sim.brains.bottleneck import (
    BottleneckBrain,
    by_bottleneck,
    default_rate,
    make_bottlenecks,
    plan,
)
from speechbrain_sim.brains.checkpointer import (
    AtomicCheckpointer,
    RewindingTrainLogger,
)
from speechbrain_sim.brains.frames import FrameBatches
from speechbrain_sim.brains.schedules import LinearWarmup, WarmupAndDecay
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.models.format import load_parts, save_parts, sha256_of
from tests.conftest import same, weights

#: frames per utterance; of a layer of half the rate, about half of them
FRAMES = [7, 1, 12, 9, 2, 30, 11]
#: channels of the layers of the stores
CHANNELS = {"low": 4, "high": 6, "side": 6}
UNITS = {"low": 16, "high": 24, "side": 24}


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return GreedyEncoder(channels=4, context_channels=0).eval()


def make_store(folder, encoder, rows=ALL, seed=0, change=None):
    """A store of noise of three layers, two of them of half the rate."""
    rng = np.random.default_rng(seed)
    counts = {name: [-(-n // 2) for n in FRAMES] for name in CHANNELS}
    counts["low"] = FRAMES
    if rows == MEAN:
        counts = {name: [1] * len(FRAMES) for name in CHANNELS}
    values = [
        {
            name: rng.normal(3, 2, (counts[name][i], width)).astype("float32")
            for name, width in CHANNELS.items()
        }
        for i in range(len(FRAMES))
    ]
    for utterance in values if change else ():
        change(utterance)
    ids = [f"utterance{i}" for i in range(len(FRAMES))]
    store = ActivationStore.create(
        folder,
        {"rows": rows, "encoder": sha256_of(encoder)},
        {name: {"speaker": "a"} for name in ids},
        dict(zip(ids, ids, strict=True)),
        {name: ((80, 20.0), counts[name]) for name in CHANNELS},
        [(0, values[0])],
    )
    for position, utterance in enumerate(values[1:], 1):
        store.write(position, utterance)
    store.flush()
    store.finish()
    return ActivationStore.open(folder)


@pytest.fixture(scope="module")
def stores(encoder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores")
    seeds = {"train": 0, "valid": 1}
    return [make_store(folder / n, encoder, seed=s) for n, s in seeds.items()]


def make_brain(folder, planned, epochs=2, sae=(), steps=0, **changes):
    """A brain; with checkpoints, after so many steps, or without any."""
    folder.mkdir(parents=True, exist_ok=True)
    hparams = {
        "seed": 1,
        "planned": planned,
        "lr": 0.01,
        "batch_size": 8,
        "variant": "topk",
        "pooling": "frame",
        "normalisation": "standardise",
        "schedules": {"sparsity_scale": LinearWarmup(0.5)},
        "temporal_frames": 1,
        "lr_schedule": WarmupAndDecay(0.5, epochs),
        "max_grad_norm": 0.05,
        "epoch_counter": EpochCounter(epochs),
        "train_logger": RewindingTrainLogger(folder / "train_log.txt", 8),
        "output_folder": folder,
        **changes,
    }
    make = functools.partial(SparseAutoencoder, **dict(sae))
    dead_after = dict.fromkeys(CHANNELS, 20)
    modules = make_bottlenecks(planned, make, CHANNELS, dead_after)
    counter = {"epoch_counter": hparams["epoch_counter"]}
    kept = AtomicCheckpointer(folder / "save", counter) if steps else None
    options = {"device": "cpu", "noprogressbar": True}
    options["ckpt_interval_steps"] = steps
    return BottleneckBrain(modules, torch.optim.Adam, hparams, options, kept)


def train(brain, stores, encoder):
    save_parts(brain.hparams.output_folder, {"encoder": encoder})
    stores = dict(zip(("train", "valid"), stores, strict=True))
    brain.fit_stores(stores, sha256_of(encoder))
    return brain


def plan_of(*layers, k=(2,), seeds=(1,)):
    units = {layer: UNITS[layer] for layer in layers}
    return plan(units, list(k), None, list(seeds))


# batches --------------------------------------------------------------------


def test_every_row_of_every_layer_comes_once_in_an_epoch(stores):
    batches = FrameBatches(stores[0], CHANNELS, 8, seed=1)
    orders = []
    for batches.epoch in (1, 2):
        steps = list(batches)
        assert len(steps) == len(batches) == 9  # of 72 rows of "low"
        for name, rows in batches.rows.items():
            parts = [step[name] for step in steps if name in step]
            sizes = [len(part.x) for part in parts]
            assert max(sizes) <= 8 and max(sizes) - min(sizes) <= 1
            x = torch.cat([part.x for part in parts])
            assert torch.equal(x.sort(0).values, rows[:].sort(0).values)
            assert not torch.equal(x, rows[:])
            shares = [part.share for part in parts]
            assert shares == [(i + 1) / len(parts) for i in range(len(parts))]
        gaps = np.diff([i for i, step in enumerate(steps) if "high" in step])
        assert set(gaps) == {1, 2}  # evenly spread
        orders.append(torch.cat([step["low"].x for step in steps]))
    assert not torch.equal(*orders)
    batches.epoch, batches.done = 1, 4
    torch.testing.assert_close(
        torch.cat([step["low"].x for step in batches]), orders[0][-40:]
    )


def test_layers_of_one_rate_have_the_same_frames(stores):
    batches = FrameBatches(stores[0], ["high", "side"], 8, seed=1)
    rows = {name: stores[0][name][:] for name in ("high", "side")}
    for step in batches:
        places = [
            [(rows[n] == x).all(1).nonzero().item() for x in part.x]
            for n, part in step.items()
        ]
        assert places[0] == places[1]


@pytest.mark.parametrize("ahead", [1, 3])
def test_what_follows_is_a_later_frame_of_the_utterance(stores, ahead):
    whole = stores[0]["low"][:]
    expected, first = [], 0
    for count in FRAMES:
        for at in range(first, first + count - ahead):
            expected.append((whole[at].tolist(), whole[at + ahead].tolist()))
        first += count
    found = []
    for step in FrameBatches(stores[0], ["low"], 8, following=ahead, seed=1):
        x, following, *_ = step["low"]
        found += zip(x.tolist(), following.tolist(), strict=True)
    assert sorted(found) == sorted(expected)
    in_order = FrameBatches(stores[0], ["low"], 8, following=ahead)
    x = torch.cat([step["low"].x for step in in_order])
    assert x.tolist() == [x for x, _ in expected]


# the loop -------------------------------------------------------------------


def test_trained_together_equals_trained_alone(encoder, stores, tmp_path):
    """Bit for bit: layers of two rates, sparsities, seeds; all clipped."""
    planned = plan_of("low", "high", k=[2, 4], seeds=[1, 2])
    together = train(make_brain(tmp_path / "all", planned), stores, encoder)
    states = weights(together)
    for one in (planned[0], planned[3], planned[-1]):
        brain = make_brain(tmp_path / one.name, [one])
        before = weights(brain)[one.key]
        state = weights(train(brain, stores, encoder))[one.key]
        assert same(state, states[one.key])
        moved = state["decoder.weight"] - before["decoder.weight"]
        assert moved.abs().max() > 1e-3
        optimizers = [
            b.optimizers_dict[one.key].state_dict()["state"]
            for b in (brain, together)
        ]
        assert same(*optimizers)
    inits = [states[p.key]["encoder.weight"] for p in planned[:4]]
    assert not any(same(inits[0], other) for other in inits[1:])


def stop_at(brain, place, steps):
    """Lists the steps, (epoch, step), of which one is the last."""
    learn = brain.learn

    def stopped(batch, should_step):
        steps.append((brain.hparams.epoch_counter.current, brain.step))
        if steps[-1] == place:
            raise KeyboardInterrupt
        return learn(batch, should_step)

    brain.learn = stopped


def test_a_run_that_is_stopped_in_an_epoch_ends_the_same(
    encoder, stores, tmp_path
):
    planned = plan_of("low", "high", k=[2, 4])
    whole = train(make_brain(tmp_path / "whole", planned), stores, encoder)
    for stop in ((1, 6), (2, 4)):  # of 9 steps in each epoch
        brain = make_brain(tmp_path / "killed", planned, steps=2)
        steps = []
        stop_at(brain, stop, steps)
        with pytest.raises(KeyboardInterrupt):
            train(brain, stores, encoder)
    assert steps[0] == (1, 5)  # resumed in the first epoch
    again = make_brain(tmp_path / "killed", planned, steps=2)
    stop_at(again, None, steps := [])
    train(again, stores, encoder)
    assert steps[0] == (2, 3)
    assert same(weights(again), weights(whole))
    folders = tmp_path / "whole", tmp_path / "killed"
    logs = [(f / "train_log.txt").read_text() for f in folders]
    assert logs[0] == logs[1] and logs[0].count("epoch: ") == 2
    done = make_brain(tmp_path / "killed", planned, steps=2)
    done.learn = None  # nothing is left to do
    assert same(weights(train(done, stores, encoder)), weights(whole))


def test_the_log_tells_what_a_loop_measures(encoder, stores, tmp_path):
    planned = plan_of("low", "high", k=[2])
    brain = make_brain(tmp_path, planned, epochs=3)
    train(brain, stores, encoder)
    log = (tmp_path / "train_log.txt").read_text().splitlines()
    last = log[-1].split(" - valid ")[1]
    last = dict(part.split(": ") for part in last.split(", valid "))
    for one in planned:
        sae, squares, total, active = brain.unwrapped[one.key], 0.0, 0.0, 0
        rows = stores[1][one.layer][:]
        for row in rows:
            codes, decoded = sae.eval()(row)
            squares += ((row - decoded) / sae.std).square().sum().item()
            centred = (row - rows.mean(0)) / sae.std
            total += centred.square().sum().item()
            active += (codes > 0).sum().item()
        # batches differ by a row, the variance by (n - 1) / n
        explained = float(last[f"{one.key}_explained"])
        assert explained == pytest.approx(1 - squares / total, abs=0.02)
        assert float(last[f"{one.key}_l0"]) == pytest.approx(
            active / len(rows), abs=0.02
        )
        dead = sae.dead().float().mean().item()
        assert float(last[f"{one.key}_dead"]) == pytest.approx(dead)
    config = json.loads((tmp_path / "config.json").read_text())
    about = config["parts"]["bottleneck_low.sae"]
    assert about["layer"] == "low" and about["pooling"] == "frame"
    assert about["encoder"] == sha256_of(encoder)
    assert about["training"]["epochs"] == 3
    explained = about["training"]["valid"]["explained"]
    assert explained == pytest.approx(float(last["low_sae_explained"]), 1e-6)
    parts, _ = load_parts(tmp_path, ["bottleneck_low.sae"])
    state = parts["bottleneck_low.sae"].state_dict()
    assert same(state, dict(brain.unwrapped["low_sae"].state_dict()))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_is_trained_and_resumed(
    encoder, stores, tmp_path, variant
):
    own = {"variant": variant, "sae": {"variant": variant}, "epochs": 1}
    whole = make_brain(tmp_path / "whole", plan_of("low"), **own)
    train(whole, stores, encoder)
    # each term is logged of both parts
    log = (tmp_path / "whole/train_log.txt").read_text()
    sides = [side.replace(" valid ", " train ") for side in log.split(" - ")]
    names = [{part.split(":")[0] for part in s.split(", ")} for s in sides[1:]]
    assert {n.split()[-1] for n in names[0]} == {
        n.split()[-1] for n in names[1]
    }
    brain = make_brain(tmp_path / "killed", plan_of("low"), steps=2, **own)
    stop_at(brain, (1, 6), [])
    with pytest.raises(KeyboardInterrupt):
        train(brain, stores, encoder)
    again = make_brain(tmp_path / "killed", plan_of("low"), steps=2, **own)
    stop_at(again, None, steps := [])
    assert same(weights(train(again, stores, encoder)), weights(whole))
    assert steps[0] == (1, 5)


def test_more_epochs_explain_more_than_noise(encoder, tmp_path):
    """Planted: of four directions, one at a time is in each frame."""
    rng = np.random.default_rng(0)
    atoms = rng.normal(size=(4, 4))

    def planted(utterance):
        for name in utterance:
            chosen = rng.integers(0, 4, len(utterance[name]))
            width = utterance[name].shape[1]
            utterance[name] = np.resize(atoms, (4, width))[chosen]

    pair = [
        make_store(tmp_path / n, encoder, change=planted) for n in ("a", "b")
    ]
    free = {"lr": 0.03, "max_grad_norm": float("inf")}
    brain = make_brain(tmp_path / "run", plan_of("low"), epochs=8, **free)
    train(brain, pair, encoder)
    assert brain.means(sb.Stage.VALID)["low_sae_explained"] > 0.9


def test_rates_of_each_width(encoder, stores, tmp_path):
    assert default_rate(2**14) == 2e-4
    assert default_rate(2**12) == pytest.approx(4e-4)
    rates = {"lr": None, "lr_schedule": None}
    brain = make_brain(tmp_path, plan_of("low", "high"), epochs=1, **rates)
    train(brain, stores, encoder)
    for name, optimizer in brain.optimizers_dict.items():
        units = UNITS[name.removesuffix("_sae")]
        assert optimizer.param_groups[0]["lr"] == default_rate(units)


def test_the_penalty_warms_up_with_the_rows_of_its_layer(
    encoder, stores, tmp_path
):
    brain, scales = make_brain(tmp_path, plan_of("high"), epochs=1), []
    sae = brain.unwrapped["high_sae"]
    loss = sae.loss
    sae.loss = lambda *rows: scales.append(sae.sparsity_scale) or loss(*rows)
    train(brain, stores, encoder)
    assert scales[:5] == pytest.approx([0.4, 0.8, 1.0, 1.0, 1.0])


# what cannot be learnt from -------------------------------------------------


def bad_store(folder, encoder, kind):
    def change(utterance):
        x = utterance["low"]
        if kind == "constant":
            x[:] = 5.0
        elif kind == "nan" and len(x) == 30:
            x[3, 2] = np.nan

    rows = MEAN if kind == "mean" else ALL
    return make_store(folder, encoder, rows, change=change)


@pytest.mark.parametrize(
    "kind, message",
    [
        ("constant", "low: None of the layer's 4 channels varies"),
        ("nan", "NaN or infinity for low, first in utterance5: delete"),
        ("mean", "keeps mean rows; --pooling frame needs all: encode"),
        ("encoder", "is of another encoder .*, not 000.*: encode"),
        ("layer", "has no other, only low, high, side: encode"),
    ],
)
def test_refused_before_the_first_step(
    encoder, stores, tmp_path, kind, message
):
    store = bad_store(tmp_path / "store", encoder, kind)
    digest = "000" if kind == "encoder" else sha256_of(encoder)
    brain = make_brain(tmp_path / "run", plan_of("low"))
    brain.layers = ["other"] if kind == "layer" else brain.layers
    brain.learn = None
    with pytest.raises(ValueError, match=message):
        brain.fit_stores({"train": store, "valid": store}, digest)
    if kind != "constant":  # which is nothing to learn from, but to test on
        parts = dict(zip(("train", "valid"), stores, strict=True))
        with pytest.raises(ValueError, match=message):
            brain.fit_stores({**parts, "test": store}, digest)


def test_impossible_sparsities():
    with pytest.raises(ValueError, match="--k 64 means 64 active units of the"):
        plan({"module3": 32}, [8, 64], None, [1])
    with pytest.raises(ValueError, match="--sparsity 99.9 means 0 active"):
        plan({"module3": 32}, [8], [50, 99.9], [1])
    with pytest.raises(ValueError, match="each once"):
        plan({"module3": 32}, [8], [90, 90.1], [1])


def test_a_far_mean_is_warned_of(encoder, stores, tmp_path, caplog):
    def far(utterance):
        utterance["low"] += 100

    store = make_store(tmp_path / "store", encoder, change=far)
    units = {"normalisation": "none"}
    brain = make_brain(tmp_path / "run", plan_of("low"), sae=units, **units)
    with caplog.at_level(logging.WARNING):
        brain.set_units("low", store)
    assert "mean of low is" in caplog.text and "standardise" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        brain.set_units("high", store)
    assert not caplog.text


def test_dead_codes_are_warned_of_and_refused_at_the_end(
    encoder, stores, tmp_path, caplog
):
    brain = make_brain(tmp_path, plan_of("low", k=[2, 4]), epochs=1)
    with torch.no_grad():
        brain.unwrapped["low_sae_k4"].encoder.bias.fill_(-1e6)
    with caplog.at_level(logging.WARNING):
        train(brain, stores, encoder)
    assert "All units of low.sae_k4 are dead." in caplog.text
    with caplog.at_level(logging.WARNING):
        brain.check_alive()  # one is left to report of
    assert "low.sae_k4 are dead after the last epoch: lower" in caplog.text
    brain.unwrapped["low_sae"].idle.fill_(1000)
    with pytest.raises(ValueError, match="low.sae_k4 are dead .*: lower --lr"):
        brain.check_alive()


def test_many_bottlenecks_are_a_list_below_the_epoch():
    means = {f"m{i}_l0": 2.0 for i in range(5)}
    first, *others = epoch_line(5, means, None).split("\n")
    assert first == "Epoch 5, train:"
    assert others == [f"m{i} l0 2" for i in range(5)]


def test_names_of_bottlenecks_do_not_mix():
    means = {"m_sae_l0": 1, "m_sae_k2_l0": 2, "m_sae_k2_s2_l0": 3}
    split = by_bottleneck(means, ["m_sae", "m_sae_k2", "m_sae_k2_s2"])
    assert [x["l0"] for x in split.values()] == [1, 2, 3]
