"""The floor: the same questions to pandas and scipy, everything in memory already."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import tracer
from benchmarks.questions import QUESTIONS, Subject, Tables
from benchmarks.timing import median_time, peak_memory, say
from benchmarks.workload import Workload
from graphstore import read_graph, write_graph
from graphstore.rows import GraphRows
from tracer.influence import Flow

__all__ = ["measure_reference"]


def measure_reference(workload: Workload) -> dict[str, Any]:
    """Seconds of each question that has a plain way, and of handling one graph."""
    start = time.perf_counter()
    tables = Tables(workload)
    seconds = time.perf_counter() - start
    subject = Subject(workload)
    _ = tables.has_feature
    found: dict[str, Any] = {
        "tables_seconds": seconds,
        "features": len(tables.features),
        "feature_pairs": len(tables.pair_keys),
        "questions": {},
    }
    for question in QUESTIONS:
        if question.in_memory is not None:
            answer = question.in_memory(tables, subject)
            found["questions"][question.name] = {
                "seconds": median_time(lambda q=question: q.in_memory(tables, subject)),
                "rows": len(answer),
                "sum": float(answer[question.column].sum()),
            }
    found |= _one_graph(subject)
    found["peak_memory"] = {"client": peak_memory()}
    say("in memory: asked everything")
    return found


def _one_graph(subject: Subject) -> dict[str, float]:
    graph = subject.graph
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.circuit"
        write = median_time(lambda: write_graph(graph, file))
        read = median_time(lambda: read_graph(file))
    rows = graph.n_nodes + graph.n_edges
    return {
        "append": write,
        "read": read,
        "scores": median_time(lambda: tracer.scores(graph, flow=Flow(graph)), 15),
        "rows_per_second": rows / median_time(lambda: _all_rows(GraphRows(graph))),
    }


def _all_rows(rows: GraphRows) -> None:
    """Compute everything that the writer sends, and send nothing."""
    for name in ("properties", "nodes", "edges", "features", "feature_edges"):
        getattr(rows, name)
