"""A tiny corpus, tiny brains, and recipes in processes of their own."""

import csv
import importlib
import inspect
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.epoch_loop import EpochCounter
from torch.utils.data import DataLoader

from speechbrain_sim.brains.checkpointer import (
    AtomicCheckpointer,
    RewindingTrainLogger,
)
from speechbrain_sim.brains.greedy import GreedyBrain
from speechbrain_sim.data import espeak
from speechbrain_sim.data.corpora.synthetic import make_synthetic_corpus
from speechbrain_sim.decoders import mirror
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.family import build_model
from speechbrain_sim.files import write_json
from speechbrain_sim.hub.publish import export_model
from speechbrain_sim.models.format import save_parts
from speechbrain_sim.probes import LayerProbes
from tests import forks

forks.describe_once()
ROOT = Path(__file__).parents[1]
HPARAMS = ROOT / "hparams"
#: a model that trains a step in milliseconds
TINY = {
    "channels": 6,
    "context_channels": 4,
    "prediction_steps": 2,
    "num_negatives": 3,
}


def tone(label, samples, rng):
    """A noisy tone, its pitch told by the label; float32 in [-1, 1]."""
    time = np.arange(samples) / 16000
    wave = np.sin(2 * np.pi * (200 + 1400 * label) * time + rng.uniform(0, 6))
    noise = np.convolve(rng.normal(size=samples), np.ones(4) / 4, "same")
    return (0.5 * wave + 0.1 * noise).clip(-1, 1).astype(np.float32)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """24 utterances of about 0.7 s, in a training and a validation csv."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    rows = []
    for i in range(24):
        samples, label = 10000 + 157 * i, i % 2
        name = f"utterance{i:02}"
        sf.write(folder / f"{name}.wav", tone(label, samples, rng), 16000)
        phones = rng.integers(0, 5, 1 + (samples - 400) // 160)
        rows.append(
            {
                "ID": name,
                "duration": samples / 16000,
                "wav": f"$data_root/{name}.wav",
                "sample_rate": 16000,
                "num_samples": samples,
                "pitch": ["low", "high"][label],
                "phones": " ".join(map(str, phones)),
            }
        )
    for split, part in (("train", rows[:20]), ("valid", rows[20:])):
        with open(folder / f"{split}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(part)
    return SimpleNamespace(
        folder=str(folder),
        train=str(folder / "train.csv"),
        valid=str(folder / "valid.csv"),
    )


@pytest.fixture(scope="session")
def tiny_yaml(corpus, tmp_path_factory):
    """A difference to hparams/pretrain.yaml that runs in a second."""
    path = tmp_path_factory.mktemp("hparams") / "tiny.yaml"
    path.write_text(
        f"base: {ROOT}/hparams/pretrain.yaml\n"
        "corpus: Tiny\n"
        f"data_folder: {corpus.folder}\n"
        "prepare: !name:builtins.dict\n"
        f"train_csv: {corpus.train}\n"
        f"valid_csv: {corpus.valid}\n"
        "crop_samples: 4000\n"
        "number_of_epochs: 2\n"
        "batch_size: 2\n" + "".join(f"{k}: {v}\n" for k, v in TINY.items())
    )
    return path


def start_process(command):
    """Starts a command in the repository, on one thread per process."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    python, *script = map(str, command)
    if python == sys.executable and script[0].endswith(".py"):
        return forks.start(script[0], script[1:], ROOT, environment)
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_recipe(script, yaml, *options):
    """Starts a recipe on the CPU; returns the Popen."""
    command = [sys.executable, ROOT / "recipes" / script, yaml, *options]
    return start_process([*command, "--device", "cpu", "--noprogressbar"])


def finish(process, timeout=300):
    """Waits for a process; returns its output, fails if it failed."""
    output, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, output
    return output


def make_brain(
    folder, model="sim", epochs=1, opt_class=None, run_opts=(), **changes
):
    """Makes a GreedyBrain; `changes` go to the model, or else to hparams."""
    torch.manual_seed(0)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    hparams = {
        "seed": 1,
        "max_grad_norm": float("inf"),
        "epoch_counter": EpochCounter(epochs),
        "train_logger": RewindingTrainLogger(folder / "train_log.txt", 8),
        "output_folder": folder,
    }
    for key in ("crop", "tensorboard_logger"):
        if key in changes:
            hparams[key] = changes.pop(key)
    built = build_model(model, **{**TINY, **changes})
    hparams |= {"encoder": built.encoder, "frozen": built.frozen}
    checkpointer = AtomicCheckpointer(
        folder / "save", {"epoch_counter": hparams["epoch_counter"]}
    )
    return GreedyBrain(
        built.modules,
        opt_class or (lambda p: torch.optim.Adam(p, lr=1e-3)),
        hparams,
        {"device": "cpu", "noprogressbar": True, **dict(run_opts)},
        checkpointer,
    )


def make_loader(batches=3, batch_size=2, samples=2400, **columns):
    """Batches of noise, the odd rows shorter; `columns` are added."""
    generator = torch.Generator().manual_seed(7)
    rows = []
    for i in range(batches * batch_size):
        length = samples - 300 * (i % 2)
        row = {"sig": torch.randn(length, generator=generator)}
        rows.append({**row, **{n: column[i] for n, column in columns.items()}})
    return DataLoader(rows, batch_size=batch_size, collate_fn=PaddedBatch)


def weights(brain):
    """Copies all weights and buffers of a brain's modules."""
    return {
        name: {key: value.clone() for key, value in module.state_dict().items()}
        for name, module in brain.unwrapped.items()
    }


def edit_config(folder, change):
    """Calls a function with a model's config.json, and writes what it made."""
    path = Path(folder, "config.json")
    config = json.loads(path.read_text())
    change(config)
    write_json(path, config)


def same(state, other):
    """Whether two nests of dicts and lists hold bitwise equal values."""
    if isinstance(state, torch.Tensor):
        return torch.equal(state, other)
    if isinstance(state, dict):
        return state.keys() == other.keys() and all(
            same(state[key], other[key]) for key in state
        )
    if isinstance(state, (list, tuple)):
        return len(state) == len(other) and all(map(same, state, other))
    return state == other


@pytest.fixture(scope="session")
def recipes():
    """The recipes as modules."""
    sys.path.insert(0, str(ROOT / "recipes"))
    yield {name: importlib.import_module(name) for name in forks.RECIPES}
    sys.path.remove(str(ROOT / "recipes"))


def deliveries(speakers=20, sentences=60):
    """What the utterances of a corpus with independent factors draw."""
    ids = [espeak.draw_voice(index, 0)["id"] for index in range(speakers)]
    keys = [[0, 3, i, number] for i in ids for number in range(sentences)]
    drawn = [espeak.draw_delivery(np.random.default_rng(key)) for key in keys]
    table = {name: np.array([d[name] for d in drawn]) for name in drawn[0]}
    return {"speaker": np.repeat(list(map(str, ids)), sentences)} | table


@pytest.fixture(scope="session")
def corpora(tmp_path_factory):
    """A tiny corpus of each kind, made here, by folder of `hparams`."""
    folder = tmp_path_factory.mktemp("corpora")
    make_synthetic_corpus(
        folder / "Synthetic", speakers=3, sentences=9, test_sentences=3
    )
    (folder / "LibriSpeech").symlink_to(folder / "Synthetic")  # one layout
    rng = np.random.default_rng(0)
    words = ["bababi", "badagu", "bidugi", "bubiba", "dadigu", "gagagi"]
    words += ["gidabu", "dubigu", "gugidi", "digabu", "bagudi", "dubaga"]
    layout = {
        "reshuffledv2/train": (
            [f"{w}_{t}" for w in words for t in (1, 2)],
            33075,
        ),
        "reshuffledv2/test": ([f"{w}_1" for w in words], 33075),
        "split up data padded/train": (syllables(words), 12156),
        "split up data padded/test": (syllables(words), 12156),
    }
    for place, (names, samples) in layout.items():
        (folder / "ArtificialSpeech" / place).mkdir(parents=True)
        rate = 44100 if samples > 20000 else 22050
        for name in names:
            noise = 0.1 * rng.standard_normal(samples).cumsum() / samples**0.5
            path = folder / "ArtificialSpeech" / place / f"{name}.wav"
            sf.write(path, noise, rate)
    (folder / "FSDD/recordings").mkdir(parents=True)
    for name in spoken_digits():
        samples = 4000 + 100 * len(name)  # at 8 kHz
        noise = 0.1 * rng.standard_normal(samples)
        sf.write(folder / f"FSDD/recordings/{name}.wav", noise, 8000)
    for speaker, rate in {"ann": 16000, "bob": 22050, "eve": 48000}.items():
        (folder / "Folder" / speaker).mkdir(parents=True)
        for number, kind in enumerate(["wav", "flac", "ogg", "wav"] * 3):
            stereo = 0.1 * rng.standard_normal((3 * rate // 2, 2))
            path = folder / "Folder" / speaker / f"{number}.{kind}"
            sf.write(path, stereo, rate)
    make_vocalset(folder / "VocalSet", rng)
    make_ravdess(folder / "RAVDESS", rng)
    make_iemocap(folder / "IEMOCAP", rng)
    return folder


def make_vocalset(folder, rng, rate=8000, seconds=(0.4, 0.7)):
    """Two techniques by four singers, in the layout of VocalSet."""
    recordings = itertools.product(
        ["female1", "male4", "female2", "male3"], ["vibrato", "belt"], "aei"
    )
    for number, (singer, technique, vowel) in enumerate(recordings):
        own = "vibrado" if (singer, technique) == ("female2", "vibrato") else ""
        place = folder / "FULL" / singer / "scales" / (own or technique)
        place.mkdir(parents=True, exist_ok=True)
        wave = 0.1 * rng.standard_normal(int(rate * seconds[number % 2]))
        name = f"{singer[0]}{singer[-1]}_scales_{technique}_{vowel}.wav"
        sf.write(place / name, wave, rate)


def make_ravdess(folder, rng, actors=(1, 2, 19, 22), samples=3200):
    """Four emotions and a sung one by actors of all parts."""
    for actor, emotion, strength in itertools.product(actors, "13452", "12"):
        if emotion + strength == "12":  # no strong neutral
            continue
        place = folder / f"Actor_{actor:02}"
        place.mkdir(parents=True, exist_ok=True)
        channel = "02" if emotion == "2" else "01"
        for sentence, take in itertools.product("12", "12"):
            name = f"03-{channel}-0{emotion}-0{strength}-0{sentence}-0{take}"
            wave = 0.1 * rng.standard_normal(samples)
            sf.write(place / f"{name}-{actor:02}.wav", wave, 8000)


def make_iemocap(folder, rng, turns="neu hap exc sad ang neu fru xxx", count=2):
    """A dialogue of each session, in which both speak every emotion."""
    for session in range(1, 6):
        dialogue = f"Ses0{session}F_impro01"
        wavs = folder / f"Session{session}/sentences/wav" / dialogue
        wavs.mkdir(parents=True)
        files = {"EmoEvaluation": ["% TURN"], "transcriptions": ["M: (aside)"]}
        turn = itertools.product(turns.split() * count, "FM")
        for number, (code, sex) in enumerate(turn):
            name = f"{dialogue}_{sex}{number:03}"
            wave = 0.1 * rng.standard_normal(3200)
            sf.write(wavs / f"{name}.wav", wave, 8000)
            label = (
                f"[{number}.29 - {number}.93]\t{name}\t{code}\t[2.5, 2.5, 2.5]"
            )
            files["EmoEvaluation"] += [label, "C-E2:\tNeutral;\t()", ""]
            said = ("I see.", "Oh, well. [BREATHING]")[number % 2]
            text = f"{name} [{number}.29-{number}.93]: {said}"
            files["transcriptions"].append(text)
        for place, lines in files.items():
            path = folder / f"Session{session}/dialog/{place}/{dialogue}.txt"
            path.parent.mkdir(parents=True)
            path.write_text("\n".join(lines))


def syllables(words):
    return [
        f"{word}_1_{i + 1}_{word[2 * i : 2 * i + 2]}"
        for word in words
        for i in range(3)
    ]


def spoken_digits():
    """Names of recordings for all three parts, of two digits by three men."""
    return [
        f"{digit}_{speaker}_{index}"
        for digit in range(2)
        for speaker in ("george", "jackson", "theo")
        for index in (0, 1, 5, 10, 11, 49)
    ]


def options_for(yaml, corpora):
    options = ["--data_folder", str(corpora / yaml.parent.name)]
    if yaml.parent.name == "Synthetic":
        options += ["--speakers", "3", "--sentences", "9"]
        options += ["--test_sentences", "3"]
    return options


def make_run(folder, corpus="Synthetic", model="sim", **arguments):
    """What recipes leave of a tiny encoder: itself, a decoder, two probes."""
    torch.manual_seed(0)
    encoder = GreedyEncoder(
        **{"channels": 6, "context_channels": 4, **arguments}
    )
    training = {"model": model, "corpus": corpus, "epochs": 2, "seed": 1}
    parts = {"encoder": encoder}
    save_parts(folder / "run", parts, training=training)
    decoder = {"decoder_module3": mirror(encoder, "module3")}
    about = {"layer": "module3", "sampled": False, "epochs": 1, "seed": 1}
    about["valid"] = {"explained": 0.254}
    save_parts(
        folder / "decoder",
        {**parts, **decoder},
        {"decoder_module3": about},
        training=training,
    )
    save_parts(folder / "probe", parts, training=training)
    score = {
        "accuracy": 0.5,
        "deviation": 0.01,
        "interval": [0.4, 0.6],
        "per_seed": [0.49, 0.5, 0.51],
        "valid_accuracy": 0.5,
        "chance": 0.3,
        "control": {"accuracy": 0.3, "passed": True},
    }
    for label, classes in {"phones": "abc", "speaker": ["ann", "bob"]}.items():
        widths = {n: encoder.channels_of(n) for n in encoder.layer_names}
        probes = LayerProbes(widths, len(classes))
        for layer, width in widths.items():
            getattr(probes, f"{layer}_mean").copy_(torch.randn(width))
            getattr(probes, f"{layer}_std").copy_(torch.rand(width) + 0.5)
        scores = {n: dict(score) for n in encoder.layer_names}
        scores["module3"]["valid_accuracy"] = 0.6
        about = {
            "label": label,
            "kind": "frames" if label == "phones" else "utterance",
            "classes": list(classes),
            "best_layer": "module3",
            "settings": {"seeds": [1, 2, 3]},
            "layers": scores,
        }
        name = f"probe_{label}"
        save_parts(folder / "probe", {name: probes}, {name: about})
    return SimpleNamespace(
        run=folder / "run",
        decoder=folder / "decoder",
        probe=folder / "probe",
        # frozen: torch's GRU rounds otherwise while its weights can learn
        encoder=encoder.eval().requires_grad_(False),
    )


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A tiny run, and the model folder that `export_model` makes of it."""
    made = make_run(tmp_path_factory.mktemp("trained"))
    made.model = made.run.parent / "model"
    export_model(made.run, made.model, [made.probe], [made.decoder])
    return made


@pytest.fixture
def model_folder(trained, tmp_path):
    """A copy of the model folder, to be damaged."""
    return Path(shutil.copytree(trained.model, tmp_path / "model"))


def names_used(function):
    """Names in a function, and in those of its module that it calls."""
    names, waiting = set(), [function]
    while waiting:
        called = waiting.pop()
        for name in set(called.__code__.co_names) - names:
            names.add(name)
            other = function.__globals__.get(name)
            if (
                inspect.isfunction(other)
                and other.__module__ == called.__module__
            ):
                waiting.append(other)
    return names


def pytest_collection_modifyitems(items):
    """Marks what `make check` leaves out.

    That is recipes, second processes, browsers, and the Hub on the loopback.
    """
    processes = {"start_process", "start_recipe", "subprocess", "torchrun"}
    processes |= {"get_context"}
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        if "hub" in fixtures:
            item.add_marker("hub")
        if "browser" in fixtures:
            item.add_marker("browser")
        if fixtures & {"recipes", "corpora"}:
            item.add_marker("recipe")
        if hasattr(item, "function") and processes & names_used(item.function):
            item.add_marker("recipe")
