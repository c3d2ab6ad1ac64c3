"""Trained models in use: `SmoothInfoMax`, from a folder or from the Hub.

    from speechbrain_sim import SmoothInfoMax

    model = SmoothInfoMax.from_pretrained("sim-small")
    latent = model.encode_file("speech.wav", "module3")

`from_hparams`, SpeechBrain's, reads a yaml, which may run any code: it is for
models that you trust. `from_pretrained` reads json and numbers only.
"""

from functools import partial
from os import PathLike
from os.path import isdir

import numpy as np
import torch
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils.fetching import LocalStrategy

from speechbrain_sim import steering
from speechbrain_sim.bottlenecks.coded import decoder_of
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.labels import UTTERANCE
from speechbrain_sim.decoders import shortest
from speechbrain_sim.encoders.base import Latent, check_finite, masked_mean
from speechbrain_sim.features import (
    CHUNK_SECONDS,
    encode_in_pieces,
    join_pieces,
    pool_latents,
    stream_latents,
)
from speechbrain_sim.inputs import as_batch, as_tensor
from speechbrain_sim.models import pretrainer
from speechbrain_sim.models.fetch import open_source
from speechbrain_sim.models.format import (
    DECODER,
    ENCODER,
    EXAMPLES,
    PROBE,
    identity_of,
    parts_of,
)
from speechbrain_sim.models.load import join_bottlenecks, load_model
from speechbrain_sim.probes import Classification
from speechbrain_sim.traversals import interpolate, traverse

__all__ = ["Classification", "SafetensorsPretrainer", "SmoothInfoMax"]
#: what the yaml of an exported model names
SafetensorsPretrainer = pretrainer.SafetensorsPretrainer
#: the yaml of `from_hparams`, which `speechbrain-sim export` writes
HPARAMS = "hyperparams.yaml"


class SmoothInfoMax(Pretrained):
    """A trained encoder (SIM, GIM, CPC, ...), its decoders and its probes.

    Latents are means of posteriors, or draws with `sample=True`. Waveforms are
    16 kHz mono, within -1 and 1; files are converted.

    Arguments
    ---------
    modules, hparams, config : dict
        `encoder`, `decoder_<layer>`, `probe_<label>`; `sample_rate`; config.json.
    freeze_params, run_opts : bool, dict
        In eval mode, even inside `modules.train()`; {"device": "cuda:0"}.

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
    #: what `from_pretrained` opened
    source = None

    def __init__(
        self, modules, hparams, config=None, freeze_params=True, run_opts=None
    ):
        for name in self.MODULES_NEEDED:  # SpeechBrain does not check these
            if name not in modules:
                raise ValueError(f"The modules of the model lack '{name}'.")
        # SpeechBrain's foreign_class hands over none, but the yaml read it
        known = (hparams or {}).get("pretrainer")
        config = getattr(known, "config", None) if config is None else config
        modules = join_bottlenecks(modules, config)
        super().__init__(modules, hparams, run_opts, freeze_params)
        rate = self.hparams.sample_rate
        if rate != SAMPLE_RATE:
            known = f"this version is for {SAMPLE_RATE} Hz only"
            raise ValueError(f"The model is for {rate} Hz; {known}.")
        self.config = config
        self.frozen = freeze_params

    @classmethod
    def from_hparams(
        cls,
        source,
        hparams_file=HPARAMS,
        savedir=None,
        local_strategy=LocalStrategy.SYMLINK,
        fetch_config=pretrainer.DEFAULTS,
        **kwargs,
    ):
        """Loads a model that was exported, through its yaml, as SpeechBrain.

        `savedir` gets links to the files, or copies; `fetch_config` is of the
        Hub, and its `overwrite` of `savedir`; `**kwargs` are `overrides` for
        the yaml, `run_opts`, ... See `from_pretrained`; a ValueError is raised,
        too, if the yaml does not make the model, or `savedir` holds another.
        """
        options = savedir, local_strategy, fetch_config
        yaml, config = pretrainer.fetch_model(source, hparams_file, *options)
        kwargs["config"] = config
        model = super().from_hparams(str(yaml.parent), hparams_file, **kwargs)
        if model is not None:  # as it is with download_only=True
            pretrainer.check_loaded(model.hparams, config, yaml)
        return model

    @classmethod
    def from_pretrained(
        cls, source, revision=None, run_opts=None, freeze_params=True, **options
    ):
        """Loads a model, from json and safetensors only.

        A FileNotFoundError, HubError or ValueError is raised if a file is
        missing, damaged, or does not fit.

        Arguments
        ---------
        source : str, Path or FetchSource
            "sim-small", which is built in; the output folder of a recipe, a
            folder that `speechbrain-sim export` wrote (none of these touches
            the network); or `user/model`.
        run_opts, freeze_params, revision, **options :
            See the class; `speechbrain_sim.models.fetch.open_source`.
        """
        source = open_source(source, revision, **options)
        parts, config = load_model(source)
        # only this of a stranger's config.json: other keys are run_opts, too
        hparams = {"sample_rate": config["sample_rate"]}
        model = cls(parts, hparams, config, freeze_params, run_opts)
        model.source = source
        return model

    @staticmethod
    def fetch(source, filename, **options):
        """Returns the path of a file beside a model: see `open_source`."""
        return open_source(source, **options).fetch(filename)

    @property
    def examples(self):
        """Paths of the recordings beside a model that `from_pretrained` opened."""
        names = (self.config or {}).get(EXAMPLES, {}) if self.source else {}
        return [self.source.fetch(name) for name in names]

    @property
    def encoder(self):
        """The encoder itself."""
        return self.mods[ENCODER]

    @property
    def sha256(self):
        """The identity of the encoder, with its bottlenecks."""
        return identity_of(self.config)

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
        """Encodes waveforms: the `Latent` of a layer, or of all by name.

        To save memory, batches beyond ten seconds are encoded utterance by
        utterance and in pieces: the same means, but other samples.

        Raises a ValueError if waveforms are of another shape or range, or hold
        NaN; or if a layer does.

        Arguments
        ---------
        wavs : torch.Tensor, numpy.ndarray, or list of them
            (batch, samples), floating; or a list of (samples,), which are
            padded here. The dtype becomes that of the weights.
        wav_lens, sample, generator :
            See `speechbrain_sim.encoders.base.Encoder.forward`; no `wav_lens`
            for a list.
        layer : str, optional
            The layer.
        """
        wavs, lengths = as_batch(wavs, wav_lens)
        wavs = wavs.to(self.device)
        layers = None if layer is None else [layer]
        encode = self.encoder
        long = wavs.shape[1] > CHUNK_SECONDS * SAMPLE_RATE
        if long and self.encoder.streams:
            encode = partial(encode_in_pieces, self.encoder)
        latents = encode(wavs, lengths, layers, sample, generator)
        check_finite(latents, [f"utterance {i}" for i in range(len(wavs))])
        return latents if layer is None else latents[layer]

    def stream_file(
        self,
        path,
        layer=None,
        sample=False,
        generator=None,
        chunk_seconds=CHUNK_SECONDS,
    ):
        """Encodes a file of any length in bounded memory, piece by piece.

        Arguments as in `encode_file`. Yields the next frames, (1, time,
        channel): a Latent, or a dict of them; there may be none.
        """
        layers = None if layer is None else [layer]
        options = layers, chunk_seconds, sample, generator
        for latents in self._stream(path, *options):
            yield latents if layer is None else latents[layer]

    def _stream(self, path, *options):
        """Encodes a file piece by piece; options as of `stream_latents`."""
        odd = not isinstance(path, (str, PathLike)) or "://" in str(path)
        if odd or isdir(path):
            raise ValueError(
                f"{path!r:.80} is no file on this machine: download it, or list "
                f"files for features; encode_batch takes waveforms."
            )
        yield from stream_latents(self.encoder, path, *options)

    def encode_file(
        self,
        path,
        layer=None,
        sample=False,
        generator=None,
        chunk_seconds=CHUNK_SECONDS,
    ):
        """Encodes a file, as `encode_batch` of SpeechBrain's `load_audio`.

        That one holds whole files in memory, and takes a cut file for a shorter
        one; this one raises a BadAudio.

        Arguments
        ---------
        path, chunk_seconds : str or Path, float
            Of any rate; how much is read at a time, which changes no mean.
        layer, sample, generator :
            See `encode_batch`, also for what is returned; the batch is 1.
        """
        options = layer, sample, generator, chunk_seconds
        pieces = list(self.stream_file(path, *options))
        return join_pieces(pieces) if layer is None else Latent.cat(pieces)

    def features(self, files, layer=None, pool="mean"):
        """Encodes files of any length as arrays, float32, for other libraries.

        Arguments
        ---------
        files : list of str or Path
            Of any rate and length; or a single one.
        layer : str or list of str, optional
            The layer; several, or all by default, give a dict of what follows.
        pool : str or None
            "mean" gives (files, channels), the mean over all frames of each
            file; None a list with (frames, channels) for each file.

        Example
        -------
        >>> import soundfile
        >>> from speechbrain_sim.models.format import example_folder
        >>> folder = example_folder(getfixture("tmp_path"))
        >>> soundfile.write(folder / "a.wav", np.random.rand(8000) / 9, 16000)
        >>> model = SmoothInfoMax.from_pretrained(folder)
        >>> model.features([folder / "a.wav"], "module3").shape
        (1, 4)
        """
        if pool not in ("mean", None):
            raise ValueError(f"pool is {pool!r}: give 'mean' or None.")
        one = isinstance(layer, str)
        layers = [layer] if one else layer or self.layer_names
        files = [files] if isinstance(files, (str, PathLike)) else list(files)
        if not files:
            raise ValueError("There are no files to encode.")
        made = {name: [] for name in layers}
        for path in files:
            pieces = self._stream(path, layers)
            for name, x in pool_latents(pieces, layers, pool).items():
                made[name].append(x)
        made = {n: np.stack(x) if pool else x for n, x in made.items()}
        return made[layer] if one else made

    @torch.no_grad()
    def decode(self, z, layer, samples=None, wav_lens=None):
        """Makes waveforms, (batch, samples), of latents, or of codes.

        Arguments
        ---------
        z, layer : torch.Tensor, str
            (batch, time, channel): a `mean` or `sample` of the layer, or an
            array.
        samples, wav_lens : int, torch.Tensor, optional
            Of the longest, by default the shortest that encodes to as many
            frames; see `encode_batch`.
        """
        decoder = self._part(DECODER, self.encoder.origin(layer))
        decoder = decoder_of(self.encoder, layer, decoder)
        weight = next(decoder.parameters())
        z = as_tensor("z", z, ["batch", "time", "channel"]).to(weight)
        if samples is None:
            samples = shortest(decoder.shapes, z.shape[1])
        return decoder(z, samples, wav_lens)

    def interpolate(self, start, target, layer, steps=9):
        """Decodes the latents of `traversals.interpolate`: (steps, samples)."""
        return self.decode(interpolate(start, target, steps), layer)

    def interpolate_files(self, start, target, layer, steps=9):
        """Decodes what lies between two files: (steps, samples).

        The longer one is cut. For files and errors see `encode_file`.
        """
        ends = [self.encode_file(p, layer).mean[0] for p in (start, target)]
        ends = [z[: min(map(len, ends))] for z in ends]
        return self.interpolate(*ends, layer, steps)

    def traverse(self, z, dimension, values, layer):
        """Decodes the latents of `traversals.traverse`: (values, samples)."""
        return self.decode(traverse(z, dimension, values), layer)

    @torch.no_grad()
    def steer(self, wav, layer, features, span=None, how="set"):
        """Changes features of a recording, and decodes it: `steering.Steered`.

        Frames x of the coded layer become x + decode(changed codes) -
        decode(codes), so that nothing else changes, and are decoded.

        Arguments
        ---------
        wav : str, Path, torch.Tensor or numpy.ndarray
            A file, or (samples,).
        layer, features : str, dict of int to float
            The codes, such as "module3.sae"; the value of each feature.
        span, how : (float, float), str
            From and to which second, by default in all frames; "set" features to
            the values, "scale" by them (0 silences), or "add" them.
        """
        return steering.steer(self, wav, layer, features, span, how)

    @torch.no_grad()
    def top_features(self, path, layer=None, count=10):
        """Lists the features that are most active in a file, by their mean.

        At most `count` of `steering.ActiveFeature`; `layer`, the codes, may be
        left out where there is one bottleneck.
        """
        return steering.top_features(self, path, layer, count)

    @torch.no_grad()
    def classify(self, wavs, wav_lens=None, label=None, layer=None):
        """Classifies frames, or utterances, with a linear probe of the model.

        Arguments
        ---------
        wavs, wav_lens :
            See `encode_batch`.
        label, layer : str, optional
            Which probe, a ValueError names them; its layer, by default the one
            that was chosen on validation data. Returns a `Classification`.
        """
        chosen, layer = self._choose_probe(label, layer)
        latent = self.encode_batch(wavs, wav_lens, layer)
        return self._classify(latent, *chosen, layer)

    @torch.no_grad()
    def classify_file(self, path, label=None, layer=None):
        """Classifies a file of any length; see `classify` and `encode_file`.

        Example
        -------
        >>> model = SmoothInfoMax.from_pretrained("sim-small")
        >>> model.classify_file(model.examples[0], "phones").names()[0][0]
        'SIL'
        """
        chosen, layer = self._choose_probe(label, layer)
        return self._classify(self.encode_file(path, layer), *chosen, layer)

    def _choose_probe(self, label, layer):
        """Returns the probe that is meant with its entry, and its layer."""
        if self.config is None:
            raise ValueError(
                "The model came without its config.json, which names labels "
                "and classes: load it with SmoothInfoMax.from_pretrained."
            )
        if label is None:
            labels = list(parts_of(self.mods, PROBE))
            if len(labels) != 1:
                there = " or ".join(labels) or "but this model has no probe"
                raise ValueError(f"Which probe? Give label=: {there}.")
            label = labels[0]
        probes = self._part(PROBE, label)
        entry = parts_of(self.config["parts"], PROBE)[label]
        return (probes, entry), layer or entry["best_layer"]

    def _classify(self, latent, probes, entry, layer):
        """Returns the `Classification` of a layer's latents."""
        x, lengths = latent.mean, latent.lengths
        if entry["kind"] == UTTERANCE:
            # in half precision, a sum over all frames would be too large
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            mean = masked_mean(wide, lengths).to(x.dtype)
            x, lengths = mean[:, None], lengths.clamp(max=1)
        probabilities = probes(x, layer).softmax(-1)
        return Classification(probabilities, lengths, entry["classes"])

    def _part(self, kind, name):
        """Returns a decoder or a probe."""
        parts = parts_of(self.mods, kind)
        if name not in parts:
            there = ", ".join(parts) or "none"
            raise ValueError(
                f"There is no {kind} of '{name}'; it has {there} (those of "
                f"other runs are added by speechbrain-sim export)."
            )
        return parts[name]
