"""How alike graphs are: similarity matrices, clusters, and a map.

Prompts of one template look alike whatever they mean, so a similarity by itself says little:
:mod:`queries.templates` sets it beside that of other prompts of the template.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array

from queries.asking import Chosen, GraphSet, choose, one_transcoder
from queries.by_graph import (
    EdgeValue,
    Incidence,
    edge_totals,
    read_edges,
    read_features,
)
from tracer.errors import QueryError, nearest

if TYPE_CHECKING:
    from graphstore import Store

__all__ = [
    "Similarity",
    "clusters",
    "map_of",
    "similarity_matrix",
    "similarity_of",
]

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]
Progress = Callable[[int, int], None]
Items = Literal["features", "edges"]
Measure = Literal["jaccard", "weighted", "cosine"]
Linkage = Literal["average", "complete", "single"]

_ITEMS: Final = ("features", "edges")
_MEASURES: Final = ("jaccard", "weighted", "cosine")
_LINKAGES: Final = ("average", "complete", "single")
_MOST: Final = 5_000  # graphs: the matrix has the square of it


@dataclass(frozen=True)
class Similarity:
    """Likeness of every two graphs of a set.

    Attributes
    ----------
    matrix
        In [0, 1], 1 on the diagonal; rows and columns are named by graph id.
    graphs
        One row of :func:`queries.graph_details` each, in the same order.
    items
        Of ``features`` or ``edges`` (pairs of features).
    measure
        ``jaccard``: shared items over all items of the two. ``weighted``: Σmin over Σmax of their
        strength. ``cosine`` of their strengths. Strength is the influence of a feature, and the
        share of a pair in the target's input.
    """

    matrix: pd.DataFrame
    graphs: pd.DataFrame
    items: Items
    measure: Measure

    @property
    def values(self) -> Vector:
        """The matrix as an array, shape (graphs, graphs)."""
        return self.matrix.to_numpy()

    @property
    def names(self) -> list[str]:
        """What people call the graphs: slugs, or ids where slugs are missing or not unique."""
        slugs = self.graphs["slug"].tolist()
        ids = self.graphs["graph_id"].tolist()
        once = pd.Series(slugs).value_counts().to_dict()
        return [
            str(slug) if slug and once[slug] == 1 else str(graph_id)
            for slug, graph_id in zip(slugs, ids, strict=True)
        ]

    def __repr__(self) -> str:
        off = self.values[~np.eye(len(self.matrix), dtype=bool)]
        mean = f", mean {off.mean():.3f}" if len(off) else ""
        return f"<Similarity of {len(self.matrix)} graphs by {self.items}, {self.measure}{mean}>"


def similarity_matrix(
    store: Store,
    prompt_set: GraphSet | None = None,
    items: Items = "features",
    measure: Measure = "jaccard",
    progress: Progress | None = None,
) -> Similarity:
    """How alike every two graphs are.

    Parameters
    ----------
    store
        The store.
    prompt_set
        Graphs of one set, or a list of graphs; left out, all.
    items
        What they may share: ``features``, or ``edges`` between features.
    measure
        ``jaccard``, ``weighted`` (Jaccard of strengths) or ``cosine``; see :class:`Similarity`.
    progress
        Called with how many graphs are done, and how many there are.

    Returns
    -------
    Similarity

    Raises
    ------
    NotFoundError
        If no graph or set has the name.
    QueryError
        If there are no graphs, more than 5,000, or they are of several transcoders.
    """
    check_choice("items", items, _ITEMS)
    check_choice("measure", measure, _MEASURES)
    chosen = choose(store, prompt_set=prompt_set)
    _check_graphs(chosen)
    if items == "features":
        return similarity_of(read_features(store, chosen), "features", measure, progress=progress)
    # Pairs that one graph has alone are shared by none: their number and sums are enough.
    value: EdgeValue = "share"
    totals = edge_totals(store, chosen.ids)
    found = read_edges(store, chosen, 2, value)
    return similarity_of(found, "edges", measure, totals, progress)


def similarity_of(
    found: Incidence,
    items: Items,
    measure: Measure,
    totals: pd.DataFrame | None = None,
    progress: Progress | None = None,
) -> Similarity:
    """How alike graphs are whose items are known, wherever they come from.

    Parameters
    ----------
    found
        Items of each graph, all of them, or those that more than one has.
    items, measure
        As in :func:`similarity_matrix`.
    totals
        Of each graph, over all of its items: ``pairs`` (how many), ``share`` (sum of their
        strength), ``square`` (of its squares); left out, those of `found` are all.
    progress
        Called with how many graphs are done, and how many there are.
    """
    values = csr_array(found.values)
    present = csr_array(found.present)
    if totals is None:
        totals = pd.DataFrame(
            {
                "pairs": np.asarray(present.sum(axis=1)).ravel(),
                "share": np.asarray(values.sum(axis=1)).ravel(),
                "square": np.asarray((values * values).sum(axis=1)).ravel(),
            }
        )
    if measure == "jaccard":
        shared, size = (present @ present.T).toarray(), totals["pairs"].to_numpy(np.float64)
        matrix = _over(shared, size[:, None] + size - shared)
    elif measure == "cosine":
        length = np.sqrt(totals["square"].to_numpy(np.float64))
        matrix = _over((values @ values.T).toarray(), length[:, None] * length)
    else:
        least, size = _shared_strength(values, progress), totals["share"].to_numpy(np.float64)
        matrix = _over(least, size[:, None] + size - least)
    matrix = np.clip((matrix + matrix.T) / 2, 0.0, 1.0)
    np.fill_diagonal(matrix, 1.0)
    ids = found.graphs["graph_id"].tolist()
    return Similarity(pd.DataFrame(matrix, index=ids, columns=ids), found.graphs, items, measure)


def check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    """Check a word that is to be one of a few.

    Raises
    ------
    QueryError
        If it is none of them.
    """
    if value not in known:
        raise QueryError(
            f"{name} is {value!r}", nearest(str(value), known) or f"Use one of {', '.join(known)}"
        )


def _check_graphs(chosen: Chosen) -> None:
    if not chosen.ids:
        raise QueryError("the set holds no graph", "Fill it with circuitbase trace or import")
    if len(chosen.ids) > _MOST:
        raise QueryError(
            f"{len(chosen.ids):,} graphs are more than {_MOST:,}, whose matrix is the limit",
            "Take a smaller set, or similar_graphs of one graph",
        )
    one_transcoder("similarity_matrix", chosen)


def _over(part: Vector, whole: Vector) -> Vector:
    return np.divide(part, whole, out=np.zeros_like(part, dtype=np.float64), where=whole > 0)


def _shared_strength(values: csr_array, progress: Progress | None) -> Vector:
    """Σ over items of the smaller strength, for every two graphs, shape (graphs, graphs)."""
    n = values.shape[0]
    columns = csc_array(values)
    made = np.zeros((n, n))
    for row in range(n):
        of_row = slice(values.indptr[row], values.indptr[row + 1])
        part = columns[:, values.indices[of_row]]
        mine = np.repeat(values.data[of_row], np.diff(part.indptr))
        made[row] = np.bincount(part.indices, np.minimum(part.data, mine), minlength=n)
        if progress is not None:
            progress(row + 1, n)
    return made


# Groups and maps ---------------------------------------------------------------------------------


def clusters(
    similarity: Similarity,
    n: int | None = None,
    threshold: float | None = None,
    linkage: Linkage = "average",
) -> pd.DataFrame:
    """Group graphs that are alike, by hierarchical clustering.

    Parameters
    ----------
    similarity
        As :func:`similarity_matrix` gives it; 1 − similarity is the distance.
    n
        How many groups at most.
    threshold
        In place of `n`: groups are split where they are less alike than this. Left out both, the
        number of groups (2 to 12) whose mean silhouette is largest.
    linkage
        ``average``, ``complete`` or ``single``.

    Returns
    -------
    DataFrame
        ``graph_id``, ``slug``, ``cluster`` (from 1, the largest first), ``order`` (place among the
        leaves of the tree), ``similarity`` (mean to the others of its cluster; nan if alone); in
        the order of the leaves.

    Raises
    ------
    QueryError
        If both are given, or are outside what they may be.
    """
    check_choice("linkage", linkage, _LINKAGES)
    if n is not None and threshold is not None:
        raise QueryError("clusters was given n and threshold", "Give one of the two")
    if n is not None and n < 1:
        raise QueryError(f"n is {n}", "Give a number from 1")
    if threshold is not None and not 0 <= threshold <= 1:
        raise QueryError(f"threshold is {threshold}", "Give a similarity, from 0 to 1")
    from scipy.cluster import hierarchy  # slow to import: only who clusters pays for it

    values = similarity.values
    size = len(values)
    if size == 1:
        codes, leaves = np.array([1]), np.array([0])
    else:
        tree = linkage_of(similarity, linkage)
        leaves = hierarchy.leaves_list(tree)
        if threshold is not None:
            codes = hierarchy.fcluster(tree, 1 - threshold, "distance")
        else:
            number = n or _best_number(1 - values, tree)
            codes = hierarchy.fcluster(tree, number, "maxclust")
    ranks = {code: rank + 1 for rank, code in enumerate(pd.Series(codes).value_counts().index)}
    together = (codes[:, None] == codes) & ~np.eye(size, dtype=bool)
    others = together.sum(axis=1)
    within = np.divide(
        (values * together).sum(axis=1), others, out=np.full(size, np.nan), where=others > 0
    )
    order = np.empty(size, dtype=np.int64)
    order[leaves] = np.arange(size)
    made = similarity.graphs[["graph_id", "slug"]].assign(
        cluster=[ranks[code] for code in codes], order=order, similarity=within
    )
    return made.sort_values("order").reset_index(drop=True)


def linkage_of(similarity: Similarity, linkage: Linkage = "average") -> Vector:
    """Tree of the graphs, as ``scipy.cluster.hierarchy`` has it, leaves in a good order."""
    from scipy.cluster import hierarchy
    from scipy.spatial.distance import squareform

    distance = squareform(1 - similarity.values, checks=False)
    tree: Vector = hierarchy.linkage(distance, linkage, optimal_ordering=len(distance) < 200_000)
    return tree


def _best_number(distance: Vector, tree: Vector) -> int:
    """Find the number of groups, from 2 to 12, that silhouettes say fits best."""
    from scipy.cluster import hierarchy

    most = min(12, len(distance) - 1)
    scores = [
        _silhouette(distance, hierarchy.fcluster(tree, k, "maxclust")) for k in range(2, most + 1)
    ]
    return 2 + int(np.argmax(scores)) if scores else 2


def _silhouette(distance: Vector, codes: NDArray[Any]) -> float:
    """Mean over graphs of how much nearer their own group is than the next; 0 for one alone.

    References
    ----------
    .. [1] Rousseeuw (1987), "Silhouettes".
    """
    names, place = np.unique(codes, return_inverse=True)
    if len(names) < 2:
        return -1.0
    member = np.eye(len(names))[place]
    sizes = member.sum(axis=0)
    sums = distance @ member  # (graphs, groups)
    rows = np.arange(len(place))
    own = sums[rows, place] / np.maximum(sizes[place] - 1, 1)
    means = sums / sizes
    means[rows, place] = np.inf
    other = means.min(axis=1)
    scores = np.where(
        sizes[place] > 1, (other - own) / np.maximum(np.maximum(own, other), 1e-12), 0
    )
    return float(scores.mean())


def map_of(similarity: Similarity) -> pd.DataFrame:
    """Place graphs in a plane, near each other where they are alike.

    Classical multidimensional scaling of the distance √(1 − similarity): the two largest axes.

    Returns
    -------
    DataFrame
        ``graph_id``, ``slug``, ``x``, ``y``; ``attrs["explained"]``: which share of the squared
        distances the two axes show (of the positive eigenvalues).

    References
    ----------
    .. [1] Torgerson (1952), "Multidimensional scaling: I. Theory and method".
    """
    squared = 1 - similarity.values
    centred = -(squared - squared.mean(axis=0) - squared.mean(axis=1)[:, None] + squared.mean()) / 2
    sizes, axes = np.linalg.eigh((centred + centred.T) / 2)
    sizes, axes = sizes[::-1], axes[:, ::-1]
    places = np.zeros((len(squared), 2))
    for axis in range(min(2, len(sizes))):
        direction = axes[:, axis] * np.sign(axes[np.argmax(np.abs(axes[:, axis])), axis])
        places[:, axis] = direction * np.sqrt(max(float(sizes[axis]), 0.0))
    made = similarity.graphs[["graph_id", "slug"]].assign(x=places[:, 0], y=places[:, 1])
    total = float(sizes[sizes > 0].sum())
    made.attrs["explained"] = float(np.clip(sizes[:2], 0, None).sum()) / total if total else 1.0
    return made
