"""The training objective: what is minimised, and how its gradient passes the activation function.

``Σ_m ‖ŷ^m − y^m‖² + λ Σ_l Σ_i tanh(c ‖W_dec,i^l‖ a_i^l) + λ_pre Σ ReLU(−h)``, a mean over tokens;
TopK and BatchTopK have no penalty and an auxiliary term instead, ``α Σ_m ‖ê^m − e^m‖²`` with
``e = y − ŷ`` and ê what the strongest dead features make of it.

The jump of a JumpReLU, ``a = h · 1(h > θ)``, has a straight-through gradient: its derivative, a
spike at θ, is taken as ``(θ/ε) · 1(|h − θ| < ε/2)``, and it reaches both θ and h (and through h
encoder and bias).

Sources: Circuit Tracing (2025), appendix on training; Rajamanoharan et al. (2024), "Jumping Ahead",
section 4 (the straight-through estimator, there for θ alone); Gao et al. (2024), "Scaling and
evaluating sparse autoencoders", appendix A.2 (auxiliary loss); Bussmann et al. (2024), "BatchTopK
sparse autoencoders"; spec, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracer.training.products import (
    Pattern,
    decode,
    decode_active,
    encode_active,
    pattern_of,
)
from tracer.training.settings import TrainSettings
from tracer.training.weights import Weights

__all__ = ["Parts", "jump", "objective"]

# Selecting looks only at scores above this share of the last cut: there are few, and the result is
# exact all the same, because with too few of them it looks again at all.
_NEAR: Final = 0.7
_CACHED: Final = 1 << 19  # bytes of a block of elementwise work, of which a few are held at once


class Parts(NamedTuple):
    """Parts of the objective, each with its weight, means over tokens.

    Attributes
    ----------
    reconstruction, sparsity, preactivation, auxiliary
        Scalars with gradient; their sum is the objective.
    errors
        ``Σ ‖ŷ^m − y^m‖²`` of each layer, shape (L,), no gradient.
    counts
        At how many positions each feature was active, shape (L, F).
    cut
        Where the ranking was cut, a score for each layer, shape (L,); None for JumpReLU.
    """

    reconstruction: Tensor
    sparsity: Tensor
    preactivation: Tensor
    auxiliary: Tensor
    errors: Tensor
    counts: Tensor
    cut: Tensor | None

    @property
    def total(self) -> Tensor:
        """The objective."""
        return self.reconstruction + self.sparsity + self.preactivation + self.auxiliary


def objective(
    settings: TrainSettings,
    weights: Weights,
    reads: Tensor,
    writes: Tensor,
    *,
    sparsity: float = 0.0,
    dead: Tensor | None = None,
    cut: Tensor | None = None,
) -> Parts:
    """Objective of a batch.

    Parameters
    ----------
    settings
        Activation function, coefficients.
    weights
        What is trained.
    reads
        Normalised x, shape (L, N, d).
    writes
        Normalised y, shape (N, L, d).
    sparsity
        λ at this step.
    dead
        Which features count as dead, shape (L, F); None for none.
    cut
        Where the ranking was cut lately, shape (L,): makes selecting faster, changes nothing.

    Returns
    -------
    Parts
    """
    if settings.activation == "jumprelu":
        return _penalised(settings, weights, reads, writes, sparsity, dead)
    if reads.is_cuda:
        return _selected_dense(settings, weights, reads, writes, dead)
    return _selected(settings, weights, reads, writes, dead, cut)


class _Jump(torch.autograd.Function):
    """JumpReLU and the two sums of its penalties, some rows at a time.

    A dozen elementwise steps over (L, N, F) numbers would each go through memory; in blocks that
    stay in the processor's cache they cost a third. The backward pass makes them again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        log_threshold: Tensor,
        norms: Tensor,
        bandwidth: float,
        steepness: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        threshold, slope = log_threshold.exp(), steepness * norms
        ctx.save_for_backward(h, threshold, slope)
        ctx.bandwidth, ctx.steepness = bandwidth, steepness
        a, scratch = torch.empty_like(h), _scratch(h, 1)[0]
        penalty, negative = h.new_zeros(()), h.new_zeros(())
        for layer, rows in _blocks(h):
            block = h[layer, rows]
            work = scratch[: len(block)]
            torch.gt(block, threshold[layer], out=work)
            active = torch.mul(block, work, out=a[layer, rows])
            penalty += torch.mul(active, slope[layer], out=work).tanh_().sum()
            negative -= torch.clamp(block, max=0, out=work).sum()
        return a, penalty, negative

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        h, threshold, slope = ctx.saved_tensors
        of_a, of_penalty, of_negative = gradients
        of_h, scratch = torch.empty_like(h), _scratch(h, 3)
        of_threshold, of_norms = torch.zeros_like(threshold), torch.zeros_like(slope)
        weight, less = of_penalty.item(), of_negative.item()
        for layer, rows in _blocks(h):
            block, theta = h[layer, rows], threshold[layer]
            on, work, total = scratch[:, : len(block)]
            torch.gt(block, theta, out=on)
            torch.mul(block, on, out=work)
            # 1 − tanh² is the slope of the penalty in c ‖W‖ a.
            torch.mul(work, slope[layer], out=total).tanh_().square_()
            total.mul_(-weight).add_(weight)
            of_norms[layer] += work.mul_(total).sum(dim=0)
            total.mul_(slope[layer]).add_(of_a[layer, rows])
            torch.sub(block, theta, out=work).abs_()
            torch.lt(work, ctx.bandwidth / 2, out=work)
            work.mul_(total).mul_(theta / ctx.bandwidth)
            of_threshold[layer] -= work.sum(dim=0)
            result = torch.addcmul(work, total, on, out=of_h[layer, rows])
            result.sub_(torch.lt(block, 0, out=work), alpha=less)
        # d log θ = θ dθ.
        return of_h, of_threshold * threshold, of_norms * ctx.steepness, None, None


def _rows(h: Tensor) -> int:
    """How many rows of a layer are worked on at once."""
    _, n, features = h.shape
    return n if h.is_cuda else min(n, max(1, _CACHED // (features * h.element_size())))


def _scratch(h: Tensor, count: int) -> Tensor:
    """Make room for so many blocks; masks are kept as numbers, which is faster here than bits."""
    return h.new_empty(count, _rows(h), h.shape[2])


def _blocks(h: Tensor) -> Iterator[tuple[int, slice]]:
    """Layers and rows of (L, N, F) numbers, as many as a cache holds; on a GPU whole layers."""
    layers, n, _ = h.shape
    step = _rows(h)
    for layer in range(layers):
        for start in range(0, n, step):
            yield layer, slice(start, min(start + step, n))


def jump(
    h: Tensor, log_threshold: Tensor, norms: Tensor, *, bandwidth: float, steepness: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Give ``a = h · 1(h > θ)`` a straight-through gradient for h and θ, and sum what is penalised.

    Parameters
    ----------
    h
        Pre-activations, shape (L, N, F).
    log_threshold
        log θ, shape (L, F).
    norms
        ``‖W_dec‖``, shape (L, F).
    bandwidth, steepness
        ε and c.

    Returns
    -------
    Tensor, Tensor, Tensor
        a, ``Σ tanh(c ‖W_dec‖ a)`` and ``Σ ReLU(−h)``.
    """
    found: tuple[Tensor, Tensor, Tensor] = _Jump.apply(
        h, log_threshold, norms, bandwidth, steepness
    )
    return found


def _penalised(
    settings: TrainSettings,
    weights: Weights,
    reads: Tensor,
    writes: Tensor,
    sparsity: float,
    dead: Tensor | None,
) -> Parts:
    """JumpReLU with the paper's penalty."""
    if weights.log_threshold is None:
        raise ValueError("JumpReLU weights have thresholds")
    h = _preactivations(weights, reads)
    n = reads.shape[1]
    a, penalty, negative = jump(
        h,
        weights.log_threshold,
        weights.norms(),
        bandwidth=settings.bandwidth,
        steepness=settings.steepness,
    )
    error = _error(weights, decode(a, weights.decoders, weights.width), reads, writes)
    auxiliary = error.new_zeros(())
    if settings.auxiliary_weight and dead is not None and bool(dead.any()):
        strongest = _strongest_dense(h, dead, settings.auxiliary_features)
        made = decode(strongest, weights.decoders, weights.width)
        auxiliary = settings.auxiliary_weight * _mean_square(made + error.detach())
    with torch.no_grad():
        counts = a.count_nonzero(dim=1)
    return Parts(
        _mean_square(error),
        sparsity / n * penalty,
        settings.preactivation / n * negative,
        auxiliary,
        error.detach().square().sum(dim=(0, 2)),
        counts,
        None,
    )


def _preactivations(weights: Weights, reads: Tensor) -> Tensor:
    """``h = W_enc x + b_enc``, shape (L, N, F)."""
    h = torch.baddbmm(weights.encoder_bias.unsqueeze(1), reads, weights.encoder.mT)
    return h.float() if h.dtype == torch.bfloat16 else h  # what autocast made of it


def _error(weights: Weights, written: Tensor, reads: Tensor, writes: Tensor) -> Tensor:
    """``ŷ − y``, shape (N, L, d), with what is not the features'."""
    error = written + (weights.decoder_bias - writes)
    if weights.skip is not None:
        error = error + torch.bmm(reads, weights.skip.mT).transpose(0, 1)
    return error


def _mean_square(error: Tensor) -> Tensor:
    return error.square().sum() / error.shape[0]


# Selecting on the CPU: active features only -------------------------------------------------------


def _selected(
    settings: TrainSettings,
    weights: Weights,
    reads: Tensor,
    writes: Tensor,
    dead: Tensor | None,
    cut: Tensor | None,
) -> Parts:
    """TopK and BatchTopK over active features only."""
    n, features = reads.shape[1], settings.features
    with torch.no_grad():
        h = _preactivations(weights, reads)
        if settings.activation == "topk":
            chosen, found_cut = _top(h, int(settings.k))
        else:
            chosen, found_cut = _top_of_batch(settings, h, weights.norms(), cut)
        patterns, values = _patterns(h, chosen, n, features)
        counts = torch.stack([pattern.counts for pattern in patterns])
    values = encode_active(weights.encoder, weights.encoder_bias, reads, patterns, values)
    written = decode_active(patterns, values, weights.decoders, weights.width)
    error = _error(weights, written, reads, writes)
    auxiliary = error.new_zeros(())
    if settings.auxiliary_weight and dead is not None and bool(dead.any()):
        with torch.no_grad():
            chosen = _strongest(h, dead, settings.auxiliary_features)
            patterns, values = _patterns(h, chosen, n, features)
        values = encode_active(weights.encoder, weights.encoder_bias, reads, patterns, values)
        made = decode_active(patterns, values, weights.decoders, weights.width)
        auxiliary = settings.auxiliary_weight * _mean_square(made + error.detach())
    zero = error.new_zeros(())
    return Parts(
        _mean_square(error),
        zero,
        zero,
        auxiliary,
        error.detach().square().sum(dim=(0, 2)),
        counts,
        found_cut,
    )


Places = Sequence[NDArray[np.int64]]


def _top_of_batch(
    settings: TrainSettings, h: Tensor, norms: Tensor, cut: Tensor | None
) -> tuple[Places, Tensor]:
    """Flat places (n, f) of each layer whose ``a ‖W_dec‖`` is among the batch's largest."""
    layers, n, features = h.shape
    groups = (
        [slice(0, layers)] if settings.across_layers else [slice(i, i + 1) for i in range(layers)]
    )
    array, lengths = h.numpy(), norms.numpy()
    places: list[NDArray[np.int64]] = []
    cuts: list[float] = []
    for group in groups:
        count = max(1, round(settings.k * n * (group.stop - group.start)))
        near = 0.0 if cut is None else _NEAR * float(cut[group.start])
        found, scores = _candidates(array[group], lengths[group], near)
        if len(found) < count and near > 0:
            found, scores = _candidates(array[group], lengths[group], 0.0)
        limit = 0.0
        if len(found) > count:
            limit = float(np.partition(scores, len(scores) - count)[len(scores) - count])
            found = found[scores >= limit]
        bounds = np.searchsorted(found, np.arange(1, group.stop - group.start) * n * features)
        places += [one % (n * features) for one in np.split(found, bounds)]
        cuts += [limit] * (group.stop - group.start)
    return places, torch.tensor(cuts, dtype=torch.float64)


def _candidates(
    h: NDArray[Any], norms: NDArray[Any], near: float
) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Flat places where ``h ‖W_dec‖ > near`` (and h > 0), and these scores."""
    limit = near / np.maximum(norms, 1e-30)
    found = np.flatnonzero(h > limit[:, None, :])
    _, n, features = h.shape
    which = found // (n * features) * features + found % features
    return found, h.reshape(-1)[found] * norms.reshape(-1)[which]


def _top(h: Tensor, k: int) -> tuple[Places, Tensor]:
    """Find the k largest of each layer and position, and the cut that keeps as many on average."""
    layers, n, features = h.shape
    best = h.topk(k, dim=2)
    rows = torch.arange(n).unsqueeze(1) * features
    places, cuts = [], []
    for layer in range(layers):
        live = best.values[layer] > 0
        places.append(np.sort((best.indices[layer] + rows)[live].numpy()))
        all_of = h[layer].reshape(-1).numpy()
        count = max(1, int(live.sum()))
        cuts.append(float(np.partition(all_of, len(all_of) - count)[len(all_of) - count]))
    return places, torch.tensor(cuts, dtype=torch.float64)


def _strongest(h: Tensor, dead: Tensor, k: int) -> Places:
    """Find the k dead features of each layer and position with the largest h, if it is positive."""
    layers, n, features = h.shape
    rows = torch.arange(n).unsqueeze(1) * features
    places = []
    for layer in range(layers):
        which = dead[layer].nonzero().squeeze(1)
        of_dead = h[layer].index_select(1, which)
        best = of_dead.topk(min(k, len(which)), dim=1)
        live = best.values > 0
        places.append(np.sort((which[best.indices] + rows)[live].numpy()))
    return places


def _patterns(
    h: Tensor, places: Places, n: int, features: int
) -> tuple[list[Pattern], list[Tensor]]:
    patterns = [pattern_of(flat, n, features) for flat in places]
    values = [torch.from_numpy(h[i].reshape(-1).numpy()[flat]) for i, flat in enumerate(places)]
    return patterns, values


# Selecting on a GPU: dense, with a mask -----------------------------------------------------------


def _selected_dense(
    settings: TrainSettings, weights: Weights, reads: Tensor, writes: Tensor, dead: Tensor | None
) -> Parts:
    """Do the same with dense products."""
    h = _preactivations(weights, reads)
    with torch.no_grad():
        mask, cut = _mask(settings, h, weights.norms())
        counts = mask.sum(dim=1)
    error = _error(weights, decode(h * mask, weights.decoders, weights.width), reads, writes)
    auxiliary = error.new_zeros(())
    if settings.auxiliary_weight and dead is not None and bool(dead.any()):
        strongest = _strongest_dense(h, dead, settings.auxiliary_features)
        made = decode(strongest, weights.decoders, weights.width)
        auxiliary = settings.auxiliary_weight * _mean_square(made + error.detach())
    zero = error.new_zeros(())
    errors = error.detach().square().sum(dim=(0, 2))
    return Parts(_mean_square(error), zero, zero, auxiliary, errors, counts, cut)


def _mask(settings: TrainSettings, h: Tensor, norms: Tensor) -> tuple[Tensor, Tensor]:
    layers, n, _ = h.shape
    if settings.activation == "topk":
        best = h.topk(int(settings.k), dim=2)
        mask = torch.zeros_like(h, dtype=torch.bool).scatter_(2, best.indices, best.values > 0)
        counts = mask.sum(dim=(1, 2)).clamp(min=1).tolist()
        cuts = [h[layer].reshape(-1).topk(count).values[-1] for layer, count in enumerate(counts)]
        return mask, torch.stack(cuts).double()
    scores = h * norms.unsqueeze(1)
    if settings.across_layers:
        count = max(1, round(settings.k * n * layers))
        limit = scores.reshape(-1).topk(count).values[-1].clamp(min=0).expand(layers)
    else:
        count = max(1, round(settings.k * n))
        limit = scores.reshape(layers, -1).topk(count, dim=1).values[:, -1].clamp(min=0)
    return (scores >= limit[:, None, None]) & (scores > 0), limit.double()


def _strongest_dense(h: Tensor, dead: Tensor, k: int) -> Tensor:
    """Pre-activations of the k strongest dead features of a layer and position, 0 elsewhere."""
    with torch.no_grad():
        of_dead = h.masked_fill(~dead.unsqueeze(1), -torch.inf)
        best = of_dead.topk(min(k, h.shape[2]), dim=2)
        mask = torch.zeros_like(h, dtype=torch.bool).scatter_(2, best.indices, best.values > 0)
    return h * mask
