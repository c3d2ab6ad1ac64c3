"""The Space of examples/space, as far as it can be tried without the Hub."""

import importlib.util
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import ruamel.yaml
import soundfile
import torch

from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.data.espeak import PHONES
from speechbrain_sim.models.format import load_parts, save_parts
from tests.conftest import ROOT

FOLDER = ROOT / "examples/space"


@pytest.fixture(scope="module")
def app():
    """Its app.py, a module that is not started."""
    spec = importlib.util.spec_from_file_location("app", FOLDER / "app.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def space(app):
    space = app.Space("sim-small")
    yield space
    space.queue.close()


@pytest.fixture(scope="module")
def client(app, space):
    """A client of the page, on the loopback; nothing connects elsewhere."""
    from gradio_client import Client

    connect = socket.socket.connect

    def refuse(self, address, *rest):
        assert self.family == socket.AF_UNIX or address[0] == "127.0.0.1"
        return connect(self, address, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", refuse)
        page = app.make_blocks(space)
        launched = page.launch(
            prevent_thread_lock=True, quiet=True, server_name="127.0.0.1"
        )
        yield Client(launched[1], verbose=False)
        page.close(verbose=False)


def test_every_control_decodes_something_else(client, space):
    from gradio_client import handle_file

    one, two = map(handle_file, space.examples)
    calls = {
        "interpolate": [(one, two, "module3", a) for a in (0, 0.5)],
        "swap": [(one, two, "module3", count) for count in (0, 8)],
        "set_dimension": [(one, "module3", 3, 2, "clip")],
        "noise": [(one, "module3", seed) for seed in (1, 2)],
    }
    calls["set_dimension"] += [(one, "module2", 3, 2, "prior")]
    sounds, texts = {}, {}
    for name, given in calls.items():
        for values in given:
            answer = client.predict(*values, api_name=f"/{name}")
            wav, rate = soundfile.read(answer[0])
            assert rate == 16000 and len(wav) > 8000 and wav.std() > 1e-3
            assert Path(answer[1]).stat().st_size > 100
            sounds[name, values[-2:]] = wav.tobytes()
            texts[name, values[-1]] = answer[2]
    same = sounds["interpolate", ("module3", 0)]
    assert sounds["swap", ("module3", 0)] == same
    assert len({*sounds.values()}) == len(sounds) - 1
    assert texts["swap", 0].startswith("δ(0) = 1.00")
    assert texts["swap", 8].startswith("δ(8) = 0.")


def test_probes_are_read(client, space):
    from gradio_client import handle_file

    one = handle_file(space.examples[0])
    rows = client.predict(one, api_name="/read")["data"]
    phones = [row for row in rows if row[0] == "phones"]
    assert {row[3] for row in phones} <= set(PHONES) and len(phones) > 5
    assert [row[1] for row in phones[1:]] == [row[2] for row in phones[:-1]]
    assert [row[0] for row in rows].count("speaker") == 1


def write(path, wav):
    soundfile.write(path, wav, 16000)
    return str(path)


@pytest.mark.parametrize(
    "sound, sentence",
    [
        (None, "Record, upload or choose a recording first."),
        ("text", "This is no sound file"),
        (np.zeros(9000), "The recording is silent."),
        (np.full(61 * 16000, 0.1), "at most 60 s are taken"),
        (np.full(20, 0.1), "The recording is too short"),
    ],
)
def test_bad_recordings_get_a_sentence(app, space, tmp_path, sound, sentence):
    path = tmp_path / "sound.wav"
    if isinstance(sound, str):
        path.write_text(sound)
    elif sound is not None:
        write(path, sound)
    given = None if sound is None else str(path)
    for function, *values in (
        (space.read,),
        (space.noise, "module3", 1),
        (space.interpolate, space.examples[0], "module3", 0.5),
    ):
        with pytest.raises(app.gr.Error, match=sentence):
            function(given, *values)


@pytest.mark.parametrize(
    "name, values, sentence",
    [
        ("noise", ("module9", 1), "There is no layer 'module9'"),
        ("noise", ("context", 1), "no decoder for context"),
        ("noise", ("module3", -1), "seed is -1: give a number from 0"),
        ("noise", ("module3", 1.5), "seed is 1.5: give a whole number"),
        ("noise", ("module3", None), "seed is None"),
        ("set_dimension", ("module3", 64, 0, "clip"), "dimension is 64"),
        ("set_dimension", ("module3", 1, 4, "clip"), "deviations is 4"),
        ("scale_feature", ("module3.sae", None, 1), "Find features"),
    ],
)
def test_bad_controls_get_a_sentence(app, space, name, values, sentence):
    with pytest.raises(app.gr.Error, match=sentence):
        getattr(space, name)(space.examples[0], *values)


def test_features_of_a_sparse_autoencoder(app, space, tmp_path):
    """Of one that is untrained: silenced, they change the sound."""
    names = ["encoder", "decoder_module3"]
    parts, config = load_parts("sim-small", names)
    torch.manual_seed(0)
    parts["bottleneck_module3.sae"] = SparseAutoencoder(64, 128, k=8)
    about = {name: config["parts"][name] for name in names}
    about["bottleneck_module3.sae"] = {"layer": "module3", "pooling": "frame"}
    save_parts(tmp_path / "run", parts, about, training=config["training"])
    coded, one = app.Space(str(tmp_path / "run")), space.examples[0]
    controls = app.make_blocks(coded).config["components"]
    labels = {c["props"].get("label") for c in controls}
    assert {"Features", "Times as strong"} <= labels
    assert coded.codes == ["module3.sae"] and coded.examples == []
    found = coded.find_features(one, "module3.sae")
    assert len(found.choices) >= 8 and found.value == found.choices[0][1]
    loud = [
        coded.scale_feature(one, "module3.sae", found.value, times)[0][1]
        for times in (0, 1, 3)
    ]
    unchanged = space.interpolate(one, one, "module3", 0)[0][1]
    assert np.abs(loud[1].astype(int) - unchanged).max() <= 2
    assert np.abs(loud[0].astype(int) - unchanged).max() > 50
    assert (loud[2] != loud[0]).any()
    coded.queue.close()


def test_sliders_fit_the_layer(app, space):
    controls = app.make_blocks(space).config
    props = {
        c["props"]["label"]: c["props"]
        for c in controls["components"]
        if c["type"] in ("slider", "dropdown")
    }
    assert props["Dimension"]["maximum"] == 63
    assert props["Dimensions"]["maximum"] == 64
    assert props["Layer"]["choices"] == [
        (name, name) for name in ("module1", "module2", "module3")
    ]
    assert controls["analytics_enabled"] is False


def test_the_header_and_the_requirements_are_true(app):
    _, header, text = (FOLDER / "README.md").read_text().split("---\n")
    header = ruamel.yaml.YAML().load(header)
    setup = (ROOT / "setup.py").read_text()
    version = app.gr.__version__
    assert header["sdk"] == "gradio" and header["sdk_version"] == version
    assert f'"gradio=={version}"' in setup
    assert (FOLDER / header["app_file"]).is_file()
    assert f'license="{header["license"]}"'.lower() in setup.lower()
    assert len(header["short_description"]) <= 60
    lines = (FOLDER / "requirements.txt").read_text().splitlines()
    *torch_pair, own = [line for line in lines if line[0] != "#"]
    assert " ".join(torch_pair) in (ROOT / "Makefile").read_text()
    of = (ROOT / "speechbrain_sim/version.txt").read_text().strip()
    assert own.endswith(f"/main/speechbrain_sim-{of}-py3-none-any.whl")
    extra = re.match(r"speechbrain-sim\[(\w+)\] @ https://", own)[1]
    assert f'"{extra}": [' in setup
    assert app.os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
