"""Checkpoints of other libraries, and ours for them."""

import pytest
import torch
from safetensors.torch import save_file

from speechbrain_sim.bottlenecks.published import (
    read_sparse_autoencoder,
    to_state_dict,
)
from tests.bottlenecks.test_sae import frames, made, train


def audiosae(channels=12, k=5):
    """Weights with the names and shapes of AudioSAE's files, drawn."""
    generator, units = torch.Generator().manual_seed(0), 8 * channels
    shapes = {
        "encoder.weight": (units, channels),
        "encoder.bias": (units,),
        "decoder.weight": (channels, units),
        "b_dec": (channels,),
    }
    state = {
        name: torch.randn(*shape, generator=generator)
        for name, shape in shapes.items()
    }
    return {**state, "k": torch.tensor(k, dtype=torch.int32)}


def products(state, x):
    """ReLU(W_e (x - b_dec) + b_e)."""
    a = (x - state["b_dec"]) @ state["encoder.weight"].T + state["encoder.bias"]
    return a.relu()


@pytest.mark.parametrize("threshold", [None, -1.0, 3.0])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_published_checkpoint(tmp_path, threshold, suffix):
    """Codes and reconstruction are those of the library's equations."""
    state, x = audiosae(), frames(50, 12)
    if threshold is not None:
        state["threshold"] = torch.tensor(threshold)
    path = tmp_path / f"ae{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    sae = read_sparse_autoencoder(path)
    acts = products(state, x)
    if threshold == 3.0:
        expected = acts * (acts > 3)
    else:
        top = acts.topk(5)
        expected = torch.zeros_like(acts).scatter(1, top.indices, top.values)
    codes, decoded = sae(x)
    assert not sae.training and codes.shape == (50, 96)
    close = {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(codes, expected, **close)
    expected = expected @ state["decoder.weight"].T + state["b_dec"]
    torch.testing.assert_close(decoded, expected, **close)


@pytest.mark.parametrize("variant", ["topk", "batchtopk", "matryoshka"])
def test_ours_for_others(tmp_path, variant):
    """Folded into the weights, the units of the layer make no difference."""
    sae, x = made(variant), frames(64)
    train(sae, x, 20)
    state = to_state_dict(sae)
    assert set(state) - {"threshold"} == set(audiosae())
    torch.save(state, tmp_path / "ae.pt")
    known = "topk" if variant == "topk" else "batchtopk"
    other = read_sparse_autoencoder(tmp_path / "ae.pt", known)
    torch.testing.assert_close(other.encode(x), sae.encode(x))
    torch.testing.assert_close(other(x).reconstruction, sae(x).reconstruction)


@pytest.mark.parametrize("variant", ["jumprelu", "l1"])
def test_what_no_other_library_codes_alike_is_refused(variant):
    with pytest.raises(ValueError, match=f"codes as {variant}: hand over"):
        to_state_dict(made(variant))


def test_bad_checkpoints(tmp_path):
    """What cannot be read is named, with what it holds."""
    path = tmp_path / "ae.pt"

    def refused(content, message):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            read_sparse_autoencoder(path)

    good = audiosae()
    refused({"W_enc": torch.zeros(3, 2)}, "ae.pt holds no sparse.*W_enc")
    refused([1, 2], "something else")
    refused({**good, "k": torch.tensor(97)}, "does not fit: k is 97, of 96")
    refused({**good, "b_dec": torch.zeros(3)}, "(?s)does not fit.*b_dec")
    refused({**good, "b_dec": torch.full((12,), torch.nan)}, "holds NaN")
    path.write_bytes(b"not a file of weights")
    with pytest.raises(ValueError, match="no file of weights"):
        read_sparse_autoencoder(path)
    with pytest.raises(FileNotFoundError):
        read_sparse_autoencoder(tmp_path / "none.pt")
