"""The nearest valid name, for one clear line on a typo."""

from collections.abc import Iterable
from difflib import get_close_matches


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of an error's sentence: the nearest known name, or all of them."""
    known = sorted(known)
    close = get_close_matches(str(name), known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known) or 'none'}"
