"""One engine, measured in a process of its own: load, append, ask, read back, delete.

``python -m benchmarks.stores --engine embedded --graphs 100 --folder DIR --out FILE`` is what
``benchmarks.run`` starts for each engine, so that each has its own peak memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.engines import ENGINES, opened, peak_memories
from benchmarks.questions import QUESTIONS, Subject
from benchmarks.timing import machine, median_time, say, size_of
from benchmarks.workload import SETS, Workload
from graphstore import Store

__all__ = ["measure_store"]

_REPEATS = 7  # graphs appended, read back and deleted


def measure_store(engine: str, workload: Workload, folder: Path) -> dict[str, Any]:
    """Figures of one engine; times in seconds, sizes in bytes."""
    with opened(engine, folder) as store:
        found: dict[str, Any] = {"engine": engine, "machine": machine()}
        found["load"] = _load(engine, store, workload)
        found["questions"] = _ask(engine, store, workload)
        found |= _one_graph(engine, store, workload)
        found["peak_memory"] = peak_memories(engine, folder)
        found["machine_after"] = machine()
    data = folder / ("databases" if engine == "embedded" else "data")
    found["disk"] = size_of(data)
    if engine == "neo4j":
        found["disk_transaction_logs"] = size_of(data / "transactions")
    return found


def _load(engine: str, store: Store, workload: Workload) -> dict[str, Any]:
    """Write all graphs; what making them costs does not count."""
    times, rows = [], []
    for number, (graph, prompt_set) in enumerate(workload, start=1):
        start = time.perf_counter()
        store.write(graph, prompt_set)
        times.append(time.perf_counter() - start)
        rows.append(graph.n_nodes + graph.n_edges)
        if number % max(1, len(workload) // 20) == 0:
            say(f"{engine}: {number:,} graphs, {sum(rows) / sum(times):,.0f} rows/s")
    tenth = max(1, len(rows) // 10)
    nodes = store.cypher("MATCH (n) RETURN count(n) AS n")["n"].iloc[0]
    relations = store.cypher("MATCH ()-[r]->() RETURN count(r) AS n")["n"].iloc[0]
    summaries = store.cypher("MATCH (x:FeatureEdge) RETURN count(x) AS n")["n"].iloc[0]
    features = store.cypher("MATCH (x:Feature) RETURN count(x) AS n")["n"].iloc[0]
    return {
        "graphs": len(rows),
        "rows": sum(rows),
        "seconds": sum(times),
        "rows_per_second": sum(rows) / sum(times),
        "rows_per_second_first_tenth": sum(rows[:tenth]) / sum(times[:tenth]),
        "rows_per_second_last_tenth": sum(rows[-tenth:]) / sum(times[-tenth:]),
        "entities": int(nodes + relations),
        "entities_per_second": float(nodes + relations) / sum(times),
        "features": int(features),
        "feature_pairs": int(summaries),
    }


def _ask(engine: str, store: Store, workload: Workload) -> dict[str, Any]:
    """Time every question; rows and the sum of a column, to compare answers with."""
    subject = Subject(workload)
    found = {}
    for question in QUESTIONS:
        answer = question.ask(store, subject)
        seconds = median_time(lambda q=question: q.ask(store, subject))
        found[question.name] = {"seconds": seconds, "rows": len(answer)}
        if question.in_memory is not None:
            found[question.name]["sum"] = float(answer[question.column].sum())
        say(f"{engine}: {question.name} {1000 * seconds:,.1f} ms, {len(answer):,} rows")
    return found


def _one_graph(engine: str, store: Store, workload: Workload) -> dict[str, float]:
    """Append graphs of the typical size to the full store, read them back, delete them."""
    copies = len(workload) // len(workload.files) + 1
    graphs = [workload.copy(workload.typical, copies + i) for i in range(_REPEATS)]
    times: dict[str, list[float]] = {"append": [], "read": [], "delete": []}
    for graph in graphs:
        for name, work in (
            ("append", lambda g: store.write(g, SETS[0])),
            ("read", lambda g: store.read(g.graph_id)),
        ):
            start = time.perf_counter()
            answer = work(graph)
            times[name].append(time.perf_counter() - start)
        if answer != graph:
            raise SystemExit(f"error: graph {graph.slug} came back different. Report a defect.")
    for graph in graphs:
        start = time.perf_counter()
        store.delete(graph.graph_id)
        times["delete"].append(time.perf_counter() - start)
    found = {name: statistics.median(seconds) for name, seconds in times.items()}
    say(f"{engine}: " + ", ".join(f"{name} {value:.3f} s" for name, value in found.items()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=ENGINES, required=True)
    parser.add_argument("--graphs", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    found = measure_store(given.engine, Workload(given.graphs, given.seed), given.folder)
    given.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
