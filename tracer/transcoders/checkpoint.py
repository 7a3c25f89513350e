"""What a checkpoint says, in the form to which every layout is brought.

A layout's own file under :mod:`tracer.transcoders.layouts` fills in a :class:`Checkpoint`: where
each layer's matrices lie, what normalisation is folded, which hooks are read and written, and which
activation function was trained. :class:`~tracer.transcoders.Transcoder` does the arithmetic.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from torch import Tensor

from tracer.errors import FormatError, nearest
from tracer.tensors import TensorFile
from tracer.transcoders.views import FeatureRows

__all__ = [
    "READ_HOOKS",
    "WRITE_HOOKS",
    "Activation",
    "Checkpoint",
    "Kind",
    "LayerWeights",
    "Vector",
    "hook_name",
]

Kind = Literal["clt", "plt"]
Vector = Callable[[], Tensor]

READ_HOOKS: Final = ("hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in")
WRITE_HOOKS: Final = ("hook_mlp_out", "mlp.hook_out")
# Other names of the same places: TransformerLens's hook_mlp_in is the stream that enters the norm
# before the MLP; libraries that hook PyTorch modules name a module and its input or output.
_SAME_HOOK: Final = {
    "hook_mlp_in": "hook_resid_mid",
    "mlp.input": "mlp.hook_in",
    "mlp.output": "mlp.hook_out",
    "ln_2.input": "hook_resid_mid",
    "ln_2.output": "mlp.hook_in",
    "pre_feedforward_layernorm.input": "hook_resid_mid",
    "pre_feedforward_layernorm.output": "mlp.hook_in",
    "post_feedforward_layernorm.output": "hook_mlp_out",
}
_BLOCK: Final = re.compile(r".*?(?:^|\.)(?:\d+|\{\w*\})\.")  # up to the number of the layer


@dataclass(frozen=True)
class Activation:
    """Activation function.

    Attributes
    ----------
    kind
        ``relu``; ``jumprelu``, h where h > θ; ``topk``, the k largest h of a position;
        ``groupmax``, the largest h of each of k equal groups of features; ``batchtopk``, at
        inference h where h > θ with the one θ that training found.
    k
        Features a position, for ``topk`` and ``groupmax``, where all layers have the same.
    rectified
        Whether what is not above 0 is left out whatever the rest of the rule says.
    """

    kind: Literal["relu", "jumprelu", "topk", "groupmax", "batchtopk"]
    k: int = 0
    rectified: bool = True


@dataclass(frozen=True)
class LayerWeights:
    """What one layer's features read and write. Shapes are of one layer.

    Attributes
    ----------
    encoder
        (F, d).
    encoder_bias
        (F,), or None for zeros.
    decoder
        (F, K, d), or (F, d) where K = 1.
    decoder_bias
        Total bias of this layer as a target, (d,), before `output_scale`; None for zeros.
    threshold
        θ, (F,) or one number; None where the activation has none.
    skip
        ``ŷ += W @ x``, (d, d), or None.
    input_shift, input_scale
        The encoder reads ``(x − shift) · scale``; (d,) or one number; None for nothing.
    output_scale, output_shift
        What this layer's target was trained as: ``ŷ = scale · (…) + shift``; likewise.
    k
        As in :class:`Activation`, where layers differ.
    feature_offset
        Added to the pre-activation of features once they are chosen, (F,).
    target_offsets
        What is added, for each target, to activations of chosen features beyond
        `feature_offset`, (F,) each. It is in no feature's decoder times its activation.
    """

    encoder: FeatureRows
    decoder: FeatureRows
    encoder_bias: Vector | None = None
    decoder_bias: Vector | None = None
    threshold: Vector | None = None
    skip: Vector | None = None
    input_shift: Tensor | None = None
    input_scale: Tensor | None = None
    output_scale: Tensor | None = None
    output_shift: Tensor | None = None
    k: int = 0
    feature_offset: Vector | None = None
    target_offsets: Sequence[Vector] | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A whole transcoder as its files give it.

    Attributes
    ----------
    layout
        Name of the layout.
    kind
        ``clt``: features of layer l write to l, l+1, …; ``plt``: to l alone.
    layers
        One for each layer of the model.
    read_hook, write_hook
        Canonical names.
    activation
        The same for all layers.
    files
        In the order of the layers; their tensors make the fingerprint.
    model_name
        As the files say, or "".
    """

    layout: str
    kind: Kind
    layers: Sequence[LayerWeights]
    read_hook: str
    write_hook: str
    activation: Activation
    files: Sequence[TensorFile]
    model_name: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def hook_name(file: object, name: str, known: Sequence[str]) -> str:
    """Canonical name of a hook as a file gives it.

    Raises
    ------
    FormatError
        If it is none that can be traced.

    Examples
    --------
    >>> hook_name("config.yaml", "blocks.3.ln2.hook_normalized", READ_HOOKS)
    'ln2.hook_normalized'
    >>> hook_name("cfg.json", "transformer.h.{}.mlp.input", READ_HOOKS)
    'mlp.hook_in'
    """
    short = _BLOCK.sub("", name, count=1)
    short = _SAME_HOOK.get(short, short)
    if short not in known:
        raise FormatError(
            f'{file}: hook "{name}" is not one that can be traced',
            nearest(short, known) or f"Known are {', '.join(known)}",
        )
    return short
