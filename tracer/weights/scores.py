"""ERA and TWERA of a submatrix, from virtual weights and the sums over a corpus.

Standard errors are of the mean for ERA, ``|V| √(Var[1(a_t > 0) a_s] / N)``, and by the delta method
for TWERA, a ratio of means: ``|V| √(Var[a_t a_s − R a_t] / N) / E[a_t]`` with
``R = E[a_t a_s] / E[a_t]``. Tokens are taken as independent, which makes both lower bounds.

Source: spec, section 6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tracer.errors import SettingError
from tracer.models import Model
from tracer.transcoders import Transcoder
from tracer.weights.collecting import folding_refusal
from tracer.weights.cutting import Cut, Cutter, Entries
from tracer.weights.selection import check_features
from tracer.weights.statistics import MOMENTS, CorpusStatistics
from tracer.weights.virtual import Tile, encoder_constants, tiles
from tracer.weights.weights import LIMITS, MEASURES, NORMS, GlobalWeights, Measure, Norm

__all__ = ["check_norm", "global_weights"]

Vector = NDArray[np.float64]
Indices = NDArray[np.int64]


def global_weights(
    model: Model,
    transcoder: Transcoder,
    statistics: CorpusStatistics,
    norm: Norm = "omitted",
    *,
    top_k: int | None = 100,
    threshold: float | Mapping[Measure, float] | None = None,
    by: Sequence[Measure] = MEASURES,
    dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> GlobalWeights:
    """Compute virtual weights, ERA and TWERA between the features of some statistics.

    Parameters
    ----------
    model, transcoder
        Those that the statistics are of.
    statistics
        From :func:`tracer.corpus_statistics`.
    norm
        ``omitted``: denominators of norms are left out. ``folded``: a source's activation counts
        over the denominator that its target reads through, which makes ERA the mean over tokens of
        the residual-direct edges of local graphs.
    top_k
        Keep so many inputs of each target and outputs of each source, by each measure; None for
        all pairs.
    threshold
        Least absolute value that is kept: of each measure, or one for all of `by`.
    by
        The measures by which an entry may stay: ``weight``, ``era``, ``twera``.
    dtype
        Of the products; None for the transcoder's.
    progress
        Called with (tiles done, tiles in all).

    Returns
    -------
    GlobalWeights
        ``features`` has, beside the usual columns, ``bias`` (pre-activation where the stream is 0),
        ``mean_input`` (mean over tokens of what else reaches the feature where it is active),
        ``explained`` (the sum of its ERA over all chosen sources), and ``total_weight``,
        ``total_era``, ``total_twera`` (sums of absolute values before the cut).

    Raises
    ------
    SettingError
        If the statistics are of another model or transcoder, hold no token, or the convention does
        not hold or was not kept.
    FormatError
        If a weight is not finite.

    References
    ----------
    .. [1] Spec, section 6.
    """
    check_norm(model, transcoder, norm)
    _check(model, transcoder, statistics)
    given: Mapping[Measure, float] = (
        {}
        if threshold is None
        else threshold
        if isinstance(threshold, Mapping)
        else dict.fromkeys(by, float(threshold))
    )
    cut = Cut(top_k, given, tuple(by))
    expected = _Expected(statistics, norm)
    layers = statistics.features["layer"].to_numpy(np.int64)
    indices = statistics.features["index"].to_numpy(np.int64)
    chosen = [indices[layers == layer] for layer in range(transcoder.n_layers)]
    starts = np.concatenate([[0], np.cumsum([len(mine) for mine in chosen])]).astype(np.int64)
    cutter, n = Cutter(cut, len(statistics)), len(statistics)
    explained, done = np.zeros(n), 0
    used = sum(1 for mine in chosen if len(mine))
    with torch.no_grad():
        for tile in tiles(model, transcoder, chosen, chosen, dtype=dtype):
            rows, columns = _place(tile, starts)
            weights = tile.weights.cpu().numpy()
            places, era, twera = expected.tile(weights, tile.target_layer, rows, columns)
            explained[rows] += era.sum(axis=1)
            values = np.stack([np.abs(weights).astype(np.float64), np.abs(era), np.abs(twera)])
            cutter.take(values, weights, places, rows, columns)
            if tile.last:
                cutter.end_block(columns.start)
            done += 1
            if progress is not None:
                progress(done, max(done, used * (used - 1) // 2))
    entries = cutter.kept()
    table = _features(model, transcoder, statistics, chosen, cutter.totals, explained)
    return GlobalWeights(
        table,
        **_matrices(entries, expected, n),
        tokens=statistics.tokens,
        norm=norm,
        corpus_id=statistics.corpus_id,
        model_id=statistics.model_id,
        transcoder_id=statistics.transcoder_id,
        selection=statistics.selection,
        cut=_report(cut, cutter, entries, statistics, starts),
        conventions=_conventions(model, transcoder, statistics, norm),
    )


def check_norm(model: Model, transcoder: Transcoder, norm: Norm) -> None:
    """Refuse a convention that is unknown or does not hold.

    Raises
    ------
    SettingError
        If it does not hold for this model and transcoder.
    """
    if norm not in NORMS:
        raise SettingError(f"norm {norm!r} is unknown", f"Known are {', '.join(NORMS)}")
    refusal = folding_refusal(model, transcoder)
    if norm == "folded" and refusal:
        raise SettingError(
            f"the folded convention does not hold for {transcoder.transcoder_id}: {refusal}",
            'Use norm="omitted", which leaves these denominators out',
        )


# Details ------------------------------------------------------------------------------------------


def _check(model: Model, transcoder: Transcoder, statistics: CorpusStatistics) -> None:
    for what, mine, theirs in (
        ("transcoder", transcoder.transcoder_id, statistics.transcoder_id),
        ("model", model.model_id, statistics.model_id),
        (
            "weights of the transcoder",
            transcoder.fingerprint,
            statistics.identity["transcoder_fingerprint"],
        ),
        (
            "weights of the model",
            model.info.get("fingerprint"),
            statistics.identity["model_fingerprint"],
        ),
    ):
        if mine != theirs:
            raise SettingError(
                f"the statistics are of another {what}: {theirs}, not {mine}",
                "Collect statistics with this model and transcoder",
            )
    check_features(statistics.features, transcoder)
    if not statistics.tokens:
        raise SettingError("the statistics hold no token", "Merge all shards first")


class _Expected:
    """Sums of pairs, found by tile and by place."""

    def __init__(self, statistics: CorpusStatistics, norm: Norm) -> None:
        self._statistics, self._norm = statistics, norm
        self.tokens = statistics.tokens
        self.activation = statistics.moments.value[0]  # Σ a_t
        self.square = statistics.moments.value[1]
        sizes = [len(layer.keys) for layer in statistics.pairs]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._sorted: dict[int, tuple[Indices, Indices, Indices]] = {}
        self._known: dict[int, tuple[Vector, Vector]] = {}

    def tile(
        self, weights: Vector, layer: int, rows: slice, columns: slice
    ) -> tuple[Indices, Vector, Vector]:
        """Places of the pairs' sums, ERA and TWERA of a tile, shape of `weights`."""
        targets, sources, order = self._by_source(layer)
        low, high = np.searchsorted(sources, (columns.start, columns.stop))
        at = (targets[low:high] - rows.start, sources[low:high] - columns.start)
        mine = order[low:high]
        places = np.full(weights.shape, -1, dtype=np.int64)
        places[at] = mine + self._starts[layer]
        era, twera = np.zeros(weights.shape), np.zeros(weights.shape)
        total = self.activation[targets[low:high]]
        source, product = self._means(layer)
        era[at] = weights[at] * source[mine]
        twera[at] = weights[at] * _over(product[mine], total)
        return places, era, twera

    def at(self, name: str, places: Indices) -> Vector:
        """One of the sums (or ``count``) by place; 0 where a pair never fires together."""
        made = np.zeros(len(places))
        for layer in range(len(self._starts) - 1):
            first, last = self._starts[layer], self._starts[layer + 1]
            here = (places >= first) & (places < last)
            if here.any():
                values = (
                    self._statistics.pairs[layer].counts
                    if name == "count"
                    else self._statistics.values(name, self._norm, layer)
                )
                made[here] = values[places[here] - first]
        return made

    def _by_source(self, layer: int) -> tuple[Indices, Indices, Indices]:
        """Pairs with targets in a layer, by source: targets, sources, place among them."""
        if layer not in self._sorted:
            targets, sources = np.divmod(self._statistics.pairs[layer].keys, len(self._statistics))
            order = np.argsort(sources, kind="stable")
            self._sorted[layer] = (targets[order], sources[order], order)
        return self._sorted[layer]

    def _means(self, layer: int) -> tuple[Vector, Vector]:
        """``E[1(a_t > 0) a_s]`` and ``Σ a_t a_s`` of the pairs with targets in a layer."""
        if layer not in self._known:
            self._known[layer] = (
                self._statistics.values("s", self._norm, layer) / self.tokens,
                self._statistics.values("ts", self._norm, layer),
            )
        return self._known[layer]


def _place(tile: Tile, starts: Indices) -> tuple[slice, slice]:
    """Rows and columns of a tile in the matrix."""
    row, column = int(starts[tile.target_layer]), int(starts[tile.source_layer])
    return (
        slice(row + tile.targets[0], row + tile.targets[1]),
        slice(column + tile.sources[0], column + tile.sources[1]),
    )


def _matrices(entries: Entries, expected: _Expected, n: int) -> dict[str, Any]:
    """All matrices on the pattern of the entries."""
    tokens = expected.tokens
    s, ts, ss, tts, ttss = (expected.at(name, entries.places) for name in MOMENTS)
    weights, size = entries.weights, np.abs(entries.weights)
    total = expected.activation[entries.targets]
    ratio = _over(ts, total)
    spread = np.maximum(ss / tokens - (s / tokens) ** 2, 0)
    left = ttss - 2 * ratio * tts + ratio**2 * expected.square[entries.targets]
    beyond = max(tokens - 1, 1)
    columns = {
        "weights": weights,
        "era": weights * (s / tokens),
        "twera": weights * ratio,
        "cofiring": np.rint(expected.at("count", entries.places)).astype(np.int64),
        "standard_error_era": size * np.sqrt(spread / beyond),
        "standard_error_twera": size
        * _over(np.sqrt(np.maximum(left, 0) / beyond / tokens), total / tokens),
        "expected_source": s / tokens,
        "expected_product": ts / tokens,
    }
    counts = np.bincount(entries.targets, minlength=n)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return {
        name: csr_array((data, entries.sources, indptr), shape=(n, n))
        for name, data in columns.items()
    }


def _over(values: Vector, by: Vector) -> Vector:
    """Quotient, 0 where the divisor is not above 0."""
    return np.divide(values, by, out=np.zeros(np.shape(values)), where=by > 0)


def _features(
    model: Model,
    transcoder: Transcoder,
    statistics: CorpusStatistics,
    chosen: Sequence[Indices],
    totals: Vector,
    explained: Vector,
) -> pd.DataFrame:
    tokens = statistics.tokens
    biases = torch.cat(
        [
            encoder_constants(model, transcoder, layer, mine).cpu()
            for layer, mine in enumerate(chosen)
        ]
    ).numpy()
    table = statistics.features.copy().reset_index(drop=True)
    sums = statistics.moments.value
    table["active"] = statistics.counts
    table["mean_activation"] = sums[0] / tokens
    table["mean_square"] = sums[1] / tokens
    table["bias"] = biases
    table["mean_input"] = (sums[0] - biases * statistics.counts) / tokens
    table["explained"] = explained
    for name, total in zip(MEASURES, totals, strict=True):
        table[f"total_{name}"] = total
    return table


def _report(
    cut: Cut, cutter: Cutter, entries: Entries, statistics: CorpusStatistics, starts: Indices
) -> dict[str, Any]:
    """Say what was left out of the matrices."""
    kept = entries.values.sum(axis=1)
    whole = cutter.totals.sum(axis=1)
    sizes = np.diff(starts)
    pairs = int((sizes.sum() ** 2 - (sizes**2).sum()) // 2)
    return {
        **cut.record(),
        "pairs": pairs,
        "cofiring": statistics.n_pairs,
        "kept": len(entries.targets),
        "kept_cofiring": int((entries.places >= 0).sum()),
        "share_kept": {
            name: float(part / all_) if all_ else 1.0
            for name, part, all_ in zip(MEASURES, kept, whole, strict=True)
        },
        "largest_cut": {
            name: float(value) for name, value in zip(MEASURES, cutter.largest, strict=True)
        },
    }


def _conventions(
    model: Model, transcoder: Transcoder, statistics: CorpusStatistics, norm: Norm
) -> dict[str, Any]:
    left_out = []
    if norm == "omitted" and transcoder.read_hook != "hook_resid_mid":
        left_out.append("denominators of the norms that features read through")
    if transcoder.write_hook == "mlp.hook_out" and model.has_post_norm:
        left_out.append("denominators of the norms after the MLPs")
    if transcoder.has_skip:
        left_out.append("paths through the affine skips")
    return {
        **{
            name: statistics.identity[name]
            for name in (
                *("model_fingerprint", "transcoder_fingerprint", "read_hook", "write_hook"),
                *("model_dtype", "transcoder_dtype", "counting"),
            )
        },
        "left_out": left_out,
        "units_missing": statistics.units.missing,
        "standard_errors": "of the mean (ERA) and by the delta method (TWERA), from second moments "
        "of the same tokens, taken as independent: lower bounds",
        "limits": list(LIMITS),
    }
