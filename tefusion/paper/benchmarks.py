"""What a sweep was scored on, under the names of the paper's columns."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from tefusion.data.benchmarks import BENCHMARKS as SOURCES
from tefusion.data.paper import BENCHMARKS
from tefusion.replies import VERSIONS
from tefusion.results import is_primary, table
from tefusion.score import DURATIONS
from tefusion.wording import percent, plural

GENERATED = "generated"
TITLES = {
    GENERATED: "generated motion",
    "motionbench_dev": "MotionBench dev",
    "mvbench": "MVBench",
    "lvbench": "LVBench",
    "videomme_short": "Video-MME short",
    "videomme_medium": "Video-MME medium",
    "videomme_long": "Video-MME long",
}
# Where a benchmark of `eval=` stands: its column, or one for each category of its that has a column.
COLUMNS = {name: f"{name}_dev" if name == "motionbench" else name for name in ("motionbench", "mvbench", "lvbench")}
BY_CATEGORY = {"videomme": {duration: f"videomme_{duration}" for duration in DURATIONS}}


def lines_by_benchmark(rows: Sequence[Mapping]) -> dict[str, list[dict]]:
    """The primary lines of `table` for every benchmark that has any, in the order of the paper's columns."""
    found: dict[str, list[Mapping]] = defaultdict(list)
    for row in rows:
        if row["status"] == "done":
            found[benchmark_of(row)].append(row)
    lines = primary_lines(found) | asked_lines(rows)
    return {name: lines[name] for name in TITLES if name in lines}


def asked_lines(rows: Sequence[Mapping], every: bool = False) -> dict[str, list[dict]]:
    """The primary lines, or `every` one, of the benchmarks that `eval=` named, which the rows carry as scores."""
    found: dict[str, list[Mapping]] = defaultdict(list)
    for row in rows:
        for name, asked in asked_rows(row):
            found[name].append(asked)
    return {name: table(found[name]) for name in TITLES if name in found} if every else primary_lines(found)


def primary_lines(found: Mapping[str, Sequence[Mapping]]) -> dict[str, list[dict]]:
    lines = {name: [line for line in table(found[name]) if is_primary(line)] for name in TITLES if name in found}
    return {name: chosen for name, chosen in lines.items() if chosen}


def asked_rows(row: Mapping) -> Iterator[tuple[str, Mapping]]:
    """A row for each column: its cell's, with the benchmark's score in place of its own. Scores of other questions, or
    of other words, are other lines."""
    for name, score in (row.get("scores") or {}).items():
        beside = {"answers": f"{name}/answers.jsonl", "settings": row.get("settings", {}) | row.get("evaluation", {})}
        if name in COLUMNS:
            yield COLUMNS[name], {**row, **score, **beside}
        for category, column in BY_CATEGORY.get(name, {}).items():
            if category in score["by_category"]:
                share = score["by_category"][category]
                own = {"accuracy": share, "by_category": {}, "questions": score["asked"][category], "stderr": None}
                yield column, {**row, **score, **own, **beside, "category": category}


def benchmark_of(row: Mapping) -> str:
    """The generated set is no benchmark of the paper's, whatever folder it lies in."""
    generated = row.get("generated", str(row.get("data", "")).split("-")[0] == "motion")
    return GENERATED if generated else BENCHMARKS[0]


def scored(rows: Sequence[Mapping]) -> list[str]:
    """A sentence on every benchmark that was asked: the questions, what stayed unanswered, how replies were read."""
    names = dict.fromkeys(name for row in rows for name in row.get("scores") or ())
    return [sentence(name, [row for row in rows if name in (row.get("scores") or ())]) for name in names]


def sentence(name: str, rows: Sequence[Mapping]) -> str:
    scores = [row["scores"][name] for row in rows]
    shares = dict.fromkeys(percent(f([score["accuracy"] for score in scores])) for f in (min, max))
    counts = dict.fromkeys(plural(score["questions"], "question") for score in scores)
    said = [f"{SOURCES[name].title}: {' to '.join(shares)} % of {' or '.join(counts)}"]
    said += dict.fromkeys(part for row in rows for part in taken(row["evaluation"]))
    if secret := max(score["secret"] for score in scores):
        said.append(f"{secret} more are secret, their answers in leaderboard.json")
    if unanswered := max(score["unanswered"] for score in scores):
        said.append(f"up to {unanswered} unanswered, which counts as wrong")
    if missing := max(score["missing"] for score in scores):
        said.append(f"{plural(missing, 'video')} missing")
    for prompt in dict.fromkeys(row["evaluation"]["prompt"] for row in rows):
        of_it = [row["scores"][name] for row in rows if row["evaluation"]["prompt"] == prompt]
        said.append(read_how(prompt, sum(score["replies"] for score in of_it), sum(score["words"] for score in of_it)))
    return "; ".join(said)


def taken(evaluation: Mapping) -> list[str]:
    """A part of a benchmark is not the benchmark."""
    if count := evaluation.get("limit"):
        return [f"only the first {count} are asked"]
    if count := evaluation.get("subset"):
        return [f"only {count} are asked, drawn by seed {evaluation.get('subset_seed', 0)}"]
    return []


def read_how(prompt: str, replies: int, words: int) -> str:
    if prompt not in VERSIONS:
        return "the likeliest of the options' letters"
    noun = "reply" if replies == 1 else "replies"
    text = f"{replies} {noun} read by {prompt}, version {VERSIONS[prompt]}"
    return text + f", {words} of them at a letter of a word" * (prompt == "paper")
