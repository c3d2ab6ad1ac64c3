"""What the explorer computes: recordings and edits -> answers as json."""

import base64
from functools import cache

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool1d

from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.data.labels import UTTERANCE
from speechbrain_sim.decoders import SpectrogramDecoder, shortest
from speechbrain_sim.encoders.base import check_finite, masked_mean
from speechbrain_sim.explorer.clips import BYTES, SECONDS, decode_upload
from speechbrain_sim.explorer.edits import Space, apply_edits, own_deviation
from speechbrain_sim.explorer.jobs import Refused
from speechbrain_sim.explorer.kept import Kept
from speechbrain_sim.explorer.models import Explored
from speechbrain_sim.features import CHUNK_SECONDS, join_pieces
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

#: bytes of latents and sounds that are kept
KEPT = 256 << 20
#: pixels of a picture of latents: most dimensions, most columns
ROWS, COLUMNS = 512, 2048
#: samples that are decoded, or encoded, between two looks at whether they are
#: still wanted
BLOCK = round(CHUNK_SECONDS * SAMPLE_RATE)
filters = cache(mel_filters)


class Engine:
    """Answers of the explorer; every method is called by one thread.

    `check` raises if the answer is no longer wanted.

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
        each = zip(names, models.items(), strict=True)
        self.models = {name: Explored(name, *of) for name, of in each}
        self.clips, self.kept = clips, Kept(kept)
        for clip in clips:
            self.check_length(round(clip.seconds * SAMPLE_RATE), clip.name)

    def describe(self, check):
        """Answers /api/model."""
        return {
            "models": [model.describe() for model in self.models.values()],
            "clips": [clip.describe() for clip in self.clips],
            "limits": {"seconds": SECONDS, "bytes": BYTES},
        }

    def check_length(self, samples, name):
        """Raises a Refused if samples are too few for a frame of some layer."""
        for model in self.models.values():
            for layer in model.layers:
                if model.encoder.output_lengths(samples, layer) < 1:
                    few = f"its {samples} samples at 16 kHz are no frame"
                    raise Refused(
                        400, f"{name} is too short: {few} of {layer}."
                    )

    def upload(self, data, name, check):
        """Answers POST /api/clips."""
        name = "".join(filter(str.isprintable, name))[:200]
        clip = decode_upload(data, name, check)
        self.check_length(len(clip.source), "The recording")
        self.clips.add(clip)
        return clip.describe()

    def wav(self, clip):
        """Returns the samples of a recording, kept."""
        clip = self.clips[clip]
        return self.kept.get(("wav", clip.id), clip.read)

    def clip(self, clip: str, check):
        """Answers /api/clips/{clip}."""
        wav = self.wav(clip).numpy()
        wav = common_gain([wav]) * wav
        mel = log_mel_of(wav)
        drawn = {"outline": text(outline(wav)), "mel": text(loudness(mel))}
        drawn["sound"] = f"/api/clips/{clip}/sound"
        return self.clips[clip].describe() | drawn

    def sound(self, clip: str, check):
        """Answers /api/clips/{clip}/sound: bytes of a wav file."""
        wav = self.wav(clip).numpy()
        return encode_sound(common_gain([wav]) * wav)

    def explored(self, model, layer=None, *kinds):
        """Returns an Explored that has a layer of some kinds; else a Refused."""
        if model not in self.models:
            raise Refused(404, f"There is no model {model!r:.80}.")
        if layer is not None:
            self.models[model].check(layer, *kinds)
        return self.models[model]

    @torch.no_grad()
    def latents(self, model, clip, check):
        """Returns the Latents of all layers that are no codes, kept."""
        encoder = self.explored(model).uncoded

        def encode():
            wavs, pieces = encoder.as_input(self.wav(clip)[None]), []
            if not encoder.streams or wavs.shape[1] <= BLOCK:
                pieces = [encoder(wavs)]
            else:
                for piece in encoder.stream(wavs.split(BLOCK, dim=1)):
                    check()
                    pieces.append(piece)
            latents = join_pieces(pieces)
            check_finite(latents, [self.clips[clip].name])
            return latents

        return self.kept.get(("latents", model, clip), encode)

    @torch.no_grad()
    def latent(self, model, clip, layer, check):
        """Returns the Latent of a layer, or of codes."""
        encoder = self.explored(model, layer).encoder
        below = self.latents(model, clip, check)[encoder.origin(layer)]
        if encoder.bottleneck_of(layer) is None:
            return below
        return encoder.codes_of(layer, below)

    def show_latent(
        self,
        model: str,
        clip: str,
        layer: str,
        check,
        dimension: int | None = None,
    ):
        """Answers /api/latent."""
        latent = self.latent(model, clip, layer, check)
        x = latent.mean[0]
        if dimension is not None:
            return one_dimension(latent, dimension)
        order = x.var(0, correction=0).argsort(descending=True, stable=True)
        rows = order[:ROWS].sort().values
        columns = x[:, rows].T
        if len(x) > COLUMNS:
            columns = adaptive_avg_pool1d(columns[None], COLUMNS)[0]
        most = max(float(columns.abs().max()), 1e-30)
        return {
            "frames": len(x),
            "order": order.tolist(),
            "rows": rows.tolist(),
            "range": [-most, most],
            "picture": text(signed(columns.T.numpy(), most)),
        }

    @torch.no_grad()
    def show_probes(self, model: str, clip: str, check):
        """Answers /api/probes."""
        explored, found = self.explored(model), []
        end = self.clips[clip].seconds
        for label, (probe, entry) in explored.probes.items():
            layer = entry["best_layer"]
            latent, ends = self.latent(model, clip, layer, check), [0.0, end]
            x = latent.mean
            if entry["kind"] == UTTERANCE:
                x = masked_mean(x, latent.lengths)[:, None]
            else:
                hop, center = explored.encoder.frame_geometry(layer)
                at = center + hop * (np.arange(x.shape[1] + 1) - 0.5)
                ends = (at / SAMPLE_RATE).clip(0, end).round(4).tolist()
            p, best = probe(x, layer).softmax(-1)[0].max(-1)
            spans = joined(best.tolist(), p, ends, entry["classes"])
            found.append({"label": label, "layer": layer, "spans": spans})
        return found

    @torch.no_grad()
    def decode(self, given, check):
        """Answers /api/decode, without its milliseconds."""
        names = [given.get(key) for key in ("model", "clip", "layer")]
        if not all(isinstance(name, str) for name in names):
            raise Refused(400, "model, clip and layer must be names.")
        model, clip, layer = names
        explored = self.explored(model, layer)
        decoder, edits = explored.decoder(layer), given.get("edits", [])
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
            for piece in decoder.pieces(
                explored.frames(z[None], layer), *place
            ):
                check()
                pieces.append(piece[0])
            return torch.cat(pieces)

        space = Space(explored.encoder, layer, latent, other)
        z, swapped = apply_edits(space, edits, check)
        key = "decoded", *names
        original = self.kept.get(key, lambda: sound(latent.mean[0]))
        changed = sound(z) if edits else original
        if not changed.isfinite().all():
            raise Refused(400, "These edits decode to no finite sound.")
        delta = None
        if swapped:
            ends = [explored.frames(x[None], layer) for x in swapped[:3]]
            samples = samples_of(swapped.start)
            delta = delta_of(decoder, ends, samples, check)
            delta["count"] = swapped.count
        return compared(original.numpy(), changed.numpy()) | {"delta": delta}


def one_dimension(latent, dimension):
    """Returns what is drawn of one dimension."""
    last = latent.mean.shape[2] - 1
    if not 0 <= dimension <= last:
        raise Refused(404, f"There are dimensions 0 to {last}.")
    mean, std = latent.mean[0, :, dimension], None
    if latent.log_var is not None:
        std = rounded(torch.exp(0.5 * latent.log_var[0, :, dimension]))
    center, deviation = own_deviation(latent, dimension)
    own = {"center": center, "deviation": deviation}
    return {"mean": rounded(mean), "std": std} | own


def joined(best, p, ends, classes):
    """Joins frames of the same class: list of spans.

    Frame i is from ends[i] to ends[i + 1] seconds; the probability is the mean.

    Example
    -------
    >>> joined([1, 1, 0], torch.tensor([0.5, 1, 1]), [0, 0.1, 0.2, 0.3], "ab")[0]
    {'start': 0, 'end': 0.2, 'class': 'b', 'probability': 0.75}
    """
    starts = [i for i, c in enumerate(best) if not i or c != best[i - 1]]
    spans = []
    for i, j in zip(starts, [*starts[1:], len(best)], strict=True):
        span = {"start": ends[i], "end": ends[j], "class": classes[best[i]]}
        spans.append(span | {"probability": round(float(p[i:j].mean()), 4)})
    return spans


def compared(original, changed):
    """Returns how a changed sound compares with the original, as json."""
    gain = common_gain([original, changed])
    changed, before = gain * changed, log_mel_of(gain * original)
    mel = log_mel_of(changed)
    frames = min(len(before), len(mel))
    difference = mel[:frames] - before[:frames]
    return {
        "sound": text(encode_sound(changed)),
        "type": TYPES["WAV"],
        "seconds": round(len(changed) / SAMPLE_RATE, 3),
        "gain": gain,
        "outline": text(outline(changed)),
        "mel": text(loudness(mel, before.max())),
        "difference": text(signed(difference, RANGE / 2)),
    }


def delta_of(decoder, ends, samples, check):
    """Returns delta of frames start, mixture, target: see `analysis.delta`.

    Of the log-mel of predicted spectrograms, where the decoder has any.
    """
    audible = isinstance(decoder, SpectrogramDecoder)
    made = []
    for x in ends:
        check()
        x = decoder(x, samples, as_sound=not audible)
        made.append(log_mel(x, filters()) if audible else x)
    start, mixture, target = made
    whole = float((start - target).abs().mean())
    left = float((mixture - target).abs().mean())
    of = "log-mel" if audible else "waveform"
    return {"value": left / whole if whole else None, "of": of}


def loudness(mel, high=None):
    """Draws log-mel, (frames, bands), of 60 dB below its largest value."""
    high = mel.max() if high is None else high
    return mel_png(mel, high - RANGE, high)


def signed(x, most):
    """Draws (frames, channels): red above 0, blue below."""
    return mel_png(x, -most, most, "RdBu_r")


def text(data):
    """Returns bytes as base64."""
    return base64.b64encode(data).decode()


def rounded(x):
    """Returns a tensor as a list of numbers of four digits."""
    return [float(f"{value:.4g}") for value in x.tolist()]
