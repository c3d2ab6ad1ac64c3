"""Sparse autoencoders of other people, read; and ours, for their tools."""

from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from speechbrain_sim.bottlenecks.base import NONE
from speechbrain_sim.bottlenecks.sae import (
    BATCHTOPK,
    BATCHWISE,
    JUMPRELU,
    L1,
    SparseAutoencoder,
)

#: what a checkpoint of another library holds at least
NAMES = {"encoder.weight", "encoder.bias", "decoder.weight", "b_dec", "k"}


def read_sparse_autoencoder(path, variant=BATCHTOPK):
    """Reads a checkpoint of `BatchTopKSAE` or `AutoEncoderTopK`.

    These are classes of the library dictionary_learning. AudioSAE's published
    files (arXiv:2602.05027; HuBERT and Whisper, layer_<n>/ae.pt) are of the
    first, of 8 times the layer's channels and k = 50; by their model cards they
    hold encoder.weight, encoder.bias, decoder.weight, b_dec and k. None of them
    was at hand: that is tested with a file of the same names and shapes. Not
    checked: whether a `threshold` lies in them, as dictionary_learning writes
    (without one, `encode` takes the k largest of each frame); and how frames
    are to be scaled: the paper's are L2-normalised, here no scale is assumed,
    which is for the caller to apply.

    Arguments
    ---------
    path : str or Path
        A file of torch.save, or of safetensors if its name ends so.
    variant : str
        "batchtopk", or "topk" for an `AutoEncoderTopK`.

    Returns
    -------
    SparseAutoencoder
        Frozen, in eval mode; `normalisation` is "none".

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or it holds something else.

    Example
    -------
    >>> path = getfixture("tmp_path") / "ae.pt"
    >>> torch.save(to_state_dict(SparseAutoencoder(8, 64, k=5)), path)
    >>> read_sparse_autoencoder(path, "topk")(torch.randn(3, 8)).codes.shape
    torch.Size([3, 64])
    """
    state = _read(path)
    weight, k = state.get("encoder.weight"), state.get("k", 0)
    if NAMES - state.keys() or getattr(weight, "ndim", 0) != 2:
        raise ValueError(
            f"{path} holds no sparse autoencoder with the names of BatchTopKSAE "
            f"({', '.join(sorted(NAMES))}), but "
            f"{', '.join(map(str, list(state)[:8])) or 'something else'}."
        )
    num_units, channels = weight.shape
    try:
        sae = SparseAutoencoder(channels, num_units, int(k), variant, NONE)
        own = sae.state_dict()
        if "threshold" not in own:  # an AutoEncoderTopK need not use its own
            state = {n: x for n, x in state.items() if n != "threshold"}
        sae.load_state_dict({**own, **state, "k": own["k"]})
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not fit: {error}") from error
    if not all(value.isfinite().all() for value in sae.state_dict().values()):
        raise ValueError(f"{path} holds NaN or infinity: download it again.")
    return sae.eval().requires_grad_(False)


def _read(path):
    """Reads a dict of tensors; an empty one if it is something else."""
    try:
        if Path(path).suffix == ".safetensors":
            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} is no file of weights ({error!r:.200}): download it again."
        ) from error
    return state if isinstance(state, dict) else {}


def to_state_dict(sae):
    """Returns weights that `AutoEncoderTopK` and `BatchTopKSAE` can load.

    The units of the layer are part of them: with m and s the mean and deviation
    of its channels, W_e / s, s W_d and s b_dec + m code and decode frames as they
    are. The columns of s W_d have no unit norm. A ValueError is raised for
    variants that these classes do not know.
    """
    if sae.variant in (JUMPRELU, L1):
        raise ValueError(
            f"Neither AutoEncoderTopK nor BatchTopKSAE codes as {sae.variant}: "
            f"hand over one of another variant."
        )
    state = {
        "encoder.weight": sae.encoder.weight / sae.std,
        "encoder.bias": sae.encoder.bias,
        "decoder.weight": sae.decoder.weight * sae.std[:, None],
        "b_dec": sae.from_units(sae.b_dec),
        "k": sae.k,
    }
    if sae.variant in BATCHWISE:
        state["threshold"] = sae.threshold
    return {name: x.detach().clone() for name, x in state.items()}
