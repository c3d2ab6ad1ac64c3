"""What the bench says is true of what it measures."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import (
    bench,
    bottleneck,
    decoded,
    explorer,
    levers,
    parallel,
    probes,
    sparse,
)
from benchmarks.floor import autoencoder_flops, step_flops
from benchmarks.measure import (
    SavedTensors,
    in_turn,
    peak_memory,
    quotient,
    row,
)
from benchmarks.reference import train_step
from benchmarks.systems import TRAIN, Ours, Plain, make_batch, must_agree
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
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


def test_floor_of_an_autoencoder_is_what_a_counter_counts():
    sae, x = SparseAutoencoder(12, 40, k=3), torch.randn(20, 12)
    plain = bottleneck.PlainAutoencoder(sae)
    counter = FlopCounterMode(display=False)
    with counter:
        plain.step(x)
    # the plain way takes a product for b_dec, where a sum does
    counted = counter.get_total_flops() - 2 * 20 * 12 * 40
    assert counted == autoencoder_flops(20, 12, 40)


def test_a_plain_autoencoder_learns_the_same(monkeypatch):
    sizes = {"CHANNELS": 12, "UNITS": 40, "K": 3, "ROWS": 200}
    for name, value in sizes.items():
        monkeypatch.setattr(bottleneck, name, value)
    rows = bottleneck.step(repetitions=2)  # compares the losses
    assert [row["unit"] for row in rows] == ["frames/s", "s", "s"]
    (row,) = bottleneck.one_pass(repetitions=1)
    assert row["ours"] > row["read"] > 0


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


def sheet(explained, disentanglement):
    """A score sheet of two seeds of a sparsity, and one seed of another."""

    def scores(value, l0=8.0):
        interval = [value - 0.1, value + 0.1]
        return {
            "reconstruction": {
                "explained_variance": {"value": value, "interval": interval}
            },
            "firing": {"l0": {"value": l0}, "alive": 0.5},
            "factors": {"gap": "There are no factors."},
            "probes": {"digit": {"value": value}},
        }

    names = "module3.sae", "module3.sae_s2", "module3.sae_k4"
    codes = {}
    for name, value in zip(names, explained, strict=True):
        l0 = 4.0 if name.endswith("k4") else 8.0
        codes[name] = {"learned": scores(value, l0), "PCA": scores(0.5)}
        codes[name]["learned"]["factors"] = {"disentanglement": disentanglement}
        codes[name]["learned"]["abx"] = {}
    first = codes["module3.sae"]["learned"]["abx"]  # of a first seed only
    first["codes"] = {"within": {"value": 0.05}}
    layer = {"probes": {"digit": {"value": 0.9}}, "factors": {}}
    again = {"shared": 0.6, "random": {"shared": 0.1}}
    stability = {"module3.sae": again, "module3.sae_k4": {"gap": "One seed."}}
    layers = {"module3": layer}
    return {"layers": layers, "codes": codes, "stability": stability}


def test_score_sheets_are_joined_seed_by_seed(tmp_path, capsys):
    for name, sheets in {
        "a": sheet([0.8, 0.6, 0.4], 0.25),
        "b": sheet([0.9, 0.8, 0.4], 0.5),
    }.items():
        (tmp_path / name).mkdir()
        path = tmp_path / name / "sparsity.json"
        path.write_text(json.dumps({"made_of": {}, "result": sheets}))
    names = [f"{name}={tmp_path / name}" for name in "ab"]
    sparse.main([*names, "--against", "a", "--only", "Probes: digit"])
    only = capsys.readouterr().out
    sparse.main([*names, "--against", "a"])
    out = capsys.readouterr().out
    assert only.strip() in out and only.count("**") == 2
    printed = out.split("**")
    found = dict(zip(printed[1::2], printed[2::2], strict=True))
    rows = {
        title: [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in text.strip().splitlines()
        ]
        for title, text in found.items()
    }
    assert list(rows) == [
        *("Explained variance", "Units alive", "Disentanglement"),
        *(
            "ABX within speakers",
            "Probes: digit",
            "Units that other seeds find",
        ),
    ]
    header, _, a4, a, b4, b = rows["Explained variance"]
    assert header[1:5] == ["L0", "seeds", "layer", "learned"]
    pca, less_a = header.index("− PCA"), header.index("− a")
    # two values 0.2 apart: their mean and t(0.975, 1) x 0.1 to either side
    half = 12.706 * 0.1
    assert a[:4] == ["a module3", "8.0", "2", ""]
    assert a[4] == f"70.0 [{100 * (0.7 - half):.1f}, {100 * (0.7 + half):.1f}]"
    assert a[pca].split()[0] == "+20.0" and a[less_a] == ""
    assert a4[pca] == "-10.0" and a4[2] == "1"  # no interval of one seed
    # differences of the same seeds: 0.1 and 0.2
    assert b[less_a] == "+15.0 [-48.5, +78.5]" and b4[less_a] == "+0.0"
    assert rows["Disentanglement"][3][4:] == ["25.0 [25.0, 25.0]", *[""] * 4]
    assert rows["Probes: digit"][3][3] == "90.0"
    a, b = rows["ABX within speakers"][2:]
    assert a[2:6] == ["1", "", "5.0", ""] and b[pca + 1] == ""
    again = rows["Units that other seeds find"]
    assert again[2:] == [[f"{run} module3.sae", "60.0", "10.0"] for run in "ab"]


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


@pytest.mark.parametrize(
    ("seconds", "replicas", "expected"),
    [([6, 3, 1], [1, 1, 1], 10 / 6), ([6, 3, 1], [2, 1, 1], 10 / 3)]
    + [([6, 3, 1], [4, 3, 1], 20 / 3), ([1, 4], [1, 2], 2.5), ([5], [3], 3)],
)
def test_simulated_stages_reach_the_slowest_one(seconds, replicas, expected):
    """Sum / max, where r processes take turns: the known answer."""
    assert parallel.simulate(seconds, replicas, 4000) == pytest.approx(
        expected, rel=0.01
    )


def test_the_fastest_division_is_chosen():
    # module 1 takes six tenths: of four workers, two, or three if uneven
    assert parallel.best_division([6, 3, 1], 4, False) == ([6, 4], [2, 2])
    assert parallel.best_division([6, 3, 1], 5, True) == ([6, 4], [3, 2])
    assert parallel.best_division([6, 3, 1], 10, True) == (
        [6, 3, 1],
        [6, 3, 1],
    )
    assert len(parallel.divisions(7, 3)) == 15  # 6 choose 2


def test_the_ceiling_is_of_the_stages_that_were_measured(monkeypatch):
    """Not of those that costs of later rounds would make better."""
    costs = {
        name: [0] * 4 + [8, 0, 0.0, seconds]
        for name, seconds in {"a": 1.0, "b": 2.0, "c": 3.0}.items()
    }
    found = {"costs": costs, "times": [(6.0, 5.0)], "sent": 8}
    found["stages"] = [["a"], ["b", "c"]]
    monkeypatch.setattr(parallel, "launch", lambda *_: found)
    first, second, *_ = map(str, parallel.speed_rows(8))
    assert "1.20 of at most 1.20 times" in first
    assert "5.0" in second


def test_the_latency_of_the_explorer_has_a_median_and_a_tail():
    median, tail = explorer.latency(requests=3)
    assert 0 < median["ours"] <= tail["ours"]
    assert median["met"] == (median["ratio"] <= 0.67)
