"""Other people's recipes and tools: cases D, B12, F10 and a part of H4."""

import copy
import json
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
import soundfile
import torch
from safetensors import safe_open
from speechbrain.inference.interfaces import foreign_class

from speechbrain_sim import LatentFeatures, SmoothInfoMax, cli, load_encoder
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.hub.publish import publish_model
from speechbrain_sim.integrations.onnx import PlainEncoder, export_onnx
from speechbrain_sim.integrations.s3prl import UpstreamExpert
from speechbrain_sim.models.fetch import HubError, open_source
from speechbrain_sim.models.format import save_parts
from tests import speaker_id
from tests.conftest import ROOT

MODULES = ["module1", "module2", "module3"]
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


@pytest.fixture(scope="module")
def model(trained):
    return SmoothInfoMax.from_pretrained(trained.model)


@pytest.fixture
def files(tmp_path):
    """Three recordings, of which one is longer than ten seconds."""
    rng, paths = np.random.default_rng(0), []
    for i, seconds in enumerate((0.7, 12.3, 1.1)):
        paths.append(tmp_path / f"speaker{i}/1.wav")
        paths[-1].parent.mkdir()
        noise = rng.uniform(-0.1, 0.1, round(16000 * seconds))
        soundfile.write(paths[-1], noise, 16000, subtype="FLOAT")
    return paths


# ------------------------------------------------------------ D1, D2, D3

YAML = (ROOT / "tests/speaker_id.yaml").read_text()
FBANK = re.search(r"compute_features: .*\n    n_mels.*\n", YAML)[0]
MODULE = "modules:\n    compute_features: !ref <compute_features>\n"
RECOVERABLE = "        compute_features: !ref <compute_features>\n"


def documented(source):
    """The yaml of the page on use: its features, and its other entries."""
    page = (ROOT / "docs/use-anywhere.md").read_text()
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.S)
    features, entries = block.split("\n# these entries")
    return features.replace("sim-demo", str(source)), entries


@pytest.fixture
def train(trained, corpus, tmp_path):
    """Runs the recipe with a yaml in which Fbank is replaced; returns a Brain."""
    features, _ = documented(trained.model)

    def train(*options, change=(), **arguments):
        text = YAML.replace(FBANK, features + "\n")
        for key, value in arguments.items():
            text = re.sub(rf"\n    {key}: .*", "", text)
            text = text.replace("Features\n", f"Features\n    {key}: {value}\n")
        for old, new in change:
            assert old in text
            text = text.replace(old, new)
        path = tmp_path / "train.yaml"
        path.write_text(text)
        options = ["--output_folder", str(tmp_path / "out"), *options]
        options += ["--data_folder", corpus.folder, "--emb_dim=6"]
        return speaker_id.main(
            [str(path), "--device=cpu", "--noprogressbar", *options]
        )

    train.folder = tmp_path / "out"
    return train


def saved(folder):
    """What the last checkpoint holds of the features."""
    path = sorted(folder.glob("save/CKPT*/compute_features.ckpt"))[-1]
    return torch.load(path, weights_only=True)


def warnings_in(folder):
    log = (folder / "log.txt").read_text()
    return re.findall("The latent features do not learn: [^\n]*", log)


def test_d1_the_page_lists_what_a_recipe_needs():
    _, entries = documented("sim-demo")
    assert MODULE in entries and RECOVERABLE in entries
    assert MODULE in YAML and RECOVERABLE in YAML


@pytest.mark.parametrize("frozen", [True, False])
def test_d2_several_layers_learn_are_saved_and_resumed(train, frozen):
    brain = train("--number_of_epochs=2", frozen=frozen)
    features = brain.hparams.compute_features
    state = saved(train.folder)
    assert "weights" in state and state["weights"].abs().min() > 1e-3
    kept = [name for name in state if name.startswith("encoder.")]
    assert bool(kept) != frozen  # only what learns
    assert not warnings_in(train.folder)
    again = train("--number_of_epochs=2", frozen=frozen)
    resumed = again.hparams.compute_features.state_dict()
    assert resumed.keys() == features.state_dict().keys() == state.keys()
    assert all(torch.equal(resumed[name], state[name]) for name in state)
    more = train("--number_of_epochs=3", frozen=frozen)
    weights = more.hparams.compute_features.weights
    assert not torch.equal(weights, state["weights"])


def test_d2_one_frozen_layer_needs_no_entry(train):
    change = [(MODULE, "modules:\n"), (RECOVERABLE, "")]
    options = ["--features_of=hparams", "--number_of_epochs=3"]
    train(*options, change=change, layers="module3")
    losses = (train.folder / "train_log.txt").read_text().splitlines()
    assert len(losses) == 3 and not warnings_in(train.folder)


@pytest.mark.parametrize(
    "arguments", [{}, {"frozen": False, "layers": "module3"}]
)
@pytest.mark.parametrize("cause", ["past modules", "detached"])
def test_d1_features_that_never_learn_are_warned_of(train, arguments, cause):
    options, change = ["--features_of=hparams"], [(MODULE, "modules:\n")]
    if cause == "detached":
        options, change = ["--detach=True"], []
    train(*options, change=change, **arguments)
    (warning,) = warnings_in(train.folder)
    assert "under `modules` of the yaml" in warning
    reason = "no optimizer" if cause == "past modules" else "no gradient"
    assert f"after 10 batches, {reason}" in warning
    name = "weights" if not arguments else "encoder.layers.module1"
    assert name in warning


def watched(trained, batches, step, **arguments):
    """Calls features and `step`, as a plain loop, with a logger that counts."""
    features = LatentFeatures(trained.model, MODULES, **arguments)
    wavs = torch.randn(1, 2000)
    features = copy.deepcopy(features)
    for _ in range(batches):
        step(features, features(wavs))


def test_d1_no_false_alarms(trained, caplog):
    def learn(features, x):
        x.square().sum().backward()
        with torch.no_grad():
            features.weights -= 0.1 * features.weights.grad
        features.weights.grad = None

    def accumulate(features, x):
        features.train()  # as every Brain does
        x.square().sum().backward()

    watched(trained, 120, learn)
    watched(trained, 90, accumulate)  # of 91 batches
    watched(trained, 20, lambda f, x: f.eval())
    watched(trained, 20, lambda *_: None, layer_weights=[0.1, 0.2, 0.7])
    with torch.no_grad():
        watched(trained, 20, lambda *_: None)
    assert "do not learn" not in caplog.text
    watched(trained, 102, accumulate)  # in `modules`, in no optimizer
    assert caplog.text.count("after 100 batches, no optimizer changed") == 1


def test_d1_devices_must_agree(trained):
    wavs = torch.randn(1, 2000, device="meta")
    for use in (
        LatentFeatures(trained.model, "module3"),
        trained.encoder,
        UpstreamExpert(trained.model),
    ):
        with pytest.raises(
            ValueError, match="wavs are on meta, the encoder on"
        ):
            use(list(wavs) if isinstance(use, UpstreamExpert) else wavs)


def test_d2_checkpoints_of_other_encoders_are_refused(trained, tmp_path):
    other = GreedyEncoder(**trained.encoder.arguments)
    save_parts(tmp_path, {"encoder": other}, training={})
    mine, foreign = (
        torch.nn.ModuleList([LatentFeatures(source, MODULES)])
        for source in (trained.model, tmp_path)
    )
    with pytest.raises(ValueError, match="features of another encoder"):
        foreign.load_state_dict(mine.state_dict())
    # as checkpoints were before, with the encoder; and averaged
    state = mine.state_dict()
    state |= mine[0].encoder.state_dict(prefix="0.encoder.")
    del state["0._extra_state"]
    assert mine.load_state_dict(state)
    state = mine.state_dict()
    mean = {name: (x + x + x) / 3.0 for name, x in state.items()}
    assert mine.load_state_dict(mean)
    before = mine[0].encoder.state_dict()
    for name, value in trained.encoder.state_dict().items():
        assert torch.equal(before[name], value)


def test_d3_features_are_cached(train, tmp_path):
    options = [f"--feats_cache_dir={tmp_path / 'cache'}"]
    change = [(MODULE, "modules:\n"), (RECOVERABLE, "")]
    weights = {"layer_weights": [0.3, 0.7]}
    train(*options, "--number_of_epochs=2", change=change, **weights)
    assert len(list((tmp_path / "cache").rglob("*.pt*"))) == 24
    assert not warnings_in(train.folder)


def test_d3_learned_weights_give_arrays_without_gradients(trained):
    wavs, learned = torch.randn(2, 2000), LatentFeatures(trained.model, MODULES)
    with torch.no_grad():
        found = learned(wavs).numpy()
    fixed = LatentFeatures(trained.model, MODULES, layer_weights=[1 / 3] * 3)
    np.testing.assert_allclose(fixed(wavs).numpy(), found, atol=1e-6)
    assert [n for n, p in fixed.named_parameters() if p.requires_grad] == []
    for same in (np.full(3, 1 / 3), torch.full((3,), 1 / 3), ("0.5",) * 3):
        features = LatentFeatures(trained.model, MODULES, layer_weights=same)
        assert all(type(weight) is float for weight in features.layer_weights)
    for bad in ([1.0], 1.0, "a", ["a"] * 3, [1, 1, np.nan], np.ones((3, 2))):
        with pytest.raises(
            ValueError, match="layer_weights are [^:]*: give one"
        ):
            LatentFeatures(trained.model, MODULES, layer_weights=bad)


# ---------------------------------------------------------------------- D4


@pytest.fixture(scope="module")
def upstream(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    encoder = GreedyEncoder(channels=6, context_channels=6, batch_norm=True)
    encoder(torch.randn(2, 4000))
    save_parts(folder, {"encoder": encoder}, training={})
    return UpstreamExpert(ckpt=str(folder), refresh=False)


@pytest.mark.parametrize("batch", range(6))
def test_d4_s3prl_gets_the_frames_that_it_expects(upstream, batch):
    lengths = [800 + 997 * (3 * batch + i) for i in range(3)]  # 18 in all
    states = upstream([torch.randn(n) for n in lengths])["hidden_states"]
    rate = upstream.get_downsample_rates("hidden_states")
    assert len(states) == 4 and len({x.shape for x in states}) == 1
    expected = -(-max(lengths) // rate)  # s3prl pads or cuts up to 5
    assert abs(states[0].shape[1] - expected) <= 1
    # a featurizer: layers of one width and rate, weighed and summed
    weights = torch.nn.Parameter(torch.zeros(len(states)))
    stacked = torch.stack(states)
    mixed = (weights.softmax(0)[:, None, None, None] * stacked).sum(0)
    mixed.square().mean().backward()
    assert weights.grad.abs().sum() > 0


def test_d4_upstreams_keep_their_statistics(upstream):
    parent = torch.nn.ModuleList([copy.deepcopy(upstream)])
    before = copy.deepcopy(parent.state_dict())
    wavs = [torch.randn(3000)]
    expected = parent.eval()[0](wavs)["last_hidden_state"]
    for call in (parent.train, parent[0].train):
        call()
        found = parent[0](wavs)["last_hidden_state"]
        torch.testing.assert_close(found, expected)
        found.sum().backward()  # fine-tuning is s3prl's choice
    norms = [
        module
        for module in parent.modules()
        if isinstance(module, torch.nn.BatchNorm1d)
    ]
    assert norms and not any(norm.training for norm in norms)
    after = parent.state_dict()
    assert all(torch.equal(after[name], x) for name, x in before.items())


# ---------------------------------------------------------------------- D5


@pytest.mark.parametrize("savedir", [None, "saved"])
def test_d5_foreign_class_classifies(model, model_folder, tmp_path, savedir):
    code = "from speechbrain_sim import SmoothInfoMax as Mine\n"
    (model_folder / "custom.py").write_text(code)
    foreign = foreign_class(
        source=str(model_folder),
        pymodule_file="custom.py",
        classname="Mine",
        savedir=savedir and tmp_path / savedir,
    )
    wavs = torch.randn(2, 3000)
    for label in ("speaker", "phones"):
        found = foreign.classify(wavs, label=label)
        expected = model.classify(wavs, label=label)
        assert found.classes == expected.classes
        assert torch.equal(found.probabilities, expected.probabilities)


def test_d5_a_model_without_its_config_names_the_way(model):
    parts = dict(model.mods.items())
    bare = SmoothInfoMax(parts, {"sample_rate": 16000})
    assert bare.encode_batch(torch.randn(1, 2000), layer="module1")
    with pytest.raises(ValueError, match="load it with .*from_pretrained"):
        bare.classify(torch.randn(1, 2000), label="phones")


# ---------------------------------------------------------- D6, F10


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("source", DTYPES)
def test_d6_inputs_follow_the_model(trained, dtype, source):
    model = SmoothInfoMax.from_pretrained(trained.model).to(dtype)
    wavs = torch.randn(2, 4000).to(source) / 10
    latents = model.encode_batch(wavs, torch.tensor([1.0, 0.5]))
    assert {x.mean.dtype for x in latents.values()} == {dtype}
    z = latents["module3"].mean
    assert model.decode(z.float().numpy(), "module3").dtype == dtype
    for label in ("speaker", "phones"):
        found = model.classify(wavs, label=label).probabilities
        assert found.dtype == dtype and found.isfinite().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_d6_files_and_features_follow_too(trained, files, tmp_path, dtype):
    model = SmoothInfoMax.from_pretrained(trained.model).to(dtype)
    expected = SmoothInfoMax.from_pretrained(trained.model)
    found = model.encode_file(files[0], "module3").mean
    close = {"atol": 0.05, "rtol": 0.05}
    whole = expected.encode_file(files[0], "module3").mean
    torch.testing.assert_close(found.float(), whole, **close)
    arrays = model.features(files[:1], "module3")
    assert arrays.dtype == np.float32
    features = LatentFeatures(trained.model, MODULES).to(dtype)
    assert features(torch.randn(1, 2000)).dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seconds", [0.5, 11.0])
@pytest.mark.parametrize("sample", [False, True])
def test_f10_what_lies_beyond_is_zero(trained, dtype, seconds, sample):
    model = SmoothInfoMax.from_pretrained(trained.model).to(dtype)
    wavs = torch.randn(2, round(16000 * seconds))
    lens = torch.tensor([1.0, 0.4])
    wavs[1, int(0.4 * wavs.shape[1]) :] = torch.nan  # may be anything
    for layer, latent in model.encode_batch(wavs, lens, sample=sample).items():
        end = int(latent.lengths[1])
        assert 0 < end < latent.mean.shape[1]
        for x in latent[:3]:
            assert x is None or x[1, :end].any(), layer
            assert x is None or not x[1, end:].any(), layer


# ------------------------------------------------------------ D7, B12


def test_b12_d7_arrays_and_lists_are_accepted(model):
    wavs = torch.randn(2, 3000) / 10
    wavs[1, 2000:] = 0
    lens = torch.tensor([3000, 2000])
    expected = model.encode_batch(wavs, lens, "module3")
    array, rows = wavs.numpy(), [wavs[0], wavs[1, :2000]]
    frozen = array.copy()
    frozen.flags.writeable = False
    for given, lengths in {
        "array": (array, lens),
        "longer floats": (array.astype(np.longdouble), lens),
        "float64": (array.astype(float), lens.numpy()),
        "big-endian": (array.astype(">f4"), [3000, 2000]),
        "reversed": (array[:, ::-1][:, ::-1], lens / 3000),
        "read-only": (frozen, lens),
        "list": (rows, None),
        "tuple": (tuple(rows), None),
        "list of arrays": ([row.numpy() for row in rows], None),
        "mixed orders": ([rows[0], rows[1].numpy().astype(">f8")], None),
        "mixed": ([rows[0].double(), rows[1].numpy()], None),
        "numbers": ([row.tolist() for row in rows], None),
    }.values():
        found = model.encode_batch(given, lengths, "module3")
        assert found.lengths.tolist() == expected.lengths.tolist()
        torch.testing.assert_close(found.mean, expected.mean)
    found = model.classify(rows, label="speaker").names()
    assert found == model.classify(wavs, lens, "speaker").names()


WRONG = {
    "path": ("a.wav", "got 'a.wav'. Files go to encode_file"),
    "paths": (["a.wav", "b.wav"], "wav must be .*Files go to"),
    "None": (None, "wavs must be .*got None"),
    "no utterance": (torch.zeros(0, 3000), r"wavs is empty, .*\[0, 3000\]"),
    "no sample": (np.zeros((2, 0)), r"wavs is empty, .*\[2, 0\]"),
    "empty list": ([], r"wavs must be \(batch, samples\); got shape \[0\]"),
    "an empty one": ([np.zeros(9000), []], r"gives \[9000, 0\] samples"),
    "flat list": ([0.1, 0.2], r"wav must be .*got shape \[\]"),
    "one array": (np.zeros(3000), r"got shape \[3000\]: .*wavs\[None\]"),
    "a stereo batch": (np.zeros((1, 3000, 2)), "average channels"),
    "stereo in a list": ([np.zeros((3000, 2))], r"got shape \[3000, 2\]"),
    "stereo": (torch.zeros(3000, 2), r"wavs is \(3000, 2\), taken as \(batch"),
    "int16": (np.zeros((1, 3000), np.int16), "wavs / 32768"),
    "int16 in a list": ([np.ones(3000, np.int16)], "wavs / 32768"),
    "a quiet int16": ([np.ones(3000), np.ones(99, int)], "wavs / 32768"),
    "range": (3000 * torch.ones(1, 3000), "reaches 3000: .*by 32768"),
    "complex": (torch.zeros(1, 3000) + 0j, "must be floating"),
    "text": (np.array([["a"]]), "wavs must be .*a tensor or an array"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_b12_d7_the_rest_is_a_sentence(model, kind):
    wavs, message = WRONG[kind]
    for use in (model, model.encode_batch, model.classify):
        options = {"label": "phones"} if use == model.classify else {}
        with pytest.raises(ValueError, match=message):
            use(wavs, **options)


def test_d7_a_list_has_lengths_of_its_own(model):
    with pytest.raises(ValueError, match="padded here: no wav_lens"):
        model.encode_batch([np.zeros(3000)], torch.ones(1))


@pytest.mark.parametrize(
    "path",
    [
        "https://host/a.wav",
        ["a.wav"],
        None,
        3,
        np.zeros((1, 3000)),
        os.curdir,
    ],
)
def test_d7_one_file_is_encoded_at_a_time(model, path):
    message = "no file on this machine: .*features.*encode_batch"
    with pytest.raises(ValueError, match=message):
        model.encode_file(path)
    with pytest.raises(ValueError, match=message):
        next(iter(model.stream_file(path)))


def test_b12_a_layer_s_name_is_one_layer(trained):
    wavs = torch.randn(1, 3000)
    one = LatentFeatures(trained.model, "module1")
    same = LatentFeatures(trained.model, ["module1"])
    assert one.layers == ["module1"] and torch.equal(one(wavs), same(wavs))
    for wrong in ("module9", "module1,module3"):
        with pytest.raises(
            ValueError, match=f"no layer '{wrong}'; this encoder"
        ):
            LatentFeatures(trained.model, wrong)


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("wavs", ["array", "int16", "list"])
def test_b12_features_are_of_floating_tensors(trained, frozen, wavs):
    given = {"array": np.zeros((1, 3000)), "list": [[0.0] * 3000]}
    given["int16"] = torch.ones(1, 3000, dtype=torch.int16)
    features = LatentFeatures(trained.model, "module1", frozen)
    with pytest.raises(ValueError, match="must be a floating tensor, .*32768"):
        features(given[wavs])


# ---------------------------------------------------------------------- D8


def test_d8_features_of_files_are_arrays(model, files):
    expected = {
        name: [model.encode_file(path, name).mean[0].numpy() for path in files]
        for name in model.layer_names
    }
    pooled = model.features(files, layer="module3", pool="mean")
    assert pooled.shape == (3, 6) and pooled.dtype == np.float32
    means = [frames.mean(0) for frames in expected["module3"]]
    np.testing.assert_allclose(pooled, means, atol=1e-5)
    for layer in (None, ["module3", "module1"]):
        several = model.features(files, layer)
        assert list(several) == (layer or model.layer_names)
        assert np.array_equal(several["module3"], pooled)
    frames = model.features(files, "context", pool=None)
    assert [x.shape[1] for x in frames] == [4, 4, 4]
    for found, x in zip(frames, expected["context"], strict=True):
        np.testing.assert_allclose(found, x, atol=1e-6)
    assert model.features(str(files[0]), "module3").shape == (1, 6)


def test_d8_what_cannot_be_pooled(model, files, tmp_path):
    with pytest.raises(ValueError, match="pool is 'max': give 'mean' or None"):
        model.features(files, "module3", "max")
    with pytest.raises(ValueError, match="no layer 'module9'"):
        model.features(files, "module9")
    with pytest.raises(ValueError, match="missing.wav: The file is missing"):
        model.features([*files, tmp_path / "missing.wav"], "module3")
    with pytest.raises(ValueError, match="no file on this machine"):
        model.features(tmp_path, "module3")
    with pytest.raises(ValueError, match="There are no files"):
        model.features([], "module3")


# ---------------------------------------------------------------------- D9


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """A model with an ONNX file, and a session of it."""
    folder = tmp_path_factory.mktemp("onnx") / "model"
    command = ["export", str(trained.run), str(folder), "--onnx", "module3"]
    cli.main(command)
    return folder, onnxruntime.InferenceSession(folder / "module3.onnx")


def test_d9_the_command_exports_and_publishes_onnx(
    exported, trained, tmp_path, capsys
):
    folder, session = exported
    wavs = torch.randn(2, 3000)
    lengths = np.array([3000, 2000])
    mean, frames = session.run(None, {"wavs": wavs.numpy(), "lengths": lengths})
    expected = trained.encoder(wavs, torch.from_numpy(lengths))["module3"]
    torch.testing.assert_close(torch.from_numpy(mean), expected.mean)
    assert frames.tolist() == expected.lengths.tolist()
    publish_model(folder, "user/model", dry_run=True)
    assert "module3.onnx." in capsys.readouterr().out
    with pytest.raises(SystemExit, match="no layer 'module9'; this encoder"):
        cli.main(
            ["export", str(trained.run), str(tmp_path / "m"), "--onnx=module9"]
        )
    assert not (tmp_path / "m").exists()
    # a file of an encoder that was exported before does not stay
    cli.main(
        ["export", str(trained.run), str(tmp_path / "m"), "--onnx=module1"]
    )
    cli.main(["export", str(trained.run), str(tmp_path / "m")])
    assert not list((tmp_path / "m").glob("*.onnx"))


def test_d9_metadata_name_the_encoder(exported, trained):
    _, session = exported
    metadata = session.get_modelmeta().custom_metadata_map
    _, description = load_encoder(trained.model)
    assert metadata.pop("speechbrain_sim")
    assert metadata == {
        "sample_rate": "16000",
        "layer": "module3",
        "hop": "160",
        "channels": "6",
        "shortest": "41",
        "encoder_sha256": description["sha256"],
    }


IMPOSSIBLE = [[3000, 0], [-3, 3000], [3001, 3000], [40, 3000], [3000, 10**9]]


@pytest.mark.parametrize("lengths", IMPOSSIBLE)
def test_d9_impossible_lengths_stop(exported, trained, lengths):
    _, session = exported
    wavs, lengths = torch.randn(2, 3000), torch.tensor(lengths)
    given = {"wavs": wavs.numpy(), "lengths": lengths.numpy()}
    with pytest.raises(Exception, match="lengths_must_be_possible"):
        session.run(None, given)
    plain = PlainEncoder(trained.encoder, "module3")
    with pytest.raises((ValueError, IndexError)):
        plain(wavs, lengths)
    traced = torch.jit.trace(plain, (wavs, torch.tensor([3000, 2000])))
    with pytest.raises(RuntimeError, match="out of bounds"):
        traced(wavs, lengths)


def test_d9_the_shortest_has_a_frame(exported, trained, tmp_path):
    _, session = exported
    given = {"wavs": np.zeros((1, 41), "f4"), "lengths": np.array([41])}
    assert session.run(None, given)[1].tolist() == [1]
    metadata = export_onnx(trained.encoder, "module1", tmp_path / "a.onnx")
    shortest = int(metadata["shortest"])
    frames = trained.encoder.output_lengths
    assert frames(shortest, "module1") == 1 > frames(shortest - 1, "module1")


# --------------------------------------------------------------------- D10

SCRIPT = """
import sys
from speechbrain_sim.data.corpora.synthetic import make_synthetic_corpus
print("started", flush=True)
make_synthetic_corpus(sys.argv[1], 2, 2, 1, workers=2)
print("made")
"""


def test_d10_a_script_needs_no_guard(tmp_path):
    pytest.importorskip("espeakng_loader")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, script, tmp_path / "corpus"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,  # it hung for ever
    )
    assert done.stdout.split() == ["started", "made"], done.stderr
    assert (tmp_path / "corpus/synthetic.json").exists()


# --------------------------------------------------------------------- D11


def test_d11_traces_are_refused(trained, model):
    wavs = torch.randn(1, 2000)
    for use in (
        LatentFeatures(trained.model, "module3"),
        LatentFeatures(trained.model, MODULES, frozen=False),
        trained.encoder,
        model,
    ):
        with pytest.raises(RuntimeError, match="cannot be traced: .*PlainEnc"):
            torch.jit.trace(use, wavs, strict=False)


def test_d11_functional_transforms_work(trained):
    encoder = copy.deepcopy(trained.encoder)
    wavs, weights = torch.randn(2, 2000), dict(encoder.named_parameters())

    def loss(weights, wavs, layer):
        options = {"layers": [layer], "sample": False}
        out = torch.func.functional_call(encoder, weights, (wavs,), options)
        return out[layer].mean.square().mean()

    for layer in encoder.layer_names:
        found = torch.func.grad(loss)(weights, wavs, layer)
        encoder.requires_grad_(True).zero_grad()
        loss(dict(encoder.named_parameters()), wavs, layer).backward()
        for name, weight in encoder.named_parameters():
            expected = weight.grad
            if expected is not None:
                torch.testing.assert_close(found[name], expected)
    _, slope = torch.func.jvp(
        lambda x: loss(weights, x, "module3"), (wavs,), (wavs,)
    )
    assert slope.isfinite()
    rows = torch.func.vmap(lambda x: loss(weights, x[None], "module3"))(wavs)
    each = [loss(weights, x[None], "module3") for x in wavs]
    torch.testing.assert_close(rows, torch.stack(each))


def test_d11_features_are_functional_and_copied(trained, caplog):
    features, wavs = (
        LatentFeatures(trained.model, MODULES),
        torch.randn(1, 2000),
    )
    weights = {"weights": features.weights.detach()}

    def energy(weights):
        call = torch.func.functional_call(features, weights, (wavs,))
        return call.square().sum()

    for _ in range(11):
        slope = torch.func.grad(energy)(weights)["weights"]
    features(wavs).square().sum().backward()
    torch.testing.assert_close(slope, features.weights.grad)
    again = pickle.loads(pickle.dumps(copy.deepcopy(features)))
    assert torch.equal(again(wavs), features(wavs)) and not caplog.text


def test_d11_a_second_derivative_names_the_plain_form(trained, monkeypatch):
    encoder = copy.deepcopy(trained.encoder)
    wavs = torch.randn(1, 2000, requires_grad=True)

    def slope():
        energy = encoder(wavs, layers=["module3"])["module3"].mean.square()
        (grad,) = torch.autograd.grad(energy.sum(), wavs, create_graph=True)
        return grad

    first = slope()  # as such, create_graph changes nothing
    with pytest.raises(RuntimeError, match="set BlockConv1d.plain = True"):
        first.square().sum().backward()
    monkeypatch.setattr(
        "speechbrain_sim.encoders.block_conv.BlockConv1d.plain", True
    )
    second = slope()
    torch.testing.assert_close(second, first)
    second.square().sum().backward()
    assert wavs.grad.abs().sum() > 0


# --------------------------------------------------------------------- D12


def test_d12_exports_keep_the_hub_s_conventions(trained):
    for path in trained.model.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            assert file.metadata() == {"format": "pt"}
    card = (trained.model / "README.md").read_text()
    # a library without a snippet of the Hub's own, which would be invalid
    assert "\nlibrary_name: speechbrain-sim\n" in card
    assert "\n- speechbrain\n" in card
    config = json.loads((trained.model / "config.json").read_text())
    assert config["speechbrain_interface"] == "SmoothInfoMax"


def test_d12_local_files_only_reaches_the_fetch(trained, monkeypatch):
    asked = []

    def refuse(name, filename, **options):
        asked.append(options["local_files_only"])
        raise OSError("not in the cache")

    monkeypatch.setattr("speechbrain_sim.models.fetch.hf_hub_download", refuse)
    for load in (SmoothInfoMax.from_pretrained, load_encoder):
        for options in ({"local_files_only": True}, {"allow_network": False}):
            with pytest.raises(HubError, match="not in the cache"):
                load("hf://user/model", **options)
    assert asked == [True] * 4
    with pytest.raises(HubError):
        load_encoder("hf://user/model")
    assert not asked[-1]
    assert load_encoder(trained.model, local_files_only=True)
    assert open_source(trained.model, local_files_only=True)


# ---------------------------------------------------------------------- H4


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("seconds", [0.5, 11.0])
def test_h4_nan_is_no_answer(model, bad, seconds):
    wavs = torch.randn(3, round(16000 * seconds)) / 10
    wavs[1, 5000] = bad
    message = "Utterance 1 of wavs reaches (nan|inf): samples are finite"
    for use in (model.encode_batch, model):
        with pytest.raises(ValueError, match=message):
            use(wavs)
    for label in ("speaker", "phones"):
        with pytest.raises(ValueError, match=message):
            model.classify(wavs, label=label)
        with pytest.raises(ValueError, match="Utterance 0 of wavs reaches nan"):
            model.classify(wavs * torch.nan, label=label)


def test_h4_latents_that_are_not_finite_name_their_layer(trained, files):
    model = SmoothInfoMax.from_pretrained(trained.model)
    wavs = torch.randn(2, 3000)
    torch.nn.init.constant_(model.encoder.layers["module2"].mean.bias, 3e38)
    torch.nn.init.constant_(model.encoder.layers["module2"].mean.weight, 3e38)
    with pytest.raises(ValueError, match="module2 of utterance 0 holds NaN or"):
        model.classify(wavs, label="speaker", layer="module2")
    assert model.encode_batch(wavs, layer="module1")
    for use in (model.encode_file, model.features):
        with pytest.raises(ValueError, match=f"module2 of {files[0]} holds"):
            use(files[0])


def test_h4_files_with_nan_are_named(model, tmp_path):
    wav = np.full(8000, 0.1, "f4")
    wav[4000] = np.nan
    soundfile.write(tmp_path / "a.wav", wav, 16000, subtype="FLOAT")
    for use in (model.encode_file, model.features):
        with pytest.raises(ValueError, match="a.wav.* NaN or infini"):
            use(tmp_path / "a.wav")
