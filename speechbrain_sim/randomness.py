"""Random numbers that depend on names, not on history.

The seed of every draw of a run (noise, negatives, window, crop) is a hash of its
purpose: a resumed run draws what it would have drawn, and freezing one module
shifts no other draw.
"""

import hashlib

import torch

from speechbrain_sim.extras import not_compiled


def key_seed(*key):
    """Hashes a key, e.g. (seed, rank, module, epoch, step): below 2 ** 63."""
    text = "\x1f".join(str(part) for part in key)
    text = text.encode(errors="surrogateescape")  # names of files
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


@not_compiled  # a generator is made, not computed
def keyed_generator(*key, device="cpu"):
    """Makes a torch.Generator on a device, seeded by a key.

    Example
    -------
    >>> noise = torch.randn(2, generator=keyed_generator(7, "noise"))
    >>> torch.equal(noise, torch.randn(2, generator=keyed_generator(7, "noise")))
    True
    """
    return torch.Generator(device=device).manual_seed(key_seed(*key))
