"""Probes of whole sequences: attention pooling, and CTC.

The protocol of the paper's probes, for which nothing is averaged beforehand:
utterances by a learned query, transcripts by CTC. They are trained, several side
by side on the same frames: the probe, and controls.
"""

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, ctc_loss
from torch.nn.utils.rnn import pad_sequence

from speechbrain_sim.analysis.code_scores import over_recordings
from speechbrain_sim.analysis.half_probes import (
    WHOLE,
    by_chance,
    check_classes,
    survives,
)
from speechbrain_sim.analysis.probes import score_probes
from speechbrain_sim.console import Bar
from speechbrain_sim.data.labels import NO_LABEL
from speechbrain_sim.data.splits import of_part
from speechbrain_sim.data.targets import error_rates
from speechbrain_sim.probes import LinearProbe, shuffled_labels
from speechbrain_sim.randomness import keyed_generator

#: share of the steps of the warm-up, and decay of the weights
WARMUP, DECAY = 0.1, 0.005
#: utterances of a step
BATCH = 16
#: numbers that are kept in memory, of the frames of one name
MOST_VALUES = 2**26


class FrameProbes(nn.Module):
    """Linear probes, side by side, of every frame, for CTC.

    Arguments
    ---------
    channels, classes, probes : int
        See `LinearProbe`.
    seed : int
        Of the initial weights.
    """

    def __init__(self, channels, classes, probes=1, seed=0):
        super().__init__()
        draws = [keyed_generator(seed, "probe", n) for n in range(probes)]
        self.linear = LinearProbe(channels, classes, probes, True, draws)

    def forward(self, x, lengths):
        """(batch, time, channels) -> logits (probes, batch, time, classes)."""
        rows = x.flatten(0, 1).expand(len(self.linear.weight), -1, -1)
        return self.linear(rows).unflatten(1, x.shape[:2])


class AttentionProbes(FrameProbes):
    """Linear probes, side by side, of frames that are pooled by attention.

    a_t = softmax_t(q z_t), logits = (Σ_t a_t z_t) W + b, with the query q and
    its classifier learned together; q is initialised to ones.

    Example
    -------
    >>> probes = AttentionProbes(8, 3, probes=2)
    >>> probes(torch.randn(4, 10, 8), torch.tensor([10, 9, 3, 1])).shape
    torch.Size([2, 4, 3])
    """

    def __init__(self, channels, classes, probes=1, seed=0):
        super().__init__(channels, classes, probes, seed)
        self.query = nn.Parameter(torch.ones(probes, channels))

    def attention(self, x, lengths):
        """(batch, time, channels) -> weights of frames (probes, batch, time)."""
        valid = torch.arange(x.shape[1]) < lengths[:, None]
        scores = torch.einsum("btc,pc->pbt", x, self.query)
        return scores.masked_fill(~valid, -torch.inf).softmax(-1)

    def forward(self, x, lengths):
        """(batch, time, channels) -> logits (probes, batch, classes)."""
        pooled = torch.einsum("pbt,btc->pbc", self.attention(x, lengths), x)
        return self.linear(pooled)


def class_loss(logits, targets, lengths):
    """Cross-entropy, summed over probes; of each, a class per utterance."""
    logits, targets = logits.flatten(0, 1), torch.tensor(targets).flatten()
    return cross_entropy(logits, targets, reduction="sum")


def sequence_loss(logits, targets, lengths):
    """CTC per symbol, blank 0, summed over probes: lists of (symbols,) each.

    What has more symbols than frames has no path, and counts nothing.
    """
    log_p = logits.log_softmax(-1).flatten(0, 1).transpose(0, 1)
    targets = [symbols for probe in targets for symbols in probe]
    sizes = torch.tensor([len(symbols) for symbols in targets])
    frames = lengths.repeat(len(logits))
    how = {"reduction": "none", "zero_infinity": True}
    losses = ctc_loss(log_p, torch.cat(targets), frames, sizes, **how)
    return (losses / sizes.clamp(min=1)).sum()


class Sequences:
    """Frames of utterances in batches, in given units.

    Arguments
    ---------
    side, name : Side, str
        Whose frames.
    units : (torch.Tensor, torch.Tensor)
        Mean and standard deviation of the training frames.
    kept : list of int, optional
        Which utterances; all by default.
    """

    def __init__(self, side, name, units, kept=None):
        self.side, self.name, self.units = side, name, units
        self.kept = range(len(side.ids)) if kept is None else list(kept)
        frames = np.diff(side.spans[list(self.kept)]).sum()
        if frames * len(units[0]) < MOST_VALUES:  # read and coded once
            self.rows = [self.read(i) for i in range(len(self.kept))]
            self.read = self.rows.__getitem__

    def read(self, number):
        """Returns the frames of an utterance, (time, channels)."""
        mean, std = self.units
        return (self.side.frames(self.name, self.kept[number]) - mean) / std

    def batch(self, chosen):
        """Returns frames (batch, time, channels) and lengths, (batch,)."""
        rows = [self.read(i) for i in chosen]
        return pad_sequence(rows, True), torch.tensor([*map(len, rows)])

    def batches(self, size=BATCH, generator=None):
        """Yields indices of utterances, in order or at random."""
        order = torch.arange(len(self.kept))
        if generator is not None:
            order = torch.randperm(len(order), generator=generator)
        yield from (chosen.tolist() for chosen in order.split(size))

    @torch.no_grad()
    def outputs(self, module):
        """Yields the logits of each batch, and the lengths of its frames."""
        for chosen in self.batches():
            x, lengths = self.batch(chosen)
            yield module(x, lengths), lengths


def fit(module, loss, known, targets, settings):
    """Trains probes side by side, by AdamW with a warm-up and a cosine.

    Arguments
    ---------
    module, loss : nn.Module, callable
        `AttentionProbes` and `class_loss`, or `FrameProbes` and
        `sequence_loss`.
    known : Sequences
        What is trained on.
    targets : list of list
        Of each probe, the target of each utterance.
    settings : Settings
        See `speechbrain_sim.analysis.half_settings`.
    """
    options = {"lr": settings.lr, "weight_decay": DECAY}
    optimizer = torch.optim.AdamW(module.parameters(), **options)
    steps = settings.epochs * -(-len(known.kept) // BATCH)
    begin = max(1, round(WARMUP * steps))

    def rate(step):
        fall = 0.5 + 0.5 * np.cos(np.pi * step / steps)
        return min(1, (step + 1) / begin) * fall

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    for epoch in Bar(range(settings.epochs), known.name, unit="epoch"):
        noise = keyed_generator(settings.seed, "order", epoch)
        for chosen in known.batches(generator=noise):
            x, lengths = known.batch(chosen)
            now = [[probe[i] for i in chosen] for probe in targets]
            optimizer.zero_grad()
            with torch.enable_grad():
                value = loss(module(x, lengths), now, lengths) / len(chosen)
                value.backward()
            optimizer.step()
            schedule.step()
    return module.requires_grad_(False).eval()


def probe_pooled(sides, label, classes, names, settings):
    """Trains attention-pooled probes of a label of utterances, and controls.

    Returns what `speechbrain_sim.analysis.half_probes.probe` returns; strength
    and length of the training are given, and nothing is chosen.
    """
    known, valid, test = (
        side.examples(label, names, 0, settings.seed) for side in sides.values()
    )
    check_classes(known, test, label)
    every = [np.array(side.y[label]) for side in sides.values()]
    kept = [np.flatnonzero(y != NO_LABEL) for y in every]
    y = torch.from_numpy(next(iter(known.values())).y)
    targets = [y, *shuffled_labels(y, settings.controls).long()]
    chosen, tested = {}, {}
    for name in names:
        units = sides["train"].units(name)
        train, *others = (
            Sequences(side, name, units, at)
            for side, at in zip(sides.values(), kept, strict=True)
        )
        shape = len(units[0]), classes, len(targets), settings.seed
        probes = AttentionProbes(*shape)
        fit(probes, class_loss, train, targets, settings)
        predicted = [
            torch.cat([z.argmax(-1) for z, _ in part.outputs(probes)], 1)
            for part in others
        ]
        chosen[name], tested[name] = predicted[0][:1], predicted[1]
    scored = score_probes(chosen, valid, tested, test, y.numpy(), 1)
    chance = {n: by_chance(tested[n][0].numpy(), test[n]) for n in names}
    return *scored, chance


def probe_text(sides, targets, names, settings):
    """Trains a linear CTC probe of frames, and one of shuffled transcripts.

    Arguments
    ---------
    sides, names, settings :
        See `speechbrain_sim.analysis.half_probes.probe`.
    targets : (Labels, dict of str to dict of str to torch.Tensor)
        Of the texts; and part -> utterance -> numbers of labels.

    Returns
    -------
    dict
        Kind of error ("PER", "WER", "CER") -> name -> `value`, errors per symbol,
        and `interval`; of its `control` the same; `above`, how many less than
        the mean of all controls, which know texts and not which (a recording
        with more errors than symbols counts as one without an answer);
        `at_chance` and, of a half, `leakage`: see `compare_halves`.
    """
    train, test = sides["train"], sides["test"]
    labels, true = targets[0], of_part(targets[1], "test")
    known = of_part(targets[1], "train")
    known = [known[name] for name in train.ids]
    noise = keyed_generator(settings.seed, "control", "transcripts")
    order = torch.randperm(len(known), generator=noise).tolist()
    both, rates = [known, [known[i] for i in order]], {}
    for name in names:
        units = train.units(name)
        shape = len(units[0]), len(labels.symbols), 2, settings.seed
        probes, parts = FrameProbes(*shape), (train, test)
        train_, test_ = (Sequences(part, name, units) for part in parts)
        fit(probes, sequence_loss, train_, both, settings)
        found = [[], []]
        for logits, lengths in test_.outputs(probes):
            for texts, part in zip(found, logits, strict=True):
                texts += labels.decode(part, lengths)
        for texts in found:
            said = dict(zip(test.ids, texts, strict=True))
            for kind, rate in error_rates(said, true, labels).items():
                pairs = rates.setdefault(kind, {}).setdefault(name, [])
                pairs.append(rate)
    unit = np.unique(test.recordings, return_inverse=True)[1]
    return {kind: _errors(found, unit) for kind, found in rates.items()}


def _errors(rates, unit):
    """Scores error rates: name -> [of the probe, of its control]."""
    edits = {n: np.array([r.edits for r in pair]) for n, pair in rates.items()}
    total = np.array(next(iter(rates.values()))[0].lengths, float)
    # what is worse than nothing counts as nothing
    least = {name: np.minimum(pair, total) for name, pair in edits.items()}
    chance = np.mean([control for _, control in least.values()], 0)
    scores, whole = {}, np.bincount(unit, chance - least[WHOLE][0])
    for name, (wrong, control) in edits.items():
        score = scores[name] = over_recordings(wrong, total, unit)
        avoided = chance - least[name][0]
        score["control"] = over_recordings(control, total, unit)
        score["above"] = over_recordings(avoided, total, unit)
        score["at_chance"] = score["above"]["interval"][0] <= 0
        if name != WHOLE:
            sums = np.bincount(unit, avoided), whole, np.bincount(unit, total)
            score["leakage"] = survives(*sums)
    return scores
