"""What a process holds and what it could still get, in bytes, as Linux says; elsewhere nothing is known."""

import resource
from pathlib import Path

UNKNOWN = 2**63
# A control group's limit, what it holds, and the part of it that the kernel would give up: versions 2 and 1.
CONTROL = (
    ("memory.max", "memory.current", "inactive_file "),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "),
)


def held(pid: int | str = "self") -> int:
    """0 where the system does not say, as of a process that has ended."""
    return 1024 * number(Path(f"/proc/{pid}/status"), "VmRSS:", 0)


def room() -> tuple[int, str]:
    """What this process can still get, and where the nearest limit lies."""
    limits = [(1024 * number(Path("/proc/meminfo"), "MemAvailable:", UNKNOWN), "on the machine")]
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        limits.append((limit - 1024 * number(Path("/proc/self/status"), "VmSize:", 0), "under ulimit -v"))
    limits += [(control_group(folder), "in the control group") for folder in control_groups()]
    free, where = min(limits)
    return max(0, free), where


def control_groups() -> list[Path]:
    """Of this process, where they can be seen: a container sees its own as the root."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return []
    roots = [(root / "memory" if kind else root, path) for _, kind, path in lines if kind in ("", "memory")]
    return [folder for base, path in roots for folder in {base, base / path.lstrip("/")}]


def control_group(folder: Path) -> int:
    for limit, usage, spare in CONTROL:
        most = number(folder / limit, "", UNKNOWN)  # "max" is no number
        if most < UNKNOWN:
            return most - number(folder / usage, "", 0) + number(folder / "memory.stat", spare, 0)
    return UNKNOWN


def oom_kills() -> int | None:
    """How many processes the kernel has ended for want of memory; None where it does not say."""
    count = number(Path("/proc/vmstat"), "oom_kill ", -1)
    return None if count < 0 else count


def number(path: Path, name: str, missing: int) -> int:
    """The number behind a name that begins a line."""
    try:
        line = next(line for line in path.read_text().splitlines() if line.startswith(name))
        return int(line[len(name) :].split()[0])
    except (OSError, StopIteration, IndexError, ValueError):
        return missing


def human(size: float) -> str:
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
