"""What the report says beside the primary comparison: equal training FLOPs, and multiples of the budget."""

from collections.abc import Mapping, Sequence

from tefusion.curves import curves, samples, without
from tefusion.naming import line_name
from tefusion.results import METHOD, WORLD, difference, setting
from tefusion.wording import count, grid, interval, mean_spread, number

Section = tuple[str, list[str]]


def equal_flops(lines: Sequence[Mapping]) -> list[Section]:
    """A table for each reference: every line beside the one that was trained on as many samples."""
    found = [line for line in lines if setting(line, "equal") != "samples"]
    sections = []
    for reference in dict.fromkeys(setting(line, "equal") for line in found):
        chosen = [line for line in found if setting(line, "equal") == reference]
        method, k, n_input, size = reference.removeprefix("flops:").rsplit(":", 3)
        said = f"`{method}`, k = {k}, {n_input} frames at {size} px"
        text = f"Every line trains for as many steps as cost the training FLOPs of {said}: forward and backward of the"
        text += " video stage, counted. The primary comparison is at equal samples; everything here is exploratory."
        sections.append((f"## At equal training FLOPs, those of {said}", [text, "", *_beside(chosen, lines)]))
    return sections


def _beside(chosen: Sequence[Mapping], lines: Sequence[Mapping]) -> list[str]:
    heads = ["method", "k", "frames", "accuracy at equal samples", "accuracy at equal FLOPs", "difference"]
    heads += ["over fewer frames at equal FLOPs", "steps at equal samples", "steps at equal FLOPs"]
    heads += ["training TFLOPs at equal samples", "at equal FLOPs"]
    body = []
    for line in chosen:
        twin = next((other for other in lines if setting(other, "equal") == "samples" and _twins(line, other)), None)
        pair = [twin, line]
        cells = [line_name(line, chosen), line["k"], line["n_input"]]
        cells += ["" if one is None else mean_spread(one) for one in pair]
        cells += [interval(difference(line, twin) if twin else None), interval(line["over_same_tokens"])]
        cells += ["" if one is None else count(one["trained_steps"]) for one in pair]
        cells += ["" if one is None else number(_tera(one["training_flops"])) for one in pair]
        body.append(cells)
    return grid(heads, body)


def _tera(flops: float | None) -> float | None:
    return None if flops is None else flops / 1e12


def _twins(line: Mapping, other: Mapping) -> bool:
    """Whether both are the same but for what was held equal, and a learning rate that was tuned for it."""
    if any(line[name] != other[name] for name in (*METHOD, *WORLD)):
        return False
    return without(line, "equal", "lr_scale") == without(other, "equal", "lr_scale")


def learning_curves(lines: Sequence[Mapping]) -> list[Section]:
    """One table: a row a method, a column a number of samples."""
    found = curves(lines)
    if not found:
        return []
    sizes = sorted({samples(line) for curve in found for line in curve})
    first = [curve[0] for curve in found]
    heads = ["method", "k", "frames", *(f"{size:,} samples" for size in sizes), "last over first"]
    body = []
    for curve in found:
        at = {samples(line): mean_spread(line) for line in curve}
        cells = [line_name(curve[0], first), curve[0]["k"], curve[0]["n_input"], *(at.get(size, "") for size in sizes)]
        body.append([*cells, interval(difference(curve[-1], curve[0]))])
    text = "The same runs at multiples of the budget's steps (`times`). What is claimed above is said of"
    text += " `times=1` alone; everything here is exploratory."
    return [("## Learning curves", [text, "", *grid(heads, body)])]
