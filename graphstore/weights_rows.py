"""What global weights are in the database: pure functions from one object to rows, and back.

Writing, bulk export and checking all use these rows, so they cannot disagree. Beside the numbers
of the file, every feature carries sums and largest values over its pairs, so that a question about
all pairs looks at one record a feature before it looks at any pair.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from graphstore.schema import SCHEMA_VERSION
from tracer.errors import StoreError
from tracer.weights import GlobalInfluence, GlobalWeights

__all__ = ["PAIR_COLUMNS", "SUMMARIES", "WeightsRows", "weights_of"]

Properties = dict[str, Any]

# Property of VIRTUAL -> attribute of GlobalWeights.
PAIR_COLUMNS: Final = {
    "weight": "weights",
    "era": "era",
    "twera": "twera",
    "cofiring": "cofiring",
    "standard_error_era": "standard_error_era",
    "standard_error_twera": "standard_error_twera",
    "expected_source": "expected_source",
    "expected_product": "expected_product",
}
_MEASURES: Final = ("weight", "era", "twera")
# Properties of COVERS that are worked out from the pairs, and their types for bulk import.
SUMMARIES: Final = {
    "n_inputs": "long",
    "n_outputs": "long",
    "n_unused": "long",
    **{f"input_{name}": "double" for name in _MEASURES},
    **{f"output_{name}": "double" for name in _MEASURES},
    **{f"largest_{name}": "double" for name in _MEASURES},
    "largest_unused": "double",
    "largest_tiny": "double",
}
_INFLUENCE: Final = ("target_weights", "influence", "outside", "cut")
_RESERVED: Final = frozenset(("ord", *SUMMARIES, *(f"influence_{name}" for name in _INFLUENCE)))
_FEATURE: Final = ("layer", "index")  # on the Feature itself


@dataclass(frozen=True)
class WeightsRows:
    """Rows of one submatrix of global weights.

    Raises
    ------
    StoreError
        If a column of `features` has the name of a property that the store keeps for itself.
    """

    weights: GlobalWeights

    def __post_init__(self) -> None:
        if taken := sorted(_RESERVED & set(map(str, self.weights.features.columns))):
            raise StoreError(
                f"global weights {self.weights.weights_id}: the column {taken[0]!r} of features "
                "has the name of a property that the store works out",
                "Name the column otherwise",
            )

    @cached_property
    def properties(self) -> Properties:
        """Properties of the GlobalWeights node, without those that a writer adds."""
        weights = self.weights
        dtypes = {str(name): str(column.dtype) for name, column in weights.features.items()}
        return _known(
            {
                "weights_id": weights.weights_id,
                "schema_version": SCHEMA_VERSION,
                "corpus_id": weights.corpus_id,
                "model_id": weights.model_id,
                "transcoder_id": weights.transcoder_id,
                "norm": weights.norm,
                "tokens": weights.tokens,
                "selection": _json(weights.selection),
                "cut": _json(weights.cut),
                "conventions": _json(weights.conventions),
                "feature_columns": _json(dtypes),
                "n_features": len(weights),
                "n_pairs": int(weights.weights.nnz),
                "small_weight": self.small_weight,
            }
        )

    @cached_property
    def small_weight(self) -> float:
        """Median of the absolute virtual weights: below it, a pair counts as weakly connected."""
        data = self.weights.weights.data
        return float(np.median(np.abs(data))) if len(data) else 0.0

    @cached_property
    def influence(self) -> Properties:
        """Properties of the GlobalWeights node about the attached influence; none without it."""
        attached = self.weights.influence
        if attached is None:
            return {}
        return {"influence_by": attached.by, "influence_targets": self.weights.targets}

    @cached_property
    def covers(self) -> list[Properties]:
        """Properties of COVERS for every feature, in the order of the matrices."""
        weights = self.weights
        table: dict[str, list[Any]] = {"ord": list(range(len(weights)))}
        for name, column in weights.features.items():
            if name not in _FEATURE:
                table[str(name)] = _plain(column)
        for name, values in self.summaries.items():
            table[name] = values.tolist()
        return [
            _known(dict(zip(table, row, strict=True))) for row in zip(*table.values(), strict=True)
        ]

    @cached_property
    def influences(self) -> list[Properties]:
        """Properties of COVERS about the attached influence, in the order of the matrices."""
        attached = self.weights.influence
        if attached is None:
            return []
        columns = {f"influence_{name}": getattr(attached, name).tolist() for name in _INFLUENCE}
        columns["influence"] = columns.pop("influence_influence")
        return [
            _known(dict(zip(columns, row, strict=True)))
            for row in zip(*columns.values(), strict=True)
        ]

    @cached_property
    def ends(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of target and source of each pair."""
        return self.weights.ends()

    @cached_property
    def pairs(self) -> dict[str, NDArray[Any]]:
        """Properties of VIRTUAL, one array each, in the order of the matrices' entries."""
        targets, sources = self.ends
        values = {name: getattr(self.weights, its).data for name, its in PAIR_COLUMNS.items()}
        return {"source": sources, "target": targets, **values}

    @cached_property
    def summaries(self) -> dict[str, NDArray[Any]]:
        """Sums, counts and largest absolute values over the pairs of each feature.

        ``n_inputs``, ``n_outputs``; ``input_…``, ``output_…``: sums of absolute values as a target
        and as a source; ``largest_…`` of the inputs; ``n_unused`` and ``largest_unused`` (|V|) of
        the inputs that never fire with it; ``largest_tiny``: largest |TWERA| of the inputs
        with a virtual weight of less than :attr:`small_weight`.
        """
        n = len(self.weights)
        targets, sources = self.ends
        pairs = self.pairs
        found: dict[str, NDArray[Any]] = {
            "n_inputs": np.bincount(targets, minlength=n),
            "n_outputs": np.bincount(sources, minlength=n),
        }
        sizes = {name: np.abs(pairs[name]) for name in _MEASURES}
        for name, size in sizes.items():
            found[f"input_{name}"] = np.bincount(targets, weights=size, minlength=n)
            found[f"output_{name}"] = np.bincount(sources, weights=size, minlength=n)
            found[f"largest_{name}"] = _largest(size, targets, n)
        unused = pairs["cofiring"] == 0
        weak = sizes["weight"] < self.small_weight
        found["n_unused"] = np.bincount(targets[unused], minlength=n)
        found["largest_unused"] = _largest(sizes["weight"][unused], targets[unused], n)
        found["largest_tiny"] = _largest(sizes["twera"][weak], targets[weak], n)
        return {name: found[name] for name in SUMMARIES}

    @cached_property
    def corpus(self) -> Properties:
        """Properties of the Corpus node."""
        return {"corpus_id": self.weights.corpus_id, "tokens": self.weights.tokens}


def weights_of(
    record: Mapping[str, Any],
    features: Sequence[Mapping[str, Any]],
    pairs: Mapping[str, NDArray[Any]],
) -> GlobalWeights:
    """Make global weights of what the database holds: the inverse of :class:`WeightsRows`.

    Parameters
    ----------
    record
        Properties of the GlobalWeights node.
    features
        Properties of COVERS with ``layer`` and ``index``, by ``ord``.
    pairs
        ``source``, ``target`` and the columns of :data:`PAIR_COLUMNS`, in any order.

    Raises
    ------
    SettingError
        If it does not hold together.
    """
    n = len(features)
    table = pd.DataFrame(
        {
            name: _column([row.get(name) for row in features], dtype)
            for name, dtype in json.loads(record["feature_columns"]).items()
        }
    )
    order = np.lexsort((pairs["source"], pairs["target"]))
    indptr = np.searchsorted(pairs["target"][order], np.arange(n + 1))
    matrices = {
        its: csr_array((pairs[name][order], pairs["source"][order], indptr), shape=(n, n))
        for name, its in PAIR_COLUMNS.items()
    }
    influence = None
    if "influence_by" in record:
        columns = {
            "influence": [row.get("influence", math.nan) for row in features],
            **{
                name: [row.get(f"influence_{name}", math.nan) for row in features]
                for name in _INFLUENCE
                if name != "influence"
            },
        }
        influence = GlobalInfluence(
            record["influence_by"],
            **{name: np.array(values, np.float64) for name, values in columns.items()},
        )
    return GlobalWeights(
        table,
        **matrices,
        tokens=record["tokens"],
        norm=record["norm"],
        corpus_id=record["corpus_id"],
        model_id=record["model_id"],
        transcoder_id=record["transcoder_id"],
        selection=json.loads(record["selection"]),
        cut=json.loads(record["cut"]),
        conventions=json.loads(record["conventions"]),
        influence=influence,
        weights_id=record["weights_id"],
    )


def _plain(column: pd.Series[Any]) -> list[Any]:
    """Values as the database takes them: numbers, truth values, texts, or None."""
    if pd.api.types.is_numeric_dtype(column.dtype):
        return column.tolist()
    return [None if pd.isna(value) else str(value) for value in column]


def _column(values: list[Any], dtype: str) -> pd.Series[Any]:
    if dtype.startswith("float"):
        values = [math.nan if value is None else value for value in values]
    known = dtype == "str" or pd.api.types.is_numeric_dtype(dtype)
    return pd.Series(values, dtype=dtype if known else object)


def _largest(values: NDArray[Any], rows: NDArray[np.int64], n: int) -> NDArray[np.float64]:
    """Largest value of each row, 0 where it has none; values are not negative."""
    found = np.zeros(n)
    np.maximum.at(found, rows, values)
    return found


def _known(properties: Mapping[str, Any]) -> Properties:
    """Drop what is unknown: null and nan are no properties."""
    return {k: v for k, v in properties.items() if v is not None and v == v}


def _json(value: Mapping[str, Any]) -> str:
    # Order is kept: a selection reads as it was written.
    return json.dumps(value, ensure_ascii=False)
