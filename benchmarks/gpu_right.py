"""Part one on a GPU: it computes what the CPU computes, without waiting."""

import contextlib
import warnings
from collections import Counter
from functools import partial
from pathlib import Path
from statistics import median
from unittest import mock

import torch

from benchmarks.systems import TRAIN, Decoding, Ours, make_batch
from speechbrain_sim.data.labels import num_labels
from speechbrain_sim.encoders.base import Latent
from speechbrain_sim.objectives import greedy
from speechbrain_sim.randomness import keyed_generator

YAMLS = Path(__file__).resolve().parent.parent / "hparams/ArtificialSpeech"
#: largest relative differences: of losses and of most gradients in fp32, of
#: all losses and gradients in float64
TOLERANCE, EXACT = 1e-4, 1e-9
#: a step of training: model, shape of the batch, changes of the model
STEPS = {
    "SIM": ("sim", {}, {}),
    "SIM, padding": ("sim", {"shorter": 1000}, {}),
    "GIM, batch norm, padding": (
        "gim",
        {"shorter": 1000},
        {"batch_norm": True},
    ),
    "CPC": ("cpc", {}, {}),
    "supervised, frames": (
        "supervised",
        {"shorter": 1000, "labels": num_labels},
        {"classes": 3, "per_frame": True},
    ),
}
#: --precision of a Brain, and whether fp32 products are made in TF32
PRECISIONS = {
    "fp32": ("fp32", False),
    "tf32": ("fp32", True),
    "bf16": ("bf16", True),
    "fp16": ("fp16", True),
}


@contextlib.contextmanager
def precision_of(name):
    """Allows TF32, or not; yields the Brain's `precision`."""
    flags = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [flag.allow_tf32 for flag in flags]
    precision, allowed = PRECISIONS[name]
    for flag in flags:
        flag.allow_tf32 = allowed
    try:
        yield precision
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def sizes(chosen):
    """Returns the model's width and the clips of a batch."""
    if chosen.toy:
        return {"channels": 16, "context_channels": 8}, 2
    return {}, 4


def _draw_on_cpu(latent, generator=None):
    """As `Latent.draw`, with the CPU's noise on any device."""
    if latent.log_var is None:
        return latent.mean
    noise = torch.empty(latent.mean.shape).normal_(generator=generator)
    sigma = torch.exp(0.5 * latent.log_var)
    return torch.addcmul(latent.mean, sigma, noise.to(latent.mean))


def _on_cpu(*key, device="cpu"):
    return keyed_generator(*key)


def losses_and_gradients(name, batch, changes, device, dtype=torch.float32):
    """One step from the same weights, with the CPU's draws, without TF32."""
    ours, kept = Ours(name, batch, {"device": device}, **changes), {}
    ours.brain.modules.to(dtype)

    def keep(module):
        for key, weight in ours.brain.modules[module].named_parameters():
            if weight.grad is not None:
                kept[f"{module}.{key}"] = weight.grad.cpu()
                weight.grad = None

    with (
        mock.patch.object(Latent, "draw", _draw_on_cpu),
        mock.patch.object(greedy, "keyed_generator", _on_cpu),
        mock.patch.object(ours.brain, "step_module", keep),
        precision_of("fp32"),
    ):
        ours()
    return ours.losses(), kept


def compare_with_cpu(chosen):
    """Losses and gradients of a step against the CPU's: a row for each step."""
    return {title: partial(_compare, chosen, title) for title in STEPS}


def _compare(chosen, title, rows=()):
    """Compares in fp32 and in float64.

    Where the input of a ReLU is zero within the rounding of fp32, two devices
    may fall on different sides, which moves some gradients by percents: the CPU
    differs from its own float64 as much. Batch norm puts many inputs there. So
    fp32 is judged by losses and by most gradients, float64 by all.
    """
    width, clips = sizes(chosen)
    name, shape, changes = STEPS[title]
    changes, row = {**width, **changes}, {"step": title}
    for dtype in (torch.float32, torch.float64):
        batch = make_batch(clips, 10240, **shape, dtype=dtype)
        cpu, gpu = (
            losses_and_gradients(name, batch, changes, device, dtype)
            for device in ("cpu", chosen.device)
        )
        apart = [abs(gpu[0][n] - x) / abs(x) for n, x in cpu[0].items()]
        gradients = differences(cpu[1], gpu[1])
        worst = max(gradients, key=gradients.get)
        if dtype == torch.float32:
            middle = median(gradients.values())
            right = max(*apart, middle) < TOLERANCE
            row |= {"fp32: losses": max(apart), "median gradient": middle}
            row["worst gradient"] = gradients[worst]
        else:
            right = right and max(*apart, gradients[worst]) < EXACT
            row |= {"float64: losses": max(apart)}
            row |= {"all gradients": gradients[worst], "worst": worst}
    return row | {"right": right}


def differences(expected, found):
    """Largest difference of each gradient, relative to its largest entry.

    Or to a hundredth of the module's largest: a bias before a batch norm has no
    gradient but rounding.
    """
    largest = {}
    for key, g in expected.items():
        module = key.split(".layers.")[0].split(".smooth")[0]
        largest[module] = max(largest.get(module, 0), float(g.abs().max()))
    relative = {}
    for key, g in expected.items():
        module = key.split(".layers.")[0].split(".smooth")[0]
        scale = max(float(g.abs().max()), 0.01 * largest[module])
        relative[key] = float((found[key] - g).abs().max()) / scale
    return relative


def compare_draws(chosen):
    """Which random numbers a GPU shares with the CPU."""
    key, rows = (1, 0, "module1", 1, 1), []
    noise = [
        torch.empty(1000, device=chosen.device).normal_(
            generator=keyed_generator(*key, "noise", device=chosen.device)
        )
        for _ in range(2)
    ]
    rows.append({"draw": "noise, same key", "equal": torch.equal(*noise)})
    cpu = torch.empty(1000).normal_(generator=keyed_generator(*key, "noise"))
    equal = torch.equal(cpu, noise[0].cpu())
    words = "yes" if equal else "no, as expected: other generators"
    rows.append({"draw": "noise, GPU and CPU", "equal": words})
    kept, draw = {}, greedy.SmoothInfoNCE.draw

    def keep(self, *arguments):
        kept.setdefault(device, []).append(draw(self, *arguments))
        return kept[device][-1]

    batch = make_batch(3, 10240, shorter=1000)
    with mock.patch.object(greedy.SmoothInfoNCE, "draw", keep):
        for device in ("cpu", chosen.device):
            kept[device] = []
            Ours("sim", batch, {"device": device}, **sizes(chosen)[0])()
    pairs = list(zip(kept["cpu"], kept[chosen.device], strict=True))
    same = [a[:2] == b[:2] for a, b in pairs]
    same += [torch.equal(a[2].cpu(), b[2].cpu()) for a, b in pairs]
    rows.append({"draw": "windows and negatives, GPU and CPU"})
    rows[-1]["equal"] = all(same)
    return rows


def _waits(step, repetitions=2):
    """Where a step waits for the GPU: {place: times per step}."""
    step()
    step()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(repetitions):
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    places = Counter(
        "/".join(w.filename.split("/")[-2:]) + f":{w.lineno}"
        for w in caught
        if "synchroniz" in str(w.message)
    )
    return {place: count / repetitions for place, count in places.items()}


def find_waits(chosen):
    """Waits per training step, of each system in each precision."""
    rows, (width, clips) = [], sizes(chosen)
    systems = {
        title: partial(Ours, name, make_batch(clips, 10240, **shape))
        for title, (name, shape, changes) in STEPS.items()
    }
    systems |= {
        f"decoder of {layer}": partial(Decoding, layer, make_batch(2, 10240))
        for layer in ("module1", "module3")
    }
    for title, system in systems.items():
        changes = STEPS.get(title, (0, 0, {}))[2]
        for name in ("tf32", "bf16", "fp16"):
            with precision_of(name) as precision:
                run_opts = {"device": chosen.device, "precision": precision}
                step = system(run_opts=run_opts, **width, **changes)
                step.batch.pin_memory()  # as the loader has done
                found = _waits(step)
            places = ", ".join(f"{k} {v:g}x" for k, v in found.items())
            row = {"step": title, "precision": name}
            row |= {"waits": sum(found.values()), "where": places}
            rows.append({**row, "none": not found})
    return rows


def train_briefly(chosen):
    """Losses after some steps from the same weights: a row per precision."""
    names = ("fp32", "bf16", "tf32", "fp16")
    names = names[: 2 if chosen.device == "cpu" else 4]
    return {name: partial(_train_briefly, chosen, name) for name in names}


def _train_briefly(chosen, name, rows):
    width, clips = sizes(chosen)
    batch = make_batch(2 * clips, 10240)
    # something to learn: a tone, whose pitch differs
    time = torch.arange(10240) / 16000
    for number, wav in enumerate(batch.sig.data):
        wav += torch.sin(2 * torch.pi * (200 + 100 * number) * time)
    with precision_of(name) as precision:
        run_opts = {"device": chosen.device, "precision": precision}
        ours = Ours("sim", batch, run_opts, **width)
        losses = []
        for steps in (1, 10 if chosen.toy else 80, 5):
            ours.brain.read()
            ours.brain.averages[TRAIN].clear()
            for _ in range(steps):
                ours()
            losses.append(sum(ours.losses().values()))
        scale = float(ours.brain.scaler.get_scale())
    first, _, last = losses
    row = {"precision": name, "first loss": first, "loss": last}
    fp32 = next((x["loss"] for x in rows if x["precision"] == "fp32"), last)
    row |= {"from fp32": abs(last - fp32) / abs(fp32), "scale": scale}
    return row | {"right": last < first and row["from fp32"] < 0.05}


def resume(chosen, results):
    """Compares the encoders of a run in one go, and of one that was stopped."""
    import pretrain

    width = ["--channels", "64", "--context_channels", "32"]
    if chosen.toy:
        width = ["--channels", "8", "--context_channels", "8"]
    rows = []
    ways = [("deterministic", True), ("as it comes", False)]
    for title, exact in ways[:1] if chosen.toy else ways:
        hashes, weights = {}, {}
        torch.use_deterministic_algorithms(exact, warn_only=True)
        for run, epochs in (("whole", [2]), ("stopped", [1, 2])):
            folder = results.work / f"resume/{title[:3]}_{run}"
            for number in epochs:
                pretrain.main(
                    [f"{YAMLS}/pretrain.yaml", *width]
                    + ["--data_folder", str(chosen.data)]
                    + ["--output_folder", str(folder)]
                    + ["--manifest_folder", f"{results.work}/manifests"]
                    + ["--batch_size", "4" if chosen.toy else "64"]
                    + ["--number_of_epochs", str(number)]
                    + ["--num_workers", "0", "--noprogressbar"]
                    + ["--device", chosen.device]
                )
            from safetensors.torch import load_file

            from speechbrain_sim.files import sha256

            path = folder / "encoder.safetensors"
            hashes[run], weights[run] = sha256(path), load_file(path)
        torch.use_deterministic_algorithms(False)
        one, two = weights.values()
        apart = max(float((one[k] - two[k]).abs().max()) for k in one)
        rows.append({"algorithms": title, "largest difference": apart})
        same = len(set(hashes.values())) == 1
        rows[-1]["same bits"] = same if exact else ("yes" if same else "no")
    return rows


def right(results, chosen):
    """Measures part one."""
    measure = partial(results.measure, "right")
    measure("Losses and gradients", lambda: compare_with_cpu(chosen))
    measure("Random draws", lambda: compare_draws(chosen))
    if chosen.device == "cuda":
        measure("Waits in a step", lambda: find_waits(chosen))
    measure("Training in each precision", lambda: train_briefly(chosen))
    if chosen.data:
        measure("Resume", lambda: resume(chosen, results))
