"""MotionBench (CC-BY-NC-SA-4.0), the real one and whatever is written in its layout: folder -> questions.

One row of `video_info.meta.jsonl` is a video with one or more questions, the options inline; "NA" hides the answer.
"""

import os
import re
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any

from tefusion.choices import brief
from tefusion.data.question import LETTERS, Question
from tefusion.json_files import read_rows

ANNOTATIONS = "video_info.meta.jsonl"
VIDEO_FOLDERS = ("self-collected", "public-dataset")
QUESTION_TYPES = {
    "MR": "Motion Recognition",
    "LM": "Location-related Motion",
    "CM": "Camera Motion",
    "MO": "Motion-related Objects",
    "AO": "Action Order",
    "RC": "Repetition Count",
}
CATEGORY_OF = {name: category for category, name in QUESTION_TYPES.items()}
LONGEST = 1e6  # seconds; a longer clip is a mistake
OPTION = re.compile(r"\s*([A-J])\s*[.):]\s*(.*)")


class MotionBenchError(ValueError):
    """A folder that is not MotionBench, or an annotation row that cannot be read."""


def read_motionbench(folder: str | Path) -> list[Question]:
    """All questions in the file's order. A video that is in neither folder keeps the path where it belongs: what to do
    about it is decided where it is decoded. A question has 1 to 10 options: the benchmark's own vary. Raises
    MotionBenchError naming file and line of the first bad row; a video that lies outside `folder`, reached by a link
    too, makes a row bad."""
    folder = Path(folder)
    path = folder / ANNOTATIONS
    if not path.is_file():
        raise MotionBenchError(f"{folder} is no MotionBench folder: it has no {ANNOTATIONS}")
    parse = partial(parse_row, folder=folder, videos=list_videos(folder), uids=set())
    questions = list(chain.from_iterable(read_rows(path, parse, MotionBenchError)))
    if not questions:
        raise MotionBenchError(f"{path} holds no question")
    return questions


def list_videos(folder: Path) -> dict[str, Path]:
    """Relative name -> path, and the same in lower case, since file endings vary (.mp4, .MP4)."""
    found: dict[str, Path] = {}
    for source in VIDEO_FOLDERS:
        files = [path for path in sorted((folder / source).rglob("*")) if path.suffix.lower() == ".mp4"]
        for path in files:
            found.setdefault(path.relative_to(folder / source).as_posix(), path)
        for path in files:
            found.setdefault(path.relative_to(folder / source).as_posix().lower(), path)
    return found


def parse_row(row: Any, folder: Path, videos: dict[str, Path], uids: set[str]) -> list[Question]:
    kind, name, qa = (field(row, key, of) for key, of in (("question_type", str), ("video_path", str), ("qa", list)))
    if kind not in CATEGORY_OF:
        raise ValueError(f"unknown question_type {brief(kind)}; known are {', '.join(CATEGORY_OF)}")
    if not name or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\0" in name:
        raise ValueError(f"video_path {brief(name)} is not a name inside the folder")
    video = videos.get(name) or videos.get(name.lower()) or folder / VIDEO_FOLDERS[-1] / name
    if not Path(os.path.realpath(video)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"video_path {brief(name)} is a link that leaves the folder")
    questions = []
    for item in qa:
        uid = field(item, "uid", str)
        if uid in uids:
            raise ValueError(f"uid {brief(uid)} occurs twice")
        uids.add(uid)
        text, options = split_options(field(item, "question", str))
        answer = field(item, "answer", str).strip()
        if answer != "NA" and answer not in list(LETTERS[: len(options)]):
            said = f"answer {brief(answer)} of uid {brief(uid)}"
            raise ValueError(f"{said} is neither NA nor one of its {len(options)} options")
        start, end = (seconds(item, key) for key in ("start", "end"))
        if end is not None and end <= (start or 0):
            raise ValueError(f"'end' of uid {brief(uid)} should come after its start: {end!r} after {start or 0!r}")
        letter = None if answer == "NA" else answer
        questions.append(Question(uid, video, text, options, letter, CATEGORY_OF[kind], name, start, end))
    return questions


def field(row: Any, key: str, of: type) -> Any:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    if key not in row:
        raise ValueError(f"{key!r} is missing")
    if not isinstance(row[key], of):
        raise ValueError(f"{key!r} should be a {of.__name__}, found {type(row[key]).__name__}")
    if of is str and any("\ud800" <= letter <= "\udfff" for letter in row[key]):
        raise ValueError(f"{key!r} holds half a character (a lone surrogate)")
    return row[key]


def seconds(item: dict[str, Any], key: str) -> float | None:
    value = item.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LONGEST:
        raise ValueError(f"{key!r} should be a number of seconds of at least 0, found {brief(value)}")
    return value


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """Stem and options of "stem\\nA. ...\\nB. ..."; a line without the next letter continues the one before it."""
    parts: list[list[str]] = [[]]
    for line in text.splitlines():
        match = OPTION.match(line)
        if match and match[1] == LETTERS[len(parts) - 1 : len(parts)]:
            parts.append([match[2].strip()])
        else:
            parts[-1].append(line.strip())
    stem, *options = ("\n".join(part).strip() for part in parts)
    if not stem or not options:
        raise ValueError(f"question {brief(text)} needs a stem and options A., B., ... on lines of their own")
    return stem, tuple(options)
