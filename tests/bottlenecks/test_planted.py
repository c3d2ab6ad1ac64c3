"""Every variant finds a planted dictionary."""

import pytest
import torch
from torch.nn.functional import normalize

from speechbrain_sim.bottlenecks.sae import VARIANTS, SparseAutoencoder

CHANNELS, ATOMS, ACTIVE, NOISE = 64, 256, 4, 0.01
ROWS, STEPS = 512, {"l1": 600, "jumprelu": 400, "matryoshka": 400}


@pytest.fixture(scope="module")
def planted():
    """Atoms, frames, and next frames, which share half of their atoms."""
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator}
    atoms = normalize(torch.randn(ATOMS, CHANNELS, **draw))

    def mixed(units):
        z = torch.zeros(len(units), ATOMS)
        z.scatter_(1, units, 0.5 + torch.rand(units.shape, **draw))
        noise = torch.randn(len(units), CHANNELS, **draw)
        return z @ atoms + NOISE * noise

    units = torch.rand(40000, ATOMS, **draw).topk(ACTIVE).indices
    half = units[:, : ACTIVE // 2]
    other = torch.rand(40000, ATOMS, **draw).topk(ACTIVE // 2).indices
    return atoms, mixed(units), mixed(torch.cat([half, other], 1))


def found(sae, atoms):
    """The mean, over atoms, of the largest cosine with a column."""
    columns = normalize(sae.decoder.weight.T * sae.std)
    return (columns @ atoms.T).amax(0).mean().item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_planted_dictionary(planted, variant):
    """A mean largest cosine above 0.9; far less before training."""
    atoms, x, after = planted
    generator = torch.Generator().manual_seed(1)
    sae = SparseAutoencoder(
        *(CHANNELS, ATOMS, ACTIVE, variant),
        dead_after=20 * ROWS,
        generator=generator,
    )
    sae.set_units(x.mean(0), x.std(0))
    sae.initialise(x[:4000])
    assert found(sae, atoms) < 0.5
    optimizer = torch.optim.Adam(sae.parameters())
    steps = STEPS.get(variant, 300)
    for step in range(steps):
        left = 1 - step / steps
        optimizer.param_groups[0]["lr"] = 0.01 * min(1, left / 0.3)
        sae.sparsity_scale = min(1, step / (0.3 * steps))
        rows = torch.randint(len(x), (ROWS,), generator=generator)
        paired = (after[rows],) if variant == "temporal" else ()
        optimizer.zero_grad()
        sae.loss(x[rows], *paired).total.backward()
        sae.before_step()
        optimizer.step()
        sae.after_step()
    assert found(sae, atoms) > 0.9
    explained = 1 - sae.eval().loss(x[:4000]).terms["fvu"]
    assert explained > 0.7
