"""`make box`, on a tiny corpus: recipes/box.py."""

import json

import pytest
import soundfile

from speechbrain_sim.inference import SmoothInfoMax
from tests.conftest import HPARAMS
from tests.recipes.test_study import study_argv


def test_the_model_in_the_box_is_made_anew(
    recipes, corpora, tmp_path, monkeypatch
):
    box, readme = recipes["box"], tmp_path / "README.md"
    readme.write_text(f"Before.\n{box.BEGIN}old\n{box.END}After.\n")
    monkeypatch.setattr(box, "README", readme)
    monkeypatch.setattr(box, "BOX", tmp_path / "box")
    monkeypatch.setattr(box, "UNCHANGED", 0.0)  # of a hardly trained model
    (tmp_path / "box").mkdir()
    argv = study_argv(HPARAMS / "Synthetic/box.yaml", corpora, tmp_path / "out")
    box.main([*argv, "--layers", "[module3]"])
    folder = tmp_path / "box/sim-small"
    model = SmoothInfoMax.from_pretrained(folder)
    assert set(model.mods) == {
        *("encoder", "decoder_module3", "probe_phones", "probe_speaker"),
    }
    texts = json.loads((folder / "config.json").read_text())["examples"]
    assert len(set(texts.values())) == 2 and all(texts.values())
    for path in model.examples:
        assert soundfile.info(path).duration > 1
    text = readme.read_text()
    assert text.startswith("Before.\n") and text.endswith("After.\n")
    assert "| speaker, 3 classes: accuracy |" in text and "old" not in text
    sums = (tmp_path / "box/sim-small.sha256").read_text().splitlines()
    assert len(sums) == len(list(folder.iterdir()))
    # what is too large is not put there
    monkeypatch.setattr(box, "LARGEST", 1000)
    (folder / "README.md").write_text("kept")
    with pytest.raises(ValueError, match="more than 1000: give fewer channels"):
        box.main([*argv, "--layers", "[module3]"])
    assert (folder / "README.md").read_text() == "kept"
