"""Bottlenecks: a training step, and several in one pass over a store."""

import functools
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
import torch
from speechbrain.utils.epoch_loop import EpochCounter
from torch import nn

from benchmarks.floor import autoencoder_flops
from benchmarks.measure import (
    floor_row,
    in_turn,
    matrix_product,
    quotient,
    row,
)
from speechbrain_sim.activations import ALL, ActivationStore
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.brains.bottleneck import (
    BottleneckBrain,
    make_bottlenecks,
    plan,
)
from speechbrain_sim.brains.frames import Batch, FrameBatches

#: what the issue of bottlenecks asks for: channels, units, active units, rows
CHANNELS, UNITS, K, ROWS = 512, 4096, 32, 4096
#: the seeds of one pass
SEVERAL = [1, 2, 3, 4]
LR, CLIP = 4e-4, 1.0


class PlainAutoencoder(nn.Module):
    """A TopK autoencoder as its equations are read: every product is dense."""

    def __init__(self, sae):
        super().__init__()
        self.k, self.mean, self.std = int(sae.k), sae.mean, sae.std
        self.encoder = nn.Linear(sae.input_channels, sae.num_units)
        self.decoder = nn.Linear(sae.num_units, sae.input_channels, bias=False)
        self.b_dec = nn.Parameter(sae.b_dec.detach().clone())
        with torch.no_grad():
            self.encoder.weight.copy_(sae.encoder.weight)
            self.encoder.bias.copy_(sae.encoder.bias)
            self.decoder.weight.copy_(sae.decoder.weight)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=LR)
        self.idle = torch.zeros(sae.num_units)

    def step(self, x):
        """Trains on rows; returns the loss."""
        u = (x - self.mean) / self.std
        acts = torch.relu(self.encoder(u - self.b_dec))
        top = acts.topk(self.k, dim=-1)
        z = torch.zeros_like(acts).scatter(-1, top.indices, top.values)
        loss = (self.decoder(z) + self.b_dec - u).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        weight = self.decoder.weight
        with torch.no_grad():
            columns = weight / weight.norm(dim=0)
            weight.grad -= (weight.grad * columns).sum(0) * columns
        nn.utils.clip_grad_norm_(self.parameters(), CLIP)
        self.optimizer.step()
        with torch.no_grad():
            weight /= weight.norm(dim=0)
            self.idle += len(x)
            self.idle[(z > 0).any(0)] = 0
        return loss.item()


def make_brain(seeds):
    """Makes a Brain of autoencoders of one layer, one for each seed."""
    planned = plan({"layer": UNITS}, [K], None, seeds)
    make = functools.partial(SparseAutoencoder, auxk=0.0)
    modules = make_bottlenecks(
        planned, make, {"layer": CHANNELS}, {"layer": 10**9}
    )
    hparams = {"planned": planned, "lr": LR, "max_grad_norm": CLIP, "seed": 1}
    hparams |= {"schedules": {}, "temporal_frames": 1}
    hparams |= {"epoch_counter": EpochCounter(1)}
    adam = functools.partial(torch.optim.Adam, fused=True)
    brain = BottleneckBrain(modules, adam, hparams, {"device": "cpu"})
    brain.hparams.epoch_counter.current = 1
    brain.on_fit_start()
    brain.modules.train()
    return brain


def frames(count=ROWS):
    """Rows that are sums of few of many directions, and noise."""
    generator = torch.Generator().manual_seed(0)
    atoms = torch.randn(1024, CHANNELS, generator=generator)
    active = torch.rand(count, 1024, generator=generator) < 0.01
    noise = torch.randn(count, CHANNELS, generator=generator)
    return active.float() @ atoms / 3 + 0.1 * noise


def step(repetitions=9):
    """A training step against a plain one, and the products of a dense one."""
    x, brain = frames(), make_brain([1])
    (sae,) = brain.unwrapped.values()
    sae.set_units(x.mean(0), x.std(0))
    sae.initialise(x[:1024])
    plain, losses = PlainAutoencoder(sae), {"ours": [], "plain": []}
    batch = {"layer": Batch(x, None, 0.5)}

    def ours():
        brain.step += 1
        losses["ours"].append(float(brain.fit_batch(batch)))

    work = {"product": matrix_product(), "ours": ours}
    work["plain"] = lambda: losses["plain"].append(plain.step(x))
    timings = in_turn(work, repetitions, warm_up=2)
    np.testing.assert_allclose(losses["ours"], losses["plain"], rtol=1e-3)
    rates = {name: ROWS / median(timings[name].wall) for name in losses}
    title = f"Step of a bottleneck, {CHANNELS} to {UNITS:,}, k {K}"
    family = "Step of a bottleneck"
    rows = [
        row(
            f"{family}: times faster than a plain loop",
            f"{title}: frames per second against a plain loop",
            "frames/s",
            *rates.values(),
            quotient(timings, "plain", "ours"),
            "≥ 1.5",
        )
    ]
    flops = autoencoder_flops(ROWS, CHANNELS, UNITS)
    for name in losses:
        target = "≤ 1.5" if name == "ours" else ""
        measured = family, title, timings, name
        rows.append(floor_row(*measured, flops, target))
        # the floor is of five products; only the encoder's cannot be avoided
        rows[-1]["encoder_products"] = 5 * rows[-1]["ratio"]
    return rows


def make_store(folder, utterances=80, count=1000):
    """A store of one layer, of as many rows as a quarter of an hour has."""
    x = frames(count).numpy()
    ids = {str(name): str(name) for name in range(utterances)}
    store = ActivationStore.create(
        Path(folder),
        {"rows": ALL},
        {name: {} for name in ids},
        ids,
        {"layer": ((160, 20.0), [count] * utterances)},
        [(0, {"layer": x})],
    )
    for position in range(1, utterances):
        store.write(position, {"layer": np.roll(x, position, 0)})
    store.flush()
    return store


def one_pass(repetitions=5):
    """Several bottlenecks in one pass, against one of them, several times.

    n of them take n times one, less n - 1 times the reading.
    """
    with tempfile.TemporaryDirectory() as folder:
        store = make_store(folder)
        batches = FrameBatches(store, ["layer"], ROWS, seed=1)
        brains = {"one": make_brain([1]), "several": make_brain(SEVERAL)}
        for brain in brains.values():
            for sae in brain.unwrapped.values():
                sae.set_units(torch.zeros(CHANNELS), torch.ones(CHANNELS))
        steps = {name: iter(batches) for name in ("read", *brains)}

        def work(name):
            batch = next(steps[name])
            if name in brains:
                brains[name].step += 1
                brains[name].fit_batch(batch)

        functions = {n: functools.partial(work, n) for n in steps}
        timings = in_turn(functions, repetitions, warm_up=2)
    n = len(SEVERAL)
    read, one, several = (median(timings[name].wall) for name in steps)
    expected = n * one - (n - 1) * read
    return [
        row(
            "Several bottlenecks in one pass: time, against n × one less reading",
            f"A step of {n} bottlenecks ({read / several:.1%} reads), against "
            f"{n} of one ({read / one:.1%}) less the reading",
            "s",
            several,
            expected,
            several / expected,
            "≤ 1.1",
            read=read,
            one=one,
        )
    ]
