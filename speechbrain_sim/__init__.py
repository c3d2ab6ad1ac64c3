"""Smooth InfoMax for SpeechBrain."""

from pathlib import Path

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()
