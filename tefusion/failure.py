"""Why a cell failed, in one line; where memory was short, by how much and which setting would fit."""

import re
import signal
import traceback
from dataclasses import dataclass

from tefusion.config import Run
from tefusion.launch import world
from tefusion.memory import held, human, oom_kills, room

UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")
SIZE = r"(\d+(?:\.\d+)?) (bytes|[KMGT]iB)"
SHORT = ("CUDA out of memory", "can't allocate memory", "bad_alloc")  # of a RuntimeError
OPTIMIZED = 16  # bytes a parameter takes: weight, gradient, two moments
MARGIN = 1.1


@dataclass(frozen=True)
class Shortage:
    """Bytes: what a process asked for in vain (0 where nobody knows), what it held, how much of that before its task
    began, and what was free `where`."""

    wanted: int
    held: int
    before: int
    free: int
    where: str

    def __str__(self) -> str:
        asked = f"{human(self.wanted)} more asked for, " if self.wanted else ""
        return f"{asked}{human(self.free)} free {self.where}, {human(self.held)} held"


@dataclass(frozen=True)
class Failure:
    """A line for rows and tables, and all of it for the log."""

    reason: str
    trace: str
    shortage: Shortage | None = None


def failure_of(error: Exception, before: int) -> Failure:
    """Called where the error was caught; `before` are the bytes that the process held when its task began."""
    reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
    return Failure(reason, traceback.format_exc(), shortage_of(error, before))


def shortage_of(error: Exception, before: int) -> Shortage | None:
    text = str(error)
    if not isinstance(error, MemoryError) and not (isinstance(error, RuntimeError) and any(s in text for s in SHORT)):
        return None
    wanted = said(f"(?:tried|Tried|Unable) to allocate {SIZE}", text)
    if "CUDA" in text:
        used = said(f"this process has {SIZE} memory in use", text)
        return Shortage(wanted, used, 0, said(f"of which {SIZE} is free", text), "on the GPU")
    return Shortage(wanted, held(), before, *room())


def said(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(float(found[1]) * 1024 ** UNITS.index(found[2])) if found else 0


def ended(exitcode: int | None, peak: int, kills: int | None) -> Failure:
    """Of a process that left no word. `peak` is the most it was seen to hold, `kills` what `oom_kills` said before."""
    if exitcode is None or exitcode >= 0:
        reason = f"the process ended with exit code {exitcode}"
        return Failure(reason, reason)
    reason = f"the process was ended by {signal.Signals(-exitcode).name}"
    if exitcode != -signal.SIGKILL:
        return Failure(reason, reason)
    if kills is not None and oom_kills() == kills:
        reason += ", but not by the kernel for want of memory"
        return Failure(reason, reason)
    reason += ", as the kernel does where memory runs out"
    return Failure(reason, reason, Shortage(0, peak, 0, *room()))


def hung(seconds: float, last: str, stack: str) -> Failure:
    """Of a task that gave no sign of life after its `last` word; `stack` is where it was ended."""
    reason = f"no sign of life for {seconds:.0f} s, " + (f"the last was {last}" if last else "and none before")
    return Failure(reason, f"{reason}\n{stack}")


def told(failure: Failure, run: Run, image: bool = False) -> str:
    """The reason; of a run that was short of memory also the setting that would fit."""
    if failure.shortage is None:
        return failure.reason
    first = failure.reason.partition(". ")[0].rstrip(".")  # torch goes on with advice of its own
    return f"{first} ({failure.shortage}); {advice(failure.shortage, run, image)}"


def advice(shortage: Shortage, run: Run, image: bool) -> str:
    """Activations take memory in proportion to the part of a batch that is computed at once; the rest stays."""
    fixed = shortage.before + OPTIMIZED * parameters(run)
    free = shortage.held + shortage.free - fixed
    share = MARGIN * (shortage.held + shortage.wanted - fixed) / free if free > 0 else float("inf")
    parts = [n for n in range(run.accumulate + 1, run.batch + 1) if run.batch % (n * world()) == 0]
    fitting = [n for n in parts if n / run.accumulate >= share]
    if not fitting:
        return "it takes a larger k, a smaller n_input or size, or a smaller model"
    # The image stage does not accumulate.
    return f"batch={run.batch // fitting[0]} should fit" if image else f"accumulate={fitting[0]} should fit"


def parameters(run: Run) -> int:
    from tefusion.cost import count

    return count(run)["params"]
