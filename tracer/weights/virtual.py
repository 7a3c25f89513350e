"""Virtual weights: what a unit of one feature's activation adds to another's pre-activation.

``V_st = ⟨Σ_{l_s ≤ m < l_t} D^m W_dec,s^{l_s→m}, E^{l_t} W_enc,t⟩``, through the residual stream
alone; E and D are the constant linear parts of the norms on the reading and the writing side. For
each block of sources the decoder rows are read once and summed over the layers written to as the
targets go up, so that V comes in tiles and neither it nor the decoders are ever in memory whole.

Source: spec, section 6.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracer.attribution.local import check_fit
from tracer.errors import FormatError
from tracer.models import Model
from tracer.models.families.parts import Norm
from tracer.models.frozen import FrozenNorm
from tracer.transcoders import Transcoder

__all__ = ["Tile", "encoder_constants", "tiles"]

Indices = NDArray[np.int64]

_BLOCK: Final = 512 << 20  # bytes of decoder rows that are held together


class Tile(NamedTuple):
    """Virtual weights between some sources of one layer and some targets of a higher one.

    Attributes
    ----------
    source_layer, target_layer
        Where they are.
    sources, targets
        First and last + 1 of them among the chosen ones of their layer.
    weights
        V, shape (targets, sources).
    last
        Whether these sources have no targets further up.
    """

    source_layer: int
    target_layer: int
    sources: tuple[int, int]
    targets: tuple[int, int]
    weights: Tensor
    last: bool


def tiles(
    model: Model,
    transcoder: Transcoder,
    sources: Sequence[Indices],
    targets: Sequence[Indices],
    *,
    dtype: torch.dtype | None = None,
    memory: int = _BLOCK,
) -> Iterator[Tile]:
    """Compute virtual weights, a tile at a time.

    Parameters
    ----------
    model, transcoder
        Must fit each other.
    sources, targets
        Features of each layer, in rising order.
    dtype
        Of the products; None for the transcoder's, or float32 where that is narrower.
    memory
        Bytes of decoder rows that are held together. The encoder rows of all targets come on top.

    Yields
    ------
    Tile
        Sources from the lowest layer up; for each block of them, targets from the lowest layer up.

    Raises
    ------
    TracingError
        If the transcoder does not fit the model.
    FormatError
        If a weight is not finite, or a file ends early.
    """
    check_fit(model, transcoder)
    kind = dtype or torch.promote_types(transcoder.dtype, torch.float32)
    reads, writes = _linear_parts(model, transcoder, kind)
    n_layers = transcoder.n_layers
    encoders = [
        norm.transpose(transcoder.encoder_rows(layer, torch.from_numpy(targets[layer])).to(kind))
        for layer, norm in enumerate(reads)
    ]
    for source_layer in range(n_layers - 1):
        mine = sources[source_layer]
        above = [t for t in range(source_layer + 1, n_layers) if len(targets[t])]
        if not len(mine) or not above:
            continue
        reached = [m for m in transcoder.targets(source_layer) if m < above[-1]]
        each = max(len(transcoder.targets(source_layer)), 1) * transcoder.d_model
        step = max(1, memory // (each * (transcoder.dtype.itemsize + kind.itemsize)))
        for first in range(0, len(mine), step):
            some = torch.from_numpy(mine[first : first + step])
            rows = transcoder.decoder_rows(source_layer, some)
            written = torch.zeros((len(some), transcoder.d_model), dtype=kind, device=rows.device)
            done = 0
            for target_layer in above:
                for place, layer in enumerate(reached[done:], done):
                    if layer >= target_layer:
                        break
                    written += writes[layer].linear(rows[:, place].to(kind))
                    done = place + 1
                weights = encoders[target_layer] @ written.T
                # A sum is quicker than a look at each; it may overflow where nothing else does.
                if not (weights.sum().isfinite() or bool(torch.isfinite(weights).all())):
                    raise FormatError(
                        f"{transcoder.transcoder_id}: a virtual weight from layer {source_layer} "
                        f"to layer {target_layer} is not finite",
                        "Compute it in a wider dtype; else the weights are damaged",
                    )
                yield Tile(
                    source_layer,
                    target_layer,
                    (first, first + len(some)),
                    (0, len(targets[target_layer])),
                    weights,
                    target_layer == above[-1],
                )


def encoder_constants(model: Model, transcoder: Transcoder, layer: int, chosen: Indices) -> Tensor:
    """Pre-activation that features have where the stream is 0, float64, shape (n,).

    The bias, and what the encoder reads of the norm's shift.
    """
    at = torch.from_numpy(chosen)
    constant = transcoder.encoder_biases(layer, at).double()
    norm = model.parts().layers[layer].mlp_norm
    if transcoder.read_hook == "mlp.hook_in" and norm.shift is not None:
        rows = transcoder.encoder_rows(layer, at).double()
        constant = constant + rows @ norm.shift.to(rows.device, torch.float64)
    return constant


def _linear_parts(
    model: Model, transcoder: Transcoder, dtype: torch.dtype
) -> tuple[list[FrozenNorm], list[FrozenNorm]]:
    """Make E and D of each layer: norms without their denominators."""
    like = torch.empty(0, dtype=dtype, device=transcoder.device)
    reads, writes = [], []
    for layer in model.parts().layers:
        if transcoder.read_hook == "hook_resid_mid":
            reads.append(FrozenNorm())
        else:
            scaled = transcoder.read_hook == "mlp.hook_in"
            reads.append(_constant(layer.mlp_norm, like, scaled))
        after = layer.post_mlp_norm if transcoder.write_hook == "mlp.hook_out" else None
        writes.append(FrozenNorm() if after is None else _constant(after, like, True))
    return reads, writes


def _constant(norm: Norm, like: Tensor, scaled: bool) -> FrozenNorm:
    scale = None
    if scaled and norm.weight is not None:
        scale = norm.weight.to(like) + norm.offset
    return FrozenNorm(centred=norm.centred, scale=scale)
