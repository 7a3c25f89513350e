"""Tests of two groups of graphs: presence and strength of many items at once, and how sure one is.

The unit is the graph. Labels are permuted, and graphs are drawn anew, as wholes: features and edges
of one prompt are not independent, so nothing here treats them as if they were. Columns of the
arrays are items (features, or pairs of features), rows are graphs; no store is needed.

Everything works on sparse matrices of the values that are there, in blocks of columns, so that a
thousand graphs with a hundred thousand items fit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csc_array

from tracer.errors import SettingError

__all__ = [
    "Labels",
    "bootstrap_intervals",
    "least_presence_p",
    "mann_whitney",
    "permutation_p",
    "presence_p",
    "q_values",
    "relabelled",
]

Vector = NDArray[np.float64]
Mask = NDArray[np.bool_]
Progress = Callable[[int, int], None]

_BLOCK: Final = 400_000  # numbers in one dense block: resamples × items
_CLOSE: Final = 1e-9  # relative: sums of the same numbers in another order are the same


# Presence ----------------------------------------------------------------------------------------


def presence_p(
    in_a: ArrayLike, n_a: int, in_b: ArrayLike, n_b: int, method: Literal["fisher", "midp"]
) -> Vector:
    """Two-sided p-values of "as common in one group as in the other", one an item.

    Parameters
    ----------
    in_a, in_b
        In how many graphs of each group each item is, shape (items,).
    n_a, n_b
        How many graphs the groups have.
    method
        ``fisher``: Fisher's exact test, which counts all tables that are no likelier than the one
        seen; P(p ≤ α) ≤ α always. ``midp``: tables just as likely count half; less strict, right
        on average, and now and then a little too bold.

    Returns
    -------
    ndarray, shape (items,)
        One computation for each number of graphs that have an item, over all tables with it.

    Raises
    ------
    SettingError
        If a count is not between 0 and the size of its group, or the method is unknown.

    References
    ----------
    .. [1] Fisher (1935), "The logic of inductive inference".
    .. [2] Hirji (2006), "Exact Analysis of Discrete Data", mid-p.

    Examples
    --------
    >>> presence_p([8, 4], 8, [1, 4], 8, "fisher").round(4)
    array([0.0014, 1.    ])
    """
    if method not in ("fisher", "midp"):
        raise SettingError(f"method of presence {method!r} is unknown", "Use fisher or midp")
    a, b = np.asarray(in_a, dtype=np.int64), np.asarray(in_b, dtype=np.int64)
    if ((a < 0) | (a > n_a) | (b < 0) | (b > n_b)).any():
        raise SettingError(
            f"an item is in more graphs than a group of {n_a} or {n_b} has, or in fewer than none",
            "Count graphs, each once",
        )
    from scipy import stats  # slow to import: only who tests pays for it

    p = np.ones(len(a))
    for total in np.unique(a + b):
        rows = np.flatnonzero(a + b == total)
        least, most = max(0, int(total) - n_b), min(int(total), n_a)
        support = np.arange(least, most + 1)
        probability = stats.hypergeom.pmf(support, n_a + n_b, int(total), n_a)
        seen = probability[a[rows] - least]
        order = np.sort(probability)
        up_to = np.concatenate([[0.0], np.cumsum(order)])
        p[rows] = up_to[np.searchsorted(order, seen * (1 + _CLOSE), side="right")]
        if method == "midp":
            below = up_to[np.searchsorted(order, seen * (1 - _CLOSE), side="left")]
            p[rows] = (p[rows] + below) / 2
    # With some thousand graphs a probability may be too small for a float, but never 0.
    return np.clip(p, np.finfo(np.float64).tiny, 1.0)


def least_presence_p(n_a: int, n_b: int, method: Literal["fisher", "midp"] = "fisher") -> float:
    """Smallest p-value that :func:`presence_p` can give for groups of these sizes.

    Examples
    --------
    >>> round(least_presence_p(3, 3), 3)
    0.1
    """
    return float(presence_p([n_a, 0], n_a, [0, n_b], n_b, method).min())


# Strength ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Labels:
    """Ways to label the graphs, the first one as they are.

    Attributes
    ----------
    a
        Whether each graph is called one of the first group, shape (ways, graphs).
    every
        Whether these are all ways there are; else they are drawn at random.
    chance
        In which share of all ways each graph is of the first group, shape (graphs,): the first
        group's share of its stratum.
    """

    a: Mask
    every: bool
    chance: Vector


def relabelled(
    is_a: ArrayLike,
    n_permutations: int,
    seed: int | np.random.Generator,
    strata: Sequence[Any] | None = None,
) -> Labels:
    """Permutations of the labels of graphs, the same for all items.

    Parameters
    ----------
    is_a
        Whether each graph is of the first group, shape (graphs,).
    n_permutations
        How many to draw. If there are no more ways than that, all of them are taken, once each.
    seed
        Seed, or generator.
    strata
        Labels change places only among graphs of the same stratum (their template, say).

    Raises
    ------
    SettingError
        If a group is empty, or no stratum has graphs of both.
    """
    a = np.asarray(is_a, dtype=bool)
    if not a.any() or a.all():
        raise SettingError("one of the two groups has no graphs", "Compare two that have")
    if n_permutations < 1:
        raise SettingError(f"{n_permutations} permutations are too few", "Give a number from 1")
    parts = _strata(strata, len(a))
    chance = np.empty(len(a))
    for rows in parts:
        chance[rows] = a[rows].mean()
    parts = [rows for rows in parts if 0 < a[rows].sum() < len(rows)]
    if not parts:
        raise SettingError(
            "no stratum has graphs of both groups, so no labels can change places",
            "Compare groups that share strata, or leave strata out",
        )
    ways = math.prod(math.comb(len(rows), int(a[rows].sum())) for rows in parts)
    if ways <= n_permutations:
        return Labels(_every_way(a, parts, ways), every=True, chance=chance)
    random = np.random.default_rng(seed)
    made = np.tile(a, (n_permutations + 1, 1))
    for rows in parts:
        made[1:, rows] = random.permuted(made[1:, rows], axis=1)
    return Labels(made, every=False, chance=chance)


def _strata(strata: Sequence[Any] | None, n: int) -> list[NDArray[np.int64]]:
    if strata is None:
        return [np.arange(n)]
    _, codes = np.unique([repr(value) for value in strata], return_inverse=True)
    return [np.flatnonzero(codes == code) for code in range(int(codes.max(initial=-1)) + 1)]


def _every_way(a: Mask, parts: list[NDArray[np.int64]], ways: int) -> Mask:
    made = np.tile(a, (ways, 1))
    repeats = 1
    for rows in parts:
        size = int(a[rows].sum())
        chosen = np.array(list(combinations(range(len(rows)), size)), dtype=np.int64)
        block = np.zeros((len(chosen), len(rows)), dtype=bool)
        np.put_along_axis(block, chosen, True, axis=1)
        # Each way of this stratum with each way of those before.
        made[:, rows] = block[(np.arange(ways) // repeats) % len(block)]
        repeats *= len(block)
    as_they_are = int(np.flatnonzero((made == a).all(axis=1))[0])
    made[[0, as_they_are]] = made[[as_they_are, 0]]
    return made


def permutation_p(values: csc_array, labels: Labels, progress: Progress | None = None) -> Vector:
    """Two-sided p-values of "the same mean in both groups", by permuting labels of graphs.

    Parameters
    ----------
    values
        Value of each item in each graph, 0 where it is absent, shape (graphs, items).
    labels
        As :func:`relabelled` draws them.
    progress
        Called with how many items are done, and how many there are.

    Returns
    -------
    ndarray, shape (items,)
        Share of the labellings whose difference of means is as far from the mean over all ways (0
        without strata; with them, what the strata alone give): exact where `labels` has every way;
        else ``(1 + #)/(1 + R)``, which never claims more than R random ones can show. nan where a
        value is.

    References
    ----------
    .. [1] Phipson and Smyth (2010), "Permutation p-values should never be zero".
    """
    n_items = values.shape[1]
    ways = np.ascontiguousarray(labels.a.T, dtype=np.float64)  # (graphs, ways)
    p = np.ones(n_items)
    for start, stop in _blocks(n_items, ways.shape[1], progress):
        part = values[:, start:stop]
        # The first group's sum less its expectation: times a number that is the same in all ways,
        # the difference of means less its own.
        distance = np.asarray(part.T @ ways)
        distance -= np.asarray(part.T @ labels.chance).reshape(-1, 1)
        np.abs(distance, out=distance)
        slack = _CLOSE * np.asarray(abs(part).sum(axis=0)).ravel()
        found = (distance >= (distance[:, 0] - slack)[:, None]).mean(axis=1)
        p[start:stop] = np.where(np.isnan(slack), np.nan, found)
    return p


def mann_whitney(
    values: csc_array, present: csc_array, is_a: ArrayLike, progress: Progress | None = None
) -> Vector:
    """Two-sided p-values of "as strong in one group as in the other, where it is present".

    The Mann-Whitney U test of the values in those graphs that have the item; exact in small
    groups without ties, else by the normal approximation (``scipy.stats.mannwhitneyu``). nan where
    fewer than two graphs of a group have it.

    Parameters
    ----------
    values, present
        Value of each item in each graph, and 1 where it is present, shape (graphs, items).
    is_a
        Whether each graph is of the first group, shape (graphs,).
    progress
        Called with how many items are done, and how many there are.
    """
    from scipy import stats

    a = np.asarray(is_a, dtype=bool)
    n_items = values.shape[1]
    p = np.full(n_items, np.nan)
    for start, stop in _blocks(n_items, 4096, progress):
        for item in range(start, stop):
            rows = present.indices[present.indptr[item] : present.indptr[item + 1]]
            mine = a[rows]
            if mine.sum() < 2 or (~mine).sum() < 2:
                continue
            column = values[:, [item]].toarray().ravel()[rows]
            if np.ptp(column) == 0:
                p[item] = 1.0
            else:
                p[item] = stats.mannwhitneyu(column[mine], column[~mine]).pvalue
    return p


# How sure one is ---------------------------------------------------------------------------------


def q_values(p: ArrayLike, method: Literal["bh", "by"] = "bh") -> Vector:
    """Smallest false discovery rate at which each would be called a discovery; nan stays nan.

    Parameters
    ----------
    p
        p-values of one family of tests; those that could not be made (nan) are no part of it.
    method
        ``bh``: Benjamini and Hochberg, for tests that are independent or positively dependent;
        ``by``: Benjamini and Yekutieli, for any.

    Examples
    --------
    >>> q_values([0.01, 0.02, float("nan"), 0.5]).round(3)
    array([0.03, 0.03,  nan, 0.5 ])
    """
    from scipy import stats

    p = np.asarray(p, dtype=np.float64)
    q = np.full(p.shape, np.nan)
    known = ~np.isnan(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known], method=method)
    return q


def bootstrap_intervals(
    values: csc_array,
    is_a: ArrayLike,
    n_resamples: int,
    confidence: float,
    seed: int | np.random.Generator,
    progress: Progress | None = None,
) -> tuple[Vector, Vector]:
    """Percentile intervals of the difference of means, second group minus first.

    Graphs of each group are drawn with replacement, as wholes: all items of a draw come from the
    same graphs.

    Parameters
    ----------
    values
        Value of each item in each graph, shape (graphs, items).
    is_a
        Whether each graph is of the first group, shape (graphs,).
    n_resamples
        How many times to draw.
    confidence
        Share of the draws between the ends.
    seed
        Seed, or generator.
    progress
        Called with how many items are done, and how many there are.

    Returns
    -------
    low, high : ndarray, shape (items,)
        Both equal to the difference where it cannot vary: an item that is in all graphs of a group
        or in none, with the same value, leaves the bootstrap nothing to draw from.
    """
    check_share("confidence", confidence)
    if n_resamples < 1:
        raise SettingError(f"{n_resamples} resamples are too few", "Give a number from 1")
    a = np.asarray(is_a, dtype=bool)
    random = np.random.default_rng(seed)
    weights = np.zeros((len(a), n_resamples))
    for group, sign in ((a, -1.0), (~a, 1.0)):
        n = int(group.sum())
        drawn = random.multinomial(n, np.full(n, 1 / n), size=n_resamples)
        weights[group] = sign * drawn.T / n
    n_items = values.shape[1]
    low, high = np.empty(n_items), np.empty(n_items)
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    for start, stop in _blocks(n_items, n_resamples, progress):
        differences = np.asarray(values[:, start:stop].T @ weights)
        low[start:stop], high[start:stop] = np.quantile(differences, ends, axis=1)
    return low, high


def check_share(name: str, value: float) -> None:
    """Check a number that is to lie between 0 and 1, without them.

    Raises
    ------
    SettingError
        If it does not.
    """
    if not 0 < value < 1:
        raise SettingError(f"{name} is {value}", "Give a number between 0 and 1, such as 0.95")


def _blocks(n_items: int, rows: int, progress: Progress | None) -> Iterator[tuple[int, int]]:
    """Ranges of items whose dense block stays small."""
    step = max(1, _BLOCK // max(rows, 1))
    for start in range(0, n_items, step):
        stop = min(start + step, n_items)
        yield start, stop
        if progress is not None:
            progress(stop, n_items)
