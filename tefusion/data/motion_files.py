"""Clips of the generated set on disk: MotionBench's rows, mp4 files, and the truth beside them.

Imports neither torch nor a model: the processes that write clips start quickly.
"""

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tefusion.data.motion_render import render, texture
from tefusion.data.motion_scene import OBJECTS, SCENARIOS, STRIDES, Array, Scene, Shot, create_scene, in_order
from tefusion.data.motionbench import ANNOTATIONS, QUESTION_TYPES, VIDEO_FOLDERS
from tefusion.data.question import LETTERS

SPLITS = ("train", "dev", "test")
CATEGORIES = tuple(SCENARIOS)
VERSION = 4  # of the scenes: raise it when the same settings give other clips


@dataclass(frozen=True)
class MotionSettings:
    """`size` px (square), `train`, `dev`, `test` clips, `pan` share of clips with a panning background, `sprite` share
    of the size an object takes, `contrast` and `noise` standard deviations in grey levels, `detail` cycles of the
    background's texture across the picture. `shuffled` options ask more of the decoder: it has to find the right one
    among the others before it can name its letter; in their fixed order each answer keeps its place."""

    size: int = 32
    frames: int = 16
    train: int = 12000
    dev: int = 1200
    test: int = 1200
    seed: int = 0
    pan: float = 0.25
    sprite: float = 0.3
    contrast: float = 40.0
    detail: float = 2.0
    noise: float = 0.0
    fps: int = 8
    shuffled: bool = False

    def __post_init__(self) -> None:
        if self.size < 32 or self.size % 32:
            raise ValueError(f"size={self.size}: the motion set needs a multiple of 32 px")
        if self.frames < 8:
            raise ValueError(f"frames={self.frames}: the motion set needs at least 8 frames a clip")
        if min(self.train, self.dev, self.test) < 1 or self.fps < 1 or self.seed < 0:
            raise ValueError("the motion set needs at least one clip in every split, fps >= 1 and seed >= 0")
        if not 0 <= self.pan <= 1 or not 0.1 <= self.sprite <= 0.3 or self.detail < 1:
            raise ValueError("the motion set needs pan in 0..1, sprite in 0.1..0.3 and detail >= 1")
        if min(self.contrast, self.noise) < 0:
            raise ValueError("the motion set needs contrast and noise >= 0")


def ask(settings: MotionSettings, split: str, index: int) -> tuple[np.random.Generator, Scene, tuple[str, ...]]:
    """The clip's own generator, its scene, and the options in their order.

    Categories, then answer letters, then strides follow the index in turn, so every share is equal.
    """
    rng = np.random.default_rng([settings.seed, SPLITS.index(split), index])
    shot = Shot(rng, settings.size, settings.frames, labels(index)["stride"])
    category, answer = CATEGORIES[index % len(CATEGORIES)], labels(index)["answer"]
    while True:
        scene = create_scene(category, shot, settings.pan)
        options = in_order([scene.right, *scene.wrong])
        if settings.shuffled:
            wrong = rng.permutation(scene.wrong).tolist()
            options = (*wrong[:answer], scene.right, *wrong[answer:])
        if options[answer] == scene.right:  # in their fixed order: drawn until it is this letter's turn
            return rng, scene, options


def labels(index: int) -> dict[str, int]:
    turn = index // len(CATEGORIES)
    return {"category": index % len(CATEGORIES), "answer": turn % 4, "stride": STRIDES[turn // 4 % len(STRIDES)]}


def create_clip(settings: MotionSettings, split: str, index: int) -> tuple[dict[str, Any], Array, dict[str, Any]]:
    """Row, frames (t, h, w, 3) and truth of one clip: a pure function of its arguments."""
    rng, scene, options = ask(settings, split, index)
    ground = texture(rng, settings.size, settings.contrast, settings.detail)
    frames, masks = render(scene, ground, radius=settings.sprite * settings.size / 2)
    if settings.noise:
        frames = np.clip(frames + rng.normal(0, settings.noise, frames.shape), 0, 255).round().astype(np.uint8)
    known = {name: np.int64(value) for name, value in labels(index).items()}
    category, answer = CATEGORIES[known["category"]], LETTERS[known["answer"]]
    row = annotation(settings, f"{split}-{index:06d}", category, scene.stem, options, answer)
    return row, frames, {**trajectories(scene), "masks": masks, **known}


def annotation(settings: MotionSettings, name: str, kind: str, stem: str, options: tuple[str, ...], answer: str):
    """A row of MotionBench's own layout."""
    seconds = settings.frames / settings.fps
    text = "\n".join([stem, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))])
    return {
        "question_type": QUESTION_TYPES[kind],
        "video_type": "generated",
        "key": name,
        "video_path": f"{name}.mp4",
        "video_info": {"duration": seconds, "fps": float(settings.fps)},
        "qa": [{"uid": name, "question": text, "answer": answer, "start": 0.0, "end": seconds}],
    }


def trajectories(scene: Scene) -> dict[str, Array]:
    """The scene's arrays padded to OBJECTS; colour and shape 0 mark an empty place."""
    empty = OBJECTS - len(scene.colours)
    pad = ((0, 0), (0, empty))
    return {
        "positions": np.pad(scene.positions, (*pad, (0, 0))).astype(np.float32),
        "visible": np.pad(np.ones_like(scene.flash), pad),
        "angles": np.pad(scene.angles, pad).astype(np.float32),
        "flash": np.pad(scene.flash, pad),
        "colours": np.pad(scene.colours, (0, empty)).astype(np.int64),
        "shapes": np.pad(scene.shapes, (0, empty)).astype(np.int64),
        "background": scene.background.astype(np.float32),
    }


def write_video(path: Path, frames: Array, fps: int) -> None:
    """4:4:4 keeps small coloured sprites sharp; one thread and no B-frames keep bytes and frame order the same
    everywhere; one keyframe a clip."""
    import av

    video = io.BytesIO()  # in memory, or a full disk would be an error of FFmpeg's that names no file
    with av.open(video, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "superfast", "crf": "12", "bf": "0"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv444p"
        stream.codec_context.thread_count = 1
        stream.codec_context.gop_size = len(frames)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    write_file(path, video.getvalue())


def write_file(path: Path, content: bytes) -> None:
    """Names the file where the disk is full."""
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_clips(folder: Path, settings: MotionSettings, split: str, indices: Iterable[int]):
    """Writes the clips' videos under `folder`/<split>; returns their rows and their truth, stacked."""
    rows, truths = [], []
    for index in indices:
        row, frames, truth = create_clip(settings, split, index)
        write_video(folder / split / VIDEO_FOLDERS[0] / str(row["video_path"]), frames, settings.fps)
        rows.append(json.dumps(row))
        truths.append(truth)
    return rows, {name: np.stack([truth[name] for truth in truths]) for name in truths[0]}


def write_split(folder: Path, rows: list[str], truth: dict[str, Array]) -> None:
    from safetensors.numpy import save

    write_file(folder / "truth.safetensors", save(truth))
    write_file(folder / ANNOTATIONS, "".join(f"{row}\n" for row in rows).encode())
