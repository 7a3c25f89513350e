"""Answers from Parquet tables against those from Cypher, and against each other in small parts."""

from __future__ import annotations

import json

import pandas as pd
import pytest

import graphstore
import queries
import tracer
from queries import offline
from queries.offline import tables as tables_module
from tracer.errors import CircuitError, FormatError, NotFoundError, QueryError

CLOSE = 1e-9  # sums run in another order
ENGINES = ("embedded", "neo4j-lts")


def graphs_of(golden):
    for name, prompt_set, thresholds in (
        ("gpt2_clt_residmid", "gpt2/high", (0.8, 0.78, 0.75)),
        ("gpt2_clt_residmid", "gpt2/low", (0.72, 0.7, 0.65)),
        ("llama_clt_residmid", "llama", (0.8, 0.7)),
    ):
        for threshold in thresholds:
            graph = tracer.prune(golden(name)[0], threshold)
            metadata = {"template": "t", "hops": 2} if threshold == 0.8 else {}
            source = {**graph.source, "metadata": metadata}
            yield graph.replace(slug=f"{name}-{threshold}", source=source), prompt_set


@pytest.fixture(
    scope="module",
    params=[pytest.param(e, marks=[pytest.mark.neo4j] * (e != "embedded")) for e in ENGINES],
)
def both(request, golden, tmp_path_factory):
    """A store, tables exported from it, and tables made of the graphs, in parts of two."""
    if request.param == "embedded":
        target = {"target": request.getfixturevalue("embedded_server")}
    else:
        given = request.getfixturevalue("servers").environment(request.param)
        auth = (given["NEO4J_USERNAME"], given["NEO4J_PASSWORD"])
        target = {"target": given["NEO4J_URI"], "auth": auth}
    folder = tmp_path_factory.mktemp("tables")
    with graphstore.connect(**target) as store:
        empty(store)
        for graph, prompt_set in graphs_of(golden):
            store.write(graph, prompt_set)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(tables_module, "_PART", 2)
            exported = offline.export_tables(store, folder / "exported")
            made = offline.write_tables(graphs_of(golden), folder / "made")
        yield store, exported, made
        empty(store)


def empty(store):
    text = (
        "MATCH (n) WHERE NOT n:Vault WITH n LIMIT 20000 WITH collect(n) AS ns UNWIND ns AS n "
        "DETACH DELETE n RETURN count(*) AS n"
    )
    while store.change(text)[0]["n"]:
        pass


def equal(found, expected, keys):
    """Same rows and columns; rows that tie in a real number may stand in another order."""
    assert list(found.columns) == list(expected.columns)
    assert len(expected)
    pd.testing.assert_frame_equal(
        found.sort_values(keys).reset_index(drop=True),
        expected.sort_values(keys).reset_index(drop=True),
        rtol=0,
        atol=CLOSE,
    )


QUESTIONS = [
    ("recurring_features", (None,), {}, ["feature_id"]),
    ("recurring_features", ("gpt2",), {"min_share": 0.5}, ["feature_id"]),
    ("recurring_features", ("gpt2/low",), {"min_graphs": 1}, ["feature_id"]),
    ("recurring_edges", (None,), {}, ["source", "target"]),
    ("recurring_edges", ("gpt2",), {"min_graphs": 3}, ["source", "target"]),
    ("recurring_edges", ("gpt2/high",), {"min_graphs": 1}, ["source", "target"]),
    ("features_only_in", ("gpt2/high", "gpt2/low"), {}, ["feature_id"]),
    ("features_only_in", ("llama", "gpt2"), {"min_share": 1.0}, ["feature_id"]),
    ("similar_graphs", ("gpt2_clt_residmid-0.8",), {}, ["other"]),
    ("similar_graphs", ("gpt2_clt_residmid-0.7", "gpt2/high"), {"limit": 2}, ["other"]),
]


@pytest.mark.parametrize(("name", "words", "given", "keys"), QUESTIONS)
def test_answers_are_those_of_cypher(both, name, words, given, keys):
    store, *tables = both
    expected = getattr(queries, name)(store, *words, **given)
    for each in tables:
        equal(getattr(offline, name)(each, *words, **given), expected, keys)


@pytest.mark.parametrize("items", ["features", "edges"])
@pytest.mark.parametrize("measure", ["jaccard", "weighted", "cosine"])
def test_similarity_is_that_of_cypher(both, items, measure):
    store, *tables = both
    expected = queries.similarity_matrix(store, "gpt2", items, measure).matrix
    for each in tables:
        found = offline.similarity_matrix(each, "gpt2", items, measure).matrix
        pd.testing.assert_frame_equal(found, expected, rtol=0, atol=CLOSE)


def test_tests_of_two_sets_are_those_of_cypher(both):
    store, *tables = both
    given = {"n_permutations": 50, "n_resamples": 20, "min_graphs": 3}
    expected = queries.compare(store, "gpt2/high", "gpt2/low", **given)
    for each in tables:
        found = offline.compare_sets(each, "gpt2/high", "gpt2/low", **given)
        keys = {"features": ["feature_id"], "edges": ["source", "target"]}
        for what, columns in keys.items():
            drop = [c for c in getattr(found, what) if c.startswith(("low", "high", "change_"))]
            equal(
                getattr(found, what).drop(columns=drop),
                getattr(expected, what).drop(columns=drop),
                columns,
            )
        assert found.limits == expected.limits


def test_edges_are_added_up_in_ranges(both, monkeypatch):
    store, _, made = both
    expected = queries.recurring_edges(store)
    monkeypatch.setattr("queries.offline.asking._RANGE", 40)
    steps = []
    found = offline.recurring_edges(made, progress=lambda *step: steps.append(step))
    equal(found, expected, ["source", "target"])
    assert len(steps) > 3
    assert steps[-1][0] == steps[-1][1] == len(steps)


def test_details_are_those_of_cypher(both):
    store, *tables = both
    expected = queries.graph_details(store)
    for each in tables:
        assert each.parts == 4
        found = each.graphs[expected.columns]
        pd.testing.assert_frame_equal(found, expected, check_dtype=False)
        assert each.graphs["sets"].tolist() == store.graphs()["prompt_sets"].tolist()
        again = offline.open_tables(each.folder)
        pd.testing.assert_frame_equal(again.graphs, each.graphs)
        assert "8 graphs" in repr(again)


def test_unknown_names_and_mixed_transcoders_are_explained(both):
    _, tables, _ = both
    slug = "gpt2_clt_residmid-0.8"
    cases = [
        (lambda: offline.recurring_features(tables, "gtp2"), NotFoundError, '"gpt2/'),
        (lambda: offline.similar_graphs(tables, slug + "1"), NotFoundError, slug),
        (lambda: offline.similarity_matrix(tables), QueryError, "llama_clt_residmid"),
        (lambda: offline.compare_sets(tables, "gpt2", "llama"), QueryError, "not comparable"),
        (lambda: offline.compare_sets(tables, "gpt2", "gpt2/low"), QueryError, "of its own"),
        (lambda: offline.recurring_edges(tables, min_graphs=0), QueryError, "from 1"),
        (lambda: offline.recurring_features(tables, min_share=1.5), QueryError, "from 0 to 1"),
        (lambda: offline.similar_graphs(tables, slug, limit=-1), QueryError, "limit"),
    ]
    for ask, kind, part in cases:
        with pytest.raises(kind) as caught:
            ask()
        assert part in str(caught.value)


def test_folders_that_are_no_tables(golden, tmp_path, monkeypatch):
    with pytest.raises(FormatError, match="holds no tables"):
        offline.open_tables(tmp_path / "nothing")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/about.json").write_text(json.dumps({"version": 7, "parts": 1}))
    with pytest.raises(FormatError, match="version 7"):
        offline.open_tables(tmp_path / "other")
    with pytest.raises(FormatError, match="not empty"):
        offline.write_tables([], tmp_path / "other")
    with pytest.raises(FormatError, match="no graphs"):
        offline.write_tables([], tmp_path / "new")
    monkeypatch.setattr(tables_module, "find_spec", lambda name: None)
    with pytest.raises(CircuitError, match=r"pip install 'circuitbase\[parquet\]'"):
        offline.open_tables(tmp_path / "other")
