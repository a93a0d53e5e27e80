"""recipe=tuned: each setting is tried at every learning rate of one grid, on dev, and trained for good at its best."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from tefusion.config import Run
from tefusion.results import is_trial, method_order
from tefusion.wording import grid, percent

if TYPE_CHECKING:
    from tefusion.cells import Cell

TRIAL_SEED = 1000  # the trials' own: a training that was chosen for its luck is not scored again
TRIAL_SPLIT = "dev"
FREE = ("lr_scale", "seed", "split")  # what a choice is not made for

Scores = Mapping[float, float | None]  # of a setting, by learning rate; None where the trial failed


def trials(cells: Iterable["Cell"]) -> list["Cell"]:
    """One for every setting and learning rate among `cells`, whatever their seeds. Raises ValueError where one of them
    would itself be scored on the trials' questions, or has their seed."""
    from tefusion.cells import Cell

    runs: dict[Run, None] = {}
    for run in (cell.run for cell in cells):
        if run.split == TRIAL_SPLIT:
            raise ValueError(f"recipe=tuned chooses by the {TRIAL_SPLIT} questions: score on others, split=test")
        if run.seed == TRIAL_SEED:
            raise ValueError(f"seed {TRIAL_SEED} is that of recipe=tuned's trials: take another")
        runs[replace(run, seed=TRIAL_SEED, split=TRIAL_SPLIT)] = None
    return [Cell(run, "trial") for run in runs]


def chosen(cells: Iterable["Cell"], rows: Iterable[Mapping]) -> list["Cell"]:
    """Those of `cells` that have the best learning rate of their setting; none of a setting whose trials all failed."""
    best = {setting: best_of(scores) for setting, scores in scores_of(rows).items()}
    return [cell for cell in cells if best.get(key(asdict(cell.run))) == cell.run.lr_scale]


def scores_of(rows: Iterable[Mapping]) -> dict[str, dict[float, float | None]]:
    found: dict[str, dict[float, float | None]] = {}
    for row in rows:
        if is_trial(row):
            score = row["accuracy"] if row["status"] == "done" else None
            found.setdefault(key(row["settings"]), {})[row["settings"]["lr_scale"]] = score
    return found


def key(settings: Mapping) -> str:
    """What a choice is made for; a setting that came after a row was as by default."""
    return json.dumps({k: v for k, v in (asdict(Run()) | dict(settings)).items() if k not in FREE}, sort_keys=True)


def best_of(scores: Scores) -> float | None:
    """Of equal ones that nearest to 1, which leaves the recipe as it is; None where all failed."""
    known = {scale: score for scale, score in scores.items() if score is not None}
    return max(known, key=lambda scale: (known[scale], -abs(math.log(scale)), -scale), default=None)


def learning_rates(rows: Sequence[Mapping]) -> list[str]:
    """All trials' scores, a line a setting, and what was chosen."""
    tried = sorted((row for row in rows if is_trial(row)), key=method_order)
    if not tried:
        return []
    scores = scores_of(tried)
    settings = {name: json.loads(name) for name in scores}
    scales = sorted({scale for one in scores.values() for scale in one})
    shown = ("compressor", "k", "n_input", "size")
    others = [name for name in settings[next(iter(settings))] if name not in shown]
    others = [name for name in others if len({json.dumps(one[name]) for one in settings.values()}) > 1]
    body, edges = [], []
    for name, one in scores.items():
        best, place = best_of(one), [settings[name][head] for head in (*shown, *others)]
        cells = [percent(one[scale], "failed") if scale in one else "" for scale in scales]
        body.append([*place, *cells, "none: all failed" if best is None else f"{best:g}"])
        if len(one) > 1 and best in (min(one), max(one)):
            edges.append(f"{place[0]} k={place[1]} with {place[2]} frames")
    questions = ", ".join(sorted({f"{row['questions']:,}" for row in tried if row["status"] == "done"}))
    text = (
        "Both learning rates of each line were multiplied by a factor from the same grid, chosen by the accuracy below"
    )
    text += (
        f" on the {questions or 'no'} {TRIAL_SPLIT} questions at seed {TRIAL_SEED}, which nothing else is trained with;"
    )
    text += " of equal ones that nearest to 1. No question that is scored elsewhere in this report was used."
    heads = ["method", "k", "frames", "size", *others, *(f"x {scale:g}" for scale in scales), "chosen"]
    said = f"At the edge of the grid, which may be too narrow (`lr_scale=`): {', '.join(edges)}."
    return [text, "", *grid(heads, body), *(["", said] if edges else [])]
