"""Llama 2 and 3, and the shape that Mistral and Qwen share with them.

RMSNorm before attention and MLP, grouped-query attention with separate projections. Rotary
positions, norms of queries and keys and sliding windows are all inside the frozen pattern.
"""

from __future__ import annotations

from typing import Any, Final

from tracer.models.families.parts import Family, LayerParts, Parts, grouped_heads, rms_norm

__all__ = ["LLAMA", "llama_parts"]


def llama_parts(module: Any) -> Parts:
    """Describe a model built like Llama."""
    body, head = module.model, module.get_output_embeddings()
    return Parts(
        embedding=body.embed_tokens,
        layers=[_layer(layer) for layer in body.layers],
        final_norm=rms_norm(body.norm),
        unembedding=head.weight,
        unembedding_bias=head.bias,
    )


def _layer(layer: Any) -> LayerParts:
    return LayerParts(
        attention_norm=rms_norm(layer.input_layernorm),
        attention=layer.self_attn,
        heads=grouped_heads(layer.self_attn),
        mlp_norm=rms_norm(layer.post_attention_layernorm),
        mlp=layer.mlp,
    )


LLAMA: Final = Family("llama", ("llama",), llama_parts)
