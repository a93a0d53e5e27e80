"""What a person sees while a sweep runs."""

import io
import re

import pytest
from rich.console import Console

from tefusion.failure import Failure
from tefusion.tasks import Event
from tefusion.watch import Watcher, label, step, watch

PENDING = {"compressor": "te_fusion", "k": 4, "n_input": 16, "size": "32", "seed": 0, "control": ""}
DONE = {**PENDING, "status": "done", "accuracy": 0.5, "stderr": 0.01, "by_category": {"MR": 0.5}, "questions": 10}
PROGRESS = {"step": 10, "steps": 40, "loss": 1.2345, "accuracy": 0.256}


def cells(n):
    return [{**PENDING, "id": str(i), "seed": i} for i in range(n)]


def shown(table):
    console = Console(file=io.StringIO(), width=100)
    console.print(table)
    return console.file.getvalue()


def test_a_label_names_the_cell_or_the_control():
    assert label(PENDING) == "te_fusion k=4, 16 frames at 32 px, seed 0"
    control = {**PENDING, "compressor": "none", "k": 1, "control": "one_frame,fewer_frames"}
    assert label(control).startswith("one frame, fewer frames, ")


def test_a_step_says_how_far_and_how_well():
    assert step(PROGRESS) == "step 10/40, loss 1.234, accuracy 26 %"


def test_lines_tell_of_every_finished_cell_and_what_is_left(capsys):
    with watch([], cells(3), shown=True) as watcher:
        watcher.image(0, Event(0, "progress", PROGRESS))
        watcher.image(0, Event(0, "done", "file"))
        watcher.progress("0", PROGRESS)
        watcher.finished("0", {**DONE, "id": "0"})
        watcher.start -= 120
        watcher.finished("1", {**PENDING, "id": "1", "seed": 1, "status": "failed", "reason": "out of memory"})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "image model, seed 0: done"
    assert re.fullmatch(r"te_fusion k=4, 16 frames at 32 px, seed 0: 50\.0 % \(2 left, about 0 min\)", lines[1])
    assert re.fullmatch(r"te_fusion .*, seed 1: failed: out of memory \(1 left, about 1 min\)", lines[2])
    assert len(lines) == 3


def test_a_failed_image_model_says_why(capsys):
    watcher = Watcher([], {}, lines=True)
    watcher.image(1, Event(0, "failed", Failure("ValueError: no clips", "Traceback")))
    assert capsys.readouterr().out == "image model, seed 1: failed: ValueError: no clips\n"


@pytest.mark.parametrize("shown", [True, False])
def test_only_the_first_process_speaks(shown, capsys):
    with watch([], cells(1), shown) as watcher:
        watcher.finished("0", {**DONE, "id": "0"})
    assert bool(capsys.readouterr().out) == shown


def test_the_table_fills_up():
    rows = cells(2)
    watcher = Watcher([], {row["id"]: row for row in rows})
    assert "0/2" in shown(watcher.table())
    watcher.progress("0", PROGRESS)
    assert "te_fusion k=4, 16 frames at 32 px, seed 0: step 10/40" in shown(watcher.table())
    watcher.finished("0", {**DONE, "id": "0"})
    text = shown(watcher.table())
    assert "1/2" in text
    assert "50.0" in text
    assert "step 10/40" not in text
    assert "1 left" in text
