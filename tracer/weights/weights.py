"""Global weights of some features: virtual weights, ERA and TWERA, with how sure they are.

``V_st``: what one unit of a source's activation adds to a target's pre-activation through the
residual stream alone, on any prompt. ``ERA_st = E[1(a_t > 0) a_s] V_st``,
``TWERA_st = (E[a_t a_s] / E[a_t]) V_st``: how much of that a corpus uses.
Matrices have targets in rows and sources in columns, and entries only where the source's layer is
below the target's.

Source: spec, section 6.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tracer.errors import FormatError, SettingError, nearest
from tracer.weights.files import read_arrays, write_arrays

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["LIMITS", "MEASURES", "NORMS", "GlobalInfluence", "GlobalWeights", "Measure", "Norm"]

Norm = Literal["omitted", "folded"]
Measure = Literal["weight", "era", "twera"]
Vector = NDArray[np.float64]

NORMS: Final = ("omitted", "folded")
MEASURES: Final = ("weight", "era", "twera")

# What belongs beside every result.
LIMITS: Final = (
    "A tiny virtual weight can have a large TWERA: look at the weight too.",
    "Inhibition is handled badly: a source that silences its target never fires with it.",
    "No attention-mediated edges: only what stays at one position.",
    "Standard errors take tokens as independent, so they are lower bounds.",
)

_KIND: Final = "circuitbase global weights"
_VERSION: Final = 1
_MATRICES: Final = (
    *("weights", "era", "twera", "cofiring", "standard_error_era", "standard_error_twera"),
    *("expected_source", "expected_product"),
)
_TEXTS: Final = ("corpus_id", "model_id", "transcoder_id", "norm")
_RECORDS: Final = ("selection", "cut", "conventions")


@dataclass(frozen=True, eq=False)
class GlobalInfluence:
    """Influence of features on chosen target features, inside a submatrix (spec, section 5 on it).

    Attributes
    ----------
    by
        Whose absolute values were normalised: ``weight``, ``era`` or ``twera``.
    target_weights
        ``w``: 0 but for the chosen targets, shape (n,).
    influence
        ``(wᵀB)``, shape (n,).
    outside
        Share of each feature's input that lies outside the submatrix, shape (n,); see
        :func:`tracer.global_influence`. NaN where it is not determined.
    cut
        Share of each feature's input, by `by`, that lies inside the chosen features but was cut
        from the matrix, shape (n,).
    """

    by: Measure
    target_weights: Vector
    influence: Vector
    outside: Vector
    cut: Vector


@dataclass(frozen=True, eq=False)
class GlobalWeights:
    """A submatrix of global weights, and where it comes from.

    Attributes
    ----------
    features
        One row a feature, in the order of the matrices (by layer, then index): ``layer``, ``index``
        (whole numbers), ``reason`` (why it was chosen), ``active`` (tokens it is active on),
        ``mean_activation`` (over all tokens), and perhaps more.
    weights
        V, shape (n, n).
    era, twera
        The two scores, shape (n, n).
    cofiring
        Tokens on which both are active, int64, shape (n, n).
    standard_error_era, standard_error_twera
        From the second moments of the same tokens, taken as independent: lower bounds.
    expected_source, expected_product
        ``E[1(a_t > 0) a_s]`` and ``E[a_t a_s]`` (with ``a_s/σ`` where `norm` is ``folded``).
    tokens
        Tokens of the corpus that were counted.
    norm
        ``omitted`` or ``folded``: what was made of the denominators of norms.
    corpus_id, model_id, transcoder_id
        What the numbers are of.
    selection
        How the features were chosen. JSON-able.
    cut
        What was left out of the matrices. JSON-able; empty where nothing was.
    conventions
        Hooks, fingerprints, tokens left out, what was assumed. JSON-able.
    influence
        Attached by :meth:`with_influence`, or None.
    weights_id
        Sixteen hex digits over what the numbers are of; made where it is left out.

    Raises
    ------
    SettingError
        If a matrix has another shape or pattern than `weights`, an entry that is not finite or not
        from a lower layer to a higher one; if features repeat or are out of order.

    Notes
    -----
    All matrices share one pattern of stored entries, explicit zeros included, so that
    ``weights.data[k]`` and ``era.data[k]`` belong together.
    """

    features: pd.DataFrame
    weights: csr_array
    era: csr_array
    twera: csr_array
    cofiring: csr_array
    standard_error_era: csr_array
    standard_error_twera: csr_array
    expected_source: csr_array
    expected_product: csr_array
    tokens: int
    norm: Norm
    corpus_id: str
    model_id: str
    transcoder_id: str
    selection: dict[str, Any] = field(default_factory=dict)
    cut: dict[str, Any] = field(default_factory=dict)
    conventions: dict[str, Any] = field(default_factory=dict)
    influence: GlobalInfluence | None = None
    weights_id: str = ""

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise SettingError(f"norm {self.norm!r} is unknown", f"Known are {', '.join(NORMS)}")
        if isinstance(self.tokens, bool) or not isinstance(self.tokens, int) or self.tokens < 0:
            raise SettingError(f"tokens is {self.tokens!r}", "Give a whole number, 0 or more")
        self._check_features()
        for name in _MATRICES:
            object.__setattr__(self, name, self._checked(name, getattr(self, name)))
        if self.influence is not None:
            for name in ("target_weights", "influence", "outside", "cut"):
                if np.shape(getattr(self.influence, name)) != (len(self.features),):
                    raise SettingError(
                        f"influence.{name} is not of {len(self.features)} features",
                        "Give influence on these weights",
                    )
        object.__setattr__(self, "weights_id", self.weights_id or self._identity())

    def __repr__(self) -> str:
        return (
            f"GlobalWeights({self.weights_id}, {len(self):,} features of {self.transcoder_id!r}, "
            f"{self.weights.nnz:,} pairs, {self.tokens:,} tokens, norm {self.norm})"
        )

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def feature_ids(self) -> list[str]:
        """``transcoder/layer/index`` of each feature, in the order of the matrices."""
        layers, indices = self.features["layer"], self.features["index"]
        return [f"{self.transcoder_id}/{a}/{b}" for a, b in zip(layers, indices, strict=True)]

    def matrix(self, by: Measure) -> csr_array:
        """Matrix of one measure: ``weight``, ``era`` or ``twera``.

        Raises
        ------
        SettingError
            If there is none of that name.
        """
        if by not in MEASURES:
            raise SettingError(
                f"measure {by!r} is unknown",
                nearest(str(by), MEASURES) or f"Known are {', '.join(MEASURES)}",
            )
        return {"weight": self.weights, "era": self.era, "twera": self.twera}[by]

    def place(self, layer: int, index: int) -> int:
        """Row of a feature.

        Raises
        ------
        SettingError
            If it is not among them.
        """
        found = self._places.get((int(layer), int(index)))
        if found is None:
            raise SettingError(
                f"feature {layer}/{index} is not among the {len(self):,} of these weights",
                "Choose features with it in the selection",
            )
        return found

    def with_influence(self, influence: GlobalInfluence) -> GlobalWeights:
        """Attach influence, which is saved and stored with the weights; they stay the same."""
        return replace(self, influence=influence)

    @property
    def targets(self) -> list[str]:
        """Ids of the features that the attached influence is on; none without it."""
        if self.influence is None:
            return []
        return [self.feature_ids[row] for row in np.flatnonzero(self.influence.target_weights)]

    # Files ---------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to a file (``.npz``, no pickle).

        Raises
        ------
        FormatError
            If it cannot be written; what was there before stays.
        """
        numbers, texts = {}, {}
        for name, column in self.features.items():
            if pd.api.types.is_numeric_dtype(column.dtype):
                numbers[f"feature_{name}"] = column.to_numpy()
            else:
                texts[str(name)] = [None if pd.isna(value) else str(value) for value in column]
        arrays: dict[str, NDArray[Any]] = {
            **numbers,
            "indptr": self.weights.indptr.astype(np.int64),
            "indices": self.weights.indices.astype(np.int64),
            **{name: getattr(self, name).data for name in _MATRICES},
        }
        header: dict[str, Any] = {
            **{name: getattr(self, name) for name in (*_TEXTS, *_RECORDS, "tokens", "weights_id")},
            "columns": [str(name) for name in self.features.columns],
            "texts": texts,
            "influence": None if self.influence is None else self.influence.by,
        }
        if self.influence is not None:
            for name in ("target_weights", "influence", "outside", "cut"):
                arrays[f"influence_{name}"] = getattr(self.influence, name)
        return write_arrays(path, _KIND, _VERSION, header, arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> GlobalWeights:
        """Read a file of :meth:`save`.

        Raises
        ------
        FormatError
            If it cannot be read, is of another version or kind, or does not hold together.
        """
        header, arrays = read_arrays(path, _KIND, _VERSION)
        try:
            columns = {
                name: header["texts"][name]
                if name in header["texts"]
                else arrays[f"feature_{name}"]
                for name in header["columns"]
            }
            features = pd.DataFrame(columns)
            indices, indptr, n = arrays["indices"], arrays["indptr"], len(features)
            matrices: dict[str, Any] = {
                name: csr_array((arrays[name], indices, indptr), shape=(n, n), copy=False)
                for name in _MATRICES
            }
            influence = None
            if header["influence"] is not None:
                names = ("target_weights", "influence", "outside", "cut")
                influence = GlobalInfluence(
                    header["influence"], **{name: arrays[f"influence_{name}"] for name in names}
                )
            made = cls(
                features,
                **matrices,
                **{name: header[name] for name in (*_TEXTS, *_RECORDS, "tokens", "weights_id")},
                influence=influence,
            )
        except (KeyError, ValueError, TypeError, IndexError, SettingError) as error:
            raise FormatError(
                f"{path}: does not hold together ({error})",
                "It is damaged or something else: make it again",
            ) from error
        if made.weights_id != made._identity():
            raise FormatError(
                f"{path}: its id is {made.weights_id}, and that of its contents another",
                "It was changed by something else: make it again",
            )
        return made

    # Other forms ---------------------------------------------------------------------------------

    def to_pandas(self) -> pd.DataFrame:
        """List the pairs, by target, then source, in the order of the matrices.

        Returns
        -------
        DataFrame
            ``source``, ``target`` (ids), their ``…_layer`` and ``…_index``, ``weight``, ``era``,
            ``twera``, ``cofiring``, ``standard_error_era``, ``standard_error_twera``,
            ``expected_source``, ``expected_product``.
        """
        targets, sources = self.ends()
        ids = np.array(self.feature_ids, dtype=object)
        table: dict[str, Any] = {"source": ids[sources], "target": ids[targets]}
        for end, rows in (("source", sources), ("target", targets)):
            for name in ("layer", "index"):
                table[f"{end}_{name}"] = self.features[name].to_numpy()[rows]
        for name in _MATRICES:
            table["weight" if name == "weights" else name] = getattr(self, name).data.copy()
        return pd.DataFrame(table)

    def to_networkx(self) -> nx.DiGraph[str]:
        """Turn into a NetworkX graph, edges from source to target.

        Returns
        -------
        networkx.DiGraph
            Nodes by id with the columns of `features` (and ``influence``), edges with ``weight``,
            ``era``, ``twera``, …; the rest as graph attributes.
        """
        import networkx as nx  # a quarter of a second that nothing else needs

        network: nx.DiGraph[str] = nx.DiGraph()
        network.graph.update(
            {name: getattr(self, name) for name in (*_TEXTS, *_RECORDS, "tokens", "weights_id")}
        )
        records: list[dict[Any, Any]] = self.features.to_dict("records")
        for row, (key, record) in enumerate(zip(self.feature_ids, records, strict=True)):
            if self.influence is not None:
                record["influence"] = float(self.influence.influence[row])
            network.add_node(key, **{str(name): value for name, value in record.items()})
        pairs = self.to_pandas()
        names = [name for name in pairs.columns if not name.startswith(("source", "target"))]
        rows: list[dict[Any, Any]] = pairs[names].to_dict("records")
        network.add_edges_from(zip(pairs["source"], pairs["target"], rows, strict=True))
        return network

    def ends(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of target and source of each stored entry, shape (nnz,) each."""
        targets = np.repeat(np.arange(len(self)), np.diff(self.weights.indptr))
        return targets.astype(np.int64), self.weights.indices.astype(np.int64)

    # Checks --------------------------------------------------------------------------------------

    @cached_property
    def _places(self) -> dict[tuple[int, int], int]:
        pairs = zip(self.features["layer"], self.features["index"], strict=True)
        return {(int(layer), int(index)): row for row, (layer, index) in enumerate(pairs)}

    def _check_features(self) -> None:
        for name in ("layer", "index"):
            if name not in self.features:
                raise SettingError(f"features lack the column {name!r}", "Give it")
            if not pd.api.types.is_integer_dtype(self.features[name].dtype):
                raise SettingError(f"features: {name} is no whole number", "Give whole numbers")
        layers = self.features["layer"].to_numpy(np.int64)
        indices = self.features["index"].to_numpy(np.int64)
        if len(layers) and (layers.min() < 0 or indices.min() < 0):
            raise SettingError("features: a layer or index is negative", "Count both from 0")
        step = np.diff(layers)
        if not ((step > 0) | ((step == 0) & (np.diff(indices) > 0))).all():
            raise SettingError(
                "features repeat or are out of order", "Sort them by layer, then index, each once"
            )

    def _checked(self, name: str, matrix: csr_array) -> csr_array:
        n = len(self.features)
        if matrix.shape != (n, n):
            raise SettingError(f"{name} has shape {matrix.shape}, not {(n, n)}", "Give n × n")
        if name == "weights":
            _check_structure(matrix, self.features["layer"].to_numpy(np.int64))
        elif not (
            np.array_equal(matrix.indptr, self.weights.indptr)
            and np.array_equal(matrix.indices, self.weights.indices)
        ):
            raise SettingError(
                f"{name} stores other entries than weights",
                "Give all matrices one pattern, with explicit zeros",
            )
        kind = np.int64 if name == "cofiring" else np.float64
        data = np.asarray(matrix.data).astype(kind, copy=False)
        if not np.isfinite(data).all():
            raise SettingError(f"{name} has an entry that is not finite", "Compute it again")
        like = matrix if name == "weights" else self.weights
        made = csr_array((data, like.indices, like.indptr), shape=(n, n), copy=False)
        made.has_canonical_format = True
        return made

    def _identity(self) -> str:
        described: Mapping[str, Any] = {
            **{name: getattr(self, name) for name in (*_TEXTS, "cut")},
            **{
                name: self.conventions.get(name)
                for name in ("model_fingerprint", "transcoder_fingerprint")
            },
            "version": _VERSION,
            "tokens": self.tokens,
        }
        digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
        for name in ("layer", "index"):
            digest.update(self.features[name].to_numpy("<i8").tobytes())
        return digest.hexdigest()[:16]


def _check_structure(matrix: csr_array, layers: NDArray[np.int64]) -> None:
    """Whether entries stand in order, once each, and lead from lower layers to higher ones."""
    indptr, indices, n = matrix.indptr, matrix.indices, len(layers)
    if (
        indptr[0] != 0
        or (np.diff(indptr) < 0).any()
        or indptr[-1] != len(indices)
        or len(indices) != len(matrix.data)
        or (len(indices) and not 0 <= indices.min() <= indices.max() < n)
    ):
        raise SettingError("weights is no sparse matrix in CSR form", "Give a csr_array")
    targets = np.repeat(np.arange(n), np.diff(indptr))
    same = np.diff(targets) == 0
    if not (np.diff(indices)[same] > 0).all():
        raise SettingError(
            "entries of weights repeat or are out of order",
            "Call sum_duplicates() on the matrix first",
        )
    if not (layers[indices] < layers[targets]).all():
        raise SettingError(
            "weights has an entry that does not lead from a lower layer to a higher one",
            "Give rows to targets and columns to sources",
        )
