"""How graphs are written: at once or in batches, each statement counted, writers by turns."""

from __future__ import annotations

import threading

import pytest

import graphstore
from graphstore import writing
from graphstore.rows import GraphRows
from tracer import prune
from tracer.errors import StoreError


@pytest.fixture(scope="module")
def graph(golden):
    return prune(golden("gpt2_plt_ln2")[0], 0.9, 0.98)


def stored(store) -> list[tuple]:
    """Everything in a store but the time of storing: nodes, then relationships, by content."""
    nodes = store.rows("MATCH (n) RETURN labels(n) AS labels, properties(n) AS p")
    links = store.rows(
        "MATCH (a)-[r]->(b) RETURN type(r) AS kind, properties(r) AS p, "
        "properties(a) AS a, properties(b) AS b"
    )
    for row in nodes + links:
        for name in ("p", "a", "b"):
            for changing in ("stored_at", "claims"):
                row.get(name, {}).pop(changing, None)
    return sorted(repr(sorted(row.items(), key=str)) for row in nodes + links)


def test_written_at_once_or_in_batches_is_the_same(tmp_path, graph, monkeypatch):
    found = []
    for name, rows in (("once", 20_000), ("batches", 0)):
        monkeypatch.setattr(writing, "_AT_ONCE_ROWS", rows)
        with graphstore.connect(tmp_path / name) as store:
            assert store.write(graph, "set")
            assert not store.write(graph, "another")
            assert store.sets()["graphs"].tolist() == [1, 1]
            found.append(stored(store))
    assert len(found[0]) > graph.n_nodes + graph.n_edges
    assert found[0] == found[1]


@pytest.mark.parametrize("part", ["_NODES", "_FEATURE_NODES", "_EDGES", "_HAS_FEATURE"])
@pytest.mark.parametrize("at_once", [0, 20_000])
def test_a_statement_that_makes_too_little_is_noticed(any_store, graph, monkeypatch, part, at_once):
    monkeypatch.setattr(writing, "_AT_ONCE_ROWS", at_once)
    loop = "UNWIND range(0, size(sources) - 2)" if part == "_EDGES" else "UNWIND $rows[1..]"
    text = getattr(writing, part)
    broken = text.replace("UNWIND range(0, size(sources) - 1)", loop).replace("UNWIND $rows", loop)
    assert broken != text
    with monkeypatch.context() as patch:
        patch.setattr(writing, part, broken)
        with pytest.raises(StoreError, match="arrived, expected"):
            any_store.write(graph)
    assert any_store.graphs().empty
    assert any_store.write(graph)
    assert any_store.verify().empty


def test_numbers_of_pairs_are_those_of_their_features(graph):
    """Pairs travel as places in a list of names."""
    rows = GraphRows(graph)
    steps = [step for step in writing._summaries(rows) if step.text is writing._FEATURE_EDGES]
    sent = [
        (step.parameters["names"][s], step.parameters["names"][t], share, weight, influence)
        for step in steps
        for s, t, share, weight, influence, positive in step.parameters["rows"]
        if positive == (weight > 0)
    ]
    assert sent == [tuple(row) for row in rows.feature_edges.itertuples(index=False)]


def test_writers_of_an_embedded_store_take_turns(tmp_path):
    """The engine itself would let both begin, and fail the one that commits second."""
    begun, order = threading.Event(), []

    def first(_) -> None:
        begun.set()
        assert not ended.wait(0.5)
        order.append("first")

    ended = threading.Event()
    with graphstore.connect(tmp_path / "a.db") as one, graphstore.connect(tmp_path / "a.db") as two:

        def second() -> None:
            begun.wait(10)
            two.transact(lambda _: order.append("second"))
            ended.set()

        thread = threading.Thread(target=second)
        thread.start()
        one.transact(first)
        thread.join(10)
        assert order == ["first", "second"]
        # A function in a transaction may begin another one, and does not wait for itself.
        one.transact(lambda _: one.transact(lambda _: order.append("third")))
    assert order[-1] == "third"
