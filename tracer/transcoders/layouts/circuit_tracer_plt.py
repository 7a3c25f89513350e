"""circuit-tracer's sets of per-layer transcoders.

``config.yaml`` with ``model_kind: transcoder_set`` and perhaps a list ``transcoders`` (one entry a
layer: a path relative to the folder, or ``hf://owner/name/file?revision=…``), else
``layer_{i}.safetensors``. Each holds W_enc (F, d), W_dec (F, d), b_enc, b_dec, and perhaps
activation_function.threshold (F,), k (one number: TopK) and W_skip (d, d), used as W_skip @ x.
A list may also name files of the Gemma Scope layouts, whose encoders have features last: those are
told by their tensors.
"""

from __future__ import annotations

from typing import Any, Final

from tracer.errors import FormatError, nearest
from tracer.tensors import TensorFile, open_tensors
from tracer.transcoders.checkpoint import Activation, Checkpoint, LayerWeights
from tracer.transcoders.folder import Folder, numbered
from tracer.transcoders.layouts import gemma_scope, gemma_scope_2
from tracer.transcoders.views import Rows

NAME: Final = "circuit-tracer-plt"
LOOKS_FOR: Final = "config.yaml with model_kind: transcoder_set, or layer_0.safetensors, …"

_ACTIVATIONS: Final = ("relu", "jump_relu", "jumprelu", "topk")
_THRESHOLD: Final = "activation_function.threshold"


def recognise(folder: Folder) -> bool:
    """Whether a configuration says so, or there are files of layers."""
    if folder.config.get("model_kind") == "transcoder_set":
        return True
    return "model_kind" not in folder.config and bool(folder.any("layer_*.safetensors"))


def read(folder: Folder) -> Checkpoint:
    """Read the configuration and the lists of tensors."""
    files = _files(folder)
    read_hook, write_hook = folder.hooks(None, None)
    layers = [_layer(file) for file in files]
    return Checkpoint(
        layout=NAME,
        kind="plt",
        layers=layers,
        read_hook=read_hook,
        write_hook=write_hook,
        activation=_activation(folder, files, layers),
        files=files,
        model_name=str(folder.config.get("model_name", "")),
    )


def _files(folder: Folder) -> list[TensorFile]:
    paths = folder.listed()
    if paths is None:
        paths = numbered(
            folder.any("layer_*.safetensors"), r"layer_(\d+)\.safetensors$", folder.path
        )
    if not paths:
        raise folder.lacks(NAME, LOOKS_FOR)
    return [open_tensors(path) for path in paths]


def _layer(file: TensorFile) -> LayerWeights:
    if file.path.suffix == ".npz":
        return gemma_scope.layer(file)
    if "w_enc" in file:
        return gemma_scope_2.layer(file)
    features, width = file.at("W_enc", None, None).shape
    return LayerWeights(
        encoder=Rows(file["W_enc"]),
        encoder_bias=file.at("b_enc", features).read,
        decoder=Rows(file.at("W_dec", features, width)),
        decoder_bias=file.at("b_dec", width).read,
        threshold=file.at(_THRESHOLD, features).read if _THRESHOLD in file else None,
        skip=file.at("W_skip", width, width).read if "W_skip" in file else None,
    )


def _activation(folder: Folder, files: list[TensorFile], layers: list[LayerWeights]) -> Activation:
    """Take the configuration's ``activation`` and ``k``, else what the tensors tell."""
    path, named = folder.path / "config.yaml", folder.config.get("activation")
    if named is not None and named not in _ACTIVATIONS:
        raise FormatError(
            f'{path}: activation "{named}" is unknown',
            nearest(str(named), _ACTIVATIONS) or f"Known are {', '.join(_ACTIVATIONS)}",
        )
    stored = {int(file["k"].read().reshape(-1)[0]) for file in files if "k" in file}
    if named == "topk" or (named is None and stored):
        k: Any = folder.config.get("k") or (stored.pop() if len(stored) == 1 else None)
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise FormatError(f"{path}: TopK without one k for all layers", "Set k: …")
        return Activation("topk", k, rectified=False)
    with_threshold = sum(layer.threshold is not None for layer in layers)
    if named == "relu" or (named is None and not with_threshold):
        return Activation("relu")
    if with_threshold != len(layers):
        raise FormatError(
            f"{folder.path}: {with_threshold} of {len(layers)} layers have a threshold",
            "Complete the checkpoint",
        )
    # Gemma Scope's own definition has max(h, 0) under the threshold; circuit-tracer's has h.
    return Activation("jumprelu", rectified=all(_THRESHOLD not in file for file in files))
