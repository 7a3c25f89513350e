"""Comparing graphs and sets in a store, on every engine, against pandas on the graphs themselves.

The oracles never ask the database: they go over the nodes and edges of the graph objects with
dictionaries and sets. Tolerance 1e-9: sums run in another order in each engine.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import graphstore
import queries
import tracer
from queries.comparing_graphs import aligned
from tracer.errors import NotFoundError, QueryError

CLOSE = 1e-9
ENGINES = ("embedded", "neo4j-lts", "neo4j-calendar")


@pytest.fixture(
    scope="module",
    params=[pytest.param(e, marks=[pytest.mark.neo4j] * (e != "embedded")) for e in ENGINES],
)
def filled(request, golden):
    """A store of prunings of golden graphs in sets, with the graphs by set."""
    if request.param == "embedded":
        target = {"target": request.getfixturevalue("embedded_server")}
    else:
        given = request.getfixturevalue("servers").environment(request.param)
        auth = (given["NEO4J_USERNAME"], given["NEO4J_PASSWORD"])
        target = {"target": given["NEO4J_URI"], "auth": auth}
    with graphstore.connect(**target) as store:
        empty(store)
        sets = defaultdict(list)
        for name, prompt_set, thresholds in (
            ("gpt2_clt_residmid", "high", (0.8, 0.78, 0.75, 0.72)),
            ("gpt2_clt_residmid", "low", (0.7, 0.67, 0.64, 0.61, 0.58)),
            ("llama_clt_residmid", "llama", (0.8, 0.7)),
        ):
            for threshold in thresholds:
                graph = tracer.prune(golden(name)[0], threshold).replace(slug=f"{name}-{threshold}")
                store.write(graph, prompt_set)
                sets[prompt_set].append(graph)
        both = sets["high"][0]
        store.include(both.graph_id, "low")
        store.include(sets["high"][0].graph_id, "one")
        store.include(sets["high"][0].graph_id, "within")
        store.include(sets["high"][1].graph_id, "within")
        store.add_set("empty")
        yield store, sets
        empty(store)


def empty(store):
    text = (
        "MATCH (n) WHERE NOT n:Vault WITH n LIMIT 20000 WITH collect(n) AS ns UNWIND ns AS n "
        "DETACH DELETE n RETURN count(*) AS n"
    )
    while store.change(text)[0]["n"]:
        pass


# Tables by graph ---------------------------------------------------------------------------------


def features_of(graph):
    influence, found = tracer.influence(graph), defaultdict(float)
    for row, name in enumerate(graph.feature_ids):
        if name is not None:
            found[name] += influence[row]
    return found


def pairs_of(graph):
    """Weight, share and influence of each pair of features with an edge."""
    adjacency, share, scores = graph.adjacency.tocoo(), tracer.normalised(graph), edge_scores(graph)
    nodes = defaultdict(set)
    for row, name in enumerate(graph.feature_ids):
        nodes[name].add(row)
    found = defaultdict(lambda: np.zeros(3))
    for t, s, weight in zip(adjacency.row, adjacency.col, adjacency.data, strict=True):
        pair = graph.feature_ids[s], graph.feature_ids[t]
        if None not in pair:
            found[pair] += [float(weight), share[t, s] / len(nodes[pair[1]]), scores[t, s]]
    return found


def edge_scores(graph):
    share, influence = tracer.normalised(graph), tracer.influence(graph)
    return share.multiply((influence + graph.logit_weights)[:, None]).tocsr()


def test_features_and_edges_by_graph(filled):
    store, sets = filled
    graphs = sets["low"]
    expected = {
        (name, graph.graph_id): value
        for graph in graphs
        for name, value in features_of(graph).items()
    }
    ids = [graph.graph_id for graph in graphs]
    found = queries.features_by_graph(store, ids)
    keys = zip(found["feature_id"], found["graph_id"], strict=True)
    assert dict(zip(keys, found["influence"], strict=True)) == pytest.approx(expected, abs=CLOSE)

    pairs = {graph.graph_id: pairs_of(graph) for graph in graphs}
    for least in (1, 3):
        found = queries.edges_by_graph(store, ids, min_graphs=least)
        wanted = {
            (pair, graph_id): values
            for graph_id, of_graph in pairs.items()
            for pair, values in of_graph.items()
            if sum(pair in other for other in pairs.values()) >= least
        }
        assert len(found) == len(wanted)
        assert wanted
        for row in found.itertuples():
            values = wanted[(row.source, row.target), row.graph_id]
            assert [row.weight, row.share, row.influence] == pytest.approx(values, abs=CLOSE)

    totals = queries.edge_totals(store, ids).set_index("graph_id")
    for graph_id, of_graph in pairs.items():
        shares = np.array([values[1] for values in of_graph.values()])
        wanted = [len(shares), shares.sum(), (shares**2).sum()]
        assert totals.loc[graph_id].tolist() == pytest.approx(wanted)


def test_nodes_and_edges_of_a_graph(filled):
    store, sets = filled
    graph = sets["low"][0]
    nodes = queries.graph_nodes(store, graph.slug)
    assert nodes["node_id"].tolist() == list(graph.node_ids)
    assert nodes["influence"].tolist() == pytest.approx(tracer.influence(graph), abs=CLOSE)
    edges = queries.graph_edges(store, graph.slug)
    assert len(edges) == graph.n_edges
    scores = edge_scores(graph)
    for row in edges.head(50).itertuples():
        t, s = graph.row(row.target), graph.row(row.source)
        assert row.weight == pytest.approx(graph.adjacency[t, s])
        assert row.score == pytest.approx(scores[t, s], abs=CLOSE)
    assert edges["score"].is_monotonic_decreasing


def test_details_without_and_with_metadata(filled):
    store, sets = filled
    found = queries.graph_details(store, "llama")
    graph = sets["llama"][0]
    row = found.iloc[0]
    assert (row["graph_id"], row["prompt"], row["tokens"]) == (
        graph.graph_id,
        graph.prompt,
        list(graph.tokens),
    )
    logits = graph.nodes[graph.is_logit]
    assert row["target"] == (logits["token"].iloc[int(np.argmax(logits["probability"]))] or "")
    assert found["template"].isna().all()


# Two graphs --------------------------------------------------------------------------------------


def merged(graph, positions):
    """Influence of each node and (weight, share, score) of each edge, by keys."""
    keys = []
    for kind, layer, index, position in zip(
        graph.nodes["kind"],
        graph.nodes["layer"],
        graph.nodes["index"],
        graph.nodes["position"],
        strict=True,
    ):
        key = f"{kind}/{layer}/{index}" if kind == "feature" else f"{kind}/{index}"
        key = f"error/{layer}" if kind == "error" else key
        keys.append(key + (f"@{position}" if positions == "align" else ""))
    nodes, edges = defaultdict(float), defaultdict(lambda: np.zeros(3))
    for key, value in zip(keys, tracer.influence(graph), strict=True):
        nodes[key] += value
    adjacency, share, scores = graph.adjacency.tocoo(), tracer.normalised(graph), edge_scores(graph)
    for t, s, weight in zip(adjacency.row, adjacency.col, adjacency.data, strict=True):
        n = keys.count(keys[t])
        edges[keys[s], keys[t]] += [float(weight), share[t, s] / n, scores[t, s]]
    return nodes, edges


@pytest.mark.parametrize("positions", ["drop", "align"])
def test_two_graphs_node_by_node_and_edge_by_edge(filled, positions):
    store, sets = filled
    a, b = sets["high"][3], sets["low"][2]
    found = queries.compare(store, a.graph_id, b.slug, positions=positions)
    (nodes_a, edges_a), (nodes_b, edges_b) = (merged(graph, positions) for graph in (a, b))
    assert set(found.nodes["key"]) == nodes_a.keys() | nodes_b.keys()
    for row in found.nodes.itertuples():
        wanted = nodes_a.get(row.key, 0.0), nodes_b.get(row.key, 0.0)
        assert (row.influence_a, row.influence_b) == pytest.approx(wanted, abs=CLOSE)
        assert row.change == pytest.approx(wanted[1] - wanted[0], abs=CLOSE)
        inside = row.key in nodes_a, row.key in nodes_b
        assert row.where == {(True, True): "both", (True, False): "a", (False, True): "b"}[inside]
    pairs = list(zip(found.edges["source"], found.edges["target"], strict=True))
    assert set(pairs) == edges_a.keys() | edges_b.keys()
    zero = np.zeros(3)
    for pair, row in zip(pairs, found.edges.itertuples(), strict=True):
        of_a, of_b = edges_a.get(pair, zero), edges_b.get(pair, zero)
        assert [row.weight_a, row.share_a, row.influence_a] == pytest.approx(of_a, abs=CLOSE)
        assert [row.weight_b, row.share_b, row.influence_b] == pytest.approx(of_b, abs=CLOSE)
        assert row.change_weight == pytest.approx(of_b[0] - of_a[0], abs=CLOSE)
    assert found.edges["change"].abs().is_monotonic_decreasing

    summary = found.summary.set_index("what").loc["feature"]
    mine, theirs = (
        {key for key in nodes if key.startswith("feature")} for nodes in (nodes_a, nodes_b)
    )
    assert (summary["both"], summary["a"], summary["b"]) == (
        len(mine & theirs),
        len(mine - theirs),
        len(theirs - mine),
    )
    assert summary["jaccard"] == pytest.approx(len(mine & theirs) / len(mine | theirs))
    held = sum(nodes_a[key] for key in mine & theirs) / sum(nodes_a[key] for key in mine)
    assert summary["share_a"] == pytest.approx(held)


def test_a_graph_against_its_own_pruning_loses_only(filled):
    store, sets = filled
    found = queries.compare(store, sets["high"][0].slug, sets["low"][0].slug)
    assert not (found.nodes["where"] == "b").any()
    assert (found.nodes["where"] == "a").any()
    assert found.summary.set_index("what").loc["feature", "share_b"] == pytest.approx(1)


def test_alignment_of_tokens():
    a = ["the", "capital", "of", "the", "state", "containing", "Dallas", "is"]
    b = ["the", "capital", "of", "the", "country", "containing", "San", "Juan", "is"]
    assert aligned(a, b) == [0, 1, 2, 3, 4, 5, None, 6, 7]
    assert aligned(b, a) == [0, 1, 2, 3, 4, 5, 7, 8]
    assert aligned([], ["x"]) == [None]
    assert aligned(["x"], ["x"]) == [0]


# Two sets ----------------------------------------------------------------------------------------


def test_two_sets_item_by_item(filled):
    store, sets = filled
    found = queries.compare(store, "high", "low", n_permutations=1000, n_resamples=50)
    a, b = sets["high"][1:], sets["low"]  # the first one is in both
    assert found.n_graphs == (len(a), len(b))
    assert any("1 graphs in both sets" in text for text in found.limits)
    for per_graph, items in (
        (features_of, found.features),
        (lambda graph: {k: v[0] for k, v in pairs_of(graph).items()}, found.edges),
    ):
        of_a, of_b = ([per_graph(graph) for graph in side] for side in (a, b))
        keys = {key for graph in of_a + of_b for key in graph}
        keys = {key for key in keys if sum(key in graph for graph in of_a + of_b) >= 2}
        assert len(items) == len(keys)
        for row in items.itertuples():
            key = row.feature_id if items is found.features else (row.source, row.target)
            in_a, in_b = (sum(key in graph for graph in side) for side in (of_a, of_b))
            assert (row.graphs_a, row.graphs_b) == (in_a, in_b)
            table = [[in_a, len(a) - in_a], [in_b, len(b) - in_b]]
            assert row.p_presence == pytest.approx(stats.fisher_exact(table).pvalue)
            values = [[graph.get(key, 0.0) for graph in side] for side in (of_a, of_b)]
            assert (row.mean_a, row.mean_b) == pytest.approx(
                (np.mean(values[0]), np.mean(values[1])), abs=CLOSE
            )
        known = items["p_presence"].to_numpy()
        assert items["q_presence"].to_numpy() == pytest.approx(stats.false_discovery_control(known))
    # The permutation test is exact here: C(8, 3) = 56 labellings.
    row = found.features.iloc[0]
    values = [[features_of(g).get(row["feature_id"], 0.0) for g in side] for side in (a, b)]
    expected = stats.permutation_test(
        values,
        lambda x, y, axis: abs(np.mean(x, axis) - np.mean(y, axis)),
        alternative="greater",
        n_resamples=np.inf,
        vectorized=True,
    )
    assert row["p_strength"] == pytest.approx(expected.pvalue)


def test_lists_of_graphs_are_sets(filled):
    store, sets = filled
    lists = [[g.slug for g in sets[name][1:]] for name in ("high", "low")]
    found = queries.compare(store, *lists, n_permutations=99, n_resamples=9)
    assert found.a == "3 graphs"
    by_name = queries.compare(store, "high", [g.graph_id for g in sets["low"][1:]], n_resamples=9)
    assert by_name.n_graphs == (4, 4)


def test_what_cannot_be_compared_is_explained(filled):
    store, sets = filled
    slug, other = sets["high"][0].slug, sets["llama"][0].slug
    llama, gpt2 = sets["llama"][0].transcoder_id, sets["high"][0].transcoder_id
    cases = [
        (("high", "llama"), {}, QueryError, (llama, gpt2)),
        ((slug, other), {}, QueryError, (llama, gpt2)),
        (("high", "empty"), {}, QueryError, ("'empty' holds no graph",)),
        (("high", "one"), {}, QueryError, ("every graph of 'one' is in 'high'",)),
        (("low", "one"), {}, QueryError, ("every graph of 'one' is in 'low'",)),
        ((["gpt2_clt_residmid-0.78"], "low"), {}, QueryError, ("has one graph",)),
        (("within", "low"), {}, QueryError, ("has one graph of its own",)),
        (("high", "high"), {}, QueryError, ("every graph",)),
        ((slug, slug), {}, QueryError, ("same graph",)),
        ((slug, "low"), {}, QueryError, ("is a graph and 'low' a prompt set",)),
        (("hihg", "low"), {}, NotFoundError, ('Did you mean "high"',)),
        ((slug, slug + "x"), {}, NotFoundError, (slug,)),
        (("high", "low"), {"permutations": 5}, QueryError, ('"n_permutations"',)),
        (("high", "low"), {"n_permutations": "9"}, QueryError, ("Give a whole number",)),
        (("high", "low"), {"within": "template"}, QueryError, ("no graph has a value",)),
        ((slug, sets["low"][0].slug), {"positions": "aligned"}, QueryError, ('"align"',)),
    ]
    for names, given, kind, parts in cases:
        with pytest.raises(kind) as caught:
            queries.compare(store, *names, **given)
        for part in parts:
            assert part in str(caught.value), (names, str(caught.value))


def test_strata_from_a_mapping(filled):
    store, sets = filled
    graphs = sets["high"][1:] + sets["low"]
    kinds = {graph.graph_id: "even" if k % 2 else "odd" for k, graph in enumerate(graphs)}
    found = queries.compare(
        store,
        "high",
        "low",
        within=kinds,
        n_permutations=99,
        n_resamples=9,
        strength="mann-whitney",
    )
    assert "same given group" in found.method
    # Of 2 × C(4, 1) × C(4, 2) labellings every one is tried, so p is a multiple of 1/24.
    p = found.features["p_presence"].to_numpy() * 24
    assert p == pytest.approx(p.round())


# The published graphs ----------------------------------------------------------------------------


def test_real_graphs_agree_with_pandas(filled, real_graphs):
    """Distinct features and pairs, those of two and of all graphs, and Jaccard, from the files."""
    import json

    store, _ = filled
    files = [path for path in real_graphs if "clt-hp" in path.name]
    if not files:
        pytest.skip("no clt-hp graphs")
    features, pairs, ids = [], [], []
    for path in files:
        graph = graphstore.read_graph(path)
        store.write(graph, "published")
        ids.append(graph.graph_id)
        raw = json.loads(path.read_text())
        # From the file's own JSON, not through our reader.
        nodes = pd.DataFrame(raw["nodes"])
        nodes = nodes[nodes["feature_type"] == "cross layer transcoder"]
        name = {n: "/".join(n.split("_")[:2]) for n in nodes["node_id"]}
        links = pd.DataFrame(raw["links"])
        links = links[links["weight"] != 0]
        features.append(set(name.values()))
        inner = links[links["source"].isin(name) & links["target"].isin(name)]
        pairs.append(set(zip(inner["source"].map(name), inner["target"].map(name), strict=True)))
    for items, table, keys in (
        (features, queries.features_by_graph(store, "published"), ["feature_id"]),
        (pairs, queries.edges_by_graph(store, "published", 1), ["source", "target"]),
    ):
        counts = pd.Series([item for each in items for item in each]).value_counts()
        mine = table.groupby(keys).size()
        for least in (1, 2, len(files)):
            assert (mine >= least).sum() == (counts >= least).sum() > 0
        which = "features" if items is features else "edges"
        found = queries.similarity_matrix(store, "published", which).matrix
        for i, a in enumerate(items):
            for j, b in enumerate(items):
                assert found.loc[ids[i], ids[j]] == pytest.approx(len(a & b) / len(a | b))
