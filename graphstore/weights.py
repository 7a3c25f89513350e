"""Global weights in the database: writing, reading back, listing.

As with graphs, a record is made first, ``complete = false``, with the writer's name and a
heartbeat; features and pairs follow in batches, and the last transaction makes it count. Readers
ask for complete ones only; what an interrupted writer leaves is cleaned up in the same way.

::

    (:GlobalWeights)-[:COVERS {ord, …}]->(:Feature)-[:VIRTUAL {weights_id, …}]->(:Feature)
    (:GlobalWeights)-[:COUNTED_IN]->(:Corpus)    (:GlobalWeights)-[:USES]->(:Transcoder)
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import neo4j
import numpy as np
import pandas as pd

from graphstore.claims import WeightsClaim
from graphstore.embedded import end_if_told
from graphstore.weights_deleting import clear_weights
from graphstore.weights_rows import PAIR_COLUMNS, WeightsRows, weights_of
from tracer.errors import NotFoundError, SettingError, StoreError, nearest
from tracer.weights import GlobalWeights

if TYPE_CHECKING:
    from graphstore.client import Client

__all__ = [
    "find_weights",
    "list_weights",
    "read_weights_from",
    "write_summaries",
    "write_weights_to",
]

_FEATURE_ROWS: Final = 5_000
_PAIR_ROWS: Final = 20_000  # a transaction: few enough for a small server's heap
_PAGE_PAIRS: Final = 50_000  # about as many pairs an answer, packed in lists

# Writing ---------------------------------------------------------------------------------------

_COVERS: Final = """
MATCH (w:GlobalWeights {weights_id: $weights_id})
UNWIND $rows AS r
MERGE (f:Feature {feature_id: r[0]})
ON CREATE SET f.layer = r[1], f.index = r[2], f.transcoder_id = $transcoder_id
CREATE (w)-[c:COVERS]->(f) SET c = r[3]
"""
# Features by their place in one ordered list, a list for each column: see writing.py.
_VIRTUAL: Final = """
MATCH (:GlobalWeights {weights_id: $weights_id})-[c:COVERS]->(f:Feature)
WITH f ORDER BY c.ord
WITH collect(f) AS fs
WITH fs, $source AS source, $target AS target, $weight AS weight, $era AS era, $twera AS twera,
     $cofiring AS cofiring, $standard_error_era AS standard_error_era,
     $standard_error_twera AS standard_error_twera, $expected_source AS expected_source,
     $expected_product AS expected_product
UNWIND range(0, size(source) - 1) AS i
WITH fs[source[i]] AS s, fs[target[i]] AS t, source[i] AS source, target[i] AS target,
     weight[i] AS weight, era[i] AS era, twera[i] AS twera, cofiring[i] AS cofiring,
     standard_error_era[i] AS standard_error_era, standard_error_twera[i] AS standard_error_twera,
     expected_source[i] AS expected_source, expected_product[i] AS expected_product
CREATE (s)-[:VIRTUAL {weights_id: $weights_id, source: source, target: target, weight: weight,
                      era: era, twera: twera, cofiring: cofiring,
                      standard_error_era: standard_error_era,
                      standard_error_twera: standard_error_twera,
                      expected_source: expected_source, expected_product: expected_product}]->(t)
"""
_COMPLETE: Final = """
MATCH (w:GlobalWeights {weights_id: $weights_id})
MERGE (c:Corpus {corpus_id: $corpus.corpus_id}) ON CREATE SET c += $corpus
MERGE (t:Transcoder {transcoder_id: $properties.transcoder_id})
CREATE (w)-[:COUNTED_IN]->(c)
CREATE (w)-[:USES]->(t)
SET w += $properties, w.stored_at = $stored_at, w.complete = true
REMOVE w.writer, w.heartbeat
"""
# Influence may be attached to what is stored already; what is there is not replaced.
_LACKS_INFLUENCE: Final = """
MATCH (w:GlobalWeights {weights_id: $weights_id})
WHERE w.complete = true AND w.influence_by IS NULL
RETURN w.weights_id AS weights_id
"""
_INFLUENCES: Final = """
WITH $rows AS rows
MATCH (:GlobalWeights {weights_id: $weights_id})-[c:COVERS]->(:Feature)
WITH c, rows[c.ord] AS r
SET c += r
"""
_SET_INFLUENCE: Final = "MATCH (w:GlobalWeights {weights_id: $weights_id}) SET w += $properties"


def write_weights_to(store: Client, weights: GlobalWeights) -> bool:
    """Write global weights; see :meth:`graphstore.Store.write_weights`."""
    end_if_told()
    rows = WeightsRows(weights)
    with WeightsClaim(store, weights.weights_id) as claim:
        if claim.take(clear_weights):
            for text, parameters, nodes in _batches(rows):
                claim.run(partial(_make, text=text, parameters=parameters, expected=nodes))
            claim.run(partial(_publish, rows=rows))
            return True
    if rows.influences:
        store.transact(partial(_add_influence, rows=rows))
    return False


def _batches(rows: WeightsRows) -> Iterator[tuple[str, dict[str, Any], int]]:
    """Statements with their parameters, and how many relationships each must make."""
    weights = rows.weights
    given = {"weights_id": weights.weights_id, "transcoder_id": weights.transcoder_id}
    places = weights.features[["layer", "index"]].to_numpy().tolist()
    covers = [
        [feature_id, *place, properties]
        for feature_id, place, properties in zip(
            weights.feature_ids, places, rows.covers, strict=True
        )
    ]
    for start in range(0, len(covers), _FEATURE_ROWS):
        batch = covers[start : start + _FEATURE_ROWS]
        yield _COVERS, {**given, "rows": batch}, len(batch)
    for start in range(0, weights.weights.nnz, _PAIR_ROWS):
        part = slice(start, start + _PAIR_ROWS)
        lists = {name: values[part].tolist() for name, values in rows.pairs.items()}
        yield _VIRTUAL, {"weights_id": weights.weights_id, **lists}, len(lists["source"])


def _make(
    tx: neo4j.ManagedTransaction, text: str, parameters: dict[str, Any], expected: int
) -> None:
    made = tx.run(text, parameters).consume().counters.relationships_created
    if made != expected:
        raise StoreError(
            f"global weights {parameters['weights_id']}: {made} relationships arrived, "
            f"expected {expected}",
            "Nothing of it is visible; write it again, and report this if it comes back",
        )


def _publish(tx: neo4j.ManagedTransaction, rows: WeightsRows) -> None:
    """Make written weights count."""
    weights_id = rows.weights.weights_id
    _write_influence(tx, rows)
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    tx.run(
        _COMPLETE,
        weights_id=weights_id,
        properties=rows.properties,
        corpus=rows.corpus,
        stored_at=now,
    ).consume()


def _add_influence(tx: neo4j.ManagedTransaction, rows: WeightsRows) -> None:
    if tx.run(_LACKS_INFLUENCE, weights_id=rows.weights.weights_id).single() is not None:
        _write_influence(tx, rows)


def _write_influence(tx: neo4j.ManagedTransaction, rows: WeightsRows) -> None:
    if rows.influences:
        weights_id = rows.weights.weights_id
        tx.run(_INFLUENCES, weights_id=weights_id, rows=rows.influences).consume()
        tx.run(_SET_INFLUENCE, weights_id=weights_id, properties=rows.influence).consume()


def write_summaries(store: Client, rows: WeightsRows) -> None:
    """Write again what each feature's record says of its pairs."""
    summaries = [{name: row[name] for name in rows.summaries} for row in rows.covers]
    small = {"small_weight": rows.small_weight}
    weights_id = rows.weights.weights_id

    def work(tx: neo4j.ManagedTransaction) -> None:
        tx.run(_INFLUENCES, weights_id=weights_id, rows=summaries).consume()
        tx.run(_SET_INFLUENCE, weights_id=weights_id, properties=small).consume()

    store.transact(work)


# Reading ---------------------------------------------------------------------------------------

_RECORD: Final = """
MATCH (w:GlobalWeights {weights_id: $weights_id}) WHERE w.complete = true
RETURN properties(w) AS properties
"""
_FEATURES: Final = """
MATCH (:GlobalWeights {weights_id: $weights_id})-[c:COVERS]->(f:Feature)
WHERE c.ord >= $low AND c.ord < $high
WITH c, f ORDER BY c.ord
RETURN collect(f.layer) AS layer, collect(f.index) AS index, collect(properties(c)) AS covers
"""
_PAIRS: Final = """
MATCH (:GlobalWeights {weights_id: $weights_id})-[c:COVERS]->(t:Feature)
WHERE c.ord >= $low AND c.ord < $high
MATCH (t)<-[r:VIRTUAL]-(:Feature)
WHERE r.weights_id = $weights_id
RETURN collect(r.source) AS source, collect(r.target) AS target, collect(r.weight) AS weight,
       collect(r.era) AS era, collect(r.twera) AS twera, collect(r.cofiring) AS cofiring,
       collect(r.standard_error_era) AS standard_error_era,
       collect(r.standard_error_twera) AS standard_error_twera,
       collect(r.expected_source) AS expected_source,
       collect(r.expected_product) AS expected_product
"""
_LIST: Final = """
MATCH (w:GlobalWeights) WHERE w.complete = true
RETURN w.weights_id AS weights_id, w.corpus_id AS corpus_id, w.norm AS norm,
       w.n_features AS features, w.n_pairs AS pairs, w.tokens AS tokens,
       w.model_id AS model_id, w.transcoder_id AS transcoder_id, w.influence_by AS influence_by,
       w.stored_at AS stored_at
ORDER BY stored_at, weights_id
"""


def read_weights_from(store: Client, weights_id: str) -> GlobalWeights:
    """Read complete global weights; see :meth:`graphstore.Store.read_weights`.

    Raises
    ------
    NotFoundError
        If no complete ones have this id.
    StoreError
        If what is stored does not hold together.
    """
    found = store.rows(_RECORD, weights_id=weights_id)
    if not found:
        raise _none_called(weights_id, list_weights(store)["weights_id"].tolist())
    record: dict[str, Any] = found[0]["properties"]
    features = _read_features(store, record)
    pairs = _read_pairs(store, record)
    try:
        if (pairs["source"] >= len(features)).any() or (pairs["source"] < 0).any():
            raise SettingError("a pair starts at a feature that is not there", "Restore it")
        made = weights_of(record, features, pairs)
    except (SettingError, KeyError, TypeError, ValueError) as error:
        what = error.what if isinstance(error, SettingError) else f"{error!r}"
        raise StoreError(
            f"global weights {weights_id} do not hold together ({what})",
            "circuitbase verify tells more; restore them from an export",
        ) from error
    return made


def _read_features(store: Client, record: dict[str, Any]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for low in range(0, record["n_features"], _FEATURE_ROWS):
        page = store.rows(
            _FEATURES, weights_id=record["weights_id"], low=low, high=low + _FEATURE_ROWS
        )[0]
        rows.extend(
            {**properties, "layer": layer, "index": index}
            for properties, layer, index in zip(
                page["covers"], page["layer"], page["index"], strict=True
            )
        )
    if [row["ord"] for row in rows] != list(range(record["n_features"])):
        raise _incomplete(record, "features", len(rows))
    return rows


def _read_pairs(store: Client, record: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """Read the pairs, a range of target rows at a time."""
    whole = ("source", "target", "cofiring")
    columns: dict[str, list[Any]] = {name: [] for name in ("source", "target", *PAIR_COLUMNS)}
    n_features, n_pairs = record["n_features"], record["n_pairs"]
    step = max(1, math.floor(n_features * _PAGE_PAIRS / max(n_pairs, 1)))
    for low in range(0, n_features, step):
        page = store.rows(_PAIRS, weights_id=record["weights_id"], low=low, high=low + step)[0]
        for name, values in columns.items():
            kind = np.int64 if name in whole else np.float64
            values.append(np.asarray(page[name], dtype=kind))
    found = {
        name: np.concatenate(values) if values else np.empty(0, np.int64)
        for name, values in columns.items()
    }
    lengths = {len(values) for values in found.values()}
    if lengths != {n_pairs}:
        raise _incomplete(record, "pairs", max(lengths))
    return found


def _incomplete(record: dict[str, Any], what: str, found: int) -> StoreError:
    return StoreError(
        f"global weights {record['weights_id']} have {found} {what}, "
        f"their record says {record[f'n_{what}']}",
        "circuitbase verify tells more; restore them from an export",
    )


def list_weights(store: Client) -> pd.DataFrame:
    """List complete global weights; see :meth:`graphstore.Store.weights`."""
    columns = [
        *("weights_id", "corpus_id", "norm", "features", "pairs", "tokens"),
        *("model_id", "transcoder_id", "influence_by", "stored_at"),
    ]
    table = pd.DataFrame(store.rows(_LIST), columns=columns)
    table["influence_by"] = table["influence_by"].astype(object)
    return table.where(table.notna(), None)


def find_weights(store: Client, name: str | None) -> str:
    """Id of the global weights called so; see :meth:`graphstore.Store.find_weights`."""
    if name is not None and store.rows(_RECORD_ID, weights_id=name):
        return name
    known: list[str] = list_weights(store)["weights_id"].tolist()
    if name is None:
        if len(known) == 1:
            return known[0]
        if not known:
            raise NotFoundError("no global weights are stored", "circuitbase weights makes some")
        raise NotFoundError(
            f"{len(known)} global weights are stored: {', '.join(known)}",
            f"Name one, such as weights_id={known[-1]}",
        )
    matches = [each for each in known if len(name) >= 4 and each.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise NotFoundError(
            f"{len(matches)} global weights are called {name!r}: {', '.join(matches[:4])}",
            "Name one by its whole id",
        )
    raise _none_called(name, known)


_RECORD_ID: Final = """
MATCH (w:GlobalWeights {weights_id: $weights_id}) WHERE w.complete = true
RETURN w.weights_id AS weights_id
"""


def _none_called(name: str, known: list[str]) -> NotFoundError:
    return NotFoundError(
        f"no global weights {name!r} are stored",
        nearest(name, known) or "circuitbase global-weights lists what is",
    )
