"""What the ``influence`` field of an attribution-graph JSON means, found out by computing it anew.

circuit-tracer writes the *cumulative* share (the more influential, the smaller), some forks the raw
influence, Anthropic nothing. Reading one for the other would turn every ranking upside down.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tracer.graph import AttributionGraph
from tracer.influence import influence

__all__ = ["cumulative_share", "influence_meaning"]


def influence_meaning(graph: AttributionGraph, stored: NDArray[np.float64]) -> str:
    """Find out what a file's ``influence`` numbers mean, by computing influence anew.

    They were computed on the graph before it was pruned, so neither meaning fits exactly; but
    cumulative shares *fall* as influence rises, and raw influence rises with it. The sign of the
    rank correlation tells; where it is weak, the meaning whose values lie nearer.

    Parameters
    ----------
    graph
        The graph as read.
    stored
        The numbers, nan where a node has none, shape (n,).

    Returns
    -------
    str
        ``cumulative``, ``raw``, ``absent`` (no numbers), or ``unknown`` (they fit neither).
    """
    known = np.isfinite(stored) & ~graph.is_logit
    if not known.any():
        return "absent"
    values = stored[known]
    if values.min() < 0 or values.max() == 0:
        return "unknown"
    computed = influence(graph)
    shares = cumulative_share(computed)[known]
    correlation = _rank_correlation(values, computed[known])
    if abs(correlation) >= 0.3 and known.sum() >= 4:
        # No single share of the whole is above 1, neither is any cumulative one.
        likely = "raw" if correlation > 0 else "cumulative"
        return likely if likely == "raw" or values.max() <= 1 + 1e-4 else "unknown"
    distance_raw = np.abs(values - computed[known]).sum()
    distance_cumulative = np.abs(values - shares).sum()
    if np.isclose(distance_raw, distance_cumulative):
        return "unknown"
    return "raw" if distance_raw < distance_cumulative else "cumulative"


def cumulative_share(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Share of the total that a node and all above it hold: 1 at the least, shape (n,).

    This is what circuit-tracer writes as ``influence`` (``prune_graph``'s cumulative scores).

    Examples
    --------
    >>> cumulative_share(np.array([1.0, 3.0, 0.0])).tolist()
    [1.0, 0.75, 1.0]
    """
    order = np.argsort(-values, kind="stable")
    total = values.sum()
    shares = np.ones_like(values)
    if total > 0:
        shares[order] = np.minimum(np.cumsum(values[order]) / total, 1.0)
    return shares


def _rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's rank correlation; 0 where one side is constant."""
    ranks_a, ranks_b = pd.Series(a).rank().to_numpy(), pd.Series(b).rank().to_numpy()
    if np.ptp(ranks_a) == 0 or np.ptp(ranks_b) == 0:
        return 0.0
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])
