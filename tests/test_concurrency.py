"""Writers side by side, and writers that die."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import graphstore
from tracer import AttributionGraph, prune
from tracer.errors import StoreError

SCRIPT = Path(__file__).parent / "kill_import.py"


@pytest.fixture(scope="session")
def graphs(golden) -> list[AttributionGraph]:
    """Eight graphs of the same features, so that writers meet at every summary."""
    graph = prune(golden("gpt2_plt_ln2")[0], 0.9, 0.98)
    made = []
    for number in range(1, 9):
        weights = graph.adjacency.copy()
        weights.data = weights.data * number
        made.append(graph.replace(adjacency=weights, scores={}, graph_id=None))
    return made


def test_two_writers_at_once_corrupt_and_lose_nothing(any_target, graphs):
    def write(part: list[AttributionGraph]) -> None:
        with graphstore.connect(**any_target) as store:
            store.write_many(part, "together")

    with ThreadPoolExecutor() as pool:  # both write the four in the middle
        list(pool.map(write, [graphs[:6], graphs[2:]]))
    with graphstore.connect(**any_target) as store:
        assert sorted(store.graphs()["graph_id"]) == sorted(g.graph_id for g in graphs)
        assert store.sets()["graphs"].tolist() == [len(graphs)]
        numbers = store.cypher("MATCH (g:Graph) RETURN g.gno AS n")["n"]
        assert numbers.is_unique
        assert store.verify().empty


def test_writing_and_deleting_at_once(any_target, graphs):
    with graphstore.connect(**any_target) as store:
        store.write_many(graphs[:4])

    def write() -> None:
        with graphstore.connect(**any_target) as store:
            store.write_many(graphs[4:])

    def delete() -> None:
        with graphstore.connect(**any_target) as store:
            for graph in graphs[:4]:
                store.delete(graph.graph_id)

    with ThreadPoolExecutor() as pool:
        for done in [pool.submit(write), pool.submit(delete)]:
            done.result()
    with graphstore.connect(**any_target) as store:
        assert sorted(store.graphs()["graph_id"]) == sorted(g.graph_id for g in graphs[4:])
        assert store.verify(repair=True).empty
        for graph in graphs[4:]:
            assert store.read(graph.graph_id) == graph


def test_a_writer_that_lost_its_claim_stops(any_store, graphs, monkeypatch):
    """A process was suspended for an hour; meanwhile its graph was cleaned up."""
    from graphstore import writing

    steps = writing._steps

    def taken_over(rows):
        yield from steps(rows)
        any_store.change("MATCH (g:Graph) SET g.writer = 'somebody/1/else'")

    monkeypatch.setattr(writing, "_steps", taken_over)
    with pytest.raises(StoreError, match="was taken over by another process"):
        any_store.write(graphs[0])
    assert any_store.graphs().empty


def test_what_a_dead_writer_left_is_written_again_at_once(any_store, graphs):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    import socket

    any_store.change(
        "CREATE (:Graph {graph_id: $g, complete: false, writer: $w, heartbeat: timestamp()})"
        "-[:CONTAINS]->(:Node {node_id: $n, ord: 0, kind: 'error'})",
        g=graphs[0].graph_id,
        n=graphs[0].node_ids[0],
        w=f"{socket.gethostname()}/{child.pid}/x",
    )
    assert any_store.write(graphs[0])
    assert any_store.verify().empty


def test_what_this_process_failed_to_write_is_written_again_at_once(any_store, graphs, monkeypatch):
    from graphstore import writing

    with monkeypatch.context() as patch:

        def fail(*_: object) -> None:
            raise StoreError("the disk is full", "Free space")

        patch.setattr(writing, "_publish", fail)
        with pytest.raises(StoreError, match="disk is full"):
            any_store.write(graphs[0], "set")
    assert any_store.graphs().empty
    assert any_store.write(graphs[0], "set")
    assert any_store.verify().empty


def test_an_interrupted_delete_is_finished_by_writing_or_by_repair(any_store, graphs, monkeypatch):
    from graphstore import deleting

    for repair in (False, True):
        any_store.write_many(graphs[:2], "set")
        with monkeypatch.context() as patch:

            def fail(*_: object) -> None:
                raise StoreError("killed", "")

            patch.setattr(deleting, "_remove_batch", fail)
            with pytest.raises(StoreError, match="killed"):
                any_store.delete(graphs[0].graph_id)
        assert any_store.graphs()["graph_id"].tolist() == [graphs[1].graph_id]
        if repair:
            any_store.change("MATCH (g:Graph) WHERE g.complete = false SET g.heartbeat = 1")
            assert any_store.verify(repair=True).empty
            assert any_store.graphs()["graph_id"].tolist() == [graphs[1].graph_id]
        else:
            assert any_store.write(graphs[0])
            assert any_store.verify().empty
            assert any_store.read(graphs[0].graph_id) == graphs[0]
            assert any_store.sets()["graphs"].tolist() == [1]  # its place went with the delete


def test_an_abandoned_graph_is_taken_over_once(any_store, graphs):
    """Both see the same silent writer; only one may go on from there."""
    from graphstore.claims import Claim

    any_store.change(
        "CREATE (:Graph {graph_id: $g, complete: false, writer: 'gone', heartbeat: 1})",
        g=graphs[0].graph_id,
    )
    one, two = (Claim(any_store, graphs[0].graph_id) for _ in range(2))
    assert one.take_over("gone", silent_for=600.0)
    assert not two.take_over("gone", silent_for=600.0)
    assert not two.take_over(one.writer, silent_for=600.0)  # it is alive
    one.run(lambda tx: tx.run("RETURN 1").consume())
    with pytest.raises(StoreError, match="was taken over"):
        two.run(lambda tx: tx.run("RETURN 1").consume())


def test_reopening_the_embedded_store_removes_what_was_interrupted(tmp_path, graphs):
    with graphstore.connect(tmp_path / "a.db") as store:
        store.write(graphs[0])
        store.change(
            "CREATE (:Graph {graph_id: 'feedfeedfeedfeed', complete: false, heartbeat: 5})"
            "-[:CONTAINS]->(:Node {node_id: 'x', ord: 0})"
        )
    with graphstore.connect(tmp_path / "a.db") as store:
        assert store.verify().empty
        assert store.rows("MATCH (n:Node {node_id: 'x'}) RETURN n") == []
        assert store.read(graphs[0].graph_id) == graphs[0]


def kill(*arguments: str, **environment: str) -> str:
    """Run the kill experiment; its output."""
    import os

    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_kill_9_at_random_moments_embedded():
    assert '"lost": 0, "wrong": 0' in kill("--kills", "3", "--graphs", "8", "--seed", "1")


@pytest.mark.slow
@pytest.mark.neo4j
def test_kill_9_at_random_moments_neo4j(servers):
    found = servers.environment("neo4j-lts")
    out = kill("--uri", found["NEO4J_URI"], "--kills", "4", "--graphs", "8", **found)
    assert '"lost": 0, "wrong": 0' in out


def test_weights_differ_between_the_graphs(graphs):
    """The tests above would be empty if the graphs were one and the same."""
    assert len({graph.graph_id for graph in graphs}) == len(graphs)
    assert len({float(np.abs(graph.adjacency.data).sum()) for graph in graphs}) == len(graphs)
