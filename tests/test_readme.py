"""Pictures and sounds of README and first page, and what runs the tests."""

from pathlib import Path

import numpy as np
import soundfile

from docs.figures import draw_modules, write_sounds

ROOT = Path(__file__).resolve().parent.parent


def test_picture_is_the_one_that_the_code_draws(tmp_path):
    draw_modules(tmp_path / "modules")
    drawn = (tmp_path / "modules.svg").read_text()
    assert drawn == (ROOT / "docs/modules.svg").read_text()


def test_sounds_of_the_first_page_are_those_that_the_model_makes(tmp_path):
    write_sounds(tmp_path / "made")
    folder = ROOT / "docs/first-page"
    names = {path.name for path in folder.iterdir()}
    assert names == {path.name for path in (tmp_path / "made").iterdir()}
    page = (ROOT / "docs/index.md").read_text()
    assert all(f'src="first-page/{name}"' in page for name in names)
    assert max(path.stat().st_size for path in folder.iterdir()) <= 40_000
    sounds = {}
    for path in folder.glob("*.mp3"):
        sounds[path.stem] = soundfile.read(path)[0]
        made = soundfile.read(tmp_path / "made" / path.name)[0]
        assert np.corrcoef(made, sounds[path.stem])[0, 1] > 0.9
    levels = [wav.std() for wav in sounds.values()]
    assert len(levels) == 4 and min(levels) > 0.02


def test_ci_runs_the_test_command():
    assert "\nmake test\n" in (ROOT / ".ci/run").read_text()
