"""SAELens transcoders: a folder a layer with ``cfg.json`` and ``sae_weights.safetensors``.

W_enc (d, F), features last; W_dec (F, d); b_enc, b_dec; threshold (F,) for JumpReLU (max(h, 0)
where h > θ); W_skip (d, d), used as W_skip @ x. The hooks are ``hook_name`` and ``hook_name_out``,
under ``metadata`` or, in older files, at the top.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

from tracer.errors import FormatError, TracingError
from tracer.tensors import TensorFile, open_tensors
from tracer.transcoders.checkpoint import Activation, Checkpoint, LayerWeights
from tracer.transcoders.folder import Folder, read_json
from tracer.transcoders.views import Columns, Rows

NAME: Final = "saelens"
LOOKS_FOR: Final = "…/cfg.json with …/sae_weights.safetensors"

_WEIGHTS: Final = "sae_weights.safetensors"


def recognise(folder: Folder) -> bool:
    """Whether there are files of that name."""
    return bool(folder.under(_WEIGHTS))


def read(folder: Folder) -> Checkpoint:
    """Read the configurations and the lists of tensors."""
    if not recognise(folder):
        raise folder.lacks(NAME, LOOKS_FOR)
    configs = {path: read_json(path.parent / "cfg.json") for path in folder.under(_WEIGHTS)}
    ordered = _ordered(folder, configs)
    files = [open_tensors(path) for path in ordered]
    hooks = {folder.hooks(*_hooks(configs[path])) for path in ordered}
    if len(hooks) > 1:
        raise FormatError(
            f"{folder.path}: layers read and write different hooks: {sorted(hooks)}",
            "Put one set into a folder of its own",
        )
    layers = [_layer(file, configs[file.path]) for file in files]
    thresholds = sum(layer.threshold is not None for layer in layers)
    if thresholds not in (0, len(layers)):
        raise FormatError(
            f"{folder.path}: {thresholds} of {len(layers)} layers have a threshold",
            "Put one set into a folder of its own",
        )
    read_hook, write_hook = hooks.pop()
    return Checkpoint(
        layout=NAME,
        kind="plt",
        layers=layers,
        read_hook=read_hook,
        write_hook=write_hook,
        activation=Activation("jumprelu" if thresholds else "relu"),
        files=files,
        model_name=str(_setting(configs[ordered[0]], "model_name") or ""),
    )


def _ordered(folder: Folder, configs: dict[Path, dict[str, Any]]) -> list[Path]:
    """Files in the order of their layers, which their hooks name."""
    by_layer: dict[int, Path] = {}
    for path, config in configs.items():
        match = re.search(r"blocks\.(\d+)\.", str(_setting(config, "hook_name") or ""))
        match = match or re.search(r"(\d+)", path.parent.name)
        if match is None:
            raise FormatError(
                f"{path.parent / 'cfg.json'}: hook_name does not say which layer this is",
                "Add it, as in blocks.3.ln2.hook_normalized",
            )
        layer = int(match[1])
        if layer in by_layer:
            raise FormatError(
                f"{folder.path}: several transcoders for layer {layer}: "
                f"{by_layer[layer].parent.name}, {path.parent.name}",
                "Choose with a pattern, or put one set into a folder of its own",
            )
        by_layer[layer] = path
    missing = sorted(set(range(max(by_layer) + 1)) - set(by_layer))
    if missing:
        raise FormatError(
            f"{folder.path}: files for layer {', '.join(map(str, missing[:5]))} are missing",
            "Complete the checkpoint: every layer of the model needs its transcoder",
        )
    return [by_layer[layer] for layer in sorted(by_layer)]


def _hooks(config: dict[str, Any]) -> tuple[str | None, str | None]:
    read, write = _setting(config, "hook_name"), _setting(config, "hook_name_out")
    return (
        read if isinstance(read, str) else None,
        write if isinstance(write, str) else None,
    )


def _layer(file: TensorFile, config: dict[str, Any]) -> LayerWeights:
    path = file.path.parent / "cfg.json"
    architecture = str(config.get("architecture", "transcoder"))
    if "transcoder" not in architecture:
        raise TracingError(
            f'{path}: architecture "{architecture}" is not a transcoder',
            "Autoencoders rebuild what they read; tracing needs transcoders",
        )
    normalised = config.get("normalize_activations")
    if normalised not in (None, "none"):
        raise TracingError(
            f'{path}: inputs are normalised at run time ("{normalised}")',
            "Fold the normalisation into the weights with SAELens and save it again",
        )
    width, features = file.at("W_enc", None, None).shape
    return LayerWeights(
        encoder=Columns(file["W_enc"]),
        encoder_bias=file.at("b_enc", features).read,
        decoder=Rows(file.at("W_dec", features, width)),
        decoder_bias=file.at("b_dec", width).read,
        threshold=file.at("threshold", features).read if "threshold" in file else None,
        skip=file.at("W_skip", width, width).read if "W_skip" in file else None,
    )


def _setting(config: dict[str, Any], name: str) -> object:
    metadata = config.get("metadata")
    if isinstance(metadata, dict) and metadata.get(name) is not None:
        return metadata[name]
    return config.get(name)
