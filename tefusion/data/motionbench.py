"""MotionBench (CC-BY-NC-SA-4.0), the real one and whatever is written in its layout: folder -> questions.

One row of `video_info.meta.jsonl` is a video with one or more questions, the options inline; "NA" hides the answer.
"""

from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from tefusion.choices import brief
from tefusion.data.annotation import (
    AnnotationError,
    check_inside,
    check_name,
    field,
    seconds,
    span,
    split_options,
    unique,
)
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


class MotionBenchError(AnnotationError):
    """A folder that is not MotionBench, or an annotation row that cannot be read."""


def read_motionbench(folder: str | Path, problems: list[str] | None = None) -> list[Question]:
    """All questions in the file's order. A video that is in neither folder keeps the path where it belongs: what to do
    about it is decided where it is decoded. A question has 1 to 10 options: the benchmark's own vary. Raises
    MotionBenchError naming file and line of the first bad row; a video that lies outside `folder`, reached by a link
    too, makes a row bad. Where `problems` are collected, bad rows are left out instead."""
    folder = Path(folder)
    path = folder / ANNOTATIONS
    if not path.is_file():
        raise MotionBenchError(f"{folder} is no MotionBench folder: it has no {ANNOTATIONS}")
    parse = partial(parse_row, folder=folder, videos=list_videos(folder), uids=set())
    questions = list(chain.from_iterable(read_rows(path, parse, MotionBenchError, problems)))
    if not questions and not problems:
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
    check_name("video_path", name)
    video = videos.get(name) or videos.get(name.lower()) or folder / VIDEO_FOLDERS[-1] / name
    check_inside("video_path", name, video, folder)
    info = row.get("video_info")
    length = seconds(info, "duration") if isinstance(info, dict) else None
    questions: list[Question] = []
    for item in qa:
        uid = unique(field(item, "uid", str), uids)
        text, options = split_options(field(item, "question", str))
        answer = field(item, "answer", str).strip()
        if answer != "NA" and answer not in list(LETTERS[: len(options)]):
            said = f"answer {brief(answer)} of uid {brief(uid)}"
            raise ValueError(f"{said} is neither NA nor one of its {len(options)} options")
        letter = None if answer == "NA" else answer
        start, end = span(item, uid)
        place = (text, options, letter, CATEGORY_OF[kind], name, start, end)
        first = questions[0].uid if questions else uid
        questions.append(Question(uid, video, *place, seconds=length, row=first))
    return questions
