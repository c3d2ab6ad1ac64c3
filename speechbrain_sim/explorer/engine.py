"""What the explorer computes: models, recordings, and answers as json."""

import base64
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
import torch

from speechbrain_sim.bottlenecks.coded import DECODED, CodedEncoder
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.bottlenecks.vib import InformationBottleneck
from speechbrain_sim.bottlenecks.vsc import VariationalSparseCoder
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.labels import UTTERANCE
from speechbrain_sim.decoders import SpectrogramDecoder, shortest
from speechbrain_sim.encoders.base import check_finite, masked_mean
from speechbrain_sim.explorer.clips import (
    BYTES,
    SECONDS,
    decode_upload,
)
from speechbrain_sim.explorer.edits import Space, apply_edits, own_deviation
from speechbrain_sim.explorer.jobs import Refused
from speechbrain_sim.features import CHUNK_SECONDS, join_pieces
from speechbrain_sim.models.format import DECODER, PROBE, parts_of
from speechbrain_sim.report.sounds import (
    RANGE,
    TYPES,
    common_gain,
    encode_sound,
    log_mel_of,
    outline,
)
from speechbrain_sim.report.style import mel_png
from speechbrain_sim.spectrograms import log_mel, mel_filters

#: kinds of codes
KINDS = {
    SparseAutoencoder: "sae",
    VariationalSparseCoder: "vsc",
    InformationBottleneck: "vib",
}
#: bytes of latents and sounds that are kept
KEPT = 256 << 20
#: pixels of a picture of latents: most dimensions, most columns
ROWS, COLUMNS = 512, 2048
#: samples that are decoded between two looks at whether they are still wanted
BLOCK = 10 * SAMPLE_RATE


class Kept:
    """Results of the last calls, within so many bytes; the newest always stays.

    Used by one thread.

    Example
    -------
    >>> kept = Kept(10)
    >>> [kept.get(n, lambda: n.upper(), 6) for n in "aab"], list(kept.results)
    (['A', 'A', 'B'], ['b'])
    """

    def __init__(self, limit):
        self.limit, self.results = limit, OrderedDict()

    def get(self, key, make, size=None):
        """Returns what `make()` returned for a key; `size` is in bytes."""
        if key not in self.results:
            made = make()
            size = size_of(made) if size is None else size
            self.results[key] = made, size
        self.results.move_to_end(key)
        while len(self.results) > 1 and self.size() > self.limit:
            self.results.popitem(last=False)
        return self.results[key][0]

    def size(self):
        """Returns the bytes of all results."""
        return sum(size for _, size in self.results.values())


def size_of(x):
    """Returns the bytes of the tensors in a nested result, and some for more."""
    if isinstance(x, torch.Tensor):
        return x.nbytes
    x = x.values() if isinstance(x, dict) else x
    return 64 + sum(map(size_of, x)) if hasattr(x, "__iter__") else 64


class Opened(NamedTuple):
    """A model that is explored: its `name` in requests, and `title`."""

    name: str
    title: str
    model: object

    @property
    def encoder(self):
        """Its encoder, with codes as layers."""
        return self.model.encoder

    def kind_of(self, layer):
        """Returns "layer", or the kind of codes."""
        bottleneck = self.encoder.bottleneck_of(layer)
        kinds = [k for c, k in KINDS.items() if isinstance(bottleneck, c)]
        return kinds[0] if kinds else "layer"

    @property
    def layers(self):
        """Names of layers and codes."""
        names = self.encoder.layer_names
        return [name for name in names if not name.endswith(DECODED)]

    def decoder(self, layer):
        """Returns the decoder below a layer or codes; None if it has none."""
        bottleneck = self.encoder.bottleneck_of(layer)
        if bottleneck is not None and not bottleneck.decodes:
            return None
        decoders = parts_of(self.model.mods, DECODER)
        return decoders.get(self.encoder.origin(layer))

    def frames(self, z, layer):
        """Returns the frames that codes decode to, or those of a layer."""
        bottleneck = self.encoder.bottleneck_of(layer)
        return z if bottleneck is None else bottleneck.decode(z)

    @property
    def probes(self):
        """Probes by their labels, with their entries in config.json."""
        parts = parts_of(self.model.mods, PROBE)
        entries = parts_of((self.model.config or {}).get("parts", {}), PROBE)
        return {label: (parts[label], entries[label]) for label in parts}

    def describe(self):
        """Describes it for the page."""
        layers = []
        for name in self.layers:
            hop, center = self.encoder.frame_geometry(name)
            layers.append(
                {
                    "name": name,
                    "kind": self.kind_of(name),
                    "origin": self.encoder.origin(name),
                    "channels": self.encoder.channels_of(name),
                    "frame_rate": SAMPLE_RATE / hop,
                    "center": center / SAMPLE_RATE,
                    "posterior": self.encoder.has_posterior(name),
                    "decodes": self.decoder(name) is not None,
                    "pooled": self.encoder.pools(name),
                }
            )
        probes = [
            {
                "label": label,
                "layer": entry["best_layer"],
                "classes": entry["classes"],
                "kind": entry["kind"],
            }
            for label, (_, entry) in self.probes.items()
        ]
        return {
            "name": self.name,
            "title": self.title,
            "layers": layers,
            "probes": probes,
        }


class Engine:
    """Answers of the explorer; every method is called by one thread.

    Arguments
    ---------
    models : dict of str to SmoothInfoMax
        By their titles: one, or two side by side.
    clips : Clips
        The recordings.
    kept : int
        Bytes of latents and decoded sounds that are kept.
    """

    def __init__(self, models, clips, kept=KEPT):
        names = [f"m{i}" for i in range(len(models))]
        self.models = {
            name: Opened(name, title, model)
            for name, (title, model) in zip(names, models.items(), strict=True)
        }
        self.clips, self.kept = clips, Kept(kept)
        self.filters = mel_filters()

    def describe(self):
        """Answers /api/model."""
        clips = [clip.describe() for clip in self.clips]
        models = [opened.describe() for opened in self.models.values()]
        limits = {"seconds": SECONDS, "bytes": BYTES}
        return {"models": models, "clips": clips, "limits": limits}

    def upload(self, data, name, check):
        """Answers POST /api/clips."""
        clip = decode_upload(data, name, check)
        for opened in self.models.values():
            for layer in opened.layers:
                samples = len(clip.source)
                if opened.encoder.output_lengths(samples, layer) < 1:
                    few = f"{samples} samples at 16 kHz are no frame of {layer}"
                    raise Refused(400, f"The recording is too short: {few}.")
        self.clips.add(clip)
        return clip.describe()

    def wav(self, name):
        """Returns the samples of a recording, kept."""
        clip = self.clips[name]
        return self.kept.get(("wav", clip.id), clip.read)

    def clip(self, name):
        """Answers /api/clips/{id}."""
        clip, wav = self.clips[name], self.wav(name).numpy()
        sound = f"/api/clips/{clip.id}/sound"
        return clip.describe() | {"sound": sound} | drawn(wav)

    def sound(self, name):
        """Answers /api/clips/{id}/sound: bytes of a wav file."""
        wav = self.wav(name).numpy()
        return encode_sound(common_gain([wav]) * wav)

    def opened(self, model):
        """Returns an Opened; a Refused (404) without such a model."""
        if model not in self.models:
            raise Refused(404, f"There is no model {model!r:.80}.")
        return self.models[model]

    def layer_of(self, model, layer, kinds=None):
        """Returns an Opened that has a layer, of some kinds of codes."""
        opened = self.opened(model)
        if layer not in opened.layers:
            there = ", ".join(opened.layers)
            raise Refused(404, f"There is no layer {layer!r:.80}, but {there}.")
        if kinds and opened.kind_of(layer) not in kinds:
            raise Refused(400, f"{layer} holds no codes of the kind asked for.")
        return opened

    @torch.no_grad()
    def latents(self, model, clip, check=lambda: None):
        """Returns the Latents of all layers that are no codes, kept."""
        encoder = self.opened(model).encoder
        if isinstance(encoder, CodedEncoder):
            encoder = encoder.encoder

        def encode():
            wavs = encoder.as_input(self.wav(clip)[None])
            step = round(CHUNK_SECONDS * SAMPLE_RATE)
            if encoder.streams and wavs.shape[1] > step:
                pieces = []
                for piece in encoder.stream(wavs.split(step, dim=1)):
                    check()
                    pieces.append(piece)
                latents = join_pieces(pieces)
            else:
                latents = encoder(wavs)
            check_finite(latents, [self.clips[clip].name])
            return latents

        return self.kept.get(("latents", model, clip), encode)

    @torch.no_grad()
    def latent(self, model, clip, layer, check=lambda: None):
        """Returns the Latent of a layer, or of codes."""
        opened = self.layer_of(model, layer)
        below = self.latents(model, clip, check)
        below = below[opened.encoder.origin(layer)]
        if opened.encoder.bottleneck_of(layer) is None:
            return below
        return opened.encoder.codes_of(layer, below)

    def show_latent(self, model, clip, layer, dimension, check):
        """Answers /api/latent."""
        latent = self.latent(model, clip, layer, check)
        x = latent.mean[0]
        if dimension is not None:
            if not 0 <= dimension < x.shape[1]:
                raise Refused(
                    404, f"There are dimensions 0 to {x.shape[1] - 1}."
                )
            std = latent.log_var
            if std is not None:
                std = rounded(torch.exp(0.5 * std[0, :, dimension]))
            mean, deviation = own_deviation(latent, dimension)
            return {
                "mean": rounded(x[:, dimension]),
                "std": std,
                "center": mean,
                "deviation": deviation,
            }
        order = x.var(0, correction=0).argsort(descending=True, stable=True)
        chosen = order[:ROWS].sort().values
        columns = x[:, chosen].T[None]
        if len(x) > COLUMNS:
            columns = torch.nn.functional.adaptive_avg_pool1d(columns, COLUMNS)
        columns = columns[0].T.numpy()
        most = max(float(np.abs(columns).max()), 1e-30)
        return {
            "frames": len(x),
            "order": order.tolist(),
            "rows": chosen.tolist(),
            "range": [-most, most],
            "picture": text(signed_png(columns, most)),
        }

    @torch.no_grad()
    def show_probes(self, model, clip, check):
        """Answers /api/probes."""
        opened, found = self.opened(model), []
        seconds = self.clips[clip].seconds
        for label, (probe, entry) in opened.probes.items():
            layer = entry["best_layer"]
            latent = self.latent(model, clip, layer, check)
            x, (hop, center) = latent.mean, opened.encoder.frame_geometry(layer)
            if entry["kind"] == UTTERANCE:
                x = masked_mean(x, latent.lengths)[:, None]
                hop = center = None
            p, best = probe(x, layer).softmax(-1)[0].max(-1)
            spans = joined(best.tolist(), p.tolist(), hop, center, seconds)
            for span in spans:
                span["class"] = entry["classes"][span["class"]]
            found.append({"label": label, "layer": layer, "spans": spans})
        return found

    @torch.no_grad()
    def decode(self, given, check):
        """Answers /api/decode, without its milliseconds."""
        names = [given.get(key) for key in ("model", "clip", "layer")]
        if not all(isinstance(name, str) for name in names):
            raise Refused(400, "model, clip and layer must be names.")
        model, clip, layer = names
        opened, edits = self.layer_of(model, layer), given.get("edits", [])
        decoder = opened.decoder(layer)
        if decoder is None:
            raise Refused(400, f"The model has no decoder for {layer}.")
        latent = self.latent(model, clip, layer, check)

        def other(name):
            return self.latent(model, name, layer, check).mean[0]

        def samples_of(z):
            if len(z) == latent.mean.shape[1]:
                return len(self.wav(clip))
            return shortest(decoder.shapes, len(z))

        def sound(z):
            size, pieces = samples_of(z), []
            place = size, torch.tensor([size]), BLOCK
            for piece in decoder.pieces(opened.frames(z[None], layer), *place):
                check()
                pieces.append(piece[0])
            return torch.cat(pieces)

        space = Space(opened.encoder, layer, latent, other)
        z, swapped = apply_edits(space, edits, check)
        key = "decoded", *names
        original = self.kept.get(key, lambda: sound(latent.mean[0]))
        changed = sound(z) if edits else original
        if not changed.isfinite().all():
            raise Refused(400, "These edits decode to no finite sound.")
        delta = None
        if swapped:
            ends = [opened.frames(x[None], layer) for x in swapped[:3]]
            delta = self.delta(decoder, ends, samples_of(swapped.start))
            delta["count"] = swapped.count
        return self.compared(original.numpy(), changed.numpy(), delta)

    def compared(self, original, changed, delta):
        """Returns a changed sound beside the original, as json."""
        gain = common_gain([original, changed])
        changed, before = gain * changed, log_mel_of(gain * original)
        mel = log_mel_of(changed)
        high, frames = before.max(), min(len(before), len(mel))
        difference = mel[:frames] - before[:frames]
        return {
            "sound": text(encode_sound(changed)),
            "type": TYPES["WAV"],
            "seconds": round(len(changed) / SAMPLE_RATE, 3),
            "gain": gain,
            "outline": text(outline(changed)),
            "mel": text(mel_png(mel, high - RANGE, high)),
            "difference": text(signed_png(difference, RANGE / 2)),
            "delta": delta,
        }

    def delta(self, decoder, ends, samples):
        """Returns delta of frames start, mixture, target: see `analysis.delta`.

        Of the log-mel of predicted spectrograms, where the decoder has any.
        """
        audible = isinstance(decoder, SpectrogramDecoder)
        made = [decoder(x, samples, as_sound=not audible) for x in ends]
        if audible:
            made = [log_mel(x, self.filters) for x in made]
        start, mixture, target = made
        whole = float((start - target).abs().mean())
        left = float((mixture - target).abs().mean())
        of = "log-mel" if audible else "waveform"
        return {"value": left / whole if whole else None, "of": of}


def joined(classes, probabilities, hop, center, seconds):
    """Joins equal neighbours: list of spans, in seconds."""
    spans = []
    for i, (name, p) in enumerate(zip(classes, probabilities, strict=True)):
        start, end = 0.0, seconds
        if hop is not None:
            start, end = (
                min(max((center + hop * (i + side)) / SAMPLE_RATE, 0), seconds)
                for side in (-0.5, 0.5)
            )
        if spans and spans[-1]["class"] == name:
            spans[-1]["end"] = end
            spans[-1]["probabilities"].append(p)
        else:
            span = {"start": start, "end": end, "class": name}
            spans.append({**span, "probabilities": [p]})
    for span in spans:
        of = span.pop("probabilities")
        span["probability"] = round(sum(of) / len(of), 4)
        span["start"], span["end"] = (
            round(span["start"], 4),
            round(span["end"], 4),
        )
    return spans


def drawn(wav):
    """Draws a sound, as loud as it is played: its outline and its mel."""
    wav = common_gain([wav]) * wav
    mel = log_mel_of(wav)
    high = mel.max()
    return {
        "outline": text(outline(wav)),
        "mel": text(mel_png(mel, high - RANGE, high)),
    }


def signed_png(x, most):
    """Draws (frames, channels): red above 0, blue below."""
    return mel_png(x, -most, most, "RdBu_r")


def text(data):
    """Returns bytes as base64."""
    return base64.b64encode(data).decode()


def rounded(x):
    """Returns a tensor as a list of numbers of four digits."""
    return [float(f"{value:.4g}") for value in x.tolist()]
