"""An answers file of anybody's, scored on a benchmark: unanswered stays in the denominator, secret is never scored."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tefusion.choices import brief
from tefusion.data.annotation import field
from tefusion.data.benchmarks import Benchmark, Source
from tefusion.data.question import LETTERS, Question
from tefusion.files import replace_file
from tefusion.json_files import read_list, read_object, read_rows
from tefusion.official import ScriptFails, official
from tefusion.replies import PARSERS, VERSIONS, is_word
from tefusion.score import AnswersError, category_order
from tefusion.statistics import clustered_stderr
from tefusion.wording import grid, percent, plural


@dataclass(frozen=True)
class Marks:
    """Fractions of 1. `accuracy` is the benchmark's headline, `stderr` is clustered by video and None where the
    headline is no mean over questions, or all of them share a video."""

    accuracy: float
    stderr: float | None
    by_category: dict[str, tuple[float, int]]
    questions: int
    unanswered: int
    secret: int


def read_replies(path: Path) -> dict[str, str]:
    """uid -> reply, of `{uid: letter}` in a .json file, or of rows with a uid and a reply or prediction, one a line.
    A prediction may be null: unanswered. Raises AnswersError."""
    if path.suffix == ".json":
        try:
            found = read_object(path)
        except ValueError as error:
            raise AnswersError(str(error)) from None
        if wrong := [uid for uid, reply in found.items() if not isinstance(reply, str)]:
            raise AnswersError(
                f"{path}: the answer to {brief(wrong[0])} should be text, found {brief(found[wrong[0]])}"
            )
        return found
    replies: dict[str, str] = {}

    def parse(row: Any) -> None:
        uid = field(row, "uid", str)
        name = "reply" if isinstance(row.get("reply"), str) else "prediction"
        if uid in replies:
            raise ValueError(f"question {brief(uid)} is answered a second time")
        replies[uid] = "" if name in row and row[name] is None else field(row, name, str)

    read_rows(path, parse, AnswersError)
    return replies


def a_uid(row: Any) -> str:
    if not isinstance(row, str):
        raise ValueError(f"expected a uid, found {brief(row)}")
    return row


def letters_of(replies: Mapping[str, str], parser: str) -> dict[str, str | None]:
    """A lone letter is itself; anything else is read by the parser."""
    return {uid: r.strip() if r.strip() in [*LETTERS] else PARSERS[parser](r) for uid, r in replies.items()}


def mark(benchmark: Benchmark, questions: Sequence[Question], letters: Mapping[str, str | None]) -> Marks:
    """Raises ValueError where no question has a known answer."""
    known = [question for question in questions if question.answer]
    if not known:
        raise ValueError("the benchmark keeps all its answers secret: nothing can be scored, leaderboard= writes them")
    right = {question.uid: letters.get(question.uid) == question.answer for question in known}
    groups = defaultdict(list)
    for question in known:
        for label in question.labels or (question.category,):
            groups[label].append(right[question.uid])
    shares = {name: (sum(groups[name]) / len(groups[name]), len(groups[name])) for name in category_order(groups)}
    accuracy, stderr = sum(right.values()) / len(known), None
    if benchmark.mean_of_categories:
        accuracy = sum(share for share, _ in shares.values()) / len(shares)
    elif len({question.cluster for question in known}) > 1:
        stderr = clustered_stderr([*right.values()], [question.cluster for question in known])
    unanswered = sum(letters.get(question.uid) is None for question in known)
    return Marks(accuracy, stderr, shares, len(known), unanswered, len(questions) - len(known))


def score_file(
    source: Source, path: Path, parser: str, leaderboard: Path | None = None, without: Path | None = None
) -> str:
    """The text of `tefusion score`; writes `{uid: letter}` of all answered questions to `leaderboard`. `without` is a
    list of uids: the score is given once more without them."""
    questions, replies = source.questions(), read_replies(path)
    uids = {question.uid for question in questions}
    if strange := [uid for uid in replies if uid not in uids]:
        said = f"{brief(strange[0])}, {plural(len(strange), 'such answer')}" if len(strange) > 1 else brief(strange[0])
        raise AnswersError(f"{path}: {source.benchmark.title} has no question {said}")
    letters = letters_of(replies, parser)
    text = [table(source.benchmark, mark(source.benchmark, questions, letters)), "", read_by(replies, parser)]
    if without:
        left_out = {*read_list(without, a_uid, AnswersError)} & uids
        rest = [question for question in questions if question.uid not in left_out]
        text += ["", f"Without the {plural(len(left_out), 'question')} of {without}:", ""]
        text += [table(source.benchmark, mark(source.benchmark, rest, letters)), ""]
    if source.name == "motionbench":
        text.append(official_words(questions, replies))
    if leaderboard:
        entries = write_leaderboard(leaderboard, letters)
        text.append(f"{plural(entries, 'answer')} for the leaderboard: {leaderboard}")
    return "\n".join(text)


def write_leaderboard(path: Path, letters: Mapping[str, str | None]) -> int:
    """{uid: letter} of all that is answered; how many these are."""
    entries = {uid: letter for uid, letter in letters.items() if letter}
    replace_file(path, json.dumps(entries, indent=2, ensure_ascii=False).encode())
    return len(entries)


def table(benchmark: Benchmark, marks: Marks) -> str:
    mean = f"mean of {len(marks.by_category)} tasks" if benchmark.mean_of_categories else "all questions"
    error = "" if marks.stderr is None else f" ± {percent(marks.stderr)}"
    rows = [[mean, f"{percent(marks.accuracy)}{error}", marks.questions]]
    rows += [[name, percent(share), asked] for name, (share, asked) in marks.by_category.items()]
    said = f"{plural(marks.unanswered, 'question')} unanswered, counted as wrong; {marks.secret} secret, not scored"
    return "\n".join([*grid([benchmark.title, "accuracy", "questions"], rows), "", said])


def read_by(replies: Mapping[str, str], parser: str) -> str:
    spoken = [reply for reply in replies.values() if reply.strip() not in ["", *LETTERS]]
    words = f"; in {sum(map(is_word, spoken))} the letter is a word's" if parser == "paper" else ""
    noun = "reply" if len(spoken) == 1 else "replies"
    return f"{len(spoken)} {noun} read by {parser}, version {VERSIONS[parser]}{words}"


def official_words(questions: Sequence[Question], replies: Mapping[str, str]) -> str:
    try:
        found = official(questions, replies)
    except ScriptFails as fails:
        return f"the official script fails on this file: {fails}"
    head = f"the official script: acc {percent(found.acc)}, {found.right} of {found.total} (secret ones that are not"
    head += (
        f" answered included); answered_acc {percent(found.answered_acc)}, of {found.answered} (secret ones included)"
    )
    return "\n".join([head, *(f"  {name} {percent(share)}" for name, share in sorted(found.by_category.items()))])
