"""Attribution graphs as NetworkX graphs and pandas edge lists, and back.

Edges run from source to target in both; only the matrix has targets in its rows. The way back gives
an equal graph, except that entries of the two parts (residual, attention) which cancel each other
exactly are no edge, and so are not held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tracer.errors import GraphError, nearest
from tracer.graph import PLAIN_FIELDS, AttributionGraph, Scores, Supernode

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["from_networkx", "from_pandas", "to_networkx", "to_pandas"]

_WEIGHTS: Final = ("weight", "residual", "attention")
_MATRICES: Final = ("adjacency", "residual", "attention")  # in the order of _WEIGHTS


def to_pandas(graph: AttributionGraph) -> pd.DataFrame:
    """List the edges of a graph; its nodes are ``graph.nodes``, in the order of ``graph.keys``.

    Returns
    -------
    DataFrame
        ``source`` and ``target`` (node keys), ``weight``, and ``residual`` and ``attention`` where
        the graph has them; by target, then source, in the order of the matrix.

    Examples
    --------
    >>> nodes = pd.DataFrame({"kind": ["embedding", "logit"], "layer": [-1, 1], "position": 0,
    ...                       "index": [5, 7], "probability": [None, 0.5]})
    >>> print(to_pandas(AttributionGraph(nodes, csr_array([[0, 0], [3.0, 0]]))))
            source   target  weight
    0  embedding/0  logit/7     3.0
    """
    targets, sources = _places(graph.adjacency)
    keys = np.array(graph.keys, dtype=object)
    columns: dict[str, Any] = {"source": keys[sources], "target": keys[targets]}
    for name, matrix in _matrices(graph).items():
        columns[name] = _values(matrix, graph.adjacency)
    return pd.DataFrame(columns)


def from_pandas(nodes: pd.DataFrame, edges: pd.DataFrame, **fields: Any) -> AttributionGraph:
    """Make a graph from its table of nodes and a list of edges.

    Parameters
    ----------
    nodes
        One row a node, columns as in :data:`tracer.graph.NODE_COLUMNS`.
    edges
        ``source`` and ``target`` (keys such as ``feature/12/4711/8``, as :attr:`AttributionGraph.\
keys` has them), ``weight``, and optionally ``residual`` and ``attention``. Weights in float32 stay
        in float32.
    **fields
        Further arguments of :class:`AttributionGraph`.

    Raises
    ------
    GraphError
        If a column is missing, an edge names an unknown node or is listed twice, or the graph
        breaks a rule of its definition.

    Examples
    --------
    >>> nodes = pd.DataFrame({"kind": ["embedding", "logit"], "layer": [-1, 1], "position": 0,
    ...                       "index": [5, 7], "probability": [None, 0.5]})
    >>> edges = pd.DataFrame({"source": ["embedding/0"], "target": ["logit/7"], "weight": [3.0]})
    >>> graph = from_pandas(nodes, edges, prompt="a")
    >>> graph.adjacency.toarray().tolist()
    [[0.0, 0.0], [3.0, 0.0]]
    """
    for name in ("source", "target", "weight"):
        if name not in edges:
            raise GraphError(f"edge list lacks column {name!r}", "Give it for every edge")
    keys = AttributionGraph(nodes, csr_array((len(nodes), len(nodes)))).keys
    row_of = pd.Series(np.arange(len(keys)), index=pd.Index(keys, dtype=object))
    ends = [_rows(edges[name], name, row_of) for name in ("source", "target")]
    columns = {name: edges[name].to_numpy() for name in _WEIGHTS if name in edges}
    return _graph(nodes, ends[0], ends[1], columns, keys, fields)


def to_networkx(graph: AttributionGraph) -> nx.DiGraph[str]:
    """Turn a graph into a NetworkX one, edges from source to target.

    Returns
    -------
    networkx.DiGraph
        Nodes by key, in the order of the matrix, with the known columns of the node table; edges
        with ``weight`` (and ``residual``, ``attention``); everything else as graph attributes.

    Examples
    --------
    >>> nodes = pd.DataFrame({"kind": ["embedding", "logit"], "layer": [-1, 1], "position": 0,
    ...                       "index": [5, 7], "probability": [None, 0.5]})
    >>> network = to_networkx(AttributionGraph(nodes, csr_array([[0, 0], [3.0, 0]])))
    >>> list(network.edges(data="weight"))
    [('embedding/0', 'logit/7', 3.0)]
    >>> network.nodes["logit/7"]
    {'kind': 'logit', 'layer': 1, 'position': 0, 'index': 7, 'probability': 0.5}
    """
    import networkx as nx  # a quarter of a second that nothing else needs

    keys = graph.keys
    network: nx.DiGraph[str] = nx.DiGraph()
    network.graph.update({name: getattr(graph, name) for name in PLAIN_FIELDS})
    network.graph.update(
        scores={rule: asdict(score) for rule, score in graph.scores.items()},
        supernodes=[
            {"name": s.name, "members": [keys[row] for row in s.members], "author": s.author}
            for s in graph.supernodes
        ],
        pinned=[keys[row] for row in graph.pinned],
        digest=graph.digest(),
        dtype={name: str(matrix.dtype) for name, matrix in _matrices(graph).items()},
    )
    for key, values in zip(keys, graph.nodes.to_dict("records"), strict=True):
        known = {str(name): value for name, value in values.items() if not pd.isna(value)}
        network.add_node(key, **known)
    targets, sources = (places.tolist() for places in _places(graph.adjacency))
    columns = {
        name: _values(matrix, graph.adjacency).tolist() for name, matrix in _matrices(graph).items()
    }
    for edge, (target, source) in enumerate(zip(targets, sources, strict=True)):
        weights = {name: column[edge] for name, column in columns.items()}
        network.add_edge(keys[source], keys[target], **weights)
    return network


def from_networkx(network: nx.DiGraph[Any], **fields: Any) -> AttributionGraph:
    """Make a graph from a NetworkX one.

    Parameters
    ----------
    network
        Nodes with attributes as in :data:`tracer.graph.NODE_COLUMNS`, edges from source to target
        with ``weight``. What :func:`to_networkx` put into the graph's attributes is used. If nodes
        or edges have changed since, the graph gets an id of its own, names the old one as its
        parent, and loses the scores; groups lose the nodes that are gone.
    **fields
        Arguments of :class:`AttributionGraph`, before the network's own.

    Raises
    ------
    GraphError
        If it is no ``DiGraph``, an edge has no weight, or the graph breaks a rule of its
        definition.

    Examples
    --------
    >>> nodes = pd.DataFrame({"kind": ["embedding", "logit"], "layer": [-1, 1], "position": 0,
    ...                       "index": [5, 7], "probability": [None, 0.5]})
    >>> graph = AttributionGraph(nodes, csr_array([[0, 0], [3.0, 0]]))
    >>> network = to_networkx(graph)
    >>> from_networkx(network) == graph
    True
    >>> network["embedding/0"]["logit/7"]["weight"] = 2.0
    >>> from_networkx(network).parent_id == graph.graph_id
    True
    """
    if not network.is_directed() or network.is_multigraph():
        raise GraphError(
            f"network is a {type(network).__name__}", "Give a networkx.DiGraph, source → target"
        )
    row_of = {name: row for row, name in enumerate(network)}
    edges = list(network.edges(data=True))
    for source, target, values in edges:
        if "weight" not in values:
            raise GraphError(f"edge {source} → {target} has no weight", "Give one to every edge")
    held = network.graph
    columns = {
        name: np.array(
            [values.get(name, 0.0) for *_, values in edges], held.get("dtype", {}).get(name)
        )
        for name in _WEIGHTS
        if name == "weight" or name in held.get("dtype", {})
    }
    graph = _graph(
        pd.DataFrame([values for _, values in network.nodes(data=True)], dtype=object),
        np.array([row_of[source] for source, _, _ in edges], np.int64),
        np.array([row_of[target] for _, target, _ in edges], np.int64),
        columns,
        list(network),
        {**_held_fields(held, row_of), **fields, "graph_id": None},
    )
    changed = "digest" in held and held["digest"] != graph.digest()
    if not changed:
        graph_id = fields.get("graph_id", held.get("graph_id"))
        return graph.replace(graph_id=graph_id) if graph_id else graph
    new = {"parent_id": held["graph_id"], "unpruned": False, "scores": {}, "graph_id": None}
    return graph.replace(**{**new, **fields})


# Shared by the four ----------------------------------------------------------------------------


def _matrices(graph: AttributionGraph) -> dict[str, csr_array]:
    found = {w: getattr(graph, m) for w, m in zip(_WEIGHTS, _MATRICES, strict=True)}
    return {name: matrix for name, matrix in found.items() if matrix is not None}


def _places(matrix: csr_array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row and column of every stored entry."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    return rows, matrix.indices.astype(np.int64)


def _values(matrix: csr_array, pattern: csr_array) -> NDArray[Any]:
    """Values of a matrix at the stored entries of another, 0 where it has none."""
    if matrix is pattern:
        return matrix.data
    n = matrix.shape[1]
    (rows, columns), (at_rows, at_columns) = _places(matrix), _places(pattern)
    held, wanted = rows * n + columns, at_rows * n + at_columns  # both ascend: canonical form
    found = np.searchsorted(held, wanted)
    hit = found < len(held)
    hit[hit] = held[found[hit]] == wanted[hit]
    values = np.zeros(len(wanted), matrix.dtype)
    values[hit] = matrix.data[found[hit]]
    return values


def _rows(names: pd.Series[Any], end: str, row_of: pd.Series[Any]) -> NDArray[np.int64]:
    rows = row_of.index.get_indexer(pd.Index(names, dtype=object))
    if (rows < 0).any():
        edge = int(np.argmax(rows < 0))
        name = str(names.iloc[edge])
        raise GraphError(
            f"edge {edge} names the {end} {name!r}, which is no node",
            nearest(name, map(str, row_of.index)) or "Name nodes by key, such as feature/12/4711/8",
        )
    return rows.astype(np.int64)


def _graph(
    nodes: pd.DataFrame,
    sources: NDArray[np.int64],
    targets: NDArray[np.int64],
    columns: Mapping[str, NDArray[Any]],
    names: Sequence[Any],
    fields: Mapping[str, Any],
) -> AttributionGraph:
    n = len(names)
    _, first = np.unique(targets * n + sources, return_index=True)
    if len(first) < len(sources):
        again = np.ones(len(sources), np.bool_)
        again[first] = False
        edge = int(np.argmax(again))
        raise GraphError(
            f"edge {names[sources[edge]]} → {names[targets[edge]]} is listed twice",
            "Add its weights up first",
        )
    matrices = {
        name: csr_array((columns[weight], (targets, sources)), shape=(n, n))
        for weight, name in zip(_WEIGHTS, _MATRICES, strict=True)
        if weight in columns
    }
    return AttributionGraph(nodes, **{**matrices, **fields})


def _held_fields(held: Mapping[str, Any], row_of: Mapping[Any, int]) -> dict[str, Any]:
    """Take the constructor arguments among a network's attributes."""
    found: dict[str, Any] = {name: held[name] for name in PLAIN_FIELDS if name in held}
    if "scores" in held:
        found["scores"] = {rule: Scores(**values) for rule, values in held["scores"].items()}
    groups = [
        Supernode(s["name"], tuple(row_of[m] for m in s["members"] if m in row_of), s["author"])
        for s in held.get("supernodes", ())
    ]
    found["supernodes"] = [s for s in groups if s.members]
    found["pinned"] = [row_of[name] for name in held.get("pinned", ()) if name in row_of]
    return found
