"""Reading a graph back out of the store, equal to the one that was written."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from graphstore.rows import SCORE_NAMES
from tracer.errors import NotFoundError, StoreError
from tracer.graph import NODE_COLUMNS, RULES, AttributionGraph, Rule, Scores, Supernode, node_table

if TYPE_CHECKING:
    from graphstore.client import Client

__all__ = ["read_stored_graph"]

_PAGE_EDGES: Final = 100_000  # about as many edges an answer, packed in lists
_PAGE_NODES: Final = 5_000

_GRAPH: Final = """
MATCH (g:Graph {graph_id: $graph_id}) WHERE g.complete = true RETURN properties(g) AS properties
"""
_NODES: Final = """
MATCH (:Graph {graph_id: $graph_id})-[:CONTAINS]->(n:Node)
WHERE n.ord >= $low AND n.ord < $high
WITH n ORDER BY n.ord
RETURN collect(properties(n)) AS nodes
"""
# Packed lists: one row an edge would cost three times as much to send.
_EDGES: Final = """
MATCH (:Graph {graph_id: $graph_id})-[:CONTAINS]->(t:Node)
WHERE t.ord >= $low AND t.ord < $high
MATCH (s:Node)-[r:CONTRIBUTES]->(t)
RETURN collect(s.ord) AS s, collect(t.ord) AS t, collect(r.weight) AS weight,
       collect(r.residual) AS residual, collect(r.attention) AS attention
"""
_SUPERNODES: Final = """
MATCH (s:Supernode {graph_id: $graph_id})
OPTIONAL MATCH (s)-[:GROUPS]->(n:Node)
WITH s, collect(n.ord) AS members
RETURN s.name AS name, s.author AS author, s.ord AS ord, members ORDER BY ord
"""


def read_stored_graph(store: Client, graph_id: str) -> AttributionGraph:
    """Read one complete graph; see :meth:`graphstore.Store.read`."""
    found = store.rows(_GRAPH, graph_id=graph_id)
    if not found:
        raise NotFoundError(f"no graph {graph_id!r} is stored", "circuitbase graphs lists them")
    record: dict[str, Any] = found[0]["properties"]
    nodes = _read_nodes(store, record)
    matrices = _read_edges(store, record)
    supernodes = [
        Supernode(row["name"], tuple(row["members"]), row["author"])
        for row in store.rows(_SUPERNODES, graph_id=graph_id)
    ]
    return AttributionGraph(
        nodes,
        matrices["weight"],
        prompt=record["prompt"],
        tokens=record.get("tokens", ()),
        token_ids=record.get("token_ids"),
        model_id=record.get("model_id"),
        transcoder_id=record.get("transcoder_id"),
        model_info=json.loads(record["model_info"]),
        transcoder_info=json.loads(record["transcoder_info"]),
        slug=record["slug"],
        settings=json.loads(record["settings"]),
        scores=_read_scores(record),
        unpruned=record["unpruned"],
        residual=matrices.get("residual"),
        attention=matrices.get("attention"),
        supernodes=supernodes,
        pinned=record.get("pinned", ()),
        source=json.loads(record["source"]),
        created_at=record.get("created_at"),
        parent_id=record.get("parent_id"),
        graph_id=graph_id,
    )


def _read_nodes(store: Client, record: dict[str, Any]) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    for low in range(0, record["n_nodes"], _PAGE_NODES):
        page = store.rows(_NODES, graph_id=record["graph_id"], low=low, high=low + _PAGE_NODES)
        rows.extend(page[0]["nodes"])
    _expect(record, "nodes", len(rows))
    names = ("kind", "layer", "position", "index")
    return node_table(
        {
            name: [row.get(name) for row in rows]
            for name in NODE_COLUMNS
            if name in names or any(name in row for row in rows)
        }
    )


def _read_edges(store: Client, record: dict[str, Any]) -> dict[str, csr_array]:
    """Read the matrices, a range of target rows at a time."""
    n_nodes, n_edges = record["n_nodes"], record["n_edges"]
    parts = ("residual", "attention") if "part_type" in record else ()
    columns: dict[str, list[Any]] = {name: [] for name in ("s", "t", "weight", *parts)}
    step = max(1, math.ceil(n_nodes * _PAGE_EDGES / max(n_edges, 1)))
    for low in range(0, n_nodes, step):
        page = store.rows(_EDGES, graph_id=record["graph_id"], low=low, high=low + step)[0]
        for name, values in columns.items():
            values.append(np.asarray(page[name], dtype=np.int64 if name in "st" else np.float64))
    joined = {
        name: np.concatenate(values) if values else np.empty(0) for name, values in columns.items()
    }
    _expect(record, "edges", len(joined["weight"]))
    places = (joined["t"].astype(np.int64), joined["s"].astype(np.int64))
    shape = (n_nodes, n_nodes)
    types = {"weight": record["weight_type"], **dict.fromkeys(parts, record.get("part_type"))}
    return {
        name: csr_array((joined[name].astype(kind), places), shape=shape)
        for name, kind in types.items()
    }


def _read_scores(record: dict[str, Any]) -> dict[Rule, Scores]:
    """Scores that the graph carried; a mean path length without any path is nan."""
    return {
        rule: Scores(rule, *(record.get(f"{name}_{rule}", math.nan) for name in SCORE_NAMES))
        for rule in RULES
        if rule in record.get("recorded_rules", ())
    }


def _expect(record: dict[str, Any], what: str, found: int) -> None:
    if found != record[f"n_{what}"]:
        raise StoreError(
            f"graph {record['graph_id']} has {found} {what}, its record says {record[f'n_{what}']}",
            "circuitbase verify tells more; restore the graph from an export",
        )
