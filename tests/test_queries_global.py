"""Queries of global weights: each against dense matrices, on every engine.

The oracles never ask the database. Tolerance 1e-9, because sums run in another order.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

import graphstore
import queries
import tracer
from tracer.errors import NotFoundError, QueryError

ENGINES = ("embedded", "neo4j-lts", "neo4j-calendar")
MEASURES = {"weight": "weights", "era": "era", "twera": "twera"}
CLOSE = 1e-9


@dataclass
class Filled:
    """A store with two submatrices and three graphs, and what was put into it."""

    store: graphstore.Store
    weights: tracer.weights.GlobalWeights
    other: tracer.weights.GlobalWeights
    deep: tracer.weights.GlobalWeights
    graphs: list[tracer.AttributionGraph]

    def dense(self, by: str) -> np.ndarray:
        return getattr(self.weights, MEASURES[by]).toarray()

    @property
    def stored(self) -> np.ndarray:
        """Which pairs are stored, explicit zeros too."""
        ones = self.weights.weights.copy()
        ones.data = np.ones_like(ones.data)
        return ones.toarray() > 0


@pytest.fixture(
    scope="module",
    params=[pytest.param(e, marks=[pytest.mark.neo4j] * (e != "embedded")) for e in ENGINES],
)
def filled(request, golden, made):
    """A store with weights of two corpora, incomplete ones, and graphs of the same features."""
    if request.param == "embedded":
        target = {"target": request.getfixturevalue("embedded_server")}
    else:
        given = request.getfixturevalue("servers").environment(request.param)
        auth = (given["NEO4J_USERNAME"], given["NEO4J_PASSWORD"])
        target = {"target": given["NEO4J_URI"], "auth": auth}
    full, _ = golden("gpt2_plt_ln2")
    graphs = [
        with_residual(tracer.prune(full, nodes, edges)).replace(slug=f"g{i}")
        for i, (nodes, edges) in enumerate(((0.99, 0.999), (0.9, 0.98)))
    ]
    acting = sorted(
        {(n.layer, n.index) for n in graphs[0].nodes[graphs[0].is_feature].itertuples()}
    )
    # Features of the graphs but for some, and some that act in none.
    features = sorted({*acting[::2], *acting[1::4], (0, 90_000), (1, 90_001), (2, 90_002)})
    name = graphs[0].transcoder_id
    weights = made.attached(made.made_weights(features, 1, 0.8, transcoder_id=name))
    other = made.made_weights(features[::3], 2, 0.8, transcoder_id=name)
    places = [(layer, index) for layer in range(8) for index in range(4)]
    deep = made.made_weights(places, 3, 0.5, transcoder_id="made/deep@1")
    with graphstore.connect(**target) as store:
        empty(store)
        for graph in graphs:
            store.write(graph, "pair")
        store.write(full.replace(slug="whole"), "whole")
        store.add_set("none")
        store.write_weights(weights)
        store.write_weights(other)
        store.write_weights(deep)
        spoil(store, weights)
        ids = weights.feature_ids
        labels = pd.DataFrame({"feature_id": ids[::2], "label": [f"says {i}" for i in ids[::2]]})
        store.label(labels, "made")
        deeper = pd.DataFrame({"feature_id": deep.feature_ids[1::2], "label": "deep"})
        store.label(deeper, "made")
        yield Filled(store, weights, other, deep, graphs)
        empty(store)


def with_residual(graph):
    """Split weights in two: residual-direct at one position, a part of it attention-mediated."""
    coo = graph.adjacency.tocoo()
    position = graph.nodes["position"].to_numpy()
    factor = np.where(position[coo.row] == position[coo.col], np.linspace(0, 1, coo.nnz), 0)
    part = csr_array((coo.data * factor.astype(coo.dtype), (coo.row, coo.col)), shape=coo.shape)
    return graph.replace(residual=part, attention=graph.adjacency - part, graph_id=None)


def spoil(store, weights):
    """Leave what an interrupted writer leaves; no query may see it."""
    store.change(
        "CREATE (w:GlobalWeights {weights_id: 'ffffffffffffffff', complete: false, "
        "heartbeat: timestamp(), writer: 'w'}) WITH w "
        "MATCH (s:Feature {feature_id: $s}) MATCH (t:Feature {feature_id: $t}) "
        "CREATE (w)-[:COVERS {ord: 0, input_twera: 1000.0, output_twera: 1000.0}]->(t) "
        "CREATE (s)-[:VIRTUAL {weights_id: 'ffffffffffffffff', source: 1, target: 0, "
        "weight: 1000.0, era: 1000.0, twera: 1000.0, cofiring: 0}]->(t)",
        s=weights.feature_ids[0],
        t=weights.feature_ids[-1],
    )


def empty(store):
    text = (
        "MATCH (n) WHERE NOT n:Vault WITH n LIMIT 20000 WITH collect(n) AS ns UNWIND ns AS n "
        "DETACH DELETE n RETURN count(*) AS n"
    )
    while store.change(text)[0]["n"]:
        pass


# One feature -------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("direction", ["inputs", "outputs"])
def test_neighbours_are_the_rows_and_columns_of_the_matrix(filled, by, direction):
    weights, dense = filled.weights, np.abs(filled.dense(by))
    ids = weights.feature_ids
    row = int(np.argmax((dense > 0).sum(axis=1 if direction == "inputs" else 0)))
    ask = getattr(queries, f"global_{direction}")
    found = ask(filled.store, ids[row], weights_id=weights.weights_id, by=by, limit=1000)
    line = dense[row] if direction == "inputs" else dense[:, row]
    near = np.flatnonzero(filled.stored[row] if direction == "inputs" else filled.stored[:, row])
    order = sorted(near, key=lambda i: (-line[i], ids[i]))
    assert found["feature_id"].tolist() == [ids[i] for i in order]
    totals = dense.sum(axis=1)
    share = line[order] / (totals[row] if direction == "inputs" else totals[order])
    np.testing.assert_allclose(found["share"], np.nan_to_num(share), rtol=CLOSE)
    pairs = [(row, i) if direction == "inputs" else (i, row) for i in order]
    for name, its in {**MEASURES, "cofiring": "cofiring"}.items():
        matrix = getattr(weights, its).toarray()
        assert found[name].tolist() == [matrix[pair] for pair in pairs]
    error = weights.standard_error_twera.toarray()
    assert found["standard_error_twera"].tolist() == [error[pair] for pair in pairs]
    assert found["label"].tolist() == [f"says {ids[i]}" if i % 2 == 0 else None for i in order]
    assert found["layer"].tolist() == weights.features["layer"].iloc[order].tolist()
    few = ask(filled.store, ids[row], weights_id=weights.weights_id[:6], by=by, limit=3)
    pd.testing.assert_frame_equal(few, found.head(3))


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("direction", ["in", "out", "both"])
def test_hubs_are_the_largest_sums(filled, by, direction):
    weights, dense = filled.weights, np.abs(filled.dense(by))
    into, out = dense.sum(axis=1), dense.sum(axis=0)
    strength = {"in": into, "out": out, "both": into + out}[direction]
    found = queries.hubs(
        filled.store, weights_id=weights.weights_id, by=by, direction=direction, limit=7
    )
    order = np.argsort(-strength, kind="stable")[:7]
    assert found["feature_id"].tolist() == [weights.feature_ids[i] for i in order]
    np.testing.assert_allclose(found["strength"], strength[order], rtol=CLOSE)
    np.testing.assert_allclose(found["input"], into[order], rtol=CLOSE)
    np.testing.assert_allclose(found["output"], out[order], rtol=CLOSE)
    assert found["inputs"].tolist() == filled.stored.sum(axis=1)[order].tolist()
    assert found["outputs"].tolist() == filled.stored.sum(axis=0)[order].tolist()
    assert found["influence"].tolist() == weights.influence.influence[order].tolist()
    others = queries.hubs(filled.store, weights_id=filled.other.weights_id, limit=1000)
    assert set(others["feature_id"]) == set(filled.other.feature_ids)
    assert others["influence"].isna().all()


def test_only_complete_weights_are_seen_and_named(filled):
    store, weights = filled.store, filled.weights
    with pytest.raises(NotFoundError, match=f"3 global weights are stored: .*{weights.weights_id}"):
        queries.hubs(store)
    for ask in (
        lambda id_: queries.hubs(store, weights_id=id_),
        lambda id_: queries.global_inputs(store, weights.feature_ids[-1], weights_id=id_),
        lambda id_: queries.interference(store, weights_id=id_),
        lambda id_: queries.candidate_pairs(store, "pair", weights_id=id_),
        lambda id_: queries.local_against_global(store, "g0", weights_id=id_),
        lambda id_: queries.global_paths(store, "a/0/0", "a/1/0", weights_id=id_),
    ):
        with pytest.raises(NotFoundError, match="no global weights 'ffffffffffffffff'"):
            ask("ffffffffffffffff")
    missing = next(i for i in weights.feature_ids if i not in filled.other.feature_ids)
    for ask in (queries.global_inputs, queries.global_outputs):
        with pytest.raises(NotFoundError, match="is not among those of global weights"):
            ask(store, missing, weights_id=filled.other.weights_id)
    first = queries.global_inputs(store, weights.feature_ids[0], weights_id=weights.weights_id)
    assert first.empty  # nothing is below the first layer
    with pytest.raises(QueryError, match=r'Did you mean "twera"'):
        queries.hubs(store, weights_id=weights.weights_id, by="tewra")
    with pytest.raises(QueryError):
        queries.hubs(store, weights_id=weights.weights_id, limit=-1)


def test_every_query_runs_by_name_and_has_its_columns(filled):
    pairs = filled.weights.to_pandas()
    source, target = pairs.loc[pairs["twera"] != 0, ["source", "target"]].iloc[0]
    given = {
        "feature_id": target,
        "source": source,
        "target": target,
        "prompt_set": "pair",
        "graph_id": "g0",
    }
    asked = 0
    for name in queries.names():
        query = queries.describe(name)
        if not any(p.name == "weights_id" for p in query.parameters):
            continue
        asked += 1
        needed = {p.name: given[p.name] for p in query.parameters if p.required}
        needed["weights_id"] = filled.weights.weights_id
        if name == "local_against_global":
            needed["graph_id"] = "g0"
        if name == "global_outputs":
            needed["feature_id"] = source
        by_name = queries.run(filled.store, name, **needed)
        assert tuple(by_name.columns) == query.columns
        assert len(by_name), name
        pd.testing.assert_frame_equal(by_name, getattr(queries, name)(filled.store, **needed))
        assert by_name["weight" if "weight" in by_name else "strength"].dtype == np.float64
    assert asked == 7


# Pairs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 5, 10_000])
def test_interference_is_what_the_matrices_say(filled, limit):
    weights = filled.weights
    pairs = weights.to_pandas()
    id_ = weights.weights_id
    unused = pairs[(pairs["cofiring"] == 0) & (pairs["weight"] != 0)]
    unused = unused.assign(size=unused["weight"].abs())
    found = queries.interference(filled.store, id_, "unused", limit)
    check_pairs(found, unused, limit)
    assert (found["twera"] == 0).all()
    small = pairs["weight"].abs().median()
    tiny = pairs[(pairs["weight"].abs() < small) & (pairs["twera"] != 0)]
    tiny = tiny.assign(size=tiny["twera"].abs())
    check_pairs(queries.interference(filled.store, id_, "tiny", limit), tiny, limit)


def check_pairs(found, expected, limit):
    expected = expected.sort_values(
        ["size", "source", "target"], ascending=[False, True, True], ignore_index=True
    ).head(limit)
    names = ["source", "target", "weight", "era", "twera", "cofiring", "standard_error_twera"]
    pd.testing.assert_frame_equal(
        found[names], expected[names], check_dtype=False, check_exact=True
    )


@pytest.mark.parametrize("by", MEASURES)
@pytest.mark.parametrize("limit", [1, 20, 100_000])
def test_candidate_pairs_are_the_strongest_among_features_of_the_set(
    filled, by, limit, monkeypatch
):
    monkeypatch.setattr("queries.global_pairs._FIRST", 3)  # so that it takes several turns
    store, weights = filled.store, filled.weights
    of = [{i for i in graph.feature_ids if i} for graph in filled.graphs]
    for min_graphs, acting in ((1, of[0] | of[1]), (2, of[0] & of[1])):
        pairs = weights.to_pandas()
        pairs = pairs[pairs["source"].isin(acting) & pairs["target"].isin(acting)]
        pairs = pairs[pairs[by] != 0].assign(size=pairs[by].abs())
        assert len(pairs) > 20
        found = queries.candidate_pairs(
            store, "pair", weights.weights_id, by, min_graphs=min_graphs, limit=limit
        )
        check_pairs(found, pairs, limit)
    local = [set(zip(*edges(graph), strict=True)) for graph in filled.graphs]
    for row in found.itertuples():
        assert row.graphs == sum(row.source in each and row.target in each for each in of)
        assert row.edges == sum((row.source, row.target) in each for each in local)
    assert limit == 1 or (found["edges"] > 0).any()


def edges(graph):
    """Feature ids of sources and targets of the edges between features."""
    coo = graph.adjacency.tocoo()
    ids = np.array(graph.feature_ids, dtype=object)
    both = graph.is_feature[coo.row] & graph.is_feature[coo.col]
    return ids[coo.col[both]].tolist(), ids[coo.row[both]].tolist()


def test_candidate_pairs_need_features_that_are_covered(filled):
    weights_id = filled.weights.weights_id
    with pytest.raises(QueryError, match="cover no feature of these graphs"):
        queries.candidate_pairs(filled.store, "none", weights_id)
    with pytest.raises(NotFoundError, match="Did you mean"):
        queries.candidate_pairs(filled.store, "pairs", weights_id)
    with pytest.raises(QueryError):
        queries.candidate_pairs(filled.store, "pair", weights_id, min_graphs=0)
    listed = queries.candidate_pairs(filled.store, ["g0"], weights_id, limit=3)
    assert len(listed) == 3


# Paths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7, 10_000])
@pytest.mark.parametrize("others", [0, 1, 2, 3, 5])
def test_paths_are_those_of_an_enumeration(filled, others, limit):
    """Enumerated over dense shares; features far apart, of eight layers."""
    store, weights = filled.store, filled.deep
    dense = weights.twera.toarray()
    share = np.abs(dense) / np.maximum(np.abs(dense).sum(axis=1, keepdims=True), 1e-300)
    ids, n = weights.feature_ids, len(weights)
    t = int(np.flatnonzero((share > 0).sum(axis=1))[-1])
    s = int(np.flatnonzero(share.sum(axis=0))[0])
    expected = {}
    frontier = [(s,)]
    for _ in range(others + 1):
        frontier = [(*p, i) for p in frontier for i in range(n) if share[i, p[-1]] > 0]
        for path in frontier:
            if path[-1] == t:
                steps = [share[b, a] for a, b in itertools.pairwise(path)]
                expected[path] = float(np.prod(steps))
    found = queries.global_paths(
        store, ids[s], ids[t], others=others, weights_id=weights.weights_id, limit=limit
    )
    ranked = sorted(expected, key=lambda p: (-expected[p], p))[:limit]
    assert found["path"].tolist() == [[ids[i] for i in path] for path in ranked]
    np.testing.assert_allclose(found["strength"], [expected[p] for p in ranked], rtol=CLOSE)
    assert found["rank"].tolist() == list(range(1, len(ranked) + 1))
    for path, row in zip(ranked, found.itertuples(), strict=True):
        assert row.values == [dense[b, a] for a, b in itertools.pairwise(path)]
        assert row.labels == ["deep" if i % 2 else None for i in path]
        assert row.length == len(path) - 1 == len(row.shares)
        assert np.prod(row.shares) == pytest.approx(row.strength, rel=CLOSE)


def test_no_path_leads_back(filled):
    ids, weights_id = filled.weights.feature_ids, filled.weights.weights_id
    assert queries.global_paths(filled.store, ids[-1], ids[0], weights_id=weights_id).empty
    assert queries.global_paths(filled.store, ids[0], ids[0], weights_id=weights_id).empty
    with pytest.raises(NotFoundError, match="is not among those"):
        queries.global_paths(filled.store, ids[0], "made/up@1/9/9", weights_id=weights_id)
    with pytest.raises(QueryError):
        queries.global_paths(filled.store, ids[0], ids[1], others=-1, weights_id=weights_id)


# Local against global ----------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["twera", "weight"])
@pytest.mark.parametrize("which", ["one", "set"])
def test_local_edges_beside_global_ones(filled, by, which, monkeypatch):
    monkeypatch.setattr("queries.global_comparing._FIRST", 2)  # so that it takes several turns
    store, weights = filled.store, filled.weights
    graphs = filled.graphs[:1] if which == "one" else filled.graphs
    given = {"graph_id": "g0"} if which == "one" else {"prompt_set": "pair"}
    least = 0.03
    found = queries.local_against_global(
        store, **given, weights_id=weights.weights_id, by=by, min_share=least, limit=10_000
    )
    expected = compared(graphs, weights, filled.dense(by), filled.stored, least)
    assert set(found["kind"]) == {"typical", "specific", "silent", "uncovered"}
    assert len(found) == len(expected)
    for row in found.itertuples():
        kind, residual, local, share = expected[row.source, row.target]
        assert row.kind == kind
        assert row.residual == pytest.approx(residual, rel=1e-6, abs=1e-9)  # of float32 sums
        assert row.local_share == pytest.approx(local, rel=1e-6, abs=1e-9)
        assert row.global_share == pytest.approx(share, rel=CLOSE, nan_ok=True)
        acting = [i for graph in graphs for i in graph.feature_ids]
        assert row.source_acts == (row.source in acting)
        assert row.nodes == acting.count(row.target)
        if kind != "uncovered":
            at = weights.feature_ids.index(row.target), weights.feature_ids.index(row.source)
            if filled.stored[at]:
                assert row.twera == weights.twera[at]
                assert row.cofiring == weights.cofiring[at]
            else:
                assert np.isnan(row.twera)
    order = {kind: place for place, kind in enumerate(("typical", "specific", "silent"))}
    order["uncovered"] = 3
    assert found["kind"].map(order).is_monotonic_increasing
    few = queries.local_against_global(
        store, **given, weights_id=weights.weights_id, by=by, min_share=least, limit=2
    )
    pd.testing.assert_frame_equal(
        few, found.groupby("kind", sort=False).head(2).reset_index(drop=True)
    )


def compared(graphs, weights, dense, stored, least):
    """The definition, written out over dictionaries."""
    sums: dict[tuple[str, str], float] = {}
    nodes: dict[str, int] = {}
    for graph in graphs:
        ids = graph.feature_ids
        for name in ids:
            if name:
                nodes[name] = nodes.get(name, 0) + 1
        residual = graph.residual.tocoo()
        for t, s, value in zip(residual.row, residual.col, residual.data, strict=True):
            if ids[t] and ids[s] and value != 0:
                sums[ids[s], ids[t]] = sums.get((ids[s], ids[t]), 0.0) + float(value)
    mean = {pair: value / nodes[pair[1]] for pair, value in sums.items()}
    total: dict[str, float] = {}
    for (_, t), value in mean.items():
        total[t] = total.get(t, 0.0) + abs(value)
    local = {pair: abs(value) / total[pair[1]] for pair, value in mean.items()}
    place = {name: row for row, name in enumerate(weights.feature_ids)}
    sizes = np.abs(dense).sum(axis=1)
    shares = {}
    for t in nodes:
        if t in place and sizes[place[t]] > 0:
            for s in np.flatnonzero(stored[place[t]]):
                pair = (weights.feature_ids[s], t)
                shares[pair] = abs(dense[place[t], s]) / sizes[place[t]]
    found = {}
    for pair in {*local, *shares}:
        here = local.get(pair, 0.0) >= least
        covered = pair[0] in place and pair[1] in place
        globally = shares.get(pair, 0.0) >= least
        if not here and not globally:
            continue
        kind = "uncovered" if here and not covered else None
        kind = kind or ("typical" if here and globally else "specific" if here else "silent")
        share = np.nan if kind == "uncovered" else shares.get(pair, 0.0)
        found[pair] = (kind, mean.get(pair, 0.0), local.get(pair, 0.0), share)
    return found


def test_comparing_says_what_it_lacks(filled):
    store, weights_id = filled.store, filled.weights.weights_id
    ask = queries.local_against_global
    with pytest.raises(QueryError, match="do not say which part of an edge is residual-direct"):
        ask(store, "whole", weights_id=weights_id)
    with pytest.raises(QueryError, match="needs a graph or a prompt set"):
        ask(store, weights_id=weights_id)
    with pytest.raises(QueryError, match="Give one of the two"):
        ask(store, "g0", "pair", weights_id=weights_id)
    with pytest.raises(QueryError, match="min_share is 0"):
        ask(store, "g0", weights_id=weights_id, min_share=0)
    with pytest.raises(QueryError, match="cover no feature"):
        ask(store, prompt_set="none", weights_id=weights_id)
    strict = ask(store, "g0", weights_id=weights_id, min_share=1.0)
    assert (strict[["local_share", "global_share"]].max(axis=1) >= 1.0).all()
