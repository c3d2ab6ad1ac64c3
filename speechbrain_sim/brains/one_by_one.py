"""Greedy training of one module after another, each on frozen ones."""

import hashlib
import itertools
import json
from pathlib import Path

import safetensors.torch
import speechbrain as sb
import torch
from speechbrain.dataio.dataset import DynamicItemDataset
from speechbrain.utils.data_pipeline import provides, takes
from speechbrain.utils.distributed import run_on_main
from speechbrain.utils.logger import get_logger

from speechbrain_sim import __version__
from speechbrain_sim.activations import ALL, LOG_VAR
from speechbrain_sim.brains.costs import latent_bytes, measure
from speechbrain_sim.brains.estimate import Stopwatch
from speechbrain_sim.brains.greedy import GreedyBrain
from speechbrain_sim.brains.transport import Frozen
from speechbrain_sim.data.tables import manifest_hash
from speechbrain_sim.extraction import encode_manifest
from speechbrain_sim.files import (
    lock_folder,
    read_json,
    text_hash,
    unlock_folder,
    write_json,
)
from speechbrain_sim.randomness import keyed_generator

logger = get_logger(__name__)


class OneByOneBrain(GreedyBrain):
    """Trains each greedy module for all its epochs, then the one above it.

    The modules below are in eval mode, without gradients and optimizer: means
    travel upwards, and in each step a sample is drawn from the posterior next
    below. It is computed from the waveforms (by default), or read from an
    `ActivationStore` that is made once. Epochs are counted through; learning
    rate and KL are scheduled by each module's own. Hyper-parameters beside
    those of `GreedyBrain`: `module_epochs` (of each module, 0: it does not
    learn; or one number, 0: `number_of_epochs`), `store` (a folder, or None),
    `store_half` (whether in half precision), `train_csv`, `data_folder`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        epochs = self.hparams.module_epochs or self.hparams.number_of_epochs
        if isinstance(epochs, int):
            epochs = [epochs] * len(self.modules)
        if len(epochs) != len(self.modules):
            raise ValueError(
                f"--module_epochs has {len(epochs)} numbers for the modules "
                f"{', '.join(self.modules)}: give one each, or one number."
            )
        #: last epoch of each module
        self.ends = dict(
            zip(self.modules, itertools.accumulate(epochs), strict=False)
        )
        self.below, self.learner, self.begin = None, None, 0
        self.started = False

    def fit_sets(self, train, valid, train_loader, valid_loader):
        """Trains module after module; see `ResumableBrain.fit_sets`."""
        counter, encoder = self.hparams.epoch_counter, self.hparams.encoder
        self.on_fit_start()
        if self.checkpointer is not None and not self.debug:
            run_on_main(self.check_ends)
        run_on_main(self.log_choice, (train, train_loader["batch_size"]))
        trial = self.debug_epochs
        stages = itertools.pairwise([(None, 0), *self.ends.items()])
        for (self.below, self.begin), (self.learner, end) in stages:
            if counter.current >= end:
                continue
            counter.limit, self.stopwatch = end, Stopwatch()
            self.optimizer_step, self.debug_epochs = 0, self.begin + trial
            self.frozen = [n for n in self.modules if n != self.learner]
            self.transport = Frozen(encoder, self.below, self.device, self.draw)
            rows = train
            if self.hparams.store and self.below:
                store = self.make_store(self.below)
                crop = self.hparams.crop
                rows = stored_set(store, self.below, train, crop, encoder)
            logger.info(f"{self.learner} learns until epoch {end}")
            super().fit_sets(rows, valid, train_loader, valid_loader)

    def on_fit_start(self):
        """Wraps and makes optimizers once, but resumes for each module."""
        if not self.started:
            super().on_fit_start()
        elif self.checkpointer is not None:
            self.checkpointer.recover_if_possible()
        self.started = True
        # a trial run ends modules early
        counter = self.hparams.epoch_counter
        counter.current = max(counter.current, self.begin)
        for name, optimizer in self.optimizers_dict.items():
            if name != self.learner and self.learner:
                optimizer.state.clear()  # memory of one module

    def check_ends(self):
        """Raises a ValueError if what was trained had other epochs."""
        path = Path(self.checkpointer.checkpoints_dir, "modules.json")
        done = self.hparams.epoch_counter.current + (self.step > 0)
        before = read_json(path) if done and path.exists() else self.ends
        for name, end in self.ends.items():
            if min(end, done) != min(before[name], done):
                raise ValueError(
                    f"{name} was trained until epoch {before[name]} of {done}, "
                    f"but --module_epochs end it at {end}: give those of the "
                    f"modules that have learnt, or choose another "
                    f"--output_folder."
                )
        write_json(path, self.ends)

    def log_choice(self, train, batch):
        """Logs what recomputation, and a store, of the modules below take."""
        hparams = self.hparams
        if hparams.epoch_counter.current >= max(self.ends.values()):
            return
        shape = batch, hparams.crop.samples, self.device
        costs = measure(self.unwrapped, self.opt_class, *shape)
        hours = sum(row["duration"] for row in train.data.values()) / 3600
        forward, begin, half = 0.0, 0, hparams.store_half
        steps = len(train) / batch
        for below, name in itertools.pairwise([None, *self.ends]):
            epochs, begin = self.ends[name] - begin, self.ends[name]
            text = f"{name}: {epochs} epochs, {costs[name].step:.3g} s per step"
            if below:
                forward += costs[below].forward
                disk = latent_bytes(hparams.encoder, below, half) / 1e9
                again = forward * steps * epochs / 3600
                text += (
                    f"; {below} computed again takes {forward:.3g} s more, "
                    f"{again:.3g} h in all; stored, {disk:.3g} GB per hour of "
                    f"audio, {disk * hours:.3g} GB of disk"
                )
            logger.info(text)
        fed = hparams.store or "computed again (--store FOLDER: stored)"
        logger.info(f"What is below a module: {fed}")

    def make_store(self, layer):
        """Encodes the training set by the modules up to a layer, once.

        A store of anything else has a folder of its own.
        """
        hparams, encoder = self.hparams, self.hparams.encoder.eval()
        description = {"sha256": hash_up_to(encoder, layer)}
        places = hparams.train_csv, hparams.data_folder
        options = {"rows": ALL, "log_var": True, "half": hparams.store_half}
        options |= {"alone": self.device_type == "cpu"}
        made_of = [__version__, description, manifest_hash(*places), options]
        digest = text_hash(json.dumps(made_of))[:12]
        folder = Path(hparams.store, f"{layer}-{digest}")
        run_on_main(lock_folder, (folder,))
        try:
            return encode_manifest(
                *(encoder, description, *places, folder, [layer]),
                **{**options, "device": self.device},
            )
        finally:
            unlock_folder(folder)

    def on_fit_batch_start(self, batch, should_step):
        """Keeps the modules that do not learn in eval mode."""
        super().on_fit_batch_start(batch, should_step)
        for name in self.frozen:
            self.unwrapped[name].eval()

    def draw(self, latent, train):
        """Draws from a posterior, as the module below would in this step."""
        if not train or self.unwrapped[self.below].sample is False:
            return latent.mean
        key = self.key(self.below, sb.Stage.TRAIN)
        return latent.draw(keyed_generator(*key, "noise", device=self.device))

    def running(self):
        """Lists the module that learns; see `GreedyBrain`."""
        return [self.learner]

    def epochs_done(self):
        """Returns the epochs of this module, with a fraction."""
        return super().epochs_done() - self.begin

    def on_stage_start(self, stage, epoch=None):
        """Sets the KL by the epochs of this module."""
        super().on_stage_start(stage, epoch)
        schedule = getattr(self.hparams, "kl_schedule", None)
        if stage == sb.Stage.TRAIN and schedule is not None:
            share = schedule(epoch - self.begin)
            self.unwrapped[self.learner].kl_scale = share


def hash_up_to(encoder, layer):
    """Returns the sha256 of the weights of a layer and of those below."""
    names = encoder.layers_up_to([layer])
    state = {
        f"{name}.{key}": x.detach().cpu().contiguous()
        for name in names
        for key, x in encoder.layers[name].state_dict().items()
    }
    return hashlib.sha256(safetensors.torch.save(state)).hexdigest()


def stored_set(store, layer, train, crop, encoder):
    """Makes a dataset of crops of a stored layer, in the order of another.

    Its `latent` is (frames, channels): means, then log-variances if there are
    any. A crop begins at a multiple of the hop. Its first and last frames
    differ from those of an encoded crop, which see zeros beyond it.

    Arguments
    ---------
    store : ActivationStore
        With all frames.
    train : DynamicItemDataset
        Of waveforms.
    crop : KeyedCrop
        Chooses samples.
    layer, encoder : str, Encoder
        What was encoded.

    Returns
    -------
    DynamicItemDataset
    """
    place = {name: position for position, name in enumerate(store.ids)}
    arrays = [n for n in (layer, layer + LOG_VAR) if n in store.arrays]
    hop, _ = encoder.frame_geometry(layer)

    @takes("id", "num_samples")
    @provides("latent")
    def read(item, num_samples):
        start, stop = crop(item, num_samples)
        frames = encoder.output_lengths(stop - start, layer)
        rows = place[item], start // hop, frames
        return torch.cat([store.frames(name, *rows) for name in arrays], 1)

    dataset = DynamicItemDataset(train.data, [read])
    dataset.data_ids = list(train.data_ids)
    dataset.set_output_keys(["id", "latent"])
    return dataset
