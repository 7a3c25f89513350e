"""One forward pass of an unmodified transformers model, with everything a freeze needs recorded.

Forward hooks read the modules that a family names; nothing in the model is changed. Recorded is
the model's own dtype. In a float64 model the casts to float32 that transformers puts around norms
and softmax are kept at float64 during the pass, so that what is recorded is float64 throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tracer.errors import TracingError
from tracer.models.families.parts import LayerParts, Norm, Parts

__all__ = ["RecordedLayer", "Recording", "full_precision", "record"]


@dataclass(frozen=True)
class RecordedLayer:
    """What was recorded in one layer; shapes (P, d) but for the probabilities.

    Attributes
    ----------
    stream
        Residual stream before the layer.
    attention_normed
        What attention read.
    probabilities
        Attention probabilities, shape (H, P, P).
    attention
        What the attention module returned.
    attention_write
        What was added to the stream: `attention`, after its norm where there is one.
    mlp_stream
        Residual stream that the MLP's norm read.
    mlp_normed
        What the MLP read.
    mlp
        What the MLP returned (``mlp.hook_out``).
    mlp_write
        What was added to the stream (``hook_mlp_out``).
    """

    stream: Tensor
    attention_normed: Tensor
    probabilities: Tensor
    attention: Tensor
    attention_write: Tensor
    mlp_stream: Tensor
    mlp_normed: Tensor
    mlp: Tensor
    mlp_write: Tensor


@dataclass(frozen=True)
class Recording:
    """What was recorded of one prompt.

    Attributes
    ----------
    token_ids
        The prompt, shape (P,).
    embeddings, position_embeddings
        Shape (P, d); the second is None where positions are not learned.
    layers
        One for each layer.
    final_stream, final_normed
        Residual stream before and after the final norm, shape (P, d).
    logits
        The model's logits at the last position, shape (V,).
    """

    token_ids: Tensor
    embeddings: Tensor
    position_embeddings: Tensor | None
    layers: Sequence[RecordedLayer]
    final_stream: Tensor
    final_normed: Tensor
    logits: Tensor


def record(module: Any, parts: Parts, token_ids: Sequence[int]) -> Recording:
    """Run a prompt once and record it.

    Parameters
    ----------
    module
        The transformers causal language model, with eager attention.
    parts
        What its family says of it.
    token_ids
        The prompt; one, without padding.

    Raises
    ------
    TracingError
        If a module that the family names did not run, or attention gave no pattern.
    """
    ids = torch.tensor(list(token_ids), dtype=torch.long, device=parts.unembedding.device)
    tape = _Tape(parts)
    with tape.running(), torch.no_grad(), full_precision(module):
        logits = module(input_ids=ids[None], use_cache=False, logits_to_keep=1).logits
    return Recording(
        token_ids=ids,
        embeddings=tape.output("embedding"),
        position_embeddings=(
            None if parts.position_embedding is None else tape.output("position embedding")
        ),
        layers=[_layer(tape, index, layer) for index, layer in enumerate(parts.layers)],
        final_stream=tape.input("final norm"),
        final_normed=tape.output("final norm"),
        logits=logits[0, -1],
    )


def full_precision(module: Any) -> AbstractContextManager[object]:
    """Keep a float64 model at float64 where transformers casts down; nothing for others."""
    return _KeepDouble() if module.dtype == torch.float64 else nullcontext()


def _layer(tape: _Tape, index: int, layer: LayerParts) -> RecordedLayer:
    attention, mlp = tape.output("attention", index), tape.output("MLP", index)
    return RecordedLayer(
        stream=tape.input("norm before attention", index),
        attention_normed=tape.output("norm before attention", index),
        probabilities=tape.output("attention pattern", index),
        attention=attention,
        attention_write=(
            attention
            if layer.post_attention_norm is None
            else tape.output("norm after attention", index)
        ),
        mlp_stream=tape.input("norm before MLP", index),
        mlp_normed=tape.output("norm before MLP", index),
        mlp=mlp,
        mlp_write=mlp if layer.post_mlp_norm is None else tape.output("norm after MLP", index),
    )


class _Tape:
    """Inputs and outputs of the named modules, by piece and layer."""

    def __init__(self, parts: Parts) -> None:
        self._inputs: dict[tuple[str, int | None], Tensor] = {}
        self._outputs: dict[tuple[str, int | None], Tensor] = {}
        self._modules: list[tuple[str, int | None, nn.Module]] = [
            ("embedding", None, parts.embedding),
            ("final norm", None, parts.final_norm.module),
        ]
        if parts.position_embedding is not None:
            self._modules.append(("position embedding", None, parts.position_embedding))
        for index, layer in enumerate(parts.layers):
            norms: dict[str, Norm | None] = {
                "norm before attention": layer.attention_norm,
                "norm after attention": layer.post_attention_norm,
                "norm before MLP": layer.mlp_norm,
                "norm after MLP": layer.post_mlp_norm,
            }
            self._modules += [
                (piece, index, norm.module) for piece, norm in norms.items() if norm is not None
            ]
            self._modules += [("attention", index, layer.attention), ("MLP", index, layer.mlp)]

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record while the block runs; the hooks are gone after it, whatever happens."""
        handles = []
        try:
            for piece, index, module in self._modules:
                handles.append(module.register_forward_hook(self._hook(piece, index)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(
        self, piece: str, index: int | None
    ) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        def keep(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if piece == "attention":
                if isinstance(output, tuple) and len(output) > 1 and output[1] is not None:
                    self._outputs["attention pattern", index] = output[1][0]
            elif args and args[0].is_floating_point():
                self._inputs[piece, index] = args[0][0]
            tensor = output[0] if isinstance(output, tuple) else output
            self._outputs[piece, index] = tensor[0]  # the one prompt of the batch

        return keep

    def input(self, piece: str, index: int | None = None) -> Tensor:
        """Find what a piece read, without the batch axis."""
        return self._found(self._inputs, piece, index)

    def output(self, piece: str, index: int | None = None) -> Tensor:
        """Find what a piece gave, without the batch axis."""
        return self._found(self._outputs, piece, index)

    @staticmethod
    def _found(kept: dict[tuple[str, int | None], Tensor], piece: str, index: int | None) -> Tensor:
        if (piece, index) not in kept:
            where = "" if index is None else f"layer {index}, "
            raise TracingError(
                f"{where}{piece}: nothing was recorded in the forward pass",
                'Load the model with attn_implementation="eager", or mend its family\'s adapter',
            )
        return kept[piece, index]


_CASTS: Final = frozenset(
    {Tensor.to, Tensor.softmax, torch.softmax, torch.nn.functional.softmax, Tensor.type}
)


class _KeepDouble(TorchFunctionMode):
    """Keeps float64 where transformers casts down to float32 for its norms and softmax."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].dtype == torch.float64:
            if func is Tensor.float:
                return args[0]
            if func in _CASTS:
                args = tuple(_double(value) for value in args)
                kwargs = {name: _double(value) for name, value in kwargs.items()}
        return func(*args, **kwargs)


def _double(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value
