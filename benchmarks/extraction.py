"""Features: speed, memory over length, probes, stores, data loading."""

import resource
import tempfile
import time
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import numpy as np
import soundfile
import torch
import torchaudio
from speechbrain.dataio.dataloader import make_dataloader
from speechbrain.utils.epoch_loop import EpochCounter

from benchmarks.measure import (
    _status,
    in_turn,
    memory_row,
    peak_memory,
    row,
    time_row,
)
from benchmarks.systems import Ours, make_batch
from speechbrain_sim.activations import ALL, ActivationStore
from speechbrain_sim.brains.probe import ProbeBatches, ProbeBrain, make_probes
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.batches import KeyedCrop, make_dataset
from speechbrain_sim.data.corpora.folder import prepare_folder
from speechbrain_sim.encoders.base import masked_mean
from speechbrain_sim.family import build_model
from speechbrain_sim.features import stream_file


def _encoder(**changes):
    torch.manual_seed(0)
    return build_model("sim", **changes).encoder.eval().requires_grad_(False)


def speed(repetitions=5):
    """All layers of SIM against wav2vec2-base of torchaudio, random weights."""
    encoder = _encoder()
    other = torchaudio.models.wav2vec2_base().eval().requires_grad_(False)
    rows = []
    for batch in (1, 8):
        for seconds in (0.64, 2, 5, 15):
            wavs = 0.1 * torch.randn(batch, round(seconds * SAMPLE_RATE))
            with torch.inference_mode():
                timings = in_turn(
                    {
                        "ours": lambda wavs=wavs: encoder(wavs),
                        "other": lambda wavs=wavs: other(wavs),
                    },
                    repetitions if batch * seconds < 50 else 3,
                )
            rows.append(
                time_row(
                    "Features: times faster than wav2vec2-base",
                    f"Features of {batch} × {seconds} s against wav2vec2-base",
                    timings,
                    "ours",
                    "other",
                    "≥ 2.3",
                    real_time_factor=median(timings["ours"].wall)
                    / (batch * seconds),
                )
            )
    return rows


def _noise_file(folder, seconds, name="long.flac"):
    """A file of noise, written in pieces."""
    path = Path(folder) / name
    generator = np.random.default_rng(0)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, 1) as file:
        for _ in range(-(-seconds // 10)):
            noise = generator.standard_normal(10 * SAMPLE_RATE)
            file.write(0.1 * noise)
    return path


def streaming(minutes=10):
    """Memory of a long file against one minute; pieces against the whole."""
    encoder = _encoder()
    with tempfile.TemporaryDirectory() as folder:
        peaks, seconds = {}, {}
        for length in (1, minutes):
            path = _noise_file(folder, 60 * length)

            def encode(path=path):
                for _ in stream_file(encoder, path):
                    pass

            if length == 1:
                encode()
            started = time.perf_counter()
            peaks[length] = peak_memory(encode)
            seconds[length] = time.perf_counter() - started
        path = _noise_file(folder, 60)
        wav, _ = soundfile.read(path, dtype="float32")
        with torch.inference_mode():
            whole = encoder(torch.from_numpy(wav)[None])
        worst = 0.0
        for chunk_seconds in (0.37, 9.999, 25.0):
            pieces = list(stream_file(encoder, path, None, chunk_seconds))
            for name, latent in whole.items():
                got = torch.cat([piece[name] for piece in pieces])
                scale = max(1.0, float(latent.mean.abs().max()))
                difference = float((got - latent.mean[0]).abs().max()) / scale
                worst = max(worst, difference)
    return [
        memory_row(
            "Encoding a long file: memory against 1 min",
            f"Encoding {minutes} min from a file: peak memory against 1 min",
            peaks[minutes],
            peaks[1],
            "≤ 1.1",
            real_time_factor=seconds[minutes] / (60 * minutes),
        ),
        row(
            "Encoding in pieces: largest difference, in tolerances of 1e-5",
            "Encoding 60 s in pieces: largest difference to the whole",
            "of max(1, largest value)",
            worst,
            1e-5,
            worst / 1e-5,
            "≤ 1.0",
        ),
    ]


def probes(utterances=192, epochs=5):
    """Epochs on features that were computed once, against every time.

    Batches of 8 utterances: 8 examples where an utterance has one label, 512
    where each frame has.
    """
    encoder = _encoder()
    wavs = 0.1 * torch.randn(utterances, 10240)

    @torch.inference_mode()
    def extract():
        parts = [
            encoder(part, layers=["context"])["context"]
            for part in wavs.split(8)
        ]
        means = [masked_mean(part.mean, part.lengths) for part in parts]
        frames = [part.mean.flatten(0, 1) for part in parts]
        return torch.cat(means), torch.cat(frames)

    def train(features, batch_size, number_of_epochs):
        batches = ProbeBatches(
            {"context": features},
            torch.arange(len(features)) % 9,
            seeds=[1, 2, 3],
            controls=10,
            batch_size=batch_size,
        )
        modules = make_probes({"context": 256}, 9, batches.names, bias=True)
        brain = ProbeBrain(
            modules,
            lambda parameters: torch.optim.Adam(parameters, lr=1e-3),
            {"max_grad_norm": float("inf")},
            {"device": "cpu"},
        )
        brain.train_probes(batches, EpochCounter(number_of_epochs))

    rows = []
    for name, features, batch_size in zip(
        ("utterances", "frames"), extract(), (8, 8 * 64), strict=True
    ):
        learn = partial(train, features.clone(), batch_size)
        timings = in_turn(
            {
                "extract": extract,
                "one": lambda learn=learn: learn(1),
                "many": lambda learn=learn: learn(1 + epochs),
            },
            3,
        )
        one, many = median(timings["one"].wall), median(timings["many"].wall)
        epoch = (many - one) / epochs
        every_time = epoch + median(timings["extract"].wall)
        rows.append(
            row(
                "Probe epoch on kept features: times faster",
                f"Epoch of 13 probes of {name}, features kept, against "
                f"extracting them",
                "s",
                epoch,
                every_time,
                every_time / epoch,
                "≥ 10",
                examples=len(features),
            )
        )
    return rows


def _draw(folder, limit, batches, batch_size=4096):
    """Frames per second of random batches, in a process of its own.

    With a limit, in bytes, from disk: beyond what the process has, it gets no
    more memory than that. Without one, from memory.
    """
    rows = ActivationStore(folder)["context"]
    if limit:
        limit += _status("VmData")
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        try:
            rows[:]
        except MemoryError:
            draws = rows.random_batches(batch_size)
        else:
            raise RuntimeError("The limit does not bind: the store fits in it.")
    else:
        x = rows[:]
        draws = (x[at] for at in torch.randperm(len(x)).split(batch_size))
    next(draws)
    started = time.perf_counter()
    drawn = sum(len(batch) for batch in islice(draws, batches))
    return drawn / (time.perf_counter() - started)


def drawing(utterances=400, frames=2500, channels=256, repetitions=3):
    """Random frames of a store that does not fit in memory, against memory."""
    noise = np.random.default_rng(0).standard_normal((frames, channels))
    size = 2 * utterances * frames * channels
    with (
        tempfile.TemporaryDirectory() as folder,
        get_context("spawn").Pool(1, maxtasksperchild=1) as pool,
    ):
        manifest = Path(folder, "manifest.csv")
        manifest.write_text("ID\n", encoding="utf-8")
        store = ActivationStore.create(
            Path(folder, "store"),
            {"rows": ALL},
            manifest,
            {str(name): str(name) for name in range(utterances)},
            {"context": ((160, 20.0), [frames] * utterances)},
            [(0, {"context": noise})],
        )
        for position in range(1, utterances):
            store.write(position, {"context": noise})
        store.flush()
        rates = [
            [
                pool.apply(_draw, (store.folder, limit, 100))
                for limit in (size // 10, None)
            ]
            for _ in range(repetitions)
        ]
    disk, memory = (median(side) for side in zip(*rates, strict=True))
    return [
        row(
            "Random frames of a store of ten times the memory: speed, against "
            "memory",
            f"Random frames of a store of {size / 1e9:.1f} GB, in "
            f"{size / 1e7:.0f} MB",
            "frames/s",
            disk,
            memory,
            disk / memory,
            "≥ 0.1",
        )
    ]


def loading(files=96, epochs=3):
    """Share of a training epoch that waits for data."""
    ours = Ours("sim", make_batch(8, 10240))
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        # as the artificial set: 44.1 kHz, to be resampled
        for number in range(files):
            noise = 0.1 * generator.standard_normal(44100)
            soundfile.write(f"{folder}/{number}.wav", noise, 44100)
        prepare_folder(folder, f"{folder}/save", min_samples=10240)
        dataset = make_dataset(
            f"{folder}/save/train.csv", folder, KeyedCrop(10240, False, 1)
        )
        loader = make_dataloader(
            dataset,
            batch_size=8,
            num_workers=1,
            persistent_workers=True,
            drop_last=True,
        )
        waited = total = 0.0
        for epoch in range(1 + epochs):
            started = waiting = time.perf_counter()
            for ours.batch in loader:
                if epoch:  # the first one starts the worker
                    waited += time.perf_counter() - waiting
                ours()
                waiting = time.perf_counter()
            if epoch:
                total += time.perf_counter() - started
    return [
        row(
            "Data loading: share of a training epoch that waits",
            "Data loading: share of a training epoch that waits (1 worker)",
            "s",
            waited,
            total,
            waited / total,
            "≤ 0.05",
        )
    ]
