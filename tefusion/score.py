"""reply -> letter -> answers -> accuracy, overall and by category."""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from tefusion.choices import brief
from tefusion.data.question import LETTERS
from tefusion.files import replace_file
from tefusion.json_files import read_rows
from tefusion.statistics import clustered_stderr

# MotionBench's categories in the paper's order, with the paper's short names.
CATEGORIES = {
    "Motion Recognition": "MR",
    "Location-related Motion": "LM",
    "Camera Motion": "CM",
    "Motion-related Objects": "MO",
    "Action Order": "AO",
    "Repetition Count": "RC",
}


class AnswersError(ValueError):
    """An answers file that cannot be scored; the message names the file and the line."""


@dataclass(frozen=True)
class Answer:
    """What was predicted for one question; `prediction` is None where the video or the reply could not be read,
    `seconds` is the length of what it asks about, where that is known."""

    uid: str
    cluster: str
    category: str
    options: int
    prediction: str | None
    answer: str
    seconds: float | None = None

    @property
    def correct(self) -> bool:
        return self.prediction == self.answer


def first_letter(reply: str) -> str | None:
    """The paper's reading of a generated reply: its first upper-case letter, "I think B" included."""
    found = re.search("[A-Z]", reply)
    return found.group() if found else None


def category_order(names: Iterable[str]) -> list[str]:
    """Each name once: MotionBench's six in the paper's order, then any others alphabetically."""
    rank = {name: place for place, names in enumerate(CATEGORIES.items()) for name in names}  # long or short
    return sorted(set(names), key=lambda name: (rank.get(name, len(rank)), name))


def summarise(answers: Sequence[Answer]) -> dict:
    """accuracy, stderr, by_category and questions, as fractions of 1.

    Errors are clustered by video; `stderr` is None where all questions share one video, which leaves nothing to
    estimate it from.
    """
    if not answers:
        raise ValueError("there is no answer to score")
    correct = [answer.correct for answer in answers]
    clusters = [answer.cluster for answer in answers]
    names = category_order(answer.category for answer in answers)
    return {
        "accuracy": sum(correct) / len(correct),
        "stderr": clustered_stderr(correct, clusters) if len(set(clusters)) > 1 else None,
        "by_category": {name: _share(answers, name) for name in names},
        "questions": len(answers),
    }


def _share(answers: Sequence[Answer], category: str) -> float:
    correct = [answer.correct for answer in answers if answer.category == category]
    return sum(correct) / len(correct)


def write_answers(path: str | Path, answers: Iterable[Answer]) -> None:
    """One JSON object a line, with `correct` beside the fields for readers of the file."""
    lines = [json.dumps({**asdict(answer), "correct": answer.correct}, ensure_ascii=False) for answer in answers]
    replace_file(path, "".join(line + "\n" for line in lines).encode())


def read_answers(path: str | Path) -> list[Answer]:
    """Raises AnswersError, naming file and line, for a row that is incomplete, contradicts itself or comes twice."""
    return read_rows(path, partial(_answer, known=set()), AnswersError)


def _answer(row: object, known: set[str]) -> Answer:
    names = [name for name in Answer.__dataclass_fields__ if name != "seconds"]
    if not isinstance(row, dict) or (missing := [name for name in names if name not in row]):
        raise ValueError(f"not an answer: {', '.join(missing)} missing" if isinstance(row, dict) else "not an object")
    answer = Answer(**{name: row[name] for name in names}, seconds=row.get("seconds"))
    if wrong := [name for name in ("uid", "cluster", "category") if not isinstance(row[name], str)]:
        raise ValueError(f"{' and '.join(wrong)} must be text")
    if type(answer.options) is not int or not 1 <= answer.options <= len(LETTERS):
        raise ValueError(f"options must be a count of at least 1, at most {len(LETTERS)}, got {brief(answer.options)}")
    if type(answer.seconds) not in (int, float, type(None)) or not 0 <= (answer.seconds or 0) < float("inf"):
        raise ValueError(f"seconds must be a length of at least 0, got {brief(answer.seconds)}")
    said = f"prediction {brief(answer.prediction)} and answer {brief(answer.answer)}"
    if answer.answer not in [*LETTERS[: answer.options]] or not _letter(answer.prediction):
        raise ValueError(f"{said} must be letters, the answer one of the {answer.options} options")
    if row.get("correct", answer.correct) is not answer.correct:
        raise ValueError(f"correct contradicts {said}")
    if answer.uid in known:
        raise ValueError(f"question {brief(answer.uid)} is answered a second time")
    known.add(answer.uid)
    return answer


def _letter(prediction: object) -> bool:
    """Any capital: a generated reply may begin with one that is no option."""
    return prediction is None or (isinstance(prediction, str) and re.fullmatch("[A-Z]", prediction) is not None)
