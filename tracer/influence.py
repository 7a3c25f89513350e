"""Influence of every node on the logits: in total, by path length, and over every edge.

With ``Â`` the matrix of |weights|, each row divided by its sum, and ``w`` the probabilities of the
logit nodes, the influence of node s is ``(wᵀB)_s``, ``B = Σ_{k≥1} Âᵏ`` (Circuit Tracing 2025,
"Graph pruning" and appendix "Influence matrix"). An attribution graph has no cycle, so the series
ends by itself: its terms are the influence by path length, and their sum is exact. It was measured
against a sparse triangular solve, and is faster (``benchmarks/``).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tracer.errors import GraphError, SettingError
from tracer.graph import AttributionGraph

__all__ = [
    "Flow",
    "Sign",
    "edge_scores",
    "error_fraction",
    "influence",
    "influence_by_length",
    "normalised",
    "path_lengths",
]

Sign = Literal["absolute", "signed", "positive"]
SIGNS: Final[tuple[Sign, ...]] = ("absolute", "signed", "positive")
Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]

_BLOCK: Final = 1 << 18  # edges scaled at a time: what is made on the way stays in the cache


class Flow:
    """What one pass over a graph's edges tells, each part computed once, when first asked for.

    Use it wherever more than one of its parts is needed; the functions of this file are its parts
    under their own names. Arrays are read-only, in float64 whatever the graph's weights are.

    Parameters
    ----------
    graph
        The graph, or any with the same edges.
    sign
        ``absolute``: rows are |A|/Σ|A|. ``signed``: A/Σ|A|. ``positive``: max(A, 0)/Σmax(A, 0).

    Attributes
    ----------
    normalised : csr_array of float64, shape (n, n)
        ``Â``: share of every edge in its target's input; rows = targets.
    inputs : ndarray of float64, shape (n,)
        What the rows were divided by: Σ|weight| of the inputs (positive ones only, if so asked).
    weights : ndarray of float64, shape (n,)
        ``w``: probability at logits, 0 elsewhere.
    n_steps : int
        Number of edges of the longest path that ends at a logit.

    Raises
    ------
    SettingError
        If `sign` is unknown.

    Examples
    --------
    One embedding and one error feed a feature, with |weights| 3 and 1; the feature and the
    embedding feed a logit of probability 0.8, with 1 and 1.

    >>> from tracer.convert import from_pandas
    >>> graph = from_pandas(
    ...     pd.DataFrame({"kind": ["embedding", "error", "feature", "logit"],
    ...                   "layer": [-1, 0, 0, 1], "position": 0, "index": [5, -1, 7, 9],
    ...                   "probability": [None, None, None, 0.8]}),
    ...     pd.DataFrame(
    ...         [("embedding/0", "feature/0/7/0", 3.0), ("error/0/0", "feature/0/7/0", -1.0),
    ...          ("embedding/0", "logit/9", 1.0), ("feature/0/7/0", "logit/9", 1.0)],
    ...         columns=["source", "target", "weight"]))
    >>> flow = Flow(graph)
    >>> flow.influence.round(3).tolist()
    [0.7, 0.1, 0.4, 0.0]
    >>> flow.error_fraction.tolist()
    [0.0, 0.0, 0.25, 0.0]
    >>> flow.masses.round(3).tolist()  # embedding → logit, over one and over two edges
    [0.4, 0.3]
    """

    normalised: csr_array
    inputs: Vector
    weights: Vector

    def __init__(self, graph: AttributionGraph, sign: Sign = "absolute") -> None:
        self._prepare(
            graph.adjacency, graph.logit_weights, graph.is_embedding, graph.is_error, sign
        )

    @classmethod
    def of_matrix(
        cls, adjacency: csr_array, *, weights: Vector, embeddings: Mask, errors: Mask
    ) -> Flow:
        """Flow over a matrix that is no graph of its own, such as one with nodes masked.

        Parameters
        ----------
        adjacency
            (n, n), rows = targets, in canonical form, without a cycle.
        weights
            (n,), the w of the targets, 0 elsewhere.
        embeddings, errors
            (n,), which nodes are embeddings and errors; neither has inputs.
        """
        flow = cls.__new__(cls)
        flow._prepare(adjacency, weights, embeddings, errors, "absolute")
        return flow

    def _prepare(
        self, adjacency: csr_array, weights: Vector, embeddings: Mask, errors: Mask, sign: Sign
    ) -> None:
        self.normalised, self.inputs = _normalise(adjacency, sign)
        self.weights = weights
        self._embeddings, self._errors = embeddings, errors

    @property
    def n_steps(self) -> int:
        """Number of edges of the longest path that ends at a logit."""
        return int(self.by_length.shape[0])

    @cached_property
    def by_length(self) -> csr_array:
        """Influence over paths of exactly k edges, ``wᵀÂᵏ``, in row k − 1; shape (k, n)."""
        rows, values, ends = [], [], [0]
        for step in _series(self.weights, self.normalised):
            rows.append(np.flatnonzero(step))
            values.append(step[rows[-1]])
            ends.append(ends[-1] + len(rows[-1]))
        n = len(self.weights)
        indices = np.concatenate([np.empty(0, np.intp), *rows]).astype(np.int32)
        data = np.concatenate([np.empty(0), *values])
        return _frozen(data, indices, np.array(ends, np.int32), (len(rows), n))

    @cached_property
    def influence(self) -> Vector:
        """Influence ``wᵀB`` of every node on the logits, shape (n,); 0 at the logits."""
        return _read_only(np.asarray(self.by_length.sum(axis=0), np.float64))

    @cached_property
    def masses(self) -> Vector:
        """Influence over embedding→logit paths of exactly k edges, at k − 1; shape (k,)."""
        return _read_only(self.by_length @ self._embeddings.astype(np.float64))

    @cached_property
    def error_fraction(self) -> Vector:
        """Share of every node's normalised input that comes from error nodes, shape (n,)."""
        return _read_only(self.normalised @ self._errors.astype(np.float64))

    @property
    def edge_scores(self) -> csr_array:
        """Score ``Â[t, s]·(I_t + w_t)`` of every edge, shape (n, n); made anew, as it is large."""
        matrix = self.normalised
        data = matrix.data.copy()
        _scale_rows(data, matrix.indptr, self.influence + self.weights)
        return _frozen(data, matrix.indices, matrix.indptr, matrix.shape)

    @property
    def embedding_influence(self) -> float:
        """Summed influence of the embedding nodes."""
        return float(self.influence[self._embeddings].sum())

    @property
    def error_influence(self) -> float:
        """Summed influence of the error nodes."""
        return float(self.influence[self._errors].sum())


def normalised(graph: AttributionGraph, sign: Sign = "absolute") -> csr_array:
    """Matrix ``Â`` of shares: each edge's part of its target's input.

    Parameters
    ----------
    graph
        The graph; its matrix has rows = targets.
    sign
        ``absolute``: |A|/Σ|A|. ``signed``: A/Σ|A|. ``positive``: max(A, 0)/Σmax(A, 0).

    Returns
    -------
    csr_array of float64, shape (n, n)
        Rows sum to 1, or to 0 for nodes without inputs (absolute and positive).

    Raises
    ------
    SettingError
        If `sign` is unknown.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Graph pruning", normalised attribution matrix.

    Examples
    --------
    >>> nodes = pd.DataFrame({"kind": ["embedding", "embedding", "logit"], "layer": [-1, -1, 1],
    ...                       "position": [0, 1, 1], "index": [5, 6, 7],
    ...                       "probability": [None, None, 1.0]})
    >>> graph = AttributionGraph(nodes, csr_array([[0, 0, 0], [0, 0, 0], [3.0, -1.0, 0]]))
    >>> normalised(graph).toarray()[2].tolist()
    [0.75, 0.25, 0.0]
    >>> normalised(graph, "signed").toarray()[2].tolist()
    [0.75, -0.25, 0.0]
    >>> normalised(graph, "positive").toarray()[2].tolist()
    [1.0, 0.0, 0.0]
    """
    return Flow(graph, sign).normalised


def influence(graph: AttributionGraph, sign: Sign = "absolute") -> Vector:
    """Influence ``wᵀB`` of every node on the logits, over paths of every length.

    ``B = Σ_{k≥1} Âᵏ``; ``w`` holds the probabilities of the logit nodes as they are (Σw < 1).

    Parameters
    ----------
    graph
        The graph.
    sign
        How the matrix is normalised, see :func:`normalised`.

    Returns
    -------
    ndarray of float64, shape (n,)
        0 at the logits, which feed nothing.

    Raises
    ------
    SettingError
        If `sign` is unknown.

    Notes
    -----
    The paper's appendix multiplies from the other side; its text, the reference tool and this
    function agree on ``wᵀB``.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Graph pruning", influence on the logits.

    Examples
    --------
    >>> nodes = pd.DataFrame({"kind": ["embedding", "embedding", "logit"], "layer": [-1, -1, 1],
    ...                       "position": [0, 1, 1], "index": [5, 6, 7],
    ...                       "probability": [None, None, 0.5]})
    >>> graph = AttributionGraph(nodes, csr_array([[0, 0, 0], [0, 0, 0], [3.0, -1.0, 0]]))
    >>> influence(graph).tolist()
    [0.375, 0.125, 0.0]
    """
    return Flow(graph, sign).influence


def influence_by_length(graph: AttributionGraph) -> csr_array:
    """Influence of every node over paths of exactly k edges, ``wᵀÂᵏ``.

    Returns
    -------
    csr_array of float64, shape (k, n)
        Row k − 1 holds length k; the last row is that of the longest path to a logit. Columns sum
        to :func:`influence`.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Evaluating attribution graphs", path length.

    Examples
    --------
    >>> nodes = pd.DataFrame({"kind": ["embedding", "feature", "logit"], "layer": [-1, 0, 1],
    ...                       "position": 0, "index": [5, 6, 7],
    ...                       "probability": [None, None, 0.5]})
    >>> graph = AttributionGraph(nodes, csr_array([[0, 0, 0], [2.0, 0, 0], [1.0, 1.0, 0]]))
    >>> influence_by_length(graph).toarray().tolist()
    [[0.25, 0.25, 0.0], [0.25, 0.0, 0.0]]
    """
    return Flow(graph).by_length


def error_fraction(graph: AttributionGraph) -> Vector:
    """Share of every node's normalised input that comes from error nodes.

    Returns
    -------
    ndarray of float64, shape (n,)
        In [0, 1]; 0 for nodes without inputs.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Evaluating attribution graphs", completeness score.

    Examples
    --------
    >>> nodes = pd.DataFrame({"kind": ["embedding", "error", "logit"], "layer": [-1, 0, 1],
    ...                       "position": 0, "index": [5, -1, 7],
    ...                       "probability": [None, None, 0.5]})
    >>> graph = AttributionGraph(nodes, csr_array([[0, 0, 0], [0, 0, 0], [3.0, -1.0, 0]]))
    >>> error_fraction(graph).tolist()
    [0.0, 0.0, 0.25]
    """
    return Flow(graph).error_fraction


def edge_scores(graph: AttributionGraph) -> csr_array:
    """Score ``Â[t, s]·(I_t + w_t)`` of every edge: the influence that runs over it.

    Returns
    -------
    csr_array of float64, shape (n, n)
        Entries where the graph has edges; column s sums to the influence of node s.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Graph pruning", edges by thresholded influence.

    Examples
    --------
    >>> nodes = pd.DataFrame({"kind": ["embedding", "feature", "logit"], "layer": [-1, 0, 1],
    ...                       "position": 0, "index": [5, 6, 7],
    ...                       "probability": [None, None, 0.5]})
    >>> graph = AttributionGraph(nodes, csr_array([[0, 0, 0], [2.0, 0, 0], [1.0, -3.0, 0]]))
    >>> edge_scores(graph).toarray().tolist()
    [[0.0, 0.0, 0.0], [0.375, 0.0, 0.0], [0.125, 0.375, 0.0]]
    """
    return Flow(graph).edge_scores


def path_lengths(graph: AttributionGraph) -> pd.DataFrame:
    """How the influence on the logits spreads over embedding→logit paths of each length.

    Returns
    -------
    DataFrame
        ``length`` (number of edges, from 1 to the longest embedding→logit path), ``mass``
        (``m_k = wᵀÂᵏ1_emb``), ``share`` (of all mass), ``cumulative`` (share up to this length).
        No rows where no such path exists.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Evaluating attribution graphs", average path length.

    Examples
    --------
    >>> nodes = pd.DataFrame({"kind": ["embedding", "feature", "logit"], "layer": [-1, 0, 1],
    ...                       "position": 0, "index": [5, 6, 7],
    ...                       "probability": [None, None, 0.5]})
    >>> graph = AttributionGraph(nodes, csr_array([[0, 0, 0], [2.0, 0, 0], [1.0, -3.0, 0]]))
    >>> print(path_lengths(graph).to_string(index=False))
     length  mass  share  cumulative
          1 0.125   0.25        0.25
          2 0.375   0.75        1.00
    """
    masses = np.trim_zeros(Flow(graph).masses, "b")
    cumulative = np.cumsum(masses)
    total = cumulative[-1] if len(masses) else 1.0
    return pd.DataFrame(
        {
            "length": np.arange(1, len(masses) + 1),
            "mass": masses,
            "share": masses / total,
            "cumulative": cumulative / total,
        }
    )


# How it is done --------------------------------------------------------------------------------


def _normalise(adjacency: csr_array, sign: Sign) -> tuple[csr_array, Vector]:
    """Rows divided by their sums, and the sums; the pattern of the edges is shared."""
    if sign not in SIGNS:
        raise SettingError(f"sign {sign!r} is unknown", f"Known are {', '.join(SIGNS)}")
    if sign == "positive":
        adjacency = select(adjacency, adjacency.data > 0)
    indices, indptr, shape = adjacency.indices, adjacency.indptr, adjacency.shape
    data = np.abs(adjacency.data, dtype=np.float64)
    with np.errstate(over="ignore"):
        sums = csr_array((data, indices, indptr), shape=shape, copy=False) @ np.ones(shape[1])
    if np.isinf(sums).any():
        raise GraphError(
            f"the inputs of node {int(np.argmax(np.isinf(sums)))} sum to more than a float holds",
            "Scale its weights down: shares do not change by it",
        )
    _scale_rows(data, indptr, sums, divide=True)
    if sign == "signed":
        np.copysign(data, adjacency.data, out=data)
    return _frozen(data, indices, indptr, shape), _read_only(sums)


def _series(weights: Vector, matrix: csr_array) -> Iterator[Vector]:
    """Terms ``wᵀÂ, wᵀÂ², …`` up to the last that is not zero."""
    has_inputs = np.diff(matrix.indptr) > 0
    step = weights
    while True:
        # A product costs the edges of the rows between the first and the last that pass something
        # on: where nodes are in the order of their layers, these become ever fewer.
        rows = np.flatnonzero((step != 0) & has_inputs)
        if not rows.size:
            return
        first, last = int(rows[0]), int(rows[-1]) + 1
        step = step[first:last] @ _rows(matrix, first, last)
        if not step.any():
            return
        yield step


def _rows(matrix: csr_array, first: int, last: int) -> csr_array:
    """Rows of a matrix as a matrix, without a copy of their entries where scipy allows it."""
    start, stop = matrix.indptr[first], matrix.indptr[last]
    return csr_array(
        (
            matrix.data[start:stop],
            matrix.indices[start:stop],
            matrix.indptr[first : last + 1] - start,
        ),
        shape=(last - first, matrix.shape[1]),
        copy=False,
    )


def _scale_rows(
    data: Vector, indptr: NDArray[np.signedinteger], factors: Vector, divide: bool = False
) -> None:
    """Multiply (or divide) the entries of every row by its factor, in place, block by block."""
    n, first = len(factors), 0
    while first < n:
        start = int(indptr[first])
        last = max(first + 1, int(np.searchsorted(indptr, start + _BLOCK, side="right")) - 1)
        block = data[start : int(indptr[last])]
        per_entry = np.repeat(factors[first:last], np.diff(indptr[first : last + 1]))
        (np.divide if divide else np.multiply)(block, per_entry, out=block)
        first = last


def select(matrix: csr_array, entries: Mask, keep: Mask | None = None) -> csr_array:
    """Keep some stored entries of a matrix, and of the rows and columns those of a mask.

    Parameters
    ----------
    matrix
        (n, n), in canonical form.
    entries
        (nnz,), which stored entries stay; none outside `keep`.
    keep
        (n,), which rows and columns stay; all if left out.
    """
    if keep is None and entries.all():
        return matrix
    counts = row_counts(entries, matrix.indptr)
    indices = matrix.indices[entries]
    if keep is not None:
        counts = counts[keep]
        indices = (np.cumsum(keep, dtype=indices.dtype) - 1)[indices]
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(matrix.indptr.dtype)
    return _frozen(matrix.data[entries], indices, indptr, (len(counts), len(counts)))


def row_counts(entries: Mask, indptr: NDArray[np.signedinteger]) -> NDArray[np.int64]:
    """Count the chosen entries of every row, shape (n,)."""
    counts = np.zeros(len(indptr) - 1, np.int64)
    filled = np.diff(indptr) > 0
    if filled.any():
        counts[filled] = np.add.reduceat(entries, indptr[:-1][filled], dtype=np.int64)
    return counts


def _frozen(
    data: NDArray[Any],
    indices: NDArray[np.signedinteger],
    indptr: NDArray[np.signedinteger],
    shape: tuple[int, int],
) -> csr_array:
    """Read-only matrix around arrays that are known to be in canonical form."""
    matrix = csr_array((data, indices, indptr), shape=shape, copy=False)
    matrix.has_canonical_format = True
    for array in (matrix.data, matrix.indices, matrix.indptr):
        array.flags.writeable = False
    return matrix


def _read_only(values: Vector) -> Vector:
    values.flags.writeable = False
    return values
