"""Waveforms -> latents."""
