"""Damaged inputs of every kind, each read in a child process with limits on time and memory.

    python tests/fuzz.py inputs=10000 seed=0 kinds=video,truth jobs=2

The parent counts what became of each: ok (a right result), clean (the reader's own error, one line), wrong (anything
else), crash (a signal), hang, memory. Input i of a kind depends on (kind, seed, i) alone. Writes results/fuzz.json and
results/fuzz.md.
"""

import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from fuzz_targets import KINDS, TARGETS, Target, write_good

ROOT = Path(__file__).parents[1]
OUTCOMES = ("ok", "clean", "wrong", "crash", "hang", "memory")
CPU_SECONDS = 10  # for one input
WALL_SECONDS = 60  # for one input, on a busy machine
MEMORY = 1 << 30  # bytes beyond what the child has when it starts
RENEWED = 1000  # inputs a child reads before the next takes over
LONGEST = 20_000  # characters of an error


def judge(target: Target, rng: Random) -> tuple[str, str]:
    """An outcome, and what was said."""
    target.damage(rng)
    try:
        target.check(target.read())
    except MemoryError:
        return "memory", f"MemoryError {target.said}"
    except target.error as error:
        said = str(error)
        plain = len(said.splitlines()) == 1 and len(said) < LONGEST
        named = not target.names or any(name in said for name in target.names)
        return ("clean" if plain and named else "wrong"), said[:300]
    except Exception as error:
        out_of_memory = "allocate" in str(error)
        return ("memory" if out_of_memory else "wrong"), f"{type(error).__name__}: {error} {target.said}"[:600]
    return "ok", ""


def child(kind: str, good: str, folder: str, seed: str, first: str, stop: str) -> None:
    """Answers each input with a line; what libraries print goes nowhere."""
    answers = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    target = TARGETS[kind](Path(good), Path(folder))
    target.prepare()
    judge(target, Random("imports what the kind needs before memory is limited"))
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", file=answers, flush=True)
    for index in range(int(first), int(stop)):
        spent = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(spent.ru_utime + spent.ru_stime) + CPU_SECONDS
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        print(json.dumps(judge(target, Random(f"{kind} {seed} {index}"))), file=answers, flush=True)


@dataclass
class Child:
    """One process that reads the inputs in order: who dies, dies of the first that it did not answer."""

    kind: str
    good: Path
    folder: Path
    seed: int
    inputs: range

    def answers(self) -> Iterator[tuple[str, str]]:
        """One for every input, as far as the child came."""
        words = [sys.executable, str(Path(__file__)), "child", self.kind, str(self.good), str(self.folder)]
        words += [str(self.seed), str(self.inputs.start), str(self.inputs.stop)]
        home = str(self.folder.parent)
        environment = os.environ | {"HOME": home, "TMPDIR": home, "TORCHINDUCTOR_CACHE_DIR": f"{home}/.cache"}
        with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=home, env=environment) as process:
            try:
                yield from self.judged(process)
            finally:
                process.kill()

    def judged(self, process: subprocess.Popen[bytes]) -> Iterator[tuple[str, str]]:
        lines = Lines(process.stdout)
        if lines.next(600) != b"ready":
            raise RuntimeError(f"the child for {self.kind} does not start")
        for _ in self.inputs:
            answer = lines.next(WALL_SECONDS)
            if answer is None:
                yield "hang", f"no answer in {WALL_SECONDS} s"
                return
            if not answer:
                code = process.wait()
                hung = code == -signal.SIGXCPU
                name = signal.Signals(-code).name if code < 0 else str(code)
                yield ("hang", f"more than {CPU_SECONDS} s of CPU time") if hung else ("crash", f"ended with {name}")
                return
            outcome, said = json.loads(answer)
            yield outcome, said
            if outcome == "memory":  # what is left of its memory would be blamed on the next input
                return


class Lines:
    """The lines of a pipe, each waited for only so long."""

    def __init__(self, pipe: Any):
        self.pipe, self.read = pipe, b""

    def next(self, seconds: float) -> bytes | None:
        """None where no line came in time, b"" where none will come."""
        while b"\n" not in self.read:
            if not select.select([self.pipe], [], [], seconds)[0]:
                return None
            more = os.read(self.pipe.fileno(), 1 << 16)
            if not more:
                return b""
            self.read += more
        line, _, self.read = self.read.partition(b"\n")
        return line


def fuzz(kind: str, good: Path, folder: Path, inputs: range, seed: int) -> dict[str, Any]:
    """Counts of one kind, what was neither ok nor clean, and files that nobody should have written."""
    (folder / "input").mkdir(parents=True)
    counts, errors, findings = Counter(dict.fromkeys(OUTCOMES, 0)), set(), []
    start, index = time.monotonic(), inputs.start
    while index < inputs.stop:
        part = range(index, min(index + RENEWED, inputs.stop))
        for outcome, said in Child(kind, good / kind, folder / "input", seed, part).answers():
            counts[outcome] += 1
            if outcome == "clean":
                errors.add(" ".join(word for word in said.split() if word.isalpha())[:80])
            elif outcome != "ok":
                findings.append({"kind": kind, "index": index, "outcome": outcome, "said": said})
            index += 1
    strays = sorted(path.name for path in folder.iterdir() if path.name not in ("input", ".cache", ".config"))
    return {
        "kind": kind,
        **counts,
        "strays": strays,
        "different_errors": len(errors),
        "seconds": round(time.monotonic() - start, 1),
        "findings": findings,
    }


def run(kinds: list[str], inputs: range, seed: int, jobs: int) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(jobs) as pool:
        good = Path(folder) / "good"
        write_good(good)
        work = [pool.submit(fuzz, kind, good, Path(folder) / kind, inputs, seed) for kind in kinds]
        return [task.result() for task in work]


def report(rows: list[dict[str, Any]], inputs: int, seed: int) -> str:
    from tefusion.machine import provenance

    made: dict[str, Any] = provenance()
    folder = ROOT / "results"
    findings = [finding for row in rows for finding in row.pop("findings")]
    content = {"inputs": inputs, "seed": seed, "kinds": rows, "findings": findings, **made}
    heads = ["kind", *OUTCOMES, "strays", "different_errors", "seconds"]
    lines = [heads, ["---"] * len(heads), *([len(row[h]) if h == "strays" else row[h] for h in heads] for row in rows)]
    table = "\n".join("| " + " | ".join(str(cell).replace("_", " ") for cell in line) + " |" for line in lines)
    versions = ", ".join(f"{name} {number}" for name, number in made["versions"].items())
    text = f"""# Damaged inputs

`make fuzz`: {inputs:,} damaged inputs of each kind, seed {seed}, read in child processes, each with {MEMORY >> 20} MiB
and {CPU_SECONDS} s of CPU time. ok: a right result; clean: the reader's own error, one line that names the file; wrong:
any other error or result; strays: files written beside the input.

{table}

{made["machine"]}; commit {made["commit"]}; {made["date"]}; {versions}.
"""
    for name, data in (("fuzz.json", json.dumps(content, indent=2) + "\n"), ("fuzz.md", text)):
        partial = folder / f".{name}.partial"
        partial.write_text(data, encoding="utf-8")
        partial.replace(folder / name)
    return table


def parse(words: list[str]) -> dict[str, str]:
    settings = {"inputs": "10000", "seed": "0", "kinds": ",".join(KINDS), "jobs": "1", "first": "0", "write": "true"}
    for word in words:
        name, _, value = word.partition("=")
        if name not in settings or not value:
            raise SystemExit(f"{word!r} is none of {', '.join(f'{n}={v}' for n, v in settings.items())}")
        settings[name] = value
    return settings


def main() -> None:
    settings = parse(sys.argv[1:])
    first, n, seed = (int(settings[name]) for name in ("first", "inputs", "seed"))
    rows = run(settings["kinds"].split(","), range(first, first + n), seed, int(settings["jobs"]))
    bad = sum(row[outcome] for row in rows for outcome in OUTCOMES[2:]) + sum(len(row["strays"]) for row in rows)
    for finding in [finding for row in rows for finding in row["findings"]][:50]:
        print(finding)
    if settings["write"] == "true":
        print(report(rows, n, seed))
    else:
        print([{name: value for name, value in row.items() if name != "findings"} for row in rows])
    sys.exit(bad > 0)


if __name__ == "__main__":
    child(*sys.argv[2:]) if sys.argv[1:2] == ["child"] else main()
