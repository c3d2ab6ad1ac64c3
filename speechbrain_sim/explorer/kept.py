"""Results that are kept for the next request, within a number of bytes."""

from collections import OrderedDict

import torch


class Kept:
    """Results of the last calls; the newest stays whatever its size.

    Used by one thread.

    Arguments
    ---------
    limit : int
        Bytes of all results.

    Example
    -------
    >>> kept = Kept(100)
    >>> [kept.get(name, name.upper) for name in "aab"], list(kept.results)
    (['A', 'A', 'B'], ['b'])
    """

    def __init__(self, limit):
        self.limit, self.results = limit, OrderedDict()

    def get(self, key, make):
        """Returns what `make()` returns, or returned for the same key."""
        if key not in self.results:
            made = make()
            self.results[key] = made, size_of(made)
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
    if isinstance(x, dict):
        return sum(map(size_of, x.values()))
    return 64 + sum(map(size_of, x)) if isinstance(x, (tuple, list)) else 64
