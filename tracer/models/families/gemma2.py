"""Gemma 2, and the layers that Gemma 3 shares with it.

RMSNorm with weights kept as scale − 1, before *and* after attention and MLP; embeddings times √d
(by the embedding module, in its own dtype); a soft cap on the final logits. The soft cap on
attention scores and the sliding windows are inside the frozen pattern.
"""

from __future__ import annotations

from typing import Any, Final

from tracer.models.families.parts import Family, LayerParts, Norm, Parts, grouped_heads, rms_norm

__all__ = ["GEMMA2", "gemma_parts"]


def gemma_parts(body: Any, head: Any, soft_cap: float | None) -> Parts:
    """Describe a Gemma decoder `body` and its unembedding."""
    return Parts(
        embedding=body.embed_tokens,
        layers=[_layer(layer) for layer in body.layers],
        final_norm=_norm(body.norm),
        unembedding=head.weight,
        unembedding_bias=head.bias,
        soft_cap=soft_cap,
    )


def _layer(layer: Any) -> LayerParts:
    return LayerParts(
        attention_norm=_norm(layer.input_layernorm),
        attention=layer.self_attn,
        heads=grouped_heads(layer.self_attn),
        post_attention_norm=_norm(layer.post_attention_layernorm),
        mlp_norm=_norm(layer.pre_feedforward_layernorm),
        mlp=layer.mlp,
        post_mlp_norm=_norm(layer.post_feedforward_layernorm),
    )


def _norm(module: Any) -> Norm:
    return rms_norm(module, offset=1.0)


def _parts(module: Any) -> Parts:
    return gemma_parts(module.model, module.lm_head, module.config.final_logit_softcapping)


GEMMA2: Final = Family("gemma2", ("gemma2",), _parts)
