"""The words of every prompt, held letter by letter: who changes them raises their version and this file together."""

from pathlib import Path

import pytest

from tefusion.data.benchmarks import BENCHMARKS
from tefusion.data.prompt import PROMPTS
from tefusion.data.question import Question
from tefusion.replies import PARSERS, VERSIONS

ASKED = Question("q", Path("v.mp4"), "Which way does\nit go?", ("to the left", "up", "down\nand up"), "A", "MR", "v")
OURS = """Which way does
it go?
A. to the left
B. up
C. down
and up
Only reply with the best option.
"""
WORDS = {  # prompt, benchmark -> version, the longest reply, the text
    ("likelihood", "motionbench"): (1, 0, OURS),
    ("likelihood", "mvbench"): (1, 0, OURS),
    ("likelihood", "videomme"): (1, 0, OURS),
    ("likelihood", "lvbench"): (1, 0, OURS),
    ("paper", "motionbench"): (1, 16, OURS),
    ("paper", "mvbench"): (1, 16, OURS),
    ("paper", "videomme"): (1, 16, OURS),
    ("paper", "lvbench"): (1, 16, OURS),
    ("lmms-eval", "motionbench"): (
        1,
        64,
        """Which way does it go?
A. to the left
B. up
C. down and up
Answer with only the option letter (A, B, C, D, E, or F).
""",
    ),
    ("lmms-eval", "mvbench"): (
        1,
        16,
        """Question:Which way does
it go?
Option:
(A) to the left
(B) up
(C) down
and up
Only give the best option.
""",
    ),
    ("lmms-eval", "videomme"): (
        1,
        16,
        "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
        "Respond with only the letter (A, B, C, or D) of the correct option."
        """
Which way does
it go?
A. to the left
B. up
C. down
and up

Answer with the option's letter from the given choices directly.
""",
    ),
    ("lmms-eval", "lvbench"): (
        1,
        16,
        """Which way does
it go?
(A) to the left
(B) up
(C) down
and up
Answer the question with the option letter
""",
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_a_prompt_is_what_it_was(name, benchmark):
    found = PROMPTS[name][benchmark]
    assert (found.version, found.tokens, found.text(ASKED)) == WORDS[name, benchmark]


def test_what_speaks_has_a_parser_and_what_does_not_has_none():
    for name, words in PROMPTS.items():
        assert {bool(prompt.tokens) for prompt in words.values()} == {name in PARSERS}
    assert VERSIONS.keys() == PARSERS.keys() == PROMPTS.keys() - {"likelihood"}
