"""How things are timed, and what is known of the machine they are timed on."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["machine", "median_time", "peak_memory", "say", "size_of", "versions"]


def median_time(
    work: Callable[[], Any], repeats: int = 5, budget: float = 20.0, warm: bool = True
) -> float:
    """Median seconds of a few calls, after one that does not count; fewer where they take long.

    A call that uses up the budget by itself counts although it is the first.
    """
    times = []
    if warm:
        start = time.perf_counter()
        work()
        first = time.perf_counter() - start
        budget -= first
        if budget <= 0:
            return first
    while len(times) < repeats and (not times or sum(times) < budget):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def peak_memory(pid: int | str = "self") -> int | None:
    """Largest resident size that a process has had, in bytes; None where the system hides it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(found[0]) * 1024 if found else None


def size_of(folder: Path) -> int:
    """Bytes that a folder's files take on disk."""
    return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())


def machine() -> dict[str, Any]:
    """Cores, memory and load: what figures depend on, and nothing that names the machine."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": memory,
        "load": round(os.getloadavg()[0], 1),
    }


def versions() -> dict[str, str]:
    """Versions of what is measured."""
    found = {"python": platform.python_version()}
    for name in ("numpy", "scipy", "pandas", "neo4j", "neo4j-rust-ext", "arcadedb-embedded"):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def say(text: str) -> None:
    """Show progress on standard error."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
