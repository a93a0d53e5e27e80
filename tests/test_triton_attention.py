"""What `interpreted_attention.py` says of the Triton kernels, in a process that interprets them."""

import interpreter
import pytest


def test_the_kernels_are_the_reference():
    interpreter.run("interpreted_attention.py")


@pytest.mark.heavy
@pytest.mark.timeout(3000)
def test_the_kernels_are_the_reference_everywhere():
    interpreter.run("interpreted_attention.py", "heavy")
