"""Attribution graphs in files and in a graph database.

Names are loaded when first used: reading files needs no database driver, and the other way round.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from graphstore.files import Limits, read_graph, write_graph
    from graphstore.store import Store, connect

__all__ = ["Limits", "Store", "connect", "read_graph", "write_graph"]

_HOMES: Final = {
    "Limits": "graphstore.files",
    "Store": "graphstore.store",
    "connect": "graphstore.store",
    "read_graph": "graphstore.files",
    "write_graph": "graphstore.files",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
