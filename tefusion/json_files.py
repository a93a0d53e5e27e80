"""JSON from strangers: one object a file, or one row a line. What cannot be read is one line that names the place."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

LONGEST_LINE = 1 << 20  # bytes; a row of a benchmark has a few thousand
LARGEST_FILE = 16 << 20  # bytes; the largest index of shards has one
BOM = b"\xef\xbb\xbf"  # some editors begin UTF-8 with it
Row = TypeVar("Row")
Raw = TypeVar("Raw")


def read_object(path: str | Path) -> dict[str, Any]:
    """The one object of a file. Raises ValueError naming the file."""
    content = read_whole(path, ValueError)
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a JSON object")
    return content


def read_whole(path: str | Path, wrong: type[ValueError]) -> Any:
    """A file that is one JSON value. Raises a `wrong` naming the file."""
    path = Path(path)
    if not path.is_file():
        raise wrong(f"{path} cannot be read: it is no file")
    if path.stat().st_size > LARGEST_FILE:
        raise wrong(f"{path} is larger than {LARGEST_FILE:,} bytes")
    try:
        return decode(path.read_bytes().removeprefix(BOM))
    except ValueError as error:
        raise wrong(f"{path} is not JSON: {error}") from None


def read_rows(
    path: str | Path, parse: Callable[[Any], Row], wrong: type[ValueError], problems: list[str] | None = None
) -> list[Row]:
    """What `parse` makes of each row; a ValueError of its own becomes a `wrong` that names file and line, or one of the
    `problems` where these are collected. Empty lines, CRLF and a byte order mark are skipped."""
    lines = ((f"{path}, line {number}", line) for number, line in numbered(Path(path), wrong))
    return parsed(lines, lambda line: parse(decode(line)), wrong, problems)


def read_list(
    path: str | Path, parse: Callable[[Any], Row], wrong: type[ValueError], problems: list[str] | None = None
) -> list[Row]:
    """The same for a file that is one JSON list: rows are counted from 1."""
    rows = read_whole(path, wrong)
    if not isinstance(rows, list):
        raise wrong(f"{path} is not a JSON list")
    return parsed(((f"{path}, row {number}", row) for number, row in enumerate(rows, 1)), parse, wrong, problems)


def parsed(
    rows: Iterable[tuple[str, Raw]],
    parse: Callable[[Raw], Row],
    wrong: type[ValueError],
    problems: list[str] | None = None,
) -> list[Row]:
    """`rows` are places and what stands there."""
    found = []
    for place, row in rows:
        try:
            found.append(parse(row))
        except ValueError as error:
            if problems is None:
                raise wrong(f"{place}: {error}") from None
            problems.append(f"{place}: {error}")
    return found


def numbered(path: Path, wrong: type[ValueError]) -> Iterator[tuple[int, bytes]]:
    """No more than one line is in memory."""
    if not path.is_file():
        raise wrong(f"{path} cannot be read: it is no file")
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE + 1), b""), start=1):
            if len(line) > LONGEST_LINE:
                raise wrong(f"{path}, line {number}: longer than {LONGEST_LINE:,} bytes")
            line = line.removeprefix(BOM) if number == 1 else line
            if line.strip():
                yield number, line


def decode(text: bytes) -> Any:
    """Raises ValueError for what is no UTF-8 or no JSON, NaN and a key that comes twice included."""
    try:
        return json.loads(text.decode(), object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key comes twice in one object")
    return found


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
