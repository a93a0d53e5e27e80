"""Temporal compressors for video language models, side by side under one recipe."""

__version__ = "0.1.0"
