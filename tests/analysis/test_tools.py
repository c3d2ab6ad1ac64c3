"""The list of tools, their cache, and the report that is made of them."""

import json
import subprocess
import sys

import pytest
import torch

from speechbrain_sim.analysis.latents import Clips
from speechbrain_sim.analysis.listening import Listening
from speechbrain_sim.analysis.study import Study, System, Tool
from speechbrain_sim.analysis.tools import (
    TOOLS,
    choose_tools,
    measure_system,
    write_report,
)
from speechbrain_sim.report.page import Table


class Widest(Tool):
    """A tool of one file: the largest mean of each layer."""

    key, title, sentence = "widest", "Widest", "The largest mean."
    columns = {"largest": "largest mean"}
    measured = 0

    def cells(self, numbers):
        return [f"{numbers['value']:.1f}"]

    def settings(self, study):
        return {"steps": study.steps}

    def measure(self, system, study):
        self.measured += 1

        def measure(layer, mean):
            return {"value": float(mean.max()), "density": [0.0]}

        return {**system.each_layer(measure), "quiet": {"gap": "Silent."}}

    def items(self, found, study):
        rows = [
            {"": n, "value": str(x["value"])} for n, _, _, x in found.rows()
        ]
        return [Table.of("Largest", "", rows)]


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path, Clips(["a"], torch.zeros(1, 9), (0, 0)))


def system(name="SIM", **made_of):
    latents = {"module1": torch.tensor([0.5, 2.0])}
    made_of = {"encoder": "0", **made_of}
    return System(name, None, torch.zeros(1, 9), latents, {}, None, made_of)


def test_keys_are_unique_and_chosen():
    keys = [tool.key for tool in TOOLS]
    assert len(set(keys)) == len(keys)
    assert choose_tools() == TOOLS
    always = ["probes", "abx", "training", "halves"]
    assert [t.key for t in choose_tools(["delta"])] == [*always, "delta"]
    assert [t.key for t in choose_tools(None, inside=False)] == always
    few = [t.key for t in choose_tools(decoders=["waveform"])]
    assert set(keys) - set(few) == {"delta-mel", "smoothness-mel"}
    few = [t.key for t in choose_tools(decoders=[])]
    assert set(keys) - set(few) == {
        *("delta", "delta-mel", "smoothness", "smoothness-mel", "listen")
    }


def test_numbers_are_measured_once(study, tmp_path):
    tool = Widest()
    found = measure_system(system(), study, [tool], tmp_path)
    assert found["widest"]["module1"]["value"] == 2
    again = measure_system(system(), study, [tool], tmp_path)
    assert again == found and tool.measured == 1
    measure_system(system(encoder="1"), study, [tool], tmp_path)
    measure_system(system(), study._replace(steps=3), [tool], tmp_path)
    assert tool.measured == 3
    # what a tool does not need does not concern it
    measure_system(
        system(probes="1"), study._replace(steps=3), [tool], tmp_path
    )
    assert tool.measured == 3


def test_other_layers_are_measured_anew(study, tmp_path):
    tool, few = Widest(), system()
    more = few._replace(latents={**few.latents, "module2": torch.ones(2)})
    assert (
        "module2" not in measure_system(few, study, [tool], tmp_path)["widest"]
    )
    found = measure_system(more, study, [tool], tmp_path)["widest"]
    assert found["module2"]["value"] == 1 and tool.measured == 2


def test_a_tool_that_measures_nothing_writes_no_file(study, tmp_path):
    assert measure_system(system(), study, [Listening()], tmp_path) == {}
    assert not list(tmp_path.iterdir())


def test_a_new_tool_is_in_the_report(study, tmp_path):
    tool = Widest()
    found = measure_system(system(), study, [tool], tmp_path)
    results = {"widest": {"SIM": found["widest"]}}
    study = study._replace(systems=[system()], results=results)
    (section,) = write_report(study, [tool], "Title", "Note", {})
    assert [item.title for item in section.items] == ["Largest", "SIM quiet"]
    text = (tmp_path / "report.md").read_text()
    assert "| SIM module1 | 2.0 |" in text and "Silent." in text
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["widest"]["SIM"]["module1"] == {"value": 2.0}


def test_what_only_draws_imports_matplotlib():
    heavy = "{'matplotlib', 'sklearn', 'captum'}"
    command = "import sys, speechbrain_sim.analysis.tools; "
    command += f"assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", command], check=True)
