"""Videos that training and evaluation share: by the name of their source, or byte for byte."""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

SUFFIXES = {".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v", ".gif"}
CUT = re.compile(r"[_-]\d+(\.\d+)?[_-]\d+(\.\d+)?$")  # as in name_58_59: seconds 58 to 59 of its source


def source_id(video: Path) -> str:
    """The name of what a clip was cut from, whatever its ending and the case of its letters. Names that are numbers
    alone are kept whole: their parts are no seconds."""
    name = video.stem.lower()
    cut = CUT.sub("", name)
    return cut if re.search("[a-z]", cut) else name


def videos_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())


def digest(video: Path) -> str:
    whole = hashlib.blake2b(digest_size=16)
    with video.open("rb") as file:
        while block := file.read(1 << 20):
            whole.update(block)
    return whole.hexdigest()


def overlap(evaluation: Iterable[Path], training: Iterable[Path]) -> dict[Path, str]:
    """Videos of the evaluation that training has as well -> how that was seen: "source", "content" or both. Only files
    of one size are read."""
    names, sizes, hashes = set(), defaultdict(list), dict[int, set[str]]()
    for video in training:
        names.add(source_id(video))
        sizes[video.stat().st_size].append(video)
    found = {}
    for video in evaluation:
        seen = ["source"] if source_id(video) in names else []
        size = video.stat().st_size if video.is_file() else -1
        if size in sizes:
            if size not in hashes:
                hashes[size] = {digest(other) for other in sizes[size]}
            seen += ["content"] if digest(video) in hashes[size] else []
        if seen:
            found[video] = " and ".join(seen)
    return found
