"""Kill an import with SIGKILL at random moments and look at what the store shows then.

    python tests/kill_import.py                          the embedded engine, 20 kills
    python tests/kill_import.py --uri bolt://… --kills 20    a server (its database is wiped!)

After every kill: whatever was reported as stored reads back equal, no query shows a part of a
graph, `verify` finds nothing but the interrupted graph, and repairing removes just that. At the
end the import is run to its end, and every graph is there once.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import graphstore
from graphstore import writing
from graphstore.connection import open_connection
from tracer import AttributionGraph

DATA = Path(__file__).parent / "data" / "golden"


def graphs_to_import(count: int, seed: int) -> list[AttributionGraph]:
    """Graphs with shared features: a golden graph pruned, with weights changed each time."""
    from conftest import golden_graph  # the script lies beside it

    from tracer import prune

    name = "gpt2_plt_ln2"
    with np.load(DATA / f"{name}_a.npz") as file:
        full = golden_graph(name, {key: file[key] for key in file.files})
    small = prune(full, 0.97, 0.99)
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        weights = small.adjacency.copy()
        weights.data = weights.data * generator.uniform(0.5, 2.0, weights.nnz)
        made.append(
            small.replace(adjacency=weights, slug=f"copy {number}", scores={}, graph_id=None)
        )
    return made


def work(target: str, count: int, seed: int) -> None:
    """Import the graphs, telling on standard output what is stored."""
    graphs = graphs_to_import(count, seed)
    with graphstore.connect(target) as store:
        stored = set(store.graphs()["graph_id"])
        print("open", flush=True)
        for number, graph in enumerate(graphs):
            if graph.graph_id in stored:
                continue
            # By turns as small graphs are written, in one transaction, and as large ones, in many.
            writing._AT_ONCE_ROWS = 20_000 * (number % 2)  # type: ignore[misc]
            store.write(graph, "kill")
            print(graph.graph_id, flush=True)


def run_until_killed(
    target: str, count: int, seed: int, after: tuple[int, float] | None
) -> set[str]:
    """Import in a process of its own; kill it so many new graphs and seconds after its start."""
    command = [
        sys.executable,
        __file__,
        "--work",
        target,
        "--graphs",
        str(count),
        "--seed",
        str(seed),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    if process.stdout is None:
        raise RuntimeError("no pipe")
    if process.stdout.readline().strip() != "open":
        raise RuntimeError(f"the import did not start (exit {process.wait()})")
    reported = set()
    if after is not None:
        graphs, delay = after
        for _ in range(graphs):
            if line := process.stdout.readline().strip():  # nothing: it is done already
                reported.add(line)
        time.sleep(delay)
        os.kill(process.pid, signal.SIGKILL)
    reported |= {line.strip() for line in process.stdout if line.endswith("\n")}
    process.wait()
    return reported


def inspect(target: str, expected: dict[str, AttributionGraph], reported: set[str]) -> str:
    """Check everything that a reader can see; a line that says what was there."""
    connection = open_connection(target)
    try:  # what a reader sees at once, before anybody cleans up
        text = "MATCH (g:Graph) WHERE g.complete = true RETURN collect(g.graph_id) AS ids"
        records = connection.driver.execute_query(text, database_=connection.database).records
        seen = set(records[0]["ids"])
    finally:
        connection.close()
    with graphstore.connect(target) as store:
        shown = set(store.graphs()["graph_id"])
        require(shown == seen, f"{shown ^ seen} changed by opening the store")
        require(reported <= shown, f"lost {reported - shown}")
        require(shown <= set(expected), f"unknown graphs {shown - set(expected)}")
        for graph_id in shown:
            difference = store.read(graph_id).differences(expected[graph_id])
            require(not difference, f"{graph_id} came back changed: {difference}")
        in_summaries = store.rows(
            "MATCH (g:Graph)-[:HAS_FEATURE|HAS_EDGE]->() RETURN collect(DISTINCT g.graph_id) AS ids"
        )[0]["ids"]
        require(set(in_summaries) <= shown, "summaries hold an incomplete graph")
        problems = store.verify()
        kinds = set(problems["check"])
        allowed = {"incomplete"} if store.engine == "neo4j" else set()
        require(kinds <= allowed, f"verify: {problems.to_dict('records')}")
        # Ten minutes pass: the writer's last sign of life is old.
        store.change("MATCH (g:Graph) WHERE g.complete = false SET g.heartbeat = 0")
        after = store.verify(repair=True)
        require(after.empty, f"after repair: {after.to_dict('records')}")
        require(set(store.graphs()["graph_id"]) == shown, "repair removed a complete graph")
    return f"{len(shown):3d} graphs whole, {len(kinds)} interrupted"


def require(holds: bool, otherwise: str) -> None:
    """Stop with what is wrong."""
    if not holds:
        raise SystemExit(f"FAILED: {otherwise}")


def main(arguments: list[str] | None = None) -> None:
    """Run the whole experiment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--uri", help="a server; credentials from NEO4J_USERNAME, NEO4J_PASSWORD")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--graphs", type=int, default=100)  # more than are written by 20 kills
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        work(options.work, options.graphs, options.seed)
        return
    with tempfile.TemporaryDirectory() as folder:
        target = options.uri or str(Path(folder) / "circuits.db")
        if options.uri:
            from conftest import wipe

            wipe({"target": target})
        expected = {g.graph_id: g for g in graphs_to_import(options.graphs, options.seed)}
        moments = random.Random(options.seed)
        reported: set[str] = set()
        for kill in range(options.kills):
            after = moments.randrange(3), moments.uniform(0.0, 0.6)
            reported |= run_until_killed(target, options.graphs, options.seed, after)
            moment = f"{after[0]} graphs and {after[1]:.2f} s"
            print(f"kill {kill + 1:2d} after {moment}: {inspect(target, expected, reported)}")
        run_until_killed(target, options.graphs, options.seed, None)
        print("to the end:", inspect(target, expected, set(expected)))
    print(json.dumps({"kills": options.kills, "graphs": options.graphs, "lost": 0, "wrong": 0}))


if __name__ == "__main__":
    main()
