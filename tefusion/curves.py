"""Learning curves: lines that differ in nothing but how often the budget's steps were taken."""

from collections.abc import Iterable, Mapping

from tefusion.results import METHOD, WORLD, setting

Curve = list[Mapping]  # lines of `table`, from few samples to many


def curves(lines: Iterable[Mapping]) -> list[Curve]:
    """Those at equal samples with two points at least; each point may have a learning rate of its own."""
    groups: dict[str, Curve] = {}
    for line in lines:
        if setting(line, "equal") == "samples":
            key = [*(line[name] for name in (*METHOD, *WORLD)), without(line, "times", "lr_scale")]
            groups.setdefault(repr(key), []).append(line)
    return [sorted(group, key=samples) for group in groups.values() if len({samples(line) for line in group}) > 1]


def samples(line: Mapping) -> int:
    """What a run of this line sees before it is scored; 0 where its row does not say."""
    return (line["steps"] or 0) * setting(line, "times") * setting(line, "batch")


def without(line: Mapping, *names: str) -> dict:
    """The further settings but for these."""
    return {name: value for name, value in line["settings"].items() if name not in names}
