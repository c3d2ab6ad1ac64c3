"""Training of textual and acoustic halves on the stored frames of a layer."""

from typing import NamedTuple

import numpy as np
import speechbrain as sb
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, IterableDataset

from speechbrain_sim.analysis.probes import check_examples
from speechbrain_sim.bottlenecks.coded import MIXED
from speechbrain_sim.bottlenecks.vib import TextHalf
from speechbrain_sim.brains.base import ResumableBrain
from speechbrain_sim.brains.frames import check_store, measure
from speechbrain_sim.data.batches import make_dataset
from speechbrain_sim.data.labels import NO_LABEL, UTTERANCE
from speechbrain_sim.data.tables import read_manifest
from speechbrain_sim.data.targets import TEXTS, error_rates
from speechbrain_sim.models.format import (
    BASELINE,
    BOTTLENECK,
    load_parts,
    save_parts,
)
from speechbrain_sim.randomness import key_seed, keyed_generator

#: stage 1, among the labels
TEXT = "text"
#: follows the label in the name of what is trained on h itself
ON_LAYER = f"_{BASELINE}"
#: what is recorded of each half
STATS = "loss", "ctc", "nll", "kl", "kl_per_second", "infinite", "error"
#: batches within which utterances of like lengths are put together
POOL = 16
NO_TEXT = torch.zeros(0, dtype=torch.int64)


class Utterances(NamedTuple):
    """A padded batch of whole utterances.

    Arguments
    ---------
    x, lengths : torch.Tensor
        Frames, (batch, time, channels); valid ones, (batch,).
    texts, sizes : torch.Tensor
        Labels of the text, (batch, most labels); how many, (batch,).
    y : dict of str to torch.Tensor
        Class of each further label, (batch,); `NO_LABEL` where there is none.
    ids : list of str
    """

    x: torch.Tensor
    lengths: torch.Tensor
    texts: torch.Tensor
    sizes: torch.Tensor
    y: dict
    ids: list


class UtteranceBatches(IterableDataset):
    """Batches of the utterances of a store, for one epoch after another.

    In an epoch every utterance comes once, in an order that depends on seed,
    epoch and lengths alone; those of a batch have similar lengths.

    Arguments
    ---------
    store, layer : ActivationStore, str
        With all frames; which ones.
    texts : dict of str to torch.Tensor
        Utterance to labels of its text, see `data.targets.read_targets`; empty
        where texts are not needed.
    y : dict of str to dict of str to int
        Label to utterance to class; those without any are left out, if there
        are labels.
    batch_size : int
        Utterances of a batch.
    seed : int, optional
        Of the order; without, they come by their lengths.
    """

    def __init__(self, store, layer, texts, y, batch_size, seed=None):
        self.rows, self.ids = store[layer], store.ids
        self.first = self.rows.parts[0].first
        self.lengths = torch.from_numpy(np.diff(self.first))
        self.texts, self.y = texts, y
        self.batch_size, self.seed = batch_size, seed
        known = set().union(*y.values()) if y else set(self.ids)
        kept = [i for i, name in enumerate(self.ids) if name in known]
        self.kept = torch.tensor(kept)
        #: of the batches to come: their epoch, and how many it has had
        self.epoch, self.done = 1, 0

    def __len__(self):
        return -(-len(self.kept) // self.batch_size)

    def _batches(self):
        """Lists the utterances of each batch of this epoch."""
        if self.seed is None:
            order = self.kept[self.lengths[self.kept].argsort(stable=True)]
            return order.split(self.batch_size)
        key = self.seed, "utterances", self.epoch
        generator = keyed_generator(*key)
        order = torch.randperm(len(self.kept), generator=generator)
        order = self.kept[order].split(POOL * self.batch_size)
        order = [p[self.lengths[p].argsort(stable=True)] for p in order]
        batches = torch.cat(order).split(self.batch_size)
        order = torch.randperm(len(batches), generator=generator)
        return [batches[i] for i in order.tolist()]

    def __iter__(self):
        """Yields the batches of `epoch` that are left."""
        for chosen in self._batches()[self.done :]:
            yield self._read(chosen.tolist())

    def _read(self, chosen):
        """Reads the utterances at some places: `Utterances`."""
        ids = [self.ids[i] for i in chosen]
        x = [
            self.rows[int(self.first[i]) : int(self.first[i + 1])]
            for i in chosen
        ]
        texts = [self.texts.get(name, NO_TEXT) for name in ids]
        y = {
            label: torch.tensor([of.get(name, NO_LABEL) for name in ids])
            for label, of in self.y.items()
        }
        sizes = torch.tensor([len(text) for text in texts])
        x, texts = (pad_sequence(z, batch_first=True) for z in (x, texts))
        return Utterances(x, self.lengths[chosen], texts, sizes, y, ids)


class Labels(NamedTuple):
    """Labels of whole utterances.

    Arguments
    ---------
    classes : dict of str to list of str
        Of each label.
    y : dict of str to dict
        Part -> label -> utterance -> class, of those that have one.
    shared : str
        Whether speakers and texts of the test part are trained on.
    """

    classes: dict
    y: dict
    shared: str


def read_labels(manifests, data_folder, names):
    """Reads labels, and checks that they can be learnt: `Labels`.

    Arguments
    ---------
    manifests : dict of str to str
        "train", "valid" and "test": csv files.
    data_folder, names : str, list of str
        See `make_dataset`; the columns.

    Raises
    ------
    ValueError
        See `speechbrain_sim.analysis.probes.check_examples`.
    """
    classes, y = {}, {part: {} for part in manifests}
    for label in names:
        try:
            found = check_examples(manifests, data_folder, label, UTTERANCE, 10)
        except ValueError as error:
            remedy = "Leave it out of --labels, or prepare other data."
            raise ValueError(f"--labels {label}: {error} {remedy}") from error
        classes[label] = found
        for part, path in manifests.items():
            dataset = make_dataset(path, data_folder, None, label, found)
            with dataset.output_keys_as(["id", "target"]):
                of = {item["id"]: int(item["target"]) for item in dataset}
            y[part][label] = of
    rows = {n: read_manifest(p, data_folder) for n, p in manifests.items()}
    rows = {part: list(of.values()) for part, of in rows.items()}
    shared = []
    for column in ("speaker", *TEXTS):
        known = {row.get(column) for row in rows["train"]}
        if column in rows["test"][0]:
            count = sum(row[column] in known for row in rows["test"])
            share = f"{100 * count / len(rows['test']):.0f} %"
            shared.append(f"{share} have a {column} of the training part")
    return Labels(
        classes, y, f"Of the test utterances, {', '.join(shared) or 'none'}."
    )


def text_part(layer):
    """Returns the name of the textual half of a layer among a model's parts."""
    return f"{BOTTLENECK}_{layer}.vib.{TEXT}"


def read_text_half(folder, encoder_sha256, layer, mixed):
    """Reads the textual half of another run: part, and its entry.

    Raises a ValueError if there is none of this encoder and layer.
    """
    name = text_part(layer)
    try:
        parts, found = load_parts(folder, [name])
    except FileNotFoundError as error:
        raise ValueError(
            f"{error} Train stage 1 of {layer} there, or leave --text_from out."
        ) from error
    entry = found["parts"][name]
    for key, here in ("encoder", encoder_sha256), (MIXED, mixed):
        if entry.get(key) != here:
            raise ValueError(
                f"The textual half in {folder} is of another {key} "
                f"({entry.get(key)}) than this run's ({here}): give the "
                f"--encoder and --layers of that run, or leave --text_from out."
            )
    return parts[name], entry


def make_half(make, seed, label, **arguments):
    """Makes a half whose weights depend on seed and label alone.

    `make` is a class of `bottlenecks.vib`, or a partial of one.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(key_seed(seed, label, "half"))
        return make(**arguments)


def make_halves(make, seed, labels, channels, num_units, layers, **arguments):
    """Makes a half and its baseline for each label: dict for `HalvesBrain`.

    Arguments
    ---------
    make, seed, arguments :
        See `make_half`; what all have in common.
    labels : dict of str to dict
        Further arguments of each label.
    channels, num_units, layers : int
        Those of the layer; of a code; mixed in it.
    """
    halves = {}
    for label, own in labels.items():
        own = {**own, "input_channels": channels, "layers": layers, **arguments}
        coded = {**own, "num_units": num_units}
        halves[label] = make_half(make, seed, label, **coded)
        own |= {"num_units": channels // layers, "coded": False}
        own |= {"text_units": 0} if "text_units" in own else {}
        halves[label + ON_LAYER] = make_half(make, seed, label, **own)
    return halves


class HalvesBrain(ResumableBrain):
    """Trains the halves of one stage, and their baselines, side by side.

    `modules` is from `make_halves`: each learns as if it were alone, with an
    optimizer of its own. Hyper-parameters read from `hparams` beside those of
    `ResumableBrain`: `layer`, `mixed` (the layers of a mixture, or None),
    `frame_rate` (per second), `targets` (of the texts, of stage 1), `text_half`
    (frozen, of stage 2), `about` (metadata of the parts of each label), `beta`,
    `use_information_loss`, `batch_size`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.text_half = self.hparams.text_half
        if self.text_half is not None:
            self.text_half.to(self.device).eval().requires_grad_(False)

    def fit_stores(self, stores, y, encoder_sha256):
        """Trains on the ActivationStore "train" of a dict, validates on "valid".

        `y` is label -> utterance -> class. Raises a ValueError, before the
        first step, for a layer that cannot be learnt from, and for the store
        of another encoder.
        """
        layer, seed = self.hparams.layer, self.hparams.seed
        for store in stores.values():
            check_store(store, [layer], encoder_sha256, "frame")
        mean, std, sample = measure(stores["train"], layer)
        for half in self.unwrapped.values():
            half.set_units(mean, std, float(sample.norm(dim=1).mean()))
        self.batches = self.open_batches(stores["train"], y, seed)
        sets = self.batches, self.open_batches(stores["valid"], y)
        loaders = [DataLoader(part, batch_size=None) for part in sets]
        self.fit(self.hparams.epoch_counter, *loaders)

    def open_batches(self, store, y, seed=None):
        """Returns the UtteranceBatches of a store."""
        hparams = self.hparams
        texts = hparams.targets.ids if hparams.targets else {}
        size = hparams.batch_size
        return UtteranceBatches(store, hparams.layer, texts, y, size, seed)

    def on_stage_start(self, stage, epoch=None):
        """Sets the epoch of the batches, and what it has had of them."""
        super().on_stage_start(stage, epoch)
        if stage == sb.Stage.TRAIN:
            self.batches.epoch, self.batches.done = epoch, self.step

    def learn(self, batch, should_step):
        """See `ResumableBrain`."""
        losses, stats, beta = {}, {}, self.hparams.beta(self.epochs_done())
        for name, half in self.modules.items():
            with self.training_ctx:
                loss, terms = self.score(half, name, batch, beta)
            self.backward(name, loss, should_step)
            losses[name] = loss.detach()
            stats |= {f"{name}_{term}": x for term, x in terms.items()}
        self.watched = self.step, None, losses
        return sum(losses.values()), stats

    def score(self, half, name, batch, beta, stage=sb.Stage.TRAIN):
        """Returns the BottleneckLoss of one half for a batch."""
        x = batch.x.to(self.device)
        options = {"beta": beta * self.hparams.use_information_loss}
        noise = keyed_generator(*self.key(name, stage), device=self.device)
        options["generator"] = noise
        if isinstance(half, TextHalf):
            texts = batch.texts.to(self.device), batch.sizes
            return half.loss(x, batch.lengths, *texts, **options)
        y = batch.y[name.removesuffix(ON_LAYER)].to(self.device)
        return half.loss(x, batch.lengths, y, self.text_of(half, x), **options)

    @torch.no_grad()
    def text_of(self, half, x):
        """Returns what a half is conditioned on: codes, or None."""
        return self.text_half.encode(x) if half.text_units else None

    def compute_forward(self, batch, stage):
        """Returns a batch: `compute_objectives` codes it for each half."""
        return batch

    def compute_objectives(self, predictions, batch, stage):
        """Adds up the losses, and records their terms and errors."""
        total, beta = 0.0, self.hparams.beta(self.hparams.epoch_counter.current)
        for name, half in self.unwrapped.items():
            loss, terms = self.score(half, name, batch, beta, stage)
            *_, counts = self.errors(half, name, batch).values()
            wrong, of = (torch.tensor(sum(x)) for x in counts)
            terms |= {"wrong": wrong, "of": of}
            self.record({f"{name}_{n}": x for n, x in terms.items()}, stage)
            total = total + loss
        return total

    @torch.no_grad()
    def predict(self, half, batch):
        """Predicts a batch from means: labels of each text, or classes."""
        x = batch.x.to(self.device)
        z, targets = half.encode(x), self.hparams.targets
        if isinstance(half, TextHalf):
            return targets.decode(half.logits(z), batch.lengths)
        logits, _ = half(z, batch.lengths, self.text_of(half, x))
        return logits.argmax(-1).cpu()

    def errors(self, half, name, batch):
        """Counts the errors of each utterance, and of how many.

        Returns kind -> (list, list): "PER", ..., or "error" of classes, whose
        utterances without a class count 0 of 0.
        """
        predicted = self.predict(half, batch)
        if isinstance(half, TextHalf):
            texts = dict(zip(batch.ids, predicted, strict=True))
            rates = error_rates(texts, self.hparams.targets)
            return {n: (rate.edits, rate.lengths) for n, rate in rates.items()}
        y = batch.y[name.removesuffix(ON_LAYER)]
        known = y != NO_LABEL
        wrong = (predicted != y) & known
        return {"error": (wrong.long().tolist(), known.long().tolist())}

    def means(self, stage):
        """Returns means of terms; KL per second, too, and share of errors."""
        means = super().means(stage)
        for name, half in self.unwrapped.items():
            kl = means.pop(f"{name}_kl", None)
            if half.coded and kl is not None:
                means[f"{name}_kl"] = kl
                means[f"{name}_kl_per_second"] = kl * self.hparams.frame_rate
            wrong, of = (means.pop(f"{name}_{n}", 0) for n in ("wrong", "of"))
            means |= {f"{name}_error": wrong / of} if of else {}
        return means

    def save_result(self, training):
        """Saves the halves, and their baselines, beside their encoder."""
        hparams, parts, metadata = self.hparams, {}, {}
        layer = hparams.layer
        for name, half in self.unwrapped.items():
            label = name.removesuffix(ON_LAYER)
            part = f"{BASELINE}_{layer}.{label}"
            if half.coded:
                part = f"{BOTTLENECK}_{layer}.vib.{label}"
            entry = {"layer": layer, "pooling": "frame"}
            entry |= {MIXED: hparams.mixed} if hparams.mixed else {}
            entry |= hparams.about[label]
            entry["training"] = {n: training[n] for n in ("epochs", "seed")}
            for stage in ("train", "valid"):
                of = training[stage] or {}
                own = {n: of.get(f"{name}_{n}") for n in STATS}
                own = {n: x for n, x in own.items() if x is not None}
                entry["training"][stage] = own
            parts[part], metadata[part] = half, entry
        save_parts(hparams.output_folder, parts, metadata)

    @torch.no_grad()
    def test(self, store, y):
        """Scores the halves on a store, utterance by utterance.

        `y` is label -> utterance -> class. Returns, by module, the KL per frame
        (None if nothing is coded) and the `errors` of all.
        """
        self.modules.eval()
        batches, found = list(self.open_batches(store, y)), {}
        for name, half in self.unwrapped.items():
            kl, frames, errors = 0.0, 0, {}
            for batch in batches:
                count = int(batch.lengths.sum())
                x = batch.x.to(self.device)
                kl += count * float(half.draw(x, batch.lengths)[1])
                frames += count
                for kind, counts in self.errors(half, name, batch).items():
                    before = errors.get(kind, ([], []))
                    errors[kind] = [
                        a + b for a, b in zip(before, counts, strict=False)
                    ]
            found[name] = kl / frames if half.coded else None, errors
        return found
