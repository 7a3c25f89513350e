"""The store on every engine: what goes in comes out, once, whole, and with its numbers right."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pytest

import graphstore
from tracer import AttributionGraph, Supernode, prune
from tracer.errors import NotFoundError, QueryError, SchemaVersionError, StoreError
from tracer.influence import Flow


@pytest.fixture(scope="session")
def graphs(golden) -> list[AttributionGraph]:
    """Three graphs that share features: one full, two pruned differently, with extras."""
    full, _ = golden("gpt2_plt_ln2")
    pruned = prune(full, 0.95, 0.995)
    small = prune(full, 0.9, 0.98)
    rows = np.flatnonzero(small.is_feature)[:3].tolist()
    nodes = small.nodes.copy()
    nodes.loc[rows[0], "label"] = 'says "Texas"; $x^2$ — ü'
    small = small.replace(
        nodes=nodes,
        supernodes=[Supernode("first", tuple(rows), "ada"), Supernode("second", (rows[0],))],
        pinned=rows[:2],
        created_at="2026-01-02T03:04:05+00:00",
        source={"format": "made", "metadata": {"deep": [1, None, {"a": "b"}]}},
        model_info={"family": "gpt2", "n_layers": 3},
    )
    return [full, pruned, small]


def with_parts(graph: AttributionGraph) -> AttributionGraph:
    """Split every weight of a graph into two parts that sum to it."""
    part = graph.adjacency.copy()
    part.data = part.data * np.linspace(0, 1, len(part.data), dtype=part.dtype)
    return graph.replace(residual=part, attention=graph.adjacency - part)


def test_reads_back_what_was_written(any_store, graphs):
    for graph in [*graphs, with_parts(graphs[1]).replace(graph_id="0123456789abcdef")]:
        assert any_store.write(graph)
        back = any_store.read(graph.graph_id)
        assert back.differences(graph) == []
        assert back.adjacency.dtype == graph.adjacency.dtype
    assert any_store.verify().empty


def test_real_graphs_read_back_equal_and_verified(any_store, real_graphs):
    graphs = [graphstore.read_graph(path) for path in real_graphs]
    assert any_store.write_many(graphs, "real") == len(graphs)
    for graph in graphs:
        assert any_store.read(graph.graph_id).differences(graph) == []
    assert any_store.verify().empty
    assert any_store.sets().to_dict("records") == [
        {"name": "real", "description": None, "graphs": len(graphs)}
    ]


def test_every_node_and_edge_carries_what_the_sparse_solve_knows(any_store, graphs):
    graph = graphs[1]
    any_store.write(graph)
    flow = Flow(graph)
    nodes = any_store.cypher(
        "MATCH (:Graph {graph_id: $g})-[:CONTAINS]->(n) RETURN n.ord AS ord, n.influence AS i, "
        "n.error_fraction AS e, n.influence_by_length AS l, n.influence_full AS f ORDER BY ord",
        g=graph.graph_id,
    )
    # The same float64 numbers, sent and stored as float64.
    np.testing.assert_array_equal(nodes["i"], flow.influence)
    np.testing.assert_array_equal(nodes["e"], flow.error_fraction)
    np.testing.assert_array_equal(nodes["f"], graph.nodes["influence_full"])
    np.testing.assert_allclose(
        [sum(parts or []) for parts in nodes["l"]], flow.influence, rtol=1e-12
    )
    edges = any_store.cypher(
        "MATCH (:Graph {graph_id: $g})-[:CONTAINS]->(t)<-[r:CONTRIBUTES]-(s) "
        "RETURN t.ord AS t, s.ord AS s, r.weight AS w, r.share AS share, r.score AS score, "
        "r.share_full AS full",
        g=graph.graph_id,
    )
    dense = graph.adjacency.toarray().astype(np.float64)
    share = np.abs(dense) / np.maximum(np.abs(dense).sum(axis=1, keepdims=True), 1e-300)
    at = (edges["t"].to_numpy(), edges["s"].to_numpy())
    np.testing.assert_array_equal(edges["w"], dense[at])
    np.testing.assert_allclose(edges["share"], share[at], rtol=1e-12)
    target = (flow.influence + graph.logit_weights)[at[0]]
    np.testing.assert_allclose(edges["score"], share[at] * target, rtol=1e-12)
    full = graphs[0].adjacency.toarray().astype(np.float64)
    share_full = np.abs(full) / np.maximum(np.abs(full).sum(axis=1, keepdims=True), 1e-300)
    row_of = {key: row for row, key in enumerate(graphs[0].keys)}
    rows = np.array([row_of[key] for key in graph.keys])
    np.testing.assert_allclose(edges["full"], share_full[rows[at[0]], rows[at[1]]], rtol=1e-9)


def test_feature_edges_are_the_mean_shares_of_feature_pairs(any_store, graphs):
    any_store.write_many(graphs)
    found = any_store.cypher(
        "MATCH (x:FeatureEdge) RETURN x.source AS s, x.target AS t, x.n_graphs AS n, "
        "x.graphs AS graphs, x.shares AS shares, x.weights AS weights"
    )
    gno = dict(any_store.cypher("MATCH (g:Graph) RETURN g.graph_id AS id, g.gno AS gno").to_numpy())
    # The definition, written out over dense rows and Python dictionaries.
    expected: dict[tuple[str, str], dict[int, tuple[float, float]]] = {}
    for graph in graphs:
        weight = graph.adjacency.toarray().astype(np.float64)
        share = np.abs(weight) / np.maximum(np.abs(weight).sum(axis=1, keepdims=True), 1e-300)
        ids = graph.feature_ids
        for s in np.flatnonzero(graph.is_feature):
            for t in np.flatnonzero(weight[:, s]):
                if ids[t] is not None:
                    count = sum(other == ids[t] for other in ids)
                    entry = expected.setdefault((ids[s], ids[t]), {})
                    old = entry.get(gno[graph.graph_id], (0.0, 0.0))
                    entry[gno[graph.graph_id]] = (
                        old[0] + share[t, s] / count,
                        old[1] + weight[t, s],
                    )
    assert len(found) == len(expected)
    for row in found.itertuples():
        entry = expected[row.s, row.t]
        assert row.n == len(entry)
        assert sorted(row.graphs) == sorted(entry)
        for number, share_, weight_ in zip(row.graphs, row.shares, row.weights, strict=True):
            assert (share_, weight_) == pytest.approx(entry[number], rel=1e-9)
            assert 0 < share_ <= 1 + 1e-12


def test_writing_again_adds_only_sets_and_labels(any_store, graphs):
    graph = graphs[2]
    assert any_store.write(graph, "one")
    before = any_store.cypher("MATCH (n) RETURN count(n) AS n")["n"][0]
    unlabelled = graph.nodes.loc[graph.is_feature & graph.nodes["label"].isna().to_numpy()].index[0]
    nodes = graph.nodes.copy()
    nodes.loc[unlabelled, "label"] = "new"
    labelled = int(np.flatnonzero(graph.nodes["label"].notna())[0])
    nodes.loc[labelled, "label"] = "other"
    assert not any_store.write(graph.replace(nodes=nodes, slug="renamed"), "two")
    assert any_store.cypher("MATCH (n) RETURN count(n) AS n")["n"][0] == before + 1  # the set
    labels = any_store.cypher(
        "MATCH (f:Feature) WHERE f.label IS NOT NULL RETURN f.feature_id AS id, f.label AS label"
    )
    assert dict(labels.to_numpy()) == {
        graph.feature_ids[unlabelled]: "new",
        graph.feature_ids[labelled]: graph.nodes.loc[labelled, "label"],
    }
    assert any_store.graphs()["prompt_sets"].tolist() == [["one", "two"]]
    assert any_store.read(graph.graph_id).slug == graph.slug


def test_delete_removes_what_only_that_graph_used(any_store, graphs):
    full, pruned, small = graphs
    any_store.write(full, "set")
    state = inventory(any_store)
    any_store.write(small, "other")
    any_store.delete(small.graph_id)
    after = inventory(any_store)
    assert after == {**state, "PromptSet": state["PromptSet"] + 1}
    assert any_store.verify().empty
    any_store.delete(full.graph_id)
    left = inventory(any_store)
    # The label stays with its feature, and sets stay though empty.
    assert left == {"Feature": 1, "PromptSet": 2, "Vault": 1, "Model": 1, "Transcoder": 1}
    assert any_store.verify().empty
    with pytest.raises(NotFoundError, match=full.graph_id):
        any_store.read(full.graph_id)
    assert any_store.write(pruned)  # numbers are not used again
    assert any_store.cypher("MATCH (g:Graph) RETURN g.gno AS n")["n"].tolist() == [2]
    assert any_store.verify().empty


def inventory(store) -> dict[str, int]:
    """How many nodes of each label there are."""
    found = store.cypher("MATCH (n) UNWIND labels(n) AS l RETURN l, count(*) AS c")
    return dict(zip(found["l"], found["c"], strict=True))


def test_group_makes_a_supernode_that_reads_back(any_store, graphs):
    graph = graphs[1]
    any_store.write(graph)
    keys = [graph.keys[row] for row in np.flatnonzero(graph.is_feature)[:2]]
    any_store.group(graph.graph_id, "pair", keys, author="ada")
    rows = tuple(sorted(graph.row(key) for key in keys))
    assert any_store.read(graph.graph_id).supernodes == (Supernode("pair", rows, "ada"),)
    with pytest.raises(StoreError, match="has a supernode 'pair' already"):
        any_store.group(graph.graph_id, "pair", keys)
    with pytest.raises(NotFoundError, match=r"no nodes 'feature/0/999999/1'.*Did you mean"):
        any_store.group(graph.graph_id, "x", ["feature/0/999999/1"])
    assert any_store.verify().empty


def test_labels_from_a_table_keep_their_source(any_store, graphs):
    graph = graphs[1]
    any_store.write(graph)
    feature = next(i for i in graph.feature_ids if i)
    unseen = f"{graph.transcoder_id}/0/12345"
    table = pd.DataFrame({"feature_id": [feature, unseen], "label": ["one", "two"]})
    assert any_store.label(table, "labels.csv") == 2
    found = any_store.cypher(
        "MATCH (f:Feature) WHERE f.label IS NOT NULL "
        "RETURN f.feature_id AS id, f.label AS label, f.label_source AS source ORDER BY label"
    )
    assert found.to_numpy().tolist() == [
        [feature, "one", "labels.csv"],
        [unseen, "two", "labels.csv"],
    ]
    with pytest.raises(StoreError, match="'nonsense' is no feature id"):
        any_store.label(pd.DataFrame({"feature_id": ["nonsense"], "label": ["x"]}), "s")
    assert any_store.verify().empty


@pytest.mark.parametrize("feature_id", ["t/007/1", "t/1/01", "t/٣/1", "t/1/²", "/1/2", "t/-1/2", 7])
def test_a_feature_has_one_id_only(any_store, feature_id):
    table = pd.DataFrame({"feature_id": ["t/1/2", feature_id], "label": ["a", "b"]})
    with pytest.raises(StoreError, match=r"is no feature id.*without leading zeros"):
        any_store.label(table, "s")
    assert inventory(any_store) == {"Vault": 1}  # no label is stored then


def test_labels_go_in_batches_that_lock_out_deletes(any_store, monkeypatch):
    """Batches of bounded size, each under the vault's lock, tried again where a merge lost."""
    from graphstore import grouping

    monkeypatch.setattr(grouping, "LABEL_ROWS", 10)
    transact, merging = any_store.transact, []

    def watched(work, *, merges=False):
        merging.append(merges)
        return transact(work, merges=merges)

    monkeypatch.setattr(any_store, "transact", watched)
    claims = "MATCH (v:Vault) RETURN coalesce(v.claims, 0) AS n"
    before = any_store.rows(claims)[0]["n"]
    table = pd.DataFrame({"feature_id": [f"t/0/{k}" for k in range(25)], "label": ["x"] * 25})
    assert any_store.label(table, "s") == 25
    assert merging == [True] * 3
    assert any_store.rows(claims)[0]["n"] == before + 3
    assert inventory(any_store)["Feature"] == 25


def test_two_that_label_the_same_features_at_once(any_target):
    table = pd.DataFrame({"feature_id": [f"t/0/{k}" for k in range(2000)], "label": ["x"] * 2000})

    def label(_: int) -> int:
        with graphstore.connect(**any_target) as store:
            return store.label(table, "s")

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(label, range(4))) == [2000] * 4
    with graphstore.connect(**any_target) as store:
        assert inventory(store)["Feature"] == 2000
        assert store.verify().empty


def test_reading_takes_names_and_deleting_whole_ids(any_store, graphs):
    graph = graphs[2].replace(slug="night")
    any_store.write(graph)
    key = graph.keys[int(np.flatnonzero(graph.is_feature)[0])]
    for name in ("night", graph.graph_id[:8]):
        assert any_store.read(name).graph_id == graph.graph_id
        any_store.group(name, f"of {name}", [key])
        with pytest.raises(NotFoundError, match=rf"whole ids only.*Name it as {graph.graph_id}"):
            any_store.delete(name)
    assert len(any_store.graphs()) == 1
    any_store.delete(graph.graph_id)
    assert any_store.graphs().empty


def test_find_by_id_prefix_and_slug(any_store, graphs):
    for graph in graphs:
        any_store.write(graph.replace(slug=f"slug-{graph.graph_id[:3]}"))
    graph = graphs[0]
    for name in (graph.graph_id, graph.graph_id[:8], f"slug-{graph.graph_id[:3]}"):
        assert any_store.find(name) == graph.graph_id
    with pytest.raises(NotFoundError, match="Did you mean"):
        any_store.find(f"slig-{graph.graph_id[:3]}")


@pytest.mark.parametrize(
    "text",
    [
        "CREATE (n:Feature {feature_id: 'x'})",
        "MATCH (g:Graph) DETACH DELETE g",
        "  // comment\n CREATE INDEX surprise FOR (n:Node) ON (n.token)",
        "DROP CONSTRAINT graph_key",
        "EXPLAIN CREATE INDEX surprise FOR (n:Node) ON (n.token)",
        "MATCH (g:Graph) CALL { WITH g SET g.slug = 'x' } RETURN 1 AS one",
        "MATCH (g:Graph) CALL (g) { SET g.slug = 'x' } IN TRANSACTIONS RETURN 1 AS one",
    ],
)
def test_cypher_reads_only_unless_told(any_store, graphs, text):
    any_store.write(graphs[2])
    before = inventory(any_store), any_store.cypher("SHOW INDEXES")["name"].tolist()
    if text.startswith("EXPLAIN") and any_store.engine == "neo4j":
        any_store.cypher(text)  # explains, and no more
    else:
        with pytest.raises(QueryError):
            any_store.cypher(text)
    assert any_store.graphs()["slug"].tolist() == [graphs[2].slug]
    assert (inventory(any_store), any_store.cypher("SHOW INDEXES")["name"].tolist()) == before


@pytest.mark.parametrize(
    "text",
    [
        "MATCH (n:Node) RETURN n.set AS x LIMIT 1",
        "RETURN 'CREATE (n)' AS x // DELETE",
        "MATCH (n:Graph) WHERE n.created_at IS NULL RETURN count(n) AS x",
        "RETURN 1 AS `set`",
        "MATCH (s)-[:GROUPS]->() RETURN count(s) AS x",
    ],
)
def test_cypher_that_only_looks_like_writing_runs(any_store, graphs, text):
    any_store.write(graphs[2])
    assert len(any_store.cypher(text)) == 1


def test_cypher_takes_parameters_and_returns_columns(any_store, graphs):
    any_store.write(graphs[2])
    hostile = "x'}) DETACH DELETE n //"
    found = any_store.cypher("RETURN $value AS value, [1, 2] AS list", value=hostile)
    assert found.to_dict("records") == [{"value": hostile, "list": [1, 2]}]
    with pytest.raises(QueryError, match="query: "):
        any_store.cypher("MATCH (n RETURN n")
    names = {"write": 1, "text": 2, "parameters": 3, "self": 4, "name": 5}
    text = "RETURN [$write, $text, $parameters, $self, $name, $more] AS x"
    assert any_store.cypher(text, parameters=names, more=6)["x"].tolist() == [[1, 2, 3, 4, 5, 6]]
    with pytest.raises(QueryError, match="'more' is given in parameters and as a keyword"):
        any_store.cypher(text, parameters={**names, "more": 1}, more=6)
    any_store.cypher("CREATE (:PromptSet {name: $n})", write=True, n="made")
    assert "made" in any_store.sets()["name"].tolist()


def test_cypher_without_rows(any_store):
    """The embedded engine does not say what columns there would have been; Neo4j does."""
    found = any_store.cypher("MATCH (g:Graph) RETURN g.slug AS slug")
    assert len(found) == 0
    assert list(found.columns) == (["slug"] if any_store.engine == "neo4j" else [])


def test_unknown_names_suggest_the_nearest(any_store, graphs):
    any_store.write(graphs[2], "capitals")
    with pytest.raises(NotFoundError, match='Did you mean "capitals"'):
        any_store.graphs("capitol")
    with pytest.raises(NotFoundError, match="no graph 'zzzz' is stored"):
        any_store.delete("zzzz")


def test_features_need_a_transcoder(any_store, graphs):
    with pytest.raises(StoreError, match="does not say which transcoder"):
        any_store.write(graphs[2].replace(transcoder_id=None, graph_id=None))
    assert any_store.graphs().empty


@pytest.mark.parametrize(("version", "remedy"), [(99, "Upgrade circuitbase"), (0, "export --all")])
def test_a_store_of_another_version_is_refused(any_target, version, remedy):
    with graphstore.connect(**any_target) as store:
        store.change("MATCH (v:Vault) SET v.schema_version = $v", v=version)
    with pytest.raises(SchemaVersionError, match=remedy):
        graphstore.connect(**any_target)


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        ("MATCH (n:Node {kind: 'feature'}) WITH n LIMIT 1 SET n.influence = 0.5", "node"),
        ("MATCH ()-[r:CONTRIBUTES]->() WITH r LIMIT 1 SET r.share = 2.0", "edge"),
        ("MATCH ()-[r:CONTRIBUTES]->() WITH r LIMIT 1 DELETE r", "graph"),
        ("MATCH ()-[r:HAS_FEATURE]->() WITH r LIMIT 1 DELETE r", "summary"),
        ("MATCH ()-[r:HAS_EDGE]->() WITH r LIMIT 1 DELETE r", "summary"),
        ("MATCH ()-[r:HAS_FEATURE]->() WITH r LIMIT 1 SET r.influence = 2.0", "summary"),
        ("MATCH (x:FeatureEdge) WITH x LIMIT 1 SET x.shares = [9.0]", "summary"),
        ("MATCH (x:FeatureEdge) WITH x LIMIT 1 SET x.n_graphs = 7", "summary"),
        (
            "CREATE (:FeatureEdge {edge_id: 'a -> b', n_graphs: 1, graphs: [0], shares: [0.1], "
            "weights: [0.1], sum_share: 0.1, sum_weight: 0.1})",
            "summary",
        ),
        ("MATCH (g:Graph) SET g.completeness_as_stored = 0.123", "scores"),
        ("CREATE (:Node {node_id: 'stray'})", "stray"),
        (
            "CREATE (:Feature {feature_id: 't/1/2', transcoder_id: 't', layer: 1, index: 2})",
            "stray",
        ),
        ("MATCH (v:Vault) SET v.next_gno = 0", "summary"),
        (
            "CREATE (:Graph {graph_id: 'feedfeedfeedfeed', complete: false, heartbeat: 0})",
            "incomplete",
        ),
        ("MATCH ()-[r:INSTANCE_OF]->() WITH r LIMIT 1 DELETE r", "node"),
    ],
)
def test_verify_names_each_kind_of_damage(any_store, graphs, damage, check):
    any_store.write(graphs[2])
    assert any_store.verify().empty
    any_store.change(damage)
    assert check in set(any_store.verify()["check"])


def test_verify_changes_nothing_and_repair_mends_an_interrupted_write(any_store, graphs):
    any_store.write(graphs[2])
    before = inventory(any_store)
    any_store.change(
        "CREATE (g:Graph {graph_id: 'feedfeedfeedfeed', complete: false, heartbeat: 1})"
        "-[:CONTAINS]->(n:Node {node_id: 'feedfeedfeedfeed/feature/0/1/1', ord: 0})"
        "-[:INSTANCE_OF]->(:Feature {feature_id: 't/0/1', transcoder_id: 't', layer: 0, index: 1})"
    )
    broken = inventory(any_store)
    assert not any_store.verify().empty
    assert inventory(any_store) == broken
    assert any_store.verify(repair=True).empty
    assert inventory(any_store) == before


@pytest.mark.parametrize(
    "damage",
    [
        "MATCH ()-[r:HAS_FEATURE]->() WITH r LIMIT 1 DELETE r",
        "MATCH ()-[r:HAS_EDGE]->() WITH r LIMIT 1 DELETE r",
        "MATCH (x:FeatureEdge) WITH x LIMIT 1 SET x.shares = [9.0]",
        "MATCH (x:FeatureEdge) WITH x LIMIT 1 SET x.n_graphs = 7",
        "MATCH (x:FeatureEdge) WITH x LIMIT 1 SET x.graphs = x.graphs + 99, "
        "x.shares = x.shares + 0.5, x.weights = x.weights + 0.5, x.n_graphs = x.n_graphs + 1",
        "DROP CONSTRAINT feature_key",
    ],
)
def test_repair_makes_what_is_derived_anew(any_store, graphs, damage):
    any_store.write_many(graphs[1:])
    any_store.change(damage)
    assert not any_store.verify().empty
    assert any_store.verify(repair=True).empty
    for graph in graphs[1:]:
        assert any_store.read(graph.graph_id) == graph


def test_repair_leaves_a_writer_that_is_alive(any_store, graphs):
    any_store.write(graphs[2])
    any_store.change(
        "CREATE (:Graph {graph_id: 'feedfeedfeedfeed', complete: false, writer: 'w', "
        "heartbeat: timestamp()})"
    )
    assert set(any_store.verify(repair=True)["check"]) == {"incomplete"}


def test_a_stored_graph_can_join_a_set(any_store, graphs):
    any_store.write(graphs[0])
    any_store.include(graphs[0].graph_id, "late")
    any_store.include(graphs[0].graph_id, "late")
    sets = any_store.sets().set_index("name")
    assert sets.loc["late", "graphs"] == 1
    with pytest.raises(NotFoundError, match="no graph"):
        any_store.include("0" * 16, "late")
