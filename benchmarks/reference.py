"""The plain way to train SIM and GIM: what the bench measures against.

Textbook PyTorch, written from the equations: `torch.nn.Conv1d` modules,
negatives copied out for the full sequence, one matrix product per k, the losses
of all modules added up, one backward, one step of one optimizer. It shares the
random choices with the library (`draw_negatives` and the keyed noise), so that
both must give the same numbers.
"""

import torch
from torch import nn

from speechbrain_sim.objectives.info_nce import draw_negatives, draw_window
from speechbrain_sim.randomness import keyed_generator


class PlainConvModule(nn.Module):
    """Convolutions with ReLU, and the heads; names as in the library."""

    def __init__(
        self, in_channels, channels, sizes, strides, paddings, sim, norm
    ):
        super().__init__()
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for size, stride, padding in zip(sizes, strides, paddings, strict=True):
            self.convs.append(
                nn.Conv1d(in_channels, channels, size, stride, padding)
            )
            if norm:
                self.norms.append(nn.BatchNorm1d(channels))
            in_channels = channels
        self.mean = nn.Linear(channels, channels)
        self.log_var = nn.Linear(channels, channels) if sim else None

    def forward(self, x):
        """(batch, in_channels, time) -> mean, log_var (batch, time, channel)."""
        for i, conv in enumerate(self.convs):
            x = conv(x)
            if self.norms:
                x = self.norms[i](x)
            x = torch.relu(x)
        x = x.transpose(1, 2)
        return self.mean(x), None if self.log_var is None else self.log_var(x)


class PlainInfoNCE(nn.Module):
    """One matrix W_k per step ahead."""

    def __init__(self, z_channels, c_channels, steps, negatives, window):
        super().__init__()
        self.weights = nn.ModuleList(
            nn.Linear(c_channels, z_channels, bias=False) for _ in range(steps)
        )
        self.negatives, self.window = negatives, window

    def forward(self, c, z, choices):
        """Mean over k of the mean cross-entropy of the positives."""
        batch, time, channels = z.shape
        lengths = torch.full((batch,), time)
        start, frames = draw_window(time, self.window, choices)
        # of all frames, though only those of the window will be read
        indices = torch.randint(batch * time, (batch, time, self.negatives))
        indices[:, start : start + frames] = draw_negatives(
            lengths, time, frames, self.negatives, generator=choices
        )
        candidates = z.reshape(-1, channels).index_select(0, indices.flatten())
        candidates = candidates.view(batch, time, self.negatives, channels)
        window = slice(start, start + frames)
        c, positives, candidates = (
            c[:, window],
            z[:, window],
            candidates[:, window].contiguous(),
        )
        losses = []
        for k, weight in enumerate(self.weights, 1):
            predicted = weight(c)  # (batch, frames, channel)
            positive = (predicted[:, :-k] * positives[:, k:]).sum(-1)
            negative = (candidates @ predicted[..., None])[:, :-k, :, 0]
            scores = torch.cat([positive[..., None], negative], dim=-1)
            losses.append(-torch.log_softmax(scores, dim=-1)[..., 0].mean())
        return sum(losses) / len(losses)


class PlainSIM(nn.Module):
    """The whole stack with its losses.

    Arguments
    ---------
    encoder : GreedyEncoder
        Whose shapes and weights it takes over.
    modules : dict of str to ContrastiveModule
        Whose objectives it takes over.
    """

    def __init__(self, encoder, modules):
        super().__init__()
        config = encoder.arguments
        self.layers, self.losses = nn.ModuleDict(), nn.ModuleDict()
        self.kl_weights, self.reductions = {}, {}
        in_channels = 1
        for name, module in modules.items():
            if encoder.predicts_input(name):
                width = config["context_channels"]
                self.layers[name] = nn.GRU(in_channels, width, batch_first=True)
                state = encoder.layers[name].gru.state_dict()
            else:
                m, width = len(self.layers), config["channels"]
                self.layers[name] = PlainConvModule(
                    in_channels,
                    width,
                    config["kernel_sizes"][m],
                    config["strides"][m],
                    config["paddings"][m],
                    config["probabilistic"],
                    config["batch_norm"],
                )
                in_channels = width
                state = encoder.layers[name].state_dict()
                self.kl_weights[name] = module.kl_weights[name]
            self.layers[name].load_state_dict(state)
            objective = module.smooth_info_nce
            self.reductions[name] = objective.kl_reduction
            self.losses[name] = PlainInfoNCE(
                in_channels,
                width,
                objective.prediction_steps,
                objective.num_negatives,
                objective.window_frames,
            )
            parts = objective.predictor.weight.chunk(objective.prediction_steps)
            for weight, part in zip(
                self.losses[name].weights, parts, strict=True
            ):
                weight.weight.data.copy_(part)

    def forward(self, wavs, key):
        """Loss of every module: dict of str to scalar tensor."""
        x, losses = wavs[..., None], {}
        for name, layer in self.layers.items():
            noise = keyed_generator(*key(name), "noise")
            choices = keyed_generator(*key(name), "negatives")
            if isinstance(layer, nn.GRU):
                c, _ = layer(x)
                losses[name] = self.losses[name](c, x, choices)
                continue
            mean, log_var = layer(x.transpose(1, 2))
            if log_var is None:
                losses[name] = self.losses[name](mean, mean, choices)
                x = mean.detach()
                continue
            sigma = torch.exp(0.5 * log_var)
            z = mean + sigma * torch.empty_like(mean).normal_(generator=noise)
            # the library draws c for the window only; so must this, to draw
            # the same numbers
            start, frames = draw_window(
                z.shape[1],
                self.losses[name].window,
                keyed_generator(*key(name), "negatives"),
            )
            c_noise = torch.empty(len(z), frames, z.shape[2])
            c_noise = nn.functional.pad(
                c_noise.normal_(generator=noise),
                (0, 0, start, z.shape[1] - start - frames),
            )
            c = mean + sigma * c_noise
            kl = 0.5 * (torch.exp(log_var) + mean**2 - 1 - log_var)
            if self.reductions[name] == "time":
                kl = kl.sum(1).mean()
            else:
                kl = kl.sum(2).mean()
            nce = self.losses[name](c, z, choices)
            losses[name] = nce + self.kl_weights[name] * kl
            x = z.detach()
        return losses


def train_step(model, optimizer, wavs, key):
    """One step; returns the losses as floats."""
    losses = model(wavs, key)
    sum(losses.values()).backward()
    optimizer.step()
    optimizer.zero_grad()
    return {name: loss.item() for name, loss in losses.items()}
