"""A trained model answers a question about a video file."""

import time
from pathlib import Path

import torch

from tefusion.cells import check
from tefusion.choices import brief
from tefusion.config import Run, fields
from tefusion.cost import PeakMemory
from tefusion.encoders.weights import load_weights
from tefusion.json_files import read_object
from tefusion.train import create_vlm
from tefusion.video import parse_size
from tefusion.vlm import VLM


def load_run(folder: Path) -> tuple[Run, VLM]:
    """The run and its trained model, from the folder that `tefusion train` wrote."""
    for name in ("run.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no {name}: it is written by tefusion train")
    run = read_run(folder / "run.json")
    vlm = create_vlm(run)
    load_weights(vlm, folder / "model.safetensors")
    return run, vlm.eval()


def read_run(file: Path) -> Run:
    """Raises ValueError where the file is no run that this version can do."""
    settings = read_object(file)
    try:
        known = fields(Run)
        if odd := [name for name in {**settings, **known} if (name in settings) != (name in known)]:
            raise ValueError(f"{brief(odd[0])} is {'unknown' if odd[0] in settings else 'missing'}")
        run = Run(**settings)
        check(run)
    except ValueError as error:
        raise ValueError(f"{file} is no run of this version: {error}") from None
    return run


def load_model(folder: Path):
    """Model and processor of a folder that `tefusion train`, `tefusion convert` or `save_pretrained` wrote.

    Raises ValueError in one line where it cannot be loaded as a whole.
    """
    if (folder / "run.json").is_file() or not (folder / "config.json").is_file():
        from tefusion.hub.export import export

        return export(*load_run(folder))
    from tefusion.hub.loading import load_pretrained

    return load_pretrained(folder)


@torch.no_grad()
def ask(folder: Path, video: Path, question: str, length: int) -> str:
    """The reply of at most `length` tokens, and what it cost: from the frames on, the model's loading left out."""
    if length < 1:
        raise ValueError(f"tokens must be at least 1, got {length}")
    model, processor = load_model(folder)
    frames, tokens = processor.frames, 0
    if frames:
        size = parse_size(processor.size)
        tokens = processor.num_video_tokens(frames, *size)
        # Before the frames are decoded: a model from elsewhere may name any size.
        model.check_room(tokens + length, [(frames, *size)])
    peak, start = PeakMemory(), time.perf_counter()
    inputs = processor.question(question, video if frames else None).to(model.device)
    asked = inputs["input_ids"].shape[1]
    shapes = [(len(v), *v.shape[-2:]) for v in inputs.get("pixel_values_videos", [])]
    model.check_room(asked + length, shapes)
    ids = model.generate(**inputs, max_new_tokens=length)
    milliseconds = 1e3 * (time.perf_counter() - start)
    reply = processor.decode(ids[0, asked:], skip_special_tokens=True)
    places = sum(processor.num_video_tokens(*shape) for shape in shapes)
    cost = [f"{sum(t for t, *_ in shapes)} frames", f"{places} video tokens", f"{asked - places} text tokens"]
    return f"{reply}\n({', '.join([*cost, f'{milliseconds:.0f} ms', f'{peak.read():.0f} MB'])})"
