"""Tasks in processes of their own: what each gives; one that dies, hangs or is stopped concerns itself alone."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tefusion import stop, tasks
from tefusion.pool import run_pool
from tefusion.stop import Stopped
from tefusion.tasks import Event, Task, run_here

NEVER = 1e9


def work(kind, value, send):
    """What a task's name says."""
    if kind == "raise":
        raise ValueError(f"{value}\nand a second line")
    if kind == "die":
        os._exit(value)
    if kind == "killed":
        os.kill(os.getpid(), value)
    if kind == "unsendable":
        return lambda: None
    if kind == "process":
        child = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0,))
        child.start()
        child.join()
    if kind in ("hang", "hang with a child"):
        child = subprocess.Popen(["sleep", "300"]) if kind != "hang" else None
        Path(value).write_text(f"{os.getpid()} {child.pid if child else ''}")
        send({"step": 3})
        deep_sleep()
    if kind == "until stopped":
        Path(value).write_text(str(os.getpid()))
        while not stop.asked():
            time.sleep(0.05)
            send("alive")
        raise Stopped("at step 7")
    for i in range(2):
        send(i)
    return value


def deep_sleep():
    time.sleep(300)


def task(kind, value, after=None):
    return Task(work, (kind, value), after)


def finished(events):
    return {event.task: event for event in events if event.kind != "progress"}


def appears(path):
    while not (path.exists() and path.read_text()):
        time.sleep(0.05)
    return [int(pid) for pid in path.read_text().split()]


def gone(pid):
    """Ended, if perhaps not yet collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(true):
    while not true():  # the test's time limit is its failure
        time.sleep(0.05)


@pytest.fixture(autouse=True)
def unasked():
    stop._asked.clear()
    yield
    stop._asked.clear()


def test_here_tasks_run_one_after_another_and_one_that_raises_fails_alone():
    events = list(run_here([task("give", 1), task("raise", "no"), task("give", 3)], NEVER, print))
    assert [(event.task, event.kind) for event in events] == [(0, "done"), (1, "failed"), (2, "done")]
    assert [events[0].value, events[2].value] == [1, 3]
    assert events[1].value.reason == "ValueError: no"
    assert "Traceback" in events[1].value.trace
    assert "second line" in events[1].value.trace


@pytest.mark.parametrize("pooled", [False, True])
def test_who_needs_a_failed_task_fails_with_it_and_who_needs_a_done_one_waits(pooled):
    listed = [task("raise", "no"), task("give", 1), task("give", 2, 0), task("give", 3, 1), task("give", 4, 2)]
    run = run_pool(listed, 2, 1, NEVER) if pooled else run_here(listed, NEVER, print)
    ends = [event for event in run if event.kind != "progress"]
    assert {event.task: event.kind for event in ends} == {0: "failed", 1: "done", 2: "failed", 3: "done", 4: "failed"}
    assert {event.value.reason for event in ends if event.kind == "failed"} == {"ValueError: no"}
    order = [event.task for event in ends]
    assert order.index(1) < order.index(3)


def test_a_pool_gives_results_and_progress_and_survives_what_tasks_do():
    kinds = [("give", 0), ("raise", "no"), ("die", 7), ("give", 3), ("process", 4), ("unsendable", 5), ("die", 1)]
    kinds += [("killed", signal.SIGSEGV), ("killed", signal.SIGKILL), ("give", 9)]
    events = list(run_pool([task(*kind) for kind in kinds], 2, 1, NEVER))
    ends = finished(events)
    assert sorted(ends) == list(range(len(kinds)))
    assert {i: end.value for i, end in ends.items() if end.kind == "done"} == {0: 0, 3: 3, 4: 4, 9: 9}
    assert ends[1].value.reason == "ValueError: no"
    assert ends[2].value.reason == "the process ended with exit code 7"
    assert ends[6].value.reason == "the process ended with exit code 1"
    assert ends[7].value.reason == "the process was ended by SIGSEGV"
    assert ends[8].value.reason.startswith("the process was ended by SIGKILL, ")
    assert ends[5].kind == "failed"
    assert [event for event in events if event.task == 3] == [Event(3, "progress", 0), Event(3, "progress", 1), ends[3]]


def test_no_task_needs_no_process():
    assert list(run_pool([], 2, 1, NEVER)) == []


@pytest.mark.timeout(120)
def test_a_task_that_hangs_is_ended_with_its_children_and_the_others_go_on(tmp_path):
    listed = [task("hang with a child", tmp_path / "pids"), task("give", 1), task("give", 2)]
    ends = finished(run_pool(listed, 1, 1, hang=3))
    assert [ends[i].kind for i in range(3)] == ["failed", "done", "done"]
    failure = ends[0].value
    assert failure.reason == "no sign of life for 3 s, the last was step 3"
    assert "deep_sleep" in failure.trace  # where it was
    wait_until(lambda: all(gone(pid) for pid in appears(tmp_path / "pids")))


@pytest.mark.timeout(120)
def test_a_task_that_hangs_here_is_told_of_and_ends_the_process(tmp_path):
    code = f"""if True:
        import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
        from test_pool import task
        from tefusion.tasks import run_here
        hanging = lambda event: print(event.task, event.kind, event.value.trace, flush=True)
        for event in run_here([task("give", 1), task("hang", {str(tmp_path / "pid")!r})], 1.0, hanging):
            print("done", event.task, flush=True)
    """
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ended.returncode == stop.STOPPED
    assert ended.stdout.startswith("done 0\n1 failed no sign of life for 1 s, the last was step 3\n")
    assert "deep_sleep" in ended.stdout


def test_signs_of_life_keep_a_task_alive(monkeypatch):
    def slow(send):
        for i in range(6):
            time.sleep(0.1)
            send(i)
        return "there"

    monkeypatch.setattr(tasks, "POLL", 0.01)
    (event,) = run_here([Task(slow, ())], 0.4, lambda event: None)
    assert event.value == "there"


@pytest.mark.timeout(120)
def test_a_reader_that_stops_early_stops_the_work(tmp_path):
    events = run_pool([task("give", 0), task("hang", tmp_path / "begun")], 2, 1, NEVER)
    while next(events).kind == "progress":
        pass
    appears(tmp_path / "begun")
    assert multiprocessing.active_children()
    events.close()
    wait_until(lambda: not multiprocessing.active_children())


@pytest.mark.timeout(120)
def test_asked_to_stop_what_runs_saves_and_nothing_new_begins(tmp_path):
    ends = {}
    for event in run_pool([task("until stopped", tmp_path / "pid"), task("give", 1)], 1, 1, NEVER):
        if event.kind == "progress":
            stop._asked[:] = [signal.SIGTERM]
        else:
            ends[event.task] = event
    assert ends == {0: Event(0, "stopped", "at step 7")}


SCRIPT = """if __name__ == "__main__":
    import sys
    sys.path.insert(0, sys.argv[1])
    from test_pool import run_pool, stop, task
    stop.listen()
    list(run_pool([task("hang with a child", sys.argv[2])], 1, 1, 1e9))
"""


@pytest.mark.timeout(120)
@pytest.mark.parametrize("numbers", [[signal.SIGKILL], [signal.SIGINT, signal.SIGTERM]])
def test_workers_end_with_their_parent(tmp_path, numbers):
    """Also those who never come to look whether it lives, or whether they are asked to stop, and what they started."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen([sys.executable, script, Path(__file__).parent, tmp_path / "pids"])
    pids = appears(tmp_path / "pids")
    assert len(pids) == 2
    for number in numbers:
        assert parent.poll() is None
        parent.send_signal(number)
        time.sleep(1)
    assert parent.wait() == (128 + signal.SIGTERM if len(numbers) > 1 else -signal.SIGKILL)
    wait_until(lambda: all(gone(pid) for pid in pids))
