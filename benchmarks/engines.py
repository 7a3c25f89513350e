"""The two engines, each with a store in a temporary folder of its own."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

from benchmarks.timing import peak_memory
from graphstore import Store, connect

__all__ = ["ENGINES", "HEAP", "PAGE_CACHE", "opened", "peak_memories"]

ENGINES = ("embedded", "neo4j")
HEAP = "3g"
PAGE_CACHE = "1g"  # Neo4j's own cache beside its heap

_SCRIPT = Path(__file__).resolve().parents[1] / "docker" / "neo4j.sh"


@contextlib.contextmanager
def opened(engine: str, folder: Path) -> Iterator[Store]:
    """Empty store of an engine; the engine is stopped afterwards, the folder stays."""
    if engine == "embedded":
        os.environ["CIRCUITBASE_HEAP"] = HEAP
        with connect(folder) as store:
            yield store
        return
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NEO4J_")}
    settings = {
        "NEO4J_HOME": str(folder),
        "NEO4J_HEAP": HEAP,
        "NEO4J_PAGECACHE": PAGE_CACHE,
        "NEO4J_VERSION": os.environ.get("NEO4J_VERSION", "5.26.30"),
    }
    environment = {**kept, **settings}
    try:
        lines = subprocess.run(
            [_SCRIPT, "start"], env=environment, stdout=subprocess.PIPE, text=True, check=True
        ).stdout.splitlines()
        given = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        found = {name: "".join(shlex.split(value)) for name, value in given.items()}
        auth = (found["NEO4J_USERNAME"], found["NEO4J_PASSWORD"])
        with connect(found["NEO4J_URI"], auth=auth) as store:
            yield store
    finally:
        subprocess.run([_SCRIPT, "stop"], env=environment, stdout=subprocess.DEVNULL)


def peak_memories(engine: str, folder: Path) -> dict[str, int | None]:
    """Peak resident sizes so far: of this process, and of the server where that is another."""
    found = {"client": peak_memory()}
    if engine == "neo4j":
        pid = (folder / "run" / "neo4j.pid").read_text().strip()
        found["server"] = peak_memory(pid)
    return found
