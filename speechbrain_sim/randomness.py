"""Random numbers that depend on names, not on history.

Every draw of a training run (noise, negatives, window, crop) comes from a
generator whose seed is a hash of what the draw is for. So a run that was
killed and resumed draws what it would have drawn, and freezing one module
shifts nobody's draws.
"""

import hashlib

import torch


def key_seed(*key):
    """Hashes a key into a seed.

    Arguments
    ---------
    *key : str or int
        What the draw is for, e.g. (seed, rank, module, epoch, step).

    Returns
    -------
    int
        A seed below 2 ** 63; equal keys give equal seeds.

    Example
    -------
    >>> key_seed(1, 0, "module1", 3, 17) == key_seed(1, 0, "module1", 3, 17)
    True
    >>> key_seed(1, 0, "module1", 3, 17) == key_seed(1, 1, "module1", 3, 17)
    False
    """
    text = "\x1f".join(str(part) for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@torch.compiler.disable  # a generator is made, not computed
def keyed_generator(*key, device="cpu"):
    """Makes a generator that is seeded by a key.

    Arguments
    ---------
    *key : str or int
        What the draw is for.
    device : str or torch.device
        Where the numbers are drawn.

    Returns
    -------
    torch.Generator

    Example
    -------
    >>> noise = torch.randn(2, generator=keyed_generator(7, "noise"))
    >>> torch.equal(noise, torch.randn(2, generator=keyed_generator(7, "noise")))
    True
    """
    return torch.Generator(device=device).manual_seed(key_seed(*key))
