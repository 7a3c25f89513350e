"""What both kinds of pictures need: the strongest nodes and edges, and texts safe to draw."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len, set_cell_size

from circuitbase._text import visible
from tracer.graph import AttributionGraph
from tracer.influence import Flow

__all__ = [
    "Rows",
    "Vector",
    "figures",
    "fit",
    "shortened",
    "strongest_edges",
    "strongest_nodes",
    "targets_of",
    "token_of",
    "tokens_of",
    "visible",
]

Vector = NDArray[np.float64]
Rows = NDArray[np.int64]


def strongest_edges(
    graph: AttributionGraph, limit: int, *, flow: Flow | None = None
) -> tuple[Rows, Rows, Vector]:
    """Edges by falling score ``Â[t, s]·(I_t + w_t)``, without zeros; ties in order of the matrix.

    Parameters
    ----------
    graph
        The graph.
    limit
        At most this many.
    flow
        Its flow, where already computed.

    Returns
    -------
    targets, sources : ndarray of int, shape (k,)
    scores : ndarray of float, shape (k,)
    """
    scores = (flow or Flow(graph)).edge_scores.tocoo()
    order = np.argsort(-scores.data, kind="stable")[: max(limit, 0)]
    order = order[scores.data[order] > 0]
    return (
        scores.row[order].astype(np.int64),
        scores.col[order].astype(np.int64),
        scores.data[order].astype(np.float64),
    )


def strongest_nodes(graph: AttributionGraph, influence: Vector, limit: int) -> list[int]:
    order = np.argsort(-influence, kind="stable")[: max(limit, 0)]
    return [int(row) for row in order if influence[row] > 0]


def targets_of(graph: AttributionGraph) -> list[tuple[str, float]]:
    rows = np.flatnonzero(graph.is_logit)
    rows = rows[np.argsort(-graph.logit_weights[rows], kind="stable")]
    return [(token_of(graph, int(row)), float(graph.logit_weights[row])) for row in rows]


def token_of(graph: AttributionGraph, row: int) -> str:
    """Token of a node, or what stands for it (a custom target has a label)."""
    node = graph.nodes.iloc[row]
    token = node["token"]
    if token is None and not graph.is_logit[row] and node["position"] < len(graph.tokens):
        token = graph.tokens[node["position"]]
    if token is None:
        token = node["label"] or (f"#{node['index']}" if node["index"] >= 0 else "?")
    return visible(str(token)) or "∅"


def tokens_of(graph: AttributionGraph) -> list[str]:
    """Token of each position, shown so that it has a width."""
    n = max(len(graph.tokens), int(graph.nodes["position"].max()) + 1 if graph.n_nodes else 0)
    tokens = [*graph.tokens, *["?"] * (n - len(graph.tokens))]
    return [visible(token).strip() or ("␣" if token else "∅") for token in tokens]


def fit(text: str, width: int) -> str:
    """Text in at most this many columns of a terminal."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, max(width - 1, 0)).rstrip() + "…"


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def figures(value: float, digits: int = 3) -> str:
    return "–" if np.isnan(value) else f"{round(value, digits) + 0.0:.{digits}f}"
