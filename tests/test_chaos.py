"""The harness that ends sweeps at random moments: what it sees, what it compares, and a short run of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import chaos  # noqa: E402


def place(folder, rows, answers=b"a", said=""):
    """A sweep that is over."""
    made = chaos.Place(folder)
    made.out.mkdir(parents=True)
    for row in rows:
        cell = made.out / "cells" / row["id"]
        cell.mkdir(parents=True, exist_ok=True)
        (cell / "answers.jsonl").write_bytes(answers)
    (made.out / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made.log.write_text(said)
    return made


ROW = {"id": "a", "status": "done", "loss": 0.5, "order": "f00", "seconds": 1.0, "resumed": 0}


@pytest.mark.parametrize(
    ("rows", "further", "said"),
    [
        ([ROW | {"seconds": 9.0, "resumed": 2, "commit": "b"}], {}, None),
        ([ROW | {"loss": 0.5000000001}], {}, "loss"),
        ([ROW | {"order": "f01"}], {}, "order"),
        ([ROW | {"more": 1}], {}, "more"),
        ([ROW, ROW], {}, "cells"),
        ([], {}, "cells"),
        ([ROW], {"answers": b"b"}, "answers"),
        ([ROW], {"said": "x is damaged; going on from y"}, "said"),
    ],
)
def test_whatever_differs_is_found(tmp_path, rows, further, said):
    tally = chaos.Tally()
    chaos.compare(place(tmp_path / "calm", [ROW]), place(tmp_path / "rough", rows, **further), tally)
    assert [difference for difference in tally.differences if not said or said not in difference] == []
    assert bool(tally.differences) == bool(said)


def test_leftovers_are_found(tmp_path):
    calm, rough = place(tmp_path / "calm", [ROW]), place(tmp_path / "rough", [ROW])
    (rough.home / ".x.1.partial").touch()
    (rough.out / "cells/a/checkpoints/step-00000003").mkdir(parents=True)
    tally = chaos.Tally()
    chaos.compare(calm, rough, tally)
    assert tally.leftovers == 1
    assert [difference.split(":")[0] for difference in tally.differences] == ["left behind"]


def test_phases_are_seen_from_the_files(tmp_path):
    made = chaos.Place(tmp_path / "home")
    assert made.phases() == set()
    (made.home / "data/.motion.partial").mkdir(parents=True)
    (made.home / "images").mkdir()
    (made.home / "images/x.lock").touch()
    assert made.phases() == {"data"}
    (made.home / "images/x.lock").write_text("{}")
    cell = made.out / "cells" / "a"
    (cell / "checkpoints").mkdir(parents=True)
    (cell / "log.jsonl").touch()
    assert made.phases() == {"data", "image", "training"}
    (cell / "checkpoints" / f"step-{chaos.STEPS:08d}").mkdir()
    assert "evaluation" in made.phases()
    (cell / "answers.jsonl").touch()
    assert "row" in made.phases()
    (made.out / "results.jsonl").write_text(json.dumps(ROW) + "\n")
    assert made.phases() == {"data", "image"}


def test_the_report_gives_the_counts(tmp_path):
    tally = chaos.Tally(starts=9, sweeps=1, cells=3)
    tally.ways.update({"all": 5, "first": 2, "term": 1})
    tally.phases.update({"row": 8})
    chaos.report(tally, {"kills": 7, "seed": 0}, tmp_path)
    facts = json.loads((tmp_path / "chaos.json").read_text())
    assert (facts["kills"], facts["ways"]["first"], facts["phases"], facts["differences"]) == (7, 2, {"row": 8}, [])
    assert {"commit", "machine", "versions", "date", "sweep"} <= facts.keys()
    text = (tmp_path / "chaos.md").read_text()
    assert "| SIGKILLs of all processes | 5 |" in text
    assert "| **differences** | 0 |" in text
    tally.differences.append("a: other answers")
    chaos.report(tally, {"kills": 7, "seed": 0}, tmp_path)
    assert "- a: other answers" in (tmp_path / "chaos.md").read_text()


def test_all_processes_of_a_session_are_found_and_ended():
    shell = subprocess.Popen(
        ["sh", "-c", "sleep 300 & sleep 300 & echo; wait"], stdout=subprocess.PIPE, start_new_session=True
    )
    shell.stdout.readline()
    assert len(chaos.session(shell.pid)) == 3
    assert os.getpid() not in chaos.session(shell.pid)
    chaos.end_all(shell.pid)
    assert chaos.session(shell.pid) == []
    shell.communicate()


@pytest.mark.heavy
@pytest.mark.timeout(3000)
def test_three_kills_change_nothing(tmp_path):
    command = [sys.executable, ROOT / "benchmarks" / "chaos.py", "kills=3", "seed=3"]
    done = subprocess.run(
        [*command, f"folder={tmp_path / 'runs'}", f"results={tmp_path}"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "chaos.json").read_text())
    assert facts["kills"] >= 3
    assert facts["differences"] == []
    assert sum(facts["phases"].values()) == sum(facts["ways"].values()) == facts["starts"] - facts["sweeps"]
    assert "| **differences** | 0 |" in (tmp_path / "chaos.md").read_text()
