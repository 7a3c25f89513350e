"""From a recorded prompt to the linear model that it leaves.

For each layer, with A the recorded attention probabilities, n the norm before (scale s, centring
C, shift b, denominator σ) and m the norm after:

``m(Σ_h O_h Σ_k A[h,q,k] (V_h n(x_k) + v_h) + o)``
is ``Σ_h O'_h Σ_k P[h,q,k] V'_h x_k + c_q`` with ``V' = V diag(s) C``, ``O' = diag(s_m) C_m O``,
``P[h,q,k] = A[h,q,k] / (σ_k σ_m,q)`` and
``c_q = m(Σ_h O_h (V_h b + v_h) Σ_k A[h,q,k] + o)``.

Source: Circuit Tracing (2025), "The local replacement model"; spec, section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tracer.models.families.parts import LayerParts, Norm, Parts
from tracer.models.frozen import FrozenAttention, FrozenModel, FrozenNorm
from tracer.models.recording import RecordedLayer, Recording

__all__ = ["freeze", "freeze_norm"]


def freeze(parts: Parts, recording: Recording, dtype: torch.dtype) -> FrozenModel:
    """Freeze a recorded prompt.

    Parameters
    ----------
    parts
        What the model's family says of it.
    recording
        The recorded prompt, in the model's dtype.
    dtype
        Of the result. Denominators are computed again in it, from the recorded streams.

    Returns
    -------
    FrozenModel
        All in `dtype`, but for ``unembedding`` and its bias: the model's own tensors.
    """
    positions = recording.position_embeddings
    layers = list(zip(parts.layers, recording.layers, strict=True))
    return FrozenModel(
        token_ids=recording.token_ids,
        embeddings=recording.embeddings.to(dtype),
        position_embeddings=None if positions is None else positions.to(dtype),
        attentions=[_freeze_attention(layer, recorded, dtype) for layer, recorded in layers],
        parallel=parts.parallel,
        streams=torch.stack([recorded.mlp_stream.to(dtype) for _, recorded in layers]),
        mlp_norms=[
            freeze_norm(layer.mlp_norm, recorded.mlp_stream, dtype) for layer, recorded in layers
        ],
        mlp_outputs=torch.stack([recorded.mlp_write.to(dtype) for _, recorded in layers]),
        final_norm=freeze_norm(parts.final_norm, recording.final_stream, dtype),
        final_stream=recording.final_stream.to(dtype),
        logits=recording.logits.to(dtype),
        unembedding=parts.unembedding,
        unembedding_bias=parts.unembedding_bias,
        soft_cap=parts.soft_cap,
        post_norms=(
            None
            if all(layer.post_mlp_norm is None for layer, _ in layers)
            else [
                freeze_norm(layer.post_mlp_norm, recorded.mlp, dtype) for layer, recorded in layers
            ]
        ),
    )


def freeze_norm(norm: Norm | None, stream: Tensor, dtype: torch.dtype) -> FrozenNorm:
    """Freeze a norm at the denominators that a stream of shape (P, d) gives it; None: identity."""
    if norm is None:
        return FrozenNorm()
    x = stream.to(dtype)
    if norm.centred:
        x = x - x.mean(-1, keepdim=True)
    return FrozenNorm(
        centred=norm.centred,
        scale=None if norm.weight is None else norm.weight.to(dtype) + norm.offset,
        shift=None if norm.shift is None else norm.shift.to(dtype),
        inverse=(x.square().mean(-1) + norm.eps).rsqrt(),
    )


def _freeze_attention(
    layer: LayerParts, recorded: RecordedLayer, dtype: torch.dtype
) -> FrozenAttention:
    before = freeze_norm(layer.attention_norm, recorded.stream, dtype)
    after = freeze_norm(layer.post_attention_norm, recorded.attention, dtype)
    probabilities = recorded.probabilities.to(dtype)
    heads = layer.heads
    value, output = heads.value.to(dtype), heads.output.to(dtype)

    shifted = value.new_zeros(value.shape[:2]) if before.shift is None else value @ before.shift
    if heads.value_bias is not None:
        shifted = shifted + heads.value_bias.to(dtype)
    groups = output.shape[0] // value.shape[0]
    by_head = torch.einsum("hdw,hw->hd", output, shifted.repeat_interleave(groups, 0))
    constant = probabilities.sum(-1).T @ by_head  # rows of A sum to 1 up to its rounding
    if heads.output_bias is not None:
        constant = constant + heads.output_bias.to(dtype)

    # Transposed and linear parts without the denominators: those are in the pattern.
    value = FrozenNorm(before.centred, before.scale).transpose(value)
    output = FrozenNorm(after.centred, after.scale).linear(output.mT).mT
    denominators = probabilities.new_ones(probabilities.shape[1:])  # (P, P), for all heads at once
    if before.inverse is not None:
        denominators = denominators * before.inverse[None, :]
    if after.inverse is not None:
        denominators = denominators * after.inverse[:, None]
    return FrozenAttention(
        pattern=probabilities * denominators,
        value=value,
        output=output,
        constant=after(constant),
        probabilities=probabilities,
    )
