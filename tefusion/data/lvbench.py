"""LVBench: `video_info.meta.jsonl`, one row a video with its questions; a question may belong to several categories.

Its authors host no videos: `<key>.mp4` is looked for in the folder and in its `videos/` and `all_videos/`. The time
reference says where the answer shows; what is asked about is the whole video.
"""

from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

from tefusion.choices import brief
from tefusion.data.annotation import (
    LONGEST,
    AnnotationError,
    field,
    find,
    letter,
    split_options,
    texts,
    unique,
)
from tefusion.data.question import Question
from tefusion.json_files import read_rows

ANNOTATIONS = "video_info.meta.jsonl"
FOLDERS = ("videos", "all_videos", "")
SUFFIXES = (".mp4", ".MP4", ".mkv", ".webm")


def read_lvbench(folder: str | Path, problems: list[str] | None = None) -> list[Question]:
    """A question's category is its first one, `labels` are all. Raises AnnotationError naming file and line, or
    collects these lines in `problems`."""
    folder = Path(folder)
    path = folder / ANNOTATIONS
    if not path.is_file():
        raise AnnotationError(f"{folder} is no LVBench folder: it has no {ANNOTATIONS}")
    parse = partial(parse_row, folder=folder, uids=set())
    questions = list(chain.from_iterable(read_rows(path, parse, AnnotationError, problems)))
    if not questions and not problems:
        raise AnnotationError(f"{path} holds no question")
    return questions


def parse_row(row: Any, folder: Path, uids: set[str]) -> list[Question]:
    name, qa = field(row, "key", str), field(row, "qa", list)
    video = find("key", name, [folder / inner for inner in FOLDERS], SUFFIXES, folder)
    length, questions = declared(row), []
    for item in qa:
        uid = unique(str(field(item, "uid", (str if isinstance(item.get("uid"), str) else int))), uids)
        text, options = split_options(field(item, "question", str))
        labels = tuple(dict.fromkeys(texts(item, "question_type")))
        right = letter(field(item, "answer", str).strip(), len(options), uid)
        questions.append(Question(uid, video, text, options, right, labels[0], name, labels=labels, seconds=length))
    return questions


def declared(row: dict[str, Any]) -> float | None:
    """Seconds of the whole video."""
    info = row.get("video_info")
    minutes = info.get("duration_minutes") if isinstance(info, dict) else None
    if minutes is None:
        return None
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not 0 <= minutes * 60 < LONGEST:
        raise ValueError(f"'duration_minutes' should be a number of at least 0, found {brief(minutes)}")
    return 60 * minutes
