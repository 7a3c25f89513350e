"""Output tokens that features promote and suppress, by the direct path from their decoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracer.describing.chosen import Chosen
from tracer.models import Model
from tracer.models.families.parts import Norm
from tracer.transcoders import Transcoder

__all__ = ["CONVENTION", "OutputTokens", "output_tokens"]

CONVENTION: Final = (
    "decoders summed over the layers they write to, linear parts of the norms (no denominators), "
    "unembedding less its mean row; for one unit of activation"
)
_NUMBERS: Final = 1 << 25  # numbers of a block of logits
_ROWS: Final = 16_384  # rows of the unembedding that are cast together


@dataclass(frozen=True)
class OutputTokens:
    """Token ids and effects, most extreme first; all of shape (n, k)."""

    promoted: NDArray[np.int64]
    promotion: NDArray[np.float64]
    suppressed: NDArray[np.int64]
    suppression: NDArray[np.float64]


def output_tokens(model: Model, transcoder: Transcoder, chosen: Chosen, k: int) -> OutputTokens:
    """Rank the vocabulary for every feature.

    Parameters
    ----------
    model, transcoder, chosen
        Whose features.
    k
        How many at either end.
    """
    k = min(k, model.vocab_size)
    with torch.no_grad():
        unembedding = _unembedding(model)
        made: list[list[NDArray[np.float64]]] = [[], [], [], []]
        step = max(1, _NUMBERS // model.vocab_size)
        for layer in range(transcoder.n_layers):
            indices = torch.from_numpy(chosen.indices[chosen.layers == layer])
            for start in range(0, len(indices), step):
                written = _written(model, transcoder, layer, indices[start : start + step])
                effects = written @ unembedding.T  # (n, V)
                for place, largest in ((0, True), (2, False)):
                    # A stable sort: of equal effects, the token with the smaller id comes first.
                    best = effects.sort(dim=1, descending=largest, stable=True)
                    made[place].append(best.indices[:, :k].cpu().numpy())
                    made[place + 1].append(best.values[:, :k].double().cpu().numpy())
    empty = np.empty((0, k))
    tokens, values, low, low_values = (np.concatenate([empty, *part]) for part in made)
    return OutputTokens(tokens.astype(np.int64), values, low.astype(np.int64), low_values)


def _unembedding(model: Model) -> Tensor:
    """Unembedding less its mean row, behind the final norm's linear part, float32, (V, d)."""
    parts = model.parts()
    rows = torch.empty((model.vocab_size, model.width), device=model.device)
    for start in range(0, model.vocab_size, _ROWS):
        rows[start : start + _ROWS] = parts.unembedding[start : start + _ROWS].float()
    rows -= rows.mean(dim=0)
    return _linear(parts.final_norm, rows)


def _written(model: Model, transcoder: Transcoder, layer: int, indices: Tensor) -> Tensor:
    """Sum what one unit of activation adds to the last residual stream, (n, d)."""
    rows = transcoder.decoder_rows(layer, indices.to(transcoder.device)).to(model.device).float()
    layers = model.parts().layers
    total = rows.new_zeros((len(rows), model.width))
    for place, target in enumerate(transcoder.targets(layer)):
        norm = layers[target].post_mlp_norm
        passes = norm is not None and transcoder.write_hook == "mlp.hook_out"
        total += _forward(norm, rows[:, place]) if passes and norm is not None else rows[:, place]
    return total


def _forward(norm: Norm, x: Tensor) -> Tensor:
    """Linear part of a norm: centring, then the learned scale."""
    x = x - x.mean(dim=-1, keepdim=True) if norm.centred else x
    return x if norm.weight is None else x * (norm.weight.float() + norm.offset)


def _linear(norm: Norm, rows: Tensor) -> Tensor:
    """Rows that read a stream before the norm as `rows` read it after: scale, then centring."""
    rows = rows if norm.weight is None else rows * (norm.weight.float() + norm.offset)
    return rows - rows.mean(dim=-1, keepdim=True) if norm.centred else rows
