"""For one clear line: the nearest valid name on a typo, a wrong value in a few characters, many problems in a few."""

from collections.abc import Iterable, Sequence
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


def in_short(error: Exception) -> str:
    """What a library says, on one line: it may quote a stranger's text."""
    return " ".join(str(error).split())[:300]


def listed(problems: Sequence[str], most: int = 100) -> str:
    more = f"; and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more
