"""Measure questions across prompts: mining, sets, similarity, tests, and the same without a store.

``python -m benchmarks.comparing [--graphs N] [--on embedded neo4j tables] [--prompts N]``

A store that ``--folder`` holds already is asked as it is; else it is filled first. ``tables`` makes
Parquet tables of the same graphs, asks them, and measures ``--prompts`` made ones besides. Progress
goes to standard error, a table in Markdown to standard output.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import queries
from benchmarks.engines import ENGINES, opened
from benchmarks.timing import machine, median_time, peak_memory, say, size_of
from benchmarks.workload import NOISE, REPLACED, SETS, Workload
from graphstore import Store
from graphstore.rows import GraphRows
from queries import offline
from queries.offline.tables import _Writer

FIRST, SECOND = SETS
# What the issue asks of a warm store of a thousand graphs, in seconds.
TARGETS = {"embedded": 2.0, "neo4j": 1.0}
Ask = Callable[[Any, Any, str], Any]

# name, whether it has a target, how to ask a library (queries or offline) about a store or tables
QUESTIONS: list[tuple[str, bool, Ask]] = [
    (
        "recurring_features, a twentieth of a set",
        True,
        lambda lib, at, graph: lib.recurring_features(at, FIRST, min_share=0.05),
    ),
    (
        "recurring_edges, a twentieth of a set",
        True,
        lambda lib, at, graph: lib.recurring_edges(at, FIRST, min_share=0.05),
    ),
    (
        "recurring_edges, 2 of a set",
        True,
        lambda lib, at, graph: lib.recurring_edges(at, FIRST, min_graphs=2),
    ),
    (
        "features_only_in, one set against the other",
        True,
        lambda lib, at, graph: lib.features_only_in(at, FIRST, SECOND, min_graphs=2),
    ),
    ("similar_graphs, ten", True, lambda lib, at, graph: lib.similar_graphs(at, graph)),
]
TRANSCODER = "mntss/clt-gemma-2-2b-2.5M"


def main() -> None:
    given = _parser().parse_args()
    workload = Workload(given.graphs, given.seed)
    found: dict[str, Any] = {"graphs": given.graphs, "machine": machine()}
    with tempfile.TemporaryDirectory(prefix="benchmark-comparing-", dir=given.folder) as temporary:
        for name in given.on:
            folder = Path(given.folder or temporary) / name
            if name == "tables":
                found[name] = measure_tables(workload, Path(temporary), given.prompts)
            else:
                found[name] = measure_store(name, workload, folder)
            if given.json:
                given.json.write_text(json.dumps(found, indent=1) + "\n")
    print(as_markdown(found))


def measure_store(engine: str, workload: Workload, folder: Path) -> dict[str, Any]:
    """Seconds of each question to a warm store."""
    with opened(engine, folder) as store:
        stored = len(store.graphs())
        for number in range(stored, len(workload)):
            graph, prompt_set = workload[number]
            store.write(graph, prompt_set)
            if (number + 1) % 50 == 0:
                say(f"{engine}: {number + 1:,} graphs")
        graph_id = workload[workload.typical][0].graph_id
        found: dict[str, Any] = {"questions": {}, "machine": machine()}
        for name, _, ask in QUESTIONS:
            found["questions"][name] = _timed(lambda a=ask: a(queries, store, graph_id))
            say(f"{engine}: {name} {found['questions'][name]}")
        found["work"] = _work(store)
        found["machine_after"] = machine()
    return found


def _work(store: Store) -> dict[str, Any]:
    """Seconds of what shows progress, once each: sets of the graphs of one transcoder."""
    ids = queries.graph_details(store)
    ids = ids[ids["transcoder_id"] == TRANSCODER]["graph_id"].tolist()
    half = len(ids) // 2
    chosen = ids[:400]
    jobs: dict[str, Callable[[], Any]] = {
        f"similarity_matrix, features of {len(ids)}": lambda: queries.similarity_matrix(store, ids),
        f"similarity_matrix, edges of {len(ids)}": lambda: queries.similarity_matrix(
            store, ids, "edges"
        ),
        f"similarity_matrix, weighted features of {len(ids)}": lambda: queries.similarity_matrix(
            store, ids, "features", "weighted"
        ),
        f"compare, {half} and {len(ids) - half} graphs, 9,999 permutations": lambda: (
            queries.compare(store, ids[:half], ids[half:])
        ),
        f"clusters and map of {len(chosen)}": lambda: _groups(store, chosen),
    }
    found = {}
    for name, job in jobs.items():
        start = time.perf_counter()
        job()
        found[name] = time.perf_counter() - start
        say(f"{name}: {found[name]:.2f} s")
    return found


def _groups(store: Store, ids: list[str]) -> None:
    similarity = queries.similarity_matrix(store, ids)
    queries.clusters(similarity)
    queries.map_of(similarity)


def measure_tables(workload: Workload, folder: Path, prompts: int) -> dict[str, Any]:
    """Tables of the same graphs, and of many made prompts: writing, size, and each question."""
    start, busy = time.perf_counter(), time.process_time()
    tables = offline.write_tables(workload, folder / "same")
    made, busy = time.perf_counter() - start, time.process_time() - busy
    found: dict[str, Any] = {
        "same": _asked(tables, workload[workload.typical][0].graph_id)
        | {"write": made, "busy": busy}
    }
    say(f"tables: {len(workload):,} graphs in {made:.1f} s")
    if prompts:
        start, busy, made = time.perf_counter(), 0.0, 0.0
        writer = _Writer(folder / "many")
        for number, given in enumerate(_made(workload, prompts), start=1):
            began, began_busy = time.perf_counter(), time.process_time()
            writer.add(*given)
            made += time.perf_counter() - began  # making the rows does not count
            busy += time.process_time() - began_busy
            if number % max(1, prompts // 20) == 0:
                say(f"tables: {number:,} prompts, {time.perf_counter() - start:.0f} s")
        tables = writer.end()
        graph_id = str(tables.graphs["graph_id"].iloc[len(tables.graphs) // 2])
        found["many"] = _asked(tables, graph_id) | {"write": made, "busy": busy}
        shutil.rmtree(folder / "many")
    found["peak_memory"] = peak_memory()
    return found


def _asked(tables: offline.Tables, graph_id: str) -> dict[str, Any]:
    asked = {}
    for name, _, ask in QUESTIONS:
        asked[name] = _timed(lambda a=ask: a(offline, tables, graph_id))
        say(f"tables of {len(tables.graphs):,}: {name} {asked[name]}")
    return {
        "prompts": len(tables.graphs),
        "features": len(tables.features),
        "pairs": int(tables.graphs["pairs"].sum()),
        "bytes": size_of(tables.folder),
        "questions": asked,
    }


def _timed(ask: Callable[[], pd.DataFrame]) -> dict[str, Any]:
    return {"rows": len(ask()), "seconds": median_time(ask, repeats=5, budget=15.0)}


def _made(workload: Workload, prompts: int) -> Iterator[tuple[Any, ...]]:
    """Rows of prompts as the workload's copies have them, without making their graphs."""
    bases = []
    for graph in workload.files:
        if graph.transcoder_id == TRANSCODER:
            rows = GraphRows(graph)
            place = {name: k for k, name in enumerate(rows.features["feature_id"])}
            ends = [rows.feature_edges[end].map(place).to_numpy() for end in ("source", "target")]
            bases.append((rows, ends))
    widths = int(max(base[0].features["index"].max() for base in bases)) + 1
    for number in range(prompts):
        rows, (source, target) = bases[number % len(bases)]
        random = np.random.default_rng([workload.seed, number])
        features, edges = rows.features, rows.feature_edges
        index = features["index"].to_numpy().copy()
        replaced = random.random(len(index)) < REPLACED
        index[replaced] = random.integers(widths, size=int(replaced.sum()))
        layers = features["layer"].tolist()
        names = np.array(
            [f"{TRANSCODER}/{layer}/{i}" for layer, i in zip(layers, index, strict=True)],
            dtype=object,
        )
        _, first = np.unique(names, return_index=True)  # two replaced ones may meet
        kept = np.zeros(len(names), dtype=bool)
        kept[first] = True
        of_pair = kept[source] & kept[target]
        noise = np.exp(NOISE * random.standard_normal(len(edges)))
        yield (
            {
                "graph_id": f"{number:016x}",
                "slug": f"made-{number}",
                "prompt": "",
                "transcoder_id": TRANSCODER,
                "features": int(kept.sum()),
                "tokens": [],
            },
            [SETS[number % len(SETS)]],
            pd.DataFrame(
                {
                    "feature_id": names[kept],
                    "layer": features["layer"].to_numpy()[kept],
                    "index": index[kept],
                    "label": None,
                    "influence": features["influence"].to_numpy()[kept],
                }
            ),
            pd.DataFrame(
                {
                    "source": names[source[of_pair]],
                    "target": names[target[of_pair]],
                    "weight": (edges["weight"].to_numpy() * noise)[of_pair],
                    "share": edges["share"].to_numpy()[of_pair],
                    "influence": edges["influence"].to_numpy()[of_pair],
                }
            ),
        )


def as_markdown(found: dict[str, Any]) -> str:
    """Tables of what was measured."""
    engines = [name for name in ENGINES if name in found]
    tables = found.get("tables", {})
    columns = [*engines, *(["tables, the same"] if tables else [])]
    many = tables.get("many")
    lines = [
        f"### Across prompts: {found['graphs']:,} graphs",
        "",
        "| question | "
        + " | ".join([*columns, *([f"tables, {many['prompts']:,} prompts"] if many else [])])
        + " |",
        "| --- |" + " ---: |" * (len(columns) + bool(many)),
    ]
    for name, has_target, _ in QUESTIONS:
        cells = []
        for engine in engines:
            seconds = found[engine]["questions"][name]["seconds"]
            missed = has_target and seconds >= TARGETS[engine]
            cells.append(f"{_time(seconds)}{' (missed)' if missed else ''}")
        for part in ("same", "many"):
            if part in tables:
                cells.append(_time(tables[part]["questions"][name]["seconds"]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| work, once | " + " | ".join(engines) + " |"]
    lines.append("| --- |" + " ---: |" * len(engines))
    for name in found[engines[0]]["work"] if engines else ():
        lines.append(f"| {name} | {' | '.join(_time(found[e]['work'][name]) for e in engines)} |")
    for part in ("same", "many"):
        if part in tables:
            told = tables[part]
            n = told["prompts"]
            lines += [
                "",
                f"Tables of {n:,} prompts: {told['pairs']:,} pairs, {told['features']:,} features; "
                f"written in {1000 * told['write'] / n:.2f} ms ({1000 * told['busy'] / n:.2f} ms "
                f"of processor time) and "
                f"{told['bytes'] / n / 1024:.1f} KiB a prompt; "
                + ", ".join(
                    f"{name.split(',')[0]} {1e6 * asked['seconds'] / n:.1f} µs"
                    for name, asked in told["questions"].items()
                )
                + " a prompt.",
            ]
    if tables:
        lines.append(f"Peak memory: {tables['peak_memory'] / 2**20:,.0f} MiB.")
    return "\n".join(lines)


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparing", description=__doc__)
    parser.add_argument("--graphs", type=int, default=1000, metavar="N")
    parser.add_argument("--seed", type=int, default=0)
    known = [*ENGINES, "tables"]
    parser.add_argument("--on", nargs="+", choices=known, default=known)
    parser.add_argument("--prompts", type=int, default=100_000, metavar="N", help="in tables")
    parser.add_argument("--folder", type=Path, help="where stores are, or are made")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    return parser


if __name__ == "__main__":
    main()
