"""What the README says, a test runs."""

import re
import shutil
from pathlib import Path

import numpy as np
import soundfile
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_sim.cli import make_parser
from speechbrain_sim.report.figures import draw_modules

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_snippets_print_what_they_say(capsys, tmp_path, monkeypatch):
    snippet, walk, long_files, _, _ = code("python")
    assert len(snippet.strip().splitlines()) <= 9  # eight, and a blank one
    names = {}
    exec(snippet, names)
    printed = capsys.readouterr().out
    assert "torch.Size([2, 64, 512]) torch.Size([2, 64, 512])" in printed
    assert "[64, 51] False" in printed
    exec(walk, names)
    assert capsys.readouterr().out == "torch.Size([9, 10240])\n"
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 15 * 16000)
    soundfile.write("lecture.flac", noise, 16000)
    exec(long_files, names)
    assert names["arrays"]["context"].shape == (1500, 256)
    # ten seconds, less the frame that still waits for its last samples
    printed = capsys.readouterr().out
    assert printed.startswith("torch.Size([999, 512])\ntorch.Size([501, 512])")


def code(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def test_models_are_used_as_it_says(trained, capsys, tmp_path, monkeypatch):
    *_, anywhere, onnx = code("python")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.model, "sim-demo")
    noise = np.random.default_rng(0).uniform(-0.1, 0.1, 22050)
    soundfile.write("lecture.flac", noise, 22050)
    names = {"torch": torch, "wavs": torch.randn(2, 10240)}
    exec(anywhere, names)
    assert names["z"].mean.shape == (1, 100, 6)
    assert names["draw"].sampled and names["draw"].lengths.tolist() == [64, 51]
    assert names["heard"].dim() == 2
    answer = capsys.readouterr().out
    assert re.fullmatch(r"\[(\['(ann|bob)'\](, )?){2}\]\n", answer)
    (yaml,) = code("yaml")
    features = load_hyperpyyaml(yaml)["compute_features"]
    assert features(names["wavs"]).shape == (2, 64, 6)
    exec(onnx, names)
    assert (tmp_path / "sim.onnx").stat().st_size > 1000


def test_commands_are_ones_that_the_command_has():
    commands = re.findall(r"^speechbrain-sim ((?:.*\\\n)*.*)", README, re.M)
    verbs = [
        make_parser().parse_args(command.replace("\\\n", "").split()).verb
        for command in commands
    ]
    assert verbs == ["export", "check", "publish"]


def test_commands_name_what_exists():
    targets = re.findall(r"^make (\w+)", README, re.M)
    makefile = (ROOT / "Makefile").read_text()
    assert targets and all(f"\n{target}:" in makefile for target in targets)
    files = re.findall(
        r"(?:recipes|hparams|docs|speechbrain_sim)/[\w./]+", README
    )
    assert len(files) > 15
    for name in files:
        assert (ROOT / name.rstrip(".")).exists(), name


def test_picture_is_the_one_that_the_code_draws(tmp_path):
    draw_modules(tmp_path / "modules")
    drawn = (tmp_path / "modules.svg").read_text()
    assert drawn == (ROOT / "docs/modules.svg").read_text()


def test_ci_runs_the_test_command():
    assert "make test" in README
    assert "\nmake test\n" in (ROOT / ".ci/run").read_text()
