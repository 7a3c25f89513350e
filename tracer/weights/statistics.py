"""Sums over a corpus from which ERA, TWERA and their standard errors follow.

They stream, resume and merge exactly (:mod:`tracer.weights.sums`): of the features, the number of
tokens, ``Σ1(a > 0)``, ``Σa``, ``Σa²``; of each pair that fires together, ``Σ1(a_t > 0)a_s``,
``Σa_t a_s``, ``Σ1(a_t > 0)a_s²``, ``Σa_t² a_s``, ``Σa_t² a_s²`` and the number of co-firings. Which
stretches of which corpus are in the sums is kept with them.

Source: spec, section 6.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tracer.errors import FormatError, SettingError
from tracer.weights.files import read_arrays, write_arrays
from tracer.weights.sums import MOST_ADDITIONS, ExactSums, PairSums
from tracer.weights.weights import Norm

__all__ = ["MOMENTS", "CorpusStatistics", "Units"]

Vector = NDArray[np.float64]
Indices = NDArray[np.int64]

# Sums of a pair under each convention: "ts" is Σ a_t a_s, "ss" Σ 1(a_t > 0) a_s², ….
MOMENTS: Final = ("s", "ts", "ss", "tts", "ttss")
_KIND: Final = "circuitbase corpus statistics"
_VERSION: Final = 1
_UNIT_COLUMNS: Final = ("source", "number", "first", "documents", "tokens", "digest")


@dataclass(eq=False)
class Units:
    """Which stretches of which corpora have been counted.

    Attributes
    ----------
    sources
        Digest of each corpus and how it was cut.
    totals
        Number of units of each, −1 where it has not been read to its end.
    rows
        One for each unit: place of its corpus in `sources`, number, first document, documents,
        tokens counted, and digest of its token ids; int64, shape (u, 6).
    """

    sources: list[str] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)
    rows: Indices = field(default_factory=lambda: np.empty((0, 6), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def tokens(self) -> int:
        """Tokens counted."""
        return int(self.rows[:, 4].sum())

    @property
    def missing(self) -> int | None:
        """Units of these corpora that have not been counted; None where that is not known."""
        if not self.sources or min(self.totals) < 0:
            return None
        return sum(self.totals) - len(self)

    def numbers(self, source: str) -> set[int]:
        """Numbers of the units of one corpus that have been counted."""
        if source not in self.sources:
            return set()
        return set(self.rows[self.rows[:, 0] == self.sources.index(source), 1].tolist())

    def add(
        self, source: str, number: int, first: int, documents: int, tokens: int, digest: int
    ) -> None:
        """Note a unit as counted."""
        place = self._place(source)
        row = np.array([[place, number, first, documents, tokens, digest]], dtype=np.int64)
        self.rows = np.concatenate([self.rows, row])

    def finish(self, source: str, total: int) -> None:
        """Note how many units a corpus has."""
        self.totals[self._place(source)] = total

    def merge(self, other: Units) -> None:
        """Add another's units.

        Raises
        ------
        SettingError
            If a unit is in both.
        """
        for place, source in enumerate(other.sources):
            theirs = other.rows[other.rows[:, 0] == place]
            shared = self.numbers(source) & set(theirs[:, 1].tolist())
            mine = self.rows[self.rows[:, 0] != self._place(source)]
            twice = np.isin(theirs[:, 5], mine[:, 5]) & (theirs[:, 4] > 0)
            if shared or twice.any():
                wrong = theirs[twice | np.isin(theirs[:, 1], sorted(shared))]
                raise SettingError(
                    f"{len(wrong):,} of {len(other):,} stretches of the corpus are in both "
                    f"statistics, the first from document {wrong[0, 2] + 1:,} to "
                    f"{wrong[0, 2] + wrong[0, 3]:,}",
                    "Merge each shard once: sums would count these documents twice",
                )
        for place, source in enumerate(other.sources):
            mine_at = self._place(source)
            self.totals[mine_at] = max(self.totals[mine_at], other.totals[place])
            theirs = other.rows[other.rows[:, 0] == place].copy()
            theirs[:, 0] = mine_at
            self.rows = np.concatenate([self.rows, theirs])

    def sorted(self) -> Units:
        """Copy in an order that does not depend on how it came about."""
        order = sorted(range(len(self.sources)), key=self.sources.__getitem__)
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        rows = self.rows.copy()
        rows[:, 0] = place[rows[:, 0]]
        return Units(
            [self.sources[i] for i in order],
            [self.totals[i] for i in order],
            rows[np.lexsort((rows[:, 1], rows[:, 0]))],
        )

    def _place(self, source: str) -> int:
        if source not in self.sources:
            self.sources.append(source)
            self.totals.append(-1)
        return self.sources.index(source)


@dataclass(eq=False)
class CorpusStatistics:
    """Sums over a corpus for chosen features.

    Made by :func:`tracer.corpus_statistics`; saved, read and merged here.

    Attributes
    ----------
    features
        ``layer``, ``index``, ``reason``; by layer, then index.
    selection
        How they were chosen.
    identity
        Model, transcoder, hooks and what is counted of a corpus: equal in all that can be merged.
    norms
        Conventions whose sums are here. Where features read the residual stream itself, both are
        the same, and ``omitted`` stands for both.
    units
        Which stretches of which corpora are in the sums.
    counts
        Tokens on which each feature is active, shape (F,).
    moments
        Σa and Σa² of each feature, shape (2, F).
    pairs
        Sums of the pairs, by the target's layer; rows as `norms` × :data:`MOMENTS`.
    additions
        How many numbers entered a sum, at most.
    """

    features: pd.DataFrame
    selection: dict[str, Any]
    identity: dict[str, Any]
    norms: tuple[Norm, ...]
    units: Units
    counts: Indices
    moments: ExactSums
    pairs: list[PairSums]
    additions: int = 0

    def __repr__(self) -> str:
        return (
            f"CorpusStatistics({self.tokens:,} tokens in {len(self.units):,} units, "
            f"{len(self):,} features of {self.transcoder_id!r}, {self.n_pairs:,} pairs)"
        )

    def __len__(self) -> int:
        return len(self.features)

    @classmethod
    def empty(
        cls,
        features: pd.DataFrame,
        selection: dict[str, Any],
        identity: dict[str, Any],
        norms: tuple[Norm, ...],
        n_layers: int,
    ) -> CorpusStatistics:
        """Begin with no tokens."""
        n = len(features)
        return cls(
            features,
            selection,
            identity,
            norms,
            Units(),
            np.zeros(n, dtype=np.int64),
            ExactSums.zeros((2, n)),
            [PairSums.empty(len(norms) * len(MOMENTS)) for _ in range(n_layers)],
        )

    @property
    def tokens(self) -> int:
        """Tokens that were counted."""
        return self.units.tokens

    @property
    def n_pairs(self) -> int:
        """Pairs that fire together at least once."""
        return sum(len(layer.keys) for layer in self.pairs)

    @property
    def model_id(self) -> str:
        """Of the model."""
        return str(self.identity["model_id"])

    @property
    def transcoder_id(self) -> str:
        """Of the transcoder."""
        return str(self.identity["transcoder_id"])

    @property
    def corpus_id(self) -> str:
        """Sixteen hex digits over the token ids that were counted, in any order of units."""
        digest = hashlib.sha256()
        digest.update(np.sort(self.units.rows[:, 5]).astype("<i8").tobytes())
        counted = {name: self.identity["counting"][name] for name in ("zero_first", "special")}
        digest.update(json.dumps(counted, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def fingerprint(self) -> str:
        """Sixteen hex digits over every sum: equal exactly where all sums are equal."""
        digest = hashlib.sha256()
        for array in self._arrays().values():
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()[:16]

    def moment(self, name: str, norm: Norm, layer: int) -> csr_array:
        """Give sums of the pairs with targets in one layer.

        Parameters
        ----------
        name
            One of :data:`MOMENTS`, or ``count``.
        norm
            The convention.
        layer
            Of the targets.

        Returns
        -------
        csr_array, shape (features of the layer, all features)
        """
        pairs, n = self.pairs[layer], len(self)
        layers = self.features["layer"].to_numpy()
        first, last = (int(np.searchsorted(layers, layer, side=side)) for side in ("left", "right"))
        rows, columns = np.divmod(pairs.keys, n)
        counts = np.bincount(rows - first, minlength=last - first)
        indptr = np.concatenate([[0], np.cumsum(counts)])
        data = pairs.counts if name == "count" else self.values(name, norm, layer)
        return csr_array((data, columns, indptr), shape=(last - first, n))

    def values(self, name: str, norm: Norm, layer: int) -> Vector:
        """Give sums of :meth:`moment` in the order of ``pairs[layer].keys``.

        Raises
        ------
        SettingError
            If they were not kept under this convention.
        """
        if norm not in self.norms:
            if self.identity["read_hook"] != "hook_resid_mid" or norm != "folded":
                raise SettingError(
                    f"these statistics have no sums of the {norm} convention, only of "
                    f"{' and '.join(self.norms)}",
                    f"Collect them with norms including {norm!r}",
                )
            norm = "omitted"
        row = self.norms.index(norm) * len(MOMENTS) + MOMENTS.index(name)
        sums = self.pairs[layer].sums
        return np.asarray(sums.high[row] + sums.low[row])

    # Merging -------------------------------------------------------------------------------------

    @classmethod
    def merge(cls, parts: Iterable[CorpusStatistics]) -> CorpusStatistics:
        """Sum statistics of several shards or corpora; equal to those of one run over all.

        Parameters
        ----------
        parts
            Taken one at a time, in any order.

        Raises
        ------
        SettingError
            If there is none, if they are of different models, transcoders, features or ways of
            counting, or if a stretch of a corpus is in two of them.
        """
        made: CorpusStatistics | None = None
        for part in parts:
            if made is None:
                made = cls.empty(
                    part.features.copy(),
                    dict(part.selection),
                    dict(part.identity),
                    part.norms,
                    len(part.pairs),
                )
            made._take(part)
        if made is None:
            raise SettingError("there is nothing to merge", "Give the files of the shards")
        made.units = made.units.sorted()
        return made

    def _take(self, other: CorpusStatistics) -> None:
        difference = self.difference(other)
        if difference:
            raise SettingError(
                f"the statistics are not of the same thing: {difference}",
                "Merge shards of one run, made with the same settings",
            )
        if self.additions + other.additions > MOST_ADDITIONS:
            raise SettingError(
                f"more than {MOST_ADDITIONS:,} units would enter one sum",
                "Collect the statistics with larger units",
            )
        self.units.merge(other.units)
        self.counts += other.counts
        self.moments.merge(other.moments)
        for mine, theirs in zip(self.pairs, other.pairs, strict=True):
            mine.merge(theirs)
        self.additions += other.additions

    def difference(self, other: CorpusStatistics) -> str:
        """Say in what these are of another thing than others; empty where they can be merged."""
        told = []
        for name in self.identity:
            mine, theirs = self.identity[name], other.identity.get(name)
            if mine != theirs:
                told.append(f"{name.replace('_', ' ')} is {mine} and {theirs}")
        if self.norms != other.norms:
            told.append(f"norms are {', '.join(self.norms)} and {', '.join(other.norms)}")
        if not told and not all(
            np.array_equal(self.features[name], other.features[name]) for name in ("layer", "index")
        ):
            told.append(f"{len(self):,} and {len(other):,} features, not the same ones")
        return "; ".join(told[:3])

    # Files ---------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write to a file (``.npz``, no pickle).

        Raises
        ------
        FormatError
            If it cannot be written, such as on a full disk; what was there before stays.
        """
        units = self.units.sorted()
        header = {
            "selection": self.selection,
            "identity": self.identity,
            "norms": list(self.norms),
            "reasons": [str(reason) for reason in self.features["reason"]],
            "sources": units.sources,
            "totals": units.totals,
            "additions": self.additions,
        }
        return write_arrays(path, _KIND, _VERSION, header, self._arrays())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> CorpusStatistics:
        """Read a file of :meth:`save`.

        Raises
        ------
        FormatError
            If it cannot be read, is of another version or kind, or does not hold together.
        """
        header, arrays = read_arrays(path, _KIND, _VERSION)
        try:
            features = pd.DataFrame(
                {
                    "layer": arrays["layer"],
                    "index": arrays["index"],
                    "reason": np.array(header["reasons"], dtype=object),
                }
            )
            units = Units(list(header["sources"]), list(header["totals"]), arrays["units"])
            pairs = []
            for start, stop in zip(
                arrays["pair_starts"][:-1], arrays["pair_starts"][1:], strict=True
            ):
                at = slice(int(start), int(stop))
                sums = ExactSums(*(arrays[f"pair_{name}"][:, at] for name in _SUM_PARTS))
                pairs.append(PairSums(arrays["pair_keys"][at], arrays["pair_counts"][at], sums))
            made = cls(
                features,
                header["selection"],
                header["identity"],
                tuple(header["norms"]),
                units,
                arrays["counts"],
                ExactSums(*(arrays[f"moment_{name}"] for name in _SUM_PARTS)),
                pairs,
                int(header["additions"]),
            )
            made._check()
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise FormatError(
                f"{path}: does not hold together ({error})",
                "It is damaged or something else: make it again",
            ) from error
        return made

    def _arrays(self) -> dict[str, NDArray[Any]]:
        ends = np.cumsum([0, *(len(layer.keys) for layer in self.pairs)])
        arrays: dict[str, NDArray[Any]] = {
            "layer": self.features["layer"].to_numpy(np.int64),
            "index": self.features["index"].to_numpy(np.int64),
            "units": self.units.sorted().rows,
            "counts": self.counts,
            "pair_starts": ends.astype(np.int64),
            "pair_keys": np.concatenate([layer.keys for layer in self.pairs]),
            "pair_counts": np.concatenate([layer.counts for layer in self.pairs]),
        }
        for name in _SUM_PARTS:
            arrays[f"moment_{name}"] = getattr(self.moments, name)
            arrays[f"pair_{name}"] = np.concatenate(
                [getattr(layer.sums, name) for layer in self.pairs], axis=1
            )
        return arrays

    def _check(self) -> None:
        """Whether what a file says holds together; else ValueError."""
        n, height = len(self), len(self.norms) * len(MOMENTS)
        layers = self.features["layer"].to_numpy()
        if not {"model_id", "transcoder_id", "counting", "read_hook"} <= set(self.identity):
            raise ValueError("it does not say what it is of")
        if self.units.rows.shape[1:] != (6,) or self.units.rows.dtype != np.int64:
            raise ValueError("its units have another shape")
        if self.counts.shape != (n,) or self.moments.high.shape != (2, n):
            raise ValueError("its sums are of another number of features")
        for layer, pairs in enumerate(self.pairs):
            if pairs.sums.high.shape != (height, len(pairs.keys)):
                raise ValueError("its sums are of another number of pairs")
            if not len(pairs.keys):
                continue
            targets, sources = np.divmod(pairs.keys, n)
            if (
                (np.diff(pairs.keys) <= 0).any()
                or targets[0] < 0
                or targets[-1] >= n
                or (layers[targets] != layer).any()
                or (layers[sources] >= layer).any()
            ):
                raise ValueError("its pairs are out of order")
        for sums in (self.moments, *(pairs.sums for pairs in self.pairs)):
            if not (np.isfinite(sums.high).all() and np.isfinite(sums.low).all()):
                raise ValueError("a sum is not finite")


_SUM_PARTS: Final = ("high", "low", "bins")
