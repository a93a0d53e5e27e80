"""Tasks in processes of their own: what each gives, and that one that dies fails alone."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from tefusion.pool import Event, run_here, run_pool


def work(task, send):
    """What a task's name says."""
    kind, value = task
    if kind == "raise":
        raise ValueError(f"{value}\nand a second line")
    if kind == "die":
        os._exit(value)
    if kind == "unsendable":
        return lambda: None
    if kind == "process":
        child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))
        child.start()
        child.join()
    if kind == "touch":
        Path(value).touch()
        time.sleep(300)
    for i in range(2):
        send(i)
    return value


def finished(events):
    return {event.task: event for event in events if event.kind != "progress"}


def test_here_tasks_run_one_after_another_and_one_that_raises_fails_alone():
    events = list(run_here(work, [(("give", 1),), (("raise", "no"),), (("give", 3),)]))
    assert [(event.task, event.kind) for event in events] == [(0, "done"), (1, "failed"), (2, "done")]
    assert [events[0].value, events[2].value] == [1, 3]
    reason, trace = events[1].value
    assert reason == "ValueError: no"
    assert "Traceback" in trace
    assert "second line" in trace


def test_a_pool_gives_results_and_progress_and_survives_what_tasks_do():
    tasks = [
        ("give", 0),
        ("raise", "no"),
        ("die", 7),
        ("give", 3),
        ("process", 4),
        ("unsendable", 5),
        ("die", 1),
        ("give", 7),
    ]
    events = list(run_pool(work, [(task,) for task in tasks], jobs=2, threads=1))
    ends = finished(events)
    assert sorted(ends) == list(range(len(tasks)))
    assert {i: end.value for i, end in ends.items() if end.kind == "done"} == {0: 0, 3: 3, 4: 4, 7: 7}
    assert ends[1].value[0] == "ValueError: no"
    assert ends[2].value[0] == "the process ended with exit code 7"
    assert ends[6].value[0] == "the process ended with exit code 1"
    assert ends[5].kind == "failed"
    assert [event for event in events if event.task == 3] == [Event(3, "progress", 0), Event(3, "progress", 1), ends[3]]


def test_no_task_needs_no_process():
    assert list(run_pool(work, [], jobs=2, threads=1)) == []


@pytest.mark.timeout(120)
def test_a_reader_that_stops_early_stops_the_work(tmp_path):
    events = run_pool(work, [(("give", 0),), (("touch", str(tmp_path / "begun")),)], jobs=2, threads=1)
    while next(events).kind == "progress":
        pass
    while not (tmp_path / "begun").exists():
        time.sleep(0.1)
    assert multiprocessing.active_children()
    events.close()
    while multiprocessing.active_children():  # the time limit is the test's failure
        time.sleep(0.1)
