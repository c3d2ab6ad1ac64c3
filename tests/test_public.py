"""What is importable from the root, and what that does not import."""

import subprocess
import sys

import pytest
from hyperpyyaml import load_hyperpyyaml

import speechbrain_sim
from speechbrain_sim.integrations.speechbrain import LatentFeatures
from tests.conftest import ROOT

QUIET = """
import sys
sys.path.insert(0, {root!r})
{code}
assert "matplotlib" not in sys.modules, "it imports matplotlib"
import matplotlib
assert matplotlib.get_backend.__module__ == "matplotlib"
assert not matplotlib.rcParams._get_backend_or_none(), "a backend is chosen"
"""
CODE = {
    "nothing": "import speechbrain_sim; assert 'torch' not in sys.modules",
    **{
        name: f"from speechbrain_sim import {name}"
        for name in speechbrain_sim.__all__
    },
    "check": "from speechbrain_sim import cli; cli.main(['check', {model!r}])",
}


@pytest.mark.parametrize("name", CODE)
def test_nothing_imports_matplotlib(trained, name):
    code = CODE[name].format(model=str(trained.model))
    code = QUIET.format(root=str(ROOT), code=code)
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names():
    assert set(speechbrain_sim.__all__) <= set(dir(speechbrain_sim))
    assert speechbrain_sim.LatentFeatures is LatentFeatures
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        speechbrain_sim.Nothing  # noqa: B018
    with pytest.raises(ImportError):
        exec("from speechbrain_sim import Nothing")


def test_yamls_find_lazy_names(trained):
    made = load_hyperpyyaml(
        f"features: !new:speechbrain_sim.LatentFeatures\n"
        f"    source: {trained.model}\n    layers: [module3]\n"
    )
    assert isinstance(made["features"], LatentFeatures)
