"""`make box`, on a tiny corpus: recipes/box.py."""

import json

import pytest
import soundfile

from speechbrain_sim.inference import SmoothInfoMax
from speechbrain_sim.models.load import load_decoder, load_encoder
from tests.conftest import HPARAMS, options_for
from tests.recipes.test_study import QUICK, study_argv


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
    argv += ["--layers", "[module3]", "--probe_options", str(QUICK)]
    box.main(argv)
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
        box.main(argv)
    assert (folder / "README.md").read_text() == "kept"


def test_recipes_take_it_by_its_name(recipes, corpora, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sim-small").mkdir()  # is not looked at
    more = ["--encoder", "sim-small", "--device", "cpu"]
    for recipe, own in {
        "decode": ["--layer", "module3", "--number_of_epochs", "1"],
        "probe": ["--label", "speaker", "--layers", "[module3]"],
    }.items():
        yaml = HPARAMS / f"Synthetic/{recipe}.yaml"
        out = ["--output_folder", str(tmp_path / recipe)]
        argv = [str(yaml), *out, *options_for(yaml, corpora), *more, *own]
        recipes[recipe].main(argv)
    digest = load_encoder("sim-small")[1]["sha256"]
    decoder, _ = load_decoder(tmp_path / "decode", "module3", digest)
    assert decoder.shapes
    config = json.loads((tmp_path / "probe/config.json").read_text())
    assert config["parts"]["probe_speaker"]["encoder"] == digest
