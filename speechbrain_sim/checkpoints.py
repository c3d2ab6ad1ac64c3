"""Saving that survives a kill, and loading that refuses a wrong file.

A checkpoint is written under another name, hashed, and renamed when complete;
an encoder is a state dict beside a json file that says what it is.
"""

import hashlib
import json
import os
import pathlib
import platform
import shutil
from importlib.metadata import version

import torch
from speechbrain.utils import checkpoints as sb_checkpoints
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import (
    ddp_barrier,
    if_main_process,
    main_process_only,
)
from speechbrain.utils.logger import get_logger
from speechbrain.utils.train_logger import FileTrainLogger

from speechbrain_sim import __version__
from speechbrain_sim.decoders import ConvDecoder
from speechbrain_sim.encoders import GreedyEncoder

logger = get_logger(__name__)

INCOMPLETE = "incomplete+"
HASHES = "SHA256.json"
ENCODER, DECODER = "encoder", "decoder"


def sha256(path):
    """Hashes a file.

    Arguments
    ---------
    path : str or pathlib.Path
        The file.

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    with open(path, "rb") as file:  # hashlib.file_digest needs Python 3.11
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path, content):
    """Writes a json file whole or not at all.

    Arguments
    ---------
    path : str or pathlib.Path
        Where to; folders are made.
    content : dict or list
        What to write.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def remembered(path, made_of, compute):
    """Computes a result, or finds that it was computed from the same before.

    Arguments
    ---------
    path : str or pathlib.Path
        A json file that keeps the result.
    made_of : dict
        What it depends on: hashes and settings.
    compute : callable
        Returns the result, of json values.

    Returns
    -------
    dict or list
        The result as json gives it back.

    Raises
    ------
    ValueError
        If the result holds NaN or infinity.

    Example
    -------
    >>> path = getfixture("tmp_path") / "result.json"
    >>> remembered(path, {"seed": 1}, lambda: [1])
    [1]
    >>> remembered(path, {"seed": 1}, lambda: [2])
    [1]
    >>> remembered(path, {"seed": 2}, lambda: [2])
    [2]
    """
    path, made_of = pathlib.Path(path), json.loads(json.dumps(made_of))
    if path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        if known["made_of"] == made_of:
            return known["result"]
    result = json.loads(json.dumps(compute(), allow_nan=False))
    write_json(path, {"made_of": made_of, "result": result})
    return result


class AtomicCheckpointer(sb_checkpoints.Checkpointer):
    """SpeechBrain's Checkpointer, safe against a kill at any moment.

    A checkpoint gets its name only when all its files are written and hashed.
    Recovery checks the hashes, and falls back with a warning to the last good
    checkpoint when the newest is damaged. Arguments are those of
    `speechbrain.utils.checkpoints.Checkpointer`.

    Example
    -------
    >>> model, folder = torch.nn.Linear(2, 2), getfixture("tmpdir")
    >>> checkpointer = AtomicCheckpointer(folder, {"model": model})
    >>> saved = checkpointer.save_checkpoint()
    >>> checkpointer.recover_if_possible().path == saved.path
    True
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._verified = set()

    def _new_checkpoint_dirpath(self):
        path = super()._new_checkpoint_dirpath()
        return path.with_name(INCOMPLETE + path.name)

    def _custom_checkpoint_dirpath(self, name):
        path = super()._custom_checkpoint_dirpath(name)
        return path.with_name(INCOMPLETE + path.name)

    def save_checkpoint(self, *args, **kwargs):
        """Saves like the parent class, then gives the folder its name."""
        if if_main_process():
            damaged = set(self._list_checkpoint_dirs()) - set(self._whole())
            for leftover in self.checkpoints_dir.glob(INCOMPLETE + "*"):
                damaged.add(leftover)
        ddp_barrier()
        saved = super().save_checkpoint(*args, **kwargs)
        ddp_barrier()  # every process has written what it writes
        if saved is not None:
            hashes = {
                file.name: sha256(file) for file in sorted(saved.path.iterdir())
            }
            write_json(saved.path / HASHES, hashes)
            final = saved.path.with_name(
                saved.path.name.removeprefix(INCOMPLETE)
            )
            if final.exists():
                shutil.rmtree(final)
            os.replace(saved.path, final)
            self._verified.add(final)
            for folder in damaged:  # not needed any more
                shutil.rmtree(folder)
            files = {n: final / p.name for n, p in saved.paramfiles.items()}
            saved = saved._replace(path=final, paramfiles=files)
        ddp_barrier()
        return saved

    def recover_if_possible(self, *args, **kwargs):
        """Recovers like the parent class, after checking every hash anew."""
        self._verified.clear()
        return super().recover_if_possible(*args, **kwargs)

    def list_checkpoints(self):
        """Lists the undamaged checkpoints; warns of the others."""
        return self._construct_checkpoint_objects(self._whole())

    def _whole(self):
        for folder in set(self._list_checkpoint_dirs()) - self._verified:
            problem = _damage(folder)
            if problem is None:
                self._verified.add(folder)
            else:
                logger.warning(
                    f"Skipping the incomplete checkpoint {folder}: {problem}. "
                    f"The last good one is used instead, if there is one."
                )
        return [f for f in self._list_checkpoint_dirs() if f in self._verified]


def _damage(folder):
    """Says what is wrong with a checkpoint folder; nothing if it is whole."""
    try:
        hashes = json.loads((folder / HASHES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return f"{HASHES} is missing or unreadable"
    for name, expected in hashes.items():
        if not (folder / name).exists():
            return f"{name} is missing"
        if sha256(folder / name) != expected:
            return f"{name} does not match its hash"
    return None


@register_checkpoint_hooks
class Averages:
    """Running means of named numbers, exact across a resume.

    Example
    -------
    >>> averages = Averages()
    >>> averages.update({"loss": 1.0})
    >>> averages.update({"loss": 2.0})
    >>> averages.means()
    {'loss': 1.5}
    """

    def __init__(self):
        self.sums, self.count = {}, 0

    def clear(self):
        """Starts anew."""
        self.sums, self.count = {}, 0

    def update(self, values):
        """Adds one step's numbers, a dict of str to float."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
        self.count += 1

    def means(self):
        """Returns the dict of means so far."""
        return {name: total / self.count for name, total in self.sums.items()}

    @mark_as_saver
    @main_process_only
    def save(self, path):
        """Writes the sums as json (floats survive exactly)."""
        write_json(path, {"sums": self.sums, "count": self.count})

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Reads what `save` wrote."""
        saved = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
        self.sums, self.count = saved["sums"], saved["count"]


@register_checkpoint_hooks
class RewindingTrainLogger(FileTrainLogger):
    """SpeechBrain's FileTrainLogger, rewound with the checkpoint it resumes.

    Lines that a killed run wrote after its last checkpoint are dropped on
    resume, so that the log never tells an epoch twice. Arguments are those of
    `speechbrain.utils.train_logger.FileTrainLogger`.
    """

    @mark_as_saver
    @main_process_only
    def save(self, path):
        """Notes how long the log is."""
        log = pathlib.Path(self.save_file)
        write_json(path, {"bytes": log.stat().st_size if log.exists() else 0})

    @mark_as_loader
    def load(self, path, end_of_epoch):
        """Cuts the log to what it was."""
        self.rewind(json.loads(pathlib.Path(path).read_text())["bytes"])

    @main_process_only
    def rewind(self, size=0):
        """Cuts the log to a size in bytes."""
        log = pathlib.Path(self.save_file)
        if log.exists() and log.stat().st_size > size:
            os.truncate(log, size)


def versions():
    """Names what computed a result, as a dict of str to str."""
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "speechbrain")},
        "speechbrain_sim": __version__,
    }


def save_model(model, folder, stem, /, **about):
    """Saves a model that explains itself.

    Writes `<stem>.ckpt` (a state dict, as SpeechBrain's Pretrainer loads it)
    and `<stem>.json` (architecture, versions, hash and `about`).

    Arguments
    ---------
    model : nn.Module
        With a dict `config`, the arguments that construct it.
    folder : str or pathlib.Path
        Where to; made if needed.
    stem : str
        Name of the files.
    **about : json values
        What else to say: how it was trained, with which results.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    state = {n: t.detach().cpu() for n, t in model.state_dict().items()}
    partial = folder / f"{stem}.ckpt.part"
    torch.save(state, partial)
    digest = sha256(partial)
    os.replace(partial, folder / f"{stem}.ckpt")
    write_json(
        folder / f"{stem}.json",
        {
            "architecture": model.config,
            "sha256": digest,
            "versions": versions(),
            **about,
        },
    )


def load_model(make, folder, stem, recipe):
    """Loads what `save_model` wrote, in eval mode.

    Arguments
    ---------
    make : callable
        Makes the model from its architecture.
    folder : str or pathlib.Path
        Where it was saved.
    stem : str
        Name of the files.
    recipe : str
        Which recipe writes them, for the error.

    Returns
    -------
    model, description : (nn.Module, dict)

    Raises
    ------
    FileNotFoundError
        If the folder does not hold the two files.
    ValueError
        If weights and description do not belong together, or the weights do
        not fit the architecture.
    """
    folder = pathlib.Path(folder)
    weights, described = folder / f"{stem}.ckpt", folder / f"{stem}.json"
    for path in (described, weights):
        if not path.exists():
            raise FileNotFoundError(
                f"{folder} holds no {path.name}: give the folder '{stem}' that "
                f"{recipe} wrote into its output_folder."
            )
    description = json.loads(described.read_text("utf-8"))
    if sha256(weights) != description["sha256"]:
        raise ValueError(
            f"{weights} does not have the hash that {described.name} states: "
            f"it is damaged or belongs to another run. Copy both files again, "
            f"or train again."
        )
    model = make(**description["architecture"])
    state = torch.load(weights, weights_only=True)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{weights} does not fit the architecture in {described.name}: "
            f"{error}"
        ) from error
    return model.eval(), description


def save_encoder(encoder, folder, **about):
    """Saves an encoder: see `save_model`; also names its layers.

    Arguments
    ---------
    encoder : GreedyEncoder
        What to save.
    folder, **about :
        See `save_model`.
    """
    save_model(encoder, folder, ENCODER, layers=encoder.layer_names, **about)


def load_encoder(folder):
    """Loads what `save_encoder` wrote, in eval mode.

    Arguments
    ---------
    folder : str or pathlib.Path
        The folder of `encoder.json` and `encoder.ckpt`.

    Returns
    -------
    encoder, description : (GreedyEncoder, dict)

    Raises
    ------
    FileNotFoundError, ValueError
        See `load_model`.

    Example
    -------
    >>> folder = getfixture("tmpdir")
    >>> save_encoder(GreedyEncoder(channels=4, context_channels=2), folder)
    >>> encoder, description = load_encoder(folder)
    >>> description["architecture"]["channels"]
    4
    """
    return load_model(GreedyEncoder, folder, ENCODER, "recipes/pretrain.py")


def load_decoder(folder, encoder, layer):
    """Loads the decoder that `recipes/decode.py` trained for a layer.

    Arguments
    ---------
    folder : str or pathlib.Path
        The folder of `decoder.json` and `decoder.ckpt`.
    encoder : dict
        Description of the encoder whose latents it shall decode.
    layer : str
        The layer.

    Returns
    -------
    decoder, description : (ConvDecoder, dict)
        Frozen, in eval mode.

    Raises
    ------
    FileNotFoundError
        If there is no decoder.
    ValueError
        If it decodes another layer or another encoder, or is damaged.
    """
    decoder, description = load_model(
        ConvDecoder, folder, DECODER, "recipes/decode.py"
    )
    wanted = {"layer": layer, "encoder": encoder["sha256"]}
    for name, value in wanted.items():
        if description[name] != value:
            raise ValueError(
                f"{folder} decodes the {name} {description[name]}, not "
                f"{value}: train a decoder for this one with recipes/decode.py."
            )
    return decoder.requires_grad_(False), description
