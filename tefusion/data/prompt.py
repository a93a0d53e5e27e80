"""A question as the decoder reads it, by the name of whose words these are; each with a version.

The last sentence of ours is MotionBench's own (2501.02955, appendix). lmms-eval asks every benchmark in words of its
own, behind which a line ends here, since no chat template closes them.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from tefusion.data.question import LETTERS, Question


@dataclass(frozen=True)
class Prompt:
    """`tokens` is the longest reply; with 0 nothing is said, the likeliest of the options' letters is the answer.
    `version` is raised when the same question would be asked in other words."""

    text: Callable[[Question], str]
    tokens: int = 0
    version: int = 1


def prompt(question: Question) -> str:
    return worded(question.text, lettered(question, "{}. {}"))


def worded(text: str, options: Iterable[str]) -> str:
    return "\n".join([text, *options, "Only reply with the best option.", ""])


def lettered(question: Question, pattern: str) -> list[str]:
    return [pattern.format(letter, option) for letter, option in zip(LETTERS, question.options, strict=False)]


def lmms_motionbench(question: Question) -> str:
    options = lettered(question, "{}. {}")
    lines = [" ".join(text.split()) for text in (question.text, *options)]
    return "\n".join([*lines, "Answer with only the option letter (A, B, C, D, E, or F).", ""])


def lmms_mvbench(question: Question) -> str:
    options = lettered(question, "({}) {}")
    return "\n".join([f"Question:{question.text}", "Option:", *options, "Only give the best option.", ""])


def lmms_videomme(question: Question) -> str:
    task = "Select the best answer to the following multiple-choice question based on the video and the subtitles."
    task += " Respond with only the letter (A, B, C, or D) of the correct option."
    last = "Answer with the option's letter from the given choices directly."
    return "\n".join([task, question.text, *lettered(question, "{}. {}"), "", last, ""])


def lmms_lvbench(question: Question) -> str:
    last = "Answer the question with the option letter"
    return "\n".join([question.text, *lettered(question, "({}) {}"), last, ""])


NAMES = ("motionbench", "mvbench", "videomme", "lvbench")
PROMPTS: dict[str, Mapping[str, Prompt]] = {
    "likelihood": dict.fromkeys(NAMES, Prompt(prompt)),
    "paper": dict.fromkeys(NAMES, Prompt(prompt, tokens=16)),
    "lmms-eval": {
        "motionbench": Prompt(lmms_motionbench, tokens=64),
        "mvbench": Prompt(lmms_mvbench, tokens=16),
        "videomme": Prompt(lmms_videomme, tokens=16),
        "lvbench": Prompt(lmms_lvbench, tokens=16),
    },
}
