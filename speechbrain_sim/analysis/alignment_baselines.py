"""What aligned codes have to beat: others that learn classes, or other runs'."""

from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import cross_entropy, mse_loss

from speechbrain_sim.analysis.sparsity import SEED
from speechbrain_sim.bottlenecks.base import Bottleneck, BottleneckLoss
from speechbrain_sim.bottlenecks.sae import SparseAutoencoder
from speechbrain_sim.models.load import load_encoder
from speechbrain_sim.randomness import keyed_generator

#: their names
BASELINES = CLASSIFYING, LINEAR = "SAE with classifier", "linear probe"
#: what codes of a run with shuffled classes are called
SHUFFLED = "shuffled classes"
#: of the training of baselines
STEPS, ROWS, RATE = 400, 256, 2e-3


class LinearCode(Bottleneck):
    """W u + b, learned by a classifier of codes: a linear probe of this width.

    A gate is the logistic function of a code. The decoder is linear, and
    changes nothing in what is coded.
    """

    def __init__(self, input_channels, num_units, classes, generator):
        super().__init__(input_channels, num_units)
        self.encoder = nn.Linear(input_channels, num_units)
        self.decoder = nn.Linear(num_units, input_channels)
        for part in (self.encoder, self.decoder):
            bound = part.in_features**-0.5
            nn.init.uniform_(part.weight, -bound, bound, generator)
            nn.init.zeros_(part.bias)
        self.classifier = nn.Linear(num_units, classes)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def encode(self, x):
        """See `Bottleneck`."""
        return self.encoder(self.to_units(x))

    def decode(self, codes):
        """See `Bottleneck`."""
        return self.from_units(self.decoder(codes))

    def loss(self, x, following=None, classes=None, generator=None):
        """See `Bottleneck`: cross-entropy, and the error of the decoder."""
        z = self.encode(x)
        error = mse_loss(self.decoder(z.detach()), self.to_units(x))
        loss = cross_entropy(self.classifier(z), classes)
        return BottleneckLoss(error + loss, {})

    def posterior(self, x):
        """Returns gates, means and deviations (0) of frames, (rows, units)."""
        z = self.encode(x)
        return z.sigmoid(), z, torch.zeros_like(z)


def train_baseline(name, bottleneck, x, y, classes, k, seed=0):
    """Trains one of `BASELINES`, as wide as a bottleneck, in its units.

    The autoencoder's classifier is in the manner of ClassifSAE,
    https://arxiv.org/abs/2506.23951: see `SparseAutoencoder`.

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
    if name == LINEAR:
        code = LinearCode(*sizes, classes, noise)
    else:
        code = SparseAutoencoder(
            *sizes, k=k, num_classes=classes, generator=noise
        )
    code.mean.copy_(bottleneck.mean)
    code.std.copy_(bottleneck.std)
    code.initialise(x)
    optimizer = torch.optim.Adam(code.parameters(), RATE)
    for _ in range(STEPS):
        at = torch.randint(len(x), (ROWS,), generator=noise)
        loss = code.loss(x[at], classes=y[at]).total
        optimizer.zero_grad()
        loss.backward()
        code.before_step()
        optimizer.step()
        code.after_step()
    return code.eval().requires_grad_(False)


def open_beside(beside, encoder_sha256, layers):
    """Loads the codes of other runs of the same encoder.

    Arguments
    ---------
    beside : list of str
        Their folders.
    encoder_sha256, layers : str, list of str
        The encoder; layers whose codes are wanted.

    Returns
    -------
    bottlenecks, identities : (dict of str to Bottleneck, list of str)
        By names such as `module3.vsc, shuffled classes`, or `module3.sae,
        FOLDER`; and of the models.

    Raises
    ------
    ValueError
        If a run has another encoder, or no codes of these layers.
    """
    found, identities = {}, []
    for folder in beside:
        encoder, description = load_encoder(folder)
        there = {
            name: code
            for name, code in getattr(encoder, "bottlenecks", {}).items()
            if name.partition(".")[0] in layers
        }
        if description.get("encoder") != encoder_sha256 or not there:
            raise ValueError(
                f"--beside {folder} holds no codes of {', '.join(layers)} of "
                f"this encoder ({encoder_sha256:.12}): give runs of "
                f"recipes/bottleneck.py with the same --encoder and --layers."
            )
        for name, code in there.items():
            about = encoder.entries.get(name, {}).get("training", {})
            title = SHUFFLED if about.get("shuffled") else None
            stem = SEED.sub("", name)
            title = f"{stem}, {title or Path(folder).name}"
            found[title + name.removeprefix(stem)] = code
        identities.append(description["sha256"])
    return found, identities
