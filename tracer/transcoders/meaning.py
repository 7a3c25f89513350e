"""What a configuration makes of a checkpoint's tensors, as plain values to digest.

The same tensors with another hook, activation or scale are another transcoder. Described is the
checkpoint as it was interpreted, not its configuration as written: a setting that is spelled out,
left to its default, or called by another name of the same hook means the same, and names of models,
files and folders mean nothing.
"""

from __future__ import annotations

import hashlib
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tracer.graph import JSON
from tracer.tensors import StoredTensor
from tracer.transcoders.checkpoint import Checkpoint

__all__ = ["meaning_of"]


def meaning_of(checkpoint: Checkpoint) -> JSON:
    """Describe what is computed with which tensors.

    Returns
    -------
    JSON
        Layout, kind, hooks, activation, and for each layer how each of its matrices, biases and
        thresholds is made of stored tensors (by file number, tensor name and place in it), and
        digests of the scales and shifts that are folded in.
    """
    places: dict[tuple[Path, str], tuple[int, int]] = {}
    for number, file in enumerate(checkpoint.files):
        for name, tensor in file.items():
            places.setdefault((tensor.path, name), (number, tensor.offset))
    return {
        "layout": checkpoint.layout,
        "kind": checkpoint.kind,
        "read_hook": checkpoint.read_hook,
        "write_hook": checkpoint.write_hook,
        "activation": _describe(checkpoint.activation, places),
        "layers": [_describe(layer, places) for layer in checkpoint.layers],
    }


def _describe(value: Any, places: dict[tuple[Path, str], tuple[int, int]]) -> JSON:
    """Take apart views and vectors, whose classes' names say what is done to what they hold."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Tensor):  # folded: as wide as any is kept
        numbers = value.detach().to("cpu", torch.float64).contiguous().numpy().tobytes()
        return [list(value.shape), hashlib.sha256(numbers).hexdigest()]
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, StoredTensor):
        number, start = places[value.path, value.name]
        # Where a file's header ends is no part of it, so places are within the tensor.
        return [number, value.name, value.offset - start, list(value.shape), value.stride]
    if isinstance(value, list | tuple | range):
        return [_describe(one, places) for one in value]
    if is_dataclass(value):
        described: dict[str, JSON] = {
            one.name: _describe(getattr(value, one.name), places) for one in fields(value)
        }
        return {type(value).__name__: described}
    owner = getattr(value, "__self__", None)
    if isinstance(owner, StoredTensor):  # its method `read`
        return _describe(owner, places)
    raise TypeError(f"{type(value).__name__} in a checkpoint cannot be described")
