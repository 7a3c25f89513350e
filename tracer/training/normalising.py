"""Per-layer normalisation of what features read and what they are trained to write.

``x̂ = (x − μ)/s`` with μ the mean and s one number a layer, such that ``E‖x̂‖² = d``: one number, so
that errors in all directions count alike, as they do in explained variance.

Source: Circuit Tracing (2025), appendix on training; spec, section 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tracer.errors import TracingError

__all__ = ["Normalisation", "normalisation_of"]


@dataclass(frozen=True)
class Normalisation:
    """Means, shape (L, d), and scales, shape (L,), of reads and writes."""

    read_mean: Tensor
    read_scale: Tensor
    write_mean: Tensor
    write_scale: Tensor

    def reads(self, x: Tensor) -> Tensor:
        """Normalise reads of shape (N, L, d)."""
        return (x - self.read_mean) / self.read_scale[:, None]

    def writes(self, y: Tensor) -> Tensor:
        """Normalise writes of shape (N, L, d)."""
        return (y - self.write_mean) / self.write_scale[:, None]

    def to(self, device: torch.device | str) -> Normalisation:
        """Copy on a device."""
        return Normalisation(
            self.read_mean.to(device),
            self.read_scale.to(device),
            self.write_mean.to(device),
            self.write_scale.to(device),
        )


def normalisation_of(reads: Tensor, writes: Tensor) -> Normalisation:
    """Means and scales of activations of shape (N, L, d), computed in float64.

    Raises
    ------
    TracingError
        If a layer's activations are not finite, or all alike.
    """
    found: list[Tensor] = []
    for name, values in (("read", reads), ("written", writes)):
        means, scales = [], []
        for layer in range(values.shape[1]):
            one = values[:, layer].double()
            mean = one.mean(dim=0)
            scale = (one - mean).square().mean().sqrt()
            if not torch.isfinite(scale):
                raise TracingError(
                    f"layer {layer}: what is {name} holds NaN or infinity",
                    "Load the model in float32",
                )
            if scale <= 1e-12 * (1 + mean.abs().max()):
                raise TracingError(
                    f"layer {layer}: what is {name} is the same at every token of the corpus",
                    "Give a larger corpus, or check the model's weights",
                )
            means.append(mean)
            scales.append(scale)
        found += [torch.stack(means).float(), torch.stack(scales).float()]
    return Normalisation(*found)
