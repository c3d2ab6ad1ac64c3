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

from speechbrain_sim import cli
from speechbrain_sim.checkpoints import load_decoder, save_encoder
from speechbrain_sim.encoders import GreedyEncoder
from speechbrain_sim.features import load_front_end
from speechbrain_sim.hub import check_model, export_model, publish_model
from speechbrain_sim.inference import SmoothInfoMax
from tests.conftest import ROOT, finish, make_run, same, start_recipe
from tests.loopback_hub import LoopbackHub

FILES = {
    *("config.json", "hyperparams.yaml", "README.md", "example.wav"),
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
    assert set(config["sha256"]) == {f for f in FILES if "safetensors" in f}
    assert config["encoder"]["layers"] == trained.encoder.layer_names
    assert config["training"]["model"] == "sim"
    assert config["probes"]["phones"]["best_layer"] == "module3"
    assert config["probes"]["phones"]["classes"] == ["a", "b", "c"]
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
    assert data["library_name"] == "speechbrain"
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
        "validation recordings: `module3` 25 %.",
        "no recording of a person. Licence of the data: apache-2.0; the weights",
        "bootstrapped over test recordings",
        "## Limits",
        "@misc{denoodt2025smooth",
    ):
        assert said in card.text


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
        trained.run, tmp_path / "bare", example=tone, licence="cc0-1.0"
    )
    assert set(config["sha256"]) == {"encoder.safetensors"}
    assert soundfile.info(tmp_path / "bare/example.wav").frames == 16000
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
        with pytest.raises(ValueError, match="another encoder|decodes the enc"):
            export_model(trained.run, tmp_path / "model", **parts)
    for parts in ({"probes": [tmp_path]}, {"decoders": [tmp_path]}):
        with pytest.raises(FileNotFoundError, match="holds no"):
            export_model(trained.run, tmp_path / "model", **parts)
    with pytest.raises(FileNotFoundError, match="has no encoder"):
        export_model(tmp_path, tmp_path / "model")
    with pytest.raises(ValueError, match="not empty"):
        export_model(trained.run, tmp_path)


def test_any_recipe_s_output_is_exported(tmp_path, corpus, tiny_yaml, recipes):
    def run(name, script, *options):
        folder = tmp_path / name
        yaml = tiny_yaml if name == "sim" else tmp_path / f"{name}.yaml"
        out = ["--output_folder", folder, "--number_of_epochs", 1, *options]
        finish(start_recipe(script, yaml, *out))
        return folder

    for name, more in {
        "probe": f"test_csv: {corpus.valid}\ncontrols: 2\nlabel: pitch\n",
        "decode": "crop_samples: 4000\nbatch_size: 4\n",
    }.items():
        (tmp_path / f"{name}.yaml").write_text(
            f"base: {ROOT}/hparams/{name}.yaml\ncorpus: Tiny\n"
            f"data_folder: {corpus.folder}\nprepare: !name:builtins.dict\n"
            f"train_csv: {corpus.train}\nvalid_csv: {corpus.valid}\n"
            f"encoder: {tmp_path}/sim/encoder\n{more}"
        )
    sim = run("sim", "pretrain.py")
    for name in ("probe", "decode"):
        run(name, f"{name}.py")
    for name, parts in {
        "sim": {"encoder"},
        "probe": {"encoder", "probe_pitch"},
        "decode": {"encoder", "decoder_module3"},
    }.items():
        folder = tmp_path / f"exported {name}"
        config = export_model(tmp_path / name, folder)
        assert {n.split(".")[0] for n in config["sha256"]} == parts
        assert list(check_model(folder))
        assert str(sim) not in (folder / "config.json").read_text()


def test_recipes_read_model_folders(trained):
    front_end, description = load_front_end(trained.model)
    before, said = load_front_end(str(trained.run / "encoder"))
    assert same(front_end.state_dict(), before.state_dict())
    assert set(said) - set(description) == set()
    assert all(description[name] == said[name] for name in said)
    decoder, _ = load_decoder(
        trained.decoder / "decoder", description, "module3"
    )
    assert not decoder.training


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
        "more than make the model: !apply:os.system",
    ),
    "include": (
        lambda f: damage(
            f,
            "hyperparams.yaml",
            lambda text: text + "x: !include:/etc/passwd\n",
        ),
        "more than make the model: !include:/etc/passwd",
    ),
    "weights of others": (
        lambda f: damage(
            f,
            "hyperparams.yaml",
            lambda text: text + "    paths: {encoder: evil/model}\n",
        ),
        "does not make the model of config.json",
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
        if fails:  # an error of ours is the last line
            return done.stderr.strip().splitlines()[-1]
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
    assert f"private model {REPO} at {hub.url}" in said
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
    assert "have their hashes" in run("check", f"hf://{REPO}")
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


def test_private_is_not_public(hub, run, model_folder):
    hub.add(REPO, {})
    message = run("publish", model_folder, REPO, "--private", fails=True)
    assert "is there already, and is public" in message
    assert not hub.files(REPO)


PUBLISHING = {
    "no login": ({"token": None}, None, "log in with `hf auth login`"),
    "wrong token": ({"token": "hf_x"}, None, "log in with `hf auth login`"),
    "no right": ({"token": "hf_reader"}, None, "the token may not do this"),
    "slow down": ({}, ("POST .*create", 429, 99), "slow down"),
    "broken": ({}, ("POST .*create", 500, 99), "a problem of its own (500)"),
}


@pytest.mark.parametrize("kind", PUBLISHING)
def test_why_nothing_was_published(hub, run, model_folder, kind):
    options, fault, message = PUBLISHING[kind]
    if fault:
        hub.fail(*fault)
    said = run("publish", model_folder, REPO, fails=True, **options)
    assert said.startswith("speechbrain-sim: ") and message in said
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
    "no repository": ("user/other", (), None, "no model user/other that you"),
    "no revision": (REPO, ("v9",), None, "has no revision v9"),
    "slow down": (REPO, (), ("HEAD", 429, 99), "asks to slow down (429)"),
    "broken": (REPO, (), ("HEAD", 500, 99), "a problem of its own (500)"),
    "forbidden": (REPO, (), ("HEAD", 403, 99), "token may not do this"),
    "a wrong bit": (
        REPO,
        (),
        ("GET .*encoder.safe", "flip", 1),
        "does not have the hash",
    ),
}


@pytest.mark.parametrize("kind", LOADING)
def test_why_nothing_was_loaded(hub, run, published, kind):
    repo, revision, fault, message = LOADING[kind]
    if fault:
        hub.fail(*fault)
    assert message in run(LOAD, repo, *revision, fails=True)


def test_a_repository_that_is_no_model(hub, run):
    hub.add(REPO, {"README.md": b"hello"})
    assert "has no file config.json" in run(LOAD, REPO, fails=True)


def test_private_and_gated_models(hub, run, published):
    hub.repos[REPO]["private"] = True
    assert "that you may see" in run(LOAD, REPO, fails=True, token="hf_reader")
    assert "that you may see" in run(LOAD, REPO, fails=True, token=None)
    hub.repos[REPO].update(private=False, gated=True)
    assert "is gated" in run(LOAD, REPO, fails=True, token="hf_reader")
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
    assert "connection to the Hub failed" in run(
        LOAD, REPO, fails=True, **nowhere
    )
    assert "(offline)" in run(LOAD, REPO, fails=True, HF_HUB_OFFLINE="1")
    assert "loaded" in run(LOAD, REPO)
    assert "loaded" in run(LOAD, REPO, **nowhere)  # from the cache


def test_the_command_says_what_is_wrong(tmp_path):
    encoder = GreedyEncoder(channels=4, context_channels=0)
    save_encoder(encoder, tmp_path / "run/encoder", corpus="Tiny")
    cli.main(["export", str(tmp_path / "run"), str(tmp_path / "model")])
    model = SmoothInfoMax.from_pretrained(tmp_path / "model")
    assert model.layer_names == ["module1", "module2", "module3"]
    with pytest.raises(SystemExit, match="speechbrain-sim: .* has no encoder"):
        cli.main(["export", str(tmp_path), str(tmp_path / "other")])
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(SystemExit, match="speechbrain-sim: There is no folder"):
        cli.main(["check", str(tmp_path / "model")])
