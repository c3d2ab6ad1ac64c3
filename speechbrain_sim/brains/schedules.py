"""What changes over a run: objects of the yaml, called by the Brains.

They have no state, so that a run that is resumed needs none.
"""

import math


class LinearWarmup:
    """A share that rises linearly: min(1, epoch / epochs).

    Arguments
    ---------
    epochs : int
        The epoch, counted from 1, from which on the share is 1; 0 for always.

    Example
    -------
    >>> warmup = LinearWarmup(epochs=4)
    >>> [warmup(epoch) for epoch in (1, 2, 4, 5)]
    [0.25, 0.5, 1.0, 1.0]
    """

    def __init__(self, epochs):
        self.epochs = epochs

    def __call__(self, epoch):
        """Returns the share of an epoch, between 0 and 1."""
        return min(1.0, epoch / self.epochs) if self.epochs else 1.0


class Ramp:
    """A value that rises linearly, between two epochs.

    Arguments
    ---------
    epochs : list of float
        When it begins to rise, and when it has risen; epochs since the start.
    values : list of float
        Before, and after: at once, if the end is below 0.

    Raises
    ------
    ValueError
        Unless both are two numbers, the epochs in order.

    Example
    -------
    >>> ramp = Ramp([1, 3], [50, 200])
    >>> [ramp(epochs) for epochs in (0.5, 2, 9)]
    [50.0, 125.0, 200.0]
    """

    def __init__(self, epochs, values=(0, 1)):
        if len(epochs) != 2 or len(values) != 2 or 0 <= epochs[1] < epochs[0]:
            raise ValueError(
                f"Epochs {epochs} and values {values} are no ramp: give two of "
                f"each, the epochs in order."
            )
        self.epochs, self.values = epochs, values

    def __call__(self, epochs):
        """Returns the value after so many epochs."""
        (begin, end), (low, high) = self.epochs, self.values
        if epochs >= end:
            return float(high)
        return low + (high - low) * max(0.0, epochs - begin) / (end - begin)


class WarmupAndDecay:
    """A share of the learning rate: it rises linearly, then falls as a cosine.

    min(1, t / warmup) * (1 + cos(pi * min(1, t / decay))) / 2

    of the time t since the beginning, in epochs. Loshchilov, Hutter 2017,
    https://arxiv.org/abs/1608.03983, without restarts; the rise is that of
    Riviere et al. 2020, https://arxiv.org/abs/2002.02848.

    Arguments
    ---------
    warmup, decay : float
        Epochs of the rise, and until the rate is 0; 0 for none.

    Example
    -------
    >>> share = WarmupAndDecay(warmup=1, decay=10)
    >>> [round(share(t), 3) for t in (0.5, 1, 5, 10)]
    [0.497, 0.976, 0.5, 0.0]
    """

    def __init__(self, warmup=0, decay=0):
        self.warmup, self.decay = warmup, decay

    def __call__(self, epochs):
        """Returns the share, between 0 and 1, after so many epochs."""
        rise = min(1.0, epochs / self.warmup) if self.warmup else 1.0
        if not self.decay:
            return rise
        done = min(1.0, epochs / self.decay)
        return rise * (1 + math.cos(math.pi * done)) / 2


def check_decay(settings):
    """Raises a ValueError if epochs are left when the learning rate is 0."""
    decay, epochs = settings["lr_decay_epochs"], settings["number_of_epochs"]
    if 0 < decay < epochs:
        raise ValueError(
            f"The learning rate is 0 after --lr_decay_epochs {decay}, but "
            f"--number_of_epochs is {epochs}: give both alike. A run that has "
            f"begun, and decays, cannot be prolonged."
        )
