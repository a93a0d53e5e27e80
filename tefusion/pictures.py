"""A folder of numbered pictures as a video: MVBench keeps some videos as jpg files, at the rate its folder names."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from tefusion.containers import MOST_PIXELS, Clip, VideoError

SUFFIXES = (".jpg", ".jpeg", ".png")
RATE = re.compile(r"fps(\d{1,3})(?!\d)")  # as in frames_fps3_hq


def is_pictures(path: str | os.PathLike[str]) -> bool:
    try:
        return os.path.isdir(path) and bool(_files(path))  # noqa: PTH112, Path.is_dir raises where a name is too long
    except (OSError, ValueError):
        return False


def picture_clip(path: str | os.PathLike[str]) -> Clip:
    """The pictures in the order of their numbers. Raises VideoError where no folder around them names their rate."""
    folder, files = Path(path), _files(path)
    rates = [int(match[1]) for part in reversed(folder.absolute().parts) if (match := RATE.search(part))]
    if not rates or not rates[0]:
        raise VideoError(
            f"{path}: a folder of pictures needs their rate in its or its parent's name, as in frames_fps3"
        )
    height, width = read_picture(files[0]).shape[:2]
    return Clip(os.fspath(path), len(files), (), 1 / rates[0], float(rates[0]), len(files), height, width, "pictures")


def read_pictures(clip: Clip, indices: Iterable[int]) -> dict[int, np.ndarray]:
    files = _files(clip.path)
    return {index: read_picture(files[index]) for index in set(indices)}


def read_picture(file: Path) -> np.ndarray:
    """h w 3, upright."""
    from PIL import Image, ImageOps

    try:
        with Image.open(file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise VideoError(
                    f"{file}: a picture of {image.width} x {image.height} pixels is more than any video has"
                )
            return np.array(ImageOps.exif_transpose(image).convert("RGB"))
    except VideoError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(
            f"{file}: not a picture, truncated or damaged ({' '.join(str(error).split())[:100]})"
        ) from error


def _files(path: str | os.PathLike[str]) -> list[Path]:
    """Numbers count as numbers: frame 10 comes after frame 9, padded or not."""
    files = [file for file in Path(path).iterdir() if file.suffix.lower() in SUFFIXES]
    return sorted(
        files, key=lambda file: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", file.name)]
    )
