"""Export, publish, check; and a Hub of our own that does its worst."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import soundfile
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from speechbrain_sim import cli
from speechbrain_sim.encoders.logmel import LogMel
from speechbrain_sim.files import sha256
from speechbrain_sim.hub.card import write_card
from speechbrain_sim.hub.publish import check_model, export_model, publish_model
from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.fetch import HubError, hub_errors, open_source
from speechbrain_sim.models.format import example_folder, save_parts
from speechbrain_sim.models.load import load_decoder, load_encoder
from tests.conftest import (
    ROOT,
    edit_config,
    finish,
    make_run,
    same,
    start_recipe,
)
from tests.loopback_hub import LoopbackHub

FILES = {
    *("config.json", "hyperparams.yaml", "README.md", "RESULTS.md"),
    "example.wav",
    *("encoder.safetensors", "decoder_module3.safetensors"),
    *("probe_phones.safetensors", "probe_speaker.safetensors"),
}
REPO = "user/sim-tiny"
#: what two doors make of a model, bit for bit
EMBED = """
import hashlib, sys, torch
from speechbrain_sim.inference import SmoothInfoMax
wavs = torch.randn(2, 3000, generator=torch.Generator().manual_seed(0))
for door in sys.argv[2:]:
    model = getattr(SmoothInfoMax, door)(sys.argv[1])
    bits = b"".join(z.mean.numpy().tobytes() for z in model(wavs).values())
    print(door, hashlib.sha256(bits).hexdigest())
"""
LOAD = """
import sys
from speechbrain_sim.inference import SmoothInfoMax
revision = sys.argv[2] if len(sys.argv) > 2 else None
SmoothInfoMax.from_pretrained(sys.argv[1], revision=revision)
print("loaded")
"""


# export ---------------------------------------------------------------------


def test_a_model_folder_is_complete(trained):
    assert {path.name for path in trained.model.iterdir()} == FILES
    config = json.loads((trained.model / "config.json").read_text())
    parts = config["parts"]
    weights = {f"{name}.safetensors" for name in parts}
    assert weights == {f for f in FILES if "safetensors" in f}
    assert parts["encoder"]["layers"] == trained.encoder.layer_names
    assert config["training"]["model"] == "sim"
    assert parts["probe_phones"]["best_layer"] == "module3"
    assert parts["probe_phones"]["classes"] == ["a", "b", "c"]
    assert config["data"]["licence"] == "apache-2.0"
    assert set(config["versions"]) >= {"torch", "speechbrain", "python"}
    yaml = (trained.model / "hyperparams.yaml").read_text()
    assert "!include" not in yaml and not re.search(r"\s/\w", yaml)
    text = "".join(
        (trained.model / n).read_text() for n in FILES if n.endswith("n")
    )
    assert str(trained.run.parent) not in text


def test_an_export_is_reproducible(trained, tmp_path):
    again = tmp_path / trained.model.name  # the card's title
    export_model(trained.run, again, [trained.probe], [trained.decoder])
    for path in trained.model.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path
        assert (again / path.name).stat().st_mode == path.stat().st_mode


def test_a_card_says_what_the_hub_reads(trained):
    card = ModelCard.load(trained.model / "README.md")
    data = card.data.to_dict()
    assert data["library_name"] == "speechbrain-sim"
    assert data["pipeline_tag"] == "feature-extraction"
    assert data["license"] == "apache-2.0"
    assert data["datasets"] == ["synthetic-speech"]
    results = card.data.eval_results
    assert [r.metric_value for r in results] == [0.5, 0.5]
    assert "phones, linear probe on module3" in results[0].metric_name
    for said in (
        "| `module3` (chosen on validation data) | 50.0 ± 1.0 [40.0, 60.0] "
        "| 49.0 to 51.0 | 49.0 |",
        "It comes with decoders of `module3` and linear probes of phones and",
        "one frame per 10 ms at the top",
        "**This is a reduced run:** 6 channels and 2 epochs, where the paper's "
        "encoders have 512 channels, on other data.",
        "return of validation recordings: `module3` 25 % of the energy.",
        "no recording of a person. espeak-ng is",
        "none of it is in this model. Licence of the data: apache-2.0; the w",
        "- It is for trying the software out, for teaching and for tests",
        "bootstrapped over test recordings",
        "## Limits",
        "@misc{denoodt2025smooth",
        "author = {Denoodt, Fabian and de Boer, Bart and Oramas, Jos{\\'e}}",
        'author = {L{\\"o}we, Sindy',
        "package speechbrain-sim installed, see its README",
        "Log-mel spectrograms, or the same network untrained, can do",
    ):
        assert said in card.text


def test_a_card_states_how_probes_were_solved(model_folder):
    config = json.loads((model_folder / "config.json").read_text())
    layers = config["parts"]["probe_phones"]["layers"].values()
    for score, standardize in zip(layers, [True, False] * 2, strict=True):
        score |= {"strength": 1e-3, "standardize": standardize}
        score |= {"per_seed": [0.5], "deviation": None}
    write_card(model_folder, config)
    card = (model_folder / "README.md").read_text()
    phones, speaker = card.split("| speaker, 2 classes")
    assert "| test accuracy (%) | strength of L2 | units |\n" in phones
    assert "| `module1` | 50.0 [40.0, 60.0] | 0.001 | standardized |" in phones
    assert "| 50.0 [40.0, 60.0] | 0.001 | raw |" in phones
    assert "seed" not in phones.split("## Results")[1]
    assert "| 49.0 to 51.0 | 49.0 |" in speaker
    assert "Of each probe of several seeds, the first seed's" in speaker
    assert "phones: solved, so that there is one probe" in speaker
    for score in config["parts"]["probe_speaker"]["layers"].values():
        score |= {"strength": 0.1, "standardize": True}
        score |= {"per_seed": [0.5], "deviation": None}
    write_card(model_folder, config)
    results = (model_folder / "README.md").read_text().split("## Results")[1]
    results = results.split("Settings, as options")[0]
    assert "phones and speaker: solved" in results
    assert "±" not in results and "first seed" not in results


def test_the_card_s_snippet_runs(trained, monkeypatch, capsys):
    monkeypatch.chdir(trained.model.parent)
    card = (trained.model / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n(.*?)```", card, re.S)
    exec(snippet, {})
    assert "torch.Size([1, 150, 4])" in capsys.readouterr().out


def test_what_comes_along_is_chosen(tmp_path, trained):
    tone = tmp_path / "tone.flac"
    soundfile.write(tone, torch.rand(22050).numpy(), 22050)
    config = export_model(
        trained.run, tmp_path / "bare", examples=[tone], licence="cc0-1.0"
    )
    assert set(config["parts"]) == {"encoder"}
    assert soundfile.info(tmp_path / "bare/example.wav").frames == 16000
    spoken = {tone: "high", trained.model / "example.wav": "<low>"}
    export_model(trained.run, tmp_path / "bare", examples=spoken)
    two = SmoothInfoMax.from_pretrained(tmp_path / "bare").examples
    assert [soundfile.info(path).frames for path in two] == [16000, 24000]
    card = (tmp_path / "bare/README.md").read_text()
    assert "- `example_2.wav`: &lt;low>\n" in card
    argv = ["export", str(trained.run), str(tmp_path / "bare"), "--half"]
    cli.main([*argv, "--example", str(tone)])
    assert not two[1].exists()
    assert len(SmoothInfoMax.from_pretrained(tmp_path / "bare").examples) == 1
    assert "nothing was measured" in (tmp_path / "bare/README.md").read_text()
    assert config["data"]["licence"] == "cc0-1.0"
    assert len(list(check_model(tmp_path / "bare"))) == 4
    export_model(trained.run, tmp_path / "bare", [trained.probe])  # over it
    assert len(list((tmp_path / "bare").glob("*.safetensors"))) == 3


def test_unknown_data_is_said_to_be_unknown(tmp_path):
    made = make_run(tmp_path, corpus="Folder")
    config = export_model(made.run, tmp_path / "model")
    assert config["data"]["licence"] == "other"
    assert "licence is not known" in (tmp_path / "model/README.md").read_text()
    said = []
    publish_model(tmp_path / "model", REPO, dry_run=True, say=said.append)
    assert any("export it with --licence" in line for line in said)
    config = export_model(
        made.run, tmp_path / "model", data="Calls", licence="cc-by-4.0"
    )
    assert config["data"]["name"] == "Calls"
    assert "As stated by those" in (tmp_path / "model/README.md").read_text()


LICENCES = {
    "ArtificialSpeech": ("cc-by-nc-sa-4.0", 1000),
    "LibriSpeech": ("cc-by-4.0", 100),
    "Synthetic": ("apache-2.0", None),
}


@pytest.mark.parametrize("corpus", LICENCES)
def test_weights_are_given_under_the_licence_of_the_data(tmp_path, corpus):
    licence, epochs = LICENCES[corpus]
    made = make_run(tmp_path, corpus="Folder")
    export_model(made.run, tmp_path / "model", data=corpus)
    card = ModelCard.load(tmp_path / "model/README.md")
    assert card.data.license == licence
    assert f"Licence of the data: {licence}; the weights are given" in card.text
    full = f"512 channels and {epochs} epochs on this data."
    assert (full in card.text) == bool(epochs)


def test_foreign_parts_are_refused(tmp_path, trained):
    other = make_run(tmp_path, channels=5)
    for parts in ({"probes": [other.probe]}, {"decoders": [other.decoder]}):
        with pytest.raises(ValueError, match="another encoder: train a"):
            export_model(trained.run, tmp_path / "model", **parts)
    for parts in ({"probes": [tmp_path]}, {"decoders": [tmp_path]}):
        with pytest.raises(FileNotFoundError, match="holds no"):
            export_model(trained.run, tmp_path / "model", **parts)
    with pytest.raises(FileNotFoundError, match="holds no config.json"):
        export_model(tmp_path, tmp_path / "model")
    with pytest.raises(ValueError, match="not empty"):
        export_model(trained.run, tmp_path)
    save_parts(tmp_path / "mel", {"encoder": LogMel()})
    with pytest.raises(FileNotFoundError, match="only greedy encoders"):
        export_model(tmp_path / "mel", tmp_path / "model")


def test_a_failed_export_leaves_the_model_before(tmp_path, trained):
    folder = tmp_path / "model"
    export_model(trained.run, folder, [trained.probe])
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for run, options in (
        (tmp_path / "nowhere", {}),
        (trained.run, {"probes": ["nowhere"]}),
        (trained.run, {"examples": ["nowhere.wav"]}),
    ):
        with pytest.raises((OSError, ValueError), match="nowhere"):
            export_model(run, folder, **options)
        assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert list(check_model(folder))


def test_no_part_replaces_another(tmp_path, trained):
    for kind, path, message in (
        ("probes", trained.probe, "second probe_phones: give only one"),
        (
            "decoders",
            trained.decoder,
            "second decoder_module3: give only",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            export_model(trained.run, tmp_path / "x", **{kind: [path, path]})


def test_any_recipe_s_output_is_exported(tmp_path, corpus, tiny_yaml):
    def run(name, script, *options):
        folder = tmp_path / name
        yaml = tiny_yaml if name == "sim" else tmp_path / f"{name}.yaml"
        out = ["--output_folder", folder, *options]
        out += ["--number_of_epochs", 1] if name != "probe" else []
        finish(start_recipe(script, yaml, *out))
        return folder

    for name, more in {
        "probe": f"test_csv: {corpus.valid}\ncontrols: 10\nlabel: pitch\n",
        "decode": "crop_samples: 4000\nbatch_size: 4\n",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(
            f"base: {ROOT}/hparams/{name}.yaml\ncorpus: Tiny\n"
            f"data_folder: {corpus.folder}\nprepare: !name:builtins.dict\n"
            f"train_csv: {corpus.train}\nvalid_csv: {corpus.valid}\n"
            f"encoder: {tmp_path}/sim\n{more}"
        )
    sim = run("sim", "pretrain.py")
    example = f"{corpus.folder}/utterance00.wav"
    for name in ("probe", "decode"):
        run(name, f"{name}.py")
    for name, parts in {
        "sim": {"encoder"},
        "probe": {"encoder", "probe_pitch"},
        "decode": {"encoder", "decoder_module3"},
    }.items():
        folder = tmp_path / f"exported {name}"
        config = export_model(tmp_path / name, folder)
        assert set(config["parts"]) == parts
        latents = [
            SmoothInfoMax.from_pretrained(path).encode_file(example)
            for path in (tmp_path / name, folder)
        ]
        assert same(*latents)
        assert list(check_model(folder))
        assert str(sim) not in (folder / "config.json").read_text()
    # and all of them together: each part as in its own run
    folder = tmp_path / "together"
    config = export_model(
        sim, folder, [tmp_path / "probe"], [tmp_path / "decode"]
    )
    names = ["encoder", "probe_pitch", "decoder_module3"]
    assert list(config["parts"]) == names
    probes = config["parts"]["probe_pitch"]
    assert probes["classes"] == ["high", "low"]
    assert probes["kind"] == "utterance"
    assert probes["arguments"]["probes"] == 1
    assert len(list(check_model(folder))) == 4
    wavs, lens = torch.randn(2, 4000), torch.tensor([4000, 3000])
    prober, decoder = (
        SmoothInfoMax.from_pretrained(tmp_path / name)
        for name in ("probe", "decode")
    )
    for door in ("from_hparams", "from_pretrained"):
        model = getattr(SmoothInfoMax, door)(folder)
        found, expected = (m.classify(wavs, lens) for m in (model, prober))
        assert found.probabilities.shape == (2, 1, 2)
        assert torch.equal(found.probabilities, expected.probabilities)
        assert found.names() == expected.names()
        z = model.encode_batch(wavs, lens, "module3").mean
        found, expected = (m.decode(z, "module3") for m in (model, decoder))
        assert torch.equal(found, expected)


def test_recipes_read_model_folders(trained):
    before, description = load_encoder(trained.run)
    for source in (trained.model, trained.decoder, str(trained.probe)):
        encoder, found = load_encoder(source)
        assert same(encoder.state_dict(), before.state_dict())
        assert found == description
    for source in (trained.decoder, trained.model):
        decoder, _ = load_decoder(source, "module3", description["sha256"])
        assert not decoder.training


def test_a_run_s_folder_is_a_model(trained):
    wavs = torch.randn(1, 3000)
    for folder, parts in {
        trained.run: {"encoder"},
        trained.decoder: {"encoder", "decoder_module3"},
        trained.probe: {"encoder", "probe_phones", "probe_speaker"},
    }.items():
        model = SmoothInfoMax.from_pretrained(folder)
        assert set(model.mods) == parts
        latent = model.encode_batch(wavs, layer="module3")
        assert torch.equal(latent.mean, trained.encoder(wavs)["module3"].mean)
        with pytest.raises(ValueError, match="from_pretrained.*sim export"):
            SmoothInfoMax.from_hparams(folder)
    with pytest.raises(ValueError, match="no exported model"):
        export_model(trained.run, trained.run)


# check ----------------------------------------------------------------------


def test_a_sound_model_passes(trained, capsys):
    cli.main(["check", str(trained.model)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("4 weight files have their hashes")


def damage(folder, name, change):
    path = folder / name
    path.write_text(change(path.read_text()))


BAD = {
    "weights": (
        lambda f: (f / "encoder.safetensors").write_bytes(b"x"),
        "does not have the hash",
    ),
    "yaml": (
        lambda f: damage(
            f,
            "hyperparams.yaml",
            lambda text: text + "x: !apply:os.system [touch evil]\n",
        ),
        r"x: !apply:os.system \[touch evil\]\): do not load it",
    ),
    "include": (
        lambda f: damage(
            f,
            "hyperparams.yaml",
            lambda text: text + "x: !include:/etc/passwd\n",
        ),
        "x: !include:/etc/passwd\\): do not load it",
    ),
    "weights of others": (
        lambda f: damage(
            f,
            "hyperparams.yaml",
            lambda text: text + "    paths: {encoder: evil/model}\n",
        ),
        "paths: {encoder: evil/model}.: do not load it",
    ),
    "no yaml": (
        lambda f: damage(f, "hyperparams.yaml", lambda text: text + "x: ]\n"),
        "x: ]\\): do not load it",
    ),
    "numbers": (
        lambda f: damage(
            f, "config.json", lambda text: text.replace(" 150,", " 151,")
        ),
        "computes something else",
    ),
    "card": (lambda f: (f / "README.md").unlink(), "holds no README.md"),
    "example": (lambda f: (f / "example.wav").unlink(), "no example.wav"),
}


def change_probe(**changes):
    return lambda config: config["parts"]["probe_phones"].update(changes)


#: changes of config.json, and what reading or checking it says
ODD = {
    "parts a list": (
        lambda c: c.update(parts=list(c["parts"])),
        "states parts as list, not dict: export the model again",
    ),
    "no parts": (
        lambda c: c.pop("parts"),
        "states parts as NoneType, not dict",
    ),
    "no hash": (
        change_probe(sha256=None),
        "lacks the sha256 of probe_phones",
    ),
    "no class": (
        change_probe(**{"class": None}),
        "lacks the class of probe_phones",
    ),
    "rate a text": (
        lambda c: c.update(sample_rate="16000"),
        "states the sample_rate '16000', not 16000",
    ),
    "a probe of text": (
        lambda c: c["parts"].update(probe_phones="p"),
        "lacks the class of probe_phones",
    ),
    "no arguments": (
        lambda c: c["parts"]["encoder"].update(arguments=None),
        "lacks the arguments of encoder",
    ),
    "no classes": (
        lambda c: c["parts"]["probe_phones"].pop("classes"),
        "does not name the 3 classes of probe_phones",
    ),
    "few classes": (
        change_probe(classes=["a"]),
        "does not name the 3 classes of probe_phones",
    ),
    "foreign layer": (
        change_probe(best_layer="module9"),
        "names no best_layer of probe_phones that is probed",
    ),
    "no kind": (
        change_probe(kind=None),
        "does not state the kind of label of probe_phones",
    ),
    "no example": (lambda c: c.pop("example"), r"is not in None: this machine"),
    "example of another": (
        lambda c: c.update(example={"module9": [1, 1.0]}),
        "is not in .'module9': .1, 1.0.*: this machine",
    ),
    "example a number": (
        lambda c: c["example"].update(module3=1),
        "module3 of .* is not in .*'module3': 1, .*: this machine",
    ),
    "an example elsewhere": (
        lambda c: c.update(examples={"../example.wav": ""}),
        "names an example '../example.wav': it is no wav file beside",
    ),
    "examples a list": (
        lambda c: c.update(examples=["example.wav"]),
        "states examples as list, not dict",
    ),
    "size 0": (
        lambda c: c["example"]["module3"].__setitem__(1, 0.0),
        r"not in .*'module3': \[150, 0.0\].*this machine computes something",
    ),
    "no data": (
        lambda c: c.pop("data"),
        "states no training data and their licence",
    ),
    "no licence": (
        lambda c: c["data"].pop("licence"),
        "states no training data and their licence",
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_an_odd_config_is_refused_in_a_sentence(model_folder, kind):
    change, message = ODD[kind]
    edit_config(model_folder, change)
    with pytest.raises(SystemExit, match=message):
        cli.main(["check", str(model_folder)])


def test_a_run_is_no_export(trained, tmp_path):
    shutil.copytree(trained.run, tmp_path / "run")
    (tmp_path / "run/hyperparams.yaml").write_text("seed: 1\n")
    with pytest.raises(ValueError, match="is a run: export it"):
        list(check_model(tmp_path / "run"))


def test_a_model_that_makes_nan_does_not_pass(model_folder):
    model = SmoothInfoMax.from_pretrained(model_folder)
    torch.nn.init.constant_(
        model.encoder.layers["module3"].mean.bias, torch.nan
    )
    path = model_folder / "encoder.safetensors"
    state = model.encoder.state_dict()
    save_file({n: x.contiguous() for n, x in state.items()}, path)
    digest = sha256(path)
    edit_config(
        model_folder, lambda c: c["parts"]["encoder"].update(sha256=digest)
    )
    with pytest.raises(ValueError, match=r"module3 of .*example.wav holds NaN"):
        list(check_model(model_folder))


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_model_does_not(model_folder, kind, monkeypatch):
    do, message = BAD[kind]
    do(model_folder)
    monkeypatch.chdir(model_folder)
    with pytest.raises(SystemExit, match=message):
        cli.main(["check", str(model_folder)])
    assert not (model_folder / "evil").exists()
    with pytest.raises((ValueError, OSError), match=message):
        publish_model(model_folder, REPO, dry_run=True)


# the Hub --------------------------------------------------------------------


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def run(hub, tmp_path):
    """Runs the command, or code, as a user of the Hub would."""

    def run(*command, token="hf_owner", fails=False, **environment):
        kept = {n: v for n, v in os.environ.items() if not n.startswith("HF_")}
        start = ["-m", "speechbrain_sim.cli"]
        if command[0] in (EMBED, LOAD):
            start = ["-c"]
        done = subprocess.run(
            [sys.executable, *start, *map(str, command)],
            env={
                **kept,
                "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
                "HF_ENDPOINT": hub.url,
                "HF_HOME": str(tmp_path / "home"),
                "HF_HUB_DISABLE_XET": "1",
                **({"HF_TOKEN": token} if token else {}),
                **environment,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,  # a busy machine
        )
        assert bool(done.returncode) == fails, done.stdout + done.stderr
        if fails:  # ours, amid bars of the upload, or the last line
            said = re.findall("speechbrain-sim: .*", done.stderr)
            return (said or done.stderr.strip().splitlines())[-1]
        return done.stdout

    return run


@pytest.fixture
def published(hub, trained):
    """The model in the Hub, as if it had been published."""
    files = {path.name: path.read_bytes() for path in trained.model.iterdir()}
    return hub.add(REPO, files)


def test_round_trip(hub, run, trained, tmp_path):
    folder = tmp_path / "model"
    run("export", trained.run, folder, "--probe", trained.probe)
    (folder / "notes.txt").write_text("mine")
    doors = ("from_hparams", "from_pretrained")
    here = run(EMBED, folder, *doors)
    assert len(set(re.findall("[0-9a-f]{64}", here))) == 1
    assert hub.requests == []

    said = run("publish", folder, REPO, "--private", "--dry-run")
    assert hub.requests == []
    assert (
        f"To upload to {REPO} at {hub.url}, made private if it is not there yet"
    ) in said
    assert f"README.md will name {REPO} as its source, there and in" in said
    assert "left out: notes.txt" in said and "Nothing was done" in said

    said = run("publish", folder, REPO, "--private")
    assert f"Done: {hub.url}/{REPO}, commit " in said
    there = hub.files(REPO)
    assert set(there) == FILES - {"decoder_module3.safetensors"}
    for name, content in there.items():
        assert content == (folder / name).read_bytes()
    card = there["README.md"].decode()
    assert f'\nsource = "{REPO}"' in card and f"\n    source: {REPO}\n" in card
    assert hub.repos[REPO]["private"]

    assert run(EMBED, REPO, *doors) == here
    hub.requests.clear()
    assert "have their hashes" in run("check", f"hf://{REPO}")
    moving = [r for r in hub.requests if f"{REPO}/resolve/main/" in r]
    assert len(moving) == 1  # one commit: `main` is asked for once
    # once more: nothing is left to do
    uploads = [r for r in hub.requests if r.startswith("PUT")]
    run("publish", folder, REPO, "--private")
    assert [r for r in hub.requests if r.startswith("PUT")] == uploads
    # from the cache alone
    hub.requests.clear()
    assert run(EMBED, REPO, *doors, HF_HUB_OFFLINE="1") == here
    assert hub.requests == []


def test_an_interrupted_upload_goes_on(hub, run, model_folder):
    hub.fail("POST .*/commit/", 403)
    run("publish", model_folder, REPO, fails=True)
    sent = [r for r in hub.requests if r.startswith("PUT")]
    assert len(sent) == 5 and not hub.files(REPO)
    run("publish", model_folder, REPO)
    assert [r for r in hub.requests if r.startswith("PUT")] == sent
    assert set(hub.files(REPO)) == FILES


def test_a_broken_upload_is_said_in_a_sentence(hub, run, model_folder):
    hub.fail("PUT", 400, 99)
    said = run("publish", model_folder, REPO, fails=True)
    assert said == (
        f"speechbrain-sim: {REPO} could not be uploaded whole: Bad request:. "
        f"Run it again, it goes on."
    )
    hub.faults.clear()
    assert "Done: " in run("publish", model_folder, REPO)


def test_private_is_not_public(hub, run, model_folder):
    hub.add(REPO, {})
    card = (model_folder / "README.md").read_text()
    message = run("publish", model_folder, REPO, "--private", fails=True)
    assert message == (
        f"speechbrain-sim: The model {REPO} is there already, and is public: "
        f"choose another name, or make it private on its page."
    )
    assert not hub.files(REPO)
    assert (model_folder / "README.md").read_text() == card


@pytest.mark.parametrize(
    "repo", ["sim-demo", "a b", "user/a b", "./x", "a/b/c"]
)
def test_a_name_is_needed_to_publish(model_folder, repo):
    with pytest.raises(ValueError, match=f"'{repo}' is no name of a model"):
        publish_model(model_folder, repo, dry_run=True, say=pytest.fail)


def test_only_folders_are_published(hub, run, published):
    said = run("publish", REPO, "user/x", "--dry-run", fails=True)
    assert f"There is no folder {REPO}: give one that" in said
    assert hub.requests == []


def test_a_folder_has_no_revisions(model_folder):
    with pytest.raises(SystemExit, match="has no revision v1: .*hf://"):
        cli.main(["check", str(model_folder), "--revision", "v1"])
    with pytest.raises(FileNotFoundError, match="no folder ~nouser/x"):
        open_source("~nouser/x")


def test_errors_without_a_message_have_a_name():
    with pytest.raises(HubError, match="a/b: TimeoutError. Try again later"):
        with hub_errors("a/b"):
            raise TimeoutError
    with pytest.raises(HubError, match="a/b: disk full. Run it again."):
        with hub_errors("a/b", "Run it again"):
            raise OSError("disk full")


PUBLISHING = {
    "no login": ({"token": None}, None, "log in with `hf auth login`"),
    "wrong token": ({"token": "hf_x"}, None, "log in with `hf auth login`"),
    "no right": ({"token": "hf_reader"}, None, "a token that may do this"),
    "slow down": ({}, ("POST .*create", 429, 99), "again in some minutes"),
    "broken": ({}, ("POST .*create", 500, 99), "'500 Internal Server Error'"),
}


@pytest.mark.parametrize("kind", PUBLISHING)
def test_why_nothing_was_published(hub, run, model_folder, kind):
    options, fault, message = PUBLISHING[kind]
    if fault:
        hub.fail(*fault)
    said = run("publish", model_folder, REPO, fails=True, **options)
    assert said.startswith(f"speechbrain-sim: {REPO} could not be uploaded")
    assert message in said
    assert REPO not in hub.repos


def test_a_tampered_weight_is_refused(hub, run, published, trained):
    content = bytearray((trained.model / "encoder.safetensors").read_bytes())
    content[-1] ^= 1
    hub.add(REPO, {"encoder.safetensors": bytes(content)})
    for door in ("from_hparams", "from_pretrained"):
        said = run(EMBED, REPO, door, fails=True)
        assert "does not have the hash" in said
    assert "loaded" in run(LOAD, REPO, published)  # the commit before


LOADING = {
    "no repository": (
        "user/other",
        (),
        None,
        "of user/other could not be fetched: .*Repository Not Found.*Check the "
        "name, or log in with `hf auth login`",
    ),
    "no revision": (REPO, ("v9",), None, f"{REPO}.*Revision Not Found.*/v9/"),
    "slow down": (REPO, (), ("HEAD", 429, 99), f"{REPO}.*429.*some minutes"),
    "broken": (REPO, (), ("HEAD", 500, 99), f"{REPO}.*500 .*Try again later"),
    "forbidden": (REPO, (), ("HEAD", 403, 99), f"{REPO}.*403.*token that may"),
    "a wrong bit": (
        REPO,
        (),
        ("GET .*encoder.safe", "flip", 9),
        "does not have the hash",
    ),
}


@pytest.mark.parametrize("kind", LOADING)
def test_why_nothing_was_loaded(hub, run, published, kind):
    repo, revision, fault, message = LOADING[kind]
    if fault:
        hub.fail(*fault)
    assert re.search(message, run(LOAD, repo, *revision, fails=True))


def test_a_repository_that_is_no_model(hub, run):
    hub.add(REPO, {"README.md": b"hello"})
    said = run(LOAD, REPO, fails=True)
    assert f"config.json of {REPO} could not be fetched" in said
    assert "Entry Not Found" in said and "speechbrain-sim export" in said


def test_private_and_gated_models(hub, run, published):
    hub.repos[REPO]["private"] = True
    for token in ("hf_reader", None):
        said = run(LOAD, REPO, fails=True, token=token)
        assert f"of {REPO} could not" in said and "`hf auth login`" in said
    hub.repos[REPO].update(private=False, gated=True)
    said = run(LOAD, REPO, fails=True, token="hf_reader")
    assert "gated" in said and "Accept its conditions on its page" in said
    assert "loaded" in run(LOAD, REPO)


def test_a_download_that_breaks_off_goes_on(hub, run, published):
    hub.fail("GET .*encoder", "cut")
    assert "loaded" in run(LOAD, REPO)
    assert sum("GET" in r and "encoder.safe" in r for r in hub.requests) == 2


def test_a_problem_that_passes_is_waited_for(hub, run, published):
    hub.fail("HEAD .*config", 500)
    hub.fail("GET .*encoder", 429)
    assert "loaded" in run(LOAD, REPO)
    assert all(times == 0 for *_, times in hub.faults)


def test_an_unreachable_hub(hub, run, published):
    nowhere = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    said = run(LOAD, REPO, fails=True, **nowhere)
    assert f"of {REPO} could not be fetched: [Errno 111]" in said
    said = run(LOAD, REPO, fails=True, HF_HUB_OFFLINE="1")
    assert REPO in said and "offline mode is enabled" in said
    assert "loaded" in run(LOAD, REPO)
    assert "loaded" in run(LOAD, REPO, **nowhere)  # from the cache


def test_a_command_that_is_stopped_says_so(monkeypatch, capsys, model_folder):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("speechbrain_sim.hub.publish.check_model", stop)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["check", str(model_folder)])
    assert stopped.value.code == 130
    said = capsys.readouterr().err
    assert said == "speechbrain-sim: stopped; run it again to go on\n"


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom speechbrain_sim import cli\n"
        "try: cli.main(['--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_the_command_says_what_is_wrong(tmp_path):
    example_folder(tmp_path / "run", context_channels=0)
    cli.main(["export", str(tmp_path / "run"), str(tmp_path / "model")])
    model = SmoothInfoMax.from_pretrained(tmp_path / "model")
    assert model.layer_names == ["module1", "module2", "module3"]
    with pytest.raises(SystemExit, match="speechbrain-sim: .* holds no config"):
        cli.main(["export", str(tmp_path), str(tmp_path / "other")])
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(SystemExit, match="speechbrain-sim: There is no folder"):
        cli.main(["check", str(tmp_path / "model")])
