"""Global weights made of random numbers that hang together, for tests of the store and queries."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from tracer.weights import GlobalInfluence, GlobalWeights

__all__ = ["attached", "differences", "made_weights"]

ARRAYS = (
    *("weights", "era", "twera", "cofiring", "standard_error_era", "standard_error_twera"),
    *("expected_source", "expected_product"),
)


def made_weights(
    features: list[tuple[int, int]], seed: int = 0, share: float = 0.6, **given: Any
) -> GlobalWeights:
    """Weights between the given features (layer, index), which are all sorted and differ.

    Some pairs never fire together, some have tiny weights, and two explicit zeros are stored.
    """
    random = np.random.default_rng(seed)
    n = len(features)
    table = pd.DataFrame(features, columns=["layer", "index"], dtype="int64")
    table["reason"] = np.where(np.arange(n) % 3 == 0, "active", "listed")
    table["active"] = random.integers(500, 1000, n)
    table["mean_activation"] = random.uniform(0.1, 2, n)
    table["spread"] = random.uniform(0, 1, n)
    table.loc[table.index % 5 == 1, "spread"] = np.nan
    layers = table["layer"].to_numpy()
    stored = (layers[:, None] > layers[None, :]) & (random.uniform(size=(n, n)) < share)
    targets, sources = np.nonzero(stored)
    k = len(targets)
    weight = random.standard_normal(k) * np.where(random.uniform(size=k) < 0.2, 1e-3, 1)
    weight[:2] = 0
    cofiring = np.where(random.uniform(size=k) < 0.2, 0, random.integers(1, 500, k))
    fired = cofiring > 0
    expected_source = np.where(fired, random.uniform(0, 3, k), 0.0)
    expected_product = np.where(fired, random.uniform(0, 30, k), 0.0)
    mean = table["mean_activation"].to_numpy()[targets]
    indptr = np.searchsorted(targets, np.arange(n + 1))
    values = {
        "weights": weight,
        "era": expected_source * weight,
        "twera": expected_product / mean * weight,
        "cofiring": cofiring,
        "standard_error_era": np.abs(weight) * random.uniform(0, 0.1, k) * fired,
        "standard_error_twera": np.abs(weight) * random.uniform(0, 0.1, k) * fired,
        "expected_source": expected_source,
        "expected_product": expected_product,
    }
    settings: dict[str, Any] = {
        "tokens": 12_345,
        "norm": "omitted",
        "corpus_id": f"corpus-{seed}",
        "model_id": "made/model",
        "transcoder_id": "made/up@1",
        "selection": {"active": 10, "reason": 'a "quoted" ü', "listed": [1, None]},
        "cut": {"threshold": 0.1, "pairs": 7},
        "conventions": {"limits": ["one", "two"]},
    }
    return GlobalWeights(
        table,
        **{name: csr_array((data, sources, indptr), shape=(n, n)) for name, data in values.items()},
        **settings | given,
    )


def attached(weights: GlobalWeights, seed: int = 0) -> GlobalWeights:
    """Weights with influence of made-up numbers, some of them not determined."""
    random = np.random.default_rng(seed)
    n = len(weights)
    chosen = np.zeros(n)
    chosen[-2:] = 0.5
    outside = random.uniform(0, 1, n)
    outside[0] = np.nan
    return weights.with_influence(
        GlobalInfluence(
            "twera", chosen, random.uniform(0, 1, n), outside, random.uniform(0, 0.1, n)
        )
    )


def differences(a: GlobalWeights, b: GlobalWeights) -> list[str]:
    """Names of what differs between two, by value and type."""
    found = []
    for name in ("tokens", "norm", "corpus_id", "model_id", "transcoder_id", "weights_id"):
        if getattr(a, name) != getattr(b, name):
            found.append(name)
    for name in ("selection", "cut", "conventions"):
        if getattr(a, name) != getattr(b, name):
            found.append(name)
    try:
        pd.testing.assert_frame_equal(a.features, b.features, check_exact=True)
    except AssertionError as error:
        found.append(f"features: {error}")
    for name in ARRAYS:
        mine, theirs = getattr(a, name), getattr(b, name)
        if mine.dtype != theirs.dtype:
            found.append(f"{name}: type")
        for part in ("indptr", "indices", "data"):
            if not np.array_equal(getattr(mine, part), getattr(theirs, part)):
                found.append(f"{name}.{part}")
    if (a.influence is None) != (b.influence is None):
        found.append("influence")
    elif a.influence is not None and b.influence is not None:
        if a.influence.by != b.influence.by:
            found.append("influence.by")
        for name in ("target_weights", "influence", "outside", "cut"):
            if not np.array_equal(
                getattr(a.influence, name), getattr(b.influence, name), equal_nan=True
            ):
                found.append(f"influence.{name}")
    return found
