"""Sums over the tokens of one unit, for every pair of features that fire together in it.

All sums of a pair are sums over tokens of something of the target times something of the source:
with ``1``, ``a_t``, ``a_t²`` (and each over σ, the denominator of the target's norm) in a column of
blocks, ``1``, ``a_s``, ``a_s²`` in a row of blocks, one product of block-sparse matrices gives them
all. Its work is the number of co-firings, its result the pairs that occur. On a GPU, dense products
of the same matrices are faster, as long as the features are not too many.

Source: spec, section 6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import bsr_array, csr_array, hstack
from torch import Tensor

from tracer.weights.recording import Encoded
from tracer.weights.statistics import MOMENTS
from tracer.weights.weights import Norm

__all__ = ["Pairs", "moments", "pairs"]

Vector = NDArray[np.float64]
Indices = NDArray[np.int64]

# Powers of a_t and a_s in each sum; σ has that of a_s.
_POWERS: Final = {"s": (0, 1), "ts": (1, 1), "ss": (0, 2), "tts": (2, 1), "ttss": (2, 2)}

# What one product may hold, in bytes, and how many activations are taken together.
_BLOCK: Final = 256 << 20
_ENTRIES: Final = 4 << 20
_DENSE: Final = 1 << 30  # bytes of one matrix of all activations, on a GPU


class Pairs(NamedTuple):
    """Sums of the pairs with targets in one layer.

    Attributes
    ----------
    piece
        Number of the tokens that were taken together: within one, no pair comes twice.
    layer
        Of the targets.
    keys
        ``target · n + source``, rising, shape (k,).
    counts
        Tokens on which both are active, shape (k,).
    numbers
        Rows: the moments of each norm in order, shape (S, k).
    """

    piece: int
    layer: int
    keys: Indices
    counts: Indices
    numbers: Vector


def pairs(
    unit: Encoded, norms: Sequence[Norm], device: torch.device | None = None
) -> Iterator[Pairs]:
    """Sum over the tokens of a unit.

    Parameters
    ----------
    unit
        Activations.
    norms
        Which moments; ``folded`` needs denominators.
    device
        Where to do dense products, in float64; None for sparse ones.

    Yields
    ------
    Pairs
        A layer may come several times, each time with other pairs or other tokens.
    """
    widths = [layer.shape[1] for layer in unit.activations]
    starts = np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)
    entries = sum(layer.nnz for layer in unit.activations)
    pieces = max(1, -(-entries // _ENTRIES))
    if device is not None:
        pieces = max(pieces, -(-unit.tokens * int(starts[-1]) * 8 // _DENSE))
    bounds = np.linspace(0, unit.tokens, min(pieces, max(unit.tokens, 1)) + 1).astype(int)
    for piece, (first, last) in enumerate(pairwise(bounds)):
        layers = [layer[first:last] for layer in unit.activations]
        inverse = None if unit.inverse is None else unit.inverse[first:last]
        below: list[csr_array] = []
        for layer, activations in enumerate(layers):
            if layer and activations.nnz and starts[layer]:
                sources = csr_array(hstack(below, format="csr"))
                sigma = None if inverse is None else inverse[:, layer]
                if device is not None:
                    found = _dense(layer, activations, sources, sigma, starts, norms, device)
                else:
                    found = _layer(layer, activations, sources, sigma, starts, norms)
                for made in found:
                    yield made._replace(piece=piece)
            below.append(activations)


def moments(unit: Encoded) -> tuple[Indices, Vector]:
    """Count firings, shape (F,), and sum a and a², shape (2, F); where a > 0."""
    counts, numbers = [], []
    for layer in unit.activations:
        on = layer.data > 0
        columns, values = layer.indices[on], layer.data[on]
        n = layer.shape[1]
        counts.append(np.bincount(columns, minlength=n))
        numbers.append([np.bincount(columns, values**power, minlength=n) for power in (1, 2)])
    return np.concatenate(counts).astype(np.int64), np.concatenate(numbers, axis=1)


def _layer(
    layer: int,
    targets: csr_array,
    sources: csr_array,
    inverse: Vector | None,
    starts: Indices,
    norms: Sequence[Norm],
) -> Iterator[Pairs]:
    """Sum over the pairs with targets in one layer, some targets at a time."""
    transposed = csr_array(targets.T.tocsr())
    if (transposed.data <= 0).any():
        transposed.data = np.where(transposed.data > 0, transposed.data, 0.0)
        transposed.eliminate_zeros()
    lines = _lines(transposed, inverse, norms)
    right = np.stack([np.ones_like(sources.data), sources.data, sources.data**2], axis=1)
    wide = bsr_array(
        (right[:, None, :], sources.indices, sources.indptr),
        shape=(sources.shape[0], 3 * sources.shape[1]),
        blocksize=(1, 3),
    )
    n, height = int(starts[-1]), lines.shape[1]
    step = max(1, _BLOCK // (int(starts[layer]) * height * 3 * 8))
    for row in range(0, transposed.shape[0], step):
        stop = min(row + step, transposed.shape[0])
        first, last = int(transposed.indptr[row]), int(transposed.indptr[stop])
        if first == last:
            continue
        tall = bsr_array(
            (
                lines[first:last, :, None],
                transposed.indices[first:last],
                transposed.indptr[row : stop + 1] - first,
            ),
            shape=((stop - row) * height, transposed.shape[1]),
            blocksize=(height, 1),
        )
        product = tall @ wide
        yield _read(layer, product, int(starts[layer]) + row, n, norms)


def _lines(transposed: csr_array, inverse: Vector | None, norms: Sequence[Norm]) -> Vector:
    """Make what of each target's activation enters the sums, shape (nnz, R); the first is 1."""
    a = transposed.data
    columns = [np.ones_like(a), a, a**2] if "omitted" in norms else [np.ones_like(a)]
    if "folded" in norms:
        if inverse is None:
            raise ValueError("folded sums need denominators")
        over = inverse[transposed.indices]
        columns += [over, a * over, a**2 * over, over**2, a**2 * over**2]
    return np.stack(columns, axis=1)


def _dense(
    layer: int,
    targets: csr_array,
    sources: csr_array,
    inverse: Vector | None,
    starts: Indices,
    norms: Sequence[Norm],
    device: torch.device,
) -> Iterator[Pairs]:
    """Sum over the pairs with targets in one layer by dense products."""
    t, s = (_on_device(one, device) for one in (targets, sources))
    t = t.clamp(min=0)
    on = (t > 0).double()
    count = on.T @ (s != 0).double()
    rows, columns = count.nonzero(as_tuple=True)
    if not len(rows):
        return
    powers = {0: on, 1: t, 2: t**2}
    over = None if inverse is None else torch.from_numpy(inverse).to(device).unsqueeze(1)
    numbers = []
    for norm in norms:
        for name in MOMENTS:
            of_target, of_source = _POWERS[name]
            line = powers[of_target]
            if norm == "folded" and over is not None:
                line = line * over**of_source
            numbers.append((line.T @ s**of_source)[rows, columns])
    keys = (rows + int(starts[layer])) * int(starts[-1]) + columns
    yield Pairs(
        0,
        layer,
        keys.cpu().numpy(),
        count[rows, columns].round().long().cpu().numpy(),
        torch.stack(numbers).cpu().numpy(),
    )


def _on_device(matrix: csr_array, device: torch.device) -> Tensor:
    """Make a dense matrix, float64, without one on the way."""
    made = torch.zeros(matrix.shape, dtype=torch.float64, device=device)
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    at = (torch.from_numpy(rows).to(device), torch.from_numpy(matrix.indices).long().to(device))
    made[at] = torch.from_numpy(matrix.data).to(device)
    return made


def _read(layer: int, product: bsr_array, first: int, n: int, norms: Sequence[Norm]) -> Pairs:
    """Take the wanted numbers out of the blocks, in the order of their keys."""
    place = csr_array(
        (np.arange(len(product.indices)), product.indices, product.indptr),
        shape=(len(product.indptr) - 1, product.shape[1] // 3),
    )
    place.sort_indices()
    rows = np.repeat(np.arange(place.shape[0], dtype=np.int64), np.diff(place.indptr))
    keys = (rows + first) * n + place.indices
    blocks = product.data[place.data]  # (k, R, 3)
    numbers = []
    if "omitted" in norms:
        numbers += [blocks[:, t, s] for t, s in (_POWERS[name] for name in MOMENTS)]
    if "folded" in norms:
        offset = 3 if "omitted" in norms else 1
        # Lines in the order of _lines: 1/σ, a/σ, a²/σ, 1/σ², a²/σ².
        line = {(0, 1): 0, (1, 1): 1, (2, 1): 2, (0, 2): 3, (2, 2): 4}
        numbers += [
            blocks[:, offset + line[t, s], s] for t, s in (_POWERS[name] for name in MOMENTS)
        ]
    return Pairs(0, layer, keys, np.rint(blocks[:, 0, 0]).astype(np.int64), np.stack(numbers))
