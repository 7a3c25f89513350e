"""Small tensors made of stored ones when they are asked for: biases, thresholds, skips.

Each is a :data:`~tracer.transcoders.checkpoint.Vector`: called without arguments it reads and
computes. Classes rather than closures, so that a transcoder can be sent to another process.
Arithmetic is in float32 at least, whatever the stored type.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tracer.transcoders.checkpoint import Vector

__all__ = ["Concatenated", "Difference", "Exponential", "Summed", "Times", "Transposed"]


@dataclass(frozen=True)
class Concatenated:
    """One after the other (shards along the features)."""

    parts: Sequence[Vector]

    def __call__(self) -> Tensor:
        """Read and join."""
        return torch.cat([part() for part in self.parts])


@dataclass(frozen=True)
class Summed:
    """Element by element, each times a factor."""

    parts: Sequence[Vector]
    factors: Sequence[float] | None = None

    def __call__(self) -> Tensor:
        """Read and add up."""
        factors = self.factors or [1.0] * len(self.parts)
        terms = [_wide(part()) * by for part, by in zip(self.parts, factors, strict=True)]
        return torch.stack(terms).sum(0)


@dataclass(frozen=True)
class Difference:
    """One minus another."""

    left: Vector
    right: Vector

    def __call__(self) -> Tensor:
        """Read and subtract."""
        return _wide(self.left()) - _wide(self.right())


@dataclass(frozen=True)
class Exponential:
    """Of a logarithm that is stored."""

    stored: Vector

    def __call__(self) -> Tensor:
        """Read and raise."""
        return _wide(self.stored()).exp()


@dataclass(frozen=True)
class Times:
    """A tensor times a number that is stored too, or given."""

    tensor: Vector
    factor: float

    def __call__(self) -> Tensor:
        """Read and multiply."""
        return _wide(self.tensor()) * self.factor


@dataclass(frozen=True)
class Transposed:
    """A matrix whose file has it the other way round."""

    stored: Vector

    def __call__(self) -> Tensor:
        """Read and transpose."""
        return self.stored().T


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
