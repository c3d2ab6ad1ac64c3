"""An encoder as an upstream of s3prl, which itself is not needed here."""

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from speechbrain_sim.encoders.base import all_hidden_states
from speechbrain_sim.models.load import load_encoder


class UpstreamExpert(nn.Module):
    """What s3prl's featurizers and downstream tasks expect of an upstream.

    Means of the layers that are as wide as the first, brought to one frame
    rate, for a featurizer to weigh; not frozen, s3prl decides that.

    Arguments
    ---------
    ckpt : str
        A run or model folder, or `user/model` on the Hub, see
        `speechbrain_sim.models.load.load_encoder`.
    model_config : ignored
        The model brings its own.
    **kwargs : ignored
        What s3prl passes to every upstream.

    Example
    -------
    >>> from speechbrain_sim.models.format import example_folder
    >>> upstream = UpstreamExpert(example_folder(getfixture("tmp_path")))
    >>> states = upstream([torch.randn(8000), torch.randn(4000)])
    >>> [tuple(x.shape) for x in states["hidden_states"]]
    [(2, 50, 4), (2, 50, 4), (2, 50, 4)]
    >>> upstream.get_downsample_rates("hidden_states")
    160
    """

    def __init__(self, ckpt, model_config=None, **kwargs):
        super().__init__()
        self.encoder = load_encoder(ckpt)[0].requires_grad_(True)
        names = self.encoder.layer_names
        width = self.encoder.channels_of(names[0])
        self.layers = [n for n in names if self.encoder.channels_of(n) == width]
        self.encoder.freeze_unused(self.layers)

    def train(self, mode=True):
        """Sets the mode; the encoder stays in eval mode, whoever calls this.

        Batch norms keep their statistics; cuDNN wants GRUs in train mode for
        gradients, which changes no number.
        """
        super().train(mode)
        for module in self.encoder.modules():
            module.training = mode and isinstance(module, nn.RNNBase)
        return self

    def get_downsample_rates(self, key):
        """Returns the samples between two frames."""
        return max(self.encoder.frame_geometry(n)[0] for n in self.layers)

    def forward(self, wavs):
        """Encodes waveforms.

        `wavs` is a list of (samples,) at 16 kHz. Returns a dict:
        `hidden_states`, a list of (batch, time, channels), one per layer;
        `last_hidden_state`, the topmost of them.
        """
        lengths = torch.tensor([len(wav) for wav in wavs])
        wavs = pad_sequence(list(wavs), batch_first=True)
        states, _ = all_hidden_states(self.encoder, wavs, lengths, self.layers)
        return {"hidden_states": list(states), "last_hidden_state": states[-1]}
