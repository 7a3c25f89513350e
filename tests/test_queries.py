"""The query library: each query against the sparse computation, on every engine.

The oracles here never ask the database: they work on the graph objects with dense or sparse
matrices, or count paths with networkx. Tolerance 1e-9 (absolute; all figures but weights are at
most some tens), because sums run in another order in each engine.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

import graphstore
import queries
import tracer
from queries.documenting import document
from queries.library import parse
from tracer.errors import NotFoundError, QueryError, ScoreError
from tracer.graph import Scores, Supernode

CLOSE = 1e-9
ENGINES = ("embedded", "neo4j-lts", "neo4j-calendar")
BIG = 300  # nodes; path enumeration is for smaller graphs


@dataclass
class Filled:
    """A store, and what was put into it."""

    store: graphstore.Store
    graphs: dict[str, tracer.AttributionGraph] = field(default_factory=dict)  # in order stored
    sets: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    @property
    def unnamed(self):
        return [(graph, tracer.Flow(graph)) for graph in self.graphs.values()]

    def of(self, prompt_set):
        ids = self.graphs if prompt_set is None else self.sets[prompt_set]
        return [self.graphs[graph_id] for graph_id in ids]


@pytest.fixture(
    scope="module",
    params=[pytest.param(e, marks=[pytest.mark.neo4j] * (e != "embedded")) for e in ENGINES],
)
def filled(request, golden):
    """A store with golden graphs (pruned and not) and the real ones where they are."""
    if request.param == "embedded":
        target = {"target": request.getfixturevalue("embedded_server")}
    else:
        given = request.getfixturevalue("servers").environment(request.param)
        auth = (given["NEO4J_USERNAME"], given["NEO4J_PASSWORD"])
        target = {"target": given["NEO4J_URI"], "auth": auth}
    try:
        files = request.getfixturevalue("real_graphs")
    except pytest.skip.Exception:
        files = []
    with graphstore.connect(**target) as store:
        empty(store)
        made = Filled(store)
        for graph, prompt_set in [*golden_graphs(golden), *real(files)]:
            assert store.write(graph, prompt_set)
            made.graphs[graph.graph_id] = graph
            made.sets[prompt_set].append(graph.graph_id)
        first = next(iter(made.graphs.values()))
        store.write(first, "llama")  # in two sets
        made.sets["llama"].append(first.graph_id)
        store.add_set("empty")
        # What an interrupted writer leaves; no query may see it.
        store.change(
            "MATCH (p:PromptSet {name: 'gpt2'}) "
            "CREATE (p)-[:INCLUDES]->(:Graph {graph_id: 'ffffffffffffffff', slug: 'half', "
            "complete: false, gno: 900000, heartbeat: timestamp(), n_features: 3})"
        )
        store.change(
            "MATCH (g:Graph {graph_id: 'ffffffffffffffff'}) "
            "MATCH (f:Feature) WITH g, f ORDER BY f.feature_id LIMIT 3 "
            "CREATE (g)-[:HAS_FEATURE]->(f) "
            "CREATE (g)-[:CONTAINS]->(n:Node {node_id: 'ffffffffffffffff/' + f.feature_id, "
            "kind: 'feature', influence: 100.0, ord: 0})-[:INSTANCE_OF]->(f)"
        )
        yield made
        empty(store)


def empty(store):
    text = (
        "MATCH (n) WHERE NOT n:Vault WITH n LIMIT 20000 WITH collect(n) AS ns UNWIND ns AS n "
        "DETACH DELETE n RETURN count(*) AS n"
    )
    while store.change(text)[0]["n"]:
        pass


def golden_graphs(golden):
    """Graphs that share features: prunings of one graph, by two rules; one graph as it is."""
    for name, prompt_set in (("gpt2_clt_residmid", "gpt2"), ("llama_clt_residmid", "llama")):
        graph, _ = golden(name)
        for nodes, edges in ((0.8, 0.98), (0.75, 0.95), (0.7, 0.99)):
            pruned = tracer.prune(graph, nodes, edges)
            if nodes == 0.8:
                pruned = grouped(pruned)
            yield pruned.replace(slug=f"{name}-{nodes}"), prompt_set
    graph, _ = golden("gpt2_plt_ln2")
    yield graph, "unpruned"
    yield tracer.prune(graph, rule="paper").replace(slug="paper"), "unpruned"
    yield lossy(), "unpruned"
    # Nothing but logits and embeddings, and no path between them.
    yield tracer.prune(graph, 0.3, 0.1).replace(slug="bare"), "unpruned"
    # Its removed part is unknown: as_stored is all it can tell.
    yield tracer.prune(graph).replace(scores={}, slug="imported", graph_id="ab" * 8), "unpruned"


def lossy():
    """A graph that loses influence at a feature without inputs, with scores that all differ."""
    nodes = pd.DataFrame(
        {
            "kind": ["embedding", "error", "feature", "feature", "logit", "logit"],
            "layer": [-1, 0, 0, 1, 2, 2],
            "position": 0,
            "index": [5, -1, 7, 8, 1, 2],
            "probability": [None, None, None, None, 0.5, 0.3],
        }
    )
    edges = [(0, 3, 2.0), (1, 3, -1.0), (2, 3, 1.0), (3, 4, 5.0), (2, 4, 1.0), (0, 5, 1.0)]
    weights = np.zeros((6, 6))
    for source, target, weight in edges:
        weights[target, source] = weight
    return tracer.AttributionGraph(
        nodes,
        csr_array(weights),
        tokens=("a",),
        transcoder_id="made/up@1",
        slug="lossy",
        scores={
            rule: Scores(rule, *(place + i / 10 for i in range(4)))
            for rule, place in (("full", 0.51), ("merge", 0.42), ("masked", 0.33))
        },
    )


def grouped(graph):
    """Add supernodes that overlap, and one that nothing feeds."""
    features = np.flatnonzero(graph.is_feature).tolist()
    groups = [
        Supernode("early", tuple(features[: len(features) // 2])),
        Supernode("late", tuple(features[len(features) // 3 :])),
        Supernode("words", tuple(np.flatnonzero(graph.is_embedding).tolist())),
        Supernode("errors", tuple(np.flatnonzero(graph.is_error).tolist())),
        Supernode("answer", tuple(np.flatnonzero(graph.is_logit).tolist()[:2])),
    ]
    return graph.replace(supernodes=[group for group in groups if group.members])


def real(files: list[Path]):
    for file in files:
        yield graphstore.read_graph(file), "real" if "clt-hp" in file.name else "others"


# The library -------------------------------------------------------------------------------------


def functions():
    return {name: getattr(queries, name) for name in queries.names()}


def test_every_query_is_a_function_of_the_same_parameters_and_defaults():
    assert set(queries.names()) == set(queries._FUNCTIONS) <= set(queries.__all__)
    for name, function in functions().items():
        store, *parameters = inspect.signature(function).parameters.values()
        assert store.name == "store"
        declared = queries.describe(name).parameters
        parameters = [p for p in parameters if p.name != "progress"]  # not for the command line
        assert [p.name for p in parameters] == [p.name for p in declared], name
        for mine, theirs in zip(parameters, declared, strict=True):
            assert (mine.default is inspect.Parameter.empty) == theirs.required, (name, mine)
            assert theirs.required or mine.default == theirs.default, (name, mine)
        assert function.__doc__


def test_texts_use_parameters_that_are_declared_and_nothing_engine_specific():
    for name in queries.names():
        query = queries.describe(name)
        used = set(re.findall(r"\$(\w+)", query.text))
        known = {p.name for p in query.parameters} | set(query.filled)
        assert used <= known, name
        assert set(query.filled) <= used, name
        assert "elementId" not in query.text
        assert "SHORTEST" not in query.text
        assert not re.search(r"\b(CREATE|MERGE|SET|DELETE|REMOVE)\b", query.text)
        # FeatureEdge is of complete graphs only; a neighbourhood starts at a node of one.
        exempt = "(x:FeatureEdge)" in query.text or name in ("neighbourhood", "feature_examples")
        assert "complete: true" in query.text or exempt, name


def test_documentation_is_up_to_date(data):
    page = data.parent.parent / "docs" / "queries.md"
    assert page.read_text(encoding="utf-8") == document(), (
        'run: python -c "from queries.documenting import document; '
        "open('docs/queries.md', 'w').write(document())\""
    )
    for name in queries.names():
        query = queries.describe(name)
        section = page.read_text(encoding="utf-8").split(f"\n## {name}\n")[1]
        assert query.text in section
        assert query.purpose in section


def test_a_query_shows_itself():
    query = queries.describe("recurring_features")
    assert "min_graphs: integer = 2" in str(query)
    assert query.text in repr(query)
    assert query._repr_html_().startswith("<pre>")
    assert queries.describe("scores").statements.keys() == {
        "recorded",
        "as_stored",
        "unexplained",
    }


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("RETURN 1", "no header"),
        ("// T\n// purpose p\n// parameters none\n// columns a\nRETURN 1", "no cost"),
        (
            "// T\n// purpose p\n// parameters a; string\n// columns a\n// cost c\nRETURN 1",
            "declares",
        ),
        (
            "// T\n// purpose p\n// parameters a: string = x\n// columns a\n// cost c\nRETURN 1",
            "no JSON",
        ),
    ],
)
def test_a_bad_query_file_is_named(source, problem):
    with pytest.raises(QueryError, match=f"bad.cypher .*{problem}"):
        parse("bad", source)


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("recuring_edges", {}, 'Did you mean "recurring_edges"'),
        ("zzz", {}, "circuitbase queries lists them"),
        ("recurring_edges", {"prompt_sets": "a"}, 'Did you mean "prompt_set"'),
        ("recurring_edges", {"zzz": "a"}, "It takes prompt_set, min_graphs, min_share, align"),
        ("top_nodes", {}, "needs 'graph_id'"),
        ("features_only_in", {}, "needs 'prompt_set' and 'other'"),
        ("top_nodes", {"graph_id": 7}, "Give a string"),
        ("top_nodes", {"graph_id": None}, "Give a string"),
        ("top_nodes", {"graph_id": "x", "kind": "features"}, 'Did you mean "feature"'),
        ("top_nodes", {"graph_id": "x", "limit": 2.5}, "Give a whole number"),
        ("top_nodes", {"graph_id": "x", "limit": True}, "Give a whole number"),
        ("top_nodes", {"graph_id": "x", "limit": -1}, "limit is -1"),
        ("recurring_edges", {"min_share": "half"}, "Give a number"),
        ("recurring_edges", {"min_share": float("nan")}, "Give a number"),
        ("recurring_edges", {"min_share": 2}, "from 0 to 1"),
        ("recurring_edges", {"min_graphs": 0}, "from 1"),
        ("path_lengths", {"pooled": 1}, "Give true or false"),
        ("scores", {"graphs": [1]}, "list of strings"),
        ("scores", {"rule": "merged"}, 'Did you mean "merge"'),
        ("scores", {"graphs": ["a"], "prompt_set": "gpt2"}, "Give one of the two"),
        ("strongest_paths", {"graph_id": "x", "max_length": 0}, "from 1"),
        ("neighbourhood", {"graph_id": "x", "node": "y", "hops": 0}, "from 1"),
    ],
)
def test_wrong_names_and_values_are_explained(embedded_server, name, given, message):
    with graphstore.connect(embedded_server) as store, pytest.raises(QueryError) as caught:
        queries.run(store, name, **given)
    assert message in str(caught.value)


def test_unknown_graphs_sets_nodes_and_features_are_suggested(filled):
    store = filled.store
    slug = next(iter(filled.graphs.values())).slug
    cases = [
        (lambda: queries.top_nodes(store, slug + "x"), slug),
        (lambda: queries.scores(store, graphs=[slug, "half"]), "half"),
        (lambda: queries.recurring_edges(store, "gpt3"), '"gpt2"'),
        (lambda: queries.features_only_in(store, "gpt2", "lama"), '"llama"'),
        (lambda: queries.features_only_in(store, "gp", "llama"), '"gpt2"'),
        (lambda: queries.neighbourhood(store, slug, "logit/0x"), "logit/"),
        (lambda: queries.strongest_paths(store, slug, target="logitt/9"), "logit/"),
        (lambda: queries.feature_occurrences(store, "gpt2/0/0"), "transcoder_id"),
    ]
    for ask, hint in cases:
        with pytest.raises(NotFoundError) as caught:
            ask()
        assert hint in str(caught.value)


def test_every_query_runs_by_name_and_has_its_columns(filled):
    slug = next(iter(filled.graphs.values())).slug
    feature = queries.recurring_features(filled.store)["feature_id"].iloc[0]
    node = queries.top_nodes(filled.store, slug, "feature")["node_id"].iloc[0]
    figures = dict.fromkeys(("density", "mean_activation", "max_activation"), 0.5)
    example = {"tokens": ["a"], "at": 0, "token": "a", "next": "b", "activation": 0.5}
    filled.store.describe_features(
        pd.DataFrame([{"feature_id": feature, **figures, "statistics": {}, "examples": [example]}])
    )
    needed = {
        "graph_id": slug,
        "prompt_set": "gpt2",
        "other": "llama",
        "feature_id": feature,
        "node": node,
    }
    for name, function in functions().items():
        query = queries.describe(name)
        if any(p.name == "weights_id" for p in query.parameters):
            continue  # test_queries_global.py
        given = {p.name: needed[p.name] for p in query.parameters if p.required}
        if name in ("motifs", "position_roles", "recurring_paths"):
            given["prompt_set"] = "gpt2"  # all graphs are of several transcoders
        by_name = queries.run(filled.store, name, **given)
        assert tuple(by_name.columns) == query.columns, name
        if name != "features_only_in":  # the sets share a graph
            assert len(by_name), name
        pd.testing.assert_frame_equal(by_name, function(filled.store, **given))


def test_an_empty_set_gives_empty_tables(filled):
    store = filled.store
    for frame in (
        queries.graphs(store, "empty"),
        queries.scores(store, prompt_set="empty"),
        queries.scores(store, prompt_set="empty", rule="merge"),
        queries.path_lengths(store, prompt_set="empty"),
        queries.path_lengths(store, prompt_set="empty", pooled=True),
        queries.error_share(store, prompt_set="empty", by="token"),
        queries.recurring_features(store, "empty"),
        queries.recurring_edges(store, "empty", min_share=0.0),
        queries.features_only_in(store, "empty", "gpt2"),
    ):
        assert frame.empty
        assert len(frame.columns)


# One graph at a time -----------------------------------------------------------------------------


def test_graphs(filled):
    found = queries.graphs(filled.store)
    assert found["graph_id"].tolist() == list(filled.graphs)
    for row in found.itertuples():
        graph = filled.graphs[row.graph_id]
        assert (row.slug, row.prompt, row.nodes, row.edges, row.unpruned) == (
            graph.slug,
            graph.prompt,
            graph.n_nodes,
            graph.n_edges,
            graph.unpruned,
        )
        assert row.features == len({f for f in graph.feature_ids if f is not None})
        assert row.prompt_sets == sorted(s for s, ids in filled.sets.items() if row.graph_id in ids)
    assert queries.graphs(filled.store, "gpt2")["graph_id"].tolist() == filled.sets["gpt2"]


@pytest.mark.parametrize("rule", [None, "full", "merge", "masked", "as_stored"])
def test_scores(filled, rule):
    found = queries.scores(filled.store, rule=rule).set_index("graph_id")
    assert found.index.tolist() == list(filled.graphs)
    for graph_id, graph in filled.graphs.items():
        row = found.loc[graph_id]
        known = graph.unpruned or rule in (None, "as_stored") or rule in graph.scores
        figures = ["completeness", "replacement", "mean_path_length", "lost"]
        if not known:
            assert row["rule"] == rule
            assert row[figures].isna().all()
            with pytest.raises(ScoreError, match=f"{graph_id} does not tell .*{rule}"):
                queries.scores(filled.store, graphs=graph_id, rule=rule)
            continue
        expected = tracer.scores(graph, rule)
        alone = queries.scores(filled.store, graphs=[graph_id], rule=rule).iloc[0]
        for answer in (row, alone):
            assert answer["rule"] == expected.rule
            for name in figures:
                value = pytest.approx(getattr(expected, name), abs=CLOSE, nan_ok=True)
                assert answer[name] == value, name
        if graph.unpruned or "full" in graph.scores:
            full = tracer.scores(graph, "full")
            for name in figures[:3]:
                assert row[f"{name}_full"] == pytest.approx(getattr(full, name), abs=CLOSE)
        else:
            assert row[[f"{name}_full" for name in figures[:3]]].isna().all()


def test_scores_in_the_order_named_and_once_each(filled):
    first, second = list(filled.graphs)[:2]
    found = queries.scores(filled.store, graphs=[second, first[:8], filled.graphs[second].slug])
    assert found["graph_id"].tolist() == [second, first]


def test_path_lengths(filled):
    found = queries.path_lengths(filled.store)
    some = [i for i, graph in filled.graphs.items() if len(tracer.path_lengths(graph))]
    assert found["graph_id"].drop_duplicates().tolist() == some
    assert len(some) > 5
    for graph_id, graph in filled.graphs.items():
        expected = tracer.path_lengths(graph)
        for mine in (
            found[found["graph_id"] == graph_id],
            queries.path_lengths(filled.store, graph.slug),
        ):
            assert mine["length"].tolist() == expected["length"].tolist()
            for name in ("mass", "share", "cumulative"):
                assert np.allclose(mine[name], expected[name], rtol=0, atol=CLOSE), name


def test_path_lengths_pooled(filled):
    for prompt_set in ("gpt2", None):
        graphs = filled.of(prompt_set)
        mass = np.zeros(60)
        for graph in graphs:
            flow = tracer.Flow(graph)
            mass[: flow.n_steps] += flow.masses / len(graphs)
        found = queries.path_lengths(filled.store, prompt_set=prompt_set, pooled=True)
        assert found["graph_id"].tolist() == [None] * len(found)
        assert found["length"].tolist() == list(range(1, len(found) + 1))
        assert np.allclose(found["mass"], mass[: len(found)], rtol=0, atol=CLOSE)
        assert np.allclose(found["share"], mass[: len(found)] / mass.sum(), rtol=0, atol=CLOSE)
        assert found["cumulative"].iloc[-1] == pytest.approx(1)


def test_influence_hop_by_hop_agrees_with_the_solve_and_with_what_is_stored(filled):
    for graph, flow in filled.unnamed:
        found = queries.influence_by_length(filled.store, graph.graph_id)
        row_of = {node_id: row for row, node_id in enumerate(graph.node_ids)}
        mine = np.zeros(flow.by_length.shape)
        mine[found["length"] - 1, found["node_id"].map(row_of)] = found["influence"]
        assert np.allclose(mine, flow.by_length.toarray(), rtol=0, atol=CLOSE)
        assert (found["influence"] != 0).all()
        # Dense, for what both should be: wᵀ(Â + Â² + …).
        share, values, total = flow.normalised.toarray(), flow.weights, 0.0
        while (values := values @ share).any():
            total = total + values
        assert np.allclose(mine.sum(axis=0), total, rtol=0, atol=CLOSE)
        stored = filled.store.rows(
            "MATCH (:Graph {graph_id: $id})-[:CONTAINS]->(n:Node) "
            "RETURN n.ord AS ord, n.influence_by_length AS parts",
            id=graph.graph_id,
        )
        for node in stored:
            held = node["parts"] or []  # nothing is stored of a node without influence
            parts = np.pad(np.array(held, dtype=float), (0, len(mine) - len(held)))
            assert np.allclose(mine[:, node["ord"]], parts, rtol=0, atol=CLOSE)


def test_top_nodes(filled):
    for graph, flow in filled.unnamed:
        for kind in (None, "feature", "logit"):
            rows = np.arange(graph.n_nodes)
            if kind:
                rows = rows[(graph.nodes["kind"] == kind).to_numpy()]
            order = rows[np.argsort(-flow.influence[rows], kind="stable")][:7]
            found = queries.top_nodes(filled.store, graph.graph_id, kind, limit=7)
            assert np.allclose(found["influence"], flow.influence[order], rtol=0, atol=CLOSE)
            for row in found.itertuples():
                at = graph.row(row.node_id)
                node = graph.nodes.iloc[at]
                assert (row.kind, row.layer, row.position, row.index, row.token) == tuple(
                    node[["kind", "layer", "position", "index", "token"]]
                )
                assert row.error_fraction == pytest.approx(flow.error_fraction[at], abs=CLOSE)
                for name in ("activation", "probability", "influence_full"):
                    expected = node.get(name, np.nan)
                    assert getattr(row, name) == pytest.approx(expected, abs=CLOSE, nan_ok=True)
            if kind == "logit":
                assert found["probability"].is_monotonic_decreasing


def test_influence_by_position_and_layer(filled):
    for graph, flow in filled.unnamed:
        for place, ask in (
            ("position", queries.influence_by_position),
            ("layer", queries.influence_by_layer),
        ):
            found = ask(filled.store, graph.graph_id).set_index(place)
            where = graph.nodes[place].to_numpy()
            assert found.index.tolist() == sorted(set(where))
            for value, row in found.iterrows():
                here = where == value
                assert row["nodes"] == here.sum()
                assert row["influence"] == pytest.approx(flow.influence[here].sum(), abs=CLOSE)
                for kind in ("embedding", "feature", "error"):
                    of_kind = here & (graph.nodes["kind"] == kind).to_numpy()
                    assert row[kind] == pytest.approx(flow.influence[of_kind].sum(), abs=CLOSE)
                if place == "position":
                    assert row["token"] == graph.tokens[value]
            assert found["share"].sum() == pytest.approx(1)
            share = found["influence"] / flow.influence.sum()
            assert np.allclose(found["share"], share, rtol=0, atol=CLOSE)


@pytest.mark.parametrize("by", ["layer", "position", "token"])
def test_error_share(filled, by):
    def expected(graphs):
        total, through, sources = defaultdict(float), 0.0, 0.0
        for graph in graphs:
            flow = tracer.Flow(graph)
            through += flow.influence.sum() + flow.weights.sum()
            sources += flow.embedding_influence + flow.error_influence
            scores = flow.edge_scores.tocoo()
            # From the edges, not from the nodes' influence: Σ_t Â[t, s]·(I_t + w_t).
            for source, score in zip(scores.col, scores.data, strict=True):
                if graph.is_error[source]:
                    node = graph.nodes.iloc[source]
                    key = graph.tokens[node["position"]] if by == "token" else node[by]
                    total[key] += score
        return total, through, sources

    def check(found, graphs):
        total, through, sources = expected(graphs)
        assert found["share"].sum() == pytest.approx(1)
        for row in found.to_dict("records"):
            assert {name for name in ("layer", "position", "token") if pd.notna(row[name])} == {by}
            value = total.get(row[by], 0.0)
            assert row["influence"] == pytest.approx(value, abs=CLOSE)
            assert row["completeness_lost"] == pytest.approx(value / through, abs=CLOSE)
            assert row["replacement_lost"] == pytest.approx(value / sources, abs=CLOSE)
        assert {row for row, value in total.items() if value} <= set(found[by])

    for graph in filled.graphs.values():
        if graph.n_nodes < BIG and graph.is_error.any():
            found = queries.error_share(filled.store, graph.graph_id, by=by)
            check(found, [graph])
            stored = tracer.scores(graph, "as_stored")
            # tracer counts what is lost in full graphs alike
            assert found["completeness_lost"].sum() == pytest.approx(1 - stored.completeness)
            assert found["replacement_lost"].sum() == pytest.approx(1 - stored.replacement)
            assert found["nodes"].sum() == graph.is_error.sum()
    check(queries.error_share(filled.store, prompt_set="gpt2", by=by), filled.of("gpt2"))


# Along edges -------------------------------------------------------------------------------------


def test_neighbourhood(filled):
    for graph, flow in filled.unnamed:
        share, scores = flow.normalised.toarray(), flow.edge_scores.toarray()
        row = a_node(graph)
        for direction in ("in", "out"):
            strength = scores[row] if direction == "in" else scores[:, row]
            edges = np.flatnonzero(strength)
            order = edges[np.argsort(-strength[edges], kind="stable")][:5]
            found = queries.neighbourhood(
                filled.store, graph.slug, graph.keys[row], direction, limit=5
            )
            assert np.allclose(found["score"], strength[order], rtol=0, atol=CLOSE)
            for edge in found.itertuples():
                source, target = graph.row(edge.source), graph.row(edge.target)
                far = source if direction == "in" else target
                assert row == (target if direction == "in" else source)
                assert edge.share == pytest.approx(share[target, source], abs=CLOSE)
                assert edge.weight == pytest.approx(float(graph.adjacency[target, source]))
                assert edge.kind == graph.nodes["kind"].iloc[far]
                assert edge.layer == graph.nodes["layer"].iloc[far]
        both = queries.neighbourhood(
            filled.store, graph.slug, graph.keys[row], hops=2, min_share=0.05, limit=10_000
        )
        assert (both["share"] >= 0.05).all()
        kept = nx.from_numpy_array(np.where(share.T >= 0.05, share.T, 0), create_using=nx.DiGraph)
        for direction, way in (("out", kept), ("in", kept.reverse())):
            within = nx.single_source_shortest_path_length(way, row, cutoff=1)
            expected = {
                (u, v) if direction == "out" else (v, u) for u in within for v in way.successors(u)
            }
            mine = both[both["direction"] == direction]
            pairs = zip(mine["source"].map(graph.row), mine["target"].map(graph.row), strict=True)
            assert set(pairs) == expected


def a_node(graph):
    """Row of a feature with edges on both sides where there is one, else of a logit."""
    inputs, outputs = np.diff(graph.adjacency.indptr), np.diff(graph.adjacency.tocsc().indptr)
    rows = np.flatnonzero(graph.is_feature & (inputs > 0) & (outputs > 1))
    return int(rows[len(rows) // 2] if len(rows) else np.flatnonzero(graph.is_logit)[0])


def test_neighbourhood_goes_on_from_the_strongest(filled):
    for graph, flow in filled.unnamed:
        scores, row = flow.edge_scores.toarray(), int(np.flatnonzero(graph.is_logit)[0])
        found = queries.neighbourhood(
            filled.store, graph.slug, graph.keys[row], "in", hops=2, limit=12
        )
        first, second = found[found["hop"] == 1], found[found["hop"] == 2]
        into = scores[sorted({graph.row(node) for node in first["source"]})]
        expected = sorted(into[into > 0], reverse=True)[:12]
        assert np.allclose(second["score"], expected, rtol=0, atol=CLOSE)


def test_neighbourhood_by_the_name_in_a_file(filled, request):
    request.getfixturevalue("real_graphs")
    graph = next(g for g in filled.graphs.values() if "source_id" in g.nodes)
    row = int(np.flatnonzero(graph.is_logit)[0])
    name = graph.nodes["source_id"].iloc[row]
    found = queries.neighbourhood(filled.store, graph.graph_id, name, "in")
    assert set(found["target"]) == {graph.node_ids[row]}


def k_best(graph, share, sources, targets, k, max_length=None):
    """Strengths of the k strongest paths: the k best of every node, edge count by edge count."""
    csc = share.tocsc()
    best = [[[1.0] if t else [] for t in targets]]
    found = []
    for _ in range(max_length or graph.n_nodes):
        step = []
        for s in range(graph.n_nodes):
            span = slice(csc.indptr[s], csc.indptr[s + 1])
            ways = [
                x * rest
                for t, x in zip(csc.indices[span], csc.data[span], strict=True)
                for rest in best[-1][t]
            ]
            step.append(sorted(ways, reverse=True)[:k])
        if not any(step):
            break
        best.append(step)
        found += [x for s in np.flatnonzero(sources) for x in step[s]]
    return sorted(found, reverse=True)[:k]


@pytest.mark.parametrize(
    ("source", "target", "max_length"),
    [
        ("embedding", "logit", None),
        ("error", "logit", 2),
        ("feature", "feature", None),
        ("node", "logit", 3),
        ("embedding", "node", None),
        ("embedding", "feature", 1),
    ],
)
def test_strongest_paths_are_the_strongest(filled, source, target, max_length):
    for graph, flow in filled.unnamed:
        if graph.n_edges > 7_000 or not graph.is_feature.any():
            continue  # the oracle is slow Python
        a_feature = int(
            np.flatnonzero(graph.is_feature)[len(np.flatnonzero(graph.is_feature)) // 2]
        )

        def ends(name, row=a_feature, graph=graph):
            if name == "node":
                return graph.keys[row], np.arange(graph.n_nodes) == row
            return name, (graph.nodes["kind"] == name).to_numpy()

        (from_, sources), (to, targets) = ends(source), ends(target)
        found = queries.strongest_paths(
            filled.store, graph.graph_id, from_, to, limit=12, max_length=max_length
        )
        expected = k_best(graph, flow.normalised, sources, targets, 12, max_length)
        assert np.allclose(found["strength"], expected, rtol=1e-9, atol=0)
        assert found["rank"].tolist() == list(range(1, len(found) + 1))
        assert len({tuple(path) for path in found["path"]}) == len(found)
        for path in found.itertuples():
            rows = [graph.row(node) for node in path.path]
            shares = [flow.normalised[t, s] for s, t in itertools.pairwise(rows)]
            assert np.allclose(path.shares, shares, rtol=0, atol=CLOSE)
            assert path.strength == pytest.approx(float(np.prod(shares)))
            assert path.length == len(shares) <= (max_length or graph.n_nodes)
            assert sources[rows[0]]
            assert targets[rows[-1]]
            assert (path.source, path.target) == (path.path[0], path.path[-1])


def test_strongest_paths_are_all_paths_of_a_small_graph(filled):
    """Against networkx, which enumerates them."""
    graph = next(graph for graph in filled.graphs.values() if graph.slug == "imported")
    ways = nx.from_numpy_array(
        tracer.normalised(graph).toarray().T, create_using=nx.DiGraph, edge_attr="share"
    )
    expected = {
        tuple(path)
        for source in np.flatnonzero(graph.is_embedding)
        for target in np.flatnonzero(graph.is_logit)
        for path in nx.all_simple_paths(ways, source, target)
    }
    found = queries.strongest_paths(filled.store, graph.graph_id, limit=100_000)
    assert len(expected) > 20
    assert {tuple(map(graph.row, path)) for path in found["path"]} == expected
    assert found["strength"].is_monotonic_decreasing
    assert queries.strongest_paths(filled.store, graph.graph_id, limit=0).empty
    assert queries.strongest_paths(filled.store, graph.graph_id, "logit", "embedding").empty


def test_supernode_edges(filled):
    seen = 0
    for graph, flow in filled.unnamed:
        share, expected = flow.normalised.toarray(), {}
        for t in graph.supernodes:
            inside = np.isin(np.arange(graph.n_nodes), t.members)
            outside = np.array([share[m, ~inside].sum() for m in t.members])
            for s in graph.supernodes:
                if s is not t and outside.sum() > 0:
                    given = share[np.ix_(t.members, s.members)].sum(axis=1)
                    value = (outside * given).sum() / outside.sum()
                    if value > 0:
                        expected[s.name, t.name] = value
        found = queries.supernode_edges(filled.store, graph.graph_id)
        mine = dict(
            zip(zip(found["source"], found["target"], strict=True), found["share"], strict=True)
        )
        assert len(mine) == len(found)
        mine = {pair: value for pair, value in mine.items() if value > 0}
        assert mine == pytest.approx(expected, abs=CLOSE)
        seen += len(found)
    assert seen > 10


def test_feature_occurrences(filled):
    features = queries.recurring_features(filled.store, "gpt2")["feature_id"]
    for prompt_set in (None, "gpt2", "llama"):
        for feature in features[:4]:
            expected = {
                graph.node_ids[row]: flow.influence[row]
                for graph in filled.of(prompt_set)
                for flow in [tracer.Flow(graph)]
                for row, name in enumerate(graph.feature_ids)
                if name == feature
            }
            found = queries.feature_occurrences(filled.store, feature, prompt_set)
            mine = dict(zip(found["node_id"], found["influence"], strict=True))
            assert mine == pytest.approx(expected, abs=CLOSE)
            assert found["influence"].is_monotonic_decreasing
            for row in found.itertuples():
                graph = filled.graphs[row.graph_id]
                node = graph.nodes.iloc[graph.row(row.node_id)]
                assert (row.position, row.token) == (node["position"], node["token"])
                assert row.activation == pytest.approx(node["activation"], nan_ok=True)


# Across graphs -----------------------------------------------------------------------------------


def features_of(graph):
    """Influence of each feature of a graph, summed over its nodes."""
    influence, found = tracer.influence(graph), defaultdict(float)
    for row, name in enumerate(graph.feature_ids):
        if name is not None:
            found[name] += influence[row]
    return found


def pairs_of(graph):
    """Weight and share of each pair of features with an edge."""
    adjacency, share = graph.adjacency.tocoo(), tracer.normalised(graph)
    nodes = defaultdict(set)
    for row, name in enumerate(graph.feature_ids):
        nodes[name].add(row)
    found = defaultdict(lambda: [0.0, 0.0])
    for t, s, weight in zip(adjacency.row, adjacency.col, adjacency.data, strict=True):
        pair = graph.feature_ids[s], graph.feature_ids[t]
        if None not in pair:
            found[pair][0] += float(weight)
            found[pair][1] += share[t, s] / len(nodes[pair[1]])
    return found


COUNTS = [
    (None, {}),
    (None, {"min_share": 0.25}),
    ("gpt2", {}),
    ("gpt2", {"min_graphs": 1}),
    ("gpt2", {"min_share": 1.0}),
    ("llama", {"min_graphs": 3}),
    ("unpruned", {"min_share": 0.2}),
]


def counted(filled, prompt_set, given, per_graph):
    graphs = filled.of(prompt_set)
    values = defaultdict(list)
    for graph in graphs:
        for key, value in per_graph(graph).items():
            values[key].append(value)
    least = given.get("min_graphs", 2)
    if "min_share" in given:
        least = max(1, given["min_share"] * len(graphs))
    return {key: v for key, v in values.items() if len(v) >= least}, len(graphs)


@pytest.mark.parametrize(("prompt_set", "given"), COUNTS)
def test_recurring_features(filled, prompt_set, given):
    expected, n = counted(filled, prompt_set, given, features_of)
    found = queries.recurring_features(filled.store, prompt_set, **given)
    assert set(found["feature_id"]) == set(expected)
    assert expected
    for row in found.itertuples():
        values = expected[row.feature_id]
        assert row.feature_id.endswith(f"/{row.layer}/{row.index}")
        assert (row.graphs, row.share) == (len(values), len(values) / n)
        assert row.mean_influence == pytest.approx(np.mean(values), abs=CLOSE)
    assert found["graphs"].is_monotonic_decreasing


@pytest.mark.parametrize(("prompt_set", "given"), COUNTS)
def test_recurring_edges(filled, prompt_set, given):
    expected, n = counted(filled, prompt_set, given, pairs_of)
    found = queries.recurring_edges(filled.store, prompt_set, **given)
    assert set(zip(found["source"], found["target"], strict=True)) == set(expected)
    assert expected
    for row in found.itertuples():
        values = np.array(expected[row.source, row.target])
        assert (row.graphs, row.share) == (len(values), len(values) / n)
        weight, share = values.mean(axis=0)
        assert row.mean_weight == pytest.approx(weight, rel=CLOSE, abs=CLOSE)
        assert row.mean_share == pytest.approx(share, abs=CLOSE)
        assert 0 < row.mean_share <= 1 + CLOSE
    assert found["graphs"].is_monotonic_decreasing


def test_features_only_in(filled):
    for here, there, given in (
        ("llama", "gpt2", {}),
        ("gpt2", "unpruned", {"min_graphs": 2}),
        ("gpt2", "unpruned", {"min_share": 0.9}),
        ("gpt2", "empty", {}),
    ):
        expected, n = counted(filled, here, {"min_graphs": 1, **given}, features_of)
        there_too = {name for graph in filled.of(there) for name in features_of(graph)}
        wanted = {name: len(v) for name, v in expected.items() if name not in there_too}
        found = queries.features_only_in(filled.store, here, there, **given)
        assert dict(zip(found["feature_id"], found["graphs"], strict=True)) == wanted
        assert np.allclose(found["share"], found["graphs"] / n)
        assert wanted
    assert queries.features_only_in(filled.store, "gpt2", "gpt2").empty


def test_similar_graphs(filled):
    features = {graph_id: set(features_of(graph)) for graph_id, graph in filled.graphs.items()}
    for graph_id, graph in filled.graphs.items():
        mine = features[graph_id]
        for prompt_set in (None, "gpt2"):
            others = filled.graphs if prompt_set is None else filled.sets[prompt_set]
            expected = {
                other: len(mine & features[other]) / len(mine | features[other])
                for other in others
                if other != graph_id and mine & features[other]
            }
            found = queries.similar_graphs(filled.store, graph.slug, prompt_set, limit=100)
            assert dict(zip(found["other"], found["jaccard"], strict=True)) == pytest.approx(
                expected
            )
            assert (found["graph_id"] == graph_id).all()
            assert found["jaccard"].is_monotonic_decreasing
            for row in found.itertuples():
                assert row.shared == len(mine & features[row.other])
                assert row.slug == filled.graphs[row.other].slug
        best = queries.similar_graphs(filled.store, graph_id, limit=1)
        assert len(best) <= 1
