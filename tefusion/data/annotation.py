"""What the readers of all benchmarks share: fields of a stranger's row, inline options, where a row's video lies."""

import os
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from tefusion.choices import brief
from tefusion.data.question import LETTERS

LONGEST = 1e6  # seconds; a longer clip is a mistake
OPTION = re.compile(r"\s*\(?([A-J])\s*[.):]\s*(.*)", re.DOTALL)


class AnnotationError(ValueError):
    """A folder that is not the benchmark, or an annotation row that cannot be read."""


def field(row: Any, key: str, of: type) -> Any:
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    if key not in row:
        raise ValueError(f"{key!r} is missing")
    if not isinstance(row[key], of):
        raise ValueError(f"{key!r} should be a {of.__name__}, found {type(row[key]).__name__}")
    if of is str:
        check_text(key, row[key])
    return row[key]


def texts(row: Any, key: str) -> list[str]:
    """A list of at least one text."""
    found = field(row, key, list)
    if not found or not all(isinstance(one, str) for one in found):
        raise ValueError(f"{key!r} should be a list of texts, found {brief(found)}")
    for one in found:
        check_text(key, one)
    return found


def check_text(key: str, text: str) -> None:
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(f"{key!r} holds half a character (a lone surrogate)")


def seconds(item: dict[str, Any], key: str) -> float | None:
    """None where the row does not say."""
    value = item.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LONGEST:
        raise ValueError(f"{key!r} should be a number of seconds of at least 0, found {brief(value)}")
    return value


def span(item: dict[str, Any], uid: str) -> tuple[float | None, float | None]:
    """`start` and `end` of the part of the video that is asked about."""
    start, end = (seconds(item, key) for key in ("start", "end"))
    if end is not None and end <= (start or 0):
        raise ValueError(f"'end' of uid {brief(uid)} should come after its start: {end!r} after {start or 0!r}")
    return start, end


def unique(uid: str, known: set[str]) -> str:
    if uid in known:
        raise ValueError(f"uid {brief(uid)} occurs twice")
    known.add(uid)
    return uid


def letter(answer: str, options: int, uid: str) -> str:
    if answer not in list(LETTERS[:options]):
        raise ValueError(f"answer {brief(answer)} of uid {brief(uid)} is none of its {options} options")
    return answer


def split_options(text: str) -> tuple[str, tuple[str, ...]]:
    """Stem and options of "stem\\nA. ...\\n(B) ..."; a line without the next letter continues the one before it."""
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


def bare_options(options: list[str]) -> tuple[str, ...]:
    """The texts of ["A. ...", "B. ..."]."""
    matches = [OPTION.match(option) for option in options]
    if len(options) > len(LETTERS) or [match and match[1] for match in matches] != [*LETTERS[: len(options)]]:
        raise ValueError(f"options {brief(options)} do not begin with A., B., ... in this order")
    return tuple(match[2].strip() for match in matches if match)


def check_name(key: str, name: str) -> None:
    """A name may not leave the folder it is looked up in."""
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise ValueError(f"{key} {brief(name)} is not a name inside the folder")


def check_inside(key: str, name: str, video: Path, folder: Path) -> None:
    if not Path(os.path.realpath(video)).is_relative_to(os.path.realpath(folder)):
        raise ValueError(f"{key} {brief(name)} is a link that leaves the folder")


def find(key: str, name: str, folders: Iterable[Path], suffixes: Iterable[str], folder: Path) -> Path:
    """The first that exists of `name` + suffix in `folders`; else where it belongs first. Raises ValueError where it
    lies outside `folder`."""
    check_name(key, name)
    places = [inner / f"{name}{suffix}" for inner in folders for suffix in suffixes]
    try:
        video = next((place for place in places if place.exists()), places[0])
    except OSError as error:
        raise ValueError(f"{key} {brief(name)} cannot be looked up: {error.strerror}") from None
    check_inside(key, name, video, folder)
    return video
