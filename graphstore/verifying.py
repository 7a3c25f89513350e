"""Checking a store against itself: every stored number is computed again from the stored edges.

Each graph is read back, solved again, and compared with what the database holds of it; then the
summaries across graphs are counted, so that nothing is there twice or left over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import neo4j
import numpy as np
import pandas as pd

from graphstore import dialect
from graphstore.circuits import check_circuit, read_circuit_record
from graphstore.claims import SILENCE_LIMIT
from graphstore.deleting import (
    drop_unknown_entries,
    interrupted,
    remove_interrupted,
    remove_strays,
    remove_unused_features,
    withdraw_summaries,
)
from graphstore.describing import all_descriptions, problem_of
from graphstore.metadata import described
from graphstore.reading import read_stored_graph
from graphstore.rows import EDGE_COLUMNS, GraphRows, edge_id
from graphstore.schema import KEYS, VAULT, schema_statements
from graphstore.weights_checks import check_weights, repair_weights
from graphstore.weights_deleting import interrupted_weights
from graphstore.writing import add_summaries
from tracer.errors import CircuitError

if TYPE_CHECKING:
    from graphstore.client import Client

__all__ = ["verify_store"]

# Stored and recomputed values are the same float64 arithmetic; sums of summaries were added in the
# order of writing, so they may differ in the last places.
_TOLERANCE: Final = 1e-9
_PAGE: Final = 20_000
_COMPLETE: Final = """
MATCH (g:Graph) WHERE g.complete = true RETURN g.graph_id AS id, g.gno AS gno ORDER BY gno
"""
_STILL_COMPLETE: Final = """
MATCH (g:Graph {graph_id: $graph_id}) WHERE g.complete = true RETURN g.graph_id AS id
"""
_INDEXED: Final = ("Graph", "Feature", "PromptSet", "FeatureEdge")


@dataclass(frozen=True)
class Problem:
    """One invariant that does not hold."""

    check: str
    id: str
    problem: str


def verify_store(
    store: Client, *, repair: bool = False, progress: Callable[[int, int], None] | None = None
) -> pd.DataFrame:
    """Check a store; see :meth:`graphstore.Store.verify`."""
    if repair:
        _repair(store)
    problems = list(_problems(store, progress))
    return pd.DataFrame(
        [(p.check, p.id, p.problem) for p in problems], columns=["check", "id", "problem"]
    )


def _repair(store: Client) -> None:
    for statement in schema_statements():
        store.change(statement)
    for graph_id in interrupted(store):
        remove_interrupted(store, graph_id, silent_for=SILENCE_LIMIT)
    repair_weights(store)
    remove_strays(store)
    remove_unused_features(store)
    for label in _INDEXED:
        if dialect.keys_not_found(store, label):
            dialect.rebuild_index(store, label)
    _repair_summaries(store)


def _repair_summaries(store: Client) -> None:
    """Make the summaries of graphs that disagree with them anew; drop entries of no graph."""
    broken = []
    for row in store.rows(_COMPLETE):
        graph = read_stored_graph(store, row["id"])
        known = {name: value for name, value in described(graph).items() if value not in (None, [])}
        if _differing(known, store.rows(_PROPERTIES, graph_id=row["id"])[0]["properties"]):
            store.change(_DESCRIBE, graph_id=row["id"], properties=known)
        if any(_check_summaries(store, GraphRows(graph))):
            broken.append(graph)

    def work(tx: neo4j.ManagedTransaction) -> None:
        for graph in broken:
            withdraw_summaries(tx, graph.graph_id)
        drop_unknown_entries(tx, [graph.graph_id for graph in broken])
        for graph in broken:
            add_summaries(tx, graph)

    store.transact(work, merges=True)


def _problems(store: Client, progress: Callable[[int, int], None] | None) -> Iterator[Problem]:
    yield from _check_schema(store)
    yield from _check_incomplete(store)
    yield from _check_keys(store)
    graphs = store.rows(_COMPLETE)
    for done, row in enumerate(graphs, start=1):
        problems = list(_check_graph(store, row["id"]))
        if problems and store.rows(_STILL_COMPLETE, graph_id=row["id"]):
            yield from problems  # else it was being deleted meanwhile
        if progress is not None:
            progress(done, len(graphs))
    yield from _check_totals(store)
    yield from _check_descriptions(store)
    yield from _check_circuits(store)
    yield from (Problem(*found) for found in check_weights(store))


# The whole store -------------------------------------------------------------------------------


def _check_schema(store: Client) -> Iterator[Problem]:
    found = {tuple(row["properties"]) + tuple(row["labels"]) for row in dialect.constraints(store)}
    for label, key in KEYS.items():
        if (key, label) not in found:
            yield Problem("schema", label, f"no uniqueness constraint on {key}; --repair makes it")


def _check_incomplete(store: Client) -> Iterator[Problem]:
    for graph_id in interrupted(store, silent_for=0):
        yield Problem(
            "incomplete",
            graph_id,
            "is being written, or its writer was interrupted; --repair removes it after ten "
            "minutes without a sign of life",
        )


_UNUSED: Final = """
MATCH (f:Feature)
WHERE f.label IS NULL AND f.statistics IS NULL
  AND NOT (f)<-[:INSTANCE_OF]-() AND NOT (f)<-[:HAS_FEATURE]-() AND NOT (f)-[:VIRTUAL]-()
  AND NOT (f)<-[:COVERS]-()
  AND NOT (f)<-[:INVOLVES]-()
RETURN f.feature_id AS id LIMIT 100
"""
_STRAY: Final = {
    "node of no graph": "MATCH (n:Node) WHERE NOT (n)<-[:CONTAINS]-() RETURN n.node_id AS id",
    "supernode of no graph": "MATCH (s:Supernode) OPTIONAL MATCH (g:Graph {graph_id: s.graph_id}) "
    "WITH s, count(g) AS c WHERE c = 0 RETURN s.supernode_id AS id",
    "feature whose id is not {transcoder}/{layer}/{index}": "MATCH (f:Feature) "
    "WHERE f.feature_id <> f.transcoder_id + '/' + toString(f.layer) + '/' + toString(f.index) "
    "RETURN f.feature_id AS id",
    "number used twice": "MATCH (g:Graph) WHERE g.complete = true "
    "WITH g.gno AS gno, collect(g.graph_id) AS ids WHERE size(ids) > 1 RETURN ids[0] AS id",
}


def _check_keys(store: Client) -> Iterator[Problem]:
    """Everything belongs somewhere, and every key finds what a scan finds."""
    for problem, text in _STRAY.items():
        for row in store.rows(text):
            yield Problem("stray", row["id"], problem)
    # Somebody who writes makes features first.
    if not interrupted(store, silent_for=0) and not interrupted_weights(store, silent_for=0):
        for row in store.rows(_UNUSED):
            yield Problem("stray", row["id"], "feature that nothing uses; --repair removes it")
    for label in _INDEXED:
        for value in dialect.keys_not_found(store, label):
            problem = f"{label} is stored, but its index does not find it; --repair makes it anew"
            yield Problem("index", value, problem)


def _check_descriptions(store: Client) -> Iterator[Problem]:
    """Figures of features are shares and finite numbers, and their texts can be read."""
    for row in all_descriptions(store):
        problem = problem_of(row)
        if problem is not None:
            yield Problem("feature", row["feature_id"], f"its description {problem}")


_TOTALS: Final = """
MATCH (x:FeatureEdge)
WITH x.edge_id AS id, x.n_graphs AS n, x.graphs AS graphs, x.shares AS shares,
     x.weights AS weights, coalesce(x.influences, []) AS influences, x.n_positive AS positive,
     x.sum_share AS sum_share, x.sum_weight AS sum_weight, x.sum_influence AS sum_influence
WITH id, n, sum_share, sum_weight, sum_influence, positive,
     size(graphs) AS g, size(shares) AS s, size(weights) AS w, size(influences) AS f,
     size([y IN weights WHERE y > 0]) AS all_positive,
     reduce(z = 0.0, y IN shares | z + y) AS all_shares,
     reduce(z = 0.0, y IN weights | z + y) AS all_weights,
     reduce(z = 0.0, y IN influences | z + y) AS all_influences
WITH id, g, n = g AND g = s AND g = w AND g = f AND g > 0 AND positive = all_positive
     AND abs(sum_share - all_shares) <= $tolerance * (1.0 + abs(all_shares))
     AND abs(sum_weight - all_weights) <= $tolerance * (1.0 + abs(all_weights))
     AND abs(sum_influence - all_influences) <= $tolerance * (1.0 + abs(all_influences)) AS sound
RETURN sum(g) AS entries, [id IN collect(CASE WHEN sound THEN null ELSE id END) | id] AS unsound
"""
_ENTRIES: Final = """
MATCH (g:Graph)-[h:HAS_EDGE]->(:FeatureEdge) RETURN count(h) AS n
"""
_COUNTER: Final = """
MATCH (v:Vault {vault_id: $vault})
OPTIONAL MATCH (g:Graph) WHERE g.complete = true
RETURN v.next_gno AS next, coalesce(max(g.gno), -1) AS highest
"""


def _check_totals(store: Client) -> Iterator[Problem]:
    """Summaries hold nothing beyond what the graphs, checked one by one, account for."""
    totals = store.rows(_TOTALS, tolerance=_TOLERANCE)[0]
    entries = store.rows(_ENTRIES)[0]["n"]
    if totals["entries"] != entries:  # a graph may have come between the two questions
        totals, entries = store.rows(_TOTALS, tolerance=_TOLERANCE)[0], store.rows(_ENTRIES)[0]["n"]
    if totals["entries"] != entries:
        yield Problem(
            "summary",
            "FeatureEdge",
            f"lists hold {totals['entries']} entries, graphs account for {entries}",
        )
    for name in totals["unsound"]:
        yield Problem("summary", name, "FeatureEdge whose lists, sums and count disagree")
    counter = store.rows(_COUNTER, vault=VAULT)[0]
    if counter["next"] <= counter["highest"]:
        yield Problem(
            "summary", VAULT, f"next number {counter['next']}, but {counter['highest']} is used"
        )


def _check_circuits(store: Client) -> Iterator[Problem]:
    """Kept circuits have the features and edges that they count."""
    for row in store.rows("MATCH (c:Circuit) RETURN c.name AS name, properties(c) AS properties"):
        try:
            record = read_circuit_record(store, row["name"])
            check_circuit(record)
        except (CircuitError, ValueError) as error:
            problem = error.what if isinstance(error, CircuitError) else "its edges are damaged"
            yield Problem("circuit", row["name"], problem)
            continue
        for part in ("features", "edges"):
            if (found := len(record[part])) != (told := row["properties"].get(f"n_{part}")):
                yield Problem("circuit", row["name"], f"has {found} {part}, its record says {told}")


# One graph -------------------------------------------------------------------------------------

_LINKS: Final = """
MATCH (g:Graph {graph_id: $graph_id})-[:CONTAINS]->(n:Node)-[:INSTANCE_OF]->(f:Feature)
RETURN collect(n.ord) AS ords, collect(f.feature_id) AS features
"""
_HAS_FEATURE: Final = """
MATCH (:Graph {graph_id: $graph_id})-[h:HAS_FEATURE]->(f:Feature)
RETURN collect(f.feature_id) AS ids, collect(h.influence) AS influence
"""
_HAS_EDGE: Final = """
MATCH (g:Graph {graph_id: $graph_id})-[h:HAS_EDGE]->(x:FeatureEdge)
WITH g.gno AS gno, h, x.edge_id AS id, x.graphs AS graphs, x.shares AS shares,
     x.weights AS weights, coalesce(x.influences, []) AS influences
WITH h, id, shares, weights, influences,
     [i IN range(0, size(graphs) - 1) WHERE graphs[i] = gno] AS at
RETURN id, h.share AS share, h.weight AS weight, coalesce(h.influence, -1.0) AS influence,
       size(at) AS times, shares[at[0]] AS listed_share, weights[at[0]] AS listed_weight,
       coalesce(influences[at[0]], -1.0) AS listed_influence
"""
_NODES: Final = """
MATCH (:Graph {graph_id: $graph_id})-[:CONTAINS]->(n:Node)
WHERE n.ord >= $low AND n.ord < $high
WITH n ORDER BY n.ord RETURN collect(properties(n)) AS nodes
"""
_EDGES: Final = """
MATCH (:Graph {graph_id: $graph_id})-[:CONTAINS]->(t:Node)
WHERE t.ord >= $low AND t.ord < $high
MATCH (s:Node)-[r:CONTRIBUTES]->(t)
RETURN collect([t.ord, s.ord, r.weight, r.share, r.score, r.share_full, r.residual, r.attention])
       AS edges
"""
_DESCRIBE: Final = "MATCH (g:Graph {graph_id: $graph_id}) SET g += $properties"
_PROPERTIES: Final = "MATCH (g:Graph {graph_id: $graph_id}) RETURN properties(g) AS properties"


def _check_graph(store: Client, graph_id: str) -> Iterator[Problem]:
    """Compare what is stored of one graph with what its edges say now."""
    try:
        graph = read_stored_graph(store, graph_id)
    except CircuitError as error:
        yield Problem("graph", graph_id, error.what)
        return
    rows = GraphRows(graph)
    stored = store.rows(_PROPERTIES, graph_id=graph_id)[0]["properties"]
    for name in _differing(rows.properties, stored):
        yield Problem("scores", graph_id, f"property {name} differs from the edges' {name}")
    yield from _check_nodes(store, rows)
    yield from _check_edges(store, rows)
    yield from _check_summaries(store, rows)


def _check_nodes(store: Client, rows: GraphRows) -> Iterator[Problem]:
    graph_id = rows.graph.graph_id
    for low in range(0, rows.graph.n_nodes, _PAGE):
        page = store.rows(_NODES, graph_id=graph_id, low=low, high=low + _PAGE)[0]["nodes"]
        wanted = rows.nodes[low : low + _PAGE]
        if len(page) != len(wanted):
            yield Problem("node", graph_id, f"{len(page)} nodes, its record says {len(wanted)}")
            return
        for expected, found in zip(wanted, page, strict=True):
            for name in _differing(expected, found):
                yield Problem("node", expected["node_id"], f"property {name} differs")
    links = store.rows(_LINKS, graph_id=graph_id)[0]
    expected_links = {i: f for i, f in enumerate(rows.graph.feature_ids) if f is not None}
    if dict(zip(links["ords"], links["features"], strict=True)) != expected_links or (
        len(links["ords"]) != len(expected_links)
    ):
        yield Problem(
            "node", graph_id, "INSTANCE_OF does not link each feature node to its feature"
        )


def _check_edges(store: Client, rows: GraphRows) -> Iterator[Problem]:
    graph_id = rows.graph.graph_id
    sources, targets, columns = rows.edges
    expected = pd.DataFrame({"t": targets, "s": sources})
    for name, column in zip(EDGE_COLUMNS, columns, strict=True):
        expected[name] = np.nan if column is None else column
    found = []
    step = max(1, _PAGE * rows.graph.n_nodes // max(rows.graph.n_edges, 1))
    for low in range(0, rows.graph.n_nodes, step):
        page = store.rows(_EDGES, graph_id=graph_id, low=low, high=low + step)[0]["edges"]
        found.extend(page)
    table = pd.DataFrame(found, columns=["t", "s", *EDGE_COLUMNS])
    table = table.sort_values(["t", "s"], ignore_index=True)
    expected = expected.sort_values(["t", "s"], ignore_index=True)
    if len(table) != len(expected) or not np.array_equal(table[["t", "s"]], expected[["t", "s"]]):
        yield Problem("edge", graph_id, "edges differ from those of the matrix")
        return
    for name in EDGE_COLUMNS:
        mine = table[name].to_numpy(dtype=np.float64, na_value=np.nan)
        same = np.isclose(mine, expected[name], rtol=_TOLERANCE, atol=1e-15, equal_nan=True)
        if not same.all():
            yield Problem("edge", graph_id, f"property {name} differs on {(~same).sum()} edges")


def _check_summaries(store: Client, rows: GraphRows) -> Iterator[Problem]:
    graph_id = rows.graph.graph_id
    stored = store.rows(_HAS_FEATURE, graph_id=graph_id)[0]
    found = sorted(zip(stored["ids"], stored["influence"], strict=False))
    features = rows.features[["feature_id", "influence"]].sort_values("feature_id")
    same_ids = [name for name, _ in found] == features["feature_id"].tolist()
    if (
        not same_ids
        or len(stored["ids"]) != len(found)
        or not np.allclose(
            [value for _, value in found], features["influence"], rtol=_TOLERANCE, atol=1e-15
        )
    ):
        yield Problem("summary", graph_id, "HAS_FEATURE differs from the graph's features")
    listed = {row["id"]: row for row in store.rows(_HAS_EDGE, graph_id=graph_id)}
    pairs = rows.feature_edges
    expected = {
        edge_id(source, target): values for source, target, *values in pairs.itertuples(index=False)
    }
    if set(listed) != set(expected):
        yield Problem("summary", graph_id, "HAS_EDGE differs from the graph's feature pairs")
        return
    for name, wanted in expected.items():
        row = listed[name]
        values = [row[each] for each in ("share", "weight", "influence")]
        values += [row[f"listed_{each}"] for each in ("share", "weight", "influence")]
        if row["times"] != 1 or not np.allclose(values, wanted * 2, rtol=_TOLERANCE, atol=1e-15):
            yield Problem("summary", name, f"entry of graph {graph_id} differs from its edges")


def _differing(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Names of the expected properties that are stored otherwise, or not at all."""
    return [name for name, value in expected.items() if not _same(value, found.get(name))]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float | int):
        return bool(np.isclose(a, b, rtol=_TOLERANCE, atol=1e-15))
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(_same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
