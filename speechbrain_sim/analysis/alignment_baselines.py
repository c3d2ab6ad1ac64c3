"""What aligned codes have to beat: codes of equal width that learn the classes.

Each has `posterior`, as variational sparse codes: its gates are scored alike.
"""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from speechbrain_sim.bottlenecks.base import Bottleneck
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.randomness import keyed_generator

#: their names
BASELINES = CLASSIFYING, LINEAR = "SAE with classifier", "linear probe"
#: of their training
STEPS, ROWS, RATE = 400, 256, 2e-3


class ClassifyingAutoencoder(SparseAutoencoder):
    """A sparse autoencoder whose codes a linear head classifies.

    The loss is that of `SparseAutoencoder`, plus cross-entropy: ClassifSAE,
    https://arxiv.org/abs/2506.23951. A gate is 1 where a unit fires, else 0.
    """

    def posterior(self, x):
        """Returns gates, means and deviations (0) of frames, (rows, units)."""
        z = self.encode(x)
        return (z > 0).to(z), z, torch.zeros_like(z)


class LinearCode(Bottleneck):
    """W u + b, learned by a classifier of codes: a linear probe of this width.

    A gate is the logistic function of a code. The decoder is linear, and
    changes nothing in what is coded.
    """

    def __init__(self, input_channels, num_units, generator):
        super().__init__(input_channels, num_units)
        self.encoder = nn.Linear(input_channels, num_units)
        self.decoder = nn.Linear(num_units, input_channels)
        for part in (self.encoder, self.decoder):
            bound = part.in_features**-0.5
            nn.init.uniform_(part.weight, -bound, bound, generator)
            nn.init.zeros_(part.bias)

    def encode(self, x):
        """See `Bottleneck`."""
        return self.encoder(self.to_units(x))

    def decode(self, codes):
        """See `Bottleneck`."""
        return self.from_units(self.decoder(codes))

    def loss(self, x, **_):
        """Returns the error of the decoder, and no terms."""
        decoded = self.decoder(self.encode(x).detach())
        return mse_loss(decoded, self.to_units(x)), {}

    def posterior(self, x):
        """Returns gates, means and deviations (0) of frames, (rows, units)."""
        z = self.encode(x)
        return z.sigmoid(), z, torch.zeros_like(z)


def train_baseline(name, bottleneck, x, y, classes, k, seed=0):
    """Trains one of `BASELINES`, as wide as a bottleneck, in its units.

    Arguments
    ---------
    name, bottleneck : str, Bottleneck
        Which, and as wide as what.
    x, y : torch.Tensor
        Training rows, (rows, channels), and their classes, (rows,), int64.
    classes, k, seed : int
        Number of classes; units that fire in a row, of the autoencoder; of the
        draws.

    Returns
    -------
    Bottleneck
    """
    sizes = bottleneck.input_channels, bottleneck.num_units
    noise = keyed_generator(seed, "baseline", name)
    if name == CLASSIFYING:
        code = ClassifyingAutoencoder(*sizes, k=k, generator=noise)
    else:
        code = LinearCode(*sizes, noise)
    code.mean.copy_(bottleneck.mean)
    code.std.copy_(bottleneck.std)
    code.initialise(x)
    head = nn.Linear(sizes[1], classes)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    weights = [*code.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(weights, RATE)
    for _ in range(STEPS):
        at = torch.randint(len(x), (ROWS,), generator=noise)
        error, _ = code.loss(x[at])
        loss = error + cross_entropy(head(code.encode(x[at])), y[at])
        optimizer.zero_grad()
        loss.backward()
        code.before_step()
        optimizer.step()
        code.after_step()
    return code.eval().requires_grad_(False)
