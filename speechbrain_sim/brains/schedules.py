"""Weights that change over a run: objects of the yaml, called every epoch."""


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
