"""Where a result comes from: commit, versions, machine, date."""

import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = ("tefusion", "torch", "transformers", "accelerate", "timm", "av", "numpy")


def provenance() -> dict[str, object]:
    return {
        "commit": commit(),
        "versions": {"python": platform.python_version()} | {name: installed(name) for name in PACKAGES},
        "machine": machine(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def commit() -> str:
    """The repository's commit, "-dirty" where tracked files differ from it, or "unknown" outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def machine() -> str:
    """The processor with its cores, and the GPUs."""
    import torch

    names = [f"{processor()}, {os.cpu_count()} cores"]
    names += [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return "; ".join(names)


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
