"""Random numbers that depend on names, not on history.

Every draw of a training run (noise, negatives, window, crop) comes from a
generator whose seed is a hash of its purpose. So a run that was killed and
resumed draws what it would have drawn, and freezing one module shifts no other
draw.
"""

import hashlib

import torch


def key_seed(*key):
    """Hashes a key, e.g. (seed, rank, module, epoch, step), into a seed.

    Below 2 ** 63; equal keys give equal seeds.

    Example
    -------
    >>> key_seed(1, 0, "module1", 3, 17) == key_seed(1, 1, "module1", 3, 17)
    False
    """
    text = "\x1f".join(str(part) for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@torch.compiler.disable  # a generator is made, not computed
def keyed_generator(*key, device="cpu"):
    """Makes a torch.Generator on a device, seeded by a key.

    Example
    -------
    >>> noise = torch.randn(2, generator=keyed_generator(7, "noise"))
    >>> torch.equal(noise, torch.randn(2, generator=keyed_generator(7, "noise")))
    True
    """
    return torch.Generator(device=device).manual_seed(key_seed(*key))
