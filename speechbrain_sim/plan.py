"""What training would cost, on one machine or many, before it begins."""

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.core import RunOptions

from speechbrain_sim.brains.costs import latent_bytes, measure, meshes
from speechbrain_sim.config import read_settings
from speechbrain_sim.data.audio import SAMPLE_RATE
from speechbrain_sim.options import dump_yaml
from speechbrain_sim.report.tables import markdown_table


def plan(hparams_file, ranks=1, hours=1.0, device="cpu", **options):
    """Yields a report: costs of modules, and what several processes may gain.

    Arguments
    ---------
    hparams_file, options :
        Of a `pretrain.yaml`.
    ranks, hours : int, float
        Processes; length of the corpus, which an epoch reads once.
    device : str
        Where a few steps are measured.
    """
    if ranks < 1 or hours <= 0:
        raise ValueError(f"ranks, {ranks}, is 1 or more, hours, {hours}, > 0.")
    settings, _ = read_settings(
        hparams_file, {"data_folder": ".", **options}, RunOptions()
    )
    writers = dict.fromkeys(["checkpointer", "train_logger"])
    made = load_hyperpyyaml(dump_yaml({**settings, **writers}))
    if "modules" not in made or "crop_samples" not in made:
        raise ValueError(f"{hparams_file} trains no encoder: no plan for it.")
    batch, samples = made["batch_size"], made["crop_samples"]
    costs = measure(made["modules"], made["opt_class"], batch, samples, device)
    threads = f"{torch.get_num_threads()} threads"
    yield (
        f"Batches of {batch} x {samples} samples, {device}, {threads}, "
        f"measured in float32.\n"
    )
    yield _of_modules(costs, made["encoder"]) + "\n"
    steps = hours * 3600 * SAMPLE_RATE / (batch * samples)
    yield _of_meshes(meshes(costs, ranks), costs, steps, made) + "\n"
    yield (
        f"An epoch reads {hours:g} h once, {steps:.0f} steps of one process. "
        f"Ceilings and hours are without transfer, data loading and "
        f"validation; replicas share a corpus, each with a batch of its own. "
        f"Memory is without that of single operations and of the process."
    )


def _of_modules(costs, encoder):
    """Makes the table of what is counted, and measured, of each module."""
    header = "module,GFLOP,s per step,s of encoding,weights MB,gradients MB"
    header += ",optimizer MB,activations MB,sent MB,GB per stored hour"
    rows = []
    for name, c in costs.items():
        numbers = [c.flops / 1e9, c.step, c.forward]
        numbers += [x / 1e6 for x in c[:5]]
        layer = name if name in encoder.layer_names else encoder.layer_names[-1]
        numbers += [latent_bytes(encoder, layer) / 1e9]
        rows.append([name, *(f"{x:.3g}" for x in numbers)])
    return markdown_table(header.split(","), rows)


def _of_meshes(found, costs, steps, made):
    """Makes the table of stages and replicas."""
    total = sum(cost.step for cost in costs.values())
    epochs = made["number_of_epochs"]
    header = "stages x replicas,modules of stages,MB per rank,MB sent per step"
    header += f",ceiling,hours of an epoch,hours of {epochs} epochs"
    rows = []
    for mesh in found:
        hours = steps * total / mesh.ceiling / 3600
        numbers = mesh.ceiling, hours, hours * epochs
        rows.append(
            [
                f"{len(mesh.modules)} x {mesh.replicas}",
                " / ".join("+".join(part) for part in mesh.modules),
                " / ".join(f"{x / 1e6:.3g}" for x in mesh.memory),
                " / ".join(f"{x / 1e6:.3g}" for x in mesh.sent) or "—",
                *(f"{x:.3g}" for x in numbers),
            ]
        )
    return markdown_table(header.split(","), rows)
