"""GPT-2: learned positions, LayerNorm, one combined transposed projection for query, key, value."""

from __future__ import annotations

from typing import Any, Final

import torch
from transformers.pytorch_utils import Conv1D

from tracer.errors import TracingError
from tracer.models.families.parts import (
    Family,
    Heads,
    LayerParts,
    Parts,
    layer_norm,
    plain_weights,
)

__all__ = ["GPT2"]


def _parts(module: Any) -> Parts:
    body = module.transformer
    if module.config.add_cross_attention:
        raise TracingError(
            "this GPT-2 has cross-attention, which reads something outside the prompt",
            "Trace a decoder without it",
        )
    if module.config.reorder_and_upcast_attn and module.dtype == torch.float64:
        raise TracingError(
            "this GPT-2 makes attention scores in float32 (reorder_and_upcast_attn), which "
            "transformers cannot do in float64",
            "Load it in float32",
        )
    return Parts(
        embedding=body.wte,
        position_embedding=body.wpe,
        layers=[_layer(block) for block in body.h],
        final_norm=layer_norm(body.ln_f),
        unembedding=module.lm_head.weight,
        unembedding_bias=module.lm_head.bias,
    )


def _layer(block: Any) -> LayerParts:
    return LayerParts(
        attention_norm=layer_norm(block.ln_1),
        attention=block.attn,
        heads=_heads(block.attn),
        mlp_norm=layer_norm(block.ln_2),
        mlp=block.mlp,
    )


def _heads(attention: Any) -> Heads:
    width = attention.embed_dim
    for name in ("c_attn", "c_proj"):
        plain_weights(attention, name, Conv1D)
    # Conv1D keeps its weight as (inputs, outputs): the transpose of a linear layer's. The columns
    # of c_attn are all queries, then all keys, then all values.
    value = attention.c_attn.weight[:, 2 * width :].T
    heads = (attention.num_heads, attention.head_dim)
    return Heads(
        value=value.view(*heads, width),
        output=attention.c_proj.weight.view(*heads, width).mT,
        value_bias=attention.c_attn.bias[2 * width :].view(heads),
        output_bias=attention.c_proj.bias,
    )


GPT2: Final = Family("gpt2", ("gpt2",), _parts)
