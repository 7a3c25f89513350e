"""Read circuit-tracer's saved graphs (``.pt``) without PyTorch and without executing anything.

A ``.pt`` file is a zip archive of a pickle and of the raw bytes of its tensors. circuit-tracer
opens it with code execution allowed; here the pickle is read as data (:mod:`.pickles`) and the
tensors by NumPy. The layout is that of ``circuit_tracer.graph.Graph``, version 0.5: rows are
targets; rows and columns are features, errors by layer, tokens, logits.
"""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from graphstore.formats.common import Limits, open_zip, read_member, shown
from graphstore.formats.identity import custom_set
from graphstore.formats.pickles import Record, Tensor, read_pickle
from tracer.errors import FormatError, GraphError
from tracer.graph import AttributionGraph, node_table

__all__ = ["read_torch"]

_PICKLE_BYTES: Final = 1 << 28
_AGAIN: Final = "Save the graph again with Graph.to_pt of circuit-tracer 0.5"
# What is kept of the model's configuration: its shape and its names.
_MODEL: Final = (
    ("original_architecture", "family"),
    ("n_layers", "n_layers"),
    ("d_model", "d_model"),
    ("d_vocab", "vocab_size"),
)


def read_torch(
    path: Path, limits: Limits, *, transcoder: str | None = None, model: str | None = None
) -> AttributionGraph:
    """Read a graph saved by circuit-tracer's ``Graph.to_pt``.

    Parameters
    ----------
    path
        The file.
    limits
        Sizes beyond which it is refused.
    transcoder, model
        Ids to use in place of those in the file.

    Returns
    -------
    AttributionGraph
        ``unpruned``; weights of the file's own precision (bfloat16 and float16 become float32).
        The file holds no token texts: tokens are ``<id>``.

    Raises
    ------
    FormatError
        If its pickle asks for anything but data, or the fields do not fit one another.
    """
    name = str(path)
    with open_zip(path, limits) as archive:
        fields = _fields(archive, name, limits)
        tensors = _Tensors(archive, name)
        features = tensors.matrix(fields, "active_features", 3)
        selected = tensors.vector(fields, "selected_features", whole=True)
        activations = tensors.vector(fields, "activation_values")
        probabilities = tensors.vector(fields, "logit_probabilities")
        token_ids = tensors.vector(fields, "input_tokens", whole=True)
        targets = _targets(fields, tensors, name)
        adjacency = tensors.read(fields, "adjacency_matrix")
    if len(selected) and not (selected.min() >= 0 and selected.max() < len(features)):
        raise FormatError(f"{name}: selected_features names a feature that is not there", _AGAIN)
    if len(activations) != len(features):
        raise FormatError(
            f"{name}: {len(activations)} activation_values for {len(features)} active_features",
            _AGAIN,
        )
    config = _config(fields, name)
    nodes = _nodes(
        features[selected], activations[selected], token_ids, targets, probabilities, config, name
    )
    if adjacency.shape != (len(nodes), len(nodes)):
        raise FormatError(
            f"{name}: adjacency_matrix has shape {adjacency.shape}, but its features, errors, "
            f"tokens and logits are {len(nodes)}",
            _AGAIN,
        )
    scan = fields.get("scan")
    listed = [part for part in scan if isinstance(part, str)] if isinstance(scan, list) else []
    named = custom_set(listed) if listed else scan if isinstance(scan, str) else None
    found = transcoder or named
    names = (config.get("model_name"), config.get("tokenizer_name"))
    prompt = fields.get("input_string")
    try:
        return AttributionGraph(
            nodes,
            csr_array(adjacency),
            prompt=prompt if isinstance(prompt, str) else "",
            tokens=[f"<{token}>" for token in token_ids],
            token_ids=token_ids.tolist(),
            model_id=model or next((n for n in names if isinstance(n, str) and n), None),
            transcoder_id=found,
            model_info={new: config[old] for old, new in _MODEL if _scalar(config.get(old))},
            transcoder_info={"transcoders": listed} if listed and transcoder is None else {},
            unpruned=True,
            source={
                "format": "circuit-tracer-pt",
                "transcoder_from": "argument" if transcoder else "scan" if found else None,
            },
        )
    except GraphError as error:
        raise FormatError(f"{name}: {error.what}", error.remedy) from error


def _fields(archive: zipfile.ZipFile, name: str, limits: Limits) -> Mapping[str, Any]:
    member = next((m for m in archive.namelist() if m.endswith("data.pkl")), "data.pkl")
    data = read_member(archive, member, name)
    if len(data) > min(_PICKLE_BYTES, limits.content_bytes):
        raise FormatError(f"{name}: its pickle has {len(data):,} bytes", _AGAIN)
    fields = read_pickle(data, name, limits.opcodes)
    if not isinstance(fields, dict) or "adjacency_matrix" not in fields:
        raise FormatError(
            f"{name}: is a PyTorch file, but not a graph saved by circuit-tracer", _AGAIN
        )
    return fields


# Tensors ---------------------------------------------------------------------------------------


class _Tensors:
    """Reads tensors of the archive as arrays, checking what the pickle says against the bytes."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self.archive, self.name = archive, name
        pickle = next(m for m in archive.namelist() if m.endswith("data.pkl"))
        self.folder = pickle.removesuffix("data.pkl")
        order = f"{self.folder}byteorder"
        text = read_member(archive, order, name) if order in archive.namelist() else b"little"
        if text not in (b"little", b"big"):
            raise FormatError(f"{name}: has the unknown byte order {text!r}", _AGAIN)
        self.order: Literal["<", ">"] = "<" if text == b"little" else ">"

    def read(self, fields: Mapping[str, Any], key: str) -> NDArray[Any]:
        """Array of a field, in native byte order; half precisions as float32."""
        tensor = fields.get(key)
        if not isinstance(tensor, Tensor):
            raise FormatError(f"{self.name}: {key} is missing or no tensor", _AGAIN)
        half = tensor.storage.dtype == "bfloat16"
        dtype = np.dtype("u2" if half else tensor.storage.dtype).newbyteorder(self.order)
        if not tensor.storage.key.isdecimal():
            raise FormatError(f"{self.name}: {key} has a storage of a strange name", _AGAIN)
        data = read_member(self.archive, f"{self.folder}data/{tensor.storage.key}", self.name)
        if len(data) != tensor.storage.numel * dtype.itemsize:
            raise FormatError(
                f"{self.name}: the storage of {key} has {len(data):,} bytes, not "
                f"{tensor.storage.numel * dtype.itemsize:,}",
                _AGAIN,
            )
        count = int(np.prod(tensor.shape, dtype=object)) if tensor.shape else 1
        if count > tensor.storage.numel:  # strides of 0 make much of little
            raise FormatError(
                f"{self.name}: {key} has {count:,} numbers, its storage {tensor.storage.numel:,}",
                _AGAIN,
            )
        flat = np.frombuffer(data, dtype=dtype)
        view = np.lib.stride_tricks.as_strided(
            flat[tensor.offset :],
            tensor.shape,
            tuple(stride * dtype.itemsize for stride in tensor.strides),
            writeable=False,
        )
        if half:  # the upper half of a float32's bits
            return (view.astype(np.uint32) << 16).view(np.float32)
        if dtype == np.dtype("f2").newbyteorder(self.order):
            return view.astype(np.float32)
        return view.astype(dtype.newbyteorder("="))

    def matrix(self, fields: Mapping[str, Any], key: str, columns: int) -> NDArray[np.int64]:
        """Array of whole numbers, shape (k, columns)."""
        found = self.read(fields, key)
        if found.ndim != 2 or found.shape[1] != columns or found.dtype.kind not in "iu":
            raise FormatError(
                f"{self.name}: {key} is {found.dtype} of shape {found.shape}, not whole numbers of "
                f"shape (k, {columns})",
                _AGAIN,
            )
        return found.astype(np.int64)

    def vector(self, fields: Mapping[str, Any], key: str, whole: bool = False) -> NDArray[Any]:
        """Array of numbers, shape (k,); a batch of one is taken out of its batch."""
        found = self.read(fields, key)
        if found.ndim == 2 and found.shape[0] == 1:
            found = found[0]
        if found.ndim != 1 or found.dtype.kind not in ("iu" if whole else "f"):
            raise FormatError(
                f"{self.name}: {key} is {found.dtype} of shape {found.shape}, not "
                f"{'whole ' if whole else ''}numbers of shape (k,)",
                _AGAIN,
            )
        return found.astype(np.int64 if whole else np.float64)


# Fields ----------------------------------------------------------------------------------------


def _targets(
    fields: Mapping[str, Any], tensors: _Tensors, name: str
) -> list[tuple[str | None, int]]:
    """Text and index of each logit target; −1 for custom ones, numbered past the vocabulary."""
    vocabulary = fields.get("vocab_size")
    first_custom = vocabulary if type(vocabulary) is int else 1 << 62
    key = "logit_targets" if "logit_targets" in fields else "logit_tokens"  # files before 0.5
    if isinstance(fields.get(key), Tensor):
        pairs: list[tuple[Any, Any]] = [
            ("", int(token)) for token in tensors.vector(fields, key, whole=True)
        ]
    else:
        listed = fields.get(key)
        if not isinstance(listed, list):
            raise FormatError(f"{name}: {key} is missing or no list", _AGAIN)
        pairs = [_pair(target) for target in listed]
    for place, (text, token) in enumerate(pairs):
        if not isinstance(text, str) or type(token) is not int or token < 0:
            raise FormatError(f"{name}: {key}[{place}] is no target", _AGAIN)
    return [(text or None, token if token < first_custom else -1) for text, token in pairs]


def _pair(target: Any) -> tuple[Any, Any]:
    if isinstance(target, Record) and target.type.endswith(" LogitTarget"):
        target = target.arguments
    return target if isinstance(target, tuple) and len(target) == 2 else (None, None)


def _config(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Fields of the model's configuration, under TransformerLens's names."""
    config = fields.get("cfg")
    values = config.fields if isinstance(config, Record) else config
    if not isinstance(values, dict):
        raise FormatError(f"{name}: cfg is missing or of an unknown kind", _AGAIN)
    values = dict(values)
    for theirs, ours in (
        ("num_hidden_layers", "n_layers"),
        ("hidden_size", "d_model"),
        ("vocab_size", "d_vocab"),
        ("_name_or_path", "model_name"),
    ):
        values.setdefault(ours, values.get(theirs))
    if type(values["n_layers"]) is not int or values["n_layers"] < 1:
        raise FormatError(
            f"{name}: cfg.n_layers is {shown(values['n_layers'])}, not a number of layers", _AGAIN
        )
    return values


def _scalar(value: Any) -> bool:
    return type(value) in (str, int, float, bool)


def _nodes(
    features: NDArray[np.int64],
    activations: NDArray[np.float64],
    token_ids: NDArray[np.int64],
    targets: list[tuple[str | None, int]],
    probabilities: NDArray[np.float64],
    config: Mapping[str, Any],
    name: str,
) -> pd.DataFrame:
    """Node table in the order of the matrix."""
    n_layers, n_tokens = int(config["n_layers"]), len(token_ids)
    if len(probabilities) != len(targets):
        raise FormatError(
            f"{name}: {len(probabilities)} logit_probabilities for {len(targets)} targets", _AGAIN
        )
    bad = (features[:, 0] >= n_layers) | (features[:, 1] >= n_tokens) | (features < 0).any(axis=1)
    if bad.any():
        place = int(np.argmax(bad))
        raise FormatError(
            f"{name}: feature {features[place].tolist()} (layer, position, index) lies outside "
            f"{n_layers} layers and {n_tokens} tokens",
            _AGAIN,
        )
    if n_layers * n_tokens > 1 << 24:
        raise FormatError(f"{name}: cfg.n_layers is {n_layers:,}, too many", _AGAIN)
    n_features, n_errors, n_logits = len(features), n_layers * n_tokens, len(targets)
    texts = [f"<{token}>" for token in token_ids]
    positions = [
        *features[:, 1].tolist(),
        *np.tile(np.arange(n_tokens), n_layers).tolist(),
        *range(n_tokens),
    ]
    unknown = [np.nan] * (n_errors + n_tokens)
    return node_table(
        {
            "kind": ["feature"] * n_features
            + ["error"] * n_errors
            + ["embedding"] * n_tokens
            + ["logit"] * n_logits,
            "layer": [
                *features[:, 0].tolist(),
                *np.repeat(np.arange(n_layers), n_tokens).tolist(),
                *[-1] * n_tokens,
                *[n_layers] * n_logits,
            ],
            "position": [*positions, *[n_tokens - 1] * n_logits],
            "index": [
                *features[:, 2].tolist(),
                *[-1] * n_errors,
                *token_ids.tolist(),
                *(token for _, token in targets),
            ],
            "token": [*(texts[position] for position in positions), *(text for text, _ in targets)],
            "activation": [*activations.tolist(), *unknown, *[np.nan] * n_logits],
            "probability": [*[np.nan] * n_features, *unknown, *probabilities.tolist()],
            "label": [
                *[None] * (n_features + n_errors + n_tokens),
                *(text if token < 0 else None for text, token in targets),
            ],
        }
    ).astype({"token": object, "label": object})
