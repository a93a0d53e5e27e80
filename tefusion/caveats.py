"""What a report's numbers can and cannot carry, said from the numbers themselves."""

import json
from collections.abc import Mapping, Sequence

from tefusion.estimate import Estimate
from tefusion.naming import TITLES
from tefusion.results import parts
from tefusion.wording import plural


def caveats(rows: Sequence[Mapping], lines: Sequence[Mapping]) -> list[str]:
    """One sentence or two each; nothing that does not apply."""
    done = [row for row in rows if row["status"] == "done"]
    if not done:
        return ["No cell is done: there is nothing to read yet."]
    estimates = [line[name] for line in lines for name in ("over_baseline", "over_same_tokens") if line[name]]
    return [*_seeds(lines, estimates), *_gaps(rows, lines), *_mixtures(done), *_leaks(lines)]


def _seeds(lines: Sequence[Mapping], estimates: Sequence[Estimate]) -> list[str]:
    counts = sorted({len(line["by_seed"]) for line in lines})
    say = [f"Seeds behind a line: {' or '.join(str(count) for count in counts)}."]
    if counts[0] == 1:
        say[0] += (
            " A line with one seed says nothing about training noise: another seed may change the order of methods."
        )
    if counts[-1] > 1:
        say[0] += " ± is the standard deviation over seeds."
    one = sum(not estimate.training_noise for estimate in estimates)
    if estimates and one == len(estimates):
        say.append("Intervals (95 %, paired by question, clustered by video) do not contain training noise.")
    elif estimates:
        text = "Intervals (95 %, paired by seed and question, clustered by video) contain training noise"
        say.append(text + (f", except {one} of {len(estimates)}, marked *, with one seed." if one else "."))
    errors = [line["stderr"] for line in lines if line["stderr"] is not None]
    if errors:
        say.append(f"The questions alone give an accuracy a standard error of up to {100 * max(errors):.1f} points.")
    return say


def _gaps(rows: Sequence[Mapping], lines: Sequence[Mapping]) -> list[str]:
    say = []
    if failed := sum(row["status"] == "failed" for row in rows):
        say.append(f"{plural(failed, 'cell')} failed and {'is' if failed == 1 else 'are'} in no mean.")
    most = max(len(line["by_seed"]) for line in lines)
    if short := [line for line in lines if len(line["by_seed"]) < most]:
        names = ", ".join(f"{line['control'] or line['compressor']} k={line['k']}" for line in short)
        say.append(f"Fewer than {most} seeds behind: {names}.")
    if lost := sum(line["unpaired"] for line in lines):
        say.append(f"{plural(lost, 'line')} could not be compared: no shared seed with the same answered questions.")
    if shadowed := sum(line["shadowed"] for line in lines):
        text = "left out: it differs from another cell only in a setting that the rows do not carry."
        say.append(f"{shadowed} {text}")
    if repeated := max((row.get("repeated") or 0 for row in rows), default=0):
        say.append(f"Up to {plural(repeated, 'clip')} a cell had fewer frames than asked: the nearest were repeated.")
    return say


def _mixtures(done: Sequence[Mapping]) -> list[str]:
    say = []
    if len({row.get("machine") for row in done}) > 1:
        say.append("Cells ran on different machines: milliseconds, memory and seconds are not comparable between them.")
    if len({row.get("commit") for row in done}) > 1:
        say.append("Cells come from different commits.")
    if len({json.dumps(row.get("versions"), sort_keys=True) for row in done}) > 1:
        say.append("Cells ran with different library versions.")
    if len({row["questions"] for row in done}) > 1:
        say.append("Cells answered different numbers of questions.")
    return say


def _leaks(lines: Sequence[Mapping]) -> list[str]:
    """Questions that need no video, or no motion, would be answered by these controls."""
    say = []
    for part in ("text_only", "one_frame"):
        for line in (line for line in lines if part in parts(line)):
            distance = standard_errors_from_chance(line)
            if distance is not None and abs(distance) > 3:
                where = "above" if distance > 0 else "below"
                say.append(f"{TITLES[part].capitalize()} is {abs(distance):.1f} standard errors {where} chance.")
    return say


def standard_errors_from_chance(line: Mapping) -> float | None:
    if line["chance"] is None or not line["error"]:
        return None
    return (line["accuracy"] - line["chance"]) / line["error"]
