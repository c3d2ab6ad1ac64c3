"""The tutorials run, small ones here; their pages show what they hold."""

import ast
import copy
import re
import sys
from pathlib import Path

import nbformat
import pytest

from tests.conftest import ROOT

sys.path.insert(0, str(ROOT / "docs"))
import tutorials  # noqa: E402

sys.path.remove(str(ROOT / "docs"))
NOTEBOOKS = {name: tutorials.read(name) for name in tutorials.NAMES}
FEW = {"speakers": 3, "sentences": 9, "test_sentences": 3}
FEW_OPTIONS = " ".join(f"--{name} {number}" for name, number in FEW.items())
READING = (
    "probes: [linear], controls: 10, passes: 5, epochs: 1, frame_rows: 300"
)


def small(work):
    """Returns settings of tiny twins, which share a corpus in a folder."""
    corpus = f"--data_folder {work}/corpus {FEW_OPTIONS}"
    sae = '--k "[4]" --seeds "[1]" --expansion 1 --number_of_epochs 1 '
    sae += '--sheet "{train_rows: 500, test_rows: 500, probe_rows: 300, '
    sae += 'factor_rows: 100, posterior_rows: 50, abx_recordings: 3}"'
    encoder = "--channels 6 --context_channels 4 --crop_samples 5120 "
    encoder += "--prediction_steps 2 --num_negatives 3 --num_workers 0"
    return {
        "walk": {"layer": "module3", "stops": 3},
        "folder": {
            "audio": None,
            "work": work,
            "corpus": FEW,
            "sizes": encoder,
            "epochs": 1,
            "decoder_epochs": 1,
        },
        "sae": {
            "work": work,
            "encoder": '--encoder sim-small --layers "[module3]"',
            "sizes": sae,
            "corpus": corpus,
        },
        "halves": {
            "work": work,
            "corpus": corpus,
            "sizes": "--latent_dim 4 --number_of_epochs 2 --hold_epochs 1",
            "probes": f'--reading "{{{READING}}}" --read "[speaker, phones]"',
        },
        "recipe": {"work": work, "corpus": FEW, "epochs": 1},
    }


def settings_of(notebook):
    """Returns the cell of a notebook that a twin replaces."""
    tagged = [
        cell
        for cell in notebook.cells
        if tutorials.PARAMETERS in cell.metadata.get("tags", ())
    ]
    (cell,) = tagged
    return cell


def assigned(source):
    """Returns the names that code assigns."""
    names = [n for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)]
    return {n.id for n in names if isinstance(n.ctx, ast.Store)}


def test_tiny_twins_run(tmp_path):
    work = str(tmp_path)
    cells = []
    for name, settings in small(work).items():
        twin = copy.deepcopy(NOTEBOOKS[name])
        cell = settings_of(twin)
        assert assigned(cell.source) == set(settings)
        lines = [f"{key} = {value!r}" for key, value in settings.items()]
        if name == "recipe":
            lines.append("work = Path(work)")
        cell.source = "\n".join(lines)
        # one kernel for all: to start and to import takes seconds
        cells += [nbformat.v4.new_code_cell("%reset -f"), *twin.cells]
    joined = nbformat.from_dict({**NOTEBOOKS["walk"], "cells": cells})
    tutorials.execute(joined, tmp_path)
    outputs = [o for c in cells for o in c.get("outputs", ())]
    kinds = [k for o in outputs for k in o.get("data", ())]
    assert kinds.count("image/png") >= 12 and kinds.count("text/html") >= 25
    assert (tmp_path / "model/README.md").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", tutorials.NAMES)
def test_tutorials_run(name, tmp_path, monkeypatch):
    notebook = copy.deepcopy(NOTEBOOKS[name])
    tutorials.execute(notebook, tutorials.FOLDER)


@pytest.mark.parametrize("name", tutorials.NAMES)
def test_notebooks_are_kept_without_outputs(name):
    assert NOTEBOOKS[name] == tutorials.clean(NOTEBOOKS[name])
    settings_of(NOTEBOOKS[name])


@pytest.mark.parametrize("name", tutorials.NAMES)
def test_pages_show_the_cells_of_the_notebooks(name):
    page = (tutorials.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert tutorials.without_outputs(page) == tutorials.page_of(
        name, NOTEBOOKS[name]
    )


@pytest.mark.parametrize("name", tutorials.NAMES)
def test_pages_have_their_pictures_and_sounds(name):
    page = (tutorials.FOLDER / f"{name}.md").read_text(encoding="utf-8")
    shown = re.findall(rf'(?:\]\(|src="){name}/([\w.]+)', page)
    files = {p.name: p for p in (tutorials.FOLDER / name).iterdir()}
    assert sorted(shown) == sorted(files)
    for path in files.values():
        assert path.stat().st_size <= 30_000, path
    kinds = {Path(file).suffix for file in files}
    assert kinds == {".webp", ".mp3"}


def test_an_error_in_a_cell_or_a_recipe_is_raised(tmp_path):
    for line in ("1 / 0", "%run nowhere.py"):
        cell = nbformat.v4.new_code_cell(line)
        broken = nbformat.from_dict({**NOTEBOOKS["walk"], "cells": [cell]})
        with pytest.raises(Exception, match="ZeroDivision|not found"):
            tutorials.execute(broken, tmp_path)
