"""Smooth InfoMax for SpeechBrain."""

import importlib
from pathlib import Path

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

#: names that can be imported from here, and where they are; imported when used
_PUBLIC = {
    "build_model": "speechbrain_sim.family",
    "load_encoder": "speechbrain_sim.models.load",
    "SmoothInfoMax": "speechbrain_sim.inference",
    "LatentFeatures": "speechbrain_sim.integrations.speechbrain",
}
__all__ = list(_PUBLIC)


def __getattr__(name):
    if name not in _PUBLIC:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__():
    return [*globals(), *__all__]
