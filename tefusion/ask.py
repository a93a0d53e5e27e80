"""A trained model answers a question about a video file."""

import json
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from tefusion.config import Run
from tefusion.train import create_vlm
from tefusion.video import decode, parse_size
from tefusion.vlm import VLM


def load_run(folder: Path) -> tuple[Run, VLM]:
    """The run and its trained model, from the folder that `tefusion train` wrote."""
    settings, weights = folder / "run.json", folder / "model.safetensors"
    for file in (settings, weights):
        if not file.is_file():
            raise ValueError(f"{folder} holds no {file.name}: it is written by tefusion train")
    run = Run(**json.loads(settings.read_text(encoding="utf-8")))
    vlm = create_vlm(run)
    try:
        vlm.load_state_dict(load_file(weights))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"{weights} does not fit: {' '.join(str(error).split())}") from None
    return run, vlm.eval()


@torch.no_grad()
def ask(folder: Path, video: Path, question: str, tokens: int) -> str:
    """The reply, and what it cost."""
    run, vlm = load_run(folder)
    decoded = decode(video, run.n_input, run.policy, parse_size(run.size), "auto", run.k)
    start = time.perf_counter()
    (reply,) = vlm.generate([torch.from_numpy(decoded.frames)], [question + "\n"], max_new_tokens=tokens)
    milliseconds = 1e3 * (time.perf_counter() - start)
    cost = vlm.tokens_out(*decoded.frames.shape[:3])
    return f"{reply}\n({len(decoded.indices)} frames, {cost} video tokens, {milliseconds:.0f} ms)"
