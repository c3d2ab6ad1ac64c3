"""What the README says, a test runs."""

import re
from pathlib import Path

from speechbrain_sim.figures import draw_modules

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_snippet_prints_what_it_says(capsys):
    (snippet,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len(snippet.strip().splitlines()) <= 9  # eight, and a blank one
    exec(snippet, {})
    printed = capsys.readouterr().out
    assert "torch.Size([2, 64, 512]) torch.Size([2, 64, 512])" in printed
    assert "[64, 51] False" in printed


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
