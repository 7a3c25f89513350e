"""Which features are described, in the order of the rows that hold their sums."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tracer.errors import SettingError, TracingError
from tracer.transcoders import Transcoder

__all__ = ["Chosen", "choose"]


@dataclass(frozen=True)
class Chosen:
    """Features, sorted by layer and index.

    Attributes
    ----------
    layers, indices
        Shape (n,).
    sizes
        Features that each layer of the transcoder has, shape (L,).
    """

    layers: NDArray[np.int64]
    indices: NDArray[np.int64]
    sizes: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.layers)

    @cached_property
    def rows(self) -> list[NDArray[np.int64]]:
        """For each layer the row of every index, −1 for those that are not described."""
        found = [np.full(size, -1, dtype=np.int64) for size in self.sizes]
        for row, (layer, index) in enumerate(zip(self.layers, self.indices, strict=True)):
            found[layer][index] = row
        return found


def choose(
    transcoder: Transcoder, features: Iterable[str | tuple[int, int]] | pd.DataFrame | None
) -> Chosen:
    """Resolve features; see :func:`tracer.describe_features`."""
    sizes = tuple(transcoder.features(layer) for layer in range(transcoder.n_layers))
    if features is None:
        layers = np.repeat(np.arange(len(sizes)), sizes)
        indices = np.concatenate([np.arange(size) for size in sizes])
        return Chosen(layers.astype(np.int64), indices.astype(np.int64), sizes)
    pairs = [_pair(one, transcoder.transcoder_id) for one in _listed(features)]
    for layer, index in pairs:
        if not (0 <= layer < len(sizes) and 0 <= index < sizes[layer]):
            raise TracingError(
                f"{transcoder.transcoder_id} has no feature {layer}/{index}",
                f"Layers are 0 to {len(sizes) - 1}, indices 0 to {max(sizes) - 1}",
            )
    if len(set(pairs)) < len(pairs):
        raise SettingError("a feature is given twice", "Give each feature once")
    table = np.array(sorted(pairs), dtype=np.int64).reshape(-1, 2)
    return Chosen(table[:, 0], table[:, 1], sizes)


def _listed(features: Iterable[str | tuple[int, int]] | pd.DataFrame) -> list[object]:
    if isinstance(features, str):
        return [features]
    if not isinstance(features, pd.DataFrame):
        return list(features)
    if "feature_id" in features:
        return list(features["feature_id"])
    if {"layer", "index"} <= set(features):
        return list(features[["layer", "index"]].itertuples(index=False, name=None))
    raise SettingError(
        "the table of features has neither feature_id nor layer and index",
        "Name its columns so",
    )


def _pair(feature: object, transcoder_id: str) -> tuple[int, int]:
    """Layer and index of a feature."""
    if isinstance(feature, str):
        name, _, rest = feature.rpartition("/")
        name, _, layer = name.rpartition("/")
        if name != transcoder_id and name:
            raise SettingError(
                f"feature {feature!r} is not of {transcoder_id}", "Name features of one transcoder"
            )
        if layer.isascii() and layer.isdigit() and rest.isascii() and rest.isdigit():
            return int(layer), int(rest)
    elif isinstance(feature, tuple | list) and len(feature) == 2:
        try:
            return int(feature[0].__index__()), int(feature[1].__index__())
        except AttributeError:
            pass
    raise SettingError(
        f"{feature!r} is no feature", "Write {transcoder_id}/{layer}/{index}, or (layer, index)"
    )
