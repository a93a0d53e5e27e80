"""A trained model answers a question about a video file."""

import json
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tefusion.config import Run
from tefusion.train import create_vlm
from tefusion.video import Request, decode, parse_size
from tefusion.vlm import VLM


def load_run(folder: Path) -> tuple[Run, VLM]:
    """The run and its trained model, from the folder that `tefusion train` wrote."""
    settings, weights = folder / "run.json", folder / "model.safetensors"
    for file in (settings, weights):
        if not file.is_file():
            raise ValueError(f"{folder} holds no {file.name}: it is written by tefusion train")
    try:
        run = Run(**json.loads(settings.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{settings} is no run of this version: {error}") from None
    vlm = create_vlm(run)
    try:
        vlm.load_state_dict(load_file(weights))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{weights} does not fit: {' '.join(str(error).split())}") from None
    return run, vlm.eval()


@torch.no_grad()
def ask(folder: Path, video: Path, question: str, length: int) -> str:
    """The reply of at most `length` tokens, and what it cost."""
    run, vlm = load_run(folder)
    clip = None
    if run.n_input:
        clip = decode(video, Request(run.n_input, run.policy, parse_size(run.size), multiple_of=run.k)).frames
    start = time.perf_counter()
    (reply,) = vlm.generate(
        [None if clip is None else torch.from_numpy(clip)], [question + "\n"], max_new_tokens=length
    )
    milliseconds = 1e3 * (time.perf_counter() - start)
    frames, tokens = (0, 0) if clip is None else (len(clip), vlm.tokens_out(*clip.shape[:3]))
    return f"{reply}\n({frames} frames, {tokens} video tokens, {milliseconds:.0f} ms)"
