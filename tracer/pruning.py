"""Pruning: the part of an attribution graph that carries most of the influence on its logits.

Circuit Tracing (2025), "Graph pruning" and its appendix, in two forms: the reference tool's
(circuit-tracer, the default) and the paper's, which keeps every error node.

1. Keep the most influential nodes, up to a share of the influence of all nodes.
2. With what is left, normalise and compute influence again; keep the edges of highest score
   ``Â[t, s]·(I_t + w_t)``, up to a share of all scores.
3. Drop features and errors that feed nothing any more, and features that nothing feeds, until no
   more are found.

Tokens and logits always stay. The paper *replaces* I by w at the logits where the tool adds it;
logits feed nothing, so their I is zero and both mean the same.
"""

from __future__ import annotations

from typing import Any, Final, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tracer.errors import SettingError, nearest
from tracer.graph import AttributionGraph, Rule, Scores, Supernode, graph_identity
from tracer.influence import Flow, row_counts, select
from tracer.scores import flow_scores, masked_scores, merged_scores

__all__ = ["PRUNING_RULES", "PruningRule", "prune", "prune_masks", "pruned_identity"]

PruningRule = Literal["circuit-tracer", "paper"]
PRUNING_RULES: Final[tuple[PruningRule, ...]] = ("circuit-tracer", "paper")
Mask = NDArray[np.bool_]
Vector = NDArray[np.float64]

# Scores that are equal on paper differ in their last digits by the order in which they were summed;
# ties must stay whatever the order of the nodes.
_ROUNDING: Final = 1e-12


def prune(
    graph: AttributionGraph,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    rule: PruningRule = "circuit-tracer",
    *,
    flow: Flow | None = None,
) -> AttributionGraph:
    """Keep the nodes and edges that carry most of the influence on the logits.

    Parameters
    ----------
    graph
        The graph, as a rule unpruned.
    node_threshold, edge_threshold
        Shares in [0, 1] of the nodes' influence and of the edges' scores to keep. Kept is every
        score that is at least the one at which the cumulative share first reaches the threshold,
        so ties stay; 1 keeps everything that is not zero.
    rule
        ``circuit-tracer`` prunes error nodes like features; ``paper`` keeps them all.
    flow
        The graph's :class:`~tracer.influence.Flow`, where it has been made already.

    Returns
    -------
    AttributionGraph
        With ``parent_id`` that of `graph`, an id that follows from it and from the thresholds, and
        the thresholds in ``settings["pruning"]``. Parts, biases, supernodes (without removed
        members; empty ones are dropped), pinned nodes and labels come along. From an unpruned
        graph it carries what its own edges cannot tell: columns ``influence_full``,
        ``error_fraction_full``, ``input_full``, and scores under ``full``, ``merge`` and
        ``masked``. From another graph it carries on what that has and what is still true of it.

    Raises
    ------
    SettingError
        If a threshold is outside [0, 1] or `rule` is unknown.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Graph pruning".

    Examples
    --------
    Three embeddings feed a logit with shares 0.6, 0.3 and 0.1 through a feature each.

    >>> from tracer.convert import from_pandas
    >>> nodes = pd.DataFrame({"kind": ["embedding"] * 3 + ["feature"] * 3 + ["logit"],
    ...                       "layer": [-1] * 3 + [0] * 3 + [1], "position": [0, 1, 2] * 2 + [2],
    ...                       "index": range(7), "probability": [None] * 6 + [1.0]})
    >>> edges = pd.DataFrame({"source": [f"embedding/{p}" for p in range(3)]
    ...                                 + [f"feature/0/{p + 3}/{p}" for p in range(3)],
    ...                       "target": [f"feature/0/{p + 3}/{p}" for p in range(3)]
    ...                                 + ["logit/6"] * 3, "weight": [1.0, 1, 1, 6, -3, 1]})
    >>> small = prune(from_pandas(nodes, edges, unpruned=True), node_threshold=0.8)
    >>> small.keys
    ('embedding/0', 'embedding/1', 'embedding/2', 'feature/0/3/0', 'feature/0/4/1', 'logit/6')
    >>> small.n_edges
    4
    """
    _check_settings(node_threshold, edge_threshold, rule)
    flow = flow or Flow(graph)
    influence, nodes, scores = flow.influence, graph.nodes, _full_score(graph, flow)
    if graph.unpruned:
        nodes = nodes.assign(
            influence_full=influence,
            error_fraction_full=flow.error_fraction,
            input_full=flow.inputs,
        )
    del flow  # a matrix as large as the graph's, unless the caller holds it

    masks = _masks(graph, influence, node_threshold, edge_threshold, rule)
    if graph.unpruned:
        scores["merge"] = merged_scores(graph, masks.nodes)
        scores["masked"] = masked_scores(graph, masks.nodes)
    return _kept(graph, masks, nodes, scores, _settings(node_threshold, edge_threshold, rule))


def prune_masks(
    graph: AttributionGraph,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    rule: PruningRule = "circuit-tracer",
) -> tuple[Mask, csr_array]:
    """Nodes and edges that :func:`prune` would keep.

    Parameters
    ----------
    graph, node_threshold, edge_threshold, rule
        As for :func:`prune`.

    Returns
    -------
    node_mask : ndarray of bool, shape (n,)
    edge_mask : csr_array of bool, shape (n, n)
        Rows = targets.

    Raises
    ------
    SettingError
        If a threshold is outside [0, 1] or `rule` is unknown.

    Examples
    --------
    >>> nodes = pd.DataFrame({"kind": ["embedding", "error", "logit"], "layer": [-1, 0, 1],
    ...                       "position": 0, "index": [5, -1, 7],
    ...                       "probability": [None, None, 0.5]})
    >>> graph = AttributionGraph(nodes, csr_array([[0, 0, 0], [0, 0, 0], [3.0, -1.0, 0]]))
    >>> node_mask, edge_mask = prune_masks(graph, node_threshold=0.7)
    >>> node_mask.tolist(), edge_mask.nnz
    ([True, False, True], 1)
    """
    _check_settings(node_threshold, edge_threshold, rule)
    masks = _masks(graph, Flow(graph).influence, node_threshold, edge_threshold, rule)
    kept = select(graph.adjacency, masks.edges)
    return masks.nodes, csr_array(
        (np.ones(kept.nnz, np.bool_), kept.indices, kept.indptr), shape=kept.shape, copy=False
    )


def pruned_identity(
    traced_id: str,
    node_threshold: float = 0.8,
    edge_threshold: float = 0.98,
    rule: PruningRule = "circuit-tracer",
) -> str:
    """Id that :func:`prune` will give a traced graph, known before it is traced.

    Parameters
    ----------
    traced_id
        Id of the trace (:func:`tracer.trace_identity`), which says all that the graph is made of.
    node_threshold, edge_threshold, rule
        As for :func:`prune`.

    Raises
    ------
    SettingError
        If a threshold is outside [0, 1] or `rule` is unknown.

    Examples
    --------
    >>> pruned_identity("1e6d26a446fddd23")
    'a211de006fdb8cb9'
    """
    _check_settings(node_threshold, edge_threshold, rule)
    return _identity_of_pruned(traced_id, _settings(node_threshold, edge_threshold, rule))


class _Masks(NamedTuple):
    nodes: Mask  # (n,)
    edges: Mask  # (nnz,), over the stored entries of the adjacency matrix


def _check_settings(node_threshold: float, edge_threshold: float, rule: str) -> None:
    for name, value in (("node_threshold", node_threshold), ("edge_threshold", edge_threshold)):
        number = isinstance(value, int | float | np.integer | np.floating)
        if not number or isinstance(value, bool) or not 0 <= value <= 1:
            raise SettingError(
                f"{name} is {value!r}", "Give the share to keep, a number from 0 to 1"
            )
    if rule not in PRUNING_RULES:
        raise SettingError(
            f"pruning rule {rule!r} is unknown",
            nearest(str(rule), PRUNING_RULES) or f"Known are {', '.join(PRUNING_RULES)}",
        )


def _full_score(graph: AttributionGraph, flow: Flow) -> dict[Rule, Scores]:
    """Score of the unpruned graph, where it is known; merge and masked depend on the new masks."""
    if graph.unpruned:
        return {"full": flow_scores(flow, "full")}
    return {rule: score for rule, score in graph.scores.items() if rule == "full"}


def _masks(
    graph: AttributionGraph,
    influence: Vector,
    node_threshold: float,
    edge_threshold: float,
    rule: PruningRule,
) -> _Masks:
    adjacency = graph.adjacency
    always = graph.is_embedding | graph.is_logit
    if rule == "paper":
        always |= graph.is_error
    nodes = always | _most(influence, node_threshold)

    edges = np.repeat(nodes, np.diff(adjacency.indptr))
    edges &= nodes[adjacency.indices]
    left = Flow.of_matrix(
        select(adjacency, edges),
        weights=graph.logit_weights,
        embeddings=graph.is_embedding,
        errors=graph.is_error,
    )
    edge_scores = left.edge_scores.data
    del left  # before the scores are sorted: both are as large as the graph
    edges[edges] = _most(edge_scores, edge_threshold)
    del edge_scores

    needs_output, needs_input = ~always, graph.is_feature
    while True:
        has_output = np.zeros_like(nodes)
        has_output[adjacency.indices[edges]] = True
        has_input = row_counts(edges, adjacency.indptr) > 0
        still = nodes & (has_output | ~needs_output) & (has_input | ~needs_input)
        if np.array_equal(still, nodes):
            return _Masks(nodes, edges)
        nodes = still
        edges &= np.repeat(nodes, np.diff(adjacency.indptr))
        edges &= nodes[adjacency.indices]


def _most(scores: Vector, threshold: float) -> Mask:
    """Mask of the highest scores: all that reach the one at which the cumulative share does."""
    positive: Mask = scores > 0
    if threshold == 1 or not positive.any():
        return positive
    ordered = np.sort(scores)[::-1]
    cumulative = np.cumsum(ordered)
    reached = np.searchsorted(cumulative, threshold * cumulative[-1] * (1 - _ROUNDING))
    positive &= scores >= ordered[reached] * (1 - _ROUNDING)
    return positive


def _settings(node_threshold: float, edge_threshold: float, rule: PruningRule) -> dict[str, Any]:
    return {
        "node_threshold": float(node_threshold),
        "edge_threshold": float(edge_threshold),
        "rule": rule,
    }


def _kept(
    graph: AttributionGraph,
    masks: _Masks,
    nodes: pd.DataFrame,
    scores: dict[Rule, Scores],
    pruning: dict[str, Any],
) -> AttributionGraph:
    """Copy of a graph with the nodes and edges of the masks, and all that is said of them."""
    keep = masks.nodes
    adjacency = select(graph.adjacency, masks.edges, keep)
    row_of = np.cumsum(keep) - 1
    supernodes = [
        Supernode(group.name, members, group.author)
        for group in graph.supernodes
        if (members := tuple(int(row_of[row]) for row in group.members if keep[row]))
    ]
    settings = {**graph.settings, "pruning": pruning}
    return graph.replace(
        nodes=nodes[keep].reset_index(drop=True),
        adjacency=adjacency,
        residual=_part(graph.residual, keep, adjacency),
        attention=_part(graph.attention, keep, adjacency),
        supernodes=supernodes,
        pinned=tuple(int(row_of[row]) for row in graph.pinned if keep[row]),
        settings=settings,
        scores=scores,
        unpruned=False,
        parent_id=graph.graph_id,
        graph_id=_identity(graph, settings),
    )


def _identity(graph: AttributionGraph, settings: dict[str, Any]) -> str:
    """Id of what is pruned from a graph: from what it is made of, known beforehand for a trace."""
    if graph.source.get("format") == "traced":
        return _identity_of_pruned(graph.graph_id, settings["pruning"])
    return graph_identity(
        model_id=graph.model_id,
        transcoder_id=graph.transcoder_id,
        tokens=graph.token_ids if graph.token_ids is not None else graph.tokens,
        targets=graph.nodes.loc[graph.is_logit, "index"].tolist(),
        settings={**settings, "parent": graph.graph_id},
    )


def _identity_of_pruned(parent_id: str, pruning: dict[str, Any]) -> str:
    return graph_identity(
        model_id=None,
        transcoder_id=None,
        tokens=(),
        targets=None,
        settings={"parent": parent_id, "pruning": pruning},
    )


def _part(part: csr_array | None, keep: Mask, adjacency: csr_array) -> csr_array | None:
    """Residual or attention part of the edges that stay, with its values as they are."""
    if part is None:
        return None
    entries = np.repeat(keep, np.diff(part.indptr))
    entries &= keep[part.indices]
    between = select(part, entries, keep)
    ones = csr_array(
        (np.ones(adjacency.nnz, part.dtype), adjacency.indices, adjacency.indptr),
        shape=adjacency.shape,
        copy=False,
    )
    return csr_array(between.multiply(ones))
