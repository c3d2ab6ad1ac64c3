"""The table of cases is whole, and each test that it names is there."""

import ast
import re
from pathlib import Path

import pytest

from tests.test_house import ROOT

TABLE = Path(__file__).with_name("README.md")
#: the cases of each kind
CASES = {"A": 7, "B": 12, "C": 5, "D": 12, "E": 15, "F": 10, "G": 9, "H": 20}
CASES |= {"I": 4}


def rows():
    """The table's lines: {case: its cells}."""
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if "|" in line]
    cells = [[cell.strip() for cell in line] for line in cells]
    return {line[0]: line for line in cells if re.match(r"[A-I]\d+$", line[0])}


def test_every_case_has_a_line():
    """A case is mended, or the table says what is left."""
    wanted = {f"{kind}{n + 1}" for kind, most in CASES.items() for n in range(most)}
    assert rows().keys() == wanted


@pytest.mark.parametrize("case", rows())
def test_every_line_names_tests_that_exist(case):
    """A renamed test is renamed in the table."""
    named = re.findall(r"(tests/[\w/]+\.py)::(\w+)", rows()[case][1])
    assert named, f"{case} has no test"
    for file, function in named:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        functions = {n.name for n in ast.walk(tree) if hasattr(n, "name")}
        assert function in functions, f"{case}: {file} has no {function}"
