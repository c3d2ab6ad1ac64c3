"""Corpora: folder -> manifest -> batch."""
