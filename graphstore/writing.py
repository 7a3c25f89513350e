"""Writing a graph: batches that no reader sees, then one transaction that makes it count.

A graph's node is created first, ``complete = false``, with the writer's id and a heartbeat; nodes
and edges follow in batches. The last transaction locks the vault, gives the graph its number,
writes the summaries across prompts (HAS_FEATURE, FeatureEdge) and sets ``complete = true``. A kill
at any moment leaves either the whole graph or an incomplete one, which readers never ask for.
"""

from __future__ import annotations

import datetime as dt
import logging
import time
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import neo4j

from graphstore.claims import SILENCE_LIMIT, Claim, has_died
from graphstore.deleting import clear
from graphstore.rows import EDGE_COLUMNS, GraphRows
from graphstore.schema import VAULT
from tracer.errors import StoreError
from tracer.graph import AttributionGraph

if TYPE_CHECKING:
    from graphstore.client import Client

__all__ = ["add_summaries", "write_graph_to"]

# Rows a transaction: enough to make its fixed cost small, few enough for a small server's heap.
_TRANSACTION_ROWS: Final = 20_000
_STATEMENT_ROWS: Final = 10_000
_POLL: Final = 0.5  # seconds between looks at another writer's progress

log = logging.getLogger(__name__)

# A statement with its parameters and how many rows it writes.
Step = tuple[str, dict[str, Any], int]


def write_graph_to(store: Client, graph: AttributionGraph, prompt_set: str | None) -> bool:
    """Write one graph; see :meth:`graphstore.Store.write`.

    Returns
    -------
    bool
        Whether the graph is new to the store.
    """
    rows = GraphRows(graph)
    with Claim(store, graph.graph_id) as claim:
        if _take(claim):
            for steps in _grouped(_steps(rows)):
                claim.run(partial(run_steps, steps=steps))
            claim.run(lambda tx: _publish(tx, rows, prompt_set))
            return True
    store.transact(lambda tx: run_steps(tx, _additions(rows, prompt_set)), merges=True)
    return False


_STATE: Final = """
MATCH (g:Graph {graph_id: $graph_id})
RETURN g.complete AS complete, g.writer AS writer,
       (timestamp() - coalesce(g.heartbeat, 0)) / 1000.0 AS silent
"""


def _take(claim: Claim) -> bool:
    """Claim the graph, or wait for whoever works on it; True if it is ours to write."""
    told = False
    while True:
        found = claim.store.rows(_STATE, graph_id=claim.graph_id)
        if not found:
            if claim.make():
                return True
            continue
        state = found[0]
        if state["complete"]:
            return False
        dead = has_died(state["writer"])
        if dead or state["silent"] >= SILENCE_LIMIT:
            if claim.take_over(state["writer"], silent_for=0.0 if dead else SILENCE_LIMIT):
                log.warning("graph %s was left half-written; writing it again", claim.graph_id)
                clear(claim)
                return True
            continue
        if not told:
            log.warning("%s works on graph %s; waiting", state["writer"], claim.graph_id)
            told = True
        time.sleep(_POLL)


def run_steps(tx: neo4j.ManagedTransaction, steps: list[Step]) -> None:
    """Run statements in order, each to its end."""
    for text, parameters, _ in steps:
        tx.run(text, parameters).consume()


# The batches -----------------------------------------------------------------------------------

_FEATURES: Final = """
UNWIND $rows AS r
MERGE (f:Feature {feature_id: r[0]})
ON CREATE SET f.layer = r[1], f.index = r[2], f.transcoder_id = $transcoder_id
"""
# Properties first, relationships then: a record that grows while others point to it is moved.
_NODES: Final = """
MATCH (g:Graph {graph_id: $graph_id})
UNWIND $rows AS r
CREATE (n:Node) SET n = r
CREATE (g)-[:CONTAINS]->(n)
"""
_FEATURE_NODES: Final = """
MATCH (g:Graph {graph_id: $graph_id})
UNWIND $rows AS r
MATCH (f:Feature {feature_id: r[0]})
CREATE (n:Node) SET n = r[1]
CREATE (g)-[:CONTAINS]->(n)
CREATE (n)-[:INSTANCE_OF]->(f)
"""
# Links name nodes by their place in one ordered list: faster than an index look-up for each end.
# One list a column packs faster than one a row; a column that a graph does not have is null, and
# an item of null is null, which stores nothing.
_EDGES: Final = """
MATCH (g:Graph {graph_id: $graph_id})-[:CONTAINS]->(n:Node)
WITH n ORDER BY n.ord
WITH collect(n) AS ns
UNWIND range(0, size($sources) - 1) AS i
WITH ns[$sources[i]] AS a, ns[$targets[i]] AS b, i
CREATE (a)-[:CONTRIBUTES {weight: $weight[i], share: $share[i], score: $score[i],
                          share_full: $share_full[i], residual: $residual[i],
                          attention: $attention[i]}]->(b)
"""
_SUPERNODES: Final = """
MATCH (g:Graph {graph_id: $graph_id})
UNWIND $rows AS r
CREATE (s:Supernode {supernode_id: r.supernode_id})
SET s.name = r.name, s.author = r.author, s.ord = r.ord, s.graph_id = $graph_id
WITH g, s, r
MATCH (g)-[:CONTAINS]->(n:Node) WHERE n.ord IN r.members
CREATE (s)-[:GROUPS]->(n)
"""


def _steps(rows: GraphRows) -> Iterator[Step]:
    """Statements that write features, nodes, edges and supernodes, in order."""
    graph_id = rows.graph.graph_id
    features = rows.features[["feature_id", "layer", "index"]].to_numpy().tolist()
    for batch in _batches(features):
        parameters = {"rows": batch, "transcoder_id": rows.graph.transcoder_id}
        yield _FEATURES, parameters, len(batch)
    of_features = [
        [feature_id, node]
        for feature_id, node in zip(rows.graph.feature_ids, rows.nodes, strict=True)
        if feature_id is not None
    ]
    others = [node for node in rows.nodes if node["kind"] != "feature"]
    for text, nodes in ((_FEATURE_NODES, of_features), (_NODES, others)):
        for batch in _batches(nodes):
            yield text, {"graph_id": graph_id, "rows": batch}, 2 * len(batch)
    yield from _edge_steps(rows)
    for batch in _batches(rows.supernodes):
        yield _SUPERNODES, {"graph_id": graph_id, "rows": batch}, len(batch)


def _edge_steps(rows: GraphRows) -> Iterator[Step]:
    """Statements that write edges, a batch of columns at a time."""
    sources, targets, columns = rows.edges
    for start in range(0, len(sources), _STATEMENT_ROWS):
        part = slice(start, start + _STATEMENT_ROWS)
        lists = {
            name: None if column is None else column[part].tolist()
            for name, column in zip(EDGE_COLUMNS, columns, strict=True)
        }
        ends = {"sources": sources[part].tolist(), "targets": targets[part].tolist()}
        yield _EDGES, {"graph_id": rows.graph.graph_id, **ends, **lists}, len(ends["sources"])


def _batches(rows: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(rows), _STATEMENT_ROWS):
        yield list(rows[start : start + _STATEMENT_ROWS])


def _grouped(steps: Iterator[Step]) -> Iterator[list[Step]]:
    """Pack consecutive steps into transactions of a bounded number of rows."""
    group: list[Step] = []
    size = 0
    for step in steps:
        if group and size + step[2] > _TRANSACTION_ROWS:
            yield group
            group, size = [], 0
        group.append(step)
        size += step[2]
    if group:
        yield group


# The last transaction --------------------------------------------------------------------------

_NUMBER: Final = """
MATCH (v:Vault {vault_id: $vault}) SET v.next_gno = v.next_gno + 1
WITH v.next_gno - 1 AS gno
MATCH (g:Graph {graph_id: $graph_id}) SET g.gno = gno
RETURN gno
"""
_HAS_FEATURE: Final = """
MATCH (g:Graph {graph_id: $graph_id})
UNWIND $rows AS r
MATCH (f:Feature {feature_id: r[0]})
CREATE (g)-[:HAS_FEATURE {influence: r[1]}]->(f)
"""
_FEATURE_EDGES: Final = """
MATCH (g:Graph {graph_id: $graph_id})
UNWIND $rows AS r
MERGE (x:FeatureEdge {edge_id: r[0] + ' -> ' + r[1]})
ON CREATE SET x.source = r[0], x.target = r[1], x.n_graphs = 1, x.sum_share = r[2],
              x.sum_weight = r[3], x.graphs = [g.gno], x.shares = [r[2]], x.weights = [r[3]]
ON MATCH SET x.n_graphs = x.n_graphs + 1, x.sum_share = x.sum_share + r[2],
             x.sum_weight = x.sum_weight + r[3], x.graphs = x.graphs + g.gno,
             x.shares = x.shares + r[2], x.weights = x.weights + r[3]
CREATE (g)-[:HAS_EDGE {share: r[2], weight: r[3]}]->(x)
"""
_LABELS: Final = """
UNWIND $rows AS r
MATCH (f:Feature {feature_id: r[0]}) WHERE f.label IS NULL
SET f.label = r[1], f.label_source = $label_source
"""
_MODEL: Final = """
MATCH (g:Graph {graph_id: $graph_id})
MERGE (m:Model {model_id: $model.model_id}) ON CREATE SET m += $model
CREATE (g)-[:TRACED_FROM]->(m)
"""
_TRANSCODER: Final = """
MATCH (g:Graph {graph_id: $graph_id})
MERGE (t:Transcoder {transcoder_id: $transcoder.transcoder_id}) ON CREATE SET t += $transcoder
CREATE (g)-[:USES]->(t)
"""
_COMPLETE: Final = """
MATCH (g:Graph {graph_id: $graph_id})
SET g += $properties, g.stored_at = $stored_at, g.complete = true
REMOVE g.writer, g.heartbeat
"""
_INCLUDE: Final = """
MATCH (g:Graph {graph_id: $graph_id})
MERGE (p:PromptSet {name: $name})
MERGE (p)-[:INCLUDES]->(g)
"""
_COUNTS: Final = """
MATCH (:Graph {graph_id: $graph_id})-[:CONTAINS]->(n:Node)
WITH count(n) AS nodes
OPTIONAL MATCH (:Graph {graph_id: $graph_id})-[:CONTAINS]->(:Node)-[r:CONTRIBUTES]->(:Node)
RETURN nodes, count(r) AS edges
"""


def _publish(tx: neo4j.ManagedTransaction, rows: GraphRows, prompt_set: str | None) -> None:
    """Make a written graph count: number it, add it to the summaries, check that all arrived."""
    # Locks the vault; numbers are never used again.
    tx.run(_NUMBER, vault=VAULT, graph_id=rows.graph.graph_id).consume()
    run_steps(tx, _publication(rows, prompt_set))
    found = tx.run(_COUNTS, graph_id=rows.graph.graph_id).single(strict=True)
    expected = {"nodes": rows.graph.n_nodes, "edges": rows.graph.n_edges}
    if dict(found) != expected:
        raise StoreError(
            f"graph {rows.graph.graph_id} arrived as {dict(found)}, expected {expected}",
            "Nothing of it is visible; write it again, and report this if it comes back",
        )


def _publication(rows: GraphRows, prompt_set: str | None) -> list[Step]:
    """Statements that make a written graph count."""
    graph_id = rows.graph.graph_id
    steps = _summaries(rows)
    if rows.model is not None:
        steps.append((_MODEL, {"graph_id": graph_id, "model": rows.model}, 1))
    if rows.transcoder is not None:
        steps.append((_TRANSCODER, {"graph_id": graph_id, "transcoder": rows.transcoder}, 1))
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    properties = {"properties": rows.properties, "stored_at": now}
    steps.append((_COMPLETE, {"graph_id": graph_id, **properties}, 1))
    return steps + _additions(rows, prompt_set)


def _summaries(rows: GraphRows) -> list[Step]:
    """Statements that add a graph to what is kept across prompts."""
    graph_id = rows.graph.graph_id
    steps: list[Step] = []
    for batch in _batches(rows.features[["feature_id", "influence"]].to_numpy().tolist()):
        steps.append((_HAS_FEATURE, {"graph_id": graph_id, "rows": batch}, len(batch)))
    pair_rows = rows.feature_edges[["source", "target", "share", "weight"]].to_numpy().tolist()
    for batch in _batches(pair_rows):
        steps.append((_FEATURE_EDGES, {"graph_id": graph_id, "rows": batch}, len(batch)))
    return steps


def add_summaries(tx: neo4j.ManagedTransaction, graph: AttributionGraph) -> None:
    """Add a stored graph to the summaries, where it is not."""
    run_steps(tx, _summaries(GraphRows(graph)))


def _additions(rows: GraphRows, prompt_set: str | None) -> list[Step]:
    """Statements for what writing adds even to a graph that is stored: labels, and its set."""
    graph = rows.graph
    steps: list[Step] = []
    labelled = rows.features.loc[rows.features["label"].notna(), ["feature_id", "label"]]
    labels = [row for row in labelled.to_numpy().tolist() if row[1]]
    for batch in _batches(labels):
        source = f"file: {graph.slug or graph.graph_id}"
        steps.append((_LABELS, {"rows": batch, "label_source": source}, len(batch)))
    if prompt_set is not None:
        steps.append((_INCLUDE, {"name": prompt_set, "graph_id": graph.graph_id}, 1))
    return steps
