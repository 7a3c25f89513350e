"""Attribution graphs in files and in a graph database."""

from __future__ import annotations

from graphstore.files import Limits, read_graph, write_graph
from graphstore.store import Store, connect

__all__ = ["Limits", "Store", "connect", "read_graph", "write_graph"]
