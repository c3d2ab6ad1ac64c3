"""Planted factors, of all classes and of single ones, found again by alignment.

    python -m benchmarks.planted --sets 10

Factors have values around 0, so that without alignment gates say how large a
value is, not whose the factor is. Each class has a faint mark, by which an
encoder can tell it. Prints, over planted sets, the F1 of factors that are found
again, and its difference to no alignment and to shuffled classes, with 95 %
intervals.
"""

import argparse
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch.nn.functional import normalize

from speechbrain_sim.bottlenecks.vsc import VariationalSparseCoder
from speechbrain_sim.brains.schedules import Ramp
from speechbrain_sim.data.sampling import ClassBatches
from speechbrain_sim.objectives.alignment import spread

CHANNELS, SHARED, CLASSES, ROWS, UNITS = 16, 2, 5, 2000, 20
NOISE, MARK, LR, SAMPLES = 0.1, 0.3, 0.01, 16
#: sets before it were tuned on
FIRST = 20
#: shares of the rows of a class in which a unit is open, and shut
OPEN, SHUT = 0.5, 0.1


class Planted(NamedTuple):
    """Rows, their classes, directions of factors, and the classes they are of.

    (rows, channels), (rows,), (factors, channels), (factors, classes).
    """

    x: torch.Tensor
    classes: torch.Tensor
    atoms: torch.Tensor
    belongs: torch.Tensor


def plant(seed, mean=0.0, mark=MARK):
    """Draws rows: of all classes two factors, N(0, 1); of each but the last,
    one of its own, N(mean, 1); of each the mark, a constant.
    """
    generator = torch.Generator().manual_seed(seed)
    count = SHARED + CLASSES - 1
    atoms = torch.randn(CHANNELS, CHANNELS, generator=generator)
    atoms, marks = torch.linalg.qr(atoms)[0].split([count, CHANNELS - count])
    classes = torch.arange(ROWS) % CLASSES
    belongs = torch.ones(count, CLASSES)
    belongs[SHARED:] = torch.eye(CLASSES)[:-1]
    values = torch.randn(ROWS, count, generator=generator)
    values[:, SHARED:] += mean
    noise = torch.randn(ROWS, CHANNELS, generator=generator)
    x = (values * belongs.T[classes]) @ atoms + NOISE * noise
    x += mark * marks[classes]
    return Planted(x, classes, atoms, belongs)


def train(planted, alignment, seed=0, steps=800, shuffle=False, units=UNITS):
    """Trains a coder; returns it."""
    x, classes, *_ = planted
    generator = torch.Generator().manual_seed(seed)
    coder = VariationalSparseCoder(
        *(CHANNELS, units),
        alignment=alignment,
        hidden=32,
        observation_std=0.3,
        generator=generator,
    )
    coder.set_units(x.mean(0), x.std(0))
    if shuffle:
        classes = classes[torch.randperm(len(x), generator=generator)]
    draws, batches = ClassBatches(classes.numpy(), SAMPLES), []
    optimizer = torch.optim.Adam(coder.parameters(), lr=LR)
    schedules = {
        "spike": Ramp([0.1, 0.2]),
        "alignment_scale": Ramp([0.2, 0.4]),
        "sharpness": Ramp([0, 1], [50, 200]),
    }
    for step in range(steps):
        done = step / steps
        for name, schedule in schedules.items():
            coder.anneal(name, schedule(done))
        optimizer.param_groups[0]["lr"] = LR * min(1, (1 - done) / 0.3)
        batches = batches or draws.draw(generator)
        rows = batches.pop()
        optimizer.zero_grad()
        loss = coder.loss(x[rows], None, classes[rows], generator)
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(coder.parameters(), 100)
        optimizer.step()
        coder.after_step()
    return coder.eval()


@torch.no_grad()
def objective(coder, planted, shuffle=False):
    """What was minimised, without noise."""
    loss, terms = coder.loss(planted.x, None, planted.classes)
    gate = coder.posterior(planted.x).gate
    if shuffle:
        return loss + coder.alignment * spread(gate).sum()
    return loss + coder.alignment * terms["within"]


def train_best(planted, alignment, seeds, shuffle=False):
    """Trains from several starts; returns the coder of least loss."""
    coders = [train(planted, alignment, s, shuffle=shuffle) for s in seeds]
    return min(coders, key=lambda c: objective(c, planted, shuffle))


@torch.no_grad()
def recovered(coder, planted):
    """Scores how well factors, and whose they are, are found again.

    A unit counts if it is open in the classes of a factor, shut in the others,
    and its direction lies in the span of the factors of those classes (which
    are drawn from Gaussians: within it no direction is special).

    Returns
    -------
    score, shares : (float, torch.Tensor)
        F1 over units that are ever used, and the share of each class's rows in
        which each is open, (units, classes).
    """
    x, classes, atoms, belongs = planted
    opened = (coder.posterior(x)[0] > 0.5).double()
    shares = [opened[classes == c].mean(0) for c in range(CLASSES)]
    shares, hits = torch.stack(shares, 1), 0
    eye = torch.eye(coder.num_units)
    moved = coder.decode(eye) - coder.decode(torch.zeros_like(eye))
    inside = (normalize(moved) @ atoms.T).square()
    for pattern in belongs.unique(dim=0):
        factors = (belongs == pattern).all(1)
        right = torch.where(pattern > 0, shares > OPEN, shares < SHUT).all(1)
        right &= inside[:, factors].sum(1) > 0.8
        hits += min(int(right.sum()), int(factors.sum()))
    used = int((shares.amax(1) > SHUT).sum())
    return 2 * hits / (used + len(belongs)), shares


def main():
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=10)
    parser.add_argument("--alignment", type=float, default=20.0)
    parser.add_argument("--mean", type=float, default=0.0)
    parser.add_argument("--starts", type=int, default=1)
    options = parser.parse_args()
    ways = {
        "aligned": (options.alignment, False),
        "none": (0.0, False),
        "shuffled": (options.alignment, True),
    }
    scores = {name: [] for name in ways}
    for seed in range(FIRST, FIRST + options.sets):
        planted = plant(seed, options.mean)
        for name, (alignment, shuffle) in ways.items():
            given = planted, alignment, range(options.starts), shuffle
            coder = train_best(*given)
            scores[name].append(recovered(coder, planted)[0])
        row = {n: f"{values[-1]:.2f}" for n, values in scores.items()}
        print(f"set {seed}: {row}", flush=True)
    first = np.array(scores["aligned"])
    rows = {name: np.array(values) for name, values in scores.items()}
    rows |= {f"aligned less {n}": first - rows[n] for n in [*ways][1:]}
    for name, values in rows.items():
        half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
        print(f"{name}: {values.mean():.2f} +- {half:.2f}")


if __name__ == "__main__":
    main()
