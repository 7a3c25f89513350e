"""What people add to stored graphs by hand: supernodes and feature labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import neo4j
import pandas as pd

from graphstore.claims import lock_vault
from graphstore.rows import supernode_id
from tracer.errors import NotFoundError, StoreError, nearest

if TYPE_CHECKING:
    from graphstore.client import Client

__all__ = ["LABEL_ROWS", "group_nodes", "label_features", "parts_of_feature_id"]

_NODES: Final = """
MATCH (:Graph {graph_id: $graph_id})-[:CONTAINS]->(n:Node)
RETURN n.node_id AS node_id, n.source_id AS source_id, n.source_js_id AS source_js_id
"""
_NEXT: Final = """
MATCH (g:Graph {graph_id: $graph_id}) SET g.supernodes_made = coalesce(g.supernodes_made, 0) + 1
WITH g
OPTIONAL MATCH (s:Supernode {graph_id: $graph_id})
WITH count(s) AS many, max(s.ord) AS last, collect(s.name) AS names
RETURN CASE WHEN many = 0 THEN 0 ELSE last + 1 END AS ord, names
"""
_GROUP: Final = """
CREATE (s:Supernode {supernode_id: $supernode_id})
SET s.name = $name, s.author = $author, s.ord = $ord, s.graph_id = $graph_id
WITH s
UNWIND $nodes AS id
MATCH (n:Node {node_id: id})
CREATE (s)-[:GROUPS]->(n)
"""


def group_nodes(
    store: Client, graph_id: str, name: str, node_ids: Sequence[str], author: str | None
) -> str:
    """Make a supernode; see :meth:`graphstore.Store.group`."""
    if not name or not node_ids:
        raise StoreError("a supernode needs a name and at least one node", "Give both")
    if isinstance(node_ids, str):
        node_ids = [node_ids]
    nodes = _resolve(store, graph_id, node_ids)

    def work(tx: neo4j.ManagedTransaction) -> str:
        found = tx.run(_NEXT, graph_id=graph_id).single(strict=True)
        if name in found["names"]:
            raise StoreError(
                f"graph {graph_id} has a supernode {name!r} already", "Choose another name"
            )
        made = supernode_id(graph_id, found["ord"])
        tx.run(
            _GROUP,
            supernode_id=made,
            name=name,
            author=author,
            ord=found["ord"],
            graph_id=graph_id,
            nodes=nodes,
        ).consume()
        return made

    return store.transact(work)


def _resolve(store: Client, graph_id: str, wanted: Sequence[str]) -> list[str]:
    """Node ids of the nodes named by key, node id, or id in their file."""
    ids: dict[str, set[str]] = {}
    for row in store.rows(_NODES, graph_id=graph_id):
        node_id = row["node_id"]
        for name in (node_id, node_id.removeprefix(f"{graph_id}/")):
            ids.setdefault(name, set()).add(node_id)
        for name in (row["source_id"], row["source_js_id"]):
            if name is not None:
                ids.setdefault(name, set()).add(node_id)
    found = set()
    for name in wanted:
        matches = ids.get(name, set())
        if len(matches) != 1:
            raise NotFoundError(
                f"graph {graph_id} has {len(matches) or 'no'} nodes {name!r}",
                nearest(name, ids) or "Name nodes as query top_nodes lists them",
            )
        found |= matches
    return sorted(found)


LABEL_ROWS: Final = 10_000  # labels a transaction: few enough for a small server's heap

_LABEL: Final = """
UNWIND $rows AS r
MERGE (f:Feature {feature_id: r[0]})
ON CREATE SET f.transcoder_id = r[2], f.layer = r[3], f.index = r[4]
SET f.label = r[1], f.label_source = $source
"""


def label_features(store: Client, labels: pd.DataFrame, source: str) -> int:
    """Label features; see :meth:`graphstore.Store.label`."""
    for column in ("feature_id", "label"):
        if column not in labels:
            raise StoreError(
                f"label table lacks column {column!r}", "Give columns feature_id and label"
            )
    rows = []
    for feature_id, label in labels[["feature_id", "label"]].itertuples(index=False):
        parts = parts_of_feature_id(feature_id)
        if parts is None:
            raise StoreError(
                f"{feature_id!r} is no feature id",
                "Write {transcoder_id}/{layer}/{index}, the two numbers without leading zeros",
            )
        if isinstance(label, str) and label:
            rows.append([feature_id, label, *parts])
    for start in range(0, len(rows), LABEL_ROWS):
        batch = rows[start : start + LABEL_ROWS]

        def work(tx: neo4j.ManagedTransaction, batch: list[list[Any]] = batch) -> None:
            lock_vault(tx)  # else a delete may remove a feature before it has its label
            tx.run(_LABEL, rows=batch, source=source).consume()

        store.transact(work, merges=True)
    return len(rows)


_FEATURE_ID: Final = re.compile(r"(.+)/(0|[1-9][0-9]{0,17})/(0|[1-9][0-9]{0,17})", re.DOTALL)


def parts_of_feature_id(feature_id: object) -> tuple[str, int, int] | None:
    """Transcoder, layer and index of a feature's id, or None if it is none.

    An id is written in one way only: another would make a second feature of the same one.

    Examples
    --------
    >>> parts_of_feature_id("owner/clt@main/12/4711")
    ('owner/clt@main', 12, 4711)
    >>> parts_of_feature_id("owner/clt@main/012/4711") is None
    True
    """
    # Greedy, so parsed from the right: ids of transcoders contain slashes.
    found = _FEATURE_ID.fullmatch(feature_id) if isinstance(feature_id, str) else None
    return (found[1], int(found[2]), int(found[3])) if found else None
