"""What a linear layer can read from a latent, and where labels lie in it."""

import torch
from torch import nn

#: target of a frame or utterance that does not count
NO_LABEL = -1


def frames_of_labels(num_labels, hop, center, frames=None, alignment="centre"):
    """Finds the frame that each label belongs to.

    Phone labels come one per 10 ms from 25 ms windows without padding: label i
    is centred at sample 160 i + 200. Where a layer has a frame per label, it
    has one or two more of them than there are labels.

    Arguments
    ---------
    num_labels : int
        Labels of the utterance.
    hop, center : int, float
        Geometry of the layer: frame j is centred at sample center + hop * j.
    frames : int, optional
        Frames of the utterance; none beyond it are named.
    alignment : str
        "centre": the frame whose centre is nearest. "front": surplus frames
        are cut from the front, so that the last frame has the last label, as
        the authors' release does; needs `frames`. "end": they are cut from the
        end, so that the first frame has the first label.

    Returns
    -------
    torch.Tensor
        (num_labels,), int64.

    Raises
    ------
    ValueError
        If the alignment is none of these.

    Example
    -------
    >>> frames_of_labels(3, hop=160, center=20)
    tensor([1, 2, 3])
    >>> frames_of_labels(3, 160, 20, frames=5, alignment="front")
    tensor([2, 3, 4])
    >>> frames_of_labels(3, 160, 20, frames=5, alignment="end")
    tensor([0, 1, 2])
    """
    labels = torch.arange(num_labels)
    if alignment == "centre":
        at = ((160 * labels + 200 - center) / hop).round().long()
    elif alignment == "front":
        before_last = (160 * labels.flip(0) / hop).round().long()
        at = frames - 1 - before_last
    elif alignment == "end":
        at = (160 * labels / hop).round().long()
    else:
        raise ValueError(
            f"alignment must be 'centre', 'front' or 'end', got {alignment!r}"
        )
    return at.clamp(0, None if frames is None else frames - 1)


class LinearProbe(nn.Module):
    """Linear classifiers, trained side by side on the same features.

    logits_s = x_s W_s (+ b_s), for `probes` independent classifiers s. With an
    optimizer that works elementwise, such as Adam, training them together
    equals training each alone.

    Arguments
    ---------
    channels : int
        Channels of the features.
    classes : int
        Number of classes.
    probes : int
        How many classifiers.
    bias : bool
        Whether they have a bias.
    generators : list of torch.Generator, optional
        One per classifier: source of its initial weights, which are uniform in
        +- 1 / sqrt(channels), as those of `torch.nn.Linear`.

    Example
    -------
    >>> LinearProbe(16, 3, probes=2)(torch.randn(2, 8, 16)).shape
    torch.Size([2, 8, 3])
    """

    def __init__(self, channels, classes, probes=1, bias=True, generators=None):
        super().__init__()
        generators = generators or [None] * probes
        bound = channels**-0.5

        def uniform(*shape):
            draws = [
                torch.empty(shape).uniform_(-bound, bound, generator=generator)
                for generator in generators
            ]
            return nn.Parameter(torch.stack(draws))

        self.weight = uniform(channels, classes)
        self.bias = uniform(1, classes) if bias else None

    def forward(self, x):
        """Scores the classes.

        Arguments
        ---------
        x : torch.Tensor
            (probes, examples, channels).

        Returns
        -------
        torch.Tensor
            (probes, examples, classes).
        """
        if self.bias is None:
            return torch.bmm(x, self.weight)
        return torch.baddbmm(self.bias, x, self.weight)


class LayerProbes(nn.Module):
    """One trained probe for each layer, and the units its features are put in.

    logits = (x - mean) / std W (+ b), with the mean and the deviation of the
    features that the probe was trained on.

    Arguments
    ---------
    channels : dict of str to int
        Channels of each layer.
    classes : int
        Number of classes.
    bias : bool
        Whether the probes have a bias.

    Example
    -------
    >>> probes = LayerProbes({"module3": 16, "context": 8}, 3)
    >>> probes(torch.randn(2, 64, 16), "module3").shape
    torch.Size([2, 64, 3])
    """

    def __init__(self, channels, classes, bias=True):
        super().__init__()
        #: the constructor's arguments
        self.config = {
            "channels": dict(channels),
            "classes": classes,
            "bias": bias,
        }
        self.probes = nn.ModuleDict()
        for layer, width in channels.items():
            self.probes[layer] = LinearProbe(width, classes, bias=bias)
            self.register_buffer(f"{layer}_mean", torch.zeros(width))
            self.register_buffer(f"{layer}_std", torch.ones(width))

    def forward(self, x, layer):
        """Scores the classes.

        Arguments
        ---------
        x : torch.Tensor
            Features of the layer, (batch, time, channels).
        layer : str
            Its name.

        Returns
        -------
        torch.Tensor
            (batch, time, classes).

        Raises
        ------
        ValueError
            If there is no probe for the layer.
        """
        if layer not in self.probes:
            raise ValueError(
                f"There is no probe for the layer '{layer}', only for "
                f"{', '.join(self.probes)}."
            )
        mean = getattr(self, f"{layer}_mean")
        x = (x - mean) / getattr(self, f"{layer}_std")
        return self.probes[layer](x.flatten(0, 1)[None])[0].unflatten(
            0, x.shape[:2]
        )
