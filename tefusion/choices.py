"""For one clear line: the nearest valid name on a typo, and a wrong value in a few characters."""

from collections.abc import Iterable
from difflib import get_close_matches
from reprlib import Repr

_short = Repr()
_short.maxstring = _short.maxother = _short.maxlong = 80


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of an error's sentence: the nearest known name, or all of them."""
    known = sorted(known)
    close = get_close_matches(str(name)[:80], known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known) or 'none'}"


def brief(value: object) -> str:
    """A value as an error quotes it, on one line: a stranger's text may be megabytes long."""
    return " ".join(_short.repr(value).split("\n"))
