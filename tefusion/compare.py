"""Two things that answered the same questions, compared: checkpoints, or methods over their seeds."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tefusion.choices import brief, nearest
from tefusion.estimate import Estimate
from tefusion.family import SEEDS
from tefusion.permutation import mcnemar, sign_flip
from tefusion.resolution import resolution
from tefusion.results import Marks, is_trial, marks_of, parts, pruner, read_marks
from tefusion.rows import read_results
from tefusion.two_way import paired
from tefusion.wording import p_value, percent, plural


@dataclass(frozen=True)
class Side:
    """One side of the comparison: what was marked, by seed; a file's answers are of no known seed, -1."""

    name: str
    by_seed: Mapping[int, Marks]


def compare(a: str, b: str, out: str | Path) -> str:
    """The comparison as text. `a` and `b` are each an answers file, the id of a cell of the run folder `out`, or all
    seeds of `<compressor>:<k>` or `<compressor>:<k>:<n_input>` in it."""
    first, second = side(a, Path(out)), side(b, Path(out))
    single = len(first.by_seed) == len(second.by_seed) == 1
    pairs = in_pairs(first, second)
    marks = pairs[0][1]
    for _, one, other in pairs:
        if not one.uids == other.uids == marks.uids:
            shared = len(set(one.uids) & set(other.uids))
            raise ValueError(
                f"a and b answer {len(one.uids)} and {len(other.uids)} questions, {shared} of them the same: "
                "compare needs the same ones"
            )
    estimate = paired({seed: (one.correct, other.correct) for seed, one, other in pairs}, marks.clusters)
    lines = [("a", described(first)), ("b", described(second)), ("a - b", str(estimate)), ("p", p_value(estimate.p))]
    lines.append(("asked", f"{plural(len(marks.uids), 'question')} about {plural(len(set(marks.clusters)), 'video')}"))
    lines += two_checkpoints(pairs[0][1], pairs[0][2]) if single else over_seeds(pairs, estimate)
    return "\n".join([*(f"{name:11}{text}" for name, text in lines), resolution([estimate])])


def side(word: str, out: Path) -> Side:
    """Raises ValueError where the word is no file, cell or method of the run folder."""
    if Path(word).is_file():
        return Side(word, {-1: read_marks(Path(word))})
    rows = [row for row in read_results(out) if row["status"] == "done"]
    named = [row for row in rows if row["id"] == word] or of_method(word, rows)
    if not named:
        known = dict.fromkeys([*(method(row) for row in rows if not parts(row)), *(row["id"] for row in rows)])
        raise ValueError(f"{brief(word)} is no file, and no cell or method in {out}{nearest(word, list(known))}")
    by_seed: dict[int, Marks] = {}
    for row in named:
        found = marks_of(row)
        if found is None:
            raise ValueError(f"the answers of cell {row['id']} are gone from {row['folder']}")
        if row["seed"] in by_seed:
            ids = ", ".join(one["id"] for one in named)
            raise ValueError(f"{word} has several cells of seed {row['seed']}: name one of {ids}")
        by_seed[row["seed"]] = found
    first = named[0]
    return Side(f"{first['compressor']} k={first['k']}, {plural(first['n_input'], 'frame')}", by_seed)


def of_method(word: str, rows: Sequence[Mapping]) -> list[Mapping]:
    """Rows of compressor:k, without the controls, or of compressor:k:n_input, whatever else they serve as; none with a
    pruner. A compressor comes with its options."""
    match = re.fullmatch(r"(\w+(?::\w+=[^:]+)*):(\d{1,9})(?::(\d{1,9}))?", word, re.ASCII)
    if not match:
        return []
    named = match[1], int(match[2])
    found = [row for row in rows if (row["compressor"], row["k"]) == named]
    found = [row for row in found if pruner(row) == "none" and not is_trial(row)]
    if match[3]:
        return [row for row in found if row["n_input"] == int(match[3]) and "lower_resolution" not in parts(row)]
    return [row for row in found if not parts(row)]


def method(row: Mapping) -> str:
    return f"{row['compressor']}:{row['k']}:{row['n_input']}"


def in_pairs(first: Side, second: Side) -> list[tuple[int, Marks, Marks]]:
    """(seed, a, b) for every seed that both have; two single ones are a pair whatever their seeds."""
    if len(first.by_seed) == len(second.by_seed) == 1:
        ((seed, one),), ((_, other),) = first.by_seed.items(), second.by_seed.items()
        return [(seed, one, other)]
    shared = sorted(first.by_seed.keys() & second.by_seed.keys())
    if not shared:
        raise ValueError(f"a has the seeds {sorted(first.by_seed)}, b has {sorted(second.by_seed)}: none is shared")
    return [(seed, first.by_seed[seed], second.by_seed[seed]) for seed in shared]


def described(side: Side) -> str:
    accuracies = {seed: float(marks.correct.mean()) for seed, marks in side.by_seed.items()}
    text = f"{side.name}: {percent(float(np.mean(list(accuracies.values()))))}"
    if -1 in accuracies:
        return text
    return text + " (" + ", ".join(f"seed {seed} {percent(value)}" for seed, value in accuracies.items()) + ")"


def two_checkpoints(a: Marks, b: Marks) -> list[tuple[str, str]]:
    lines = [("sign flips", f"p {p_value(sign_flip(a.correct, b.correct, a.clusters))}, exchanged video by video")]
    if len(set(a.clusters)) == len(a.clusters):
        lines.append(("McNemar", f"p {p_value(mcnemar(a.correct, b.correct, a.clusters))}, exact"))
    else:
        lines.append(("McNemar", "not applicable: a video has several questions"))
    return [*lines, ("claim", "about these two checkpoints only: another seed may order the methods otherwise")]


def over_seeds(pairs: Sequence[tuple[int, Marks, Marks]], estimate: Estimate) -> list[tuple[str, str]]:
    each = [f"seed {seed} {100 * (a.correct.mean() - b.correct.mean()):+.1f}" for seed, a, b in pairs]
    claim = "exploratory: only the report's primary family is corrected for how much was looked at"
    if estimate.seeds < SEEDS:
        claim = f"none: {plural(estimate.seeds, 'paired seed')} of the {SEEDS} that one needs"
    return [("by seed", ", ".join(each)), ("claim", claim)]
