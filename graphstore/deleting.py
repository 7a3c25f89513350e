"""Removing graphs: out of every summary first, in one transaction; then the rest, in batches.

After the first transaction the graph is incomplete, so no reader sees a part of it; a kill in
between leaves what an interrupted writer leaves, and is cleaned up the same way.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import neo4j

from graphstore.claims import SILENCE_LIMIT, Claim, lock_vault
from graphstore.schema import VAULT

if TYPE_CHECKING:
    from graphstore.client import Client

__all__ = [
    "clear",
    "drop_unknown_entries",
    "drop_unused",
    "interrupted",
    "remove_graph",
    "remove_interrupted",
    "remove_left_features",
    "remove_strays",
    "remove_unused_features",
    "withdraw_summaries",
]

_BATCH: Final = 5_000

_WITHDRAW_EDGES: Final = """
MATCH (g:Graph {graph_id: $graph_id})-[:HAS_EDGE]->(x:FeatureEdge)
WITH x, x.graphs AS graphs, x.shares AS shares, x.weights AS weights,
     x.influences AS influences, g.gno AS gno
WITH x, [i IN range(0, size(graphs) - 1) WHERE graphs[i] <> gno] AS kept,
     graphs, shares, weights, influences
WITH x, [i IN kept | graphs[i]] AS graphs, [i IN kept | shares[i]] AS shares,
     [i IN kept | weights[i]] AS weights, [i IN kept | coalesce(influences[i], -1.0)] AS influences
SET x.graphs = graphs, x.shares = shares, x.weights = weights, x.influences = influences,
    x.n_graphs = size(graphs), x.n_positive = size([y IN weights WHERE y > 0]),
    x.sum_share = reduce(z = 0.0, y IN shares | z + y),
    x.sum_weight = reduce(z = 0.0, y IN weights | z + y),
    x.sum_influence = reduce(z = 0.0, y IN influences | z + y)
RETURN collect(x.edge_id) AS touched
"""
# Collected first, deleted then: the embedded engine skips relationships that a statement deletes
# while it walks them.
_DROP_HAS_EDGE: Final = """
MATCH (:Graph {graph_id: $graph_id})-[h:HAS_EDGE]->(:FeatureEdge)
WITH collect(h) AS all_of_them UNWIND all_of_them AS h DELETE h
"""
_DROP_EDGES: Final = """
UNWIND $ids AS id
MATCH (x:FeatureEdge {edge_id: id}) WHERE x.n_graphs = 0
DELETE x
"""
_WITHDRAW_FEATURES: Final = """
MATCH (:Graph {graph_id: $graph_id})-[h:HAS_FEATURE]->(:Feature)
WITH collect(h) AS all_of_them UNWIND all_of_them AS h DELETE h
"""
_NODE_IDS: Final = """
MATCH (:Graph {graph_id: $graph_id})-[:CONTAINS]->(n:Node) WITH n LIMIT $limit
OPTIONAL MATCH (n)-[:INSTANCE_OF]->(f:Feature)
RETURN collect(n.node_id) AS nodes, collect(DISTINCT f.feature_id) AS features
"""
_DROP_NODES: Final = "UNWIND $ids AS id MATCH (n:Node {node_id: id}) DETACH DELETE n"
_DROP_SUPERNODES: Final = """
MATCH (s:Supernode {graph_id: $graph_id})
WITH collect(s) AS all_of_them UNWIND all_of_them AS s DETACH DELETE s
"""
_DROP_LINKS: Final = """
MATCH (:Graph {graph_id: $graph_id})-[r]-()
WITH collect(r) AS all_of_them UNWIND all_of_them AS r DELETE r
"""
_RESET: Final = """
MATCH (g:Graph {graph_id: $graph_id})
SET g = {graph_id: $graph_id, complete: false, writer: $writer, heartbeat: timestamp()}
"""
_DROP_GRAPH: Final = "MATCH (g:Graph {graph_id: $graph_id, writer: $writer}) DETACH DELETE g"
_WRITER: Final = """
MATCH (g:Graph {graph_id: $graph_id}) WHERE g.complete = false RETURN g.writer AS writer
"""
_WRITING: Final = """
OPTIONAL MATCH (g:Graph)
WHERE g.complete = false AND g.graph_id <> $graph_id AND g.heartbeat > 0
WITH count(g) AS graphs
OPTIONAL MATCH (w:GlobalWeights)
WHERE w.complete = false AND w.weights_id <> $graph_id AND w.heartbeat > 0
WITH graphs, count(w) AS weights
RETURN graphs + weights AS n
"""
_UNUSED: Final = """
UNWIND $ids AS id
MATCH (f:Feature {feature_id: id})
WHERE f.label IS NULL AND f.statistics IS NULL
  AND NOT (f)<-[:INSTANCE_OF]-() AND NOT (f)<-[:HAS_FEATURE]-() AND NOT (f)-[:VIRTUAL]-()
  AND NOT (f)<-[:COVERS]-()
  AND NOT (f)<-[:INVOLVES]-()
RETURN collect(f.feature_id) AS ids
"""
_DROP_FEATURES: Final = "UNWIND $ids AS id MATCH (f:Feature {feature_id: id}) DELETE f"
# Who had to leave unused features says so; the last one at work removes them.
_LEAVE: Final = "MATCH (v:Vault {vault_id: $vault}) SET v.unused_left = true"
_LEFT: Final = """
MATCH (v:Vault {vault_id: $vault}) WHERE v.unused_left = true RETURN v.vault_id AS id
"""
_LEFT_NONE: Final = "MATCH (v:Vault {vault_id: $vault}) REMOVE v.unused_left"


def remove_graph(store: Client, graph_id: str) -> None:
    """Remove a complete graph and what only it used.

    Features with a label, statistics or global weights stay, and so do sets that become empty.
    """
    with Claim(store, graph_id) as claim:

        def withdraw(tx: neo4j.ManagedTransaction) -> bool:
            withdraw_summaries(tx, graph_id)
            return claim.withdraw(tx)

        if store.transact(withdraw):  # else another process is removing it
            _remove(claim)


def remove_interrupted(store: Client, graph_id: str, *, silent_for: float) -> bool:
    """Remove an incomplete graph if nobody works on it; whether that was so."""
    with Claim(store, graph_id) as claim:
        found = store.rows(_WRITER, graph_id=graph_id)
        if not found or not claim.take_over(found[0]["writer"], silent_for=silent_for):
            return False
        _remove(claim)
        return True


def clear(claim: Claim) -> None:
    """Remove the nodes, edges and supernodes of a claimed, incomplete graph."""
    claim.run(lambda tx: tx.run(_DROP_SUPERNODES, graph_id=claim.graph_id).consume())
    while claim.run(lambda tx: _remove_batch(tx, claim.graph_id)):
        pass
    claim.run(lambda tx: _reset(tx, claim))


def _remove(claim: Claim) -> None:
    clear(claim)
    claim.store.change(_DROP_GRAPH, graph_id=claim.graph_id, writer=claim.writer)
    remove_left_features(claim.store)


def withdraw_summaries(tx: neo4j.ManagedTransaction, graph_id: str) -> None:
    """Lock the vault and take a graph out of every summary across prompts."""
    lock_vault(tx)
    touched = tx.run(_WITHDRAW_EDGES, graph_id=graph_id).single()
    tx.run(_DROP_HAS_EDGE, graph_id=graph_id).consume()
    if touched is not None and touched["touched"]:
        tx.run(_DROP_EDGES, ids=touched["touched"]).consume()
    tx.run(_WITHDRAW_FEATURES, graph_id=graph_id).consume()


def _reset(tx: neo4j.ManagedTransaction, claim: Claim) -> None:
    """Leave of the graph's own node no more than a new claim makes."""
    tx.run(_DROP_LINKS, graph_id=claim.graph_id).consume()
    tx.run(_RESET, graph_id=claim.graph_id, writer=claim.writer).consume()


def _remove_batch(tx: neo4j.ManagedTransaction, graph_id: str) -> int:
    lock_vault(tx)
    found = tx.run(_NODE_IDS, graph_id=graph_id, limit=_BATCH).single(strict=True)
    if not found["nodes"]:
        return 0
    tx.run(_DROP_NODES, ids=found["nodes"]).consume()
    drop_unused(tx, found["features"], graph_id)
    return len(found["nodes"])


def drop_unused(tx: neo4j.ManagedTransaction, features: list[str], own: str) -> None:
    """Drop those of some features that nothing uses, the vault being locked.

    They are left, and left for later, while somebody writes or deletes something else than `own`.
    """
    # Somebody who is writing may have counted on a feature that nothing uses yet.
    unused = tx.run(_UNUSED, ids=features).single(strict=True)["ids"]
    if unused and tx.run(_WRITING, graph_id=own).single(strict=True)["n"]:
        tx.run(_LEAVE, vault=VAULT).consume()
    elif unused:
        tx.run(_DROP_FEATURES, ids=unused).consume()


_NUMBERS: Final = """
MATCH (g:Graph) WHERE g.complete = true AND NOT g.graph_id IN $unsound
RETURN collect(g.gno) AS numbers
"""
_KNOWN_ENTRIES: Final = """
MATCH (x:FeatureEdge)
WITH x, x.graphs AS graphs, x.shares AS shares, x.weights AS weights,
     x.influences AS influences
WITH x, graphs, shares, weights, influences,
     [i IN range(0, size(graphs) - 1) WHERE coalesce($flags[graphs[i]], false) | i] AS kept
WHERE size(kept) < size(graphs) OR x.n_graphs <> size(graphs)
WITH x, [i IN kept | graphs[i]] AS graphs, [i IN kept | shares[i]] AS shares,
     [i IN kept | weights[i]] AS weights, [i IN kept | coalesce(influences[i], -1.0)] AS influences
SET x.graphs = graphs, x.shares = shares, x.weights = weights, x.influences = influences,
    x.n_graphs = size(graphs), x.n_positive = size([y IN weights WHERE y > 0]),
    x.sum_share = reduce(z = 0.0, y IN shares | z + y),
    x.sum_weight = reduce(z = 0.0, y IN weights | z + y),
    x.sum_influence = reduce(z = 0.0, y IN influences | z + y)
RETURN collect(x.edge_id) AS touched
"""


def drop_unknown_entries(tx: neo4j.ManagedTransaction, unsound: list[str]) -> None:
    """Drop what pairs of features list of graphs that are not there, or are not sound."""
    lock_vault(tx)
    known = tx.run(_NUMBERS, unsound=unsound).single(strict=True)["numbers"]
    flags = [False] * (max(known, default=-1) + 1)
    for number in known:
        flags[number] = True
    touched = tx.run(_KNOWN_ENTRIES, flags=flags).single(strict=True)["touched"]
    tx.run(_DROP_EDGES, ids=touched).consume()


_STRAY_NODES: Final = """
MATCH (n:Node) WHERE NOT (n)<-[:CONTAINS]-() RETURN n.node_id AS id LIMIT 5000
"""
_STRAY_SUPERNODES: Final = """
MATCH (s:Supernode) OPTIONAL MATCH (g:Graph {graph_id: s.graph_id})
WITH s, count(g) AS graphs WHERE graphs = 0
WITH collect(s) AS all_of_them UNWIND all_of_them AS s DETACH DELETE s
"""


def remove_strays(store: Client) -> None:
    """Remove nodes and supernodes of no graph."""

    def work(tx: neo4j.ManagedTransaction) -> int:
        lock_vault(tx)
        ids = [record["id"] for record in tx.run(_STRAY_NODES)]
        tx.run(_DROP_NODES, ids=ids).consume()
        tx.run(_STRAY_SUPERNODES).consume()
        return len(ids)

    while store.transact(work):
        pass


_ALL_UNUSED: Final = """
MATCH (f:Feature)
WHERE f.label IS NULL AND f.statistics IS NULL
  AND NOT (f)<-[:INSTANCE_OF]-() AND NOT (f)<-[:HAS_FEATURE]-() AND NOT (f)-[:VIRTUAL]-()
  AND NOT (f)<-[:COVERS]-()
  AND NOT (f)<-[:INVOLVES]-()
RETURN f.feature_id AS feature_id
"""


def remove_unused_features(store: Client) -> int:
    """Remove features that no graph, label or statistic uses; the number removed.

    None while somebody writes or deletes, who may count on a feature that nothing uses yet.
    """

    def work(tx: neo4j.ManagedTransaction) -> int:
        lock_vault(tx)
        if tx.run(_WRITING, graph_id="").single(strict=True)["n"]:
            return 0
        ids = [record["feature_id"] for record in tx.run(_ALL_UNUSED)]
        tx.run(_DROP_FEATURES, ids=ids).consume()
        tx.run(_LEFT_NONE, vault=VAULT).consume()
        return len(ids)

    return store.transact(work)


def remove_left_features(store: Client) -> None:
    """Remove the unused features that a delete had to leave because others were at work."""
    if store.rows(_LEFT, vault=VAULT):
        remove_unused_features(store)


_INTERRUPTED: Final = """
MATCH (g:Graph) WHERE g.complete = false
RETURN g.graph_id AS graph_id, (timestamp() - coalesce(g.heartbeat, 0)) / 1000.0 AS silent
"""


def interrupted(store: Client, *, silent_for: float = SILENCE_LIMIT) -> list[str]:
    """Ids of incomplete graphs whose writer has given no sign for so many seconds."""
    return [row["graph_id"] for row in store.rows(_INTERRUPTED) if row["silent"] >= silent_for]
