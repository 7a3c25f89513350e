"""Gemma Scope 2: per-layer and cross-layer transcoders in safetensors.

A per-layer set has ``layer_{i}…/params.safetensors`` with w_enc (d, F), w_dec (F, d), b_enc, b_dec,
threshold (F,): max(h, 0) where h > θ, and perhaps affine_skip_connection (d, d), used as x @ W.
A cross-layer one has a file a layer, ``params_layer_{i}.safetensors``, with w_dec (F, L, d) of
which [:, i:] is used, or one file with a leading axis of layers: w_enc (L, d, F), w_dec
(L, F, L, d). ``config.json`` beside them names the PyTorch modules that are read and written.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from tracer.errors import FormatError
from tracer.tensors import TensorFile, open_tensors
from tracer.transcoders.checkpoint import Activation, Checkpoint, LayerWeights
from tracer.transcoders.folder import Folder, numbered, read_json
from tracer.transcoders.vectors import Transposed
from tracer.transcoders.views import Columns, Rows

NAME: Final = "gemma-scope-2"
LOOKS_FOR: Final = "params.safetensors or params_layer_0.safetensors with w_enc and w_dec"

_SKIP: Final = "affine_skip_connection"


def recognise(folder: Folder) -> bool:
    """Whether a file of the usual name holds an encoder of the usual name."""
    if folder.config.get("model_kind") == "transcoder_set":
        return False  # a list of such files: the same code reads them
    paths = folder.listed() or folder.under("*params*.safetensors")
    return any("w_enc" in open_tensors(path) for path in paths[:1] if path.is_file())


def read(folder: Folder) -> Checkpoint:
    """Read the configuration and the lists of tensors."""
    listed = folder.listed()
    found = folder.under("*params*.safetensors")
    if listed is None and len(found) == 1:
        file = open_tensors(found[0])
        if "w_enc" in file and len(file["w_enc"].shape) == 3:
            return _checkpoint(folder, "clt", [file], _stacked(file))
    paths = listed or numbered(found, r"layer_(\d+)", folder.path)
    files = [open_tensors(path) for path in paths]
    if not files or "w_enc" not in files[0]:
        raise folder.lacks(NAME, LOOKS_FOR)
    if all(len(file["w_dec"].shape) == 3 for file in files):
        layers = [_one_of_clt(file, i, len(files)) for i, file in enumerate(files)]
        return _checkpoint(folder, "clt", files, layers)
    return _checkpoint(folder, "plt", files, [layer(file) for file in files])


def layer(file: TensorFile) -> LayerWeights:
    """One layer of a per-layer set."""
    width, features = file.at("w_enc", None, None).shape
    return LayerWeights(
        encoder=Columns(file["w_enc"]),
        encoder_bias=file.at("b_enc", features).read,
        decoder=Rows(file.at("w_dec", features, width)),
        decoder_bias=file.at("b_dec", width).read,
        threshold=file.at("threshold", features).read,
        skip=Transposed(file.at(_SKIP, width, width).read) if _SKIP in file else None,
    )


def _one_of_clt(file: TensorFile, number: int, count: int) -> LayerWeights:
    """One layer of a cross-layer transcoder with a file a layer."""
    width, features = file.at("w_enc", None, None).shape
    decoder = file.at("w_dec", features, None, width)
    if decoder.shape[1] == count:
        decoder = decoder.inner(number, count)
    elif decoder.shape[1] != count - number:
        raise FormatError(
            f'{file.path}: tensor "w_dec" has {decoder.shape[1]} targets in a transcoder of '
            f"{count} layers",
            "Complete the checkpoint",
        )
    return LayerWeights(
        encoder=Columns(file["w_enc"]),
        encoder_bias=file.at("b_enc", features).read,
        decoder=Rows(decoder),
        decoder_bias=file.at("b_dec", width).read,
        threshold=file.at("threshold", features).read,
        skip=Transposed(file.at(_SKIP, width, width).read) if _SKIP in file else None,
    )


def _stacked(file: TensorFile) -> list[LayerWeights]:
    """All layers of a cross-layer transcoder in one file."""
    count, width, features = file["w_enc"].shape
    encoder, decoder = file["w_enc"], file.at("w_dec", count, features, count, width)
    bias, threshold = file.at("b_enc", count, features), file.at("threshold", count, features)
    total = file.at("b_dec", count, width)
    skip = file.at(_SKIP, count, width, width) if _SKIP in file else None
    return [
        LayerWeights(
            encoder=Columns(encoder[i]),
            encoder_bias=bias[i].read,
            decoder=Rows(decoder[i].inner(i, count)),
            decoder_bias=total[i].read,
            threshold=threshold[i].read,
            skip=None if skip is None else Transposed(skip[i].read),
        )
        for i in range(count)
    ]


def _checkpoint(
    folder: Folder, kind: Any, files: list[TensorFile], layers: list[LayerWeights]
) -> Checkpoint:
    config = _config(folder.path, files[0].path)
    read_hook, write_hook = folder.hooks(
        config.get("hf_hook_point_in", "mlp.hook_in"),
        config.get("hf_hook_point_out", "hook_mlp_out"),
    )
    return Checkpoint(
        layout=NAME,
        kind=kind,
        layers=layers,
        read_hook=read_hook,
        write_hook=write_hook,
        activation=Activation("jumprelu"),
        files=files,
        model_name=str(folder.config.get("model_name", config.get("model_name", ""))),
        extra={"l0": config["l0"]} if isinstance(config.get("l0"), int) else {},
    )


def _config(folder: Path, first: Path) -> dict[str, Any]:
    """``config.json`` beside the first layer's file, or above it; empty without one."""
    for place in (first.parent, folder):
        if (place / "config.json").is_file():
            return read_json(place / "config.json")
    return {}
