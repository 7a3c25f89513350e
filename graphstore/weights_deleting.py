"""Removing global weights from the database, in batches that no reader sees the rest of.

As with graphs, they are incomplete from the first transaction on; a kill in between leaves what an
interrupted writer leaves, and is cleaned up in the same way.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Final

import neo4j
import numpy as np

from graphstore.claims import SILENCE_LIMIT, Claim, WeightsClaim, lock_vault
from graphstore.deleting import drop_unused, remove_left_features

if TYPE_CHECKING:
    from graphstore.client import Client

__all__ = [
    "clear_weights",
    "interrupted_weights",
    "remove_interrupted_weights",
    "remove_stray_pairs",
    "remove_weights",
]

_AT_A_TIME: Final = 500  # features that are removed together, at most
_PAIRS: Final = 20_000  # pairs that are: few enough for a small server's heap

# The last features first: pairs lead to them only, so nothing of these weights holds them then.
_LAST_FEATURES: Final = """
MATCH (:GlobalWeights {weights_id: $weights_id})-[c:COVERS]->(f:Feature)
WITH c, f ORDER BY c.ord DESC LIMIT $limit
RETURN collect(f.feature_id) AS ids, collect(c.ord) AS ords,
       collect(coalesce(c.n_inputs, 0)) AS sizes
"""
# Collected first, deleted then; see deleting.py.
_DROP_PAIRS: Final = """
UNWIND $ids AS id
MATCH (f:Feature {feature_id: id})<-[r:VIRTUAL]-(:Feature) WHERE r.weights_id = $weights_id
WITH collect(r) AS all_of_them UNWIND all_of_them AS r DELETE r
"""
_DROP_COVERS: Final = """
MATCH (:GlobalWeights {weights_id: $weights_id})-[c:COVERS]->(:Feature) WHERE c.ord >= $first
WITH collect(c) AS all_of_them UNWIND all_of_them AS c DELETE c
"""
_DROP_LINKS: Final = """
MATCH (:GlobalWeights {weights_id: $weights_id})-[r]-()
WITH collect(r) AS all_of_them UNWIND all_of_them AS r DELETE r
"""
_RESET: Final = """
MATCH (w:GlobalWeights {weights_id: $weights_id})
SET w = {weights_id: $weights_id, complete: false, writer: $writer, heartbeat: timestamp()}
"""
_DROP_RECORD: Final = """
MATCH (w:GlobalWeights {weights_id: $weights_id, writer: $writer}) DETACH DELETE w
"""
_WRITER: Final = """
MATCH (w:GlobalWeights {weights_id: $weights_id}) WHERE w.complete = false
RETURN w.writer AS writer
"""
_INTERRUPTED: Final = """
MATCH (w:GlobalWeights) WHERE w.complete = false
RETURN w.weights_id AS weights_id, (timestamp() - coalesce(w.heartbeat, 0)) / 1000.0 AS silent
"""


def remove_weights(store: Client, weights_id: str) -> None:
    """Remove complete global weights and the features that only they used."""
    with WeightsClaim(store, weights_id) as claim:
        if store.transact(claim.withdraw):  # else another process is removing them
            _remove(claim)


def remove_interrupted_weights(store: Client, weights_id: str, *, silent_for: float) -> bool:
    """Remove incomplete global weights if nobody works on them; whether that was so."""
    with WeightsClaim(store, weights_id) as claim:
        found = store.rows(_WRITER, weights_id=weights_id)
        if not found or not claim.take_over(found[0]["writer"], silent_for=silent_for):
            return False
        _remove(claim)
        return True


def interrupted_weights(store: Client, *, silent_for: float = SILENCE_LIMIT) -> list[str]:
    """Ids of incomplete global weights whose writer has given no sign for so many seconds."""
    return [row["weights_id"] for row in store.rows(_INTERRUPTED) if row["silent"] >= silent_for]


def _remove(claim: Claim) -> None:
    clear_weights(claim)
    claim.store.change(_DROP_RECORD, weights_id=claim.graph_id, writer=claim.writer)
    remove_left_features(claim.store)


def clear_weights(claim: Claim) -> None:
    """Remove pairs and links of claimed, incomplete weights."""
    while True:
        found = claim.store.rows(_LAST_FEATURES, weights_id=claim.graph_id, limit=_AT_A_TIME)[0]
        if not found["ids"]:
            break
        # As many features as a transaction can take the pairs of, and one at least.
        fit = max(1, int(np.searchsorted(np.cumsum(found["sizes"]), _PAIRS, side="right")))
        ids, first = found["ids"][:fit], found["ords"][fit - 1]
        claim.run(partial(_drop, weights_id=claim.graph_id, ids=ids, first=first))
    claim.run(partial(_reset, claim=claim))


def _drop(tx: neo4j.ManagedTransaction, weights_id: str, ids: list[str], first: int) -> None:
    lock_vault(tx)
    tx.run(_DROP_PAIRS, weights_id=weights_id, ids=ids).consume()
    tx.run(_DROP_COVERS, weights_id=weights_id, first=first).consume()
    drop_unused(tx, ids, weights_id)


def _reset(tx: neo4j.ManagedTransaction, claim: Claim) -> None:
    """Leave of the record no more than a new claim makes."""
    tx.run(_DROP_LINKS, weights_id=claim.graph_id).consume()
    tx.run(_RESET, weights_id=claim.graph_id, writer=claim.writer).consume()


_STRAY_PAIRS: Final = """
MATCH (:Feature)-[r:VIRTUAL]->(:Feature) WHERE NOT r.weights_id IN $known
WITH r LIMIT $limit
WITH collect(r) AS all_of_them UNWIND all_of_them AS r DELETE r
RETURN count(*) AS n
"""
_ALL_IDS: Final = "MATCH (w:GlobalWeights) RETURN collect(w.weights_id) AS ids"


def remove_stray_pairs(store: Client) -> None:
    """Remove VIRTUAL relationships of weights that have no record, not even an incomplete one."""

    def work(tx: neo4j.ManagedTransaction) -> int:
        lock_vault(tx)
        known = tx.run(_ALL_IDS).single(strict=True)["ids"]
        found = tx.run(_STRAY_PAIRS, known=known, limit=_PAIRS).single()
        return int(found["n"]) if found is not None else 0

    while store.transact(work):
        pass
