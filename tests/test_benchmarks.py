"""What the bench says is true of what it measures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench, decoded, levers, probes
from benchmarks.floor import step_flops
from benchmarks.measure import (
    SavedTensors,
    in_turn,
    peak_memory,
    quotient,
    row,
)
from benchmarks.reference import train_step
from benchmarks.systems import TRAIN, Ours, Plain, make_batch, must_agree
from tests.conftest import tone

ROOT = Path(__file__).resolve().parent.parent
SMALL = {"channels": 16, "context_channels": 8}
PREDICTOR = "smooth_info_nce.predictor.weight"


def gradients_of_ours(ours, monkeypatch):
    """One step without moving a weight: gradient of each parameter."""
    kept = {}

    def keep(name):
        for key, weight in ours.brain.modules[name].named_parameters():
            kept[name, key], weight.grad = weight.grad, None

    monkeypatch.setattr(ours.brain, "step_module", keep)
    ours()
    return kept


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("reduction", ["time", "channel"])
@pytest.mark.parametrize("model", ["sim", "gim"])
def test_the_plain_way_gives_the_same_losses_and_gradients(
    model, reduction, batch_norm, monkeypatch
):
    changes = {"batch_norm": batch_norm, "kl_reduction": reduction}
    ours = Ours(model, make_batch(2, 10240), **SMALL, **changes)
    plain = Plain(ours)
    mine = gradients_of_ours(ours, monkeypatch)
    losses = plain.model(plain.wavs, lambda n: ours.brain.key(n, TRAIN))
    sum(losses.values()).backward()
    plain.last = {name: loss.item() for name, loss in losses.items()}
    must_agree(ours, plain, tolerance=1e-5)
    theirs = {}
    for name, layer in plain.model.layers.items():
        inner = "gru." if name == "context" else ""
        for key, weight in layer.named_parameters():
            theirs[name, f"layers.{name}.{inner}{key}"] = weight.grad
        scorers = [w.weight.grad for w in plain.model.losses[name].weights]
        theirs[name, "smooth_info_nce.predictor.weight"] = torch.cat(scorers)
    assert mine.keys() == theirs.keys()
    for key, gradient in mine.items():
        error = (gradient - theirs[key]).norm()
        # a bias before a batch norm has no gradient but rounding, which
        # depends on the number of threads
        cancels = batch_norm and "convs" in key[1] and key[1].endswith("bias")
        least = (1e-1 if cancels else 1e-2) * theirs[key[0], PREDICTOR].norm()
        scale = max(theirs[key].norm(), least)
        assert error <= 1e-3 * scale, key


def test_steps_that_differ_do_not_agree():
    ours = Ours("sim", make_batch(2, 10240), **SMALL)
    plain = Plain(ours)
    ours()
    plain()
    must_agree(ours, plain)
    with torch.no_grad():
        plain.model.losses["module2"].weights[3].weight.mul_(1.5)
    ours()
    plain()
    with pytest.raises(AssertionError, match="module2"):
        must_agree(ours, plain)


@pytest.mark.parametrize("model", ["sim", "gim"])
def test_floor_is_what_a_counter_counts(model):
    shape = (3, 10240)
    ours = Ours(model, make_batch(*shape), channels=24, context_channels=12)
    plain = Plain(ours)
    counter = FlopCounterMode(display=False)
    with counter:
        train_step(
            plain.model,
            plain.optimizer,
            plain.wavs,
            lambda name: ours.brain.key(name, TRAIN),
        )
    floor = step_flops(ours.model.encoder, ours.model.modules, *shape)
    counts = counter.get_flop_counts()["Global"]
    # the plain way scores the positives without a product: one per negatives
    positives = counts[torch.ops.aten.bmm] / 10
    counted = counter.get_total_flops() + positives
    assert counted == pytest.approx(floor, rel=1e-3)


def test_floor_of_the_paper():
    ours = Ours("sim", None)
    flops = step_flops(ours.model.encoder, ours.model.modules, 8, 10240)
    assert round(flops / 1e9) == 133  # system description: 133 GFLOP


def test_peak_memory_sees_what_was_freed():
    def use(mebibytes):
        torch.ones(mebibytes * 2**18).sum()

    use(8)
    small, large = (peak_memory(lambda m=m: use(m)) for m in (64, 256))
    assert small / 2**20 == pytest.approx(64, rel=0.2)
    assert large / 2**20 == pytest.approx(256, rel=0.1)


def test_saved_tensors_count_a_storage_once():
    x = torch.ones(1000, requires_grad=True)
    with SavedTensors([x]) as saved:
        y = x.exp()  # saves y
        z = y * y  # saves y twice more
    assert saved.now == saved.peak == 4000
    z.sum().backward()
    assert saved.now == 0


def test_turns_and_quotients(monkeypatch):
    now, order = [0.0], []

    def takes(name, seconds):
        def function():
            order.append(name)
            now[0] += seconds

        return function

    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr("time.process_time", lambda: 2 * now[0])
    timings = in_turn({"one": takes("one", 2), "two": takes("two", 6)}, 3)
    assert order == ["one", "two"] * 4  # a round to warm up
    assert timings["one"].wall == [2] * 3 and timings["two"].cpu == [12] * 3
    assert quotient(timings, "two", "one") == 3


@pytest.mark.parametrize(
    "ratio, target, met",
    [
        (2.0, "≥ 2.0", True),
        (1.9, "≥ 2.0", False),
        (0.5, "≤ 0.5", True),
        (0.6, "≤ 0.5", False),
        (1.0, "", None),
    ],
)
def test_a_row_is_met_or_not(ratio, target, met):
    assert row("f", "x", "s", 1.0, 2.0, ratio, target)["met"] is met


def test_rows_that_miss_their_target_are_named():
    rows = [
        row("family", "one", "s", 1.0, 2.0, 1.9, "≥ 2.0"),
        row("family", "two", "s", 1.0, 2.0, 2.1, "≥ 2.0"),
    ]
    assert bench.missed(rows) == "missed: one: 1.90, target ≥ 2.0\n"
    assert bench.summary(rows).splitlines()[-1] == "| family | 1.9 – 2.1 |"


def test_the_docs_show_the_last_published_bench():
    published = json.loads((ROOT / "docs/bench.json").read_text())
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    start, end = bench.MARKS
    shown = page.split(start)[1].split(end)[0]
    assert shown.strip() == bench.markdown(published, bench.summary).strip()
    full = (ROOT / "docs/bench.md").read_text(encoding="utf-8")
    assert full == bench.markdown(published)
    for line in published["rows"]:
        assert set(line) >= {
            "name",
            "ours",
            "reference",
            "ratio",
            "target",
            "met",
        }


def test_decoded_speech_is_between_silence_and_the_recordings():
    rng, recordings = np.random.default_rng(0), []
    for _ in range(6):
        wav = np.concatenate([tone(label, 1600, rng) for label in (0, 1)])
        target = torch.arange(18) // 9  # of frames
        recordings.append((torch.from_numpy(wav), target))
    probe = decoded.fit_probe(recordings)

    class Encoder:
        """The recordings themselves, as latents."""

        def __call__(self, wavs, lengths, layers):
            return {"low": type("", (), {"mean": wavs[..., None]})}

    decoders = [
        ("same", "low", lambda z, samples: z[..., 0]),
        ("silent", "low", lambda z, samples: 0 * z[..., 0]),
    ]
    rows = decoded.measure(Encoder(), decoders, recordings, probe)
    assert [row.pop("") for row in rows] == [
        *("recordings", "Griffin-Lim", "same", "silent")
    ]
    numbers = np.array([[float(x) for x in row.values()] for row in rows])
    assert numbers[0].tolist() == numbers[2].tolist()
    assert numbers[0, :3].tolist() == [100, 100, 0] and numbers[0, 4] == 100
    assert numbers[3, 0] == 0 and numbers[3, 2] > 5 > numbers[1, 2]
    assert numbers[3, 3] < 60 < 90 < numbers[1, 3]


@pytest.mark.parametrize(
    "settings",
    [
        {"bias": False, "hidden": 0},
        {"bias": True, "hidden": 8},
        {"bias": True, "seeds": [1]},  # the paper's protocol
    ],
)
def test_only_solved_linear_probes_are_compared(settings, tmp_path):
    text = json.dumps({"settings": settings, "layers": {}})
    (tmp_path / "probe_x.json").write_text(text)
    with pytest.raises(ValueError, match="no solved linear probes"):
        next(probes.compare(tmp_path, "x"))


def test_levers_are_scored_by_the_best_strength():
    generator = torch.Generator().manual_seed(0)
    x = 9 + torch.randn(300, 4, generator=generator) * torch.tensor(
        [1, 2, 3, 9]
    )
    y = (x[:, 0] - x[:, 1] > 0).long()
    parts = (x[:200], y[:200]), (x[200:], y[200:])
    each = [levers.score(*parts, 2, [strength]) for strength in (1e3, 1e-3)]
    (known, y), (asked, y_asked) = ((x.numpy(), y.numpy()) for x, y in parts)
    units = StandardScaler().fit(known)
    solved = LogisticRegression(C=1 / (1e-3 * 200)).fit(
        units.transform(known), y
    )
    assert (
        each[1] == 100 * solved.score(units.transform(asked), y_asked) > each[0]
    )
    assert levers.score(*parts, 2, [1e3, 1e-3]) == each[1]
