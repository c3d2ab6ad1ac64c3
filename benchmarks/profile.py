"""Where the time of a training step goes, ours and the plain one's."""

import time
from collections import Counter
from statistics import median

from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.floor import step_flops
from benchmarks.measure import (
    PRODUCT_FLOPS,
    in_turn,
    matrix_product,
)
from benchmarks.systems import Ours, Plain, make_batch
from speechbrain_sim.report.tables import markdown_table

#: operators by what they do; all others are element-wise
KINDS = {
    "matrix products": {"mm", "addmm", "addmm_", "bmm", "baddbmm"},
    "convolutions": {"convolution", "convolution_backward"},
    "batch norm": {
        "native_batch_norm",
        "native_batch_norm_backward",
        "_native_batch_norm_legit",
    },
    "optimizer": {"_fused_adam_", "lerp_", "addcdiv_", "sqrt"},
    "random numbers": {"normal_", "randint", "random_"},
    "gathering and scattering": {
        "index_select",
        "index_add_",
        "index_add",
        "slice_backward",
    },
    "copies and fills": {
        "copy_",
        "clone",
        "cat",
        "stack",
        "fill_",
        "zero_",
        "zeros",
        "zeros_like",
        "new_zeros",
        "constant_pad_nd",
        "_to_copy",
    },
    "sums": {"sum", "mean"},
}


class Clock(TorchDispatchMode):
    """Adds up the seconds of every operator, by its name."""

    def __init__(self):
        super().__init__()
        self.seconds = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        """Times one operator."""
        started = time.perf_counter()
        result = operator(*args, **(kwargs or {}))
        name = operator.overloadpacket.__name__
        self.seconds[name] += time.perf_counter() - started
        return result


def _kind(operator):
    for kind, operators in KINDS.items():
        if operator in operators:
            return kind
    return "element-wise"


def profile(steps=5):
    """Milliseconds per step of each kind of work, as markdown.

    The clock itself takes time, too: the last line is the step without it.
    """
    ours = Ours("sim", make_batch(8, 10240))
    plain = Plain(ours)
    shares, times = {}, {}
    for name, step in (("ours", ours), ("plain", plain)):
        plain_times = in_turn({name: step}, steps, warm_up=3)
        times[name] = 1e3 * median(plain_times[name].wall)
        with Clock() as clock:
            for _ in range(steps):
                step()
        kinds = Counter()
        for operator, seconds in clock.seconds.items():
            kinds[_kind(operator)] += 1e3 * seconds / steps
        shares[name] = kinds
    rate = median(in_turn({"": matrix_product()}, 9)[""].wall)
    flops = step_flops(ours.model.encoder, ours.model.modules, 8, 10240)
    rows = []
    for kind in [*KINDS, "element-wise"]:
        rows.append([kind, *(f"{shares[n][kind]:.0f}" for n in shares)])
    whole = (f"{times[name]:.0f}" for name in shares)
    rows.append(["step, without this clock", *whole])
    return (
        "SIM step 8 × 10,240, 512 channels: milliseconds of each kind of work, "
        "memory kept (`python -m benchmarks.bench --only profile`). The floor "
        f"is {1e3 * rate * flops / PRODUCT_FLOPS:.0f} ms.\n\n"
        f"{markdown_table(['work', 'ours', 'plain way'], rows)}\n"
    )
