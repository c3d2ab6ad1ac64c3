"""Codes as layers of the recipes: studied, probed, decoded."""

import json

import pytest

from speechbrain_sim.analysis import delta
from speechbrain_sim.analysis.tools import TOOLS
from tests.bottlenecks.test_coded import NAME, save_coded
from tests.conftest import HPARAMS
from tests.recipes.test_study import study_argv

LAYERS = ["module3", NAME, f"{NAME}.decoded"]


@pytest.fixture(scope="module")
def studied(recipes, corpora, tmp_path_factory):
    """The report of a study of codes, and its folder."""
    folder = tmp_path_factory.mktemp("codes")
    model = save_coded(folder / "model", batch_norm=True)
    argv = study_argv(HPARAMS / "Synthetic/study.yaml", corpora, folder)
    argv += ["--systems", f"{{SAE: {{encoder: {model}}}}}", "--inside", "[SAE]"]
    argv += ["--layers", f"[{', '.join(LAYERS)}]", "--labels", "{speaker: {}}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delta, "DECODED", -1e9)
        recipes["study"].main([*argv, "--baseline", "null"])
    return json.loads((folder / "report.json").read_text()), folder


def test_every_tool_reads_codes(studied):
    report, folder = studied
    measured = [t.key for t in TOOLS if t.inside and t.key in report]
    assert len(measured) == 8
    for tool in measured:
        assert list(report[tool]["SAE"]) == LAYERS, tool
        for layer, numbers in report[tool]["SAE"].items():
            assert "gap" not in numbers, (tool, layer, numbers)
    widths = [report["delta"]["SAE"][name]["dimensions"] for name in LAYERS]
    assert widths == [8, 24, 8]
    assert list(report["abx"]["SAE"])[2:5] == LAYERS
    probed = report["probes"]["speaker"]["SAE"]["layers"]
    assert list(probed)[2:5] == LAYERS
    decoders = {path.name for path in (folder / "SAE_1").glob("*_module3*")}
    assert decoders == {"decoder_module3", "spectrogram_module3"}
    text = (folder / "report.md").read_text()
    assert f"SAE {NAME}" in text
