"""Two processes on the CPU train one model."""

import re
import socket
import sys

import pytest
import torch

from speechbrain_sim.models.load import load_encoder
from tests.conftest import ROOT, finish, same, start_process

#: saves each rank's weights and draws; arguments: folder, frozen modules
SCRIPT = """
import sys
import speechbrain as sb
import torch
from torch.nn.parallel import DistributedDataParallel
from tests.conftest import make_brain, make_loader, weights

folder, frozen = sys.argv[1], sys.argv[2:]
sb.utils.distributed.ddp_init_group(
    sb.core.RunOptions(distributed_backend="gloo", device="cpu")
)
noise, normal_ = [], torch.Tensor.normal_
def recording(x, *args, **kwargs):
    noise.append(normal_(x, *args, **kwargs).clone())
    return x.copy_(noise[-1])
brain = make_brain(
    folder,
    epochs=2,
    frozen=frozen,
    run_opts={"distributed_backend": "gloo", "grad_accumulation_factor": 2},
)
before = weights(brain)
rows = make_loader(8).dataset
torch.Tensor.normal_ = recording
brain.fit(
    brain.hparams.epoch_counter,
    brain.make_dataloader(
        rows, sb.Stage.TRAIN, batch_size=2, collate_fn=make_loader().collate_fn
    ),
    make_loader(1),
)
assert all(
    isinstance(module, DistributedDataParallel)
    for module in brain.modules.values()
)
torch.save(
    {"before": before, "after": weights(brain), "noise": noise},
    f"{folder}/rank{brain.rank}.pt",
)
"""


#: torchrun, and the same with workers that import nothing again
REAL, FORKED = ("-m", "torch.distributed.run"), (ROOT / "tests/launch.py",)


def torchrun(script, *arguments, launch=FORKED):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return start_process(
        [
            *(sys.executable, *launch),
            *("--nproc-per-node=2", "--master-addr=127.0.0.1"),
            f"--master-port={port}",
            *(script, *arguments),
        ]
    )


@pytest.mark.parametrize("frozen", [[], ["module2"]])
def test_ranks_agree_on_weights_and_not_on_noise(tmp_path, frozen):
    script = tmp_path / "ranks.py"
    script.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n{SCRIPT}"
    )
    finish(torchrun(script, tmp_path, *frozen))
    first, second = (torch.load(tmp_path / f"rank{r}.pt") for r in (0, 1))
    assert same(first["before"], second["before"])
    assert same(first["after"], second["after"])
    for name, state in first["after"].items():
        assert same(state, first["before"][name]) == (name in frozen)
    # 3 modules with 2 draws in 2 epochs of 4 steps
    assert len(first["noise"]) == len(second["noise"]) == 3 * 2 * 2 * 4
    for a, b in zip(first["noise"], second["noise"], strict=True):
        size = min(a.shape[1], b.shape[1])
        assert not torch.equal(a[:, :size], b[:, :size])


def recipe(yaml, folder, *options, launch=FORKED):
    return torchrun(
        *(ROOT / "recipes/pretrain.py", yaml, "--output_folder", folder),
        *("--device", "cpu", "--distributed_backend", "gloo"),
        *("--noprogressbar", *options),
        launch=launch,
    )


def test_the_recipe_runs_and_resumes_under_torchrun(tiny_yaml, tmp_path):
    options = ["--num_workers", "1", "--ckpt_interval_steps", "2"]
    options += ["--precision", "bf16", "--grad_accumulation_factor", "2"]
    once = [*options, "--number_of_epochs", "1"]
    finish(recipe(tiny_yaml, tmp_path, *once, launch=REAL))
    one, description = load_encoder(tmp_path)
    assert description["epochs"] == 1
    finish(recipe(tiny_yaml, tmp_path, *options))
    two, description = load_encoder(tmp_path)
    assert description["epochs"] == 2
    assert not same(one.state_dict(), two.state_dict())
    log = (tmp_path / "train_log.txt").read_text()
    assert re.findall(r"epoch: (\d)", log) == ["1", "2"]


def test_batch_norm_on_cpus_is_refused(tiny_yaml, tmp_path):
    process = recipe(tiny_yaml, tmp_path, "--batch_norm", "True")
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "--batch_norm False" in output
