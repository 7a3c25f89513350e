"""Which entries of global weights are kept, found while they come in tiles.

An entry stays if, by one of the measures, it is not below the threshold and among the k largest of
its target's inputs or of its source's outputs. The k largest so far of every row are known while
tiles come; those of a column once its sources have met all their targets. Ties stay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.errors import SettingError
from tracer.weights.weights import MEASURES, Measure

__all__ = ["Cut", "Cutter", "Entries"]

Vector = NDArray[np.float64]
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Cut:
    """What is kept.

    Attributes
    ----------
    top_k
        So many inputs of each target and outputs of each source, by each measure; None for all.
    threshold
        Least absolute value by measure; 0 where none is given.
    by
        Measures by which an entry may stay.
    """

    top_k: int | None = 100
    threshold: Mapping[Measure, float] = field(default_factory=dict)
    by: Sequence[Measure] = MEASURES

    def __post_init__(self) -> None:
        for name in (*self.by, *self.threshold):
            if name not in MEASURES:
                raise SettingError(
                    f"measure {name!r} is unknown", f"Known are {', '.join(MEASURES)}"
                )
        if not self.by:
            raise SettingError("no measure is given to cut by", f"Known are {', '.join(MEASURES)}")
        if self.top_k is not None and self.top_k < 1:
            raise SettingError(f"top_k is {self.top_k}", "Give 1 or more, or None for all")
        for name, value in self.threshold.items():
            if not value >= 0:
                raise SettingError(f"the threshold of {name} is {value}", "Give 0 or more")

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is cut."""
        return self.top_k is None and not any(self.threshold.get(name, 0) for name in self.by)

    def record(self) -> dict[str, Any]:
        """Say it, JSON-able."""
        return {
            "top_k": self.top_k,
            "threshold": {name: float(self.threshold[name]) for name in self.threshold},
            "by": list(self.by),
        }


class Entries(NamedTuple):
    """Entries of the matrix.

    Attributes
    ----------
    targets, sources
        Rows and columns, shape (k,).
    weights
        V, shape (k,).
    places
        Where the pair's sums are, −1 where it never fires together, shape (k,).
    values
        Absolute value by each measure, shape (3, k).
    by_source
        Whether it stays as one of its source's outputs, shape (k,).
    """

    targets: Indices
    sources: Indices
    weights: Vector
    places: Indices
    values: Vector
    by_source: Mask

    def take(self, which: Mask | Indices) -> Entries:
        """Take some of them."""
        return Entries(
            self.targets[which],
            self.sources[which],
            self.weights[which],
            self.places[which],
            self.values[:, which],
            self.by_source[which],
        )


class Cutter:
    """Takes tiles in, and keeps what stays.

    Parameters
    ----------
    cut
        The rule.
    n
        Features.

    Attributes
    ----------
    totals
        Σ|·| of each target's inputs by each measure, before the cut, shape (3, n).
    largest
        Largest absolute value that was cut, by each measure, shape (3,).
    """

    def __init__(self, cut: Cut, n: int) -> None:
        self._cut, self._n = cut, n
        self.totals: Vector = np.zeros((3, n))
        self.largest: Vector = np.zeros(3)
        self._used = [MEASURES.index(name) for name in cut.by]
        self._least = np.array([float(cut.threshold.get(name, 0.0)) for name in MEASURES])
        self._rows = _Best(len(MEASURES), n, cut.top_k)
        self._columns: _Best | None = None
        self._block: list[Entries] = []
        self._kept: list[Entries] = []

    def take(
        self, values: Vector, weights: Vector, places: Indices, rows: slice, columns: slice
    ) -> None:
        """Take in a tile.

        Parameters
        ----------
        values
            Absolute value by each measure, shape (3, targets, sources).
        weights, places
            V, and where the sums of each pair are, shape (targets, sources).
        rows, columns
            Where the tile is.
        """
        self.totals[:, rows] += values.sum(axis=2)
        if self._columns is None:
            self._columns = _Best(len(MEASURES), columns.stop - columns.start, self._cut.top_k)
        if self._cut.keeps_all:
            stays = (weights != 0) | (places >= 0)
        else:
            stays = np.zeros(weights.shape, dtype=np.bool_)
            for measure in self._used:
                large = np.where(values[measure] >= self._least[measure], values[measure], 0.0)
                limit = self._rows.take(measure, large, rows)
                stays |= (large > 0) & (large >= limit[:, None])
                limit = self._columns.take(measure, large.T, slice(None))
                stays |= (large > 0) & (large >= limit)
            self._drop(values[:, ~stays])
        targets, sources = np.nonzero(stays)
        self._block.append(
            Entries(
                targets + rows.start,
                sources + columns.start,
                weights[stays].astype(np.float64),
                places[stays],
                values[:, stays],
                np.zeros(len(targets), dtype=np.bool_),
            )
        )

    def end_block(self, first: int) -> None:
        """Settle for the sources from column `first` on, which have met all their targets."""
        if self._columns is None:
            return
        block = _joined(self._block)
        self._block = []
        if not self._cut.keeps_all:
            block = block._replace(
                by_source=self._stay(block, self._columns, block.sources - first)
            )
            block = self._only(
                block, block.by_source | self._stay(block, self._rows, block.targets)
            )
        self._columns = None
        self._kept.append(block)

    def kept(self) -> Entries:
        """All that stays, by target, then source."""
        whole = _joined(self._kept)
        if not self._cut.keeps_all:
            whole = self._only(
                whole, whole.by_source | self._stay(whole, self._rows, whole.targets)
            )
        return whole.take(np.lexsort((whole.sources, whole.targets)))

    def _stay(self, entries: Entries, best: _Best, at: Indices) -> Mask:
        stays = np.zeros(len(at), dtype=np.bool_)
        for measure in self._used:
            value = entries.values[measure]
            stays |= (
                (value > 0) & (value >= self._least[measure]) & (value >= best.limit(measure)[at])
            )
        return stays

    def _only(self, entries: Entries, stays: Mask) -> Entries:
        self._drop(entries.values[:, ~stays])
        return entries.take(stays)

    def _drop(self, values: Vector) -> None:
        if values.size:
            self.largest = np.maximum(self.largest, values.max(axis=1))


def _joined(parts: Sequence[Entries]) -> Entries:
    if not parts:
        nothing = np.empty(0, dtype=np.int64)
        empty = nothing.astype(np.float64)
        return Entries(nothing, nothing, empty, nothing, np.empty((3, 0)), nothing.astype(np.bool_))
    return Entries(*(np.concatenate(part, axis=-1) for part in zip(*parts, strict=True)))


class _Best:
    """The k largest values of each line so far, by each measure."""

    def __init__(self, measures: int, n: int, k: int | None) -> None:
        self._k = k
        self._values: Vector = np.zeros((measures, n, 0 if k is None else k))

    def limit(self, measure: int) -> Vector:
        """Least value of each line that stays, shape (n,)."""
        if self._k is None:
            return np.zeros(self._values.shape[1])
        return np.asarray(self._values[measure].min(axis=1))

    def take(self, measure: int, values: Vector, lines: slice) -> Vector:
        """Take in values of some lines, shape (lines, m); return their limits."""
        if self._k is None:
            return np.zeros(len(values))
        k = self._k
        if values.shape[1] > k:
            values = np.partition(values, values.shape[1] - k, axis=1)[:, -k:]
        both = np.concatenate([self._values[measure, lines], values], axis=1)
        best = np.partition(both, both.shape[1] - k, axis=1)[:, -k:]
        self._values[measure, lines] = best
        return np.asarray(best.min(axis=1))
