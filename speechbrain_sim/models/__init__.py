"""Saved models: their format, and how they are fetched and loaded."""
