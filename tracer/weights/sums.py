"""Sums that do not depend on the order in which they are taken.

Floating-point addition is not associative, so two shards would add up to something else than one
run. Here each number is first cut at fixed places of the binary scale, multiples of 2³⁶: what lies
above ``G = 2^(36 b)`` (rounded to a multiple of G), and what is left, rounded to a multiple of
``G / 2³⁶``. Both parts are whole multiples of a power of two, so adding them is exact, in any
order, for up to 2¹⁸ numbers. b follows the largest number of a sum, which does not depend on the
order either. What is dropped is below 2⁻³⁷ of the largest number added.

Source: J. Demmel, H. D. Nguyen, "Parallel reproducible summation" (2015), with two bins.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

__all__ = ["MOST_ADDITIONS", "ExactSums", "PairSums"]

Vector = NDArray[np.float64]
Indices = NDArray[np.int64]

# How many numbers may enter one sum: 2^(53 − 36) halves of the upper bin's range, exactly.
MOST_ADDITIONS: Final = 2**18
_WIDTH: Final = 36
_LOWEST: Final = -25  # numbers below 2^-900 count as zero
_GRID: Final = np.ldexp(1.0, _WIDTH * np.arange(_LOWEST - 1, 29))  # G by bin, and 1 / G
_FINENESS: Final = np.ldexp(1.0, -_WIDTH * np.arange(_LOWEST - 1, 29))


@dataclass
class ExactSums:
    """Sums of float64 numbers, exact and in any order up to a rounding of each number.

    Attributes
    ----------
    high, low
        The two parts of each sum; their sum is its value. Any shape.
    bins
        b of each sum, int8.

    Examples
    --------
    >>> numbers = np.random.default_rng(0).lognormal(sigma=9, size=1000)
    >>> one, two = ExactSums.zeros((1,)), ExactSums.zeros((1,))
    >>> for number in numbers:
    ...     one.add(np.array([number]))
    >>> for number in reversed(numbers):
    ...     two.add(np.array([number]))
    >>> bool((one.value == two.value).all())
    True
    """

    high: Vector
    low: Vector
    bins: NDArray[np.int8]

    @classmethod
    def zeros(cls, shape: tuple[int, ...]) -> ExactSums:
        """Begin with sums of nothing."""
        return cls(np.zeros(shape), np.zeros(shape), np.full(shape, _LOWEST, dtype=np.int8))

    @property
    def value(self) -> Vector:
        """The sums."""
        return self.high + self.low

    def add(self, numbers: Vector, at: Indices | None = None) -> None:
        """Add a number to each sum, or to those whose places along the last axis are `at`.

        Places must not repeat.
        """
        exponents = np.frexp(numbers)[1]
        bins = np.where(numbers == 0, _LOWEST, exponents // _WIDTH)
        bins = np.maximum(bins, _LOWEST).astype(np.int8)
        mine = self if at is None else self.take(at)
        mine._raise(np.maximum(bins, mine.bins))
        high, left = _cut(numbers, mine.bins)
        mine.high += high
        mine.low += _cut(left, mine.bins - 1)[0]
        if at is not None:
            self._put(at, mine)

    def merge(self, other: ExactSums, at: Indices | None = None) -> None:
        """Add other sums to these, or to those whose places along the last axis are `at`."""
        mine = self if at is None else self.take(at)
        other = ExactSums(other.high.copy(), other.low.copy(), other.bins.copy())
        bins = np.maximum(mine.bins, other.bins)
        mine._raise(bins)
        other._raise(bins)
        mine.high += other.high
        mine.low += other.low
        if at is not None:
            self._put(at, mine)

    def take(self, at: Indices) -> ExactSums:
        """Copy some sums."""
        return ExactSums(self.high[..., at], self.low[..., at], self.bins[..., at])

    def spread(self, size: int, at: Indices) -> ExactSums:
        """Put these sums at places `at` of a last axis of another size, nothing elsewhere."""
        made = ExactSums.zeros((*self.high.shape[:-1], size))
        made._put(at, self)
        return made

    def _put(self, at: Indices, other: ExactSums) -> None:
        self.high[..., at], self.low[..., at], self.bins[..., at] = (
            other.high,
            other.low,
            other.bins,
        )

    def _raise(self, bins: NDArray[np.int8]) -> None:
        """Move to higher bins: the upper part becomes the lower one, what was below is dropped."""
        step = bins - self.bins
        if not step.any():
            return
        self.low = np.where(step == 0, self.low, np.where(step == 1, self.high, 0.0))
        self.high = np.where(step == 0, self.high, 0.0)
        self.bins = bins.copy()


def _cut(numbers: Vector, bins: NDArray[np.int8]) -> tuple[Vector, Vector]:
    """Multiples of each bin's G nearest to the numbers, and what is left."""
    place = bins.astype(np.intp) - (_LOWEST - 1)
    high = numbers * _FINENESS[place]
    np.rint(high, out=high)
    high *= _GRID[place]
    return high, numbers - high


@dataclass
class PairSums:
    """Sums over the pairs that occur, sorted by key: memory follows their number.

    Attributes
    ----------
    keys
        ``target · columns + source``, rising, shape (n,).
    counts
        Tokens on which both are active, shape (n,).
    sums
        Shape (S, n).
    """

    keys: Indices
    counts: Indices
    sums: ExactSums

    @classmethod
    def empty(cls, n_sums: int) -> PairSums:
        """Begin with no pairs."""
        nothing = np.empty(0, dtype=np.int64)
        return cls(nothing, nothing.copy(), ExactSums.zeros((n_sums, 0)))

    def add(self, keys: Indices, counts: Indices, numbers: Vector) -> None:
        """Add numbers, shape (S, k), to the pairs of rising `keys`, shape (k,)."""
        at = self._places(keys)
        self.counts[at] += counts
        self.sums.add(numbers, at)

    def merge(self, other: PairSums) -> None:
        """Add all of another's sums."""
        at = self._places(other.keys)
        self.counts[at] += other.counts
        self.sums.merge(other.sums, at)

    def _places(self, keys: Indices) -> Indices:
        """Places of these keys, which are added where they are not there yet."""
        at = np.searchsorted(self.keys, keys)
        known = at < len(self.keys)
        known[known] = self.keys[at[known]] == keys[known]
        new = keys[~known]
        if len(new):
            size = len(self.keys) + len(new)
            moved = np.arange(len(self.keys)) + np.searchsorted(new, self.keys)
            joined = np.empty(size, dtype=np.int64)
            counts = np.zeros(size, dtype=np.int64)
            stays = np.zeros(size, dtype=np.bool_)
            stays[moved] = True
            joined[moved], joined[~stays] = self.keys, new
            counts[moved] = self.counts
            self.keys, self.counts = joined, counts
            self.sums = self.sums.spread(size, moved)
            at = np.searchsorted(self.keys, keys)
        return at
