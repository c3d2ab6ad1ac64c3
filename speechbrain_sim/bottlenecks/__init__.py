"""Frozen latents -> codes -> frozen latents: one file per paper."""
