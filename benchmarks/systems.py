"""The systems that are measured: ours, as a Brain runs it, and the plain one."""

import functools
import math
import tempfile

import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.epoch_loop import EpochCounter

from benchmarks.reference import PlainSIM, train_step
from speechbrain_sim.brains.checkpointer import RewindingTrainLogger
from speechbrain_sim.brains.decoder import DecoderBrain
from speechbrain_sim.brains.greedy import GreedyBrain
from speechbrain_sim.decoders import mirror
from speechbrain_sim.family import build_model
from speechbrain_sim.objectives.reconstruction import ReconstructionLoss

TRAIN = sb.Stage.TRAIN


def make_batch(
    batch, samples, shorter=0, labels=None, seed=1, dtype=torch.float32
):
    """Noise, as a batch of SpeechBrain's.

    Each utterance is `shorter` by so many samples than the one before it.
    `labels` is a function of the samples: how many targets of 3 classes.
    """
    torch.manual_seed(seed)
    wavs = 0.1 * torch.randn(batch, samples)
    rows = [{"sig": wav} for wav in wavs.to(dtype)]
    for number, row in enumerate(rows):
        row["sig"] = row["sig"][: samples - number * shorter]
        if labels:
            row["target"] = torch.randint(3, (labels(len(row["sig"])),))
    return PaddedBatch(rows)


def ready(brain_class, modules, run_opts, **hparams):
    """Makes a Brain that is about to train its first batch."""
    counter = EpochCounter(1)
    counter.current = 1
    shared = {"seed": 1, "epoch_counter": counter, "max_grad_norm": math.inf}
    brain = brain_class(
        modules=modules,
        opt_class=functools.partial(torch.optim.Adam, lr=2e-4, fused=True),
        hparams={**shared, **hparams},
        run_opts={"device": "cpu", **(run_opts or {})},
    )
    brain.modules.train()
    brain.init_optimizers()
    return brain


class Ours:
    """A model and the Brain that trains it, one call per step."""

    def __init__(self, name, batch, run_opts=None, **changes):
        torch.manual_seed(0)
        self.model, self.batch = build_model(name, **changes), batch
        self.folder = tempfile.TemporaryDirectory()  # goes with this object
        folder = self.folder.name
        self.brain = ready(
            GreedyBrain,
            self.model.modules,
            run_opts,
            train_logger=RewindingTrainLogger(f"{folder}/log.txt"),
            encoder=self.model.encoder,
            output_folder=folder,
        )

    def __call__(self):
        """One step."""
        self.brain.step += 1
        self.brain.averages[TRAIN].clear()
        self.brain.fit_batch(self.batch)

    def parameters(self):
        """Weights of the modules."""
        return self.brain.modules.parameters()

    def losses(self):
        """Losses of the last step: dict of str to float."""
        self.brain.read()
        means = self.brain.averages[TRAIN].means()
        return {name: means[f"{name}_loss"] for name in self.model.modules}


class Decoding:
    """The decoder of a layer, with a frozen random encoder, one call per step."""

    def __init__(self, layer, batch, run_opts=None, **changes):
        torch.manual_seed(0)
        encoder, self.batch = build_model("sim", **changes).encoder, batch
        self.brain = ready(
            DecoderBrain,
            {"decoder": mirror(encoder, layer)},
            run_opts,
            frozen_encoder=encoder.eval().requires_grad_(False),
            layer=layer,
            sampled=True,
            reconstruction=ReconstructionLoss(),
        )

    def __call__(self):
        """One step."""
        self.brain.step += 1
        self.brain.fit_batch(self.batch)


class Plain:
    """The plain reference with the weights that ours has now."""

    def __init__(self, ours):
        self.brain = ours.brain
        self.model = PlainSIM(ours.model.encoder, ours.model.modules).train()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=2e-4)
        self.wavs = ours.batch.sig.data

    def __call__(self):
        """One step, with the random draws of the last step of ours."""
        self.last = train_step(
            self.model,
            self.optimizer,
            self.wavs,
            lambda name: self.brain.key(name, TRAIN),
        )

    def parameters(self):
        """Weights of the model."""
        return self.model.parameters()

    def losses(self):
        """Losses of the last step: dict of str to float."""
        return self.last


def must_agree(ours, plain, tolerance=1e-3):
    """Raises an AssertionError where the two report other losses."""
    mine, theirs = ours.losses(), plain.losses()
    for name, loss in mine.items():
        difference = abs(loss - theirs[name])
        if difference > tolerance * abs(theirs[name]):
            raise AssertionError(
                f"{name}: our loss is {loss}, the plain one {theirs[name]}."
            )
