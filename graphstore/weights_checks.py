"""Checking stored global weights against themselves, and mending what can be made again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from graphstore.claims import SILENCE_LIMIT
from graphstore.weights import list_weights, read_weights_from, write_summaries
from graphstore.weights_deleting import (
    interrupted_weights,
    remove_interrupted_weights,
    remove_stray_pairs,
)
from graphstore.weights_rows import SUMMARIES, WeightsRows
from tracer.errors import CircuitError
from tracer.weights import GlobalWeights

if TYPE_CHECKING:
    from graphstore.client import Client

__all__ = ["check_weights", "repair_weights"]

# Stored and recomputed values are the same float64 arithmetic, sums perhaps in another order.
_TOLERANCE: Final = 1e-9

Problem = tuple[str, str, str]  # check, id, problem


def check_weights(store: Client) -> Iterator[Problem]:
    """Check every invariant of the stored global weights."""
    for weights_id in interrupted_weights(store, silent_for=0):
        yield (
            "incomplete",
            weights_id,
            "global weights are being written, or their writer was interrupted; --repair removes "
            "them after ten minutes without a sign of life",
        )
    for weights_id in list_weights(store)["weights_id"].tolist():
        problems = list(_check_one(store, weights_id))
        if problems and weights_id in set(list_weights(store)["weights_id"]):
            yield from problems  # else they were being deleted meanwhile
    for row in store.rows(_STRAY):
        yield (
            "stray",
            row["weights_id"],
            f"{row['n']} VIRTUAL relationships of no global weights; --repair removes them",
        )


_STRAY: Final = """
MATCH (:Feature)-[r:VIRTUAL]->(:Feature)
WITH coalesce(r.weights_id, '') AS weights_id, count(*) AS n
OPTIONAL MATCH (w:GlobalWeights {weights_id: weights_id})
WITH weights_id, n, count(w) AS records WHERE records = 0
RETURN weights_id, n
"""
_RECORD: Final = """
MATCH (w:GlobalWeights {weights_id: $weights_id}) RETURN properties(w) AS properties
"""
_COVERS: Final = """
MATCH (:GlobalWeights {weights_id: $weights_id})-[c:COVERS]->(:Feature)
WHERE c.ord >= $low AND c.ord < $high
WITH c ORDER BY c.ord RETURN collect(properties(c)) AS covers
"""
_ENDS: Final = """
MATCH (w:GlobalWeights {weights_id: $weights_id})-[c:COVERS]->(t:Feature)
MATCH (t)<-[r:VIRTUAL]-(:Feature) WHERE r.weights_id = $weights_id
RETURN count(r) AS n, sum(CASE WHEN r.target = c.ord THEN 0 ELSE 1 END) AS wrong
"""
_STARTS: Final = """
MATCH (w:GlobalWeights {weights_id: $weights_id})-[c:COVERS]->(s:Feature)
MATCH (s)-[r:VIRTUAL]->(:Feature) WHERE r.weights_id = $weights_id
RETURN count(r) AS n, sum(CASE WHEN r.source = c.ord THEN 0 ELSE 1 END) AS wrong
"""
_LINKS: Final = """
MATCH (w:GlobalWeights {weights_id: $weights_id})
OPTIONAL MATCH (w)-[:COUNTED_IN]->(c:Corpus)
OPTIONAL MATCH (w)-[:USES]->(t:Transcoder)
RETURN collect(c.corpus_id) AS corpora, collect(t.transcoder_id) AS transcoders
"""


def _check_one(store: Client, weights_id: str) -> Iterator[Problem]:
    try:
        weights = read_weights_from(store, weights_id)
        rows = WeightsRows(weights)
    except CircuitError as error:
        yield "weights", weights_id, error.what
        return
    if replace(weights, weights_id="").weights_id != weights_id:
        yield "weights", weights_id, "its id is not that of its contents"
    record = store.rows(_RECORD, weights_id=weights_id)[0]["properties"]
    for name, value in {**rows.properties, **rows.influence}.items():
        if not _same(value, record.get(name)):
            yield "weights", weights_id, f"property {name} differs from what is stored of it"
    links = store.rows(_LINKS, weights_id=weights_id)[0]
    wanted = {"corpora": [weights.corpus_id], "transcoders": [weights.transcoder_id]}
    if links != wanted:
        yield "weights", weights_id, "does not lead to its corpus and transcoder, once each"
    for problem in _disagreements(weights):
        yield "weights", weights_id, problem
    for name in _differing_summaries(store, rows):
        yield (
            "summary",
            weights_id,
            f"COVERS.{name} differs from the pairs of its feature; --repair makes it anew",
        )
    for text in (_ENDS, _STARTS):
        found = store.rows(text, weights_id=weights_id)[0]
        if found["n"] != weights.weights.nnz or found["wrong"]:
            yield "weights", weights_id, "VIRTUAL links other features than its source and target"


def _disagreements(weights: GlobalWeights) -> Iterator[str]:
    """Say what cannot be, by the definitions of the numbers."""
    targets, sources = weights.ends()
    weight, cofiring = weights.weights.data, weights.cofiring.data
    silent = cofiring == 0
    for name in ("era", "twera"):
        wrong = silent & (weights.matrix(name).data != 0)
        if wrong.any():
            yield f"{int(wrong.sum())} pairs that never fire together have {name} other than 0"
    # ERA = E[1(a_t > 0) a_s] V and TWERA = E[a_t a_s] / E[a_t] V: spec, section 6.
    if not np.allclose(
        weights.era.data, weights.expected_source.data * weight, rtol=_TOLERANCE, atol=1e-15
    ):
        yield "era is not expected_source times weight"
    if "mean_activation" in weights.features:
        mean = weights.features["mean_activation"].to_numpy(np.float64)[targets]
        twera = weights.twera.data * mean
        if not np.allclose(
            twera, weights.expected_product.data * weight, rtol=_TOLERANCE, atol=1e-15
        ):
            yield "twera is not expected_product times weight over mean_activation of the target"
    most: NDArray[Any] = np.full(len(cofiring), weights.tokens)
    if "active" in weights.features:
        active = weights.features["active"].to_numpy()
        most = np.minimum(active[targets], active[sources])
    if (cofiring < 0).any() or (cofiring > most).any():
        yield "a pair fires together more often than one of the two fires, or less than never"
    for name in ("standard_error_era", "standard_error_twera"):
        if (getattr(weights, name).data < 0).any():
            yield f"{name} is negative"


def _differing_summaries(store: Client, rows: WeightsRows) -> list[str]:
    """Names of what features' records say otherwise than their pairs."""
    stored: list[dict[str, Any]] = []
    for low in range(0, len(rows.weights), 5_000):
        page = store.rows(_COVERS, weights_id=rows.weights.weights_id, low=low, high=low + 5_000)
        stored.extend(page[0]["covers"])
    return [
        name
        for name in SUMMARIES
        if not np.allclose(
            [row.get(name, np.nan) for row in stored],
            rows.summaries[name],
            rtol=_TOLERANCE,
            atol=1e-15,
        )
    ]


def repair_weights(store: Client) -> None:
    """Remove what interrupted writers left and stray pairs; make differing summaries anew."""
    for weights_id in interrupted_weights(store):
        remove_interrupted_weights(store, weights_id, silent_for=SILENCE_LIMIT)
    remove_stray_pairs(store)
    for weights_id in list_weights(store)["weights_id"].tolist():
        try:
            rows = WeightsRows(read_weights_from(store, weights_id))
        except CircuitError:
            continue  # damaged: that is for verify to tell
        small = store.rows(_RECORD, weights_id=weights_id)[0]["properties"].get("small_weight")
        if small != rows.small_weight or _differing_summaries(store, rows):
            write_summaries(store, rows)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float | int):
        return bool(np.isclose(a, b, rtol=_TOLERANCE, atol=1e-15))
    return bool(a == b)
