"""What is said of a failure, above all where memory ran out: by how much, and which setting would fit."""

import signal
import subprocess
import sys

import pytest
import torch

from tefusion import failure, memory
from tefusion.config import Run
from tefusion.failure import Failure, Shortage, advice, ended, failure_of, hung, shortage_of, told

GIB = 2**30
CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.15 GiB of which 512.00 MiB is "
    "free. Including non-PyTorch memory, this process has 78.50 GiB memory in use. Of the allocated memory 70.00 GiB "
    "is allocated by PyTorch, and 45.37 MiB is reserved by PyTorch but unallocated."
)
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "4294967296 bytes. Error code 12 (Cannot allocate memory)"
)
NUMPY = "Unable to allocate 3.00 GiB for an array with shape (3, 1024, 1024, 1024) and data type uint8"


@pytest.fixture
def small(monkeypatch):
    """A model without a weight on a machine with 1 GiB left, in a process that holds 3."""
    monkeypatch.setattr(failure, "parameters", lambda run: 0)
    monkeypatch.setattr(failure, "room", lambda: (GIB, "on the machine"))
    monkeypatch.setattr(failure, "held", lambda: 3 * GIB)


def caught(error, before=0):
    try:
        raise error
    except Exception as error:
        return failure_of(error, before)


def test_an_error_is_its_type_and_first_line_and_keeps_its_trace():
    found = caught(FloatingPointError("the loss is nan at step 7, of examples 3, 5\nmore"))
    assert found.reason == "FloatingPointError: the loss is nan at step 7, of examples 3, 5"
    assert "more" in found.trace
    assert "Traceback" in found.trace
    assert told(found, Run()) == found.reason
    assert caught(KeyError()).reason == "KeyError"


@pytest.mark.parametrize(
    ("error", "shortage"),
    [
        (torch.OutOfMemoryError(CUDA), Shortage(5 * GIB // 2, 157 * GIB // 2, 0, GIB // 2, "on the GPU")),
        (RuntimeError(CPU), Shortage(4 * GIB, 3 * GIB, 2 * GIB, GIB, "on the machine")),
        (MemoryError(NUMPY), Shortage(3 * GIB, 3 * GIB, 2 * GIB, GIB, "on the machine")),
        (MemoryError(), Shortage(0, 3 * GIB, 2 * GIB, GIB, "on the machine")),
        (RuntimeError("std::bad_alloc"), Shortage(0, 3 * GIB, 2 * GIB, GIB, "on the machine")),
        (RuntimeError("shapes differ"), None),
        (ValueError("can't allocate memory for jokes"), None),
    ],
)
def test_a_shortage_is_read_from_what_torch_and_numpy_say(small, error, shortage):
    assert shortage_of(error, 2 * GIB) == shortage


def test_the_line_says_by_how_much_and_what_fits(small):
    line = told(caught(torch.OutOfMemoryError(CUDA)), Run(batch=64))
    assert line == (
        "OutOfMemoryError: CUDA out of memory (2.5 GiB more asked for, 512 MiB free on the GPU, 78.5 GiB held); "
        "accumulate=2 should fit"
    )
    assert told(caught(MemoryError(), 2 * GIB), Run()).startswith("MemoryError (1.0 GiB free on the machine, ")


@pytest.mark.parametrize(
    ("wanted", "run", "said"),
    [
        (1, {"batch": 64}, "accumulate=2 should fit"),  # 3 of activations wanted, 3 there: with the margin 2 parts
        (7, {"batch": 64}, "accumulate=4 should fit"),  # 9 into 3, times the margin
        (7, {"batch": 64, "accumulate": 4}, "accumulate=16 should fit"),
        (7, {"batch": 50}, "accumulate=5 should fit"),  # divides the batch
        (7, {"batch": 60}, "accumulate=4 should fit"),  # 3 would, were what was held before to shrink as well
        (7, {"batch": 2}, "it takes a larger k, a smaller n_input or size, or a smaller model"),
        (1, {"batch": 1}, "it takes a larger k, a smaller n_input or size, or a smaller model"),
    ],
)
def test_the_smallest_fitting_number_of_parts(small, wanted, run, said):
    assert advice(Shortage(wanted * GIB, 4 * GIB, 2 * GIB, GIB, ""), Run(**run), image=False) == said


def test_what_does_not_shrink_with_the_batch_is_left_out(small, monkeypatch):
    monkeypatch.setattr(failure, "parameters", lambda run: GIB // 4)  # 4 GiB with gradients and moments
    none = advice(Shortage(GIB, 4 * GIB, 2 * GIB, GIB, ""), Run(), image=False)
    assert none.startswith("it takes a larger k")


def test_the_image_stage_knows_no_accumulation(small):
    assert advice(Shortage(7 * GIB, 4 * GIB, 2 * GIB, GIB, ""), Run(batch=64), image=True) == "batch=16 should fit"


def test_several_processes_share_a_batch(small, monkeypatch):
    monkeypatch.setattr(failure, "world", lambda: 8)
    assert advice(Shortage(GIB, 4 * GIB, 2 * GIB, GIB, ""), Run(batch=24), image=False) == "accumulate=3 should fit"


def test_parameters_are_counted_without_building_the_model():
    assert failure.parameters(Run()) > 10_000


@pytest.mark.parametrize(
    ("code", "kills", "now", "said", "short"),
    [
        (7, 0, 0, "with exit code 7", False),
        (-signal.SIGSEGV, 0, 0, "by SIGSEGV", False),
        (-signal.SIGKILL, 0, 0, "by SIGKILL, but not by the kernel", False),
        (-signal.SIGKILL, 0, 1, "by SIGKILL, as the kernel does where memory runs out", True),
        (-signal.SIGKILL, None, None, "by SIGKILL, as the kernel does where memory runs out", True),
    ],
)
def test_a_process_that_left_no_word(small, monkeypatch, code, kills, now, said, short):
    monkeypatch.setattr(failure, "oom_kills", lambda: now)
    found = ended(code, 5 * GIB, kills)
    assert said in found.reason
    assert (found.shortage is not None) == short
    if short:
        assert told(found, Run()).endswith("(1.0 GiB free on the machine, 5.0 GiB held); accumulate=2 should fit")


def test_a_hang_says_for_how_long_and_since_when():
    assert hung(600, "step 3", "File x").reason == "no sign of life for 600 s, the last was step 3"
    assert hung(600, "", "File x").reason == "no sign of life for 600 s, and none before"
    assert "File x" in hung(600, "", "File x").trace


LIMITED = """
import resource, sys
from tefusion.config import Run
from tefusion.failure import told
from tefusion.memory import number
from tefusion.tasks import Task, run_here
import torch
from pathlib import Path

def work(send):
    held = torch.ones(25 << 20)  # 100 MiB
    return held + torch.empty(2 << 30 >> 2).fill_(1).sum() if sys.argv[1] == "torch" else bytearray(2 << 30)

used = 1024 * number(Path("/proc/self/status"), "VmSize:", 0)
resource.setrlimit(resource.RLIMIT_AS, (used + (600 << 20), resource.RLIM_INFINITY))
(event,) = run_here([Task(work, ())], 1e9, print)
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
short = event.value.shortage
print(short.wanted >> 20, short.free >> 20, short.held > short.before)
print(told(event.value, Run()))
"""


@pytest.mark.parametrize("who", ["torch", "python"])
def test_memory_that_is_really_short(who):
    done = subprocess.run([sys.executable, "-c", LIMITED, who], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    numbers, line = done.stdout.splitlines()
    wanted, free, more = numbers.split()
    assert wanted == {"torch": "2048", "python": "0"}[who]
    assert 250 < int(free) <= 500  # a new thread reserves up to 128 MiB more
    assert more == "True"
    assert "free under ulimit -v" in line
    assert "\n" not in line


def test_the_nearest_limit_counts(tmp_path, monkeypatch):
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\n")
    monkeypatch.setattr(memory, "control_groups", lambda: [tmp_path])
    assert memory.room() == (400, "in the control group")  # what the kernel would give up is as good as free
    (tmp_path / "memory.max").write_text("max\n")
    free, where = memory.room()
    assert where == "on the machine"
    assert free > 1 << 20


def test_what_a_system_does_not_say_is_not_known(tmp_path):
    assert memory.number(tmp_path / "none", "", 7) == 7
    assert memory.held(2**22 + 1) == 0
    assert memory.held() > 1 << 20
    assert isinstance(Failure("a", "b").shortage, type(None))
