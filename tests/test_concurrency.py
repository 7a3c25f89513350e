"""Writers side by side, and writers that die."""

from __future__ import annotations

import subprocess
import sys
import textwrap
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


@pytest.mark.parametrize("at_once", [0, 20_000])
def test_two_writers_at_once_corrupt_and_lose_nothing(any_target, graphs, monkeypatch, at_once):
    monkeypatch.setattr("graphstore.writing._AT_ONCE_ROWS", at_once)

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


@pytest.mark.parametrize("at_once", [0, 20_000])
def test_writing_and_deleting_at_once(any_target, graphs, monkeypatch, at_once):
    monkeypatch.setattr("graphstore.writing._AT_ONCE_ROWS", at_once)
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

    monkeypatch.setattr(writing, "_AT_ONCE_ROWS", 0)  # in batches, as large graphs are
    monkeypatch.setattr(writing, "_steps", taken_over)
    with pytest.raises(StoreError, match="was taken over by another process"):
        any_store.write(graphs[0])
    assert any_store.graphs().empty


def test_what_a_dead_writer_left_is_written_again_at_once(any_store, graphs):
    name = "from graphstore.claims import Claim; print(Claim(None, 'x').writer)"
    child = subprocess.run([sys.executable, "-c", name], capture_output=True, text=True, check=True)
    any_store.change(
        "CREATE (:Graph {graph_id: $g, complete: false, writer: $w, heartbeat: timestamp()})"
        "-[:CONTAINS]->(:Node {node_id: $n, ord: 0, kind: 'error'})",
        g=graphs[0].graph_id,
        n=graphs[0].node_ids[0],
        w=child.stdout.strip(),
    )
    assert any_store.write(graphs[0])
    assert any_store.verify().empty


@pytest.mark.parametrize("at_once", [0, 20_000])
def test_what_this_process_failed_to_write_is_written_again_at_once(
    any_store, graphs, monkeypatch, at_once
):
    from graphstore import writing

    monkeypatch.setattr(writing, "_AT_ONCE_ROWS", at_once)
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


BUSY = "feedfeedfeedfeed"


def busy(store) -> None:
    """Make somebody else be at work on a graph."""
    store.change(
        "CREATE (:Graph {graph_id: $g, complete: false, writer: 'w', heartbeat: timestamp()})",
        g=BUSY,
    )


def features(store) -> int:
    return store.rows("MATCH (f:Feature) RETURN count(f) AS n")[0]["n"]


@pytest.mark.parametrize("later", ["write", "delete", "repair"])
def test_features_left_because_others_were_at_work_go_with_the_last(any_store, graphs, later):
    other = graphs[1].replace(transcoder_id="other", graph_id=None)
    any_store.write(graphs[0])
    if later == "delete":
        any_store.write(other)
    busy(any_store)
    any_store.delete(graphs[0].graph_id)
    left = features(any_store)
    assert left  # who is at work may have counted on them
    any_store.change("MATCH (g:Graph {graph_id: $g}) DETACH DELETE g", g=BUSY)
    if later == "write":
        any_store.write(other)
    elif later == "delete":
        any_store.delete(other.graph_id)
    else:
        assert set(any_store.verify()["check"]) == {"stray"}
        any_store.verify(repair=True)
    kept = {f for f in other.feature_ids if f} if later == "write" else set()
    assert features(any_store) == len(kept)
    assert any_store.verify().empty
    assert any_store.rows("MATCH (v:Vault) RETURN v.unused_left AS x") == [{"x": None}]


def test_features_left_in_the_embedded_store_go_at_its_next_start(tmp_path, graphs):
    with graphstore.connect(tmp_path / "a.db") as store:
        store.write(graphs[0])
        busy(store)
        store.delete(graphs[0].graph_id)
        assert features(store)
        store.change("MATCH (g:Graph {graph_id: $g}) DETACH DELETE g", g=BUSY)
    with graphstore.connect(tmp_path / "a.db") as store:
        assert not features(store)
        assert store.verify().empty


def test_deletes_at_once_leave_nothing(any_target, graphs):
    with graphstore.connect(**any_target) as store:
        store.write_many(graphs)

    def delete(graph: AttributionGraph) -> None:
        with graphstore.connect(**any_target) as store:
            store.delete(graph.graph_id)

    with ThreadPoolExecutor() as pool:
        list(pool.map(delete, graphs))
    with graphstore.connect(**any_target) as store:
        assert not features(store)
        assert store.verify().empty


@pytest.mark.parametrize("after", [1, 2, 4, 7])
def test_a_kill_among_the_batches_of_a_large_graph(tmp_path, graphs, after):
    """Batches lowered, so that a small graph is written in many: features, then nodes, edges."""
    graphstore.write_graph(graphs[1], tmp_path / "large.circuit")
    with graphstore.connect(tmp_path / "a.db") as store:
        store.write(graphs[0].replace(transcoder_id="other", graph_id=None))
        before = store.rows("MATCH (n) RETURN count(n) AS n")
    program = """
        import os, signal, sys
        import graphstore
        from graphstore import claims, writing

        writing._TRANSACTION_ROWS = writing._STATEMENT_ROWS = 30
        writing._AT_ONCE_ROWS = 0
        left = int(sys.argv[3])
        run = claims.Claim.run

        def counted(self, work):
            global left
            done = run(self, work)
            left -= 1
            if not left:
                print("killed", flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            return done

        claims.Claim.run = counted
        with graphstore.connect(sys.argv[1]) as store:
            store.write(graphstore.read_graph(sys.argv[2]))
    """
    words = [tmp_path / "a.db", tmp_path / "large.circuit", after]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *map(str, words)],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (-9, "killed\n"), done.stderr
    with graphstore.connect(tmp_path / "a.db") as store:
        assert store.rows("MATCH (n) RETURN count(n) AS n") == before
        assert store.verify().empty
        assert store.write(graphs[1])
        assert store.read(graphs[1].graph_id) == graphs[1]
        assert store.verify().empty


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
