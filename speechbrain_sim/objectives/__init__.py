"""Latents -> one scalar per module: the terms and the modules that learn."""
