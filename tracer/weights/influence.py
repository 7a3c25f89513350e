"""Influence inside a submatrix of global weights, and what looks like interference in it.

Source: spec, sections 5 and 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tracer.errors import SettingError, nearest
from tracer.influence import Flow
from tracer.weights.weights import GlobalInfluence, GlobalWeights, Measure

__all__ = ["FeatureName", "global_influence", "interference"]

FeatureName = str | tuple[int, int]
Vector = NDArray[np.float64]

_RESIDUAL: Final = "hook_resid_mid"


def global_influence(
    weights: GlobalWeights,
    targets: Mapping[FeatureName, float] | Iterable[FeatureName],
    by: Measure = "twera",
) -> GlobalInfluence:
    """Influence ``wᵀB`` of every feature on chosen target features, over paths of every length.

    Rows of |TWERA| (or |ERA|, |V|) are normalised inside the submatrix: where a target's input lies
    mostly outside, its inputs here look larger than they are. That share is reported.

    Parameters
    ----------
    weights
        The submatrix.
    targets
        Features (id, ``layer/index``, or pair of numbers): with weights, or with equal ones that
        sum to 1.
    by
        ``weight``, ``era`` or ``twera``.

    Returns
    -------
    GlobalInfluence
        To be attached with :meth:`GlobalWeights.with_influence`. ``outside`` is
        ``1 − Σ_s ERA_st / mean input``: the signed share of what reaches a feature, on the tokens
        where it is active, that is not the residual-direct input from the chosen features. It is
        all of errors, embeddings, attention and features left out, and can be below 0 where these
        oppose. NaN where ERA leaves denominators out, or the feature is never active.

    Raises
    ------
    SettingError
        If there is no target, one is not among the features, or a weight is not a number above 0.

    References
    ----------
    .. [1] Spec, sections 5 and 6.
    """
    w = _target_weights(weights, targets)
    matrix = weights.matrix(by)
    size = abs(matrix)  # a copy: dropping zeros changes the arrays that the matrices share
    size.eliminate_zeros()
    none = np.zeros(len(weights), dtype=np.bool_)
    flow = Flow.of_matrix(size, weights=w, embeddings=none, errors=none)
    return GlobalInfluence(
        by=by,
        target_weights=w,
        influence=np.array(flow.influence),
        outside=_outside(weights),
        cut=_cut(weights, by, size @ np.ones(len(weights))),
    )


def interference(weights: GlobalWeights, share: float = 0.01) -> pd.DataFrame:
    """List pairs whose virtual weight and use do not go together.

    Large virtual weights between features that never fire together are interference: the decoder
    happens to point at the encoder, and the model keeps them apart. A tiny virtual weight with a
    large TWERA is the known failure of the score: strong activations make much of almost nothing.

    Parameters
    ----------
    weights
        The submatrix; what was cut from it is not seen.
    share
        A weight is large (and a TWERA likewise) if it is among this share of the largest stored
        ones; tiny, if it is below the median.

    Returns
    -------
    DataFrame
        As :meth:`GlobalWeights.to_pandas`, with ``flag``: ``unused`` (large weight, never fires
        together) or ``tiny`` (tiny weight, large TWERA); the strongest first.

    Raises
    ------
    SettingError
        If `share` is not between 0 and 1.
    """
    if not 0 < share <= 1:
        raise SettingError(f"share is {share}", "Give a number above 0, at most 1")
    pairs = weights.to_pandas()
    size, used = pairs["weight"].abs(), pairs["twera"].abs()
    large = size >= _top(size.to_numpy(), share)
    unused = pairs[large & (size > 0) & (pairs["cofiring"] == 0)].assign(flag="unused")
    strong = (used >= _top(used[used > 0].to_numpy(), share)) & (used > 0)
    tiny = pairs[strong & (size < size.median())].assign(flag="tiny")
    return pd.concat(
        [
            unused.sort_values("weight", key=lambda x: -x.abs(), kind="stable"),
            tiny.sort_values("twera", key=lambda x: -x.abs(), kind="stable"),
        ],
        ignore_index=True,
    )


def _target_weights(
    weights: GlobalWeights, targets: Mapping[FeatureName, float] | Iterable[FeatureName]
) -> Vector:
    if isinstance(targets, str):
        targets = [targets]
    names = list(targets)
    if not names:
        raise SettingError("no target feature is given", "Give one or more, as layer/index")
    given: Any = targets if isinstance(targets, Mapping) else dict.fromkeys(names, 1 / len(names))
    w = np.zeros(len(weights))
    for name in names:
        value = float(given[name])
        if not (value > 0 and np.isfinite(value)):
            raise SettingError(f"the weight of {name} is {value}", "Give a number above 0")
        row = _row(weights, name)
        if w[row]:
            raise SettingError(f"target {name} is given twice", "Give each once")
        w[row] = value
    return w


def _row(weights: GlobalWeights, name: FeatureName) -> int:
    if not isinstance(name, str):
        layer, index = name
        return weights.place(int(layer), int(index))
    known = {key: row for row, key in enumerate(weights.feature_ids)}
    if name in known:
        return known[name]
    place = name.split("/")
    if len(place) == 2 and all(part.isascii() and part.isdigit() for part in place):
        return weights.place(int(place[0]), int(place[1]))
    raise SettingError(
        f"feature {name} is not among the {len(weights):,} of these weights",
        nearest(name, list(known)[:10_000]) or "Give it as layer/index",
    )


def _outside(weights: GlobalWeights) -> Vector:
    made = np.full(len(weights), np.nan)
    whole = weights.norm == "folded" or weights.conventions.get("read_hook") == _RESIDUAL
    if not whole or not {"explained", "mean_input"} <= set(weights.features.columns):
        return made
    explained, total = (weights.features[name].to_numpy() for name in ("explained", "mean_input"))
    np.divide(explained, total, out=made, where=total != 0)
    return 1 - made


def _cut(weights: GlobalWeights, by: Measure, kept: Vector) -> Vector:
    """Share of each feature's input that was cut from the matrix."""
    name = f"total_{by}"
    if name not in weights.features:
        return np.zeros(len(weights))
    total = weights.features[name].to_numpy()
    share: Vector = np.divide(kept, total, out=np.ones(len(weights)), where=total > 0)
    return np.asarray(np.clip(1 - share, 0, 1))


def _top(values: Vector, share: float) -> float:
    """Least of the largest values, which are this share of all."""
    if not len(values):
        return np.inf
    k = max(1, round(share * len(values)))
    return float(np.partition(values, len(values) - k)[-k])
