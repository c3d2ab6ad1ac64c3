"""Pictures of the README, and what runs the tests."""

from pathlib import Path

from docs.figures import draw_modules

ROOT = Path(__file__).resolve().parent.parent


def test_picture_is_the_one_that_the_code_draws(tmp_path):
    draw_modules(tmp_path / "modules")
    drawn = (tmp_path / "modules.svg").read_text()
    assert drawn == (ROOT / "docs/modules.svg").read_text()


def test_ci_runs_the_test_command():
    assert "\nmake test\n" in (ROOT / ".ci/run").read_text()
