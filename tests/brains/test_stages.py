"""Modules in other processes learn the same bits."""

import os
import re
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from speechbrain_sim.brains import stages, transport
from speechbrain_sim.brains.checkpointer import AtomicCheckpointer
from speechbrain_sim.brains.costs import Cost
from speechbrain_sim.brains.stages import StagedBrain, check_stages, choose
from speechbrain_sim.cli import run_command
from tests.brains.forked import Launcher
from tests.brains.test_transport import make_chain
from tests.conftest import ROOT, finish, make_brain, same, start_process

THREE = ["--stages", "[[module1], [module2], [module3, context]]"]
TWO = ["--stages", "[[module1, module2], [module3, context]]"]
#: 20 utterances: 6 steps; the last batch of validation is smaller, and so is
#: the last step of accumulated gradients
OPTIONS = ["--batch_size", "3", "--random_crop", "True", "--lr", "0.01"]
OPTIONS += ["--grad_accumulation_factor", "4", "--ckpt_interval_steps", "4"]
OPTIONS += ["--number_of_epochs", "3"]
#: two replicas accumulate half
HALF = ["--grad_accumulation_factor", "2", "--ckpt_interval_steps", "2"]
#: saved as text
PLAIN = {"averages", "brain", "epoch_counter", "train_logger"}
PLAIN |= {"dataloader-TRAIN"}
STOPPED = r"Rank {} \(stage {}: .*\) stopped at epoch \d, .*step \d"


@pytest.fixture(scope="module")
def launch(tiny_yaml):
    launcher = Launcher(tiny_yaml, *OPTIONS)
    yield launcher
    launcher.process.communicate()


def outcome(folder):
    """All that a run leaves: model, metadata, log, contents of checkpoints."""
    left = {"log": (folder / "train_log.txt").read_text()}
    left["encoder"] = load_file(folder / "encoder.safetensors")
    left["config"] = (folder / "config.json").read_text()
    newest = AtomicCheckpointer(folder / "save").find_checkpoint()
    for file in newest.path.glob("*.ckpt"):
        plain = file.stem in PLAIN
        left[file.name] = file.read_text() if plain else torch.load(file)
    return left


def differing(one, other):
    """Lists what two runs left that has not the same bits."""
    one, other = outcome(one), outcome(other)
    return [n for n in one | other if not same(one.get(n), other.get(n))]


def difference(one, other):
    """Returns the largest difference of two runs' weights."""
    one, other = outcome(one)["encoder"], outcome(other)["encoder"]
    return max(float((one[n] - other[n]).abs().max()) for n in one | other)


def numbers(folder):
    log = (folder / "train_log.txt").read_text()
    return [float(x) for x in re.findall(r"[-\d.e]+(?=,|$)", log)]


@pytest.fixture(scope="module")
def whole(launch, tmp_path_factory):
    """The folder of a run of one process, and its output."""
    folder = tmp_path_factory.mktemp("serial")
    return SimpleNamespace(folder=folder, output=launch(folder, 1)[0])


def test_three_stages_have_the_bits_of_one_process(launch, whole, tmp_path):
    """What concerns all is logged once, and only the first reads audio."""
    first, *others = launch(tmp_path, 3, *THREE, readers=1)
    assert differing(tmp_path, whole.folder) == []
    once = [r"Epoch 1, train \(valid\): module1 loss", "may have collapsed"]
    for text in once:
        count = len(re.findall(text, whole.output))
        assert len(re.findall(text, first)) == count > 0
        assert not any(re.search(text, other) for other in others)
    assert "Stages were busy" in first


def test_a_lost_rank_ends_all_and_another_number_goes_on(
    launch, whole, tmp_path
):
    new = str(tmp_path / "save/CKPT*")
    launch(tmp_path, 1, fails=True, signal=[0, signal.SIGKILL, new])
    killed = [1, signal.SIGKILL, new]
    outputs = launch(tmp_path, 3, *THREE, fails=True, signal=killed)
    for rank in 0, 2:
        assert re.search(STOPPED.format(rank, rank + 1), outputs[rank])
    silent, patience = [1, signal.SIGSTOP, new], ["--stage_timeout", "8"]
    outputs = launch(tmp_path, 2, *TWO, *patience, fails=True, signal=silent)
    assert re.search(STOPPED.format(0, 1), outputs[0])
    assert "did not answer for 8 s" in outputs[0]
    launch(tmp_path, 1)
    assert differing(tmp_path, whole.folder) == []


def test_replicas_learn_what_one_process_accumulates(launch, whole, tmp_path):
    launch(tmp_path, 4, *TWO, *HALF)
    assert difference(tmp_path, whole.folder) < 1e-5
    mesh, one = numbers(tmp_path), numbers(whole.folder)
    assert len(one) > 50 and mesh == pytest.approx(one, rel=1e-5, abs=1e-6)


@pytest.fixture
def tell(capsys):
    """Prints a row of a table, past pytest's capture."""

    def row(*cells):
        with capsys.disabled():
            print(f"| {' | '.join(map(str, cells))} |")

    return row


@pytest.mark.slow
def test_table_of_bits(launch, whole, tmp_path, tell):
    tell("run", "weights differ by", "log by", "checkpoints")
    runs = {
        "2 stages": (2, *TWO),
        "3 stages": (3, *THREE),
        "2 stages, auto": (2, "--stages", "auto"),
        "2 stages x 2 replicas": (4, *TWO, *HALF),
        "2 replicas without stages": (2, *HALF),
    }
    for name, run in runs.items():
        folder = tmp_path / name
        launch(folder, *run)
        weights = difference(folder, whole.folder)
        pairs = zip(numbers(folder), numbers(whole.folder), strict=True)
        log = max(abs(a - b) for a, b in pairs)
        others = differing(folder, whole.folder)
        checkpoints = "differ" if others else "equal"
        tell(name, f"{weights:.2g}", f"{log:.2g}", checkpoints)
        assert weights < 1e-5
        assert "replicas" in name or others == []


@pytest.mark.slow
def test_table_of_kills(launch, whole, tmp_path, tell):
    tell("rank", "signal", "all ended after", "message", "after a restart")
    disturbances = [(rank, signal.SIGKILL, {}) for rank in range(3)]
    disturbances += [(rank, signal.SIGSTOP, {}) for rank in range(3)]
    disturbances += [(1, signal.SIGSTOP, {"pause": 5})]
    for rank, number, given in disturbances:
        folder = tmp_path / f"{rank}{number}{len(given)}"
        disturbance = [rank, number, str(folder / "save/CKPT*")]
        outputs = launch(
            *(folder, 3, *THREE, "--stage_timeout", "10"),
            **{"fails": not given, "signal": disturbance, **given},
        )
        others = {n: x for n, x in enumerate(outputs) if n != rank}
        said = [re.search(STOPPED.format(n, n + 1), others[n]) for n in others]
        seconds = f"{launch.seconds:.1f} s"
        if given:
            assert said == [None, None]
            seconds, message = "", "none: it went on after 5 s"
        else:
            assert all(said)
            launch(folder, 3, *THREE)
            message = said[0][0]
        assert differing(folder, whole.folder) == []
        name = signal.Signals(number).name
        tell(rank, name, seconds, message, "same bits")


def torchrun(yaml, folder, *options):
    """Starts torchrun with the recipe in two stages or more."""
    launch = (sys.executable, "-m", "torch.distributed.run", *options)
    recipe = ROOT / "recipes/pretrain.py", yaml, *OPTIONS, *TWO
    more = "--output_folder", folder, "--num_workers", "0", "--device", "cpu"
    return start_process([*launch, *recipe, *more, *GLOO])


GLOO = "--distributed_backend", "gloo"


@pytest.mark.slow
def test_two_runs_do_not_meet_and_a_killed_one_restarts(
    whole, tiny_yaml, tmp_path, monkeypatch
):
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    options = "--standalone", "--nproc-per-node=2", "--max-restarts=1"
    folders = tmp_path / "one", tmp_path / "two"
    one, two = (torchrun(tiny_yaml, folder, *options) for folder in folders)
    while not any(folders[0].glob("save/CKPT*")):
        assert one.poll() is None, one.stdout.read()
        time.sleep(0.01)
    children = Path(f"/proc/{one.pid}/task/{one.pid}/children")
    os.kill(int(children.read_text().split()[-1]), signal.SIGKILL)
    assert "Loading a checkpoint from" in finish(one)
    finish(two)
    for folder in folders:
        assert differing(folder, whole.folder) == []


@pytest.mark.slow
def test_two_machines_are_two_launches(whole, tiny_yaml, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"
    options += (f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=7")
    nodes = [torchrun(tiny_yaml, tmp_path, *options) for _ in range(2)]
    outputs = [finish(node) for node in nodes]
    assert differing(tmp_path, whole.folder) == []
    assert sum("Stages were busy" in output for output in outputs) == 1


def test_a_rank_keeps_its_own_modules_only(tmp_path, caplog):
    brain = make_brain(tmp_path)
    chain = SimpleNamespace(
        stages=[["module1"], ["module2", "module3"], ["context"]],
        modules=["module2", "module3"],
        replicas=1,
        replica=0,
        first=False,
    )
    staged = StagedBrain(
        brain.unwrapped,
        chain,
        opt_class=brain.opt_class,
        hparams=vars(brain.hparams),
        run_opts={"device": "cpu"},
        checkpointer=brain.checkpointer,
    )
    staged.init_optimizers()
    for name, module in brain.unwrapped.items():
        own = name in chain.modules
        assert all(p.is_meta != own for p in module.parameters())
    assert [*staged.optimizers_dict] == [*staged.modules] == chain.modules
    parts = {*chain.modules, *(f"{name}_optimizer" for name in chain.modules)}
    assert {*staged.checkpointer.parts} == parts
    assert staged.training_sets("no", "manifest") == staged.training_sets()
    staged.stopwatch.lap, staged.steps_per_epoch = lambda: 0.5, 9
    brain.checkpointer.checkpoints_dir.mkdir(exist_ok=True)
    with caplog.at_level("INFO"):
        staged.on_fit_batch_end(None, None, None, True)
    assert "of this stage alone (module2, module3)" in caplog.text


def test_auto_has_the_most_stages_and_names_a_faster_mesh(caplog):
    def cost(seconds):
        return Cost(*[0] * 7, seconds)

    costs = {"a": cost(6), "b": cost(3), "c": cost(2), "d": cost(1)}
    with caplog.at_level("INFO"):
        assert choose(costs, 4, 4) == [["a"], ["b"], ["c"], ["d"]]
    said = "4 processes reach at most 2.00 times one process; 2 stages x 2 "
    assert said + "replicas, 4.00 times: --stages [['a'], " in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        assert choose(costs, 2, 2) == [["a"], ["b", "c", "d"]]
    assert "a 6e+03 ms" in caplog.text and "reach" not in caplog.text


class Clock:
    """Stands for the module `time`, and for what takes time."""

    now = 0.0

    def perf_counter(self):
        return self.now

    def takes(self, seconds, values=None):
        def call(value, gathered, *_):
            self.now += seconds
            if values:
                gathered[:] = [value, *values]

        return call


def test_stages_are_busy_between_the_first_batch_and_the_report(
    monkeypatch, caplog
):
    clock = Clock()
    wire = SimpleNamespace(
        broadcast_object_list=clock.takes(2),
        barrier=lambda group: clock.takes(3)(None, None),
        # of rank 1: seconds, of them waiting, bytes
        gather_object=clock.takes(50, [(10.0, 1.0, 1e6)]),
    )
    monkeypatch.setattr(transport, "dist", wire)
    for module in stages, transport:
        monkeypatch.setattr(module, "time", clock)
    brain = StagedBrain.__new__(StagedBrain)
    brain.chain, brain._begin = make_chain(0), None
    brain.replicas = brain.chain.replicas
    for _ in range(2):  # epochs
        clock.now += 100  # what comes before the first batch
        brain.chain.share(None)
        with brain._of_epoch():
            clock.now += 4
            brain.chain.share(None)
            brain.chain.barrier()
        with caplog.at_level("INFO"):
            brain._report()
    said = (
        "Stages were busy 40%, 90% of 10 s: 1.30 times one process, of at "
        "most 1.44. They sent 1 MB."
    )
    assert caplog.text.count(said) == 2


def test_who_lost_a_rank_ends_at_once(monkeypatch, capfd):
    def main(argv):
        raise ConnectionError("Rank 1 is gone.")

    def ends(code):
        raise SystemExit(code)  # in a test

    monkeypatch.setattr(os, "_exit", ends)
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(SystemExit) as end:
        run_command(main, [], "pretrain.py")
    assert end.value.code == 1
    assert capfd.readouterr().err == "pretrain.py: Rank 1 is gone.\n"


SETTINGS = {"objective": "contrastive", "greedy": True, "frozen": []}
SETTINGS |= {"kernel_sizes": [[4], [4], [4]], "context_channels": 4}
LISTS = [["module1"], ["module2"], ["module3", "context"]]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"processes": 4}, "4 processes cannot be 3 stages.*start 3, 6, 9"),
        ({"processes": 1}, "^1 process cannot.*nproc-per-node=3"),
        ({"greedy": False}, "a gradient of this model crosses its modules"),
        ({"objective": "supervised"}, "crosses its modules"),
        ({"stages": [["module2"], ["module1"]]}, "bottom first, such as"),
        ({"stages": "[[module1]"}, "must be auto, or lists"),
        ({"stages": ["module1"]}, "must be auto, or lists"),
        ({"stages": "auto", "processes": 5}, "auto cannot divide 4 modules"),
        ({"precision": "fp16"}, "--precision fp16 and --stages exclude"),
        ({"frozen": "all"}, "no use if all modules are frozen"),
    ],
)
def test_what_cannot_be_divided_is_refused(changes, message):
    settings = {**SETTINGS, "stages": LISTS, "processes": 3, **changes}
    with pytest.raises(ValueError, match=message):
        check_stages(settings)


def test_processes_of_the_record_are_replicas():
    for given, ranks in ([], 2), (LISTS, 6), ("auto", 8):
        settings = {**SETTINGS, "stages": given, "processes": ranks}
        check_stages(settings)
        assert settings["processes"] == 2
