"""Scores of an attribution graph: replacement, completeness, mean path length, and what is lost.

Defined in Circuit Tracing (2025), "Evaluating attribution graphs". A pruned graph has them under
four rules, all of which start from the unpruned matrix and the nodes that were kept:

``full``
    nothing is removed;
``merge``
    all error nodes stay, and each removed feature's outgoing weights are added, signed, to the
    error node of its own layer and position, before absolute values are taken;
``masked``
    removed rows and columns are dropped, edges between kept nodes all stay;
``as_stored``
    the graph as it is, with the nodes and edges that were kept.

The edges of a pruned graph tell the last one only. The others are kept on it when it is pruned.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tracer.errors import ScoreError, SettingError, nearest
from tracer.graph import RULES, AttributionGraph, Rule, Scores
from tracer.influence import Flow, row_counts, select

__all__ = [
    "all_scores",
    "completeness_score",
    "flow_scores",
    "masked_scores",
    "mean_path_length",
    "merged_scores",
    "replacement_score",
    "scores",
]

Mask = NDArray[np.bool_]


def scores(
    graph: AttributionGraph, rule: Rule | None = None, *, flow: Flow | None = None
) -> Scores:
    """Scores of a graph under one rule.

    Parameters
    ----------
    graph
        The graph.
    rule
        ``full``, ``merge``, ``masked`` or ``as_stored`` (see the top of this file); left out, it
        is ``full`` where that is known and ``as_stored`` elsewhere.
    flow
        The graph's :class:`~tracer.influence.Flow`, where it has been made already.

    Returns
    -------
    Scores
        A figure whose denominator is zero (a graph without targets, say) is nan.

    Raises
    ------
    SettingError
        If `rule` is unknown.
    ScoreError
        If the graph does not determine the scores under `rule`.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Evaluating attribution graphs".

    Examples
    --------
    >>> import pandas as pd
    >>> nodes = pd.DataFrame({"kind": ["embedding", "error", "logit"], "layer": [-1, 0, 1],
    ...                       "position": 0, "index": [5, -1, 7],
    ...                       "probability": [None, None, 0.5]})
    >>> graph = AttributionGraph(nodes, csr_array([[0, 0, 0], [0, 0, 0], [3.0, -1.0, 0]]))
    >>> scores(graph)  # doctest: +NORMALIZE_WHITESPACE
    Scores(rule='as_stored', completeness=0.875, replacement=0.75, mean_path_length=1.0, lost=0.0)
    """
    if rule is None:
        rule = "full" if graph.unpruned or "full" in graph.scores else "as_stored"
    if rule not in RULES:
        raise SettingError(
            f"rule {rule!r} is unknown", nearest(rule, RULES) or f"Known are {', '.join(RULES)}"
        )
    if graph.unpruned or rule == "as_stored":
        return flow_scores(flow or Flow(graph), rule)
    if rule not in graph.scores:
        raise ScoreError(
            f"graph {graph.graph_id} does not tell its scores under rule {rule!r}: it lacks the "
            "nodes and edges that were removed, and was not pruned here",
            "Use rule as_stored, or prune the unpruned graph with tracer.prune",
        )
    return graph.scores[rule]


def all_scores(graph: AttributionGraph, *, flow: Flow | None = None) -> dict[Rule, Scores]:
    """Scores under every rule that the graph determines, by rule.

    An unpruned graph has all four, and they are equal. Another has those that it carries since it
    was pruned, and ``as_stored``.

    Parameters
    ----------
    graph
        The graph.
    flow
        The graph's :class:`~tracer.influence.Flow`, where it has been made already.

    Examples
    --------
    >>> import pandas as pd
    >>> nodes = pd.DataFrame({"kind": ["embedding", "logit"], "layer": [-1, 1], "position": 0,
    ...                       "index": [5, 7], "probability": [None, 0.5]})
    >>> graph = AttributionGraph(nodes, csr_array([[0, 0], [3.0, 0]]))
    >>> list(all_scores(graph)), list(all_scores(graph.replace(unpruned=True)))
    (['as_stored'], ['full', 'merge', 'masked', 'as_stored'])
    """
    flow = flow or Flow(graph)
    known = [rule for rule in RULES if graph.unpruned or rule in (*graph.scores, "as_stored")]
    return {rule: scores(graph, rule, flow=flow) for rule in known}


def replacement_score(graph: AttributionGraph, rule: Rule | None = None) -> float:
    """Share of the influence on the logits that starts at embeddings, not at error nodes.

    ``I_emb / (I_emb + I_err)``, with the influence summed over embedding and error nodes.

    Raises
    ------
    SettingError
        If `rule` is unknown.
    ScoreError
        If the graph does not determine it under `rule`, or no influence reaches an embedding or
        error node.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Evaluating attribution graphs", replacement score.

    Examples
    --------
    >>> import pandas as pd
    >>> nodes = pd.DataFrame({"kind": ["embedding", "error", "logit"], "layer": [-1, 0, 1],
    ...                       "position": 0, "index": [5, -1, 7],
    ...                       "probability": [None, None, 0.5]})
    >>> graph = AttributionGraph(nodes, csr_array([[0, 0, 0], [0, 0, 0], [3.0, -1.0, 0]]))
    >>> replacement_score(graph)
    0.75
    """
    return _figure(graph, "replacement", scores(graph, rule).replacement)


def completeness_score(graph: AttributionGraph, rule: Rule | None = None) -> float:
    """Share of all nodes' inputs, weighted by influence, that does not come from error nodes.

    ``Σ_t (1 − f_t)(I_t + w_t) / Σ_t (I_t + w_t)`` over all nodes t, ``f_t`` being the share of t's
    input that comes from error nodes.

    Raises
    ------
    SettingError
        If `rule` is unknown.
    ScoreError
        If the graph does not determine it under `rule`, or it has no targets of any weight.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Evaluating attribution graphs", completeness score.

    Examples
    --------
    >>> import pandas as pd
    >>> nodes = pd.DataFrame({"kind": ["embedding", "error", "logit"], "layer": [-1, 0, 1],
    ...                       "position": 0, "index": [5, -1, 7],
    ...                       "probability": [None, None, 0.5]})
    >>> graph = AttributionGraph(nodes, csr_array([[0, 0, 0], [0, 0, 0], [3.0, -1.0, 0]]))
    >>> completeness_score(graph)  # 1 − 0.125/(0.375 + 0.125 + 0.5)
    0.875
    """
    return _figure(graph, "completeness", scores(graph, rule).completeness)


def mean_path_length(graph: AttributionGraph, rule: Rule | None = None) -> float:
    """Mean number of edges of embedding→logit paths, weighted by the influence they carry.

    ``Σ k·m_k / Σ m_k`` with ``m_k = wᵀÂᵏ1_emb``.

    Raises
    ------
    SettingError
        If `rule` is unknown.
    ScoreError
        If the graph does not determine it under `rule`, or has no path from an embedding to a
        target.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Evaluating attribution graphs", average path length.

    Examples
    --------
    >>> import pandas as pd
    >>> nodes = pd.DataFrame({"kind": ["embedding", "feature", "logit"], "layer": [-1, 0, 1],
    ...                       "position": 0, "index": [5, 6, 7],
    ...                       "probability": [None, None, 0.5]})
    >>> graph = AttributionGraph(nodes, csr_array([[0, 0, 0], [2.0, 0, 0], [1.0, -3.0, 0]]))
    >>> mean_path_length(graph)  # a quarter takes one step, the rest two
    1.75
    """
    return _figure(graph, "mean path length", scores(graph, rule).mean_path_length)


def flow_scores(flow: Flow, rule: Rule) -> Scores:
    """Scores of the edges that a flow runs over, named after the rule that chose them."""
    through = flow.influence + flow.weights  # of the logits too, which have no influence
    from_embeddings, from_errors = flow.embedding_influence, flow.error_influence
    masses, weight = flow.masses, flow.weights.sum()
    return Scores(
        rule=rule,
        completeness=_ratio(((1.0 - flow.error_fraction) * through).sum(), through.sum()),
        replacement=_ratio(from_embeddings, from_embeddings + from_errors),
        mean_path_length=_ratio((masses * np.arange(1, len(masses) + 1)).sum(), masses.sum()),
        # Nothing is lost where every feature has inputs; what is left then is rounding.
        lost=float(np.maximum(0.0, 1.0 - _ratio(from_embeddings + from_errors, weight))),
    )


def masked_scores(graph: AttributionGraph, keep: Mask) -> Scores:
    """Scores of an unpruned graph under ``masked``: all edges between the kept nodes.

    Parameters
    ----------
    graph
        The unpruned graph.
    keep
        (n,), the nodes that stay; embeddings and logits among them.
    """
    adjacency = graph.adjacency
    entries = np.repeat(keep, np.diff(adjacency.indptr))
    entries &= keep[adjacency.indices]
    flow = Flow.of_matrix(
        select(adjacency, entries),
        weights=graph.logit_weights,
        embeddings=graph.is_embedding,
        errors=graph.is_error,
    )
    return flow_scores(flow, "masked")


def merged_scores(graph: AttributionGraph, keep: Mask) -> Scores:
    """Scores of an unpruned graph under ``merge``: removed features count as error.

    Parameters
    ----------
    graph
        The unpruned graph. A layer and position without an error node gets one where needed: no
        node means an error of zero.
    keep
        (n,), the nodes that stay; embeddings and logits among them.
    """
    adjacency = graph.adjacency
    column, added = _columns_with_errors(graph, graph.is_feature & ~keep)
    n = graph.n_nodes + added
    entries = np.repeat(keep | graph.is_error, np.diff(adjacency.indptr))
    ends = np.cumsum(row_counts(entries, adjacency.indptr))
    indptr = np.concatenate([[0], ends, np.full(added, ends[-1])])
    merged = csr_array(
        (
            adjacency.data[entries].astype(np.float64, copy=False),
            column[adjacency.indices[entries]],
            indptr.astype(adjacency.indptr.dtype),
        ),
        shape=(n, n),
        copy=False,
    )
    merged.sum_duplicates()
    merged.eliminate_zeros()  # weights that cancel are no edge
    flow = Flow.of_matrix(
        merged,
        weights=np.concatenate([graph.logit_weights, np.zeros(added)]),
        embeddings=np.concatenate([graph.is_embedding, np.zeros(added, np.bool_)]),
        errors=np.concatenate([graph.is_error, np.ones(added, np.bool_)]),
    )
    return flow_scores(flow, "merge")


def _columns_with_errors(graph: AttributionGraph, removed: Mask) -> tuple[NDArray[np.int32], int]:
    """Column of every node once removed features are error, and how many columns are new."""
    n = graph.n_nodes
    places = list(zip(graph.nodes["layer"], graph.nodes["position"], strict=True))
    error_of = {places[row]: int(row) for row in np.flatnonzero(graph.is_error)}
    n_errors = len(error_of)
    column = np.arange(n, dtype=np.int32)
    for row in np.flatnonzero(removed):
        column[row] = error_of.setdefault(places[row], n + len(error_of) - n_errors)
    return column, len(error_of) - n_errors


def _ratio(part: float | np.float64, whole: float | np.float64) -> float:
    return float(part / whole) if whole > 0 else float("nan")


def _figure(graph: AttributionGraph, name: str, value: float) -> float:
    if np.isnan(value):
        raise ScoreError(
            f"graph {graph.graph_id} has no {name}: no influence reaches the nodes it counts",
            "It needs targets with probabilities, and paths to them",
        )
    return value
