"""Module after module, on frozen ones below."""

import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from speechbrain_sim.activations import ActivationStore
from speechbrain_sim.brains.checkpointer import AtomicCheckpointer
from speechbrain_sim.brains.one_by_one import hash_up_to, stored_set
from speechbrain_sim.data.batches import KeyedCrop, make_dataset
from speechbrain_sim.encoders.greedy import GreedyEncoder
from speechbrain_sim.extraction import encode_manifest
from tests.conftest import ROOT, finish, same, start_process

OPTIONS = {"schedule": "one_by_one", "number_of_epochs": 1, "random_crop": True}
OPTIONS |= {"num_workers": 0, "device": "cpu", "noprogressbar": True}
OPTIONS |= {"batch_size": 3}  # 6 steps an epoch
WHOLE = {"crop_samples": 20000}  # no utterance is as long


def words_of(yaml, folder, options):
    """The recipe's command line."""
    words = [str(yaml), "--output_folder", str(folder)]
    for key, value in {**OPTIONS, **options}.items():
        flag = key in ("noprogressbar", "debug")
        words += [f"--{key}"] if flag else [f"--{key}", str(value)]
    return words


@pytest.fixture(scope="module")
def trained(recipes, tiny_yaml, tmp_path_factory):
    """Runs a recipe once for each set of options; returns its folder."""
    folders = {}

    def train(folder=None, **options):
        made_of = tuple(options.items())
        if folder is None and made_of in folders:
            return folders[made_of]
        new = folder or tmp_path_factory.mktemp("run")
        recipes["pretrain"].main(words_of(tiny_yaml, new, options))
        if folder is None:
            folders[made_of] = new
        return new

    return train


def weights_of(folder):
    return load_file(folder / "encoder.safetensors")


def layers(folder, *names):
    state = weights_of(folder)
    return {k: x for k, x in state.items() if k.split(".")[1] in names}


def final(folder):
    """All that the last checkpoint holds of modules and optimizers."""
    newest = AtomicCheckpointer(folder / "save").find_checkpoint().path
    names = ["module1", "module2", "module3", "context"]
    names += [f"{name}_optimizer" for name in names]
    return {name: torch.load(newest / f"{name}.ckpt") for name in names}


def test_the_first_module_is_that_of_training_together(trained):
    apart, together = trained(), trained(schedule="together")
    assert same(layers(apart, "module1"), layers(together, "module1"))
    assert not same(layers(apart, "module2"), layers(together, "module2"))
    log = (apart / "train_log.txt").read_text().splitlines()
    names = ["module1", "module2", "module3", "context"]
    for name, line in zip(names, log, strict=True):
        assert f"train {name}_loss" in line and f"valid {name}_loss" in line
        assert line.count("_loss") == 2


@pytest.mark.parametrize(
    "trial", [{"optimizer_step_limit": 2}, {"debug": None, "debug_epochs": 1}]
)
def test_a_trial_run_tries_every_module(trained, tmp_path, trial):
    trained(tmp_path / "run", number_of_epochs=2, **trial)
    log = (tmp_path / "run_debug/train_log.txt").read_text().splitlines()
    names = ["module1", "module2", "module3", "context"]
    for epoch, name, line in zip((1, 3, 5, 7), names, log, strict=True):
        assert line.startswith(f"epoch: {epoch} ")
        assert f"train {name}_loss" in line


def test_only_the_last_module_has_an_optimizer_state(trained):
    state = final(trained())
    filled = [n for n in state if "optim" in n and state[n]["state"]]
    assert filled == ["context_optimizer"]


#: dies in module 2, and, resumed, in the context; then ends
KILLED = """
import os, signal, sys
from recipes.pretrain import main
from speechbrain_sim.brains.greedy import GreedyBrain

learn, count = GreedyBrain.learn, 0

def killed(self, *args):
    global count
    count += 1
    if count == steps:
        os.kill(os.getpid(), signal.SIGKILL)
    return learn(self, *args)

GreedyBrain.learn = killed
for steps in (10, 14):  # each the fourth of its module, after a save at two
    pid = os.fork()
    if not pid:
        main(sys.argv[1:])
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
steps = None
main(sys.argv[1:])
"""


def test_killed_is_the_same(trained, tiny_yaml, tmp_path):
    words = words_of(tiny_yaml, tmp_path, {"ckpt_interval_steps": 2})
    script = tmp_path / "killed.py"
    path = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
    script.write_text(path + KILLED)
    printed = finish(start_process([sys.executable, script, *words]))
    assert printed.count("learns until epoch") == 2 + 3 + 1
    assert same(final(tmp_path), final(trained()))
    log = [(f / "train_log.txt").read_text() for f in (tmp_path, trained())]
    assert log[0] == log[1]


def test_learning_goes_on_at_a_module(trained, tmp_path):
    trained(tmp_path, module_epochs="[1, 1, 0, 0]")
    trained(tmp_path, module_epochs="[1, 1, 1, 1]")
    assert same(weights_of(tmp_path), weights_of(trained()))
    with pytest.raises(ValueError, match="module2 was trained until epoch 2"):
        trained(tmp_path, module_epochs="[1, 2, 1, 1]")


def test_a_store_and_recomputation_are_one_where_no_crop_is_cut(
    trained, tmp_path
):
    again = trained(**WHOLE)
    store = {"store": str(tmp_path / "latents"), **WHOLE}
    exact = trained(**store, store_half=False)
    assert same(final(again), final(exact))
    assert not same(weights_of(again), weights_of(trained()))


#: reserves a folder until it gets no more input
HOLD = """
import sys
from speechbrain_sim.files import lock_folder
lock_folder(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def written(latents):
    """When each array of a folder of stores was written, by its path."""
    return {p: p.stat().st_mtime_ns for p in latents.glob("*/module*.npy")}


def test_stores_are_found_again_and_none_replaces_another(trained, tmp_path):
    latents = tmp_path / "latents"
    options = {"store": str(latents), "module_epochs": "[1, 1, 1, 0]"}
    trained(tmp_path / "one", **options)
    first = written(latents)
    assert len(first) == 4  # means and log-variances of two modules
    trained(tmp_path / "two", **options)
    assert written(latents) == first
    trained(tmp_path / "three", **options, lr=0.01)  # other weights below
    second = written(latents)
    assert len(second) == 8 and first.items() < second.items()
    (folder,) = {p.parent for p in first if p.name == "module1.npy"}
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline() == b"held\n"  # not by this process
    with pytest.raises(BlockingIOError, match=f"works in .*{folder.name}"):
        trained(tmp_path / "four", **options)
    other.communicate()


def test_a_store_is_of_the_weights_below():
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=6, context_channels=4)
    hashes = {n: hash_up_to(encoder, n) for n in ("module1", "module2")}
    encoder.layers["module2"].mean.bias.data += 1
    assert hash_up_to(encoder, "module1") == hashes["module1"]
    assert hash_up_to(encoder, "module2") != hashes["module2"]


@pytest.mark.parametrize(
    ("layer", "edge"), [("module1", 1), ("module2", 2), ("module3", 2)]
)
def test_crops_of_a_store_differ_at_the_edges_only(
    corpus, tmp_path, layer, edge
):
    torch.manual_seed(0)
    encoder = GreedyEncoder(channels=6, context_channels=4).eval()
    store = encode_manifest(
        encoder,
        {"sha256": "of a test"},
        *(corpus.train, corpus.folder, tmp_path, [layer]),
        rows="all",
        log_var=True,
        half=False,
    )
    assert isinstance(store, ActivationStore)
    crop = KeyedCrop(4000, random=True, seed=1)
    crop.set_epoch(5)
    train = make_dataset(corpus.train, corpus.folder, crop)
    stored = stored_set(store, layer, train, crop, encoder)
    shifted = 0
    for row, latent in zip(train, stored, strict=True):
        assert row["id"] == latent["id"]
        expected = encoder(row["sig"][None], layers=[layer], sample=False)
        expected = torch.cat(expected[layer][:2], -1)[0]
        assert latent["latent"].shape == expected.shape
        inside = slice(edge, len(expected) - edge)
        difference = (latent["latent"] - expected).abs().amax(1)
        torch.testing.assert_close(latent["latent"][inside], expected[inside])
        shifted += difference[0] > 1e-4
    assert shifted  # the test can fail


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"model": "cpc"}, "without a gradient"),
        ({"frozen": "[module1]"}, "--frozen"),
        ({"stages": "[[module1], [module2]]"}, "for --schedule together"),
        ({"schedule": "together", "store": "x"}, "are for --schedule"),
        ({"module_epochs": "[1, 2]"}, "2 numbers for the modules"),
        ({"module_epochs": "[9, 1, 1, 1]", "lr_decay_epochs": 3}, "0 after"),
    ],
)
def test_what_does_not_fit_is_refused(trained, tmp_path, options, problem):
    with pytest.raises(ValueError, match=problem):
        trained(tmp_path, **options)
