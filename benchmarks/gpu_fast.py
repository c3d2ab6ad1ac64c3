"""Part two on a GPU: how fast, against what the card can do."""

import time
from functools import partial
from statistics import median

import torch

from benchmarks.floor import step_flops
from benchmarks.gpu_right import precision_of, sizes
from benchmarks.systems import Decoding, Ours, make_batch
from speechbrain_sim.encoders.base import masked_mean
from speechbrain_sim.family import build_model

SAMPLES = 10240


def wait(device):
    """Waits until a device has done everything."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def timed(function, device, repetitions=5, inner=1, warm_up=3):
    """Median seconds of a call; of `inner` calls in a row, the mean."""
    if torch.device(device).type == "cpu":
        repetitions = inner = warm_up = 1  # a rehearsal
    for _ in range(warm_up):
        function()
    seconds = []
    for _ in range(repetitions):
        wait(device)
        start = time.perf_counter()
        for _ in range(inner):
            function()
        wait(device)
        seconds.append((time.perf_counter() - start) / inner)
    return median(seconds)


def names_of(chosen):
    """Lists the precisions that the device has."""
    return ("fp32", "tf32", "bf16", "fp16")[
        : 1 if chosen.device == "cpu" else 4
    ]


def limits(chosen):
    """Rates of a large product and of a copy."""
    size, rows = 256 if chosen.toy else 8192, []
    for name in names_of(chosen):
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        with precision_of(name):
            one, two = torch.randn(
                2, size, size, device=chosen.device, dtype=dtype
            )
            seconds = timed(partial(torch.mm, one, two), chosen.device, 5, 3)
        rows.append({"limit": f"product, {name}"})
        rows[-1]["TFLOP/s"] = 2 * size**3 / seconds / 1e12
    numbers = torch.empty(size * size * 4, device=chosen.device)
    seconds = timed(numbers.clone, chosen.device, 5, 3)
    rows.append({"limit": "copy", "GB/s": 2 * numbers.nbytes / seconds / 1e9})
    return rows


def kernels(step, device, count=1):
    """Kernels that a step launches: all together, then the costliest."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.device(device).type == "cuda"
    # a GPU's kernels alone: events of the CPU take many times as long to read
    kinds = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    with profile(activities=kinds, acc_events=True) as profiler:
        for _ in range(count):
            step()
        wait(device)
    on_card = [
        e
        for e in profiler.key_averages()
        if e.device_type.name == "CUDA" and not e.key.startswith("Optimizer.")
    ]
    on_card.sort(key=lambda e: -e.self_device_time_total)
    rows = [
        {
            "kernel": e.key[:60],
            "ms": e.self_device_time_total / 1e3 / count,
            "calls": e.count / count,
        }
        for e in on_card[:15]
    ]
    busy = sum(e.self_device_time_total for e in on_card) / 1e3 / count
    total = {"kernel": "all", "ms": busy}
    return [total | {"calls": sum(e.count for e in on_card) / count}, *rows]


def steps(chosen, rates):
    """Training steps, a row each: those of the paper's runs first."""
    sizes_, names = (64, 8), ("bf16", "tf32", "fp16", "fp32")
    if chosen.toy:
        sizes_ = (2,)
    names = [name for name in names if name in names_of(chosen)]
    return {
        f"{model} {clips} {name}": partial(
            _step, chosen, rates, clips, name, model
        )
        for clips in sizes_
        for name in names
        for model in ("sim", "gim")
    }


def _step(chosen, rates, clips, name, model, rows):
    """Milliseconds by the device's own clock, memory, rate of one step."""
    on_gpu = torch.device(chosen.device).type == "cuda"
    batch, count = make_batch(clips, SAMPLES), 10 if on_gpu else 1
    if on_gpu:
        batch.pin_memory()
        torch.cuda.reset_peak_memory_stats()
    with precision_of(name) as precision:
        run_opts = {"device": chosen.device, "precision": precision}
        step = Ours(model, batch, run_opts, **sizes(chosen)[0])
        for _ in range(3 if on_gpu else 1):
            step()
        step.brain.read()
        wait(chosen.device)
        if on_gpu:
            begun, ended = (torch.cuda.Event(enable_timing=True) for _ in "ab")
            begun.record()
        start = time.perf_counter()
        for _ in range(count):
            step()
        enqueued = time.perf_counter() - start
        if on_gpu:
            ended.record()
            wait(chosen.device)
            seconds = begun.elapsed_time(ended) / 1e3 / count
        else:
            seconds = enqueued / count
    flops = step_flops(step.model.encoder, step.model.modules, clips, SAMPLES)
    row = {"model": model, "clips": clips, "precision": name}
    row |= {"ms": 1e3 * seconds, "enqueued in ms": 1e3 * enqueued / count}
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    row |= {"peak GiB": peak / 2**30, "GFLOP": flops / 1e9}
    row |= {"TFLOP/s": flops / seconds / 1e12}
    if name in rates:
        row["share of product"] = row["TFLOP/s"] / rates[name]
    return row


def decoding(chosen):
    """Training steps of the decoders, 8 clips."""
    rows, width = [], sizes(chosen)[0]
    clips = 2 if chosen.toy else 8
    for layer in ("module1", "module3"):
        for name in names_of(chosen):
            with precision_of(name) as precision:
                run_opts = {"device": chosen.device, "precision": precision}
                batch = make_batch(clips, SAMPLES)
                step = Decoding(layer, batch, run_opts, **width)
                seconds = timed(step, chosen.device, 3, 5)
            rows.append({"decoder": layer, "precision": name, "clips": clips})
            rows[-1]["ms"] = 1e3 * seconds
    return rows


def extraction(chosen):
    """Encoding of 10-second clips from the CPU's memory: audio per minute."""
    rows, width = [], sizes(chosen)[0]
    clips, seconds_of = (2, 1) if chosen.toy else (32, 10)
    torch.manual_seed(0)
    encoder = build_model("sim", **width).encoder.eval().requires_grad_(False)
    encoder = encoder.to(chosen.device)
    wavs = 0.1 * torch.randn(clips, 16000 * seconds_of)
    wavs = wavs.pin_memory() if chosen.device == "cuda" else wavs

    def encode(dtype):
        autocast = torch.autocast(
            chosen.device, dtype=dtype or torch.bfloat16, enabled=bool(dtype)
        )
        with torch.inference_mode(), autocast:
            x = wavs.to(chosen.device, non_blocking=True)
            top = encoder(x, layers=["context"])["context"]
            return masked_mean(top.mean, top.lengths).cpu()

    for name in names_of(chosen):
        dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
        with precision_of(name):
            seconds = timed(partial(encode, dtype), chosen.device, 3, 2)
        hours = clips * seconds_of / 3600 / (seconds / 60)
        rows.append({"precision": name, "hours of audio per minute": hours})
    return rows


def convolutions(chosen):
    """The encoder's convolutions, forward and backward, in two ways."""
    rows, width = [], 16 if chosen.toy else 512
    clips = 2 if chosen.toy else 64
    shapes = [(1, 10, 5, 2, 10240), (width, 8, 4, 2, 2047)]
    shapes += [(width, 4, 2, 2, 511), (width, 4, 2, 1, 129)]
    for channels, kernel, stride, padding, time_ in shapes:
        weight = torch.randn(
            width, kernel, channels, device=chosen.device
        ).requires_grad_()
        bias = torch.zeros(width, device=chosen.device).requires_grad_()
        x = torch.randn(clips, time_, channels, device=chosen.device)
        x.requires_grad_(channels > 1)

        def library(x=x, weight=weight, bias=bias, at=(stride, padding)):
            y = torch.nn.functional.conv1d(
                x.transpose(1, 2), weight.transpose(1, 2), bias, *at
            )
            return y.transpose(1, 2)

        def products(x=x, weight=weight, bias=bias, at=(stride, padding)):
            x = torch.nn.functional.pad(x, (0, 0, at[1], at[1]))
            x = x.unfold(1, weight.shape[1], at[0]).transpose(2, 3).flatten(2)
            return torch.nn.functional.linear(x, weight.flatten(1), bias)

        row = {"in": channels, "kernel": kernel, "frames": time_}
        for way in (library, products):
            for name in ("tf32", "bf16"):
                autocast = torch.autocast(
                    chosen.device, torch.bfloat16, name == "bf16"
                )

                def both(way=way, autocast=autocast):
                    with autocast:
                        y = way()
                    y.backward(torch.ones_like(y))

                with precision_of(name):
                    seconds = timed(both, chosen.device, 3, 3)
                row[f"{way.__name__}, {name}, ms"] = 1e3 * seconds
        rows.append(row)
    return rows


def loading(chosen, results):
    """What the loader gives per second, once the clips are in memory."""
    from speechbrain.dataio.dataloader import make_dataloader

    from benchmarks.gpu_paper import prepare
    from speechbrain_sim.brains.base import ResumableBrain
    from speechbrain_sim.data.batches import KeyedCrop, training_sets

    folder, rows = prepare(chosen, results), []
    size = 2 if chosen.toy else 64
    sets = f"{folder}/pretrain.csv", f"{folder}/pretrain_valid.csv"
    train, _ = training_sets(*sets, chosen.data, KeyedCrop(SAMPLES), size)
    brain = type("Device", (), {"device_type": chosen.device})
    for workers in (0,) if chosen.toy else (0, 1, 2, 4, 8):
        loader = {"num_workers": workers, "batch_size": size, "shuffle": True}
        loader |= {"persistent_workers": workers > 0, "drop_last": True}
        loader = make_dataloader(
            train, **ResumableBrain.for_device(brain, loader)
        )
        seconds = []
        for _ in range(2 if chosen.toy else 5):
            start = time.perf_counter()
            for _ in loader:
                pass
            seconds.append(time.perf_counter() - start)
        rows.append({"workers": workers, "first epoch, s": seconds[0]})
        rows[-1]["later epochs, s"] = median(seconds[1:])
        rows[-1]["ms per batch"] = 1e3 * median(seconds[1:]) / len(loader)
        del loader
    return rows


def profiled(chosen, precision_name):
    """The costliest kernels of a SIM step."""
    clips = 2 if chosen.toy else 64
    with precision_of(precision_name) as precision:
        run_opts = {"device": chosen.device, "precision": precision}
        batch = make_batch(clips, SAMPLES)
        step = Ours("sim", batch, run_opts, **sizes(chosen)[0])
        for _ in range(0 if chosen.toy else 3):
            step()
        count = 1 if chosen.toy else 3
        return kernels(step, chosen.device, count)


def fast(results, chosen):
    """Measures part two."""
    measure = partial(results.measure, "fast")
    found = measure("Limits of this card", lambda: limits(chosen)) or []
    rates = {
        row["limit"].removeprefix("product, "): row["TFLOP/s"]
        for row in found
        if "TFLOP/s" in row
    }
    measure("Training steps", lambda: steps(chosen, rates))
    measure("Steps of decoders", lambda: decoding(chosen))
    measure("Extraction", lambda: extraction(chosen))
    measure("Convolutions", lambda: convolutions(chosen))
    if chosen.data:
        measure("Loading", lambda: loading(chosen, results))
    for name in ("bf16", "tf32"):
        measure(f"Kernels, {name}", lambda name=name: profiled(chosen, name))


def compiled(results, chosen):
    """Measures what `--compile` brings."""

    def compare():
        rows, width = [], sizes(chosen)[0]
        batch = make_batch(2 if chosen.toy else 64, SAMPLES)
        for title in (False, True):
            with precision_of("bf16") as precision:
                run_opts = {"device": chosen.device, "precision": precision}
                step = Ours("sim", batch, run_opts, **width)
                if title:
                    step.brain.compile = True
                    step.brain._compile()
                start = time.perf_counter()
                step()
                wait(chosen.device)
                first = time.perf_counter() - start
                seconds = timed(step, chosen.device, 3, 10)
            rows.append({"--compile": title, "first step, s": first})
            rows[-1]["ms"] = 1e3 * seconds
        return rows

    results.measure("compile", "Compiled steps, bf16", compare)
