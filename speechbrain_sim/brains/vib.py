"""Training of textual and acoustic halves on the stored frames of a layer."""

from typing import NamedTuple

import speechbrain as sb
import torch
from speechbrain.utils.logger import get_logger
from torch.utils.data import DataLoader

from speechbrain_sim.analysis.probes import check_examples
from speechbrain_sim.bottlenecks.coded import MIXED
from speechbrain_sim.brains.base import ResumableBrain
from speechbrain_sim.brains.utterances import (
    StoredUtterances,
    UtteranceBatches,
)
from speechbrain_sim.data.batches import make_dataset
from speechbrain_sim.data.labels import UTTERANCE
from speechbrain_sim.data.splits import divide
from speechbrain_sim.data.targets import Labels, error_rates, read_targets
from speechbrain_sim.models.format import (
    BASELINE,
    BOTTLENECK,
    load_parts,
    save_parts,
)
from speechbrain_sim.randomness import key_seed, keyed_generator
from speechbrain_sim.rows import moments

logger = get_logger(__name__)

#: the task of stage 1, among those of stage 2
TEXT = "text"
#: follows a task in the name of what is trained on h itself
ON_LAYER = f"_{BASELINE}"
#: what is recorded of each half
STATS = "loss", "ctc", "nll", "kl", "kl_per_second", "infinite", "error"


class Task(NamedTuple):
    """What a half is trained for.

    Arguments
    ---------
    name : str
        `TEXT`, or a column of the manifests.
    manifests, division : dict of str to str, str
        "train", "valid" and "test": csv files; how they were divided.
    targets : dict of str to dict of str to torch.Tensor
        Part -> utterance -> class, (), or labels of its text, (labels,).
    classes : list of str
        Names of the classes, or labels.
    texts : Labels or None
        Of the text.
    """

    name: str
    manifests: dict
    division: str
    targets: dict
    classes: list
    texts: Labels | None = None


def read_text(manifests, data_folder, folder, split, **options):
    """Reads the text as a Task; see `divide` and `read_targets`."""
    divided = divide(
        manifests, data_folder, folder, None, split, options["text"]
    )
    options["data_folder"] = data_folder
    texts, ids = read_targets(divided.manifests, **options)
    return Task(TEXT, *divided, ids, texts.symbols, texts)


def read_label(manifests, data_folder, folder, split, label, text=None):
    """Reads a label of whole utterances as a Task; see `divide`.

    Raises a ValueError for a class without examples in training, a label with
    one class, or fewer than three recordings to test on.
    """
    asked = folder, label, split, text
    manifests, division = divide(manifests, data_folder, *asked)
    classes = check_examples(manifests, data_folder, label, UTTERANCE, 10)
    targets = {}
    for part, path in manifests.items():
        dataset = make_dataset(path, data_folder, None, label, classes)
        with dataset.output_keys_as(["id", "target"]):
            targets[part] = {x["id"]: x["target"][0] for x in dataset}
    return Task(label, manifests, division, targets, classes)


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


def make_halves(task, make, seed, num_units, text_units, **layer):
    """Makes the half of a task, and its baseline: dict for `HalvesBrain`.

    Their weights depend on seed and task alone.

    Arguments
    ---------
    task, make : Task, callable
        For what; (**arguments) -> TextHalf or UtteranceHalf.
    seed, num_units, text_units : int
        Size of the code; of that of the text, for a label.
    **layer :
        `input_channels`, and `layers`, the number of layers in it.
    """
    own = {"labels": len(task.classes)}
    if task.name != TEXT:
        own = {"classes": len(task.classes), "text_units": text_units}
    width = layer["input_channels"] // layer["layers"]
    plain = {**own, "num_units": width, "coded": False}
    plain |= {"text_units": 0} if "text_units" in own else {}
    several = {task.name: {**own, "num_units": num_units}}
    several[task.name + ON_LAYER] = plain
    halves = {}
    with torch.random.fork_rng(devices=[]):
        for name, arguments in several.items():
            torch.manual_seed(key_seed(seed, name))
            halves[name] = make(**layer, **arguments)
    return halves


class HalvesBrain(ResumableBrain):
    """Trains the half of a task, and its baseline, side by side.

    `modules` is from `make_halves`: each learns as if it were alone, with an
    optimizer of its own. Hyper-parameters read from `hparams` beside those of
    `ResumableBrain`: `task`, `layer`, `mixed` (the layers of a mixture, or
    None), `frame_rate` (per second), `text_half` (frozen, of stage 2), `beta`,
    `use_information_loss`, `batch_size`.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.task, self.text_half = self.hparams.task, self.hparams.text_half
        if self.text_half is not None:
            self.text_half.to(self.device).eval().requires_grad_(False)

    def fit_stores(self, stores):
        """Trains on the utterances of ActivationStores: of the corpus' parts."""
        self.stores = dict(zip(self.task.targets, stores, strict=True))
        self.set_units()
        self.batches = self.open_batches("train", self.hparams.seed)
        sets = self.batches, self.open_batches("valid")
        loaders = [DataLoader(part, batch_size=None) for part in sets]
        self.fit(self.hparams.epoch_counter, *loaders)

    def stored(self, part):
        """Returns the frames of all utterances, those of a part first."""
        order = sorted(self.stores, key=lambda other: other != part)
        stores = [self.stores[other] for other in order]
        return StoredUtterances(stores, self.hparams.layer)

    def open_batches(self, part, seed=None):
        """Returns the UtteranceBatches of a part."""
        targets, size = self.task.targets[part], self.hparams.batch_size
        return UtteranceBatches(self.stored(part), targets, size, seed)

    def set_units(self):
        """Sets the units of the layer, from the training part."""
        stored = self.stored("train")
        mean, std = moments(map(stored.__getitem__, self.task.targets["train"]))
        for half in self.unwrapped.values():
            half.set_units(mean, std)

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
                key = self.key(name, sb.Stage.TRAIN)
                loss, terms = self.score(half, batch, beta, key)
            self.backward(name, loss, should_step)
            losses[name] = loss.detach()
            stats |= {f"{name}_{term}": x for term, x in terms.items()}
        self.watched = self.step, None, losses
        return sum(losses.values()), stats

    def score(self, half, batch, beta, key=()):
        """Returns the BottleneckLoss of one half; `key` is that of its noise."""
        x, y = batch.x.to(self.device), batch.y.to(self.device)
        noise = keyed_generator(*key, device=self.device)
        options = {"beta": beta * self.hparams.use_information_loss}
        options["generator"] = noise
        others = batch.sizes if self.task.texts else self.text_of(half, x)
        return half.loss(x, batch.lengths, y, others, **options)

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
            loss, terms = self.score(half, batch, beta)
            *_, counts = self.errors(half, batch).values()
            wrong, of = (torch.tensor(sum(x)) for x in counts)
            terms |= {"wrong": wrong, "of": of}
            self.record({f"{name}_{n}": x for n, x in terms.items()}, stage)
            total = total + loss
        return total

    @torch.no_grad()
    def errors(self, half, batch):
        """Counts the errors of each utterance, by its means, and of how many.

        Returns kind -> (list, list): "PER", ..., or "error" of classes.
        """
        x = batch.x.to(self.device)
        z, texts = half.encode(x), self.task.texts
        if texts is None:
            logits, _ = half(z, batch.lengths, self.text_of(half, x))
            wrong = logits.argmax(-1).cpu() != batch.y
            return {"error": (wrong.long().tolist(), [1] * len(wrong))}
        found = texts.decode(half.logits(z), batch.lengths)
        pairs = zip(batch.y, batch.sizes, strict=True)
        true = [row[:size] for row, size in pairs]
        both = (dict(zip(batch.ids, x, strict=True)) for x in (found, true))
        rates = error_rates(*both, texts)
        return {
            kind: (rate.edits, rate.lengths) for kind, rate in rates.items()
        }

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
        """Saves the half, and its baseline, beside their encoder."""
        hparams, parts, metadata = self.hparams, {}, {}
        layer, task = hparams.layer, self.task
        for name, half in self.unwrapped.items():
            part = f"{BASELINE}_{layer}_{task.name}"
            if half.coded:
                part = f"{BOTTLENECK}_{layer}.vib.{task.name}"
            entry = {"layer": layer, "pooling": "frame", "split": task.division}
            entry |= {MIXED: hparams.mixed} if hparams.mixed else {}
            entry["classes"] = task.classes
            entry |= {"target": task.texts.target} if task.texts else {}
            entry["training"] = {n: training[n] for n in ("epochs", "seed")}
            for stage in ("train", "valid"):
                of = training[stage] or {}
                own = {n: of.get(f"{name}_{n}") for n in STATS}
                own = {n: x for n, x in own.items() if x is not None}
                entry["training"][stage] = own
            parts[part], metadata[part] = half, entry
        save_parts(hparams.output_folder, parts, metadata)
        error = (training["valid"] or {}).get(f"{TEXT}_error")
        if training["epochs"] == hparams.epoch_counter.limit and error == 1:
            logger.warning(
                "All labels of the text are wrong after the last epoch, as of "
                "a half that predicts none: lower --initial_beta, raise "
                "--number_of_epochs, or choose a layer with more context."
            )

    @torch.no_grad()
    def test(self, part="test"):
        """Scores a part, utterance by utterance.

        Returns, by module, the KL per frame (None if nothing is coded) and the
        `errors` of all.
        """
        self.modules.eval()
        batches, found = list(self.open_batches(part)), {}
        for name, half in self.unwrapped.items():
            kl, frames, errors = 0.0, 0, {}
            for batch in batches:
                count, x = int(batch.lengths.sum()), batch.x.to(self.device)
                kl += count * float(half.draw(x, batch.lengths)[1])
                frames += count
                for kind, (wrong, of) in self.errors(half, batch).items():
                    before = errors.get(kind, ([], []))
                    errors[kind] = before[0] + wrong, before[1] + of
            found[name] = kl / frames if half.coded else None, errors
        return found
