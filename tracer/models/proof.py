"""Proof that a freeze holds: every frozen piece gives back what the model was recorded doing.

A freeze that silently does not hold gives a graph that looks entirely reasonable (spec, section 3).
So each piece is fed what was recorded at its input and compared with what was recorded at its
output; then the whole linear model is run from the embeddings, with the recorded MLP outputs, and
must give the recorded streams and the model's own logits (invariant 1).

Differences are relative, position by position: the length of the difference over the length of
what was recorded, the worst position counting. (Massive activations at the first position would
hide everything else in a norm over all positions.) What attention writes is also compared with a
thousandth of the stream it is added to, below which it makes no difference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from tracer.errors import TracingError
from tracer.models.families.parts import Parts
from tracer.models.freezing import freeze_norm
from tracer.models.frozen import FrozenModel
from tracer.models.recording import RecordedLayer, Recording

__all__ = ["TOLERANCES", "Piece", "Proof", "prove", "tolerance", "unembed"]

# By the coarser of the model's dtype and the freeze's. Half precision rounds the residual stream
# itself at every layer: what is proved there is that no piece is missing, not that digits agree.
# Measured on random models of 24 layers: 5e-7 in float32; 6e-4 a piece and 2e-3 for the whole in
# float16; 5e-3 and 1e-2 in bfloat16.
TOLERANCES: Final = {
    torch.float64: 1e-9,
    torch.float32: 1e-4,
    torch.float16: 5e-3,
    torch.bfloat16: 3e-2,
}
_WHOLE_IN_HALF: Final = 4.0  # times that, for what is rounded once a layer all the way up
_NEGLIGIBLE: Final = 1e-3
_ROWS: Final = 16_384  # of the unembedding, cast at a time
_Error = tuple[str, int | None, float]  # piece, layer, relative difference


@dataclass(frozen=True)
class Piece:
    """How well one frozen piece gives back what was recorded.

    Attributes
    ----------
    name
        The piece.
    layer
        Its layer; None for what belongs to the whole model.
    error
        Largest relative difference of a position.
    tolerance
        What that may be at most.
    """

    name: str
    layer: int | None
    error: float
    tolerance: float

    @property
    def where(self) -> str:
        """Layer and name in words."""
        return self.name if self.layer is None else f"layer {self.layer}, {self.name}"

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance (NaN is not)."""
        return self.error <= self.tolerance


@dataclass(frozen=True)
class Proof:
    """All pieces of a freeze, in the order in which they act.

    Attributes
    ----------
    pieces
        Each piece with its error.
    """

    pieces: Sequence[Piece]

    @property
    def holds(self) -> bool:
        """Whether every piece is within its tolerance."""
        return self.broken is None

    @property
    def broken(self) -> Piece | None:
        """First piece that is outside its tolerance, or None."""
        return next((piece for piece in self.pieces if not piece.holds), None)

    @property
    def worst(self) -> Piece:
        """Piece with the largest error."""
        return max(self.pieces, key=lambda piece: piece.error)


def prove(frozen: FrozenModel, recording: Recording, parts: Parts, *, family: str = "?") -> Proof:
    """Compare every frozen piece with what was recorded.

    Parameters
    ----------
    frozen
        The frozen model.
    recording
        The recording that it was made from.
    parts
        What its family says of it.
    family
        Name of the family, for the error.

    Returns
    -------
    Proof
        Of all pieces, every one within its tolerance.

    Raises
    ------
    TracingError
        Naming the first piece that does not give back what was recorded, its layer and the family.
    """
    proof = Proof(_pieces(frozen, recording, parts))
    if (broken := proof.broken) is not None:
        raise TracingError(
            f"the freeze of this {family} model does not hold at {broken.where}: frozen and "
            f"recorded differ by {broken.error:.1e} of what was recorded, {broken.tolerance:.0e} "
            "is allowed",
            f"Compare tracer/models/families/{family}.py with the model's code, as docs/models.md "
            "says; a graph of it would be wrong",
        )
    return proof


def tolerance(model: torch.dtype, frozen: torch.dtype, *, whole: bool = False) -> float:
    """Relative difference allowed between a model and its freeze, by their dtypes.

    Parameters
    ----------
    model, frozen
        Dtypes of the model's weights and of the freeze.
    whole
        For the linear model run as one, rather than for one piece of it.

    Examples
    --------
    >>> tolerance(torch.float32, torch.float64)
    0.0001
    >>> tolerance(torch.bfloat16, torch.float32, whole=True)
    0.12
    """
    half = whole and model.itemsize < 4
    return max(TOLERANCES[model], TOLERANCES[frozen]) * (_WHOLE_IN_HALF if half else 1.0)


def unembed(frozen: FrozenModel, normed: Tensor) -> Tensor:
    """Logits of one vector after the final norm, soft cap included.

    Parameters
    ----------
    frozen
        The frozen model.
    normed
        Shape (d,).

    Returns
    -------
    Tensor
        Shape (V,); the unembedding is cast a block of rows at a time.
    """
    blocks = torch.split(frozen.unembedding, _ROWS)
    logits = torch.cat([rows.to(normed.dtype) @ normed for rows in blocks])
    if frozen.unembedding_bias is not None:
        logits = logits + frozen.unembedding_bias.to(normed.dtype)
    if frozen.soft_cap is not None:
        logits = frozen.soft_cap * torch.tanh(logits / frozen.soft_cap)
    return logits


def _pieces(frozen: FrozenModel, recording: Recording, parts: Parts) -> list[Piece]:
    dtype, recorded_in = frozen.embeddings.dtype, recording.final_stream.dtype
    entering = frozen.embeddings
    if frozen.position_embeddings is not None:
        entering = entering + frozen.position_embeddings
    errors: list[_Error] = [("embeddings", None, _difference(entering, recording.layers[0].stream))]

    after = [layer.stream for layer in recording.layers[1:]] + [recording.final_stream]
    for index, (recorded, following) in enumerate(zip(recording.layers, after, strict=True)):
        errors += _layer_errors(frozen, index, recorded, following, parts)

    normed = frozen.final_norm(recording.final_stream.to(dtype))
    logits = unembed(frozen, recording.final_normed[-1].to(dtype))
    errors += [
        ("final norm", None, _difference(normed, recording.final_normed)),
        ("unembedding", None, _difference(logits, recording.logits)),
    ]
    each = tolerance(recorded_in, dtype)
    whole = tolerance(recorded_in, dtype, whole=True)
    return [Piece(*error, each) for error in errors] + [
        Piece(*error, whole) for error in _whole_errors(frozen, recording, entering)
    ]


def _layer_errors(
    frozen: FrozenModel, index: int, recorded: RecordedLayer, following: Tensor, parts: Parts
) -> list[_Error]:
    dtype = frozen.embeddings.dtype
    stream, mlp_stream = recorded.stream.to(dtype), recorded.mlp_stream.to(dtype)
    attended, written = recorded.attention_write.to(dtype), recorded.mlp_write.to(dtype)
    norm = freeze_norm(parts.layers[index].attention_norm, stream, dtype)
    attention = frozen.attentions[index]
    normed = frozen.mlp_norms[index](mlp_stream)
    read = stream if frozen.parallel else stream + attended
    errors: list[_Error] = [
        ("norm before attention", index, _difference(norm(stream), recorded.attention_normed)),
        ("attention pattern (it looks ahead)", index, _ahead(attention.probabilities)),
        ("attention", index, _difference(attention(stream), attended, stream)),
        ("stream that the MLP reads", index, _difference(read, mlp_stream)),
        ("norm before MLP", index, _difference(normed, recorded.mlp_normed)),
    ]
    if frozen.post_norms is not None:
        after = frozen.post_norms[index](recorded.mlp.to(dtype))
        errors.append(("norm after MLP", index, _difference(after, written)))
    summed = stream + attended + written
    return [*errors, ("stream after the layer", index, _difference(summed, following))]


def _whole_errors(frozen: FrozenModel, recording: Recording, entering: Tensor) -> list[_Error]:
    """Invariant 1: the linear model, run as one, against the recorded streams and logits."""
    read, final = frozen.run(entering, lambda layer, _: frozen.mlp_outputs[layer], constants=True)
    errors: list[_Error] = [
        ("stream of the whole frozen model", index, _difference(stream, recorded.mlp_stream))
        for index, (stream, recorded) in enumerate(zip(read, recording.layers, strict=True))
    ]
    logits = unembed(frozen, frozen.final_norm(final)[-1])
    return [
        *errors,
        ("final stream of the whole frozen model", None, _difference(final, frozen.final_stream)),
        ("logits of the whole frozen model", None, _difference(logits, recording.logits)),
    ]


def _difference(found: Tensor, recorded: Tensor, stream: Tensor | None = None) -> float:
    """Largest over positions of ``‖found − recorded‖ / ‖recorded‖``."""
    if found.shape != recorded.shape:
        return float("inf")
    recorded = recorded.to(found.dtype)
    size = recorded.norm(dim=-1)
    if stream is not None:
        size = torch.maximum(size, _NEGLIGIBLE * stream.norm(dim=-1))
    tiny = torch.finfo(found.dtype).tiny
    return float(((found - recorded).norm(dim=-1) / size.clamp_min(tiny)).max())


def _ahead(probabilities: Tensor) -> float:
    """Largest probability with which a position sees one after it."""
    return float(probabilities.amax(0).triu(1).max())
