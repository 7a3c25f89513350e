"""Circuits that are kept under a name: features that recur, the edges between them, a picture.

``(Circuit)-[:INVOLVES {place, graphs, share, mean_influence}]->(Feature)``; its edges are parallel
lists on the Circuit, because they join features, not nodes of one graph. The graphs that it was
found in are named by id and may go; the circuit stays.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import neo4j
import pandas as pd

from graphstore.claims import lock_vault
from graphstore.grouping import parts_of_feature_id
from tracer.errors import FormatError, NotFoundError, StoreError, nearest

if TYPE_CHECKING:
    from graphstore.client import Client

__all__ = [
    "CIRCUIT_FIELDS",
    "EDGE_FIELDS",
    "FEATURE_FIELDS",
    "all_circuits",
    "check_circuit",
    "delete_circuit",
    "keep_circuit",
    "list_circuits",
    "read_circuit_record",
]

# What a record of a circuit holds, beside `features` and `edges`, with the types of admin files.
CIRCUIT_FIELDS: Final = {
    "model_id": "string",
    "transcoder_id": "string",
    "min_share": "double",
    "graph_ids": "string[]",
    "created_at": "string",
    "picture": "string",
}
FEATURE_FIELDS: Final = {
    "place": "string",
    "graphs": "long",
    "share": "double",
    "mean_influence": "double",
}
EDGE_FIELDS: Final = {
    "source": "string",
    "target": "string",
    "graphs": "long",
    "share": "double",
    "mean_weight": "double",
    "mean_share": "double",
    "mean_influence": "double",
    "sign_agreement": "double",
}
_TYPES: Final = {"string": str, "long": int, "double": float, "string[]": list}

Record = dict[str, Any]

_NAMES: Final = "MATCH (c:Circuit) RETURN c.name AS name ORDER BY name"
_LIST: Final = """
MATCH (c:Circuit)
RETURN c.name AS name, c.n_features AS features, c.n_edges AS edges, c.min_share AS min_share,
       c.graph_ids AS graph_ids, c.transcoder_id AS transcoder_id, c.created_at AS created_at
ORDER BY name
"""
_KEEP: Final = """
CREATE (c:Circuit {name: $name}) SET c += $properties
WITH c UNWIND $features AS r
MERGE (f:Feature {feature_id: r.feature_id})
ON CREATE SET f.transcoder_id = r.transcoder_id, f.layer = r.layer, f.index = r.index
CREATE (c)-[:INVOLVES {ord: r.ord, place: r.place, graphs: r.graphs, share: r.share,
                       mean_influence: r.mean_influence}]->(f)
"""
_READ: Final = "MATCH (c:Circuit {name: $name}) RETURN properties(c) AS properties"
_FEATURES: Final = """
MATCH (:Circuit {name: $name})-[r:INVOLVES]->(f:Feature)
RETURN f.feature_id AS feature_id, r.ord AS ord, r.place AS place, r.graphs AS graphs,
       r.share AS share, r.mean_influence AS mean_influence
ORDER BY ord
"""
_DROP_LINKS: Final = """
MATCH (:Circuit {name: $name})-[r:INVOLVES]->(f:Feature)
WITH collect(r) AS all_of_them UNWIND all_of_them AS r DELETE r
"""
_DROP: Final = "MATCH (c:Circuit {name: $name}) DETACH DELETE c"


def list_circuits(store: Client) -> pd.DataFrame:
    """List the stored circuits; see :meth:`graphstore.Store.circuits`."""
    rows = store.rows(_LIST)
    columns = ["name", "features", "edges", "min_share", "graphs", "transcoder_id", "created_at"]
    records = [{**row, "graphs": len(row["graph_ids"] or [])} for row in rows]
    return pd.DataFrame(records, columns=columns)


def keep_circuit(store: Client, record: Mapping[str, Any]) -> None:
    """Store a circuit under its name.

    Parameters
    ----------
    store
        The store.
    record
        ``name``, :data:`CIRCUIT_FIELDS`, ``features`` (``feature_id`` and
        :data:`FEATURE_FIELDS`), ``edges`` (:data:`EDGE_FIELDS`).

    Raises
    ------
    StoreError
        If there is a circuit of this name, or the record is not as above.
    """
    name = check_circuit(record)
    features = feature_rows(record)
    properties = circuit_properties(record)

    def work(tx: neo4j.ManagedTransaction) -> None:
        lock_vault(tx)  # else a delete may remove a feature that the circuit has
        if tx.run(_READ, name=name).single() is not None:
            raise StoreError(
                f"a circuit {name!r} is stored already",
                "Choose another name, or remove it (circuitbase circuits drop)",
            )
        tx.run(_KEEP, name=name, properties=properties, features=features).consume()

    store.transact(work, merges=True)


def feature_rows(record: Mapping[str, Any]) -> list[Record]:
    """Features of a circuit with the parts of their ids, in order."""
    rows = []
    for place, row in enumerate(record["features"]):
        transcoder_id, layer, index = parts_of_feature_id(row["feature_id"]) or ("", 0, 0)
        more = {"ord": place, "transcoder_id": transcoder_id, "layer": layer, "index": index}
        rows.append({**row, **more})
    return rows


def circuit_properties(record: Mapping[str, Any]) -> Record:
    """Properties of the Circuit node: its fields, its edges as lists, and how many it has."""
    found: Record = {name: record.get(name) for name in CIRCUIT_FIELDS}
    for name in EDGE_FIELDS:
        values = [edge.get(name) for edge in record["edges"]]
        # A list in a property holds no null: an unknown figure is nan, which both engines keep.
        found[f"edge_{name}"] = [math.nan if value is None else value for value in values]
    found |= {"n_features": len(record["features"]), "n_edges": len(record["edges"])}
    return {name: value for name, value in found.items() if value is not None and value != []}


def read_circuit_record(store: Client, name: str) -> Record:
    """Read a circuit back, as it was kept.

    Raises
    ------
    NotFoundError
        If none has the name; the message suggests.
    """
    found = store.rows(_READ, name=name)
    if not found:
        known = [row["name"] for row in store.rows(_NAMES)]
        raise NotFoundError(
            f"no circuit {name!r} is stored",
            nearest(name, known) or "circuitbase circuits lists them",
        )
    properties = found[0]["properties"]
    lists = [properties.get(f"edge_{field}", []) for field in EDGE_FIELDS]
    return {
        "name": name,
        **{field: properties.get(field) for field in CIRCUIT_FIELDS},
        "graph_ids": list(properties.get("graph_ids", [])),
        "features": [
            {key: value for key, value in row.items() if key != "ord"}
            for row in store.rows(_FEATURES, name=name)
        ],
        "edges": [
            dict(zip(EDGE_FIELDS, values, strict=True)) for values in zip(*lists, strict=True)
        ],
    }


def all_circuits(store: Client) -> list[Record]:
    """Every stored circuit, by name."""
    return [read_circuit_record(store, row["name"]) for row in store.rows(_NAMES)]


def delete_circuit(store: Client, name: str) -> None:
    """Remove a circuit; its features stay while something else uses them.

    Raises
    ------
    NotFoundError
        If none has the name.
    """
    read_circuit_record(store, name)

    def work(tx: neo4j.ManagedTransaction) -> None:
        lock_vault(tx)
        tx.run(_DROP_LINKS, name=name).consume()
        tx.run(_DROP, name=name).consume()

    store.transact(work)


def check_circuit(record: Mapping[str, Any], where: str = "circuit") -> str:
    """Check a record, which may come from a file; its name.

    Raises
    ------
    StoreError
        If it is not as :func:`keep_circuit` takes it.
    """
    name = record.get("name")
    if not isinstance(name, str) or not name.strip():
        raise StoreError(f"{where}: {name!r} names no circuit", "Give a name")
    at = f"{where} {name!r}"
    _check_fields(record, CIRCUIT_FIELDS, at)
    if not all(isinstance(each, str) for each in record.get("graph_ids") or []):
        raise StoreError(f"{at}: graph_ids are no ids", "Export it again")
    for key, fields in (
        ("features", {"feature_id": "string", **FEATURE_FIELDS}),
        ("edges", EDGE_FIELDS),
    ):
        rows = record.get(key)
        if not isinstance(rows, Sequence) or isinstance(rows, str):
            raise StoreError(f"{at}: {key} is not a list", "Export it again")
        for row in rows:
            if not isinstance(row, Mapping):
                raise StoreError(f"{at}: {key} holds {row!r}", "Export it again")
            _check_fields(row, fields, f"{at}, {key}")
    known = {row["feature_id"] for row in record["features"]}
    for feature_id in known:
        if parts_of_feature_id(feature_id) is None:
            raise StoreError(
                f"{at}: {feature_id!r} is no feature id", "Write {transcoder_id}/{layer}/{index}"
            )
    for edge in record["edges"]:
        if missing := {edge["source"], edge["target"]} - known:
            raise StoreError(
                f"{at}: an edge ends at {min(missing)!r}, no feature of it", "Export it again"
            )
    return name


def _check_fields(row: Mapping[str, Any], fields: Mapping[str, str], at: str) -> None:
    for name, kind in fields.items():
        value = row.get(name)
        expected = _TYPES[kind]
        good = isinstance(value, expected) or (expected is float and isinstance(value, int))
        if value is not None and (not good or isinstance(value, bool)):
            raise StoreError(f"{at}: {name} is {value!r:.60}", f"Give {kind}")
        if value is None and name in ("feature_id", "source", "target"):
            raise StoreError(f"{at}: {name} is missing", "Export it again")


def circuit_from_file(record: Any, path: str) -> Record:
    """Check a circuit of an export; its record.

    Raises
    ------
    FormatError
        If it is damaged.
    """
    if not isinstance(record, dict):
        raise FormatError(f"{path}: circuits holds {record!r:.60}", "Export again")
    try:
        check_circuit(record, f"{path}: circuit")
    except StoreError as error:
        raise FormatError(error.what, error.remedy) from error
    # JSON has no nan: what was unknown is null there.
    json.dumps(record)
    return record
