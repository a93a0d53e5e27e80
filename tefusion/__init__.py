"""Temporal compressors for video language models, side by side under one recipe."""

__version__ = "0.1.0"


def __getattr__(name: str):  # the public names, imported when they are first asked for
    from importlib import import_module

    homes = {"create_video_encoder": "tefusion.vision", "load_glm4v": "tefusion.encoders.weights"}
    if name not in homes:
        raise AttributeError(f"module 'tefusion' has no attribute {name!r}")
    return getattr(import_module(homes[name]), name)
