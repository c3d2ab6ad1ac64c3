"""The box's model with codes of every kind, and two short recordings."""

import pytest
import soundfile as sf
import torch

from speechbrain_sim import SmoothInfoMax
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.bottlenecks.vib import TextHalf, UtteranceHalf
from speechbrain_sim.bottlenecks.vsc import VariationalSparseCoder
from speechbrain_sim.data.audio import read_audio
from speechbrain_sim.explorer.clips import Clips
from speechbrain_sim.explorer.engine import Engine
from speechbrain_sim.models.format import BOTTLENECK


@pytest.fixture(scope="session")
def coded():
    """sim-small with untrained codes: none of them needs training here."""
    torch.manual_seed(0)
    box = SmoothInfoMax.from_pretrained("sim-small")
    parts = {
        "module3.sae": SparseAutoencoder(64, 96, k=4),
        "module3.vsc": VariationalSparseCoder(64, 32),
        "module3.mean": SparseAutoencoder(64, 96, k=4),
        "context.vib.text": TextHalf(256, 8, labels=3),
        "context.vib.sex": UtteranceHalf(256, 8, classes=2, text_units=8),
    }
    entries = {f"{BOTTLENECK}_{name}": {} for name in parts}
    names = {str(unit): f"unit {unit} & <b>" for unit in range(96)}
    entries[f"{BOTTLENECK}_module3.sae"]["names"] = names
    entries[f"{BOTTLENECK}_module3.mean"]["pooling"] = "mean"
    text, sex = (f"{BOTTLENECK}_context.vib.{n}" for n in ("text", "sex"))
    entries[text] |= {"classes": ["<blank>", "A", "B"], "target": "chars"}
    entries[sex] |= {"classes": ["f", "m"]}
    config = {**box.config, "parts": {**box.config["parts"], **entries}}
    modules = {**box.mods, **{f"{BOTTLENECK}_{n}": p for n, p in parts.items()}}
    return SmoothInfoMax(modules, {"sample_rate": 16000}, config)


@pytest.fixture(scope="session")
def recordings(tmp_path_factory):
    """Files of 0.64 s and of 0.4 s."""
    folder = tmp_path_factory.mktemp("recordings")
    box, paths = SmoothInfoMax.from_pretrained("sim-small"), []
    for name, path, samples in zip(
        "ab", box.examples, (10240, 6400), strict=True
    ):
        paths.append(folder / f"{name}.wav")
        wav = read_audio(path, 8000, 8000 + samples)
        sf.write(paths[-1], wav.numpy(), 16000, "FLOAT")
    return paths


@pytest.fixture(scope="module")
def engine(coded, recordings):
    """An Engine with the model of codes as m0, and sim-small as m1."""
    box = SmoothInfoMax.from_pretrained("sim-small")
    return Engine({"coded": coded, "SIM": box}, Clips(recordings))
