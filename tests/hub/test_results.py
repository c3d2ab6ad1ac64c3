"""The results page of a model: all that was measured, from its own files."""

import shutil

import pytest

from speechbrain_sim.files import write_json
from speechbrain_sim.hub.card import write_card
from speechbrain_sim.hub.publish import export_model, publish_model
from speechbrain_sim.hub.results import RESULTS, write_results
from speechbrain_sim.models.fetch import BOX
from speechbrain_sim.models.format import read_config
from tests.conftest import ROOT

REPORT = """# Codes, noise

Of a few epochs.

## Scores

Which is better.

### A picture

![Lines.](figures/a.svg)

Seen.

### A table

|  | EV (%) |
| --- | ---: |
| module3.sae | 96.8 [96.7, 96.8] |

In percent.

### Not there

**Not measured.** There are no labels.

## Listen

### Sounds

- [one](audio/one.wav)
"""


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained.run, tmp_path / "SIM_1")


def results(run, *more):
    export_model(run, run.parent / "model", *more)
    return (run.parent / "model" / RESULTS).read_text()


def test_an_export_has_the_numbers_of_its_parts(trained):
    text = (trained.model / RESULTS).read_text()
    assert (
        "[RESULTS.md](RESULTS.md)" in (trained.model / "README.md").read_text()
    )
    assert text.startswith("# model: results\n")
    score = "| 50.0 ± 1.0 [40.0, 60.0] |"
    assert f"| module3, chosen {score} 60.0 | 30.0 | 30.0 |" in text
    assert f"| module1 {score} 50.0 | 30.0 | 30.0 |" in text
    assert "### speaker, 2 classes" in text
    assert "| module3, valid | 0.254 |" in text
    assert "Halves" not in text


def test_the_run_s_tables_come_along_without_its_pictures(run):
    (run / "report.md").write_text(REPORT)
    text = results(run)
    assert "\n## Codes, noise\n\nOf a few epochs.\n\n### Scores\n" in text
    assert "#### A table\n\n|  | EV (%) |\n" in text and "In percent." in text
    assert "**Not measured.** There are no labels." in text
    for gone in ("picture", "figures/", "Listen", "audio/", "Seen."):
        assert gone not in text


def test_a_report_of_a_study_is_that_of_its_systems(run, trained):
    (run.parent / "report.md").write_text(REPORT)
    write_json(run.parent / "report.json", {"probes": {"phones": {"GIM": 1}}})
    assert "Codes, noise" not in results(run)
    write_json(run.parent / "report.json", {"probes": {"phones": {"SIM": 1}}})
    assert "Codes, noise" in results(run)


def test_halves_have_their_errors_and_nats(run):
    score = {"value": 0.4, "interval": [0.3, 0.5]}
    text = {"kl": 8.7196, "kl_per_second": 871.96, "PER": score}
    write_json(
        run / "vib.json", {"halves": {"text": text, "text_baseline": {}}}
    )
    made = results(run)
    assert "| text | 8.72 | 871.96 | 40.0 [30.0, 50.0] |" in made
    assert "| text, read from the layer |" in made


def test_the_page_is_uploaded_if_there_is_one(trained, tmp_path):
    said = []
    folder = shutil.copytree(trained.model, tmp_path / "model")
    publish_model(folder, "user/model", dry_run=True, say=said.append)
    (folder / RESULTS).unlink()  # of an older version
    publish_model(folder, "user/model", dry_run=True, say=said.append)
    first, second = (line for line in said if line.startswith("To upload"))
    assert RESULTS in first and RESULTS not in second


def test_those_of_the_box_are_made_from_its_files(tmp_path):
    folder = BOX / "sim-small"
    made = tmp_path / folder.name
    made.mkdir()
    write_card(made, read_config(folder / "config.json"))
    write_results(made, read_config(folder / "config.json"))
    for name in ("README.md", RESULTS):
        assert (made / name).read_text() == (folder / name).read_text()
        assert (
            f"{folder.relative_to(ROOT)}/{name}"
            in (ROOT / "docs/index.md").read_text()
        )
