"""The script that counts and draws the package."""

import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def house():
    sys.path.insert(0, str(ROOT / "docs"))
    import house

    yield house
    sys.path.remove(str(ROOT / "docs"))


@pytest.fixture(scope="module")
def floor_plan(house):
    return sys.modules["floor_plan"]


def test_the_drawing_is_that_of_the_package(house):
    drawn = house.DRAWING.read_text(encoding="utf-8")
    assert drawn == house.draw(), "run: python docs/house.py draw"


def test_the_package_has_no_import_circle(house, floor_plan):
    arrows = house.arrows_of(house.read_package())
    assert "speechbrain_sim.encoders.greedy" in arrows
    assert floor_plan.circles(arrows) == []


def test_lines_are_counted(house, tmp_path):
    file = tmp_path / "example.py"
    file.write_text(
        '"""Module.\n\nThree lines, of which one is blank.\n"""\n\n'
        "# a comment\nimport speechbrain_sim.files  # code\n\n\n"
        'def double(x):\n    """One line."""\n    text = """\nno docstring"""\n'
        "    from speechbrain_sim.data import audio, labels\n\n    return 2 * x\n"
    )
    counted = house.read_file(file)
    assert (counted.lines, counted.code, counted.docstring) == (16, 6, 4)
    assert counted.functions == [(7, "double")]
    names = {"files", "data.audio", "data.labels"}
    assert counted.imports == {f"speechbrain_sim.{name}" for name in names}


def test_arrows_lead_to_modules(house, tmp_path):
    package = tmp_path / "speechbrain_sim"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "data/__init__.py").write_text("HOP = 160\n")
    (package / "data/audio.py").write_text(
        "from speechbrain_sim import __version__\n"
        "from speechbrain_sim.data import HOP\n"
    )
    (package / "cli.py").write_text(
        "def run():\n    from speechbrain_sim.data.audio import read_audio\n"
        'LAZY = {"labels": "speechbrain_sim.data.HOP"}\n'
    )
    arrows = house.arrows_of(house.read_package(tmp_path))
    assert arrows == {
        "speechbrain_sim": set(),
        "speechbrain_sim.data": set(),
        "speechbrain_sim.data.audio": {"speechbrain_sim.data"},
        "speechbrain_sim.cli": {
            "speechbrain_sim.data",
            "speechbrain_sim.data.audio",
        },
    }
    rooms = house.arrows_of_rooms(arrows)
    assert rooms == {"speechbrain_sim": set(), "data": set(), "cli": {"data"}}


def test_circles_are_named_and_red(floor_plan):
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"d"}, "e": set()}
    assert floor_plan.circles(arrows) == [("b", "c"), ("d",)]
    arrows = {"a": {"b"}, "b": {"c"}, "c": {"b"}}
    picture = floor_plan.svg(arrows, dict.fromkeys(arrows, ()))
    assert picture.count(floor_plan.RED) == 1
    assert picture.count("marker-end") == 3


def test_boxes_stand_below_what_needs_them_and_apart(floor_plan):
    rooms = {"a": {"b", "c", "d"}, "b": {"d"}, "c": {"d"}, "d": set()}
    contents = {"a": [], "b": ["one", "two"], "c": [], "d": []}
    tree = ElementTree.fromstring(floor_plan.svg(rooms, contents))
    space = "{http://www.w3.org/2000/svg}"
    boxes = [
        {side: float(box.get(side)) for side in ("x", "y", "width", "height")}
        for box in tree.findall(f"{space}rect")[1:]
    ]
    a, b, c, d = boxes  # in the order of their names
    assert a["y"] + a["height"] < b["y"] == c["y"]
    assert b["y"] + b["height"] < d["y"]
    assert abs(b["x"] - c["x"]) >= b["width"] + floor_plan.GAP
    # a needs d through b and through c
    assert len(tree.findall(f"{space}path")) == 4
    names = [text.text for text in tree.findall(f"{space}text")]
    assert names == ["a", "b", "one, two", "c", "d"]


def test_the_limits_decide(house, monkeypatch, capsys):
    for limit in ("PACKAGE_CODE", "RECIPES_CODE", "RATIO"):
        monkeypatch.setattr(house, limit, 10**6)
    for limit in ("FILE_LINES", "FUNCTION_LINES"):
        monkeypatch.setattr(house, limit, 10**6)
    assert house.main(["counts"]) == 0
    assert "EXCEEDED" not in capsys.readouterr().out
    monkeypatch.setattr(house, "FUNCTION_LINES", 5)
    assert house.main(["counts"]) == 1
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "EXC" in x]
    assert line.startswith("lines of the longest function")
    assert house.main([]) == 2
