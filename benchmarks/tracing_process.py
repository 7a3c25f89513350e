"""What a measured process notes of itself: time, processor time, peak memory, and its neighbours.

Used on both sides of the tracing benchmark, so it needs the standard library alone.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

__all__ = ["Watch", "answer", "read_answer", "wait_for_quiet"]

MARK = "RESULT "


class Watch:
    """Time and memory of a ``with`` block; peak memory counts from its start.

    Attributes
    ----------
    figures
        Once the block has ended: ``seconds``; ``processor_seconds`` of this process; ``others``,
        cores that the rest of the machine kept busy; ``memory_before`` and ``peak_memory``,
        resident bytes, None where the system hides them.
    """

    def __enter__(self) -> Watch:
        self.figures: dict[str, Any] = {}
        _forget_peak()
        self._before = _resident("VmRSS")
        self._busy, self._own, self._wall = _snapshot()
        return self

    def __exit__(self, *_: object) -> None:
        busy, own, wall = _snapshot()
        seconds, mine = wall - self._wall, own - self._own
        self.figures = {
            "seconds": seconds,
            "processor_seconds": mine,
            "others": max(0.0, busy - self._busy - mine) / seconds,
            "memory_before": self._before,
            "peak_memory": _resident("VmHWM"),
        }


def wait_for_quiet(limit: float, busy: float, spell: float = 4.0) -> bool:
    """Wait until other work keeps fewer than `busy` cores busy for a spell, at most `limit` s."""
    end, quiet = time.perf_counter() + limit, 0.0
    while quiet < spell and time.perf_counter() < end:
        before, own, start = _snapshot()
        time.sleep(1)
        after, mine, now = _snapshot()
        others = (after - before - (mine - own)) / (now - start)
        quiet = quiet + now - start if others < busy else 0.0
    return quiet >= spell


def answer(figures: dict[str, Any]) -> None:
    """Print the figures as the line that the caller looks for."""
    print(MARK + json.dumps(figures), flush=True)


def read_answer(output: str) -> dict[str, Any] | None:
    """Figures that a process printed among other lines; None where there are none."""
    for line in reversed(output.splitlines()):
        if line.startswith(MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(MARK))
            return found
    return None


def _snapshot() -> tuple[float, float, float]:
    """Processor seconds of the whole machine and of this process, and the time."""
    own = os.times()
    try:
        fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    except OSError:
        return 0.0, own.user + own.system, time.perf_counter()
    ticks = sum(map(int, fields[1:4])) + sum(map(int, fields[6:9]))
    return ticks / os.sysconf("SC_CLK_TCK"), own.user + own.system, time.perf_counter()


def _forget_peak() -> None:
    """Let the peak of resident memory start again from what is resident now (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _resident(which: str) -> int | None:
    """Bytes of a line of /proc/self/status."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith(f"{which}:")]
    return int(found[0]) * 1024 if found else None
