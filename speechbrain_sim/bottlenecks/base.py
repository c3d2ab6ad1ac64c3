"""What every bottleneck does: frames of a frozen layer -> codes -> frames."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import nn

#: how the frames of a layer are brought to units, see `Bottleneck`
NORMALISATIONS = NONE, STANDARDISE, UNIT_NORM = (
    "none",
    "standardise",
    "unit_norm",
)
#: a channel varies if its deviation is above this share of its magnitude
CONSTANT = 1e-6


class Coded(NamedTuple):
    """Codes, (..., units), and what they decode to, (..., channels)."""

    codes: torch.Tensor
    reconstruction: torch.Tensor


class BottleneckLoss(NamedTuple):
    """What is minimised, and detached scalars for the log, by name."""

    total: torch.Tensor
    terms: dict


class Bottleneck(nn.Module, ABC):
    """Frames of a frozen layer -> codes -> frames.

    A frame x becomes u = (x - mean) / std. With `normalisation` "standardise"
    these are mean and deviation of each channel (1 for a channel that does not
    vary); with "unit_norm", mean is 0 and std is E||x|| / sqrt(channels), one
    number; with "none", 0 and 1. They are kept in buffers, and undone by
    `decode`: what comes in and out is in the units of the layer.

    Arguments
    ---------
    input_channels, num_units : int
        Channels of the layer; number of codes.
    normalisation : str
        One of `NORMALISATIONS`.
    """

    #: whether `decode` works
    decodes = True

    def __init__(self, input_channels, num_units, normalisation=STANDARDISE):
        super().__init__()
        if normalisation not in NORMALISATIONS:
            raise ValueError(
                f"normalisation is '{normalisation}': it must be one of "
                f"{', '.join(NORMALISATIONS)}."
            )
        self.input_channels, self.num_units = input_channels, num_units
        self.normalisation = normalisation
        self.register_buffer("mean", torch.zeros(input_channels))
        self.register_buffer("std", torch.ones(input_channels))

    @abstractmethod
    def encode(self, x):
        """Encodes frames, (..., channels), as codes, (..., units)."""

    @abstractmethod
    def decode(self, codes):
        """Decodes codes, (..., units), to frames, (..., channels)."""

    @abstractmethod
    def loss(self, x, *others):
        """Returns the BottleneckLoss of frames, and what belongs to them.

        Sparse codes take frames (rows, channels), and what they are trained
        with, if anything: `following`, the next frame of each row; `classes`,
        (rows,), below 0 where there is none; and the `generator` of the noise
        of a training step.
        """

    def forward(self, x):
        """Codes and decodes frames, (..., channels): see `Coded`."""
        codes = self.encode(x)
        return Coded(codes, self.decode(codes))

    def set_units(self, mean, std, norm=None):
        """Sets the units from statistics of the layer.

        Arguments
        ---------
        mean, std : torch.Tensor
            Of each channel, (channels,), over all frames.
        norm : float, optional
            E||x||, for "unit_norm"; by default the root mean square of ||x||,
            which mean and std determine.

        Raises
        ------
        ValueError
            If one is not finite, or no channel varies.
        """
        mean, std = (
            torch.as_tensor(mean).double(),
            torch.as_tensor(std).double(),
        )
        if not (mean.isfinite().all() and std.isfinite().all()):
            raise ValueError(
                "The mean or deviation of the layer is NaN or infinite: encode "
                "its corpus again, or train its encoder again."
            )
        varies = std > CONSTANT * mean.abs().clamp_min(CONSTANT)
        if not varies.any():
            raise ValueError(
                f"None of the layer's {len(std)} channels varies (zero "
                f"variance): choose another layer, or train its encoder again."
            )
        if self.normalisation == STANDARDISE:
            self.mean.copy_(mean)
            self.std.copy_(torch.where(varies, std, 1.0))
        elif self.normalisation == UNIT_NORM:
            norm = norm or (mean.square() + std.square()).sum().sqrt()
            self.std.fill_(float(norm) / len(mean) ** 0.5)

    def to_units(self, x):
        """Frames of the layer, (..., channels), in units."""
        return (x.to(self.std.dtype) - self.mean) / self.std

    def from_units(self, x):
        """Undoes `to_units`."""
        return x * self.std + self.mean

    def initialise(self, x):
        """Initialises what depends on a sample of frames, (rows, channels).

        Called once, after `set_units`.
        """

    def anneal(self, name, value):
        """Sets a number that changes over a run, such as a penalty's share."""
        if isinstance(getattr(self, name), torch.Tensor):
            getattr(self, name).fill_(value)
        else:
            setattr(self, name, value)

    def before_step(self):
        """Changes gradients, before a step of the optimizer."""

    def after_step(self):
        """Changes weights and counters, after a step of the optimizer."""


class CountingBottleneck(Bottleneck):
    """A Bottleneck that counts for how many frames each unit is not active.

    Arguments
    ---------
    input_channels, num_units, normalisation :
        See `Bottleneck`.
    dead_after : int
        Frames without activity after which a unit is dead.
    """

    def __init__(self, input_channels, num_units, normalisation, dead_after):
        super().__init__(input_channels, num_units, normalisation)
        self.dead_after = dead_after
        #: frames since each unit was active
        self.register_buffer("idle", torch.zeros(num_units, dtype=torch.long))
        self._rows, self._fired = 0, False

    def count(self, fired, rows):
        """Notes which units were active in so many rows, (units,), bool."""
        self._rows, self._fired = self._rows + rows, self._fired | fired

    def dead(self):
        """Which units were not active for `dead_after` frames, (units,)."""
        return self.idle >= self.dead_after

    @torch.no_grad()
    def after_step(self):
        """Counts idle frames."""
        if self._rows:
            self.idle += self._rows
            self.idle[self._fired] = 0
            self._rows, self._fired = 0, False


def check_rows(x, channels):
    """Raises a ValueError unless frames are finite, (rows, channels)."""
    if x.ndim != 2 or x.shape[1] != channels or not len(x):
        raise ValueError(
            f"Frames of shape {tuple(x.shape)} were given: (rows, {channels}) "
            f"are needed, and at least one row."
        )
    if not x.sum().isfinite():  # one pass; rows are looked for if need be
        bad = (~x.isfinite().all(1)).nonzero().flatten()
        if len(bad):
            raise ValueError(
                f"{len(bad)} of {len(x)} frames are NaN or infinite, the first "
                f"is row {int(bad[0])}: encode the corpus again, or train its "
                f"encoder again."
            )
