"""What the tools share: systems, their study, and the tools' contract."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from speechbrain_sim.analysis import intervals
from speechbrain_sim.analysis.latents import Clips
from speechbrain_sim.decoders import SPECTROGRAM, WAVEFORM
from speechbrain_sim.report.page import Gap, Section
from speechbrain_sim.report.style import look
from speechbrain_sim.spectrograms import log_mel, log_power, mel_filters

#: which way is better: the second line of a column's title
LOWER, HIGHER = "↓ lower is better", "↑ higher is better"
#: by kind of decoder, what is compared, and of what it has to give back a share
COMPARED = {
    WAVEFORM: "decoded waveforms",
    SPECTROGRAM: "the log-mel of decoded spectrograms",
}
RECORDED = {
    WAVEFORM: "the recordings' energy",
    SPECTROGRAM: "the variance of the recordings' log-mel",
}


class Results(dict):
    """What one tool measured: system -> layer -> numbers, ready for json.

    A layer that cannot be measured has a `gap`, the reason, in their place.

    Example
    -------
    >>> found, gaps = Results(
    ...     SIM={"a": {"gap": "Silent."}, "b": {"x": 1}}
    ... ).split()
    >>> found, found.layers(), gaps[0].title
    ({'SIM': {'b': {'x': 1}}}, ['b'], 'SIM a')
    """

    def rows(self):
        """Yields a row's name, system, layer and numbers of each layer."""
        for system, layers in self.items():
            for layer, numbers in layers.items():
                yield f"{system} {layer}", system, layer, numbers

    def layers(self):
        """Lists the layers that any system has, in their order."""
        return list(dict.fromkeys(layer for _, _, layer, _ in self.rows()))

    def first(self):
        """Returns any layer's numbers, for settings that hold for all."""
        return next(self.rows())[-1]

    def map(self, function):
        """Returns what a function makes of each layer's numbers."""
        return Results(
            (system, {layer: function(x) for layer, x in layers.items()})
            for system, layers in self.items()
        )

    def look(self, system):
        """Returns the label and colour of a system in all figures."""
        return look(system, list(self).index(system))

    def split(self):
        """Returns the results with numbers, and a list of `Gap`."""
        found, gaps = Results(), []
        for name, system, layer, numbers in self.rows():
            if "gap" in numbers:
                gaps.append(Gap(name, numbers["gap"], system))
            else:
                found.setdefault(system, {})[layer] = numbers
        return found, gaps


class Probes(NamedTuple):
    """Bias-free probes of one encoder.

    Arguments
    ---------
    scores, weights : dict
        Of each layer, its scores, and (seeds, channels, classes).
    classes : list of str
        Names of the classes.
    features : callable
        "train", "valid" or "test" -> dict of str to Examples, by layer.
    """

    scores: dict
    classes: list
    weights: dict
    features: Callable


class System(NamedTuple):
    """An encoder under analysis, frozen.

    Arguments
    ---------
    name, encoder : str, Encoder
        Its name in the report; in eval mode.
    wavs : torch.Tensor
        The clips, (clips, samples).
    latents : dict
        `Latent` of the clips, of each layer.
    decoders : dict
        Kind of decoder, `WAVEFORM` or `SPECTROGRAM` -> layer -> `Decoder`.
    probes : Probes or None
        None without a label to probe for.
    made_of : dict
        Hashes: of the `encoder`, and of what `Tool.needs` names.
    """

    name: str
    encoder: nn.Module
    wavs: torch.Tensor
    latents: dict
    decoders: dict
    probes: Probes | None
    made_of: dict

    def decode(self, layer, kind=WAVEFORM):
        """Returns a layer's decoder, (batch, time, channel) -> waveforms."""
        samples = self.wavs.shape[1]
        return lambda z: self.decoders[kind][layer](z, samples)

    def compared(self, layer, kind):
        """Returns how decoded sounds are compared, and the clips likewise.

        By their samples, or else by the log-mel of predicted spectrograms, from
        which the clips' mean is subtracted.

        Returns
        -------
        decode, recorded : (callable, torch.Tensor)
            Latents -> (batch, values); (clips, values). Zero is what a decoder
            without any information would give back.
        """
        if kind == WAVEFORM:
            return self.decode(layer), self.wavs
        samples, filters = self.wavs.shape[1], mel_filters().to(self.wavs)
        lengths = torch.full((len(self.wavs),), samples)
        recorded = log_mel(log_power(self.wavs, lengths), filters)
        mean = recorded.mean((0, 1))

        def decode(z):
            predicted = self.decoders[kind][layer](z, samples, as_sound=False)
            return (log_mel(predicted, filters) - mean).flatten(1)

        return decode, (recorded - mean).flatten(1)

    def each_layer(self, measure):
        """Calls (layer, latent) -> numbers for every layer.

        Where it raises `Unmeasurable`, the layer gets a `gap`: the reason.
        """
        results = {}
        for layer, latent in self.latents.items():
            try:
                results[layer] = measure(layer, latent)
            except intervals.Unmeasurable as error:
                results[layer] = {"gap": str(error)}
        return results


class Study(NamedTuple):
    """Systems side by side, and what they are measured with.

    Arguments
    ---------
    folder : Path
        Of the report; figures go to its folder `figures`.
    clips : Clips
        Recordings that are encoded, decoded and interpolated.
    seed, batch_size : int
        Of all draws; latents decoded at once.
    pairs, walk_pairs : torch.Tensor
        From `draw_pairs`, for delta and for smoothness.
    steps, directions : int
        Of each interpolation; random moves of each clip.
    label, factors : str, Factors
        Label of the bias-free probes, and known factors, if any.
    published : dict
        Numbers of a paper: `note`, `probes`, `bias_free`, `counts`, `delta`
        (in percent).
    baseline, probed : str or None, dict
        What probes are compared with, if anything; label -> system -> `read_system`.
    logs : dict of str to str
        `train_log.txt` of each trained system.
    halves : dict of str to list of dict
        `vib.json` of each system of recipes/vib.py, one for each seed.
    systems, results : list of System, dict
        Those whose layers are measured; the last is compared with. Tool ->
        results.
    """

    folder: Path
    clips: Clips | None = None
    seed: int = 1
    batch_size: int = 8
    pairs: torch.Tensor | None = None
    walk_pairs: torch.Tensor | None = None
    steps: int = 10
    directions: int = 8
    label: str | None = None
    factors: Any = None
    published: dict = {}
    baseline: str | None = None
    probed: dict = {}
    logs: dict = {}
    halves: dict = {}
    systems: list = []
    results: dict = {}

    def clips_hash(self):
        """Returns the sha256 of the clips' samples."""
        return hashlib.sha256(self.clips.wavs.numpy().tobytes()).hexdigest()

    def compare(self, results, pairs):
        """Compares every system with the last one, layer by layer, in pairs.

        Arguments
        ---------
        results : Results
            Numbers with `per_pair`: numerator and denominator of each pair.
        pairs : torch.Tensor
            What they were measured on.

        Returns
        -------
        Results
            `value` and `interval` of the difference of the ratios of means over
            pairs, of layers that both systems have in the same width.
        """
        found, last = results.split()[0], self.systems[-1].name
        differences = Results()
        for _, system, layer, numbers in found.rows():
            other = found.get(last, {}).get(layer, {})
            same = numbers.get("dimensions") == other.get("dimensions")
            if system == last or not (other and same):
                continue
            ratios = [np.array(x["per_pair"]) for x in (numbers, other)]
            ratios = [(above[:, None], below) for above, below in ratios]
            ends = intervals.bootstrap_pairs_difference(*ratios, pairs)
            value, low, high = (float(end[0]) for end in ends)
            difference = {"value": value, "interval": [low, high]}
            differences.setdefault(system, {})[layer] = difference
        return differences


class Tool(ABC):
    """One tool: measures each system, and writes one section of the report.

    Attributes: `key`, `title` and `sentence` of the section; `needs`, which
    parts of a system it reads besides the encoder ("probes", kinds of decoders:
    those that there are);
    `columns` of the summary, title and `LOWER` or `HIGHER` in two lines -> a
    sentence that explains it; `inside`, whether it looks into systems.
    """

    key = title = sentence = ""
    needs = ()
    columns = {}
    inside = True

    def settings(self, study):
        """Returns the settings that its numbers depend on, for the cache."""
        return {}

    def measure(self, system, study):
        """Returns numbers, or a gap, of each layer: a dict ready for json.

        It is empty if the section needs no numbers of its own.
        """
        return {}

    def compare(self, results, study):
        """Returns differences to the last system: `Results`."""
        return Results()

    def cells(self, numbers):
        """Returns the summary's cells of a layer, one for each of `columns`."""
        return []

    @abstractmethod
    def items(self, found, study):
        """Returns the section's items for the layers that were measured.

        It is not called if every layer is a gap.
        """

    def section(self, results, study):
        """Returns the section, with a gap for each layer without numbers."""
        found, gaps = results.split()
        nothing = any(results.values()) and not found
        items = [] if nothing else self.items(found, study)
        return Section(self.key, self.title, self.sentence, [*items, *gaps])


def powers_of_two(largest):
    """Lists 2, 4, 8, ... up to a number, and the number itself.

    Example
    -------
    >>> powers_of_two(20)
    [2, 4, 8, 16, 20]
    """
    powers = {2**k for k in range(1, largest.bit_length())}
    return sorted(powers | {largest})
