"""What a family says about its models: where each frozen piece lies and which linear map it is.

An adapter answers one question, :class:`Parts` of a module. All matrices are views of the model's
own parameters in the model's own dtype: nothing is copied until a prompt is frozen.

Source: Circuit Tracing (2025), "The local replacement model"; spec, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from tracer.errors import TracingError

__all__ = [
    "Family",
    "Heads",
    "LayerParts",
    "Norm",
    "Parts",
    "grouped_heads",
    "layer_norm",
    "linear",
    "plain_weights",
    "rms_norm",
]


@dataclass(frozen=True)
class Norm:
    """A LayerNorm or RMSNorm: ``(weight + offset) * (x − mean) / sqrt(mean square + eps) + shift``.

    Attributes
    ----------
    module
        Module whose input and output are recorded.
    centred
        Whether the mean over the residual width is taken off first (LayerNorm).
    weight
        Learned scale less `offset`, shape (d,).
    eps
        Added to the mean square before the root.
    shift
        Learned shift, shape (d,), or None.
    offset
        1 for Gemma, whose weights are kept as scale − 1.
    """

    module: nn.Module
    centred: bool
    weight: Tensor | None
    eps: float
    shift: Tensor | None = None
    offset: float = 0.0


@dataclass(frozen=True)
class Heads:
    """The matrices of one layer's attention that stay live when its pattern is frozen.

    Attributes
    ----------
    value
        Shape (H_kv, d_head, d); query head h reads value head h // (H / H_kv).
    output
        Shape (H, d, d_head).
    value_bias
        Shape (H_kv, d_head), or None.
    output_bias
        Shape (d,), or None.
    """

    value: Tensor
    output: Tensor
    value_bias: Tensor | None = None
    output_bias: Tensor | None = None


@dataclass(frozen=True)
class LayerParts:
    """One layer: the modules that are recorded and the matrices of its attention.

    Attributes
    ----------
    attention_norm, mlp_norm
        The norms that attention and MLP read through.
    attention, mlp
        Their modules; the attention module returns its output and its pattern.
    heads
        Value and output matrices of attention.
    post_attention_norm, post_mlp_norm
        Norms on what attention and MLP write (Gemma), or None.
    """

    attention_norm: Norm
    attention: nn.Module
    heads: Heads
    mlp_norm: Norm
    mlp: nn.Module
    post_attention_norm: Norm | None = None
    post_mlp_norm: Norm | None = None


@dataclass(frozen=True)
class Parts:
    """A whole model, from embedding to unembedding.

    Attributes
    ----------
    embedding
        Module whose output is the tokens' rows, times any embedding scale.
    layers
        One for each layer.
    final_norm
        The norm before the unembedding.
    unembedding
        Shape (V, d).
    position_embedding
        Module of the learned position embeddings, or None.
    unembedding_bias
        Shape (V,), or None.
    soft_cap
        Final soft cap, or None.
    parallel
        Whether MLPs read the stream before their layer's attention.
    """

    embedding: nn.Module
    layers: Sequence[LayerParts]
    final_norm: Norm
    unembedding: Tensor
    position_embedding: nn.Module | None = None
    unembedding_bias: Tensor | None = None
    soft_cap: float | None = None
    parallel: bool = False


@dataclass(frozen=True)
class Family:
    """Adapter of one model family.

    Attributes
    ----------
    name
        As :attr:`tracer.models.Model.family` gives it.
    model_types
        The ``model_type`` of every ``config.json`` that it reads.
    parts
        Function from a transformers causal language model to its :class:`Parts`.
    """

    name: str
    model_types: tuple[str, ...]
    parts: Callable[[Any], Parts]


def layer_norm(module: Any) -> Norm:
    """Describe an ``nn.LayerNorm``."""
    return Norm(
        module=module, centred=True, weight=module.weight, eps=module.eps, shift=module.bias
    )


def rms_norm(module: Any, offset: float = 0.0) -> Norm:
    """Describe an RMSNorm of transformers, whatever it calls its epsilon."""
    eps = getattr(module, "variance_epsilon", None)
    return Norm(
        module=module,
        centred=False,
        weight=module.weight,
        eps=float(module.eps if eps is None else eps),
        offset=offset,
    )


def plain_weights(owner: Any, name: str, kind: type[nn.Module]) -> Any:
    """Child `name` of a module, checked to be a layer of that kind with plain weights.

    Raises
    ------
    TracingError
        If it is quantised, wrapped by an adapter, or missing.
    """
    module: Any = getattr(owner, name, None)
    weight: Any = getattr(module, "weight", None)
    if type(module) is not kind or not weight.is_floating_point():
        found = "missing" if module is None else f"a {type(module).__name__}"
        raise TracingError(
            f"{type(owner).__name__}.{name} is {found}, not a {kind.__name__} of plain weights",
            "Load the model unquantised, and merge adapters into its weights first",
        )
    return module


def linear(owner: Any, name: str) -> nn.Linear:
    """Child `name` of a module, checked to be a linear layer with plain weights.

    Raises
    ------
    TracingError
        As :func:`plain_weights`.
    """
    found: nn.Linear = plain_weights(owner, name, nn.Linear)
    return found


def grouped_heads(attention: Any) -> Heads:
    """Matrices of a (grouped-query) attention with ``v_proj`` and ``o_proj``."""
    value, output = linear(attention, "v_proj"), linear(attention, "o_proj")
    width = attention.head_dim
    return Heads(
        value=value.weight.view(-1, width, value.in_features),
        output=output.weight.view(output.out_features, -1, width).permute(1, 0, 2),
        value_bias=None if value.bias is None else value.bias.view(-1, width),
        output_bias=output.bias,
    )
