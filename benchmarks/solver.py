"""The sparse solve: influence and scores against bare matrix-vector products and a solver.

Influence over paths of k edges is ``wᵀÂᵏ``, so no way of computing it by length takes fewer than
one product a length. Normalisation, error shares and scores come on top: how much?
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import spsolve_triangular

import tracer
from benchmarks.timing import median_time, say
from benchmarks.workload import synthetic_graph
from tracer import AttributionGraph
from tracer.influence import Flow

__all__ = ["measure_solver"]


def measure_solver(n_nodes: int = 10_000, n_edges: int = 5_000_000) -> dict[str, Any]:
    """Seconds of each way, and the largest difference between the two results."""
    say(f"solver: making a graph of {n_nodes:,} nodes and {n_edges:,} edges")
    graph = synthetic_graph(n_nodes, n_edges)
    matrix = abs(graph.adjacency.astype(np.float64))
    vector = np.random.default_rng(1).random(graph.n_nodes)
    flow = Flow(graph)
    order, triangle = _triangle(graph, flow)
    solved = np.empty(graph.n_nodes)
    solved[order] = _solve(triangle, flow.weights[order]) - flow.weights[order]
    say("solver: timing")
    return {
        "nodes": graph.n_nodes,
        "edges": graph.n_edges,
        "lengths": flow.n_steps,
        "product": median_time(lambda: matrix @ vector, 15),
        "influence_and_scores": median_time(lambda: _influence_and_scores(graph)),
        "normalisation": median_time(lambda: Flow(graph)),
        "series": median_time(lambda: _series(flow)),
        "triangular_setup": median_time(lambda: _triangle(graph, flow), 3),
        "triangular_solve": median_time(lambda: _solve(triangle, flow.weights[order]), 3),
        "largest_difference": float(np.abs(solved - flow.influence).max()),
        "construction": median_time(graph.replace, 3),
        "pruning": median_time(lambda: tracer.prune(graph), 1, warm=False),
    }


def _influence_and_scores(graph: AttributionGraph) -> tracer.Scores:
    flow = Flow(graph)
    return tracer.scores(graph, flow=flow)


def _series(flow: Flow) -> None:
    """The terms of the series once more; the matrix is kept."""
    vars(flow).pop("by_length", None)
    vars(flow).pop("influence", None)
    _ = flow.influence


def _triangle(graph: AttributionGraph, flow: Flow) -> tuple[np.ndarray, sparse.csr_array]:
    """``I − Âᵀ`` with nodes in the order of layers, where it is upper triangular."""
    layer = graph.nodes["layer"].to_numpy(np.float64) - 0.5 * graph.is_error
    order = np.argsort(layer, kind="stable")
    shares = flow.normalised[order][:, order]
    return order, sparse.csr_array(sparse.eye_array(graph.n_nodes) - shares.T)


def _solve(triangle: sparse.csr_array, weights: np.ndarray) -> np.ndarray:
    return spsolve_triangular(triangle, weights, lower=False, unit_diagonal=True)
