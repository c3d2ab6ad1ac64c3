"""Trials of what could make greedy training learn more: docs/experiments.md.

    python -m benchmarks.levers synthetic results/demo/corpus \
        '{"context_channels": 256, "lr": 0.003, "warmup": 0.1, "decay": true}'
    python -m benchmarks.levers artificial DATA '{"kl_weight": [0.01, 0.01, 0.005]}'

Each argument in json is a trial: keys of hparams/models/sim.yaml, those of
`TRAINING`, and those of `LEVERS`, which did not pay and are no part of the package.
The loop is that of the Brain, in memory, without checkpoints; probes are logistic
regressions on standardized features, and are scored on the *validation* part, so
that nothing is chosen by the test part. A trial prints a line of json.
"""

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from speechbrain_sim.data.audio import AudioFile
from speechbrain_sim.data.corpora.artificial_speech import (
    prepare_artificial_speech,
)
from speechbrain_sim.data.corpora.synthetic import prepare_synthetic
from speechbrain_sim.data.labels import frames_of_labels
from speechbrain_sim.data.tables import audio_of, read_manifest
from speechbrain_sim.encoders import layers
from speechbrain_sim.encoders.logmel import SPECTRAL
from speechbrain_sim.family import build_model
from speechbrain_sim.files import text_hash
from speechbrain_sim.logistic import solve_logistic
from speechbrain_sim.models.format import ENCODER, halve, save_parts
from speechbrain_sim.models.load import load_encoder
from speechbrain_sim.objectives import kl
from speechbrain_sim.objectives.greedy import SmoothInfoNCE, SmoothInfoNCELoss

#: of all trials, unless they change it: the training, and the model
TRAINING = {"model": "sim", "seed": 1, "steps": 540, "batch_size": 8}
TRAINING |= {"lr": 0.001, "warmup": 0.0, "decay": False, "kl_warmup": 0.0}
SYNTHETIC = {"channels": 64, "context_channels": 64, "batch_norm": True}
SYNTHETIC |= {"kl_weight": 0.002, "kl_reduction": "channel"}
SYNTHETIC |= {"initial_log_var": -5.0}
ARTIFICIAL = {**SYNTHETIC, "channels": 128, "context_channels": 256}
ARTIFICIAL |= {"batch_norm": False}
ARTIFICIAL_TRAINING = {**TRAINING, "steps": 2125, "lr": 0.003, "warmup": 0.1}
ARTIFICIAL_TRAINING |= {"decay": True, "kl_warmup": 0.1}
#: of the demo's corpus
SIZES = {"speakers": 20, "sentences": 30, "test_sentences": 10}
#: stats that a trial prints, means of its last steps
STATS, LAST = ("nce", "_kl", "active_units", "accuracy"), 20
#: of L2, relative, of which the best counts
STRENGTHS = [0.2, 0.02, 0.002, 0.0002, 0.00002]


class Predictor(nn.Module):
    """W_k of what a network makes of c: thrown away after training."""

    def __init__(self, kind, linear, hidden=64):
        super().__init__()
        channels, rows = linear.in_features, linear.out_features
        if kind == "gru":
            self.net = nn.GRU(channels, hidden, batch_first=True)
        else:
            self.net = nn.Sequential(
                nn.Linear(channels, hidden),
                nn.ReLU(),
                nn.Linear(hidden, hidden),
                nn.ReLU(),
            )
        self.out = nn.Linear(hidden + channels, rows, bias=False)

    def forward(self, c):
        """(batch, frames, channels) -> (batch, frames, rows)."""
        found = self.net(c)
        found = found[0] if isinstance(found, tuple) else found
        return self.out(torch.cat([found, c], -1))


class Strided(SmoothInfoNCE):
    """Predicts every `stride`-th frame ahead."""

    stride = 1

    def forward(self, pairs, lengths, choices, posteriors=()):
        """See `SmoothInfoNCE`; for batches without padding."""
        (c, z), start = pairs[0], choices.start
        predicted = self.predictor(c).unflatten(-1, (self.prediction_steps, -1))
        candidates = z.flatten(0, 1)[choices.negatives]  # (B, T, N, channels)
        negative = predicted @ candidates.transpose(-1, -2)
        frames, losses, correct = predicted.shape[1], [], []
        window = z[:, start : start + frames]
        ahead = range(self.stride, frames, self.stride)
        for k, far in zip(range(self.prediction_steps), ahead, strict=False):
            near = predicted[:, :-far, k]
            positive = (near * window[:, far:]).sum(-1, keepdim=True)
            scores = torch.cat([positive, negative[:, :-far, k]], -1)
            losses.append((scores.logsumexp(-1) - scores[..., 0]).mean())
            best = scores[..., 0] > scores[..., 1:].amax(-1)
            correct.append(best.float().mean())
        nce = sum(losses) / len(losses)
        total, kls = nce, []
        for q, beta in posteriors:
            of_z = kl.kl_per_channel(q.mean, q.log_var, q.lengths)
            total = total + beta * of_z.sum()
            kls.append(of_z.detach())
        return SmoothInfoNCELoss(total, nce, kls, sum(correct) / len(correct))


def use_predictors(model, kinds):
    """Gives each module a predictor: linear, gru or mlp."""
    for module, kind in zip(model.modules.values(), kinds, strict=True):
        objective = module.smooth_info_nce
        if kind != "linear":
            objective.predictor = Predictor(kind, objective.predictor)


def use_strides(model, strides):
    """Lets each module predict every so many frames."""
    for module, stride in zip(model.modules.values(), strides, strict=True):
        module.smooth_info_nce.__class__ = Strided
        module.smooth_info_nce.stride = stride


def use_layer_norm(model, wanted):
    """Normalizes each frame over its channels instead of a batch."""
    for layer in model.encoder.layers.values():
        if wanted and hasattr(layer, "norms"):
            norms = [nn.LayerNorm(norm.num_features) for norm in layer.norms]
            layer.norms = nn.ModuleList(norms)
    layers._norm_valid = lambda norm, x, lengths: norm(x)


#: what no option of the package does
LEVERS = {
    "predictors": use_predictors,
    "prediction_strides": use_strides,
    "layer_norm": use_layer_norm,
}


def read(manifest, data_folder, columns):
    """Reads the recordings of a manifest: [(wav, columns of its row)]."""
    rows, paths = (
        read_manifest(manifest, data_folder),
        audio_of(manifest, data_folder),
    )
    recordings = []
    for name, row in rows.items():
        with AudioFile(paths[name]) as file:
            wav = file.samples().flatten().float()
        recordings.append((wav, [row[column] for column in columns]))
    return recordings


def crops_of(recordings, generator, size, samples, random):
    """Yields batches, (batch, samples) padded, and lengths, for ever."""
    queue = []
    while True:
        while len(queue) < size:
            order = torch.randperm(len(recordings), generator=generator)
            queue = (queue if random else []) + order.tolist()
        chosen, queue = queue[:size], queue[size:]
        crops = []
        for number in chosen:
            wav, start = recordings[number][0], 0
            if random and len(wav) > samples:
                starts = len(wav) - samples + 1
                start = int(torch.randint(starts, (), generator=generator))
            crops.append(wav[start : start + samples])
        lengths = torch.tensor([len(wav) for wav in crops])
        yield pad_sequence(crops, batch_first=True), lengths


def train(model, batches, chosen, device):
    """Trains for `steps`; returns the last means of the modules' stats."""
    optimizers, stats, steps = {}, {}, chosen["steps"]
    for name, module in model.modules.items():
        weights = module.train().parameters()
        optimizers[name] = torch.optim.Adam(weights, chosen["lr"], fused=True)
    for step in range(steps):
        wavs, lengths = next(batches)
        done, share = (step + 1) / steps, 1.0
        if chosen["warmup"]:
            share = min(1.0, done / chosen["warmup"])
        if chosen["decay"]:
            share *= 0.5 * (1 + math.cos(math.pi * step / steps))
        x = wavs[..., None].to(device)
        for name, module in model.modules.items():
            if chosen["kl_warmup"]:
                module.kl_scale = min(1.0, done / chosen["kl_warmup"])
            for group in optimizers[name].param_groups:
                group["lr"] = chosen["lr"] * share
            output = module(x, lengths, ("t", chosen["seed"], name, step))
            output.loss.backward()
            optimizers[name].step()
            optimizers[name].zero_grad()
            x, lengths = output.x.detach(), output.lengths
            for stat, value in output.stats.items():
                if step >= steps - LAST and stat.endswith(STATS):
                    stats[stat] = stats.get(stat, 0) + float(value) / min(
                        LAST, steps
                    )
    return {stat: round(value, 2) for stat, value in stats.items()}


def score(train, valid, classes, strengths):
    """Returns the share that the best of logistic regressions predicts, in %.

    `train` and `valid` are features and classes.
    """
    (x, y), (x_valid, y_valid) = train, valid
    mean, deviation = x.mean(0), x.std(0) + 1e-8
    solved = solve_logistic((x - mean) / deviation, y, classes, strengths)
    right = solved.predict((x_valid - mean) / deviation) == y_valid
    return round(100 * right.float().mean(1).max().item(), 1)


@torch.no_grad()
def encode(encoder, recordings):
    """Yields layer, recording's number and valid frames' means, 16 at once."""
    encoder.eval()
    order = sorted(range(len(recordings)), key=lambda i: len(recordings[i][0]))
    for first in range(0, len(order), 16):
        chosen = order[first : first + 16]
        wavs = [recordings[number][0] for number in chosen]
        lengths = torch.tensor([len(wav) for wav in wavs])
        wavs = pad_sequence(wavs, batch_first=True).to(encoder.device)
        latents = encoder(wavs, lengths, sample=False)
        for layer, z in latents.items():
            mean = z.mean.cpu()
            for row, number in enumerate(chosen):
                yield layer, number, mean[row, : z.lengths[row]]


def means_of(encoder, recordings):
    """Returns the time-mean of each recording: layer -> (recordings, channels)."""
    found = {layer: [None] * len(recordings) for layer in encoder.layer_names}
    for layer, number, frames in encode(encoder, recordings):
        found[layer][number] = frames.mean(0)
    return {layer: torch.stack(means) for layer, means in found.items()}


def phones_of(encoder, recordings):
    """Returns frames with a phone, layer -> (rows, channels), and the phones."""
    x, y = {layer: [] for layer in encoder.layer_names}, []
    for layer, number, frames in encode(encoder, recordings):
        phones = np.array(recordings[number][1][0].split(), int)
        place = encoder.frame_geometry(layer)
        at = frames_of_labels(len(phones), *place, len(frames), "centre")
        x[layer].append(frames[at])
        if layer == encoder.layer_names[0]:
            y.append(torch.from_numpy(phones))
    return {layer: torch.cat(rows) for layer, rows in x.items()}, torch.cat(y)


class Synthetic:
    """Phones of validation; speakers of a third of training and validation."""

    training, changes = TRAINING, SYNTHETIC
    crop = 20480, True

    def __init__(self, folder):
        with tempfile.TemporaryDirectory() as manifests:
            prepare_synthetic(folder, manifests, 16000, **SIZES)
            self.parts = [
                read(f"{manifests}/{part}.csv", folder, ["phones", "speaker"])
                for part in ("train", "valid")
            ]

    def score(self, encoder):
        """Returns layer -> [phones, speakers], in percent."""
        frames = [phones_of(encoder, part) for part in self.parts]
        means = [means_of(encoder, part) for part in self.parts]
        names = sorted({r[1][1] for r in self.parts[0]})
        ids = [
            torch.tensor([names.index(r[1][1]) for r in part])
            for part in self.parts
        ]
        generator = torch.Generator().manual_seed(0)
        shuffled = torch.randperm(len(ids[0]), generator=generator)
        known, asked = shuffled[:240], shuffled[240:]
        scores = {}
        (x_train, y_train), (x_valid, y_valid) = frames
        for layer in encoder.layer_names:
            train = x_train[layer][::2], y_train[::2]
            phones = score(train, (x_valid[layer], y_valid), 41, [2e-5])
            x = means[0][layer]
            train = x[known], ids[0][known]
            x = torch.cat([x[asked], means[1][layer]])
            valid = x, torch.cat([ids[0][asked], ids[1]])
            scores[layer] = phones, score(train, valid, len(names), [2e-4])
        return scores


class Artificial:
    """Syllables and vowels of validation, the best of five strengths."""

    training, changes = ARTIFICIAL_TRAINING, ARTIFICIAL
    crop = 10240, False

    def __init__(self, folder):
        with tempfile.TemporaryDirectory() as manifests:
            prepare_artificial_speech(folder, manifests)
            self.parts = [
                read(f"{manifests}/{part}.csv", folder, columns)
                for part, columns in (
                    ("pretrain", []),
                    ("train", ["syllable", "vowel"]),
                    ("valid", ["syllable", "vowel"]),
                )
            ]

    def score(self, encoder):
        """Returns layer -> [syllables, vowels], in percent."""
        means = [means_of(encoder, part) for part in self.parts[1:]]
        scores = {layer: [] for layer in encoder.layer_names}
        for column in (0, 1):
            names = sorted({r[1][column] for r in self.parts[1]})
            ids = [
                torch.tensor([names.index(r[1][column]) for r in part])
                for part in self.parts[1:]
            ]
            for layer, found in scores.items():
                train, valid = (
                    (m[layer], y) for m, y in zip(means, ids, strict=False)
                )
                found.append(score(train, valid, len(names), STRENGTHS))
        return scores


CORPORA = {"synthetic": Synthetic, "artificial": Artificial}


def trial(corpus, changes, device, folder):
    """Trains and scores one encoder; returns what is printed."""
    unknown = changes.keys() & LEVERS.keys()
    chosen = {k: changes.get(k, v) for k, v in corpus.training.items()}
    of_model = changes.keys() - unknown - chosen.keys()
    of_model = {**corpus.changes, **{key: changes[key] for key in of_model}}
    torch.manual_seed(chosen["seed"])
    model = build_model(chosen["model"], **of_model)
    original = layers._norm_valid
    for lever in unknown:
        LEVERS[lever](model, changes[lever])
    for module in (model.encoder, *model.modules.values()):
        module.to(device)
    generator = torch.Generator().manual_seed(chosen["seed"])
    batches = crops_of(
        corpus.parts[0], generator, chosen["batch_size"], *corpus.crop
    )
    begin = time.process_time()
    stats = train(model, batches, chosen, device)
    seconds = round(time.process_time() - begin)
    scores = corpus.score(model.encoder)
    layers._norm_valid = original
    if folder:
        name = text_hash(json.dumps(changes, sort_keys=True))[:8]
        halve(model.encoder)
        save_parts(folder / name, {ENCODER: model.encoder}, training=changes)
    return {"trial": changes, "scores": scores, "cpu": seconds, "stats": stats}


def make_parser():
    """Makes the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.levers", description=__doc__
    )
    parser.fromfile_prefix_chars = "@"
    parser.add_argument("corpus", choices=CORPORA)
    parser.add_argument("folder", type=Path)
    parser.add_argument("trials", nargs="+", help="json, or a baseline")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--share", type=int, nargs=2, default=[0, 1], metavar=("FIRST", "EVERY")
    )
    parser.add_argument("--save", type=Path, help="encoders, in this folder")
    return parser


def main():
    """Runs the trials one after the other."""
    given = make_parser().parse_args()
    corpus = CORPORA[given.corpus](given.folder)
    first, every = given.share
    for changes in given.trials[first::every]:
        if changes in SPECTRAL:
            line = {"trial": changes}
            line["scores"] = corpus.score(load_encoder(changes)[0])
        else:
            changes = json.loads(changes)
            line = trial(corpus, changes, given.device, given.save)
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
