"""The linear model that one prompt leaves when attention patterns and norm denominators are frozen.

Whatever the family, a frozen attention layer is ``x_q += Σ_h O_h Σ_k P[h,q,k] V_h x_k + c_q`` and a
frozen norm is a centring, a scale and one number a position. Every number that depends on the
position alone (the denominators of the norms before and after attention) is folded into the
pattern, every constant matrix (centring, learned scales) into ``V`` and ``O``: what is left is the
same few products for all families, which is what :mod:`tracer.attribution` walks.

Source: Circuit Tracing (2025), "The local replacement model"; spec, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["FrozenAttention", "FrozenModel", "FrozenNorm"]


@dataclass(frozen=True)
class FrozenNorm:
    """``x_p -> scale * (x_p − mean(x_p) if centred else x_p) * inverse[p] + shift``.

    Attributes
    ----------
    centred
        Whether the mean over the residual width is taken off (LayerNorm) or not (RMSNorm).
    scale
        Learned scale, shape (d,); None where there is none (or where a hook lies before it).
    shift
        Learned shift, shape (d,); None where there is none.
    inverse
        1 / denominator at each position, shape (P,); None for the identity.
    """

    centred: bool = False
    scale: Tensor | None = None
    shift: Tensor | None = None
    inverse: Tensor | None = None

    @property
    def is_identity(self) -> bool:
        """Whether this changes nothing (a hook on the raw residual stream)."""
        return not self.centred and self.scale is None and self.inverse is None

    def linear(self, x: Tensor, positions: Tensor | slice | int = slice(None)) -> Tensor:
        """Linear part applied to vectors at `positions`, shape (…, len(positions), d)."""
        if self.centred:
            x = x - x.mean(-1, keepdim=True)
        if self.scale is not None:
            x = x * self.scale
        if self.inverse is not None:
            x = x * self.inverse[positions].unsqueeze(-1)
        return x

    def transpose(self, v: Tensor, positions: Tensor | slice | int = slice(None)) -> Tensor:
        """Transposed linear part: what `v`, which reads the output, reads of the input."""
        if self.inverse is not None:
            v = v * self.inverse[positions].unsqueeze(-1)
        if self.scale is not None:
            v = v * self.scale
        if self.centred:
            v = v - v.mean(-1, keepdim=True)
        return v

    def __call__(self, x: Tensor) -> Tensor:
        """Whole map applied to the residual stream, shape (P, d)."""
        x = self.linear(x)
        return x if self.shift is None else x + self.shift


@dataclass(frozen=True)
class FrozenAttention:
    """``x_q += Σ_h output[h] Σ_k pattern[h,q,k] value[h // groups] x_k + constant_q``.

    Attributes
    ----------
    pattern
        Attention probabilities × (1 / denominator of the norm before, at k) × (1 / denominator of
        the norm after, at q), shape (H, P, P); 0 where q cannot see k.
    value
        Value matrices with the linear part of the norm before folded in, shape (H_kv, d_head, d).
    output
        Output matrices with the linear part of the norm after folded in, shape (H, d, d_head).
    constant
        What biases and shifts add, shape (P, d).
    probabilities
        The attention probabilities alone, shape (H, P, P).
    """

    pattern: Tensor
    value: Tensor
    output: Tensor
    constant: Tensor
    probabilities: Tensor

    @property
    def groups(self) -> int:
        """Query heads that share one value head."""
        return int(self.output.shape[0] // self.value.shape[0])

    def linear(self, x: Tensor) -> Tensor:
        """Linear part of what the layer adds, for streams of shape (…, P, d)."""
        heads, _, width = self.output.shape
        values = torch.einsum("gwd,...pd->...gpw", self.value, x)
        values = values.repeat_interleave(self.groups, dim=-3)  # (…, H, P, d_head)
        mixed = torch.einsum("hqk,...hkw->...qhw", self.pattern, values)
        flat = self.output.permute(0, 2, 1).reshape(heads * width, -1)
        return mixed.reshape(*mixed.shape[:-2], heads * width) @ flat

    def __call__(self, x: Tensor) -> Tensor:
        """Apply the whole layer: what it adds to the residual stream, shape (P, d)."""
        return self.linear(x) + self.constant


@dataclass(frozen=True)
class FrozenModel:
    """A model frozen to one prompt, and what was recorded on the way.

    Layer ``l`` adds ``attentions[l]`` of the stream before it, then ``mlp_outputs[l]``. In a
    sequential family MLPs (and so features) read the stream after attention; in a `parallel` one
    (GPT-NeoX) the stream before it.

    Attributes
    ----------
    token_ids
        The prompt, shape (P,).
    embeddings
        The tokens' rows alone, times the embedding scale, shape (P, d).
    position_embeddings
        Learned position embeddings, shape (P, d), or None.
    attentions
        One for each of the L layers.
    parallel
        Whether MLPs read the stream before their layer's attention.
    streams
        Residual stream that each layer's MLP norm reads (``hook_resid_mid``), shape (L, P, d).
    mlp_norms
        The norm before each MLP, frozen.
    mlp_outputs
        What each MLP adds to the stream (``hook_mlp_out``: after a post-norm), shape (L, P, d).
    final_norm
        The norm before the unembedding, frozen.
    final_stream
        Residual stream before the final norm, shape (P, d).
    logits
        The model's own logits at the last position, after any soft cap, shape (V,).
    unembedding
        Shape (V, d); not copied.
    unembedding_bias
        Shape (V,), or None.
    soft_cap
        Final soft cap: ``logits = cap · tanh(linear / cap)``; None where there is none.
    post_norms
        The norm after each MLP, frozen (Gemma), or None: what a transcoder writes at
        ``mlp.hook_out`` passes it on the way to the stream.
    """

    token_ids: Tensor
    embeddings: Tensor
    position_embeddings: Tensor | None
    attentions: Sequence[FrozenAttention]
    parallel: bool
    streams: Tensor
    mlp_norms: Sequence[FrozenNorm]
    mlp_outputs: Tensor
    final_norm: FrozenNorm
    final_stream: Tensor
    logits: Tensor
    unembedding: Tensor
    unembedding_bias: Tensor | None = None
    soft_cap: float | None = None
    post_norms: Sequence[FrozenNorm] | None = None

    @property
    def n_layers(self) -> int:
        """Number of layers L."""
        return len(self.attentions)

    @property
    def n_positions(self) -> int:
        """Number of prompt positions P."""
        return int(self.embeddings.shape[0])

    @property
    def width(self) -> int:
        """Residual width d."""
        return int(self.embeddings.shape[1])

    def run(
        self,
        stream: Tensor,
        writes: Callable[[int, Tensor], Tensor] | None = None,
        *,
        constants: bool,
    ) -> tuple[list[Tensor], Tensor]:
        """Carry streams of shape (…, P, d) up through all layers.

        Parameters
        ----------
        stream
            What enters the first layer.
        writes
            ``writes(layer, read_stream)`` is what that layer's MLP place adds; None adds nothing.
        constants
            Whether the constants of attention (biases, shifts) are added.

        Returns
        -------
        list of Tensor, Tensor
            The stream that each layer's MLP norm reads, and the stream before the final norm.
        """
        read: list[Tensor] = []
        for layer, attention in enumerate(self.attentions):
            added = attention(stream) if constants else attention.linear(stream)
            before, stream = stream, stream + added
            read.append(before if self.parallel else stream)
            if writes is not None:
                stream = stream + writes(layer, read[-1])
        return read, stream
