"""Models in use: what they give, and everything that they refuse."""

import os
import pickle
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file
from speechbrain.utils.fetching import FetchConfig, FetchFrom, FetchSource

from speechbrain_sim.data.audio import BadAudio
from speechbrain_sim.data.corpora.synthetic import PHONES
from speechbrain_sim.family import build_model
from speechbrain_sim.files import sha256
from speechbrain_sim.hub.publish import export_model
from speechbrain_sim.inference import SafetensorsPretrainer, SmoothInfoMax
from speechbrain_sim.models.fetch import open_source
from speechbrain_sim.models.format import save_parts
from tests.conftest import HPARAMS, ROOT, TINY, edit_config, options_for

DOORS = ["from_hparams", "from_pretrained"]


@pytest.fixture(scope="module", params=DOORS)
def model(request, trained):
    return getattr(SmoothInfoMax, request.param)(trained.model)


@pytest.fixture(params=DOORS)
def door(request):
    return getattr(SmoothInfoMax, request.param)


def equal(latent, other):
    pairs = zip(latent[:4], other[:4], strict=True)
    return all(a is b is None or torch.equal(a, b) for a, b in pairs)


# what it gives --------------------------------------------------------------


def test_it_encodes_as_the_encoder_does(model, trained):
    wavs, lens = torch.randn(3, 4000), torch.tensor([1.0, 0.5, 0.25])
    with torch.no_grad():
        expected = trained.encoder(wavs, lens)
    found = model.encode_batch(wavs, lens)
    assert list(found) == model.layer_names == trained.encoder.layer_names
    for layer, latent in expected.items():
        assert equal(found[layer], latent)
        assert equal(model.encode_batch(wavs, lens, layer), latent)
    assert equal(model(wavs, lens)["context"], expected["context"])
    assert not any(weight.requires_grad for weight in model.parameters())


def test_samples_are_drawn_when_asked_for(model):
    wavs, seeded = torch.randn(1, 3000), torch.Generator()
    draws = [
        model.encode_batch(wavs, None, "module3", True, seeded.manual_seed(s))
        for s in (1, 1, 2)
    ]
    assert draws[0].sampled and draws[0].log_var is not None
    assert torch.equal(draws[0].sample, draws[1].sample)
    assert not torch.equal(draws[0].sample, draws[2].sample)
    mean = model.encode_batch(wavs, None, "module3")
    assert not mean.sampled and torch.equal(mean.sample, mean.mean)


@pytest.mark.parametrize("kind", ["sim", "gim", "cpc"])
def test_relatives_load_too(tmp_path, kind):
    encoder = build_model(kind, **TINY).encoder
    training = {"model": kind, "corpus": "Tiny"}
    save_parts(tmp_path / "run", {"encoder": encoder}, training=training)
    export_model(tmp_path / "run", tmp_path / "model")
    wavs = torch.randn(1, 3000)
    encoder.eval().requires_grad_(False)
    for door in DOORS:
        model = getattr(SmoothInfoMax, door)(tmp_path / "model")
        for layer, latent in model.encode_batch(wavs).items():
            assert equal(latent, encoder(wavs)[layer])
            has_posterior = kind == "sim" and layer != "context"
            assert (latent.log_var is not None) == has_posterior


def test_long_batches_are_encoded_in_pieces(model, monkeypatch):
    wavs, lens = torch.randn(2, 9000), torch.tensor([9000, 5001])
    whole = model.encode_batch(wavs, lens)
    monkeypatch.setattr("speechbrain_sim.inference.CHUNK_SECONDS", 0.1)
    pieces = model.encode_batch(wavs, lens)
    for layer, latent in whole.items():
        assert torch.equal(pieces[layer].lengths, latent.lengths)
        for row, frames in enumerate(latent.lengths):
            for a, b in zip(pieces[layer][:2], latent[:2], strict=True):
                if a is not None:
                    torch.testing.assert_close(
                        a[row, :frames], b[row, :frames], atol=1e-5, rtol=1e-5
                    )


@pytest.mark.parametrize("rate, channels", [(16000, 1), (16000, 2), (22050, 2)])
def test_files_are_converted_as_speechbrain_does(
    model, tmp_path, rate, channels
):
    path = tmp_path / "a.wav"
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (rate // 2, channels))
    soundfile.write(path, noise, rate, subtype="FLOAT")
    found = model.encode_file(path, "module3", chunk_seconds=0.13)
    wav = model.load_audio(str(path))
    expected = model.encode_batch(wav[None], layer="module3")
    torch.testing.assert_close(found.mean, expected.mean, atol=1e-4, rtol=1e-4)
    assert found.mean.shape == expected.mean.shape
    assert torch.equal(found.lengths, expected.lengths)
    assert list(model.encode_file(path)) == model.layer_names
    pieces = list(model.stream_file(path, "module3", chunk_seconds=0.13))
    assert len(pieces) == 4
    joined = torch.cat([piece.mean for piece in pieces], dim=1)
    assert torch.equal(joined, found.mean)


def test_a_cut_file_is_refused(model, tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, np.ones(8000) / 2, 16000)
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(BadAudio, match="truncated"):
        model.encode_file(path)


def test_latents_are_heard(model):
    wavs = torch.randn(2, 4000)
    latent = model.encode_batch(wavs, torch.tensor([4000, 3000]), "module3")
    heard = model.decode(
        latent.mean, "module3", 4000, torch.tensor([4000, 3000])
    )
    assert heard.shape == (2, 4000) and not heard[1, 3000:].any()
    shortest = model.decode(latent.mean, "module3")
    again = model.encode_batch(shortest, layer="module3")
    assert again.mean.shape == latent.mean.shape
    walk = model.interpolate(latent.mean[0], latent.mean[1], "module3", 5)
    ends = model.decode(latent.mean, "module3")
    torch.testing.assert_close(walk[[0, 4]], ends)
    stops = model.traverse(latent.mean[0], 2, [-3.0, 0.0, 3.0], "module3")
    assert stops.shape == (3, shortest.shape[1])
    assert not torch.equal(stops[0], stops[2])
    with pytest.raises(ValueError, match="no decoder of 'module1'.*module3"):
        model.decode(latent.mean, "module1")


def test_probes_answer_as_they_were_trained(model, trained):
    wavs, lens = torch.randn(2, 4000), torch.tensor([4000, 2000])
    latent = model.encode_batch(wavs, lens, "module3")
    for label in ("speaker", "phones"):
        state = load_file(trained.probe / f"probe_{label}.safetensors")
        weight = state["probes.module3.weight"]
        bias = state["probes.module3.bias"]
        mean, std = state["module3_mean"], state["module3_std"]
        x = latent.mean
        if label == "speaker":
            rows = zip(x, latent.lengths, strict=True)
            x = torch.stack([row[:n].mean(0) for row, n in rows])[:, None]
        expected = ((x - mean) / std @ weight[0] + bias[0]).softmax(-1)
        found = model.classify(wavs, lens, label)  # module3 was chosen
        torch.testing.assert_close(found.probabilities, expected)
        names = found.names()
        assert [len(row) for row in names] == found.lengths.tolist()
        assert found.lengths.tolist() == (
            [1, 1] if label == "speaker" else [25, 13]
        )
        best = found.classes[int(expected[0, 0].argmax())]
        assert names[0][0] == best
        other = model.classify(wavs, lens, label, "module1")
        assert other.probabilities.shape[-1] == len(found.classes)
    with pytest.raises(ValueError, match="no probe of 'word'.*phones, speaker"):
        model.classify(wavs, lens, "word")
    with pytest.raises(ValueError, match="label=: phones or speaker"):
        model.classify(wavs, lens)


@pytest.mark.parametrize("corpus", ["Synthetic", "LibriSpeech"])
def test_phones_have_the_names_of_their_corpus(
    recipes, corpora, tmp_path, corpus
):
    encoder = build_model("sim", **TINY).encoder
    training = {"model": "sim", "corpus": corpus}
    save_parts(tmp_path / "run", {"encoder": encoder}, training=training)
    yaml = HPARAMS / corpus / "probe.yaml"
    recipes["probe"].main(
        [str(yaml), "--encoder", str(tmp_path / "run"), "--label=phones"]
        + ["--output_folder", str(tmp_path / "probe"), "--layers=[module3]"]
        + ["--device", "cpu", "--controls", "10"]
        + options_for(yaml, corpora)
    )
    export_model(tmp_path / "run", tmp_path / "model", [tmp_path / "probe"])
    model = SmoothInfoMax.from_pretrained(tmp_path / "model")
    found = model.classify(torch.randn(1, 4000))
    # numbers of a published list have no names
    named = PHONES if corpus == "Synthetic" else list(map(str, range(41)))
    assert found.classes == named[: len(found.classes)]
    assert len(found.classes) > 35 and {*found.names()[0]} <= {*named}


@pytest.mark.parametrize(
    "wavs, message",
    [
        (torch.zeros(8000), r"got shape \[8000\].*wavs\[None\]"),
        (torch.zeros(2, 8000, 1), r"got shape \[2, 8000, 1\]"),
        (torch.zeros(1, 8000).short(), "got torch.int16.*wavs / 32768"),
    ],
)
def test_other_waveforms_are_refused(model, wavs, message):
    for use in (model, model.encode_batch, model.classify):
        options = {"label": "phones"} if use == model.classify else {}
        with pytest.raises(ValueError, match=message):
            use(wavs, **options)


def test_other_latents_are_refused(model):
    z = torch.randn(25, 6)
    with pytest.raises(ValueError, match=r"got shape \[25, 6\].*z\[None\]"):
        model.decode(z, "module3")
    assert model.decode(z[None], "module3").dim() == 2


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_model_stays_in_eval_mode(tmp_path, frozen):
    encoder = build_model("sim", **{**TINY, "batch_norm": True}).encoder
    save_parts(tmp_path / "run", {"encoder": encoder}, training={})
    export_model(tmp_path / "run", tmp_path / "model")
    model = SmoothInfoMax.from_pretrained(
        tmp_path / "model", freeze_params=frozen
    )
    before = {k: v.clone() for k, v in model.encoder.state_dict().items()}
    torch.nn.ModuleDict({"features": model}).train()
    assert model.training and model.encoder.training != frozen
    model.encode_batch(torch.randn(2, 3000))
    after = model.encoder.state_dict()
    moved = [not torch.equal(before[name], after[name]) for name in before]
    assert any(moved) != frozen
    assert not model.eval().encoder.training


# doors ----------------------------------------------------------------------


def test_both_doors_give_the_same_bits(trained):
    one, other = (getattr(SmoothInfoMax, d)(trained.model) for d in DOORS)
    wavs = torch.randn(1, 3000)
    for layer, latent in one.encode_batch(wavs).items():
        assert equal(latent, other.encode_batch(wavs, layer=layer))


def test_folders_never_touch_the_network(trained, door, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    door(trained.model)
    door(FetchSource(FetchFrom.LOCAL, str(trained.model)))


def test_the_second_door_runs_no_code(trained, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("this can run code")

    import hyperpyyaml
    import ruamel.yaml

    for name in ("load", "load_all", "full_load", "safe_load", "unsafe_load"):
        monkeypatch.setattr(yaml, name, refuse)
    monkeypatch.setattr(ruamel.yaml.YAML, "load", refuse)
    monkeypatch.setattr(hyperpyyaml, "load_hyperpyyaml", refuse)
    monkeypatch.setattr(
        "speechbrain.inference.interfaces.load_hyperpyyaml", refuse
    )
    for name in ("load", "loads", "Unpickler", "_Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "load", refuse)
    model = SmoothInfoMax.from_pretrained(trained.model)
    assert model.encode_batch(torch.randn(1, 3000), layer="module1")
    with pytest.raises(AssertionError, match="this can run code"):
        SmoothInfoMax.from_hparams(trained.model)


def test_the_pretrainer_serves_other_recipes(trained):
    encoder = type(trained.encoder)(**trained.encoder.arguments)
    for path in ("", "/encoder.safetensors"):
        pretrainer = SafetensorsPretrainer(
            loadables={"encoder": encoder},
            paths={"encoder": f"{trained.model}{path}"},
        )
        pretrainer.collect_files()
        pretrainer.load_collected()
        for a, b in zip(
            encoder.parameters(), trained.encoder.parameters(), strict=True
        ):
            assert torch.equal(a, b)
    pretrainer = SafetensorsPretrainer(loadables={"vocoder": encoder})
    with pytest.raises(FileNotFoundError, match="holds no vocoder, only enc"):
        pretrainer.collect_files(trained.model)
    with pytest.raises(RuntimeError, match="call collect_files.*every process"):
        SafetensorsPretrainer(loadables={"encoder": encoder}).load_collected()
    with pytest.raises(ValueError, match="no source for 'vocoder'"):
        pretrainer.collect_files()


# what it refuses ------------------------------------------------------------


def rehash(folder, name="encoder.safetensors"):
    digest, part = sha256(folder / name), name.removesuffix(".safetensors")
    edit_config(folder, lambda c: c["parts"][part].update(sha256=digest))


def change_state(folder, change):
    path = folder / "encoder.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)
    rehash(folder)


FIRST = "layers.module1.mean.bias"
WRONG_WEIGHTS = {
    "missing": (lambda state: state.pop(FIRST), f"{FIRST} is missing"),
    "extra": (
        lambda state: state.update(extra=torch.zeros(2)),
        "extra is too much",
    ),
    "shape": (
        lambda state: state.update({FIRST: torch.zeros(7)}),
        r"\[7\] torch.float32 there, \[6\]",
    ),
    "type": (
        lambda state: state.update({FIRST: state[FIRST].double()}),
        "float64 there",
    ),
}


@pytest.mark.parametrize("wrong", WRONG_WEIGHTS)
def test_wrong_weights_are_refused(model_folder, door, wrong):
    change, message = WRONG_WEIGHTS[wrong]
    change_state(model_folder, change)
    with pytest.raises(ValueError, match=message):
        door(model_folder)


@pytest.mark.parametrize("part", ["encoder", "decoder_module3", "probe_phones"])
@pytest.mark.parametrize("damage", ["cut", "bit", "gone", "foreign"])
def test_damaged_files_are_refused(model_folder, door, part, damage):
    path = model_folder / f"{part}.safetensors"
    content = bytearray(path.read_bytes())
    error, message = ValueError, "does not have the hash"
    if damage == "cut":
        path.write_bytes(content[:-10])
    elif damage == "bit":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "gone":
        path.unlink()
        error, message = FileNotFoundError, f"holds no {path.name}"
    else:  # its hash is right, but it is something else
        path.write_bytes(pickle.dumps({"weight": 1}))
        rehash(model_folder, path.name)
        message = "is no safetensors file"
    with pytest.raises(error, match=message):
        door(model_folder)


CONFIGS = {
    "no json": ("{", "is not json"),
    "a list": ("[]", "describes no model"),
    "foreign": ('{"model_type": "hubert"}', "the type 'hubert'"),
    "newer": (
        '{"model_type": "smooth_infomax", "format": 3}',
        "install a newer version",
    ),
    "older": (
        '{"model_type": "smooth_infomax", "format": 1}',
        "has the format 1.*train and export the model again",
    ),
    "empty": (
        '{"model_type": "smooth_infomax", "format": 2}',
        "states parts as NoneType",
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_wrong_configs_are_refused(model_folder, door, kind):
    text, message = CONFIGS[kind]
    (model_folder / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        door(model_folder)


CHANGES = {
    "hash gone": (
        lambda c: c["parts"]["encoder"].pop("sha256"),
        "lacks the sha256 of encoder",
    ),
    "path": (
        lambda c: c["parts"].update({"probe_/../x": c["parts"]["encoder"]}),
        "names a part",
    ),
    "class": (
        lambda c: c["parts"]["encoder"].update({"class": "Linear"}),
        "names a class 'Linear' for encoder",
    ),
    "rate": (lambda c: c.update(sample_rate=8000), "8000, not 16000"),
    "architecture": (
        lambda c: c["parts"]["encoder"]["arguments"].update(eval="1"),
        "states eval .1. for encoder",
    ),
    "size": (
        lambda c: c["parts"]["encoder"]["arguments"].update(channels=8),
        "does not fit",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_changed_configs_are_refused(model_folder, kind):
    change, message = CHANGES[kind]
    edit_config(model_folder, change)
    with pytest.raises(ValueError, match=message):
        SmoothInfoMax.from_pretrained(model_folder)


def test_a_yaml_that_does_not_fit_is_refused(model_folder):
    with pytest.raises(ValueError, match="does not fit"):
        SmoothInfoMax.from_hparams(
            model_folder, overrides={"encoder": {"channels": 8}}
        )
    path = model_folder / "hyperparams.yaml"
    path.write_text(
        path.read_text().replace("    encoder: !ref", "    e: !ref")
    )
    with pytest.raises(FileNotFoundError, match="holds no e, only encoder"):
        SmoothInfoMax.from_hparams(model_folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="holds no hyperparams.yaml"):
        SmoothInfoMax.from_hparams(model_folder)


@pytest.mark.parametrize("part", ["encoder", "decoder_module3", "probe_phones"])
def test_a_yaml_that_loads_too_little_is_refused(model_folder, part):
    path = model_folder / "hyperparams.yaml"
    text = path.read_text()
    path.write_text(text.replace(f"        {part}: !ref <{part}>\n", ""))
    with pytest.raises(ValueError, match=f"loads no weights into {part}: list"):
        SmoothInfoMax.from_hparams(model_folder)
    # weights are loaded, but into another network than the one that is used
    path.write_text(
        text.replace(
            f"    {part}: !ref <{part}>", f"    {part}: !copy <{part}>", 1
        )
    )
    with pytest.raises(ValueError, match=f"loads no weights into {part}: list"):
        SmoothInfoMax.from_hparams(model_folder)


def test_a_yaml_may_hold_more(model_folder):
    assert SmoothInfoMax.from_hparams(model_folder, download_only=True) is None
    path = model_folder / "hyperparams.yaml"
    more = "modules:\n    act: !new:torch.nn.ReLU"
    path.write_text(path.read_text().replace("modules:", more, 1))
    assert "act" in SmoothInfoMax.from_hparams(model_folder).mods
    more = "modules:\n    act: !new:torch.nn.PReLU"
    path.write_text(
        path.read_text().replace("modules:\n    act: !new:torch.nn.ReLU", more)
    )
    with pytest.raises(ValueError, match="loads no weights into act"):
        SmoothInfoMax.from_hparams(model_folder)


def test_modules_are_asked_for():
    with pytest.raises(ValueError, match="lack 'encoder'"):
        SmoothInfoMax({}, {"sample_rate": 16000})


# sources and savedir --------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "results/sim_1/model",
        "./model",
        "/no/where",
        "../model",
        "model",
        "a b/c",
        "~/no such folder",
    ],
)
def test_paths_are_not_taken_for_names(source, door, monkeypatch):
    monkeypatch.setattr(
        "speechbrain_sim.models.fetch.hf_hub_download",
        lambda *args, **kwargs: pytest.fail("asked the Hub"),
    )
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        door(source)


def test_what_could_be_either_is_asked_about(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    with pytest.raises(
        FileNotFoundError, match="though there is results.*hf:/"
    ):
        open_source("results/sim")
    assert open_source("hf://results/sim").name == "results/sim"
    source = FetchSource(FetchFrom.HUGGING_FACE, "results/sim")
    assert open_source(source).name == "results/sim"
    with caplog.at_level("WARNING"):
        assert not caplog.text
        assert open_source("user/sim").name == "user/sim"
    assert "no folder user/sim: it is taken from the Hub" in caplog.text


def test_savedirs_do_not_mix_models(trained, model_folder, tmp_path):
    savedir = tmp_path / "saved"
    first = SmoothInfoMax.from_hparams(trained.model, savedir=savedir)
    names = {path.name for path in savedir.iterdir()}
    assert names == {
        *("config.json", "hyperparams.yaml", "encoder.safetensors"),
        *("decoder_module3.safetensors", "probe_phones.safetensors"),
        "probe_speaker.safetensors",
    }
    SmoothInfoMax.from_hparams(trained.model, savedir=savedir)  # again: fine
    SmoothInfoMax.from_hparams(savedir)  # what was saved is a model
    change_state(model_folder, lambda state: state[FIRST].add_(1))
    with pytest.raises(ValueError, match="of another model, or of another"):
        SmoothInfoMax.from_hparams(model_folder, savedir=savedir)
    other = SmoothInfoMax.from_hparams(
        model_folder, savedir=savedir, fetch_config=FetchConfig(overwrite=True)
    )
    wavs = torch.randn(1, 3000)
    latents = [m.encode_batch(wavs, layer="module1") for m in (first, other)]
    torch.testing.assert_close(latents[0].mean + 1, latents[1].mean)
    shutil.rmtree(savedir)
    assert (model_folder / "encoder.safetensors").exists()


LONG = """
import resource, sys
import numpy as np, soundfile
from speechbrain_sim.inference import SmoothInfoMax

model = SmoothInfoMax.from_pretrained(sys.argv[1])
minute = np.random.default_rng(0).uniform(-0.1, 0.1, 60 * 16000)
for minutes in (1, 61):
    with soundfile.SoundFile("long.wav", "w", 16000, 1) as file:
        for _ in range(minutes):
            file.write(minute)
    frames = sum(
        piece.mean.shape[1] for piece in model.stream_file("long.wav", "context")
    )
    print(frames, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_an_hour_needs_no_more_memory_than_a_minute(trained, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LONG, str(trained.model)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    (tmp_path / "long.wav").unlink()
    (frames, minute), (more, hour) = (
        map(int, line.split()) for line in done.stdout.splitlines()
    )
    assert (frames, more) == (6000, 61 * 6000)
    assert hour - minute < 20_000  # kB; the waveform alone has 234,000
