"""A question as the decoder reads it. The last sentence is MotionBench's own (2501.02955, appendix)."""

from tefusion.data.question import LETTERS, Question


def prompt(question: Question) -> str:
    options = (f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False))
    return "\n".join([question.text, *options, "Only reply with the best option.", ""])
