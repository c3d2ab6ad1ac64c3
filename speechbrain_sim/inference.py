"""Trained models in use: `SmoothInfoMax`, from a folder or from the Hub.

    from speechbrain_sim import SmoothInfoMax

    model = SmoothInfoMax.from_pretrained("user/model")
    latent = model.encode_file("speech.wav", "module3")

Two doors. `from_hparams` is SpeechBrain's: it reads a yaml, which may run any
code, so it is for models that you trust. `from_pretrained` reads json and
numbers only: it is the one for models of strangers.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.fetching import (
    FetchConfig,
    LocalStrategy,
    link_with_strategy,
)
from speechbrain.utils.parameter_transfer import Pretrainer

from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.encoders.base import Latent, absolute_lengths, masked_mean
from speechbrain_sim.features import CHUNK_SECONDS, stream_latents
from speechbrain_sim.files import sha256
from speechbrain_sim.models.fetch import open_source
from speechbrain_sim.models.format import (
    CONFIG,
    DECODER,
    ENCODER,
    PROBE,
    WEIGHTS,
    load_parts,
    load_weights,
    read_config,
)
from speechbrain_sim.traversals import interpolate, traverse

#: the yaml of `from_hparams`, which `speechbrain-sim export` writes
HPARAMS = "hyperparams.yaml"
#: key of config.json: which class the yaml is for; runs have no such yaml
INTERFACE = "speechbrain_interface"
#: how files are fetched unless something else is asked for
DEFAULTS = FetchConfig()


def source_options(fetch_config):
    """Translates SpeechBrain's FetchConfig into options of `open_source`."""
    return {
        "revision": fetch_config.revision,
        "token": fetch_config.token or None,
        "allow_network": fetch_config.allow_network,
        "cache_dir": fetch_config.huggingface_cache_dir,
    }


class SafetensorsPretrainer(Pretrainer):
    """SpeechBrain's Pretrainer for safetensors, strict.

    For each loadable, `<name>.safetensors` is fetched, compared with the hash
    in the `config.json` beside it, and must hold exactly the weights that the
    loadable has. Arguments are those of
    `speechbrain.utils.parameter_transfer.Pretrainer`; `paths` are `<source>` or
    `<source>/<file>.safetensors`. `collect_in` is not used: files stay in their
    folder, or in the cache of the Hub.

    Example
    -------
    >>> from speechbrain_sim.models.format import example_folder
    >>> from speechbrain_sim.encoders.greedy import GreedyEncoder
    >>> folder = example_folder(getfixture("tmp_path"))
    >>> encoder = GreedyEncoder(channels=4, context_channels=2)
    >>> pretrainer = SafetensorsPretrainer(loadables={"encoder": encoder})
    >>> files = pretrainer.collect_files(folder)
    >>> pretrainer.load_collected()
    """

    #: of each loadable that was found, its file and hash
    collected = None

    def collect_files(
        self,
        default_source=None,
        local_strategy=None,
        fetch_config=DEFAULTS,
    ):
        """Fetches the files and the hashes they must have, in every process.

        Arguments
        ---------
        default_source : str, Path or FetchSource
            Where loadables without a path are; see `open_source`.
        local_strategy : ignored
            Nothing is copied.
        fetch_config : FetchConfig
            Revision, token, whether the network may be used.

        Returns
        -------
        dict of str to Path

        Raises
        ------
        FileNotFoundError, HubError, ValueError
            If a file cannot be had, or its hash is not known.
        """
        self.collected = {}
        for name in filter(self.is_loadable, self.loadables):
            source, part = default_source, name
            if name in self.paths:
                source = str(self.paths[name])
                if source.endswith(WEIGHTS):
                    source, part = self.split_path(source)
                    part = part.removesuffix(WEIGHTS)
            if source is None:
                raise ValueError(f"There is no source for '{name}': give one.")
            source = open_source(source, **source_options(fetch_config))
            parts = read_config(source.fetch(CONFIG))["parts"]
            if part not in parts:
                raise ValueError(
                    f"{source.name} has no {part}{WEIGHTS}, only the parts "
                    f"{', '.join(parts)}."
                )
            path = source.fetch(part + WEIGHTS)
            self.collected[name] = path, parts[part]["sha256"]
        return {name: path for name, (path, _) in self.collected.items()}

    def load_collected(self):
        """Loads what `collect_files` found, strictly: see `load_weights`."""
        if self.collected is None:
            raise RuntimeError(
                f"Nothing was collected for {', '.join(self.loadables)} in "
                f"this process: call collect_files first, in every process and "
                f"not by run_on_main."
            )
        for name, (path, digest) in self.collected.items():
            load_weights(self.loadables[name], path, digest)


class Classification(NamedTuple):
    """Predictions of a probe.

    Arguments
    ---------
    probabilities : torch.Tensor
        (batch, time, classes); one frame for labels of whole utterances.
    lengths : torch.Tensor
        Valid frames of each utterance, (batch,).
    classes : list of str
        Names of the classes.
    """

    probabilities: torch.Tensor
    lengths: torch.Tensor
    classes: list

    def names(self):
        """Names the likeliest classes: list of list of str, per utterance."""
        best = self.probabilities.argmax(-1)
        return [
            [self.classes[i] for i in row[:frames].tolist()]
            for row, frames in zip(best, self.lengths, strict=True)
        ]


class SmoothInfoMax(Pretrained):
    """A trained encoder (SIM, GIM, CPC, ...), its decoders and its probes.

    Made by `from_hparams` or `from_pretrained`. Frozen and in eval mode, even
    inside somebody's `modules.train()`; latents are means of posteriors unless
    `sample=True` asks for draws. Waveforms are 16 kHz mono; files are
    converted, see `encode_file`.

    Arguments
    ---------
    modules : dict of str to nn.Module
        `encoder`; `decoder_<layer>` and `probe_<label>`, if there are any.
    hparams : dict
        At least `sample_rate`.
    config : dict
        The model's config.json, see `speechbrain_sim.models.format`.
    freeze_params : bool
        Freeze, and keep in eval mode.
    **kwargs :
        See `speechbrain.inference.interfaces.Pretrained`: `run_opts` sets the
        device, {"device": "cuda:0"}.

    Example
    -------
    >>> from speechbrain_sim.models.format import example_folder
    >>> folder = example_folder(getfixture("tmp_path"))
    >>> model = SmoothInfoMax.from_pretrained(folder)
    >>> wavs, wav_lens = torch.randn(2, 10240), torch.tensor([1.0, 0.5])
    >>> latent = model.encode_batch(wavs, wav_lens, "module3")
    >>> latent.mean.shape, latent.lengths.tolist()
    (torch.Size([2, 64, 4]), [64, 32])
    """

    MODULES_NEEDED = [ENCODER]
    HPARAMS_NEEDED = ["sample_rate"]

    def __init__(
        self,
        modules=None,
        hparams=None,
        config=None,
        freeze_params=True,
        **kwargs,
    ):
        for name in self.MODULES_NEEDED:  # SpeechBrain does not check these
            if name not in (modules or {}):
                raise ValueError(f"The modules of the model lack '{name}'.")
        super().__init__(
            modules, hparams, freeze_params=freeze_params, **kwargs
        )
        rate = self.hparams.sample_rate
        if rate != SAMPLE_RATE:
            raise ValueError(
                f"The model is for {rate} Hz; this version of speechbrain-sim "
                f"reads {SAMPLE_RATE} Hz only."
            )
        self.config = config
        self.frozen = freeze_params

    @classmethod
    def from_hparams(
        cls,
        source,
        hparams_file=HPARAMS,
        savedir=None,
        local_strategy=LocalStrategy.SYMLINK,
        fetch_config=DEFAULTS,
        **kwargs,
    ):
        """Loads a model that was exported through its yaml, as SpeechBrain.

        The yaml may run any code: use `from_pretrained` for models of people
        that you do not trust.

        Arguments
        ---------
        source : str, Path or FetchSource
            See `from_pretrained`.
        hparams_file : str
            The yaml.
        savedir : str or Path, optional
            A folder that gets links to the files, too. If it holds files of
            another model, nothing is loaded.
        local_strategy : LocalStrategy
            Links or copies, for `savedir`.
        fetch_config : FetchConfig
            `revision`, `token`, `allow_network`, `huggingface_cache_dir`;
            `overwrite` lets `savedir` be overwritten.
        **kwargs :
            `overrides` for the yaml, `run_opts` for the model, ...

        Raises
        ------
        FileNotFoundError, HubError, ValueError
            If a file is missing, damaged, or does not fit.
        """
        opened = open_source(source, **source_options(fetch_config))
        config = read_config(opened.fetch(CONFIG))
        yaml = opened.fetch(hparams_file)
        if INTERFACE not in config:
            raise ValueError(
                f"{opened.name} is the output folder of a run, whose yaml "
                f"trains it: use from_pretrained, or make a model folder of it "
                f"with `speechbrain-sim export`."
            )
        weights = [name + WEIGHTS for name in config["parts"]]
        paths = [yaml, *map(opened.fetch, [CONFIG, *weights])]
        if savedir is not None:
            _put_into(savedir, paths, local_strategy, fetch_config.overwrite)
        model = super().from_hparams(
            str(yaml.parent), hparams_file, config=config, **kwargs
        )
        if model is not None:  # as it is with download_only=True
            _check_loaded(model.hparams, config, yaml)
        return model

    @classmethod
    def from_pretrained(
        cls,
        source,
        revision=None,
        token=None,
        allow_network=True,
        cache_dir=None,
        **kwargs,
    ):
        """Loads a model without running any code of its maker.

        Only config.json and safetensors are read: no yaml, no pickle.

        Arguments
        ---------
        source : str, Path or FetchSource
            The output folder of a recipe, a folder that `speechbrain-sim
            export` wrote, or `user/model` on the Hub, see `open_source`.
            Folders never touch the network.
        revision, token, allow_network, cache_dir :
            See `speechbrain_sim.models.fetch.HubRepository`. A commit as
            revision is the same model for ever.
        **kwargs :
            `run_opts`, ...: see the class.

        Raises
        ------
        FileNotFoundError, HubError, ValueError
            If a file is missing, damaged, or does not fit.
        """
        options = {"revision": revision, "token": token}
        options |= {"allow_network": allow_network, "cache_dir": cache_dir}
        parts, config = load_parts(open_source(source, **options))
        hparams = {"sample_rate": config["sample_rate"]}
        return cls(parts, hparams, config=config, **kwargs)

    @staticmethod
    def fetch(source, filename, **options):
        """Returns the path of a file beside a model, such as `example.wav`.

        Arguments
        ---------
        source, **options :
            See `speechbrain_sim.models.fetch.open_source`.
        filename : str
            Its name.
        """
        return open_source(source, **options).fetch(filename)

    @property
    def encoder(self):
        """The encoder itself."""
        return self.mods[ENCODER]

    @property
    def layer_names(self):
        """Names of the layers, bottom first."""
        return self.encoder.layer_names

    def train(self, mode=True):
        """Sets the mode; a frozen model stays in eval mode."""
        super().train(mode)
        if self.frozen:
            self.mods.eval()
        return self

    def forward(self, wavs, wav_lens=None):
        """Encodes a batch: see `encode_batch`."""
        return self.encode_batch(wavs, wav_lens)

    @torch.no_grad()
    def encode_batch(
        self, wavs, wav_lens=None, layer=None, sample=False, generator=None
    ):
        """Encodes waveforms.

        Batches beyond ten seconds are encoded utterance by utterance and in
        pieces, with the same means (samples are other draws), so that long
        audio does not need more memory than its latents.

        Arguments
        ---------
        wavs : torch.Tensor
            (batch, samples) at 16 kHz, floating, within -1 and 1.
        wav_lens : torch.Tensor, optional
            Relative lengths (floating) or samples (integer), (batch,).
        layer : str, optional
            The layer; all by default.
        sample : bool
            Draw from every posterior, rather than take means.
        generator : torch.Generator, optional
            Source of the noise.

        Returns
        -------
        Latent or dict of str to Latent
            Of the layer; of all layers, bottom first, without `layer`.

        Raises
        ------
        ValueError
            If the layer does not exist, an utterance is too short, or `wavs`
            has other axes or integers.
        """
        if wavs.dim() != 2:
            raise ValueError(
                f"wavs must be (batch, samples); got shape {list(wavs.shape)}: "
                f"a single waveform (samples,) is passed as wavs[None]."
            )
        if not wavs.is_floating_point():
            raise ValueError(
                f"wavs must be floating, within -1 and 1; got {wavs.dtype}: "
                f"divide by its range, int16 as wavs / 32768."
            )
        wavs = wavs.to(self.device).float()
        lengths = absolute_lengths(wavs, wav_lens)
        layers = None if layer is None else [layer]
        encode = self.encoder
        if wavs.shape[1] > CHUNK_SECONDS * SAMPLE_RATE:
            encode = self._encode_in_pieces
        latents = encode(wavs, lengths, layers, sample, generator)
        return latents if layer is None else latents[layer]

    def _encode_in_pieces(self, wavs, lengths, layers, sample, generator):
        """Encodes each utterance with `stream`."""
        step = round(CHUNK_SECONDS * SAMPLE_RATE)
        rows = []
        for wav, end in zip(wavs, lengths.tolist(), strict=True):
            chunks = wav[None, :end].split(step, dim=1)
            pieces = self.encoder.stream(chunks, layers, sample, generator)
            rows.append(_join(pieces))
        return {
            name: Latent.pad([row[name] for row in rows]) for name in rows[0]
        }

    def stream_file(
        self,
        path,
        layer=None,
        sample=False,
        generator=None,
        chunk_seconds=CHUNK_SECONDS,
    ):
        """Encodes a file of any length in bounded memory, piece by piece.

        Arguments
        ---------
        path, layer, sample, generator, chunk_seconds :
            See `encode_file`.

        Yields
        ------
        Latent or dict of str to Latent
            The next frames, (1, time, channel); there may be none.

        Raises
        ------
        BadAudio
            If the file cannot be read, or is too short for a frame.
        """
        for latents in stream_latents(
            self.encoder,
            path,
            None if layer is None else [layer],
            chunk_seconds,
            sample,
            generator,
        ):
            yield latents if layer is None else latents[layer]

    def encode_file(self, path, layer=None, *args, **options):
        """Encodes a file.

        It is read with `speechbrain_sim.data.audio.read_audio`, as in
        training, and not with SpeechBrain's `load_audio`: that one holds whole
        files in memory, and takes a cut file for a shorter one. Both convert
        any rate and average the channels, to the same samples up to rounding;
        for URLs, call `load_audio` and `encode_batch`.

        Arguments
        ---------
        path : str or Path
            Any audio file that libsndfile reads.
        layer, sample, generator :
            See `encode_batch`.
        chunk_seconds : float
            How much is read at a time; changes no mean.

        Returns
        -------
        Latent or dict of str to Latent
            See `encode_batch`; the batch is 1.

        Raises
        ------
        BadAudio
            If the file cannot be read, or is too short for a frame.
        """
        pieces = list(self.stream_file(path, layer, *args, **options))
        return _join(pieces) if layer is None else Latent.cat(pieces)

    @torch.no_grad()
    def decode(self, z, layer, samples=None, wav_lens=None):
        """Makes waveforms of latents.

        Arguments
        ---------
        z : torch.Tensor
            (batch, time, channel): a `mean` or `sample` of `encode_batch`.
        layer : str
            The layer that they are of.
        samples : int, optional
            Length of the longest waveform; by default the shortest that
            encodes to as many frames.
        wav_lens : torch.Tensor, optional
            See `encode_batch`.

        Returns
        -------
        torch.Tensor
            (batch, samples).

        Raises
        ------
        ValueError
            If there is no decoder of the layer, or the axes or lengths do not
            fit.
        """
        decoder = self._part(DECODER, layer)
        if z.dim() != 3:
            raise ValueError(
                f"z must be (batch, time, channel); got shape {list(z.shape)}: "
                f"a single latent (time, channel) is passed as z[None]."
            )
        if samples is None:
            samples = z.shape[1]
            for kernel_size, stride, padding in reversed(decoder.shapes):
                samples = (samples - 1) * stride + kernel_size - 2 * padding
        return decoder(z.to(self.device), samples, wav_lens)

    def interpolate(self, start, target, layer, steps=9):
        """Decodes `steps` latents from one to another: (steps, samples).

        Arguments
        ---------
        start, target, steps :
            See `speechbrain_sim.traversals.interpolate`; (time, channel).
        layer : str
            The layer that they are of.
        """
        return self.decode(interpolate(start, target, steps), layer)

    def traverse(self, z, dimension, values, layer):
        """Decodes a latent with one dimension changed: (values, samples).

        Arguments
        ---------
        z, dimension, values :
            See `speechbrain_sim.traversals.traverse`; (time, channel).
        layer : str
            The layer that `z` is of.
        """
        return self.decode(traverse(z, dimension, values), layer)

    @torch.no_grad()
    def classify(self, wavs, wav_lens=None, label=None, layer=None):
        """Classifies with a linear probe of the model.

        Arguments
        ---------
        wavs, wav_lens :
            See `encode_batch`.
        label : str, optional
            Which probe; may be left out if there is one.
        layer : str, optional
            The layer that is probed; by default the one that was chosen on
            validation data.

        Returns
        -------
        Classification
            Of every frame of the layer, or of the utterance: as the label is.

        Raises
        ------
        ValueError
            If there is no such probe, or several and no label.
        """
        labels = self._names(PROBE)
        if label is None:
            if len(labels) != 1:
                there = " or ".join(labels) or "but this model has no probe"
                raise ValueError(f"Which probe? Give label=: {there}.")
            label = labels[0]
        probes = self._part(PROBE, label)
        about = self.config["parts"][f"{PROBE}_{label}"]
        layer = layer or about["best_layer"]
        latent = self.encode_batch(wavs, wav_lens, layer)
        x, lengths = latent.mean, latent.lengths
        if about["kind"] == "utterance":
            x, lengths = masked_mean(x, lengths)[:, None], lengths.clamp(max=1)
        probabilities = probes(x, layer).softmax(-1)
        return Classification(probabilities, lengths, about["classes"])

    def _names(self, kind):
        """Lists the layers of the decoders, or the labels of the probes."""
        kind = f"{kind}_"
        return [n.removeprefix(kind) for n in self.mods if n.startswith(kind)]

    def _part(self, kind, name):
        """Returns a decoder or a probe."""
        there = self._names(kind)
        if name not in there:
            raise ValueError(
                f"The model has no {kind} of '{name}'; it has "
                f"{', '.join(there) or 'none'}."
            )
        return self.mods[f"{kind}_{name}"]


def _join(pieces):
    """Joins the pieces of a stream: dict of str to Latent."""
    pieces = list(pieces)
    return {name: Latent.cat([p[name] for p in pieces]) for name in pieces[0]}


def _check_loaded(hparams, config, yaml):
    """Refuses a yaml that leaves weights of the model as they were drawn."""
    pretrainer = hparams.pretrainer
    loaded = {
        part: pretrainer.loadables[part]
        for part in getattr(pretrainer, "collected", None) or ()
    }
    missing = set(config["parts"]) - set(loaded)
    missing |= {
        part
        for part, module in hparams.modules.items()
        if module is not loaded.get(part) and module.state_dict()
    }
    if missing:
        raise ValueError(
            f"{yaml} loads no weights into {', '.join(sorted(missing))}: list "
            f"them under 'loadables' of its {SafetensorsPretrainer.__name__}, "
            f"export the model again, or use from_pretrained."
        )


def _put_into(savedir, paths, strategy, overwrite):
    """Links or copies files into a folder that holds no other model's."""
    savedir = Path(savedir)
    savedir.mkdir(parents=True, exist_ok=True)
    for path in paths:
        target = savedir / path.name
        if target.exists() and not overwrite and sha256(target) != sha256(path):
            raise ValueError(
                f"{savedir} holds {path.name} of another model, or of another "
                f"revision: choose another savedir, or none."
            )
    for path in paths:
        target = savedir / path.name
        if target.resolve() != path.resolve():
            link_with_strategy(path.resolve(), target, strategy)
