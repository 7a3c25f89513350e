"""Matrix products of a transcoder in training, over few active features where that pays.

The decoders of one source layer lie beside each other, ``D^l`` (F, K·d) for its K target layers.
With targets stored as (N, L, d), layer l writes to columns l·d onward of the flat (N, L·d), so the
whole of a CLT is one product a layer: ``Y[:, l·d : (l+K)·d] += A^l D^l``. Only about k of F
features are active, so on the CPU ``A^l`` is a sparse matrix: the forward product, the gradient of
the activations (a product sampled where they are) and of both weight matrices touch active features
only. On a GPU dense products win at these sizes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Pattern", "decode", "decode_active", "encode_active", "pattern_of"]


class Pattern(NamedTuple):
    """Which features of a layer are active at which positions; rows are positions.

    Attributes
    ----------
    starts
        Where the features of each position begin, shape (N + 1,).
    features
        Ascending in each position, shape (n,).
    positions
        Shape (n,).
    order
        Of the pairs by feature, then position, shape (n,).
    feature_starts
        Where the positions of each feature begin in that order, shape (F + 1,).
    """

    starts: Tensor
    features: Tensor
    positions: Tensor
    order: Tensor
    feature_starts: Tensor

    @property
    def n_positions(self) -> int:
        """Number of positions N."""
        return len(self.starts) - 1

    @property
    def n_features(self) -> int:
        """Number of features F."""
        return len(self.feature_starts) - 1

    @property
    def counts(self) -> Tensor:
        """At how many positions each feature is active, shape (F,)."""
        return self.feature_starts.diff()

    def matrix(self, values: Tensor) -> Tensor:
        """Sparse (N, F) of these values."""
        return _csr(self.starts, self.features, values, self.n_features)

    def transposed(self, values: Tensor) -> Tensor:
        """Sparse (F, N) of these values."""
        rows = self.positions[self.order]
        return _csr(self.feature_starts, rows, values[self.order], self.n_positions)


def pattern_of(flat: NDArray[np.int64], n_positions: int, n_features: int) -> Pattern:
    """Pattern of sorted places in an array of shape (N, F)."""
    rows = np.arange(n_positions + 1) * n_features
    starts = np.searchsorted(flat, rows)
    positions = np.repeat(np.arange(n_positions), np.diff(starts))
    features = flat - rows[positions]
    # Of 16 bits NumPy sorts by radix, many times faster.
    narrow = features.astype(np.uint16) if n_features <= 1 << 16 else features
    order = np.argsort(narrow, kind="stable")
    feature_starts = np.zeros(n_features + 1, dtype=np.int64)
    np.cumsum(np.bincount(features, minlength=n_features), out=feature_starts[1:])
    arrays = (starts, features, positions, order, feature_starts)
    return Pattern(*(torch.from_numpy(array) for array in arrays))


@cache
def _quiet() -> None:
    """Have PyTorch say once, to nobody, that its sparse matrices are new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zero = torch.zeros(2, dtype=torch.int64)
        torch.sparse_csr_tensor(zero, zero[:0], torch.zeros(0), (1, 1), check_invariants=False)


def _csr(starts: Tensor, columns: Tensor, values: Tensor, width: int) -> Tensor:
    _quiet()
    size = (len(starts) - 1, width)
    return torch.sparse_csr_tensor(starts, columns, values, size, check_invariants=False)


class _EncodeActive(torch.autograd.Function):
    """Pre-activations of chosen features, whose gradient reaches encoder and bias alone."""

    @staticmethod
    def forward(
        ctx: Any,
        encoder: Tensor,
        bias: Tensor,
        inputs: Tensor,
        patterns: Sequence[Pattern],
        *values: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(inputs)
        ctx.patterns, ctx.shape = patterns, encoder.shape
        return tuple(value.clone() for value in values)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (inputs,) = ctx.saved_tensors
        encoder = inputs.new_empty(ctx.shape)
        bias = inputs.new_zeros(ctx.shape[:2])
        for layer, (pattern, gradient) in enumerate(zip(ctx.patterns, gradients, strict=True)):
            encoder[layer] = pattern.transposed(gradient) @ inputs[layer]
            bias[layer].index_add_(0, pattern.features, gradient)
        return encoder, bias, None, None, *([None] * len(gradients))


class _DecodeActive(torch.autograd.Function):
    """``Y[:, l·d : (l+K)·d] += A^l D^l`` with sparse A; Y has shape (N, L·d)."""

    @staticmethod
    def forward(ctx: Any, width: int, patterns: Sequence[Pattern], *tensors: Tensor) -> Tensor:
        half = len(tensors) // 2
        values, decoders = tensors[:half], tensors[half:]
        ctx.save_for_backward(*tensors)
        ctx.patterns, ctx.width = patterns, width
        result = values[0].new_zeros(patterns[0].n_positions, half * width)
        for layer, (pattern, value, decoder) in enumerate(
            zip(patterns, values, decoders, strict=True)
        ):
            if len(value):
                result[:, _span(layer, width, decoder)] += pattern.matrix(value) @ decoder
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        tensors: Sequence[Tensor] = ctx.saved_tensors
        half = len(tensors) // 2
        of_values: list[Tensor] = []
        of_decoders: list[Tensor] = []
        for layer, pattern in enumerate(ctx.patterns):
            value, decoder = tensors[layer], tensors[half + layer]
            if not len(value):
                of_values.append(torch.zeros_like(value))
                of_decoders.append(torch.zeros_like(decoder))
                continue
            g = gradients[0][:, _span(layer, ctx.width, decoder)].contiguous()
            zeros = pattern.matrix(torch.zeros_like(value))
            of_values.append(torch.sparse.sampled_addmm(zeros, g, decoder.T).values())
            of_decoders.append(pattern.transposed(value) @ g)
        return None, None, *of_values, *of_decoders


class _Decode(torch.autograd.Function):
    """The same with dense A, one buffer for each gradient."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def forward(ctx: Any, width: int, activations: Tensor, *decoders: Tensor) -> Tensor:
        ctx.save_for_backward(activations, *decoders)
        ctx.width = width
        layers, n, _ = activations.shape
        result = decoders[0].new_zeros(n, layers * width)
        for layer, decoder in enumerate(decoders):
            span = _span(layer, width, decoder)
            if activations.is_cuda:
                result[:, span] += activations[layer] @ decoder
            else:
                result[:, span].addmm_(activations[layer], decoder)
        return result

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        activations, *decoders = ctx.saved_tensors
        of_activations = torch.empty_like(activations)
        of_decoders = []
        for layer, decoder in enumerate(decoders):
            g = gradients[0][:, _span(layer, ctx.width, decoder)]
            if g.is_cuda:
                of_activations[layer] = g @ decoder.T
            else:
                torch.mm(g, decoder.T, out=of_activations[layer])
            of_decoders.append(activations[layer].T @ g)
        return None, of_activations, *of_decoders


def _span(layer: int, width: int, decoder: Tensor) -> slice:
    """Columns of the targets that a layer writes."""
    return slice(layer * width, layer * width + decoder.shape[1])


def encode_active(
    encoder: Tensor,
    bias: Tensor,
    inputs: Tensor,
    patterns: Sequence[Pattern],
    values: Sequence[Tensor],
) -> list[Tensor]:
    """Give pre-activations that were computed without gradient the gradient of the encoders.

    Parameters
    ----------
    encoder, bias
        Shapes (L, F, d) and (L, F).
    inputs
        What was encoded, shape (L, N, d).
    patterns, values
        Chosen features of each layer, and their pre-activations.
    """
    found: Any = _EncodeActive.apply(encoder, bias, inputs, patterns, *values)
    return list(found)


def decode_active(
    patterns: Sequence[Pattern], values: Sequence[Tensor], decoders: Sequence[Tensor], width: int
) -> Tensor:
    """Sum what active features write, shape (N, L, d).

    Parameters
    ----------
    patterns, values
        Active features of each layer, and their activations.
    decoders
        Of each layer, shape (F, K·d).
    width
        d.
    """
    found: Tensor = _DecodeActive.apply(width, patterns, *values, *decoders)
    return found.view(found.shape[0], len(decoders), width)


def decode(activations: Tensor, decoders: Sequence[Tensor], width: int) -> Tensor:
    """Sum what features write, for dense activations of shape (L, N, F): shape (N, L, d)."""
    found: Tensor = _Decode.apply(width, activations, *decoders)
    return found.view(found.shape[0], len(decoders), width)
