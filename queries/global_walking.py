"""Paths through global weights, from one feature to another."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from queries.asking import ask, table, unpacked
from queries.core import check_limit
from queries.global_features import Measure, require_covered
from queries.library import Query, describe
from queries.walking import best_first

if TYPE_CHECKING:
    from graphstore import Store

__all__ = ["global_paths"]


def global_paths(
    store: Store,
    source: str,
    target: str,
    others: int = 2,
    weights_id: str | None = None,
    by: Measure = "twera",
    limit: int = 10,
) -> pd.DataFrame:
    """Strongest paths from one feature to another in global weights.

    The strength of a path is the product of its shares: how much of each feature's absolute inputs,
    among the pairs stored, comes from the one before. Exact: pairs are followed from both ends, one
    more with each length of path, but for features that no path as strong as those found can use.

    Parameters
    ----------
    store
        The store.
    source, target
        Feature ids.
    others
        How many other features a path may run through at most.
    weights_id
        The global weights, by id or beginning of one; left out, the only ones stored.
    by
        What shares are of: the absolute virtual weights, ERA or TWERA.
    limit
        How many paths. Which of several equally strong ones are left out is not defined.

    Returns
    -------
    DataFrame
        ``rank`` (from 1), ``strength``, ``length`` in pairs, ``source``, ``target``, ``path``,
        ``labels`` (None where there is none), ``shares``, ``values`` (signed weight, ERA or TWERA):
        lists, of features or of pairs.

    Raises
    ------
    NotFoundError
        If no weights are called so, or they do not cover a feature.
    QueryError
        If a parameter is outside what it may be.
    """
    query = describe("global_paths")
    query.check(
        {
            "source": source,
            "target": target,
            "others": others,
            "weights_id": weights_id,
            "by": by,
            "limit": limit,
        }
    )
    check_limit("global_paths", limit)
    check_limit("global_paths", others, "others")
    weights_id = store.find_weights(weights_id)
    require_covered(store, weights_id, [source, target])
    features = unpacked(ask(store, query, "features", weights_id=weights_id, by=by))
    search = _Search(store, query, weights_id, by, features.sort_values("ord", ignore_index=True))
    rows = search.strongest(source, target, others + 1, limit)
    ids = search.ids.tolist()
    names = sorted({ids[row] for path in rows for row in path.rows})
    found = ask(store, query, "labels", ids=names)
    labels = dict(zip(found["feature_id"], found["label"], strict=True))
    records = [
        {
            "rank": rank,
            "strength": path.strength,
            "length": len(path.shares),
            "source": source,
            "target": target,
            "path": [ids[row] for row in path.rows],
            "labels": [labels.get(ids[row]) for row in path.rows],
            "shares": path.shares,
            "values": path.values,
        }
        for rank, path in enumerate(rows, start=1)
    ]
    return table("global_paths", pd.DataFrame(records, columns=list(query.columns)))


class _Search:
    """Pairs asked for so far, and the paths over them.

    For each length of path in turn one end goes a pair further. A feature that is reached over
    ``i`` pairs from one end with strength ``f``, at best, is left out where ``f`` times the best
    strength over ``j`` pairs from the other end is below that of the paths found: a path through
    it has at least ``j`` pairs more than those ``i`` and the one to be asked for, and each further
    pair can only weaken it.
    """

    def __init__(
        self, store: Store, query: Query, weights_id: str, by: Measure, features: pd.DataFrame
    ) -> None:
        self.store, self.query, self.weights_id, self.by = store, query, weights_id, by
        self.ids = features["feature_id"].to_numpy(dtype=object)
        self.place = {name: row for row, name in enumerate(self.ids)}
        self.totals = features["total"].to_numpy(np.float64)
        self.numbers = {
            "outputs": features["n_outputs"].to_numpy(np.int64),
            "inputs": features["n_inputs"].to_numpy(np.int64),
        }
        self.asked = {way: np.zeros(len(self.ids), np.bool_) for way in self.numbers}
        self.pairs = _Pairs.none()

    def strongest(self, source: str, target: str, length: int, limit: int) -> list[_Found]:
        """Strongest paths of at most `length` pairs."""
        s, t = self.place[source], self.place[target]
        n = len(self.ids)
        # At k: strength of the best way over exactly k pairs, from the source and to the target.
        reach = {"outputs": [np.zeros(n)], "inputs": [np.zeros(n)]}
        reach["outputs"][0][s] = reach["inputs"][0][t] = 1.0
        between = (np.arange(n) >= s) & (np.arange(n) <= t)  # pairs lead to later features only
        found: list[_Found] = []
        for pairs in range(1, length + 1):
            least = found[-1].strength * (1 - 1e-9) if len(found) == limit and limit else 0.0
            way, rows = self._cheaper(reach, least)
            far = reach["inputs" if way == "outputs" else "outputs"][-1]
            # What only the longest paths need leads straight to the other end's features.
            self._ask(way, rows, between & (far > 0) if pairs == length else between)
            ends = self.pairs.ends(way)
            step = np.zeros(n)
            np.maximum.at(step, ends[1], self.pairs.share * reach[way][-1][ends[0]])
            reach[way].append(step)
            found = self._paths(s, t, pairs, limit)
        return found

    def _cheaper(
        self, reach: dict[str, list[NDArray[np.float64]]], least: float
    ) -> tuple[str, NDArray[np.int64]]:
        """End that has fewer pairs to ask for, and the features whose they are."""
        best = {way: steps[-1].max(initial=0.0) for way, steps in reach.items()}
        choices = {}
        for way, other in (("outputs", "inputs"), ("inputs", "outputs")):
            last = reach[way][-1]
            rows = np.flatnonzero((last > 0) & (last * best[other] >= least) & ~self.asked[way])
            choices[way] = rows
        cheaper = min(choices, key=lambda way: int(self.numbers[way][choices[way]].sum()))
        return cheaper, choices[cheaper]

    def _ask(self, way: str, rows: NDArray[np.int64], allowed: NDArray[np.bool_]) -> None:
        if not len(rows):
            return
        answer = ask(
            self.store,
            self.query,
            way,
            ids=self.ids[rows].tolist(),
            flags=allowed.tolist(),
            weights_id=self.weights_id,
            by=self.by,
        )
        self.asked[way][rows] = True
        found = unpacked(answer)
        self.pairs = self.pairs.joined(
            found["source"].to_numpy(np.int64),
            found["target"].to_numpy(np.int64),
            found["value"].to_numpy(np.float64),
            self.totals,
        )

    def _paths(self, s: int, t: int, length: int, limit: int) -> list[_Found]:
        """Strongest paths over the pairs known."""
        source, target, share, value = self.pairs
        n = len(self.ids)
        # At k - 1: strength of the best way from each feature to the target over 1 to k pairs.
        last = np.zeros(n)
        last[t] = 1.0
        best: list[NDArray[np.float64]] = []
        for _ in range(length):
            step = np.zeros(n)
            np.maximum.at(step, source, share * last[target])
            best.append(np.maximum(best[-1], step) if best else step)
            last = step
        starts = np.searchsorted(source, np.arange(n + 1))

        def onward(row: int) -> list[tuple[int, float]]:
            part = slice(starts[row], starts[row + 1])
            return list(zip(target[part].tolist(), share[part].tolist(), strict=True))

        goal = np.zeros(n, np.bool_)
        goal[t] = True
        found = []
        for path in itertools.islice(best_first([s], goal, best, onward), limit):
            values = []
            for a, b in itertools.pairwise(path.rows):
                part = slice(starts[a], starts[a + 1])
                values.append(float(value[part][np.searchsorted(target[part], b)]))
            found.append(_Found(path.strength, list(path.rows), list(path.shares), values))
        return sorted(found, key=lambda each: (-each.strength, each.rows))


class _Found(NamedTuple):
    """A path: features by row, share and value of each pair."""

    strength: float
    rows: list[int]
    shares: list[float]
    values: list[float]


class _Pairs(NamedTuple):
    """Pairs by source, then target, each once, none of them without weight."""

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    share: NDArray[np.float64]
    value: NDArray[np.float64]

    @classmethod
    def none(cls) -> _Pairs:
        """No pairs."""
        return cls(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0))

    def joined(
        self,
        source: NDArray[np.int64],
        target: NDArray[np.int64],
        value: NDArray[np.float64],
        totals: NDArray[np.float64],
    ) -> _Pairs:
        """Return these pairs and others."""
        kept = value != 0
        source = np.concatenate([self.source, source[kept]])
        target = np.concatenate([self.target, target[kept]])
        value = np.concatenate([self.value, value[kept]])
        _, first = np.unique(source * len(totals) + target, return_index=True)
        source, target, value = source[first], target[first], value[first]
        return _Pairs(source, target, np.abs(value) / totals[target], value)

    def ends(self, way: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Near and far end of each pair, seen from where one goes out or comes in."""
        return (self.source, self.target) if way == "outputs" else (self.target, self.source)
