"""Each figure of the analysis is drawn, as svg and png."""

import numpy as np
import pytest

from speechbrain_sim.analysis.delta import plot_delta
from speechbrain_sim.analysis.shape import plot_shape, shape
from speechbrain_sim.analysis.smoothness import plot_smoothness
from speechbrain_sim.analysis.study import Results
from speechbrain_sim.analysis.weights import (
    concentration,
    plot_top_n,
    plot_weights,
)

#: of a system; matplotlib would read it as mathematics, which it is not
ODD = r"$\odd{|$"
SCORE = {"value": 1.5, "interval": [1.2, 1.9]}


@pytest.fixture
def drawn(tmp_path):
    yield tmp_path / "folder/figure"
    svg = (tmp_path / "folder/figure.svg").read_text()
    assert len(svg) > 5000 and f"<!-- {ODD}" in svg
    assert "mathdefault" not in svg
    png = (tmp_path / "folder/figure.png").read_bytes()
    assert png.startswith(b"\x89PNG") and len(png) > 5000


def counted(quantity):
    """SIM has two modules, GIM one."""
    ends = {"interval": [[0.9, 1], [0.5, 0.7], [0, 0]]}
    found = {"counts": [0, 2, 4], quantity: [1, 0.6, 0], **ends}
    found["dimensions"] = 4
    return Results(
        {ODD: {"module1": found, "module2": found}, "GIM": {"module2": found}}
    )


def test_delta(drawn):
    published = {"counts": [2, 4], "delta": [0.5, 0], "dimensions": 8}
    published = Results({ODD: {"module1": published}})
    plot_delta(counted("delta"), drawn, published)


def test_top_n(drawn):
    plot_top_n(counted("accuracy"), drawn, chance=1 / 3)


def test_weights(drawn):
    weight = np.random.default_rng(0).normal(size=(2, 8, 3))
    found = concentration(weight, np.ones(8))
    systems = Results({ODD: {"module1": found}, "GIM": {"module2": found}})
    plot_weights(systems, drawn)


def test_shape(drawn):
    x = np.random.default_rng(0).normal(size=(200, 4))
    systems = {ODD: shape(x, 0 * x, x), "GIM": shape(x)}
    systems[ODD]["shown"], systems["GIM"]["shown"] = [0, 1, 2], [3]
    plot_shape(systems, drawn)


def test_smoothness(drawn):
    found = {
        "walks": {"path_ratio": SCORE, "step_ratio": SCORE},
        "moves": {"relative_mean": SCORE},
    }
    systems = Results(
        {ODD: {"module1": found, "module2": found}, "GIM": {"module2": found}}
    )
    plot_smoothness(systems, drawn)
