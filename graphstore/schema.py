"""The database schema: labels, keys, constraints, and its version.

One label a kind of thing, one key a label; a label and a relationship type never share a name.
``Vault`` is the store's own record: its schema version, and the counter that numbers graphs. Who
changes summaries locks it first, so summaries have one writer at a time on either engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tracer.errors import SchemaVersionError

if TYPE_CHECKING:
    from graphstore.client import Client

__all__ = ["INDEXES", "KEYS", "SCHEMA_VERSION", "VAULT", "ensure_schema"]

SCHEMA_VERSION: Final = 1
VAULT: Final = "circuitbase"

# label -> the property that identifies it
KEYS: Final = {
    "Vault": "vault_id",
    "Model": "model_id",
    "Transcoder": "transcoder_id",
    "Feature": "feature_id",
    "Graph": "graph_id",
    "Node": "node_id",
    "Supernode": "supernode_id",
    "PromptSet": "name",
    "Corpus": "corpus_id",
    "GlobalWeights": "weights_id",
    "FeatureEdge": "edge_id",
    "Circuit": "name",
}

# What people look up beside the keys. None on n_graphs: it changes with every graph, and a range
# index on a changing property is slow to ask on the embedded engine.
INDEXES: Final = {
    "graph_slug": ("Graph", "slug"),
    "graph_gno": ("Graph", "gno"),
    "supernode_graph": ("Supernode", "graph_id"),
}

_VAULT: Final = """
MERGE (v:Vault {vault_id: $vault}) ON CREATE SET v.schema_version = $version, v.next_gno = 0
"""
# Schema statements take no parameters; every name below is one of the constants above.
_CONSTRAINT: Final = "CREATE CONSTRAINT {0}_key IF NOT EXISTS FOR (x:{1}) REQUIRE x.{2} IS UNIQUE"
_INDEX: Final = "CREATE INDEX {0} IF NOT EXISTS FOR (x:{1}) ON (x.{2})"


def schema_statements() -> list[str]:
    """Statements that make constraints and indexes, each a no-op where they exist."""
    return [
        *(_CONSTRAINT.format(label.lower(), label, key) for label, key in KEYS.items()),
        *(_INDEX.format(name, label, key) for name, (label, key) in INDEXES.items()),
    ]


def ensure_schema(store: Client) -> None:
    """Make what an empty store lacks, and refuse a store of another version.

    Raises
    ------
    SchemaVersionError
        If a newer or an older circuitbase wrote the store.
    """
    found = store.rows(
        "MATCH (v:Vault {vault_id: $vault}) RETURN v.schema_version AS version", vault=VAULT
    )
    if not found:
        for statement in schema_statements():
            store.change(statement)
        store.transact(
            lambda tx: tx.run(_VAULT, vault=VAULT, version=SCHEMA_VERSION).consume(), merges=True
        )
        return
    written = found[0]["version"]
    if written != SCHEMA_VERSION:
        newer = isinstance(written, int) and written > SCHEMA_VERSION
        raise SchemaVersionError(
            f"store {store.address} has schema version {written}, "
            f"this circuitbase knows {SCHEMA_VERSION}",
            "Upgrade circuitbase (pip install --upgrade circuitbase)"
            if newer
            else "Export it with the version that wrote it (circuitbase export --all DIR) "
            "and import that folder into a new store",
        )
    # A database made by neo4j-admin import has the records, not yet the constraints.
    if len(store.rows("SHOW CONSTRAINTS")) < len(KEYS):
        for statement in schema_statements():
            store.change(statement)
