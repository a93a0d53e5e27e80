"""A trained model answers a question about a video file."""

import time
from pathlib import Path

import torch

from tefusion.cells import check
from tefusion.choices import brief
from tefusion.config import Run, fields
from tefusion.encoders.weights import load_weights
from tefusion.json_files import read_object
from tefusion.train import create_vlm
from tefusion.video import Request, decode, parse_size
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


@torch.no_grad()
def ask(folder: Path, video: Path, question: str, length: int) -> str:
    """The reply of at most `length` tokens, and what it cost."""
    if length < 1:
        raise ValueError(f"tokens must be at least 1, got {length}")
    run, vlm = load_run(folder)
    clip = None
    if run.n_input:
        request = Request(run.n_input, run.policy, parse_size(run.size), multiple_of=run.k)
        # Before the frames are decoded: a run from elsewhere may name any size.
        vlm.check_length(vlm.tokens_out(run.n_input, *parse_size(run.size)) + length)
        clip = decode(video, request)
    start = time.perf_counter()
    frames = None if clip is None else torch.from_numpy(clip.frames)
    seconds = None if clip is None else [torch.tensor(clip.seconds)]
    (reply,) = vlm.generate([frames], [question + "\n"], max_new_tokens=length, seconds=seconds)
    milliseconds = 1e3 * (time.perf_counter() - start)
    shown, tokens = (0, 0) if clip is None else (len(clip.frames), vlm.tokens_out(*clip.frames.shape[:3]))
    return f"{reply}\n({shown} frames, {tokens} video tokens, {milliseconds:.0f} ms)"
