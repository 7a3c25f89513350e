"""Where the two engines truly differ; everything else speaks one Cypher.

==================  ==============================  ==============================================
what                Neo4j                           ArcadeDB (embedded)
==================  ==============================  ==============================================
reading only        the server enforces the mode    not enforced: writing is refused here
listing             ``SHOW CONSTRAINTS``            the same, other column order
``MERGE``           locks what it is about to make  two writers may both make it; one then fails
indexes             always true to the data         once seen to lose a record: checked, made anew
==================  ==============================  ==============================================
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from graphstore.schema import schema_statements
from tracer.errors import QueryError

if TYPE_CHECKING:
    from graphstore.client import Client

__all__ = [
    "MERGE_TRIES",
    "constraints",
    "keys_not_found",
    "merge_can_lose_a_race",
    "rebuild_index",
    "refuse_writing",
]

# Comments, texts and quoted names: what stands in them is no clause.
_QUOTED: Final = re.compile(
    r"//[^\n]*|/\*.*?\*/|'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"|`[^`]*`", re.DOTALL
)
_WRITES: Final = re.compile(
    r"(?<![.:$\w])(create|merge|delete|detach|remove|drop|alter|foreach|insert)\b"
    r"|(?<![.:$\w])set\s+[\w(]"
    r"|\bin\s+(\S+\s+)?(concurrent\s+)?transactions\b",
    re.IGNORECASE,
)
_DROP: Final = "DROP CONSTRAINT {0}_key IF EXISTS"


def refuse_writing(store: Client, name: str, text: str) -> None:
    """Refuse a text with a clause that writes, before it runs.

    Raises
    ------
    QueryError
        If the embedded engine might run it in spite of the transaction's mode.
    """
    if store.engine == "arcadedb" and (found := _WRITES.search(_QUOTED.sub(" ' ", text))):
        raise QueryError(
            f"{name} would change the store ({found[0].split()[0].upper()})",
            "Allow it with --write on the command line, write=True in Python",
        )


def constraints(store: Client) -> list[dict[str, Any]]:
    """Uniqueness constraints: ``labels`` and ``properties`` of each."""
    return [
        {"labels": row["labelsOrTypes"], "properties": row["properties"]}
        for row in store.rows("SHOW CONSTRAINTS")
    ]


MERGE_TRIES: Final = 10


def merge_can_lose_a_race(store: Client) -> bool:
    """Whether a duplicate key may only mean that another writer merged the same node first."""
    return store.engine == "arcadedb"


# Labels and keys cannot be parameters; these are all that is ever asked for.
_ALL: Final = {
    "Graph": "MATCH (x:Graph) RETURN collect(x.graph_id) AS ids",
    "Feature": "MATCH (x:Feature) RETURN collect(x.feature_id) AS ids",
    "FeatureEdge": "MATCH (x:FeatureEdge) RETURN collect(x.edge_id) AS ids",
    "PromptSet": "MATCH (x:PromptSet) RETURN collect(x.name) AS ids",
}
_BY_KEY: Final = {
    "Graph": "UNWIND $ids AS id MATCH (x:Graph {graph_id: id}) RETURN collect(id) AS ids",
    "Feature": "UNWIND $ids AS id MATCH (x:Feature {feature_id: id}) RETURN collect(id) AS ids",
    "FeatureEdge": "UNWIND $ids AS id MATCH (x:FeatureEdge {edge_id: id}) "
    "RETURN collect(id) AS ids",
    "PromptSet": "UNWIND $ids AS id MATCH (x:PromptSet {name: id}) RETURN collect(id) AS ids",
}


def keys_not_found(store: Client, label: str) -> list[str]:
    """Keys that a scan of a label finds and its index does not."""
    scanned = store.rows(_ALL[label])[0]["ids"]
    found: set[str] = set()
    for start in range(0, len(scanned), 20_000):
        found.update(store.rows(_BY_KEY[label], ids=scanned[start : start + 20_000])[0]["ids"])
    return sorted(set(scanned) - found)


def rebuild_index(store: Client, label: str) -> None:
    """Drop the constraint on a label's key, with its index, and make it anew from the records.

    The embedded engine's own ``REBUILD INDEX *`` was seen to drop every constraint of a store and
    keep them from being made again.
    """
    drop = _DROP.format(label.lower())
    store.change(drop)
    for statement in schema_statements():
        store.change(statement)
