"""rows -> lines: one line a setting, over its seeds."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tefusion.config import Run
from tefusion.estimate import Estimate
from tefusion.score import category_order, read_answers
from tefusion.statistics import Array, clustered_stderr
from tefusion.two_way import paired

METHODS = ("none", "qwen2_vl", "te_fusion", "kangaroo", "pllava", "qformer")  # the order of the paper's definition
CONTROLS = ("text_only", "one_frame", "fewer_frames", "lower_resolution")
FLOPS = ("flops", "encoder_flops", "compressor_flops", "prefill_flops")
MILLISECONDS = ("encoder_ms", "compressor_ms", "prefill_ms")
EFFORT = ("trained_steps", "training_flops")
COSTS = ("params", "compressor_params", *FLOPS, *EFFORT, *MILLISECONDS, "peak_memory_mb", "seconds")
WORLD = ("encoder", "decoder", "data", "steps", "protocol")  # two lines that differ here cannot be compared
METHOD = ("compressor", "k", "n_input", "control", "size", "l_decoder")
FAIRNESS = ("init", "equal", "times")  # settings in which two lines that are compared agree
IDENTITY = (*METHOD, *WORLD, "n_per_k", "seed")


@dataclass(frozen=True)
class Marks:
    """The marked answers of one cell, in the order of their uid."""

    uids: tuple[str, ...]
    clusters: tuple[str, ...]
    correct: Array
    chance: float
    categories: tuple[str, ...]
    options: tuple[int, ...]
    durations: tuple[float | None, ...]  # of the videos, in seconds


def parts(row: Mapping) -> frozenset[str]:
    """The controls a row stands for; one run may play several."""
    return frozenset(filter(None, row.get("control", "").split(",")))


def is_trial(row: Mapping) -> bool:
    """Whether the row was there to choose a learning rate."""
    return "trial" in parts(row)


def setting(line: Mapping, name: str) -> Any:
    """Of a line of `table`."""
    return line["settings"].get(name, getattr(Run, name))


def is_primary(line: Mapping) -> bool:
    """Equal samples, once the budget's steps: what is claimed is said of these lines alone."""
    return (setting(line, "equal"), setting(line, "times")) == ("samples", 1)


def by_start(lines: Iterable[Mapping]) -> dict[str, list[Mapping]]:
    """The lines of each `init`, under what a heading adds to tell them apart: nothing where there is one."""
    found: dict[str, list[Mapping]] = {}
    for line in lines:
        found.setdefault(setting(line, "init"), []).append(line)
    return {f", init={init}": found[init] for init in sorted(found)} if len(found) > 1 else {"": [*lines]}


def lengths(row: Mapping) -> Sequence[int]:
    """The protocols a row belongs to: n_per_k, and 0 where the frames that enter are fixed."""
    found = row.get("n_per_k") or 0
    return [found] if isinstance(found, int) else found


def pruner(row: Mapping) -> str:
    """What chose among a row's tokens; "none" where every group has as many."""
    return (row.get("settings") or {}).get("pruner", "none")


def method_order(row: Mapping) -> tuple:
    """Sorts the baseline first, then the paper's methods, then others by name; controls last."""
    control = [CONTROLS.index(part) if part in CONTROLS else len(CONTROLS) for part in parts(row)]
    name = row["compressor"]
    method = name.partition(":")[0]  # its options stand behind it
    place = METHODS.index(method) if method in METHODS else len(METHODS)
    return (min(control, default=-1), row.get("n_input", 0), place, name, row["k"], row.get("l_decoder", 0))


def table(rows: Iterable[Mapping], pruned: bool = False) -> list[dict]:
    """One line a setting: its done rows over all seeds, controls included, trials left out, costs averaged. Those of
    runs with a pruner are in no table but their own (`pruned`): the length that the decoder sees of a moment depends
    on the video there.

    Besides the settings, a line holds `by_seed`, `accuracy` (their mean), `spread` (standard deviation over seeds),
    `stderr` (questions only, clustered), `error` (of the mean: seeds and questions), `chance`, `by_category`, and two
    paired differences or None: `over_baseline` (same frames in) and `over_same_tokens` (as many decoder tokens
    without compression). A row may carry `settings`, a dict of further axes of the sweep such as lr.
    """
    groups: dict[tuple, dict] = defaultdict(dict)
    for row in rows:
        if row["status"] == "done" and not is_trial(row):
            groups[_key(row)][row["seed"], row["id"]] = row
    marks = {row["id"]: marks_of(row) for group in groups.values() for row in group.values()}
    lines = [_line(list(group.values()), marks) for group in groups.values()]
    for line in lines:
        base, short = _baseline(line, lines), _same_tokens(line, lines)
        line["over_baseline"] = base and difference(line, base)
        line["over_same_tokens"] = short and difference(line, short)
        line["unpaired"] = bool((base and not line["over_baseline"]) or (short and not line["over_same_tokens"]))
    return sorted((line for line in lines if (pruner(line) != "none") == pruned), key=method_order)


def _key(row: Mapping) -> tuple:
    settings = row.get("settings") or {}
    settings = asdict(Run()) | settings if settings else {}  # one that came after the row was as by default
    further = {name: value for name, value in settings.items() if name not in IDENTITY}
    return (*(row.get(name) for name in METHOD + WORLD), json.dumps(further, sort_keys=True))


def _line(cells: list[dict], marks: Mapping[str, Marks | None]) -> dict:
    cells = sorted(cells, key=lambda row: row["seed"])
    by_seed = {row["seed"]: row for row in cells}  # a second cell of a seed is counted in `shadowed`
    marked = {seed: marks[row["id"]] for seed, row in by_seed.items()}
    kept = list(by_seed.values())
    accuracies = [row["accuracy"] for row in kept]
    spread = float(np.std(accuracies, ddof=1)) if len(kept) > 1 else None
    stderr = _question_stderr(kept, marked)
    seed_stderr = 0.0 if spread is None else spread / math.sqrt(len(kept))
    names = category_order(name for row in kept for name in row["by_category"])
    return {
        **{name: kept[0].get(name) for name in METHOD + WORLD},
        "settings": json.loads(_key(kept[0])[-1]),
        "n_per_k": sorted({length for row in cells for length in lengths(row) if length}),
        "by_input": any(0 in lengths(row) for row in cells),
        "by_seed": {seed: row["accuracy"] for seed, row in by_seed.items()},
        "shadowed": len(cells) - len(kept),
        "accuracy": mean(accuracies),
        "spread": spread,
        "stderr": stderr,
        "error": None if stderr is None else math.hypot(seed_stderr, stderr),
        "chance": mean(one.chance for one in marked.values() if one),
        "by_category": {name: mean(row["by_category"].get(name) for row in kept) for name in names},
        "questions": kept[0]["questions"],
        **{name: mean(row.get(name) for row in kept) for name in COSTS},
        "marks": marked,
    }


def mean(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are there; None where none is."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def marks_of(row: Mapping) -> Marks | None:
    """None where the cell's answers do not lie beside its row. A row of a benchmark names them, and of which category
    alone they are."""
    path = Path(row.get("folder", "")) / "cells" / row["id"] / row.get("answers", "answers.jsonl")
    return read_marks(path, row.get("category")) if "folder" in row and path.exists() else None


def read_marks(path: Path, category: str | None = None) -> Marks:
    answers = sorted(read_answers(path), key=lambda answer: answer.uid)
    answers = [answer for answer in answers if category in (None, answer.category)]
    return Marks(
        uids=tuple(answer.uid for answer in answers),
        clusters=tuple(answer.cluster for answer in answers),
        correct=np.array([answer.correct for answer in answers], dtype=np.float64),
        chance=float(np.mean([1 / answer.options for answer in answers])),
        categories=tuple(answer.category for answer in answers),
        options=tuple(answer.options for answer in answers),
        durations=tuple(answer.seconds for answer in answers),
    )


def _question_stderr(cells: list[dict], marked: Mapping[int, Marks | None]) -> float | None:
    """Clustered error of the answers averaged over seeds; without answers, the mean of the cells' own errors."""
    known = [one for one in marked.values() if one]
    if len(known) < len(cells) or len({one.uids for one in known}) > 1 or len(set(known[0].clusters)) < 2:
        return mean(row["stderr"] for row in cells)
    return clustered_stderr(np.mean([one.correct for one in known], axis=0), known[0].clusters)


def difference(line: Mapping, base: Mapping) -> Estimate | None:
    """line - base, paired by seed and question; None where they share no seed with the same answered questions."""
    pairs: dict[int, tuple[Array, Array]] = {}
    clusters: tuple[str, ...] = ()
    for seed, ours in line["marks"].items():
        theirs = base["marks"].get(seed)
        if ours and theirs and ours.uids == theirs.uids and clusters in ((), ours.clusters):
            pairs[seed], clusters = (ours.correct, theirs.correct), ours.clusters
    return paired(pairs, clusters) if len(set(clusters)) > 1 else None


def _baseline(line: Mapping, lines: Sequence[Mapping]) -> Mapping | None:
    if parts(line) or _plain(line):
        return None
    same = [other for other in lines if _plain(other) and not parts(other)]
    return _nearest(line, [other for other in same if _agree(line, other, "n_input", "size")])


def _same_tokens(line: Mapping, lines: Sequence[Mapping]) -> Mapping | None:
    """The uncompressed run with fewer frames that leaves the decoder as many tokens."""
    if parts(line) or line["k"] == 1 or pruner(line) != "none":
        return None
    same = [other for other in lines if _plain(other) and _agree(line, other, "l_decoder", "size")]
    return _nearest(line, [other for other in same if parts(other) <= {"one_frame", "fewer_frames"}])


def _plain(line: Mapping) -> bool:
    return line["compressor"] == "none" and line["k"] == 1 and pruner(line) == "none"


def _agree(line: Mapping, other: Mapping, *names: str) -> bool:
    same = all(line[name] == other[name] for name in (*names, *WORLD))
    return same and all(setting(line, name) == setting(other, name) for name in FAIRNESS)


def _nearest(line: Mapping, candidates: list[Mapping]) -> Mapping | None:
    """The candidate with the same further settings, else with its own tuned learning rate, else the only one there is
    (it may not know a method's axis). A pruner is no further setting."""
    same = [other for other in candidates if _unpruned(other) == _unpruned(line)]
    tuned = [other for other in candidates if _untuned(other) == _untuned(line)]
    return next((found[0] for found in (same[:1], tuned, candidates) if len(found) == 1), None)


def _unpruned(line: Mapping) -> dict:
    return {name: value for name, value in line["settings"].items() if name not in ("pruner", "pruned")}


def _untuned(line: Mapping) -> dict:
    return {name: value for name, value in _unpruned(line).items() if name != "lr_scale"}
