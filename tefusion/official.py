"""MotionBench's own scoring script, reproduced with its quirks: what a leaderboard that runs it would print.

It goes by the questions that the answers file names. A secret question ("NA") that is answered counts among the
answered ones, not in the total; one that is not answered counts in the total. And it wraps a row's category into one
more list at each answered question, so that the second one with a known answer cannot be counted: it fails.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tefusion.data.question import Question


class ScriptFails(ValueError):
    """The official script would end with an error here."""


@dataclass
class Official:
    right: int = 0
    total: int = 0
    answered: int = 0
    by_category: dict[str, float] = field(default_factory=dict)

    @property
    def acc(self) -> float:
        return self.right / self.total

    @property
    def answered_acc(self) -> float:
        return self.right / self.answered


def official(questions: Sequence[Question], answers: Mapping[str, str]) -> Official:
    """`answers` as they stand in the file: only an exact letter is right. Raises ScriptFails."""
    counts, right, asked = Official(), defaultdict[str, int](int), defaultdict[str, int](int)
    wrapped = defaultdict[str, int](int)  # how often a row's category was put into a list
    for question in questions:
        if question.uid in answers:
            counts.answered += 1
            row = question.row or question.uid
            wrapped[row] += 1
            if question.answer is None:
                continue
            if wrapped[row] > 1:
                raise ScriptFails(f"question {question.uid} is the second that is answered in its row")
            correct = answers[question.uid] == question.answer
            asked[question.category] += 1
            right[question.category] += correct
            counts.right += correct
        counts.total += 1
    if not counts.answered or not counts.total:
        raise ScriptFails(
            "it divides by zero: no question is answered" if not counts.answered else "it divides by zero"
        )
    counts.by_category = {name: right[name] / asked[name] for name in asked}
    return counts
