"""GPT-NeoX and Pythia: LayerNorm, heads whose query, key and value rows lie interleaved.

With ``use_parallel_residual`` (all published Pythia models) the MLP reads the stream before
attention; without it, the stream after.
"""

from __future__ import annotations

from typing import Any, Final

from tracer.models.families.parts import Family, Heads, LayerParts, Parts, layer_norm, linear

__all__ = ["GPT_NEOX"]


def _parts(module: Any) -> Parts:
    body, head = module.gpt_neox, module.get_output_embeddings()
    return Parts(
        embedding=body.embed_in,
        layers=[_layer(layer) for layer in body.layers],
        final_norm=layer_norm(body.final_layer_norm),
        unembedding=head.weight,
        unembedding_bias=head.bias,
        parallel=bool(module.config.use_parallel_residual),
    )


def _layer(layer: Any) -> LayerParts:
    return LayerParts(
        attention_norm=layer_norm(layer.input_layernorm),
        attention=layer.attention,
        heads=_heads(layer.attention),
        mlp_norm=layer_norm(layer.post_attention_layernorm),
        mlp=layer.mlp,
    )


def _heads(attention: Any) -> Heads:
    combined, output = linear(attention, "query_key_value"), linear(attention, "dense")
    width = attention.head_size
    # Each head's query rows, then its key rows, then its value rows; then the next head's.
    value = combined.weight.view(-1, 3, width, combined.in_features)[:, 2]
    return Heads(
        value=value,
        output=output.weight.view(output.out_features, -1, width).permute(1, 0, 2),
        value_bias=None if combined.bias is None else combined.bias.view(-1, 3, width)[:, 2],
        output_bias=output.bias,
    )


GPT_NEOX: Final = Family("gpt_neox", ("gpt_neox",), _parts)
