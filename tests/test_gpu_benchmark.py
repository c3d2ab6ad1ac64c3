"""benchmarks/gpu.py, rehearsed at toy size on a CPU."""

import tarfile
from types import SimpleNamespace

import pytest
from safetensors import safe_open

from benchmarks import gpu, gpu_paper
from speechbrain_sim.files import read_json, write_json


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The folder of a rehearsal of all three parts."""
    folder = tmp_path_factory.mktemp("gpu")
    arguments = ["--toy", "--plus", "--epochs", "1", "--output", str(folder)]
    assert gpu.main([*arguments, "--device", "cpu"])
    return folder, arguments


def test_all_parts_are_measured(toy):
    done = read_json(toy[0] / "gpu.json")["done"]
    assert list(done) == ["right", "fast", "paper"]
    for part in ("right", "fast"):
        assert all(table["rows"] for table in done[part].values())
    text = (toy[0] / "gpu.md").read_text(encoding="utf-8")
    assert "missing" not in text and "Failed" not in text
    assert "**reduced**" in text


def test_the_papers_results_are_handed_over(toy):
    with tarfile.open(toy[0] / "paper.tar.gz") as tar:
        names = tar.getnames()
    for name in ("report.md", "SIM_1/probe/probe_vowel.json"):
        assert f"paper/{name}" in names
    for name in (*gpu_paper.NAMES, "SIM_plus"):
        assert f"paper/{name}_1/delta.json" in names
        with safe_open(toy[0] / f"{name}.safetensors", "pt") as encoder:
            dtypes = {str(encoder.get_tensor(k).dtype) for k in encoder.keys()}
        assert "torch.float32" not in dtypes
    assert len([path for path in toy[0].iterdir() if path.is_file()]) <= 8
    inner = {part for name in names for part in name.split("/")}
    assert not inner & {"save", "activations"}


def test_files_that_vanish_are_left_out(tmp_path, monkeypatch):
    """Steps that run replace their files, and write checkpoints."""
    results = gpu.Results(tmp_path / "work", tmp_path / "out", 1)
    results.content["steps"] = {}
    run = results.work / "paper/SIM_1"
    (run / "save/CKPT").mkdir(parents=True)
    for name in ("log.txt", "save/CKPT/CKPT.yaml", "weights.safetensors"):
        (run / name).write_text("text")
    found = gpu_paper.finished_files
    monkeypatch.setattr(
        gpu_paper,
        "finished_files",
        lambda folder: [*found(folder), folder / "SIM_1/gone.json"],
    )
    monkeypatch.setattr(gpu_paper, "tables_of", lambda *_: [])
    results.content["done"] = {}
    gpu_paper.hand_over(results, SimpleNamespace(plus=False), "fp32")
    with tarfile.open(results.output / "paper.tar.gz") as tar:
        assert tar.getnames() == ["paper/SIM_1/log.txt"]


def test_each_row_is_written_when_it_is_measured(tmp_path):
    def stop(rows):
        raise gpu.TimeIsUp

    def fail(rows):
        raise RuntimeError("out of memory")

    def results():
        return gpu.Results(tmp_path / "work", tmp_path / "out", 1)

    rows = {
        "one": lambda rows: {"x": 1},
        "failing": fail,
        "two": lambda rows: {"x": 1 + rows[-1]["x"]},
    }
    with pytest.raises(gpu.TimeIsUp):
        results().measure("fast", "Steps", lambda: {**rows, "cut": stop})
    after = results()
    assert after.content["done"]["fast"]["Steps"]["keys"] == ["one", "two"]
    rows = {key: fail for key in ("one", "two")}
    rows["cut"] = lambda rows: {"x": len(rows)}
    found = after.measure("fast", "Steps", lambda: rows)
    assert found == [{"x": 1}, {"x": 2}, {"x": 2}]
    assert not after.content["errors"]


def test_what_is_done_is_not_repeated(toy, monkeypatch):
    folder, arguments = toy
    before = read_json(folder / "gpu.json")["done"]["right"]
    monkeypatch.setattr(gpu_paper, "run_step", None)
    assert gpu.main([*arguments, "--device", "cpu"])
    assert read_json(folder / "gpu.json")["done"]["right"] == before


def test_results_are_published_into_a_page(toy, tmp_path):
    page = tmp_path / "gpu.md"
    page.write_text(f"# Title\n\n{gpu.MARK}\n\nold\n", encoding="utf-8")
    gpu.publish([toy[0], toy[0]], page)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# Title\n\n{gpu.MARK}\n\n## Right\n\nMeasured ")
    assert "old" not in text


def test_tables_name_the_card_that_they_were_measured_on(tmp_path):
    page = tmp_path / "gpu.md"
    page.write_text(gpu.MARK, encoding="utf-8")
    for card, part in (("H100", "paper"), ("H200", "fast")):
        machine = {"gpu": card, "torch": "2", "speechbrain": "1"}
        table = {"rows": [{"x": 1}], "seconds": 0.0}
        content = {"date": f"2026 {card}", "machine": machine}
        content |= {"done": {part: {"Steps": table}}}
        write_json(tmp_path / card / "gpu.json", content)
    gpu.publish([tmp_path / "H100", tmp_path / "H200"], page)
    text = page.read_text(encoding="utf-8")
    fast, paper = text.split("## The paper's systems")
    assert "Measured 2026 H200 on H200, torch 2" in fast
    assert "Measured 2026 H100 on H100" in paper and "H100" not in fast


def test_a_step_that_fails_stops_only_what_needs_it(tmp_path, monkeypatch):
    """In processes of their own, as on a GPU."""
    chosen = gpu.options(["--toy", "--data", str(tmp_path)])
    chosen.toy, chosen.device = False, "cpu"
    results = gpu.Results(tmp_path / "work", tmp_path / "out", 1)
    monkeypatch.setattr(gpu_paper, "command_line", lambda *_: [])
    monkeypatch.setattr(gpu_paper, "hand_over", lambda *_: None)
    monkeypatch.setattr(gpu_paper.sys, "executable", "/bin/false")
    steps = gpu_paper.Steps(results, chosen, "fp32")
    steps.state["train/GIM/"] = 1.0
    assert not steps.run()
    failed = {title.split(": ")[1] for title in results.content["errors"]}
    assert "train/SIM/" in failed and "decode/GIM/module1" in failed
    assert not any("SIM" in name for name in failed - {"train/SIM/"})
    assert "measure/GIM/" not in failed
