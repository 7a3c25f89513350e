"""The same answers without a database: from Parquet tables, for a hundred thousand prompts.

:func:`write_tables` makes the tables of graphs, :func:`export_tables` of a store;
:func:`open_tables` opens them. The functions named as those of :mod:`queries` answer the same, to
rounding. Needs the extra ``parquet`` (pyarrow).
"""

from __future__ import annotations

from queries.offline.asking import (
    compare_sets,
    features_only_in,
    recurring_edges,
    recurring_features,
    similar_graphs,
    similarity_matrix,
)
from queries.offline.tables import Tables, export_tables, open_tables, write_tables

__all__ = [
    "Tables",
    "compare_sets",
    "export_tables",
    "features_only_in",
    "open_tables",
    "recurring_edges",
    "recurring_features",
    "similar_graphs",
    "similarity_matrix",
    "write_tables",
]
