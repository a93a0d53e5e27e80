"""A lock has one holder, says who that is, and dies with them."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from tefusion import lock, stop
from tefusion.lock import LockedError, locked

HOLDER = """
import os, sys, time
from pathlib import Path
from tefusion.lock import locked
with locked(Path(sys.argv[1])):
    if sys.argv[2] == "with a child" and not os.fork():
        time.sleep(300)
    print(flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held(tmp_path):
    """path, the process that holds it, and by which name."""
    path = tmp_path / "new" / "results.lock"
    group = subprocess.Popen(
        [sys.executable, "-c", HOLDER, path, "with a child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    group.stdout.readline()
    yield path, group
    os.killpg(group.pid, signal.SIGKILL)
    group.communicate()


def test_a_second_holder_is_refused_with_one_line_that_names_the_first(held):
    path, first = held
    with pytest.raises(LockedError) as refused, locked(path):
        pass
    said = str(refused.value)
    assert "\n" not in said
    assert said.startswith(f"{path} is held by process {first.pid} on {lock.socket.gethostname()} since 2")
    assert said.endswith("with a child'")
    assert isinstance(refused.value, ValueError)


def test_a_dead_holders_lock_is_free_at_once_whoever_the_file_names(held):
    """Its child lives on, as a loader's process may for a while."""
    path, first = held
    first.kill()
    first.wait()
    assert json.loads(path.read_text())["pid"] == first.pid
    with locked(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert path.read_text() == ""


def test_who_waits_is_told_whom_for_and_comes_next(held, monkeypatch):
    path, first = held
    monkeypatch.setattr(lock, "PAUSE", 0.01)
    told = []

    def waiting(said):
        told.append(said)
        if len(told) == 3:
            first.kill()

    with locked(path, waiting):
        assert len(told) >= 3
        assert f"process {first.pid} " in told[0]


def test_who_waits_and_is_asked_to_stop_stops(held, monkeypatch):
    monkeypatch.setattr(stop, "_asked", [signal.SIGTERM])
    with pytest.raises(stop.Stopped, match=f"is held by process {held[1].pid}"), locked(held[0], lock.patiently):
        pass


def test_a_file_that_names_nobody_is_no_reason_to_fail(held):
    path, _ = held
    path.write_text("{")
    with pytest.raises(LockedError, match="a process that has not signed yet"), locked(path):
        pass


def count_up(path, number):
    for _ in range(10):
        with locked(path, lock.patiently):
            value = int(number.read_text())
            time.sleep(0.001)
            number.write_text(str(value + 1))


def test_several_processes_take_turns(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PAUSE", 0.002)  # the forked ones have it too
    number = tmp_path / "number"
    number.write_text("0")
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=count_up, args=(tmp_path / "lock", number)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert number.read_text() == "30"
