"""What is handed to a model in use: checked and made a batch."""

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from speechbrain_sim.encoders.base import absolute_lengths, zero_padding

#: peak of samples that are not within -1 and 1, whatever their gain
LOUDEST = 100.0


def as_tensor(name, x, axes):
    """Returns an array as a tensor; a ValueError if it has other axes.

    Example
    -------
    >>> as_tensor("z", np.zeros((2, 3)), ["time", "channel"]).dtype
    torch.float64
    """
    expected = f"{name} must be ({', '.join(axes)})"
    try:
        if not isinstance(x, torch.Tensor):
            array = np.array(x)
            # torch has neither other byte orders nor longer floats
            odd = array.itemsize > 8 or not array.dtype.isnative
            if odd and array.dtype.kind == "f":
                array = array.astype(float)
            x = torch.from_numpy(array)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{expected}, a tensor or an array; got {x!r:.80}. Files go to "
            f"encode_file, or to features."
        ) from error
    if x.dim() != len(axes):
        remedy = f"pass a single one as {name}[None], and average channels"
        raise ValueError(f"{expected}; got shape {list(x.shape)}: {remedy}.")
    return x


def as_batch(wavs, wav_lens=None):
    """Makes a batch of waveforms, zero beyond each utterance.

    Arguments
    ---------
    wavs : torch.Tensor, numpy.ndarray, or list of them
        (batch, samples), or a list of (samples,), to be padded.
    wav_lens : torch.Tensor, optional
        See `absolute_lengths`.

    Returns
    -------
    wavs, lengths : (torch.Tensor, torch.Tensor)
        (batch, samples), and samples of each, (batch,). A ValueError if there
        are none, they are not floating, or far from being within -1 and 1.

    Example
    -------
    >>> wavs, lengths = as_batch([np.zeros(100), np.zeros(80)])
    >>> wavs.shape, lengths.tolist()
    (torch.Size([2, 100]), [100, 80])
    """
    if isinstance(wavs, (list, tuple)) and len(wavs):
        rows = [as_tensor("wav", wav, ["samples"]) for wav in wavs]
        if wav_lens is not None:
            raise ValueError("A list of waveforms is padded here: no wav_lens.")
        wav_lens = torch.tensor([len(row) for row in rows])
        # one that is not floating is refused below
        first = next((x for x in rows if not x.is_floating_point()), rows[0])
        wavs = pad_sequence([row.to(first) for row in rows], batch_first=True)
    wavs = as_tensor("wavs", wavs, ["batch", "samples"])
    if not wavs.is_floating_point():
        raise ValueError(
            f"wavs must be floating, within -1 and 1; got {wavs.dtype}: "
            f"divide by its range, int16 as wavs / 32768."
        )
    if not wavs.numel():
        raise ValueError(f"wavs is empty, of the shape {list(wavs.shape)}.")
    lengths = absolute_lengths(wavs, wav_lens)
    wavs = zero_padding(wavs[..., None], lengths)[..., 0]
    for i, peak in enumerate(wavs.abs().amax(1).tolist()):
        if not peak <= LOUDEST:  # also if there is a NaN
            raise ValueError(
                f"Utterance {i} of wavs reaches {peak:g}: samples are finite, "
                f"within -1 and 1; divide those of 16 bits by 32768."
            )
    return wavs, lengths
