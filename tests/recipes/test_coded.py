"""Codes as layers of the recipes: studied, probed, decoded."""

import json

import pytest

from speechbrain_sim.analysis import delta
from speechbrain_sim.analysis.tools import TOOLS
from tests.bottlenecks.test_coded import NAME, save_coded
from tests.conftest import HPARAMS
from tests.recipes.test_study import study_argv

LAYERS = ["module3", NAME, f"{NAME}.decoded"]
MEASURED = ["delta-mel", "shape", "factors"]


def test_codes_are_layers_of_a_study(recipes, corpora, tmp_path):
    model = save_coded(tmp_path / "model", batch_norm=True)
    argv = study_argv(HPARAMS / "Synthetic/study.yaml", corpora, tmp_path)
    argv += ["--systems", f"{{SAE: {{encoder: {model}}}}}", "--inside", "[SAE]"]
    argv += ["--layers", f"[{', '.join(LAYERS)}]", "--baseline", "null"]
    argv += ["--decoders", "[spectrogram]", "--weights_label", "null"]
    argv += ["--tools", f"[{', '.join(MEASURED)}]", "--abx_label", "null"]
    probe = {"layers": LAYERS, "standardize": [False]}
    argv += ["--labels", json.dumps({"speaker": {"probe": probe}})]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "DECODED", -1e9)
        recipes["study"].main(argv)
    report = json.loads((tmp_path / "report.json").read_text())
    assert [t.key for t in TOOLS if t.inside and t.key in report] == MEASURED
    for tool in MEASURED:
        assert list(report[tool]["SAE"]) == LAYERS, tool
        for layer, numbers in report[tool]["SAE"].items():
            assert "gap" not in numbers, (tool, layer, numbers)
    of = report["delta-mel"]["SAE"]
    assert [of[name]["dimensions"] for name in LAYERS] == [8, 24, 8]
    # one and the same sound: what codes decode to, and the codes
    assert of[NAME]["explained"] == of[f"{NAME}.decoded"]["explained"]
    assert of[NAME]["explained"] != of["module3"]["explained"]
    probed = report["probes"]["speaker"]["SAE"]["layers"]
    assert list(probed) == LAYERS
    factors = report["factors"]["SAE"]
    for layer in LAYERS:
        assert "untrained" in factors[layer]
    decoders = {path.name for path in (tmp_path / "SAE_1").glob("*_module3*")}
    assert decoders == {"spectrogram_module3"}
    text = (tmp_path / "report.md").read_text()
    assert f"| SAE {NAME} |" in text
    drawn = {path.name for path in (tmp_path / "figures").glob("shape*.svg")}
    assert drawn == {f"shape_{layer}.svg" for layer in LAYERS}
