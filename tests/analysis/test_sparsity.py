"""The whole sheet of a small encoder: contents, gaps, tables, section."""

import csv
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from speechbrain_sim import extras
from speechbrain_sim.analysis import (
    code_parts,
    code_scores,
    egemaps,
    feature_scores,
    sparsity,
)
from speechbrain_sim.analysis.code_parts import (
    LayerAbove,
    Phones,
    nce_losses,
    read_part,
    read_predictors,
)
from speechbrain_sim.analysis.intervals import Unmeasurable
from speechbrain_sim.analysis.score_sheet import Sheet
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.data.labels import NO_LABEL
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.encoders.logmel import LogMel
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.family import contrastive_modules
from speechbrain_sim.objectives.info_nce import draw_negatives, info_nce
from speechbrain_sim.randomness import keyed_generator
from speechbrain_sim.report.page import Figure, Gap, Table, write_page

LAYER, PHONES = "module3", [*"01234"]
LABELS = {"phones": (PHONES, "frames"), "pitch": (["high", "low"], "utterance")}
SMALL = {"train_rows": 600, "test_rows": 200, "probe_rows": 300}
SMALL |= {"factor_rows": 200, "posterior_rows": 50, "draws": 4}
#: of InfoNCE of the layer above, for two steps
MATRICES = {"context": torch.linspace(-1, 1, 2 * 6 * 4).reshape(12, 4)}
NAMES = "module3.sae", "module3.sae_k8", "module3.sae_k8_s2"


@pytest.fixture(scope="module", autouse=True)
def fewer_draws():
    """Intervals of a hundred draws: a thousand take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_scores, "DRAWS", 100)
        yield


@pytest.fixture(scope="module")
def encoded(corpus, tmp_path_factory):
    """An untrained encoder, and the stores of its two top layers."""
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=6, context_channels=4).eval()
    folder = tmp_path_factory.mktemp("stores")
    with open(corpus.valid, newline="") as file:
        cells = [*csv.DictReader(file)]
    with open(folder / "test.csv", "w", newline="") as file:
        test = csv.DictWriter(file, [*cells[0], "speaker"])
        test.writeheader()
        test.writerows({**x, "speaker": i % 2} for i, x in enumerate(cells))

    def encode(rows):
        paths = {"train": corpus.train, "valid": corpus.valid}
        paths["test"] = folder / "test.csv"
        return {
            part: encode_manifest(
                encoder.requires_grad_(False),
                {"sha256": rows},
                path,
                corpus.folder,
                folder / rows / part,
                [LAYER, "context"],
                rows,
                log_var=True,
            )
            for part, path in paths.items()
        }

    return encoder, encode


@pytest.fixture(scope="module")
def stores(encoded):
    return encoded[1]("all")


def make_saes(stores):
    """Three untrained bottlenecks, the last two seeds of one."""
    saes = {}
    for name in NAMES:
        torch.manual_seed(int(name.endswith("s2")))
        k = 8 if "k8" in name else 3
        saes[name] = SparseAutoencoder(6, 16, k=k).eval()
        saes[name].set_units(*stores["train"].statistics(LAYER))
    return {name: sae.requires_grad_(False) for name, sae in saes.items()}


@pytest.fixture(scope="module")
def results(encoded, stores):
    how = encoded[0], make_saes(stores), stores, LABELS
    given = {**SMALL, "factors_of": loudness, "predictors": MATRICES}
    return sparsity.measure_codes(*how, given)


def loudness(row):
    """A factor of a recording."""
    return {"loudness": float(int(row["ID"][-2:]) % 7)}


def test_what_stands_above_is_the_encoders_own(encoded, stores):
    store, above = stores["train"], LayerAbove(encoded[0], LAYER)
    part = read_part(store, LAYER, LABELS, 1e9, 1)
    assert above.name == "context" and len(part.x) == len(store[LAYER])
    x, owner = above.run(part.x, part.utterance)
    np.testing.assert_allclose(x, store["context"][:], atol=0.02)
    np.testing.assert_array_equal(owner, store["context"].utterance)
    y = above.labels(store, "phones", PHONES, owner)
    wanted = store.labels("phones", PHONES, "frames", "context")
    np.testing.assert_array_equal(y, wanted)
    for encoder, layer in ((encoded[0], "context"), (LogMel(), "logmel")):
        with pytest.raises(Unmeasurable, match="No layer that can run"):
            LayerAbove(encoder, layer)


def test_parts_are_whole_recordings(stores):
    store = stores["train"]
    part = read_part(store, LAYER, LABELS, 150, 1, loudness)
    number, count = np.unique(part.utterance, return_counts=True)
    assert 150 <= len(part.x) < len(store[LAYER])
    every = np.bincount(store[LAYER].utterance)
    np.testing.assert_array_equal(count, every[number])
    wanted = [loudness({"ID": store.ids[i]})["loudness"] for i in part.unit]
    assert part.factors["loudness"].tolist() == wanted
    assert set(part.y) == set(LABELS)


def test_every_score_is_there(results):
    assert json.loads(json.dumps(results, allow_nan=False)) == results
    assert list(results["codes"]) == [*NAMES]
    for versions in results["codes"].values():
        assert list(versions) == ["learned", "untrained", "random", "PCA"]
        for scores in versions.values():
            gaps = [*sparsity.find_gaps(scores)]
            assert "no loss to recover" in gaps[0]  # of random phones
            # of two speakers, ABX is within these
            gaps = [reason for reason in gaps if "no loss to" not in reason]
            assert len({*gaps}) < 2 and len(gaps) == len(scores["abx"])
            for score in (
                scores["firing"]["l0"],
                scores["duration"],
                scores["posterior"]["kept"],
                scores["probes"]["phones"],
                scores["decoded"]["pitch"],
                scores["concept"]["few"]["5"],
            ):
                low, high = score["interval"]
                assert low <= score["value"] + 1e-9 and score["value"] <= high
            assert set(scores["factors"]["factors"]) == {
                "phones",
                "pitch",
                "loudness",
            }
            assert len(scores["concept"]["one"]["units"]) == len(PHONES)
    x = results["layers"][LAYER]
    # the phones of this corpus are random; the first one is silence
    chance = x["probes"]["phones"]["chance"]
    assert x["probes"]["phones"]["value"] < chance + 0.1
    assert x["concept"]["all"]["classes"][0] is None
    assert x["concept"]["always"]["classes"][0] is None


def test_what_is_recovered_is_between_the_mean_and_the_frames(
    encoded, stores, monkeypatch
):
    settings = sparsity.read_settings({**SMALL, "predictors": MATRICES})
    sheet = Sheet(LAYER, encoded[0], stores, LABELS, settings)

    def means(losses, unit):
        assert {*map(len, losses)} == {len(unit)}
        return [*map(np.mean, losses)]

    monkeypatch.setattr(feature_scores, "recovered", means)
    mean = np.broadcast_to(sheet.mean, sheet.test.x.shape)
    for x, same in ((sheet.test.x, 2), (mean, 0)):
        found = sheet._recovered(x)
        assert [*found] == ["layer", "above", "nce"]
        for losses in found.values():
            assert losses[1] == pytest.approx(losses[same], rel=1e-5)


def test_the_nce_of_rows_is_that_of_the_training(monkeypatch):
    torch.manual_seed(0)
    lengths, weight = torch.tensor([9, 5, 7]), torch.randn(3 * 6, 4)
    c, z = torch.randn(3, 9, 4), torch.randn(3, 9, 6)
    kept = torch.arange(9) < lengths[:, None]
    owner = np.repeat([2, 5, 6], lengths.numpy())
    rows = c[kept].numpy(), z[kept].numpy(), owner
    found = nce_losses(*rows, weight)
    noise = keyed_generator(0, "negatives", 0)
    negatives = draw_negatives(lengths, 9, 9, 10, 0, noise)
    wanted = torch.zeros(3, 9)
    for i, length in enumerate(lengths.tolist()):
        for t in range(length):
            for k, w in enumerate(weight.split(6)):
                if t + k + 1 < length:
                    of = torch.cat(
                        [
                            z[i, t + k + 1, None],
                            z.flatten(0, 1)[negatives[i, t]],
                        ]
                    )
                    wanted[i, t] -= (of @ w @ c[i, t]).log_softmax(0)[0]
    np.testing.assert_allclose(found, wanted[kept], rtol=1e-4, atol=1e-5)
    one = (c @ weight[:6].T)[:, :, None]
    mean = info_nce(one, z, lengths, 0, negatives).loss
    one = nce_losses(*rows, weight[:6])
    assert one.sum() / (lengths - 1).sum() == pytest.approx(float(mean))
    monkeypatch.setattr(code_parts, "WINDOW", 4)
    np.testing.assert_allclose(nce_losses(*rows, weight), found, rtol=1e-5)
    same = np.ones_like(rows[1])  # what are alike is at chance
    chance = nce_losses(rows[0], same, owner, weight[:6])
    np.testing.assert_allclose(chance[chance > 0], np.log(11), rtol=1e-5)


def test_matrices_are_those_of_the_checkpoint_of_the_encoder(tmp_path):
    encoder = GreedyEncoder(channels=6, context_channels=4)
    modules = contrastive_modules(encoder, prediction_steps=2)
    assert read_predictors("sim-small", encoder) == {}
    for name, module in modules.items():
        for checkpoint in "CKPT+1", "CKPT+2":
            path = tmp_path / "save" / checkpoint / f"{name}.ckpt"
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save(module.state_dict(), path)
    found = read_predictors(tmp_path, encoder)
    assert list(found) == list(encoder.layer_names)
    wanted = modules["context"].smooth_info_nce.predictor.weight
    assert torch.equal(found["context"], wanted)
    with torch.no_grad():
        next(encoder.layers["module2"].parameters()).add_(1)
    assert "module2" not in read_predictors(tmp_path, encoder)
    assert read_predictors(tmp_path, LogMel()) == {}


def test_phones_have_the_frames_of_their_labels(encoded, stores):
    names = {"0": "SIL", **{name: name for name in PHONES[1:]}}
    found = Phones(stores["test"], LAYER, "phones", names, 3, 1)
    rows = encoded[1]("labels")["test"]
    assert found.x.shape[0] == sum(found.stops.values())
    assert len(found.stops) == 3 and "SIL" not in {
        t.phone for t in found.tokens
    }
    first = 0
    for name, stop in found.stops.items():
        at = rows.ids.index(name)
        wanted = rows.frames(LAYER, at, 0, stop)
        here = found.x[first : first + stop]
        np.testing.assert_allclose(here, wanted, atol=0.02)
        first += stop
    score = found.abx(found.x)["within"]
    assert 0.3 < score["value"] < 0.7  # phones are random


def test_a_label_without_rows_in_a_part_is_a_gap(encoded, stores):
    class Silent:
        """A store none of whose rows has a phone."""

        def __getattr__(self, name):
            return getattr(stores["valid"], name)

        def __getitem__(self, name):
            return stores["valid"][name]

        def labels(self, label, *how):
            found = stores["valid"].labels(label, *how)
            if label == "pitch":
                return found
            none = [np.full_like(x, NO_LABEL) for x in found]
            return none if isinstance(found, list) else np.array(none)

    saes = {NAMES[0]: make_saes(stores)[NAMES[0]]}
    for part in "train", "valid", "test":
        work = encoded[0], saes, {**stores, part: Silent()}, LABELS
        found = sparsity.measure_codes(*work, {**SMALL, "controls": ()})
        json.dumps(found, allow_nan=False)
        scores = found["codes"][NAMES[0]]["learned"]
        gaps = scores["probes"]["phones"], scores["decoded"]["phones"]
        gaps += scores["recovered"]["layer"], scores["concept"]
        assert "checkpoints of a greedy" in scores["recovered"]["nce"]["gap"]
        for gap in gaps:
            assert f"No row of the {part} part has a class" in gap["gap"]
        assert "value" in scores["probes"]["pitch"]
        assert sparsity.tables(found)


def test_units_and_seeds(results):
    units = results["units"]["module3.sae_k8"]
    wanted = {"density", "duration", "kept", "sure", "class", "f1", "gain"}
    assert set(units) == wanted | {"stability"}
    assert {len(values) for values in units.values()} == {16}
    assert "stability" not in results["units"]["module3.sae"]
    assert "two seeds" in results["stability"]["module3.sae"]["gap"]
    found = results["stability"]["module3.sae_k8"]
    assert 0 <= found["shared"] < 0.9 and len(found["pairs"]) == 1
    codes = results["codes"]  # seeds share controls, but for ABX
    pca = [{**codes[name]["PCA"], "abx": None} for name in NAMES]
    assert pca[1] == pca[2] != pca[0]
    l0 = codes[NAMES[0]]["PCA"]["firing"]["l0"]["value"]
    assert l0 == codes[NAMES[0]]["learned"]["firing"]["l0"]["value"] == 3


def test_tables_and_section(results, tmp_path):
    tables = {table.title: table.rows for table in sparsity.tables(results)}
    assert list(tables) == list(sparsity.CAPTIONS)
    names = [row[0] for row in tables["Linear probes"]]
    assert names[:3] == [LAYER, NAMES[0], "module3.sae, untrained"]
    assert len(names) == 1 + 3 + 2 * 3  # controls of seeds, once
    apart = tables["Phones apart"]  # of the first seed, and of controls' codes
    assert [row[0] for row in apart] == [n for n in names if "s2" not in n]
    assert len(apart[1]) == 5 and apart[2][3:] == ["", ""]
    section = sparsity.section(results, tmp_path)
    kinds = [type(item) for item in section.items]
    assert kinds == [Figure] * 3 + [Table] * 7 + [Gap] * 3
    write_page(tmp_path, "SAE", "", [section], [])
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "nan" not in page and "loudness, R²" in page


def test_seeds_are_one_point_whatever_their_l0():
    def version(l0, value):
        score = {"value": value, "interval": [value - 0.1, value + 0.1]}
        probes = {"probes": {"p": score}, "decoded": {"p": score}}
        return {"learned": {"firing": {"l0": {"value": l0}}, **probes}}

    codes = {"a.sae": version(8, 0.4), "a.sae_s2": version(9, 0.6)}
    codes["a.sae_k4"] = version(4, 0.3)
    found = sparsity._lines({"codes": codes}, "p")["a"]
    wanted = [(4, 0.3, 0.2, 0.4), (8.5, 0.5, 0.4, 0.6)]
    np.testing.assert_allclose(found["z"], wanted)


def test_rows_that_are_means_have_gaps(encoded):
    stores = encoded[1]("mean")
    labels = {"pitch": LABELS["pitch"]}
    saes = {NAMES[0]: make_saes(stores)[NAMES[0]]}
    some = {**SMALL, "controls": (), "names": {"pitch": ["0", "1"]}}
    how = encoded[0], saes, stores, labels, some
    found = sparsity.measure_codes(*how)
    scores = found["codes"][NAMES[0]]["learned"]
    assert "not frames" in scores["duration"]["gap"]
    assert "no posteriors of frames" in scores["posterior"]["gap"]
    assert "no labels of frames" in scores["recovered"]["above"]["gap"]
    assert scores["concept"]["label"] == "pitch"
    assert None not in scores["concept"]["all"]["classes"]  # "0": no silence
    assert sparsity.tables(found)
    without = sparsity.measure_codes(*how[:3], {}, how[-1])
    assert "no labels" in without["layers"][LAYER]["concept"]["gap"]
    assert "gap" in without["codes"][NAMES[0]]["learned"]["factors"]
    assert "value" in without["codes"][NAMES[0]]["learned"]["firing"]["l0"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"controls": ["none"]}, "none.*untrained or random or PCA"),
        ({"rows": 5}, "no setting 'rows': seed, train_rows"),
        ({"probe_rows": 1}, "probe_rows is 1, but must be >= 2"),
    ],
)
def test_wrong_settings_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        sparsity.read_settings(given)


def test_a_dead_code_is_a_gap(encoded, stores):
    sae = make_saes(stores)[NAMES[0]]
    sae.encoder.weight.zero_()
    sae.encoder.bias.fill_(-1.0)
    how = {NAMES[0]: sae}, stores, LABELS, {**SMALL, "controls": ()}
    found = sparsity.measure_codes(encoded[0], *how)
    scores = found["codes"][NAMES[0]]["learned"]
    assert "Nothing fires" in scores["posterior"]["gap"]
    assert "Nothing fires" in scores["duration"]["gap"]
    assert scores["firing"]["l0"]["value"] == 0
    json.dumps(found, allow_nan=False)
    assert sparsity.tables(found)


def test_acoustic_parameters(corpus, monkeypatch):
    class Smile:
        """Stands for openSMILE: the mean of the samples."""

        def __init__(self, feature_set, feature_level):
            assert (feature_set, feature_level) == ("v02", "functionals")

        def process_signal(self, wav, rate):
            assert rate == 16000 and wav.dtype == np.float32
            values = {"loudness_mean": wav.mean(), "count": len(wav)}
            return SimpleNamespace(iloc=[values])

    stub = SimpleNamespace(
        Smile=Smile,
        FeatureSet=SimpleNamespace(eGeMAPSv02="v02"),
        FeatureLevel=SimpleNamespace(Functionals="functionals"),
    )
    monkeypatch.setattr(egemaps, "import_extra", lambda *_: stub)
    egemaps._functionals.cache_clear()
    row = {"wav": f"{corpus.folder}/utterance00.wav", "num_samples": "8000"}
    found = egemaps.egemaps({**row, "start": "100"})
    egemaps._functionals.cache_clear()
    assert found["count"] == 8000.0 and type(found["loudness_mean"]) is float
    monkeypatch.setattr(egemaps, "import_extra", extras.import_extra)
    monkeypatch.setitem(__import__("sys").modules, "opensmile", None)
    with pytest.raises(ImportError, match=r"speechbrain-sim\[opensmile\]"):
        egemaps.egemaps(row)
