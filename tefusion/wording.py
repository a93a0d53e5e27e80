"""Numbers and tables as the report words them."""

from collections.abc import Mapping, Sequence

from tefusion.estimate import Estimate

NOTHING = "–"


def grid(heads: Sequence[str], body: Sequence[Sequence]) -> list[str]:
    """A Markdown table; the first column reads left, numbers right."""
    rule = ["---" if place == 0 or not head else "---:" for place, head in enumerate(heads)]
    return ["| " + " | ".join(cell(value) for value in row) + " |" for row in [heads, rule, *body]]


def cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def percent(value: float | None, missing: str = NOTHING, digits: int = 1) -> str:
    return missing if value is None else f"{100 * value:.{digits}f}"


def number(value: float | None, missing: str = NOTHING) -> str:
    """Three figures, never in powers of ten."""
    if value is None:
        return missing
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def p_value(p: float) -> str:
    return "< 0.0001" if p < 0.0001 else f"{p:.4f}"


def count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:,.0f}"


def short(text: object, length: int = 300) -> str:
    line = " ".join(str(text).split())
    return line if len(line) <= length else line[: length - 1] + "…"


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def mean_spread(line: Mapping) -> str:
    spread = "" if line["spread"] is None else f" ± {100 * line['spread']:.1f}"
    return f"**{100 * line['accuracy']:.1f}**{spread}"


def interval(estimate: Estimate | None) -> str:
    if estimate is None:
        return NOTHING
    text = f"{100 * estimate.value:+.1f} [{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"
    return text if estimate.training_noise else text + " *"
