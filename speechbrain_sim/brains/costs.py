"""What modules cost: measured in a few steps, and extrapolated."""

import copy
import time
from functools import lru_cache
from typing import NamedTuple

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.encoders.layers import run_layers
from speechbrain_sim.randomness import keyed_generator

#: steps that are timed, after one that is counted
TIMED = 2


def _in_place(_, a, b, out_shape=None, **scales):
    """Operations of `c.addmm_(a, b)`, which torch's counter leaves out."""
    return 2 * a[0] * a[1] * b[1]


IN_PLACE = {torch.ops.aten.addmm_: _in_place}


class Cost(NamedTuple):
    """What one module takes for one batch.

    Exact: bytes of `weights` (with buffers), `gradients`, state of the
    `optimizer`, `activations` kept for backward, and those `sent` to the module
    above; `flops` of matrix products, forward and backward. Measured: seconds
    of `forward` (encoding only), and of a `step`.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    sent: int
    flops: int
    forward: float
    step: float


def measure(modules, opt_class, batch, samples, device="cpu"):
    """Trains copies of modules, one at a time, on noise for a few steps.

    In float32, whatever the run's `precision`.

    Arguments
    ---------
    modules : dict of str to GreedyModule
        Bottom first; they stay as they are.
    opt_class : function
        Makes an optimizer of parameters.
    batch, samples : int
        Shape of the waveforms.
    device : str
        Where to compute.

    Returns
    -------
    dict of str to Cost

    Example
    -------
    >>> from speechbrain_sim.family import build_model
    >>> modules = build_model(channels=8, context_channels=4).modules
    >>> costs = measure(modules, torch.optim.Adam, 2, 10240)
    >>> costs["module1"].sent == 2 * 511 * 8 * 4
    True
    """
    noise = keyed_generator("plan", device=device)
    x = torch.randn(batch, samples, 1, generator=noise, device=device)
    lengths, costs = torch.full((batch,), samples), {}
    for name, module in modules.items():
        costs[name], x, lengths = _cost(name, module, opt_class, x, lengths)
    return costs


def _cost(name, module, opt_class, x, lengths):
    """Measures one module; returns its output, too. Its copy ends here."""
    module = copy.deepcopy(module).to(x.device).train()
    optimizer = opt_class(module.parameters())
    saved, own = {}, {_place(p) for p in module.parameters()}

    def keep(tensor):
        if _place(tensor) not in own:
            saved[_place(tensor)] = tensor.untyped_storage().nbytes()
        return tensor

    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            output = module(x, lengths, ("plan", name))
        output.loss.backward()
    gradients = _bytes(p.grad for p in module.parameters())
    optimizer.step()
    state = (s for of in optimizer.state.values() for s in of.values())
    sizes = _bytes(module.state_dict().values()), gradients, _bytes(state)
    above = output.x.detach()
    kept = sum(saved.values()), above.nbytes, counter.get_total_flops()
    seconds = _seconds(module, optimizer, x, lengths, name)
    return Cost(*sizes, *kept, *seconds), above, output.lengths


def _seconds(module, optimizer, x, lengths, name):
    """Times encoding, and whole steps."""
    forward = step = 0.0
    for number in range(TIMED):
        begin = _now(x.device)
        with torch.no_grad():
            dict(run_layers(module.eval().layers, x, lengths))
        middle = _now(x.device)
        module.train()
        module(x, lengths, ("plan", name, number)).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        forward, step = forward + middle - begin, step + _now(x.device) - middle
    return forward / TIMED, step / TIMED


def _now(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _place(tensor):
    return tensor.untyped_storage().data_ptr()


def _bytes(tensors):
    return sum(x.nbytes for x in tensors if torch.is_tensor(x))


def balance(costs, stages):
    """Divides numbers, in order, so that the largest sum is smallest.

    Returns the lengths of the parts.

    Example
    -------
    >>> balance([81, 35, 12, 6], 2), balance([1, 1, 1, 1, 4], 3)
    ((1, 3), (1, 3, 1))
    """

    @lru_cache(None)
    def best(first, parts):
        if parts == 1:
            return sum(costs[first:]), (len(costs) - first,)
        found = []
        for size in range(1, len(costs) - first - parts + 2):
            largest, sizes = best(first + size, parts - 1)
            here = sum(costs[first : first + size])
            found.append((max(here, largest), (size, *sizes)))
        return min(found)

    return best(0, stages)[1]


class Mesh(NamedTuple):
    """Stages, each on as many replicas.

    `modules` names those of each stage; `memory` is that of each of its ranks,
    bytes, and `sent` leave it in a step; a `ceiling` is replicas * sum / max of
    the seconds of a step: how many times as fast as one process, at best.
    """

    replicas: int
    modules: list
    memory: list
    sent: list
    ceiling: float


def meshes(costs, ranks):
    """Lists the rectangular meshes of ranks: a Mesh for each number of stages.

    `costs` is what `measure` returns.
    """
    names, seconds = list(costs), [cost.step for cost in costs.values()]
    found = []
    for stages in range(1, min(ranks, len(costs)) + 1):
        if ranks % stages:
            continue
        parts, first = [], 0
        for size in balance(seconds, stages):
            parts.append(names[first : first + size])
            first += size
        # modules learn in turn: what backward needs is freed between them
        memory = [
            sum(costs[n].weights + costs[n].optimizer for n in part)
            + max(costs[n].gradients + costs[n].activations for n in part)
            for part in parts
        ]
        sent = [costs[part[-1]].sent for part in parts[:-1]]
        most = ranks // stages * ceiling(costs, parts)
        found.append(Mesh(ranks // stages, parts, memory, sent, most))
    return found


def ceiling(costs, stages):
    """Returns sum / max of the seconds of stages, lists of modules."""
    seconds = [sum(costs[name].step for name in part) for part in stages]
    return sum(seconds) / max(seconds)


def latent_bytes(encoder, layer, half=True):
    """Returns the bytes of an hour of a layer's means and log-variances.

    Example
    -------
    >>> from speechbrain_sim.encoders.greedy import GreedyEncoder
    >>> latent_bytes(GreedyEncoder(), "module1") / 1e9
    5.89824
    """
    frames = 3600 * SAMPLE_RATE / encoder.frame_geometry(layer)[0]
    arrays = 1 + encoder.has_posterior(layer)
    return frames * encoder.channels_of(layer) * arrays * (2 if half else 4)
