"""Distances between what is decoded and recorded: the decoders' losses."""

from torch import nn

from speechbrain_sim.encoders.base import to_device, zero_padding
from speechbrain_sim.encoders.logmel import LOGMEL, LogMel
from speechbrain_sim.extras import import_extra
from speechbrain_sim.spectrograms import (
    frames_of,
    log_mel,
    log_power,
    mel_filters,
)

#: of mel bands, in the loss of spectrograms
MEL_WEIGHT = 4.0
#: names of the sums of what is recorded, by mel band
BAND = "band_"


def mean_squared_error(decoded, wavs, lengths):
    """Mean of (decoded - recorded)^2 over the valid samples of a batch.

    Both are (batch, samples); `lengths` are valid samples, (batch,), integer.
    """
    error = zero_padding((decoded - wavs)[..., None], lengths)
    return error.square().sum() / lengths.sum()


def explained(sums):
    """Returns the mean squared error, and the share that is given back.

    1 - sum |S - S'|^2 / sum |S - m|^2, over all recordings at once, however
    they were batched: m is 0 for waveforms, so that it is of their energy; for
    log-mel it is the mean of each band in these recordings, so that it is of
    their variance.

    Arguments
    ---------
    sums : dict of str to float
        From `sums` of a loss, of each batch, added up or averaged.

    Returns
    -------
    dict
        `mse`, and `explained` unless all recordings are silent, or constant.

    Example
    -------
    >>> explained({"error": 1.0, "power": 12.0, "count": 4.0, "band_0": 4.0})
    {'mse': 0.25, 'explained': 0.875}
    """
    bands = [x for name, x in sums.items() if name.startswith(BAND)]
    error, power, count = (sums[name] for name in ("error", "power", "count"))
    of_means = sum(x * x for x in bands) * len(bands) / count
    found, variance = {"mse": error / count}, power - of_means
    if variance > 1e-6 * of_means:  # what float32 leaves of a constant
        found["explained"] = 1 - error / variance
    return found


def mel_distance(mel, decoded, wavs, lengths):
    """Mean difference of two log-mel spectrograms, in nepers.

    `mel` is a `LogMel`, the rest as for `mean_squared_error`.
    """
    ours, theirs = (mel(x, lengths)[LOGMEL] for x in (decoded, wavs))
    valid = theirs.lengths.sum() * theirs.mean.shape[-1]
    return (ours.mean - theirs.mean).abs().sum() / valid


class ReconstructionLoss(nn.Module):
    """A weighted sum of distances between decoded and recorded waveforms.

    loss = mse * MSE + stft * STFT + mel * MEL, where MSE is the paper's
    (section 4.1.3), STFT is auraloss's multi-resolution spectral loss (Yamamoto
    et al. 2020), and MEL is `mel_distance`. The arguments are the weights, float.

    Example
    -------
    >>> import torch
    >>> loss, wavs = ReconstructionLoss(mel=1.0), torch.randn(2, 4000)
    >>> loss(wavs, wavs, torch.tensor([4000, 3000])).item()
    0.0
    """

    def __init__(self, mse=1.0, stft=0.0, mel=0.0):
        super().__init__()
        weights = {"mse": mse, "stft": stft, "mel": mel}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(
                f"The weights of the reconstruction loss are {weights}: none "
                f"may be negative, one must be positive."
            )
        self.weights = weights
        self.stft, self.mel = None, LogMel() if mel else None
        if stft:
            auraloss = import_extra("auraloss.freq", "spectral")
            self.stft = auraloss.MultiResolutionSTFTLoss()

    def forward(self, decoded, wavs, lengths):
        """Scores a batch; see `mean_squared_error`."""
        pair, terms = (decoded, wavs), {}
        if self.weights["mse"]:
            terms["mse"] = mean_squared_error(*pair, lengths)
        if self.stft is not None:
            pads = [zero_padding(x[..., None], lengths) for x in pair]
            terms["stft"] = self.stft(*(x.transpose(1, 2) for x in pads))
        if self.mel is not None:
            terms["mel"] = mel_distance(self.mel, *pair, lengths)
        return sum(self.weights[name] * term for name, term in terms.items())

    def sums(self, decoded, wavs, lengths):
        """Sums over a batch what `explained` is of; 0-dimensional tensors."""
        pair = (decoded - wavs)[..., None], wavs[..., None]
        error, power = (zero_padding(x, lengths).square().sum() for x in pair)
        count = to_device(lengths.sum(), power.device).to(power)
        return {"error": error, "power": power, "count": count}


class SpectrogramLoss(nn.Module):
    """Distance of predicted spectrograms, in the bins and in mel bands.

    loss = mean |S - S'| + mel * mean |M - M'|, with S the log-power spectrogram
    and M the log-mel one, of the valid frames of a batch.

    Example
    -------
    >>> import torch
    >>> wavs, lengths = torch.randn(2, 4000), torch.tensor([4000, 3000])
    >>> SpectrogramLoss()(log_power(wavs, lengths), wavs, lengths).item()
    0.0
    """

    def __init__(self, mel=MEL_WEIGHT):
        super().__init__()
        self.weights = {"bins": 1.0, "mel": mel}
        self.register_buffer("filters", mel_filters(), persistent=False)

    def forward(self, predicted, wavs, lengths):
        """Scores a batch.

        `predicted` is (batch, frames, bins), the rest as for
        `mean_squared_error`.
        """
        pair, loss = (predicted, log_power(wavs, lengths)), 0.0
        mels = [log_mel(x, self.filters) for x in pair]
        for weight, (ours, theirs) in zip(
            self.weights.values(), (pair, mels), strict=True
        ):
            valid = frames_of(lengths).sum() * theirs.shape[-1]
            loss = loss + weight * (ours - theirs).abs().sum() / valid
        return loss

    def sums(self, predicted, wavs, lengths):
        """Sums over a batch what `explained` is of, in log-mel."""
        pair, frames = (predicted, log_power(wavs, lengths)), frames_of(lengths)
        ours, theirs = (
            zero_padding(log_mel(x, self.filters), frames) for x in pair
        )
        sums = {"error": (ours - theirs).square().sum()}
        sums["power"] = theirs.square().sum()
        count = to_device(frames.sum() * theirs.shape[-1], theirs.device)
        sums["count"] = count.to(theirs)
        bands = enumerate(theirs.sum((0, 1)))
        return sums | {f"{BAND}{number}": x for number, x in bands}
