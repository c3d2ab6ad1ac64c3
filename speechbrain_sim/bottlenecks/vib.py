"""Textual and acoustic halves of a frozen layer: two information bottlenecks.

Mohebbi et al. 2024, https://arxiv.org/abs/2410.03037. Stage 1 keeps of each frame
what transcribes it (`TextHalf`); stage 2 keeps what else a label of utterances
needs (`UtteranceHalf`), given the frozen textual half.
"""

from typing import NamedTuple

import torch
from speechbrain.nnet.losses import ctc_loss
from torch import nn
from torch.nn.functional import cross_entropy, softplus

from speechbrain_sim.arguments import records_arguments
from speechbrain_sim.bottlenecks.base import (
    STANDARDISE,
    Bottleneck,
    BottleneckLoss,
)
from speechbrain_sim.data.labels import NO_LABEL
from speechbrain_sim.encoders.base import valid_frames
from speechbrain_sim.objectives.kl import kl_per_channel

#: of the labels of CTC
BLANK = 0
#: least variance of a posterior, so that its logarithm is finite
LEAST = 1e-6


class Posterior(NamedTuple):
    """N(mean, diag(var)) of each frame, (..., units) each."""

    mean: torch.Tensor
    var: torch.Tensor


class Attention(NamedTuple):
    """Weights of the frames, (batch, time): 0 in the padding, 1 in sum.

    Of the `own` codes; of the `text`, or None where no text is pooled.
    """

    own: torch.Tensor
    text: torch.Tensor | None


class LayerMixer(nn.Module):
    """Weighted mean of layers: sum_l softmax(w)_l h_l, with w = 0 at first.

    Arguments
    ---------
    layers : int
        How many lie side by side in the channels.

    Example
    -------
    >>> LayerMixer(2)(torch.tensor([[1.0, 2.0, 3.0, 6.0]])).tolist()
    [[2.0, 4.0]]
    """

    def __init__(self, layers):
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(layers))

    def forward(self, x):
        """Mixes (..., layers * channels): returns (..., channels)."""
        x = x.unflatten(-1, (len(self.weights), -1))
        return (x * self.weights.softmax(0)[:, None]).sum(-2)


class AttentionPool(nn.Module):
    """Pools frames by a learned query: sum_t softmax_t(q . z_t) z_t, q = 1 at first.

    Example
    -------
    >>> z, lengths = torch.tensor([[[1.0], [1.0], [9.0]]]), torch.tensor([2])
    >>> pooled, weights = AttentionPool(1)(z, lengths)
    >>> pooled.tolist(), weights.tolist()
    ([[1.0]], [[0.5, 0.5, 0.0]])
    """

    def __init__(self, channels):
        super().__init__()
        self.query = nn.Parameter(torch.ones(channels))

    def forward(self, z, lengths):
        """Pools (batch, time, channels): (batch, channels), (batch, time)."""
        valid = valid_frames(lengths.to(z.device), z.shape[1])
        scores = (z @ self.query).masked_fill(~valid, -torch.inf)
        weights = scores.softmax(1)
        z = z.masked_fill(~valid[..., None], 0)  # 0 * NaN is NaN
        return torch.einsum("bt,btc->bc", weights, z), weights


class InformationBottleneck(Bottleneck):
    """Frames -> a Gaussian posterior each, of which as little as needed is kept.

    o = GELU(W2 GELU(W1 h)), mean = W_mu o, var = softplus(W_v o), with h the
    `LayerMixer` of the layers in units (see `Bottleneck`);

        z = mean + sqrt(var) * noise in training, z = mean in use,

    and the loss is task + beta KL(N(mean, var) || N(0, 1)), the KL summed over
    units and averaged over frames (equations 3 and 4, whose signs are those of
    a maximum). Codes are means; they do not decode to frames.

    Arguments
    ---------
    input_channels, num_units : int
        Channels of the layer, or of all `layers` side by side; size d of z.
    layers : int
        How many layers of equal width are mixed.
    normalisation : str
        See `Bottleneck`.
    coded : bool
        Without, z is h itself: the baseline that probes h by the same decoder.
        `num_units` is the width of h then.
    """

    decodes = False

    def __init__(
        self,
        input_channels,
        num_units,
        layers=1,
        normalisation=STANDARDISE,
        coded=True,
    ):
        super().__init__(input_channels, num_units, normalisation)
        width, rest = divmod(input_channels, layers)
        if rest or not (coded or num_units == width):
            raise ValueError(
                f"{layers} layers of {input_channels} channels in all have no "
                f"{num_units} units: layers are of equal width, and those that "
                f"are not coded have as many units."
            )
        self.mixer, self.coded = LayerMixer(layers), coded
        if coded:
            self.hidden = nn.Sequential(
                nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
            ).append(nn.GELU())
            self.to_mean = nn.Linear(width, num_units)
            self.to_var = nn.Linear(width, num_units)

    def mixed(self, x):
        """Returns h of frames: their layers in units, mixed."""
        return self.mixer(self.to_units(x))

    def posterior(self, x):
        """Returns the Posterior of frames, (..., channels); of h, None."""
        hidden = self.hidden(self.mixed(x))
        return Posterior(
            self.to_mean(hidden), softplus(self.to_var(hidden)) + LEAST
        )

    def encode(self, x):
        """See `Bottleneck`: the means of posteriors."""
        h = self.mixed(x)
        return self.to_mean(self.hidden(h)) if self.coded else h

    def decode(self, codes):
        """Raises a ValueError: see `InformationBottleneck`."""
        raise ValueError(
            "Codes of an information bottleneck do not decode to frames of "
            "their layer: decode the layer itself."
        )

    def draw(self, x, lengths, generator=None):
        """Codes a padded batch, with noise in training: z, KL per frame.

        Arguments
        ---------
        x, lengths : torch.Tensor
            (batch, time, channels); valid frames, (batch,).
        generator : torch.Generator, optional
            Of the noise.

        Returns
        -------
        z, kl : (torch.Tensor, torch.Tensor)
            (batch, time, units); a scalar, in nats, 0 if nothing is coded.
        """
        if not self.coded:
            return self.mixed(x), x.new_zeros(())
        mean, var = self.posterior(x)
        kl = kl_per_channel(mean, var.log(), lengths.to(x.device)).sum()
        if not self.training:
            return mean, kl
        noise = torch.empty_like(mean).normal_(generator=generator)
        return torch.addcmul(mean, var.sqrt(), noise), kl


@records_arguments
class TextHalf(InformationBottleneck):
    """What transcribes a frame: CTC of a linear layer's labels, + beta KL.

    Arguments
    ---------
    input_channels, num_units, layers, normalisation, coded :
        See `InformationBottleneck`.
    labels : int
        Of the text, with the blank, which is 0.

    Example
    -------
    >>> half = TextHalf(8, 4, labels=3).eval()
    >>> x, lengths = torch.randn(2, 9, 8), torch.tensor([9, 5])
    >>> texts = torch.tensor([[1, 2], [2, 0]]), torch.tensor([2, 1])
    >>> sorted(half.loss(x, lengths, *texts).terms)
    ['ctc', 'infinite', 'kl', 'loss']
    """

    def __init__(
        self,
        input_channels,
        num_units,
        labels,
        layers=1,
        normalisation=STANDARDISE,
        coded=True,
    ):
        options = layers, normalisation, coded
        super().__init__(input_channels, num_units, *options)
        self.decoder = nn.Linear(num_units, labels)

    def logits(self, z):
        """Returns the logits of labels, (..., labels), of codes."""
        return self.decoder(z)

    def loss(self, x, lengths, texts, sizes, beta=1.0, generator=None):
        """Returns the BottleneckLoss of a padded batch.

        Arguments
        ---------
        x, lengths, generator :
            See `draw`.
        texts, sizes : torch.Tensor
            Labels, (batch, most labels), int64, and how many, (batch,).
        beta : float
            Weight of the KL.

        Returns
        -------
        BottleneckLoss
            Terms: `loss`; `ctc`, see `ctc_per_label`; `kl` per frame;
            `infinite`, utterances without a path.
        """
        z, kl = self.draw(x, lengths, generator)
        log_probs = self.logits(z).log_softmax(-1)
        ctc, infinite = ctc_per_label(log_probs, lengths, texts, sizes)
        return _total(ctc, kl, beta, ctc=ctc, infinite=infinite)


@records_arguments
class UtteranceHalf(InformationBottleneck):
    """What else a label of utterances needs, given the textual half.

    logits = W [pool(z); pool(z_text)], by an `AttentionPool` each;
    cross-entropy + beta KL. No gradient reaches the textual half.

    Arguments
    ---------
    input_channels, num_units, layers, normalisation, coded :
        See `InformationBottleneck`.
    classes, text_units : int
        Of the label; size of z_text, 0 if none is given.

    Example
    -------
    >>> half = UtteranceHalf(8, 4, classes=2, text_units=3).eval()
    >>> z, text = torch.randn(2, 9, 4), torch.randn(2, 9, 3)
    >>> logits, attention = half(z, torch.tensor([9, 5]), text)
    >>> logits.shape, attention.text.shape
    (torch.Size([2, 2]), torch.Size([2, 9]))
    """

    def __init__(
        self,
        input_channels,
        num_units,
        classes,
        text_units=0,
        layers=1,
        normalisation=STANDARDISE,
        coded=True,
    ):
        options = layers, normalisation, coded
        super().__init__(input_channels, num_units, *options)
        self.text_units, self.pool = text_units, AttentionPool(num_units)
        if text_units:
            self.text_pool = AttentionPool(text_units)
        self.classifier = nn.Linear(num_units + text_units, classes)

    def forward(self, z, lengths, text=None):
        """Classifies codes.

        Arguments
        ---------
        z, lengths, text : torch.Tensor
            Codes, (batch, time, units); valid frames, (batch,); codes of the
            textual half, (batch, time, text units).

        Returns
        -------
        logits, attention : (torch.Tensor, Attention)
            (batch, classes).
        """
        if (text is not None) != bool(self.text_units):
            raise ValueError(
                f"This half is conditioned on {self.text_units} units of text, "
                f"but text is {None if text is None else tuple(text.shape)}."
            )
        pooled, own = self.pool(z, lengths)
        if text is None:
            return self.classifier(pooled), Attention(own, None)
        of_text, weights = self.text_pool(text.detach(), lengths)
        logits = self.classifier(torch.cat([pooled, of_text], -1))
        return logits, Attention(own, weights)

    def loss(self, x, lengths, y, text=None, beta=1.0, generator=None):
        """Returns the BottleneckLoss of a padded batch.

        Arguments
        ---------
        x, lengths, generator :
            See `draw`.
        y, text : torch.Tensor
            Classes, (batch,), int64, `NO_LABEL` where there is none; see
            `forward`.
        beta : float
            Weight of the KL.

        Returns
        -------
        BottleneckLoss
            Terms: `loss`; `nll`, the cross-entropy; `kl` per frame.
        """
        z, kl = self.draw(x, lengths, generator)
        logits, _ = self(z, lengths, text)
        options = {"ignore_index": NO_LABEL, "reduction": "sum"}
        nll = cross_entropy(logits, y, **options)
        nll = nll / (y != NO_LABEL).sum().clamp(min=1)
        return _total(nll, kl, beta, nll=nll)


def _total(task, kl, beta, **terms):
    """Returns the BottleneckLoss task + beta KL, with its terms for the log."""
    total = task + beta * kl
    terms = {"loss": total, "kl": kl, **terms}
    return BottleneckLoss(total, {n: x.detach() for n, x in terms.items()})


def ctc_per_label(log_probs, lengths, texts, sizes):
    """CTC per label of the text, in nats: the mean over utterances.

    An utterance without a path (CTC needs a frame for each label, and one
    between two that are equal) has an infinite loss; it is left out.

    Arguments
    ---------
    log_probs, lengths : torch.Tensor
        (batch, time, labels); valid frames, (batch,).
    texts, sizes : torch.Tensor
        See `TextHalf.loss`.

    Returns
    -------
    ctc, infinite : (torch.Tensor, torch.Tensor)
        Scalars; how many are left out.
    """
    lengths, sizes = lengths.cpu(), sizes.cpu()
    shares = (
        lengths.double() / log_probs.shape[1],
        sizes.double() / texts.shape[1],
    )
    losses = ctc_loss(log_probs, texts, *shares, BLANK, reduction="batch")
    inside = valid_frames(sizes, texts.shape[1])[:, 1:]
    repeats = ((texts[:, 1:] == texts[:, :-1]).cpu() & inside).sum(1)
    finite = (sizes + repeats <= lengths).to(losses)
    return (losses * finite).sum() / finite.sum().clamp(min=1), (
        1 - finite
    ).sum()
