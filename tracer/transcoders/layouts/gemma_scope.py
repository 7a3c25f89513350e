"""Gemma Scope's per-layer transcoders: one ``params.npz`` a layer.

W_enc (d, F), features last; W_dec (F, d); b_enc, b_dec; threshold (F,): max(h, 0) where h > θ.
They read ``ln2.hook_normalized`` and write ``hook_mlp_out`` (after Gemma's post-norm). The layer is
the number in the path, as in ``layer_3/width_16k/average_l0_54/params.npz``.
"""

from __future__ import annotations

from typing import Final

from tracer.tensors import TensorFile, open_tensors
from tracer.transcoders.checkpoint import Activation, Checkpoint, LayerWeights
from tracer.transcoders.folder import Folder, numbered
from tracer.transcoders.views import Columns, Rows

NAME: Final = "gemma-scope"
LOOKS_FOR: Final = "layer_0/…/params.npz, …"


def recognise(folder: Folder) -> bool:
    """Whether there are npz files with the number of a layer in their path."""
    return bool(folder.under("*.npz"))


def read(folder: Folder) -> Checkpoint:
    """Read the lists of tensors."""
    paths = folder.listed() or numbered(folder.under("*.npz"), r"layer_(\d+)", folder.path)
    if not paths or any(path.suffix != ".npz" for path in paths):
        raise folder.lacks(NAME, LOOKS_FOR)
    files = [open_tensors(path) for path in paths]
    read_hook, write_hook = folder.hooks("ln2.hook_normalized", "hook_mlp_out")
    return Checkpoint(
        layout=NAME,
        kind="plt",
        layers=[layer(file) for file in files],
        read_hook=read_hook,
        write_hook=write_hook,
        activation=Activation("jumprelu"),
        files=files,
        model_name=str(folder.config.get("model_name", "")),
    )


def layer(file: TensorFile) -> LayerWeights:
    """One layer's weights."""
    width, features = file.at("W_enc", None, None).shape
    return LayerWeights(
        encoder=Columns(file["W_enc"]),
        encoder_bias=file.at("b_enc", features).read,
        decoder=Rows(file.at("W_dec", features, width)),
        decoder_bias=file.at("b_dec", width).read,
        threshold=file.at("threshold", features).read,
    )
