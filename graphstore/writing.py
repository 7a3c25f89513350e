"""Writing a graph: batches that no reader sees, then one transaction that makes it count.

A graph's node is created first, ``complete = false``, with the writer's id and a heartbeat; nodes
and edges follow in batches. The last transaction locks the vault, gives the graph its number,
writes the summaries across prompts (HAS_FEATURE, FeatureEdge) and sets ``complete = true``. A kill
at any moment leaves either the whole graph or an incomplete one, which readers never ask for.

A graph that fits one batch, as pruned graphs do, is written in one transaction: all or nothing.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import neo4j
import numpy as np
import pandas as pd

from graphstore.claims import STATE, Claim, lock_vault
from graphstore.deleting import clear
from graphstore.embedded import end_if_told
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
_AT_ONCE_ROWS: Final = 20_000  # graphs of so many nodes and edges take one transaction


class Step(NamedTuple):
    """A statement with its parameters.

    Attributes
    ----------
    text, parameters
        What to run.
    rows
        How many rows it writes.
    makes
        How many nodes and relationships it must make; None where that depends on the store.
    """

    text: str
    parameters: dict[str, Any]
    rows: int
    makes: tuple[int | None, int] | None = None


def write_graph_to(store: Client, graph: AttributionGraph, prompt_set: str | None) -> bool:
    """Write one graph; see :meth:`graphstore.Store.write`.

    Returns
    -------
    bool
        Whether the graph is new to the store.
    """
    end_if_told()
    rows = GraphRows(graph)
    if graph.n_nodes + graph.n_edges <= _AT_ONCE_ROWS and _write_at_once(store, rows, prompt_set):
        return True
    with Claim(store, graph.graph_id) as claim:
        if claim.take(clear):
            for steps in _grouped(_steps(rows)):
                claim.run(partial(run_steps, steps=steps))
            publication = _publication(rows, prompt_set)
            claim.run(lambda tx: _publish(tx, graph.graph_id, publication))
            return True
    store.transact(lambda tx: run_steps(tx, _additions(rows, prompt_set)), merges=True)
    return False


def _write_at_once(store: Client, rows: GraphRows, prompt_set: str | None) -> bool:
    """Write a graph in one transaction; False, with nothing done, if there is one of its id."""
    graph_id = rows.graph.graph_id
    if store.rows(STATE, graph_id=graph_id):
        return False

    def work(tx: neo4j.ManagedTransaction, ahead: list[Future[list[Step]]]) -> bool:
        lock_vault(tx)  # nobody else makes this graph, or removes features that it will use
        if tx.run(STATE, graph_id=graph_id).single() is not None:
            return False
        tx.run(_MAKE, graph_id=graph_id).consume()
        for steps in ahead[:-1]:
            run_steps(tx, steps.result())
        _publish(tx, graph_id, ahead[-1].result())
        return True

    parts = [partial(_listed, part, rows) for part in _PARTS]
    parts.append(partial(_publication, rows, prompt_set))
    # Each part is worked out while the engine is busy with the one before.
    with ThreadPoolExecutor(1) as helper:
        ahead = [helper.submit(part) for part in parts]
        return store.transact(partial(work, ahead=ahead), merges=True)


def _listed(part: Callable[[GraphRows], Iterable[Step]], rows: GraphRows) -> list[Step]:
    return list(part(rows))


_MAKE: Final = "CREATE (:Graph {graph_id: $graph_id, complete: false})"


def run_steps(tx: neo4j.ManagedTransaction, steps: Iterable[Step]) -> None:
    """Run statements in order, each to its end.

    Raises
    ------
    StoreError
        If one makes other than it must; the transaction is then undone.
    """
    for step in steps:
        made = tx.run(step.text, step.parameters).consume().counters
        if step.makes is None:
            continue
        nodes, relationships = step.makes
        found = (made.nodes_created if nodes is not None else None, made.relationships_created)
        if found != step.makes:
            raise StoreError(
                f"graph {step.parameters['graph_id']}: {found[0]} nodes and {found[1]} "
                f"relationships arrived, expected {nodes} and {relationships}",
                "Nothing of it is visible; write it again, and report this if it comes back",
            )


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
# One list a column packs faster than one a row, and an item is found faster in a bound list than
# in a parameter. A column that a graph does not have is null, and an item of null is null, which
# stores nothing.
_EDGES: Final = """
MATCH (g:Graph {graph_id: $graph_id})-[:CONTAINS]->(n:Node)
WITH n ORDER BY n.ord
WITH collect(n) AS ns
WITH ns, $sources AS sources, $targets AS targets, $weight AS weight, $share AS share,
     $score AS score, $share_full AS share_full, $residual AS residual, $attention AS attention
UNWIND range(0, size(sources) - 1) AS i
WITH ns[sources[i]] AS a, ns[targets[i]] AS b, weight[i] AS weight, share[i] AS share,
     score[i] AS score, share_full[i] AS share_full, residual[i] AS residual,
     attention[i] AS attention
CREATE (a)-[:CONTRIBUTES {weight: weight, share: share, score: score, share_full: share_full,
                          residual: residual, attention: attention}]->(b)
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


def _feature_steps(rows: GraphRows) -> list[Step]:
    transcoder_id = rows.graph.transcoder_id
    features = rows.features[["feature_id", "layer", "index"]].to_numpy().tolist()
    return [
        Step(_FEATURES, {"rows": batch, "transcoder_id": transcoder_id}, len(batch))
        for batch in _batches(features)
    ]


def _node_steps(rows: GraphRows) -> list[Step]:
    graph_id = rows.graph.graph_id
    of_features = [
        [feature_id, node]
        for feature_id, node in zip(rows.graph.feature_ids, rows.nodes, strict=True)
        if feature_id is not None
    ]
    others = [node for node in rows.nodes if node["kind"] != "feature"]
    steps = []
    for text, nodes, links in ((_FEATURE_NODES, of_features, 2), (_NODES, others, 1)):
        for batch in _batches(nodes):
            n = len(batch)
            steps.append(Step(text, {"graph_id": graph_id, "rows": batch}, 2 * n, (n, links * n)))
    return steps


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
        n = len(ends["sources"])
        yield Step(_EDGES, {"graph_id": rows.graph.graph_id, **ends, **lists}, n, (0, n))


def _supernode_steps(rows: GraphRows) -> list[Step]:
    graph_id = rows.graph.graph_id
    return [
        Step(_SUPERNODES, {"graph_id": graph_id, "rows": batch}, len(batch))
        for batch in _batches(rows.supernodes)
    ]


_PARTS: Final[tuple[Callable[[GraphRows], Iterable[Step]], ...]] = (
    _feature_steps,
    _node_steps,
    _edge_steps,
    _supernode_steps,
)


def _steps(rows: GraphRows) -> Iterator[Step]:
    """Statements that write features, nodes, edges and supernodes, in order."""
    for part in _PARTS:
        yield from part(rows)


def _batches(rows: Sequence[Any]) -> Iterator[list[Any]]:
    for start in range(0, len(rows), _STATEMENT_ROWS):
        yield list(rows[start : start + _STATEMENT_ROWS])


def _grouped(steps: Iterator[Step]) -> Iterator[list[Step]]:
    """Pack consecutive steps into transactions of a bounded number of rows."""
    group: list[Step] = []
    size = 0
    for step in steps:
        if group and size + step.rows > _TRANSACTION_ROWS:
            yield group
            group, size = [], 0
        group.append(step)
        size += step.rows
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
WITH g, r, $names[r[0]] AS s, $names[r[1]] AS t
MERGE (x:FeatureEdge {edge_id: s + ' -> ' + t})
ON CREATE SET x.source = s, x.target = t, x.n_graphs = 1, x.n_positive = r[5],
              x.sum_share = r[2], x.sum_weight = r[3], x.sum_influence = r[4], x.graphs = [g.gno],
              x.shares = [r[2]], x.weights = [r[3]], x.influences = [r[4]]
ON MATCH SET x.n_graphs = x.n_graphs + 1, x.n_positive = x.n_positive + r[5],
             x.sum_share = x.sum_share + r[2], x.sum_weight = x.sum_weight + r[3],
             x.sum_influence = x.sum_influence + r[4], x.graphs = x.graphs + g.gno,
             x.shares = x.shares + r[2], x.weights = x.weights + r[3],
             x.influences = x.influences + r[4]
CREATE (g)-[:HAS_EDGE {share: r[2], weight: r[3], influence: r[4]}]->(x)
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


def _publish(tx: neo4j.ManagedTransaction, graph_id: str, steps: list[Step]) -> None:
    """Make a written graph count: number it, add it to the summaries."""
    # Locks the vault; numbers are never used again.
    tx.run(_NUMBER, vault=VAULT, graph_id=graph_id).consume()
    run_steps(tx, steps)


def _publication(rows: GraphRows, prompt_set: str | None) -> list[Step]:
    """Statements that make a written graph count."""
    graph_id = rows.graph.graph_id
    steps = _summaries(rows)
    if rows.model is not None:
        steps.append(Step(_MODEL, {"graph_id": graph_id, "model": rows.model}, 1))
    if rows.transcoder is not None:
        steps.append(Step(_TRANSCODER, {"graph_id": graph_id, "transcoder": rows.transcoder}, 1))
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    properties = {"properties": rows.properties, "stored_at": now}
    steps.append(Step(_COMPLETE, {"graph_id": graph_id, **properties}, 1))
    return steps + _additions(rows, prompt_set)


def _summaries(rows: GraphRows) -> list[Step]:
    """Statements that add a graph to what is kept across prompts."""
    graph_id = rows.graph.graph_id
    steps: list[Step] = []
    for batch in _batches(rows.features[["feature_id", "influence"]].to_numpy().tolist()):
        n = len(batch)
        steps.append(Step(_HAS_FEATURE, {"graph_id": graph_id, "rows": batch}, n, (0, n)))
    pairs = rows.feature_edges
    codes, names = pd.factorize(np.concatenate([pairs["source"], pairs["target"]]))
    columns = [column.tolist() for column in np.split(codes, 2)]
    columns += [pairs[name].tolist() for name in ("share", "weight", "influence")]
    columns.append((pairs["weight"] > 0).astype("int64").tolist())
    for batch in _batches(list(zip(*columns, strict=True))):
        n = len(batch)
        given = {"graph_id": graph_id, "rows": batch, "names": list(names)}
        steps.append(Step(_FEATURE_EDGES, given, n, (None, n)))
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
        steps.append(Step(_LABELS, {"rows": batch, "label_source": source}, len(batch)))
    if prompt_set is not None:
        steps.append(Step(_INCLUDE, {"name": prompt_set, "graph_id": graph.graph_id}, 1))
    return steps
