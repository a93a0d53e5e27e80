"""Sweeps under SIGKILL at random moments, started again each time, against the same sweeps left in peace.

    python benchmarks/chaos.py kills=100 seed=0 folder=/tmp/chaos

Every round sweeps into a new folder with another training seed. Each start is ended at a random moment: half of them at
any time, half in a phase that was drawn (data, image, training, evaluation, row). Most are SIGKILLs of all its
processes, some of the first alone, whose workers have to end by themselves, and some SIGTERMs, after which it has to
say that it wants to be started again. Rows, answers and the order of the batches have to be those of the undisturbed
sweep.

Writes results/chaos.json and results/chaos.md; the exit code is 1 where anything differs.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tefusion.files import replace_file
from tefusion.machine import provenance
from tefusion.stop import STOPPED
from tefusion.wording import grid, plural

ROOT = Path(__file__).parents[1]
SWEEP = ["budget=smoke", "compressor=none,te_fusion,qformer", "k=2", "controls=false", "steps=12", "image_steps=12"]
SWEEP += ["save_every=3", "jobs=2"]
STEPS = 12
UNLIKE = ("seconds", "encoder_ms", "compressor_ms", "prefill_ms", "peak_memory_mb", "resumed")  # in two equal runs
UNLIKE += ("commit", "date", "machine", "versions")
PHASES = ("data", "image", "training", "evaluation", "row")
WAYS = {"all": 0.7, "first": 0.15, "term": 0.15}  # who is ended, and how
PATIENCE = 900.0  # seconds for a start to end by itself, or to save after SIGTERM
LINGER = 15.0  # seconds for workers to notice that the first process is gone
DAMAGE = ("no checkpoint can be loaded", "going on from", "Traceback")


@dataclass
class Tally:
    """What was done to the sweeps, and what came of it."""

    phases: Counter = field(default_factory=Counter)
    ways: Counter = field(default_factory=Counter)
    starts: int = 0
    sweeps: int = 0
    cells: int = 0
    resumed: int = 0
    leftovers: int = 0
    differences: list[str] = field(default_factory=list)

    @property
    def kills(self) -> int:
        return self.ways["all"] + self.ways["first"]


@dataclass(frozen=True)
class Place:
    """Where a sweep keeps its things."""

    home: Path

    @property
    def out(self) -> Path:
        return self.home / "smoke"

    @property
    def log(self) -> Path:
        return self.home.with_suffix(".log")

    @contextmanager
    def start(self, seed: int) -> Iterator[subprocess.Popen]:
        """In a session of its own, whose processes can be found, and none of which outlives the block."""
        words = [*SWEEP, f"seed={seed}", f"home={self.home}"]
        settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        with self.log.open("ab") as log:
            command = [sys.executable, str(ROOT / "sweep.py"), *words]
            process = subprocess.Popen(command, stdout=log, stderr=log, env=settings, start_new_session=True)
        try:
            yield process
        finally:
            end_all(process.pid)
            process.wait()

    def phases(self) -> set[str]:
        """What is under way, as the files say."""
        found = {"data"} if list(self.home.glob("data/.*.partial")) else set()
        if any(path.stat().st_size for path in self.home.glob("images/*.lock")):
            found.add("image")
        done = {row["id"] for row in rows(self.out)}
        for cell in self.out.glob("cells/*"):
            if cell.name not in done and (cell / "log.jsonl").exists():
                found.add(phase(cell))
        return found


def phase(cell: Path) -> str:
    if (cell / "answers.jsonl").exists():
        return "row"
    return "evaluation" if (cell / "checkpoints" / f"step-{STEPS:08d}").exists() else "training"


def rows(out: Path) -> list[dict]:
    """The lines that are whole."""
    path = out / "results.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith(b"}")]


def session(leader: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, belongs = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it ended just now
            continue
        if int(belongs) == leader and state != "Z":
            found.append(int(path.parent.name))
    return found


def end_all(leader: int) -> None:
    while pids := session(leader):
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.01)


def wait_for(true: Callable[[], bool], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def moment(process: subprocess.Popen, place: Place, rng: random.Random, usual: float) -> str | None:
    """Waits for the moment to strike and returns the phase it falls in; None where the sweep was over before."""
    if rng.random() < 0.5:
        wait_for(lambda: process.poll() is not None, rng.uniform(0, 0.6 * usual))  # what is left is ever less
    else:
        wanted = rng.choice(PHASES)
        wait_for(lambda: process.poll() is not None or wanted in place.phases(), PATIENCE)
        time.sleep(rng.uniform(0, usual / 40))
    if process.poll() is not None:
        return None
    found = place.phases()
    return next((name for name in reversed(PHASES) if name in found), "start")


def strike(process: subprocess.Popen, way: str, tally: Tally) -> None:
    """Ends a start in one of the ways, and looks whether all of it ends."""
    if way == "term":
        process.terminate()
        if not wait_for(lambda: process.poll() is not None, PATIENCE):
            tally.differences.append(f"not ended {PATIENCE:.0f} s after SIGTERM")
        elif process.returncode not in (0, STOPPED, -signal.SIGTERM):  # the last: before it came to listen
            tally.differences.append(f"exit code {process.returncode} after SIGTERM")
    elif way == "first":
        process.kill()
    else:
        end_all(process.pid)
    process.poll()
    if way != "all" and not wait_for(lambda: not session(process.pid), LINGER):
        tally.differences.append(f"processes that outlived theirs ({way}): {session(process.pid)}")


def undisturbed(place: Place, seed: int) -> float:
    """Seconds that the sweep took."""
    start = time.monotonic()
    with place.start(seed) as process:
        if code := process.wait():
            raise SystemExit(f"the undisturbed sweep ended with exit code {code}: {place.log}")
    return time.monotonic() - start


def disturbed(place: Place, seed: int, usual: float, kills: int, rng: random.Random, tally: Tally) -> None:
    """Strikes until the sweep is over, at most until all `kills` are done; then it may end in peace."""
    while True:
        with place.start(seed) as process:
            tally.starts += 1
            struck = moment(process, place, rng, usual) if tally.kills < kills else None
            if struck is None:
                if process.wait():
                    tally.differences.append(f"exit code {process.returncode}")
                return
            (way,) = rng.choices(list(WAYS), list(WAYS.values()))
            strike(process, way, tally)
        tally.phases[struck] += 1
        tally.ways[way] += 1


def compare(calm: Place, rough: Place, tally: Tally) -> None:
    """Everything that has to be equal, and everything that may not be left behind."""
    ours, theirs = rows(rough.out), {row["id"]: row for row in rows(calm.out)}
    tally.cells += len(ours)
    if sorted(row["id"] for row in ours) != sorted(theirs):
        tally.differences.append(f"cells {[row['id'] for row in ours]} instead of {list(theirs)}")
        return
    for row in ours:
        other = theirs[row["id"]]
        names = [name for name in {**row, **other} if name not in UNLIKE and row.get(name) != other.get(name)]
        tally.differences += [f"{row['id']}: {name} is {row.get(name)}, not {other.get(name)}" for name in names]
        answers = [(place.out / "cells" / row["id"] / "answers.jsonl").read_bytes() for place in (calm, rough)]
        if answers[0] != answers[1]:
            tally.differences.append(f"{row['id']}: other answers")
        tally.resumed += row.get("resumed", 0)
    said = rough.log.read_text(errors="replace")
    tally.differences += [f"said: {line}" for line in said.splitlines() if any(word in line for word in DAMAGE)]
    kept = [path for path in rough.home.rglob("checkpoints") if any(path.iterdir())]
    tally.differences += [f"left behind: {path}" for path in kept]
    tally.leftovers += sum(path.name.endswith(".partial") for path in rough.home.rglob(".*"))


def chaos(kills: int, seed: int, folder: Path) -> Tally:
    rng, tally = random.Random(seed), Tally()
    while tally.kills < kills:
        number = tally.sweeps
        calm, rough = (Place(folder / f"{name}-{number}") for name in ("calm", "rough"))
        usual = undisturbed(calm, seed + number)
        disturbed(rough, seed + number, usual, kills, rng, tally)
        compare(calm, rough, tally)
        tally.sweeps += 1
        print(f"sweep {number}: {tally.kills} kills, {plural(len(tally.differences), 'difference')}", flush=True)
        for place in (calm, rough):
            if not tally.differences:
                shutil.rmtree(place.home)
    if tally.leftovers > tally.starts:
        tally.differences.append(f"{tally.leftovers} temporary files after {tally.starts} starts")
    return tally


def report(tally: Tally, settings: dict[str, object], folder: Path) -> None:
    facts = vars(tally) | {"kills": tally.kills, "settings": settings, "sweep": SWEEP, **provenance()}
    replace_file(folder / "chaos.json", (json.dumps(facts, indent=2) + "\n").encode())
    lines = ["# Sweeps under SIGKILL", "", (__doc__ or "").split("\n\n")[2].replace("\n", " "), ""]
    counts = {"SIGKILLs of all processes": tally.ways["all"], "SIGKILLs of the first alone": tally.ways["first"]}
    counts |= {"SIGTERMs": tally.ways["term"], "starts": tally.starts, "sweeps": tally.sweeps, "cells": tally.cells}
    counts |= {f"struck in phase {name}": tally.phases[name] for name in ("start", *PHASES)}
    counts |= {"times a cell went on from a checkpoint": tally.resumed, "temporary files left": tally.leftovers}
    counts |= {"**differences**": len(tally.differences)}
    lines += grid(["", "count"], [[name, value] for name, value in counts.items()])
    lines += ["", *(f"- {difference}" for difference in tally.differences), ""] if tally.differences else [""]
    lines += [f"`{' '.join(SWEEP)}`, {facts['machine']}, commit {facts['commit']}, {facts['date']}", ""]
    replace_file(folder / "chaos.md", "\n".join(lines).encode())


def parse(words: list[str]) -> dict[str, str]:
    settings = {"kills": "100", "seed": "0", "folder": "", "results": str(ROOT / "results")}
    for word in words:
        name, _, value = word.partition("=")
        if name not in settings or (name in ("kills", "seed") and not value.isdecimal()):
            raise SystemExit(f"{word!r} is none of {', '.join(f'{name}=' for name in settings)}")
        settings[name] = value
    return settings


def main() -> None:
    words = parse(sys.argv[1:])
    folder = Path(words["folder"] or tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    tally = chaos(int(words["kills"]), int(words["seed"]), folder)
    report(tally, {name: int(words[name]) for name in ("kills", "seed")}, Path(words["results"]))
    print(f"{tally.kills} kills, {plural(len(tally.differences), 'difference')}: {words['results']}/chaos.md")
    sys.exit(bool(tally.differences))


if __name__ == "__main__":
    main()
