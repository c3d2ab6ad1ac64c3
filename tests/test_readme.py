"""What the README says, a test runs."""

import re
from pathlib import Path

import numpy as np
import soundfile

from speechbrain_sim.figures import draw_modules

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_snippets_print_what_they_say(capsys, tmp_path, monkeypatch):
    snippet, walk, long_files = re.findall(r"```python\n(.*?)```", README, re.S)
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
