"""The console command: `tefusion <command> key=value ...`. Wrong input gets one clear line and exit code 2."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tefusion.choices import brief
from tefusion.config import RECIPES, SAVE_EVERY, Run, choose, fields, one_each, parse
from tefusion.launch import is_first, leave
from tefusion.stop import STOPPED, Stopped, listening


@dataclass(frozen=True)
class Train:
    """Where one run keeps its model, its log and its shared data."""

    recipe: str = "small"
    out: str = ""
    home: str = "runs"
    log_with: str = ""
    save_every: int = SAVE_EVERY


@dataclass(frozen=True)
class Ask:
    model: str = ""
    video: str = ""
    question: str = ""
    tokens: int = 16  # the most that a reply may have


@dataclass(frozen=True)
class Compare:
    """`a` and `b`: an answers file, the id of a cell, or compressor:k or compressor:k:n_input over its seeds."""

    a: str = ""
    b: str = ""
    out: str = "runs/default"


@dataclass(frozen=True)
class Check:
    """`data` is <benchmark>:<folder>, `train` folders whose videos it may share, `shared` a file for their uids."""

    data: str = ""
    train: str = ""
    shared: str = ""


@dataclass(frozen=True)
class Score:
    """`without`: a list of uids, as `check` writes it; `leaderboard`: where {uid: letter} is written."""

    data: str = ""
    answers: str = ""
    parser: str = "paper"
    leaderboard: str = ""
    without: str = ""


@dataclass(frozen=True)
class Convert:
    """`source` is written `from`; it or `to` says whose names the folder at the other end has. `sums`: what
    `sha256sum *.safetensors` should print in `path`."""

    source: str = ""
    to: str = ""
    path: str = ""
    out: str = ""
    sums: str = ""


@dataclass(frozen=True)
class Report:
    out: str = "runs/default"
    paper: bool = False
    layout: str = "report"


def single(words: Sequence[str], *schemas: type) -> list[Any]:
    """One object of each schema, where no key may have a list."""
    whole = [key for key, kind in fields(*schemas).items() if kind is str]  # a question may hold a comma
    values = one_each(parse(words, *schemas, whole=whole), fields(*schemas))
    return [schema(**{key: values[key] for key in fields(schema) if key in values}) for schema in schemas]


def single_run(words: Sequence[str], *beside: type) -> tuple[Any, ...]:
    """A run with its recipe's defaults, and the command's own settings, the recipe among the first of them."""
    from tefusion.cells import check
    from tefusion.effort import reference_of

    values = one_each(parse(words, Run, *beside, whole=["eval"]), fields(Run, *beside))
    own, *more = (schema(**{key: values.pop(key) for key in fields(schema) if key in values}) for schema in beside)
    choose("recipe", own.recipe, RECIPES)
    if own.recipe == "tuned":
        raise ValueError("recipe=tuned is a sweep's: one run has nothing to choose from; lr_scale= sets its rates")
    run = Run(**(RECIPES[own.recipe] | values))
    check(run)
    check(reference_of(run))
    return run, own, *more


def renamed(words: Sequence[str], keys: dict[str, str]) -> list[str]:
    """Words whose keys are called otherwise on the command line."""
    return [keys.get(key, key) + equals + value for key, equals, value in (word.partition("=") for word in words)]


def list_zoo(words: Sequence[str]) -> None:
    """the zoo: stage, reach, order sensitivity, cost, source"""
    from tefusion.describe import zoo

    parse(words)
    print(zoo())


def describe(words: Sequence[str]) -> None:
    """what a run would cost: tokens, parameters, FLOPs"""
    from tefusion.describe import describe_run

    run, _ = single_run(renamed(words, {"frames": "n_input"}), Described)
    print(describe_run(run))


@dataclass(frozen=True)
class Described:
    recipe: str = "small"


def sweep(words: Sequence[str]) -> None:
    """many runs, one table"""
    from tefusion.sweep import sweep

    with listening():
        sweep(words)


def train(words: Sequence[str]) -> None:
    """one run, kept with its weights"""
    from tefusion import watch
    from tefusion.cell import train_and_keep
    from tefusion.cells import check_machine
    from tefusion.data.motion_sets import long_enough
    from tefusion.evaluation import Evaluation
    from tefusion.exam import door
    from tefusion.paper.benchmarks import scored
    from tefusion.rows import read_results

    run, own, evaluation = single_run(words, Train, Evaluation)
    run = replace(run, data=long_enough(run.data, run.n_input))
    if run.pruner != "none":
        raise ValueError("pruner= is for sweeps: a model that is kept takes transformers' form, which knows no pruner")
    check_machine(run)
    for line in door(evaluation, [run] if evaluation.eval else []):
        say(line)

    if own.save_every < 0:
        raise ValueError(f"save_every must not be negative, got {own.save_every}")

    def send(line: dict[str, Any]) -> None:
        if "step" in line:
            say(watch.step(line))

    out = Path(own.out) if own.out else None
    with listening():
        kept = train_and_keep(run, out, Path(own.home), own.log_with, send, own.save_every, evaluation)
        if is_first():  # the others may be here before the row is written
            for line in scored(read_results(kept)):
                print(line)
            print(kept, flush=True)


def say(text: str) -> None:
    """Once, however many processes train."""
    if is_first():
        print(text, flush=True)


def ask(words: Sequence[str]) -> None:
    """a trained model answers a question about a video file"""
    from tefusion.ask import ask

    (own,) = single(words, Ask)
    for key in ("model", "video", "question"):
        if not getattr(own, key):
            raise ValueError(f"ask needs {key}=...")
    print(ask(Path(own.model), Path(own.video), own.question, own.tokens))


def compare(words: Sequence[str]) -> None:
    """two answers files, cells or methods: difference, interval, tests"""
    from tefusion.compare import compare

    (own,) = single(words, Compare)
    for key in ("a", "b"):
        if not getattr(own, key):
            raise ValueError(f"compare needs {key}=...")
    print(compare(own.a, own.b, own.out))


def report(words: Sequence[str]) -> None:
    """table and figure of a sweep's folder, or of several; layout=paper: the paper's"""
    from tefusion.paper import write_paper
    from tefusion.report import write_report

    parsed = parse(words, Report)
    own = Report(**one_each(parsed, ["paper", "layout"]))
    choose("layout", own.layout, LAYOUTS)
    if own.layout == "paper" and own.paper:
        raise ValueError("layout=paper has the paper's numbers beside already: leave paper=true out")
    folder, *more = parsed.get("out", [own.out])
    path = write_paper(folder, more) if own.layout == "paper" else write_report(folder, more, paper=own.paper)
    print(path.read_text(encoding="utf-8"))


def check(words: Sequence[str]) -> int:
    """a benchmark on disk: what is wrong, what it holds"""
    from tefusion.check import check
    from tefusion.data.benchmarks import parse_source

    (own,) = single(words, Check)
    if not own.data:
        raise ValueError("check needs data=<benchmark>:<folder>")
    training = [Path(folder) for folder in own.train.split(",") if folder]
    if absent := [folder for folder in training if not folder.is_dir()]:
        raise ValueError(f"train: {brief(str(absent[0]))} is no folder")
    text, sound = check(parse_source("data", own.data), training, Path(own.shared) if own.shared else None)
    print(text)
    return 0 if sound else 1


def score(words: Sequence[str]) -> None:
    """an answers file of anybody's, scored on a benchmark"""
    from tefusion.data.benchmarks import parse_source
    from tefusion.replies import PARSERS
    from tefusion.score_file import score_file

    (own,) = single(words, Score)
    for key in ("data", "answers"):
        if not getattr(own, key):
            raise ValueError(f"score needs {key}=...")
    choose("parser", own.parser, PARSERS)
    leaderboard, without = (Path(path) if path else None for path in (own.leaderboard, own.without))
    print(score_file(parse_source("data", own.data), Path(own.answers), own.parser, leaderboard, without))


def convert(words: Sequence[str]) -> None:
    """a released checkpoint -> a model of ours, or back"""
    from tefusion import convert as conversions

    (own,) = single(renamed(words, {"from": "source"}), Convert)
    for key in ("path", "out"):
        if not getattr(own, key):
            raise ValueError(f"convert needs {key}=...")
    if bool(own.source) == bool(own.to):
        raise ValueError("convert needs either from=... or to=...")
    plans = conversions.sources() if own.source else conversions.targets()
    choose("from" if own.source else "to", own.source or own.to, plans)
    sums = Path(own.sums) if own.sums else None
    conversions.convert(plans[own.source or own.to], Path(own.path), Path(own.out), say, sums)


LAYOUTS = ("report", "paper")

COMMANDS: dict[str, Callable[[Sequence[str]], int | None]] = {
    "list": list_zoo,
    "describe": describe,
    "sweep": sweep,
    "train": train,
    "ask": ask,
    "convert": convert,
    "compare": compare,
    "report": report,
    "check": check,
    "score": score,
}


def usage() -> str:
    lines = [f"  {name:9} {command.__doc__}" for name, command in COMMANDS.items()]
    return "\n".join(["usage: tefusion <command> key=value ...", "", *lines])


def run(command: str, words: Sequence[str]) -> int:
    """The exit code. What a person can mend is one line; anything else keeps its traceback."""
    if command in ("-h", "--help", "help", ""):
        print(usage())
        return 0
    try:
        choose("command", command, COMMANDS)
        return COMMANDS[command](words) or 0
    except (ValueError, OSError) as error:
        print("tefusion:", " ".join(str(error).splitlines()), file=sys.stderr)  # a file's name may hold a line break
        return 2
    except Stopped as stopped:
        if is_first():
            print(f"tefusion: {stopped}, run the same command to go on", file=sys.stderr)
        return STOPPED


def script(command: str) -> None:
    """The root scripts: a command whose words are the script's."""
    leave(run(command, sys.argv[1:]))


def main() -> None:
    command, *words = [*sys.argv[1:], ""][: max(1, len(sys.argv) - 1)]
    leave(run(command, words))
