"""A generated reply -> the letter it names, by the rules of whoever reads it; nobody's rule guesses beyond them."""

import re
from collections.abc import Callable

PREFIXES = ("THE BEST ANSWER IS", "THE CORRECT ANSWER IS", "THE ANSWER IS", "BEST ANSWER:", "ANSWER:")


def first_letter(reply: str) -> str | None:
    """The paper's reading: the first upper-case letter, "I think B" included."""
    found = re.search("[A-Z]", reply)
    return found.group() if found else None


def lmms_eval_letter(reply: str) -> str | None:
    """That of lmms-eval's MotionBench task: a letter from A to F that stands alone, else one before . ) or :, else any;
    upper and lower case alike, after a thought that is closed and without the usual opening words."""
    text = reply.rpartition("</think>")[2].strip().upper()
    for prefix in PREFIXES:
        text = text.replace(prefix, "")
    for pattern in (r"\b([A-F])\b", r"([A-F])[.):]", r"([A-F])"):
        if found := re.search(pattern, text):
            return found[1]
    return None


PARSERS: dict[str, Callable[[str], str | None]] = {"paper": first_letter, "lmms-eval": lmms_eval_letter}
VERSIONS = {"paper": 1, "lmms-eval": 1}  # raised when the same reply would give another letter


def is_word(reply: str) -> bool:
    """Whether the paper's reading takes the letter from a word: one within it, or an "A" or "I" before another word."""
    found = re.search("[A-Z]", reply)
    return bool(found and re.match(r"[A-Z]['\w]|[AI]\s+[a-z]", reply[found.start() :]))
