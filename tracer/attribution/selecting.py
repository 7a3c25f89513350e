"""The most influential features of a prompt, found while their rows are computed.

With ``max_features``, rows are computed in batches: the logits' first, then always those of the
features that most influence flows into so far. Features never chosen are merged into the error node
of their own (layer, position), signed, so that every row stays a complete account.

Source: Circuit Tracing (2025), "Constructing an attribution graph"; the reference tool's
``max_feature_nodes``.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array, diags_array, vstack

from tracer.attribution.edges import Progress, Rows, Targets, rows
from tracer.attribution.local import Indices, LocalModel
from tracer.attribution.targets import Outputs

__all__ = ["Selection", "feature_targets", "merge", "select_features"]

# Influence is recomputed this many times on the way: more changes the choice little.
_ROUNDS = 16


class Selection:
    """Rows of the chosen features, and what became of the others.

    Attributes
    ----------
    chosen
        The features kept, as ranks in the order of graphs, ascending, shape (m,).
    rows
        Rows of the chosen features, then of the outputs, over all columns.
    merged_influence
        Share of the outputs' weight that arrives at features which were not chosen.
    """

    def __init__(self, chosen: Indices, rows_: Rows, merged_influence: float) -> None:
        self.chosen, self.rows, self.merged_influence = chosen, rows_, merged_influence


def feature_targets(local: LocalModel, ranks: Indices, outputs: Outputs | None) -> Targets:
    """Targets for some features (by rank in the order of graphs), and the outputs after them."""
    numbers = local.canonical[ranks]
    layers, positions = local.layers[numbers], local.positions[numbers]
    vectors = local.encoder_vectors(numbers)
    if outputs is not None:
        layers = np.concatenate([layers, outputs.layers])
        positions = np.concatenate([positions, outputs.positions])
        vectors = torch.cat([vectors, outputs.vectors])
    frozen = local.frozen
    return Targets(layers, positions, vectors, frozen.n_layers, frozen.n_positions)


def select_features(
    local: LocalModel,
    outputs: Outputs,
    max_features: int,
    progress: Progress | None = None,
) -> Selection:
    """Compute the rows of at most `max_features` features, the most influential first."""
    none = np.empty(0, dtype=np.int64)
    head = rows(local, feature_targets(local, none, outputs), meet=0)
    weights, constants = head.weights, head.constants
    chosen = none
    step = max(32, -(-max_features // _ROUNDS))
    while len(chosen) < min(max_features, local.n_features):
        arriving = _arriving(weights, chosen, outputs.weights, local.n_features)
        arriving[chosen] = 0
        best = np.argsort(-arriving, kind="stable")[: min(step, max_features - len(chosen))]
        best = best[arriving[best] > 0]
        if not len(best):
            break
        more = rows(local, feature_targets(local, np.sort(best), None), meet=0)
        n_outputs = len(outputs)
        chosen = np.concatenate([chosen, np.sort(best)])
        weights = csr_array(
            vstack([weights[:-n_outputs], more.weights, weights[-n_outputs:]], format="csr")
        )
        constants = np.concatenate([constants[:-n_outputs], more.constants, constants[-n_outputs:]])
        if progress is not None:
            progress(len(chosen), min(max_features, local.n_features))
    arriving = _arriving(weights, chosen, outputs.weights, local.n_features)
    arriving[chosen] = 0
    share = float(arriving.sum() / outputs.weights.sum())
    order = np.argsort(chosen)
    take = np.concatenate([order, np.arange(len(chosen), len(constants))])
    return Selection(chosen[order], Rows(csr_array(weights[take]), constants[take]), share)


def _arriving(
    weights: csr_array, chosen: Indices, output_weights: NDArray[np.float64], n_features: int
) -> NDArray[np.float64]:
    """Influence that arrives at each feature through the rows known so far, shape (n,).

    The Neumann series of spec 5 on the known rows: those not computed yet have no inputs.
    """
    absolute = abs(weights).astype(np.float64)
    sums = np.asarray(absolute.sum(axis=1)).ravel()
    scale = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)
    normal = csr_array(diags_array(scale) @ absolute)[:, :n_features]
    n_outputs = len(output_weights)
    head, body = normal[-n_outputs:], normal[:-n_outputs]
    step = head.T @ output_weights
    total = step.copy()
    while len(chosen) and (through := step[chosen]).any():
        step = body.T @ through
        total += step
    return np.asarray(total)


def merge(local: LocalModel, weights: csr_array, chosen: Indices) -> csr_array:
    """Add the columns of features that were not chosen, signed, to their own error nodes'.

    Returns
    -------
    csr_array
        Shape (t, m + L·P + P): chosen features, errors, embeddings.
    """
    n, frozen = local.n_features, local.frozen
    n_errors, n_columns = frozen.n_layers * frozen.n_positions, weights.shape[1]
    column = np.empty(n_columns, dtype=np.int64)
    numbers = local.canonical
    column[:n] = len(chosen) + local.layers[numbers] * frozen.n_positions + local.positions[numbers]
    column[chosen] = np.arange(len(chosen))
    column[n:] = len(chosen) + np.arange(n_columns - n)
    shape = (n_columns, len(chosen) + n_errors + frozen.n_positions)
    ones = np.ones(n_columns, dtype=weights.dtype)
    return csr_array(weights @ csr_array(coo_array((ones, (np.arange(n_columns), column)), shape)))
