"""The results file: one JSON row a line, only ever appended to, whole after any crash."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tefusion.files import flush_folder

PATIENCE = 3  # failures after which a cell is set aside
NEEDED = {
    "done": ("compressor", "k", "n_input", "l_decoder", "seed", "accuracy", "stderr", "by_category", "questions"),
    "failed": ("compressor", "k", "seed", "reason"),
}
COUNTS = ("questions", "unanswered", "secret", "missing", "replies", "words")
SCORED = ("accuracy", "stderr", "by_category", "asked", *COUNTS)  # of a benchmark


class ResultsError(ValueError):
    """A results file that cannot be reported; the message names the file and the line."""


def append(path: Path, row: Mapping) -> None:
    """One line, on disk before the next cell starts; a line that a crash tore before is closed first."""
    new = not path.exists()
    with path.open("ab+", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        rest = memoryview(b"\n" * torn + json.dumps(row).encode() + b"\n")
        while rest:  # a disk that is nearly full takes a part of it
            rest = rest[file.write(rest) :]
        os.fsync(file.fileno())
    if new:
        flush_folder(path.parent)


def read_results(folders: str | Path | Sequence[str | Path]) -> list[dict]:
    """Rows of every `results.jsonl` and shard `results-*.jsonl` in the folders, each with its `folder`.

    An id that comes twice keeps its last row that is done, else its last one; `failures` counts those that failed. A
    line that is not JSON, as a killed process leaves it, is ignored with a warning; a row that lacks a field or holds a
    wrong one is a ResultsError.
    """
    rows: dict[str, dict] = {}
    for folder in [folders] if isinstance(folders, str | Path) else folders:
        files = sorted([*Path(folder).glob("results.jsonl"), *Path(folder).glob("results-*.jsonl")])
        if not files:
            raise ResultsError(f"{folder} holds no results.jsonl")
        for row in (row for file in files for row in _rows(file)):
            known = rows.get(row["id"], {"status": "failed", "failures": 0})
            failures = known["failures"] + (row["status"] == "failed")
            kept = row if row["status"] == "done" or known["status"] == "failed" else known
            rows[row["id"]] = {**kept, "failures": failures}
    return list(rows.values())


def is_set_aside(row: Mapping) -> bool:
    """Whether a sweep leaves the cell alone: it failed too often."""
    return row["status"] == "failed" and row.get("failures", 1) >= PATIENCE


def is_over(row: Mapping) -> bool:
    """Whether a sweep is through with the cell."""
    return row["status"] == "done" or is_set_aside(row)


def log_of(row: Mapping) -> Path:
    """Where all failures of a cell are told at length, seen from its run folder."""
    return Path("cells") / row["id"] / "error.log"


def _rows(file: Path) -> Iterator[dict]:
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        try:
            row = json.loads(line.decode())
        except (ValueError, RecursionError):  # torn between two characters, or within one
            if line.strip():
                warnings.warn(f"{file}:{number} is a torn line: its cell counts as not run", stacklevel=3)
            continue
        if problem := _problem(row):
            raise ResultsError(f"{file}:{number}: {problem}")
        yield {"control": "", "n_per_k": None, "size": "", **row, "folder": str(file.parent)}


def _problem(row: object) -> str | None:
    if not isinstance(row, dict) or not isinstance(row.get("id"), str):
        return "not a row of results: it needs an id"
    if row.get("status") not in NEEDED:
        return f"status must be done or failed, got {row.get('status')!r}"
    if missing := [name for name in NEEDED[row["status"]] if name not in row]:
        return f"cell {row['id']} lacks {', '.join(missing)}"
    if row["status"] == "failed":
        return None
    accuracies = {"accuracy": row["accuracy"], **row["by_category"]}
    scores = row.get("scores", {})
    if not isinstance(scores, dict) or not all(isinstance(score, dict) for score in scores.values()):
        return f"cell {row['id']}: scores must be an object of objects"
    if scores and "prompt" not in row.get("evaluation", {}):
        return f"cell {row['id']} has scores and lacks the prompt of its evaluation"
    for benchmark, score in scores.items():
        if missing := [name for name in SCORED if name not in score]:
            return f"cell {row['id']} lacks {', '.join(missing)} of its score on {benchmark}"
        shares = {"accuracy": score["accuracy"], **score["by_category"]}
        accuracies |= {f"{name} on {benchmark}": share for name, share in shares.items()}
    for name, value in accuracies.items():
        if not isinstance(value, int | float) or not 0 <= value <= 1:  # NaN fails as well
            return f"cell {row['id']}: {name} must lie between 0 and 1, got {value!r}"
    return None
