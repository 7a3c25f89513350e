"""Measure both engines, the sparse solve and plain pandas/scipy, side by side.

``python -m benchmarks.run [--graphs N] [--engines embedded neo4j] [--json FILE] [--markdown FILE]``

Progress goes to standard error, the table of results to standard output. Stores are made in a
temporary folder, and removed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.engines import ENGINES, HEAP, PAGE_CACHE
from benchmarks.reference import measure_reference
from benchmarks.report import as_markdown, as_text, tables_of
from benchmarks.solver import measure_solver
from benchmarks.timing import machine, say, versions
from benchmarks.workload import Workload


def main() -> None:
    """Read the command line, measure, report."""
    given = _parser().parse_args()
    results = measure(given.graphs, given.seed, given.engines, given.folder, given.small)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    tables = tables_of(results)
    if given.markdown:
        given.markdown.write_text(as_markdown(tables))
    print(as_text(tables))


def measure(
    n_graphs: int, seed: int, engines: list[str], folder: Path | None, small: bool = False
) -> dict[str, Any]:
    """All figures, by subject; what runs is never run at the same time as something else."""
    start = time.perf_counter()
    results: dict[str, Any] = {
        "command": f"python -m benchmarks.run --graphs {n_graphs} --seed {seed}",
        "versions": versions(),
        "machine": machine(),
        "heap": HEAP,
        "page_cache": PAGE_CACHE,
        "graphs": n_graphs,
    }
    workload = Workload(n_graphs, seed)
    results["solver"] = measure_solver(*((1_000, 50_000) if small else ()))
    results["stores"] = {}
    for engine in engines:
        say(f"{engine}: starting")
        with tempfile.TemporaryDirectory(prefix=f"benchmark-{engine}-", dir=folder) as home:
            results["stores"][engine] = _in_own_process(engine, n_graphs, seed, Path(home))
    results["reference"] = measure_reference(workload)
    results["seconds"] = time.perf_counter() - start
    results["machine_after"] = machine()
    return results


def _in_own_process(engine: str, n_graphs: int, seed: int, home: Path) -> dict[str, Any]:
    out = home / "figures.json"
    arguments = {"engine": engine, "graphs": n_graphs, "seed": seed, "folder": home / "store"}
    command = [sys.executable, "-m", "benchmarks.stores", "--out", str(out)]
    for name, value in arguments.items():
        command += [f"--{name}", str(value)]
    done = subprocess.run(command, cwd=Path(__file__).resolve().parents[1], stdout=sys.stderr)
    if done.returncode:
        raise SystemExit(f"error: measuring {engine} failed. The messages above say why.")
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--graphs", type=int, default=1000, metavar="N", help="default 1000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables")
    parser.add_argument("--folder", type=Path, help="where stores are made (default: temporary)")
    parser.add_argument("--small", action="store_true", help="a small graph for the solver")
    return parser


if __name__ == "__main__":
    main()
