"""Encoders and decoders as a row for each feature, however a checkpoint lays them out.

Every layout stores the same two matrices differently: with features first or last, stacked over
layers, one file a target, or cut into shards along the features. These views give all of them the
same two questions, a block of features and chosen features, and read no more than the answer needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from tracer.tensors import Indices, StoredTensor

__all__ = [
    "Chosen",
    "Columns",
    "FeatureRows",
    "Held",
    "Joined",
    "Rows",
    "Scaled",
    "Stacked",
    "Zeros",
]

_COLUMN_BLOCK = 64 << 20  # bytes of a feature-last matrix that are read at once to pick columns


class FeatureRows(Protocol):
    """A row (or a block of rows) for each feature, in the type in which it is stored."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, …)."""

    def block(self, start: int, stop: int) -> Tensor:
        """Features [start, stop), shape (stop − start, …)."""

    def take(self, features: Indices) -> Tensor:
        """Sorted, unique features, shape (len(features), …)."""


@dataclass(frozen=True)
class Rows:
    """Stored with features first: the wanted rows are read and nothing else."""

    stored: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, …)."""
        return self.stored.shape

    def block(self, start: int, stop: int) -> Tensor:
        """Features [start, stop)."""
        return self.stored.rows(start, stop).read()

    def take(self, features: Indices) -> Tensor:
        """Sorted, unique features."""
        return self.stored.take(features)


@dataclass(frozen=True)
class Columns:
    """Stored with features last, (d, F).

    A block of features is a stretch of each of the d lines; chosen features are picked out of all
    of it, because every line holds some of each feature's numbers.
    """

    stored: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, d)."""
        return self.stored.shape[::-1]

    def block(self, start: int, stop: int) -> Tensor:
        """Features [start, stop)."""
        return self.stored.inner(start, stop).read().T

    def take(self, features: Indices) -> Tensor:
        """Sorted, unique features."""
        width = self.stored.shape[0]
        if len(features) == 0:
            return torch.empty((0, width), dtype=self.stored.dtype)
        first, last = int(features[0]), int(features[-1]) + 1
        picked = torch.empty((len(features), width), dtype=self.stored.dtype)
        columns = torch.from_numpy(features - first)
        lines = max(1, _COLUMN_BLOCK // max(1, (last - first) * self.stored.dtype.itemsize))
        for start in range(0, width, lines):
            stop = min(width, start + lines)
            part = self.stored.rows(start, stop).inner(first, last).read()
            picked[:, start:stop] = part[:, columns].T
        return picked


@dataclass(frozen=True)
class Joined:
    """Shards along the features, one after the other."""

    parts: Sequence[FeatureRows]

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, …)."""
        return (sum(part.shape[0] for part in self.parts), *self.parts[0].shape[1:])

    def block(self, start: int, stop: int) -> Tensor:
        """Features [start, stop)."""
        blocks, before = [], 0
        for part in self.parts:
            after = before + part.shape[0]
            if start < after and stop > before:
                blocks.append(part.block(max(start, before) - before, min(stop, after) - before))
            before = after
        return torch.cat(blocks)

    def take(self, features: Indices) -> Tensor:
        """Sorted, unique features."""
        taken, before = [], 0
        for part in self.parts:
            after = before + part.shape[0]
            low, high = np.searchsorted(features, (before, after))
            taken.append(part.take(features[low:high] - before))
            before = after
        return torch.cat(taken)


@dataclass(frozen=True)
class Stacked:
    """One matrix a target layer, (F, d) each: together (F, K, d)."""

    parts: Sequence[FeatureRows]

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, K, d)."""
        return (self.parts[0].shape[0], len(self.parts), *self.parts[0].shape[1:])

    def block(self, start: int, stop: int) -> Tensor:
        """Features [start, stop)."""
        return _stack([part.block(start, stop) for part in self.parts])

    def take(self, features: Indices) -> Tensor:
        """Sorted, unique features."""
        return _stack([part.take(features) for part in self.parts])


@dataclass(frozen=True)
class Scaled:
    """Rows times one number, or times a number each."""

    view: FeatureRows
    factor: float = 1.0
    each: Callable[[], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, …)."""
        return self.view.shape

    def block(self, start: int, stop: int) -> Tensor:
        """Features [start, stop)."""
        return self._scale(self.view.block(start, stop), slice(start, stop))

    def take(self, features: Indices) -> Tensor:
        """Sorted, unique features."""
        return self._scale(self.view.take(features), torch.from_numpy(features))

    def _scale(self, rows: Tensor, which: slice | Tensor) -> Tensor:
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32)) * self.factor
        if self.each is None:
            return rows
        return rows * self.each()[which].to(rows.dtype).reshape(-1, *[1] * (rows.ndim - 1))


@dataclass(frozen=True)
class Zeros:
    """A target that these features do not reach."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def block(self, start: int, stop: int) -> Tensor:
        """Features [start, stop)."""
        return torch.zeros((stop - start, *self.shape[1:]), dtype=self.dtype)

    def take(self, features: Indices) -> Tensor:
        """Sorted, unique features."""
        return torch.zeros((len(features), *self.shape[1:]), dtype=self.dtype)


@dataclass(frozen=True, eq=False)
class Held:
    """In memory."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, …)."""
        return tuple(self.tensor.shape)

    def block(self, start: int, stop: int) -> Tensor:
        """Features [start, stop)."""
        return self.tensor[start:stop]

    def take(self, features: Indices) -> Tensor:
        """Sorted, unique features."""
        return self.tensor[torch.from_numpy(features).to(self.tensor.device)]


@dataclass(frozen=True, eq=False)
class Chosen:
    """Some features of a view, in rising order, numbered anew."""

    view: FeatureRows
    features: Indices

    @property
    def shape(self) -> tuple[int, ...]:
        """(F, …)."""
        return (len(self.features), *self.view.shape[1:])

    def block(self, start: int, stop: int) -> Tensor:
        """Features [start, stop)."""
        return self.view.take(self.features[start:stop])

    def take(self, features: Indices) -> Tensor:
        """Sorted, unique features."""
        return self.view.take(self.features[features])


def _stack(parts: list[Tensor]) -> Tensor:
    """Parts of perhaps different types, (n, d) each, as (n, K, d)."""
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    return torch.stack([part.to(dtype) for part in parts], dim=1)
