"""Every error that circuitbase raises on purpose, in one tree.

::

    CircuitError
    ├── GraphError              an attribution graph that breaks a rule of its definition
    ├── SettingError            a threshold, rule or option outside what it may be
    ├── FormatError             a file that cannot be read or written, with its name
    ├── TracingError            a model, transcoder or prompt that cannot be traced
    ├── ScoreError              a score that this graph does not determine
    ├── StoreError              the database refused, failed or holds something unexpected
    │   ├── StoreConnectionError    no server, no permission, or it went away
    │   ├── StoreLockedError        another process holds the embedded store
    │   ├── SchemaVersionError      the store was written by another version
    │   └── NotFoundError           no graph, set or node of that name
    └── QueryError              an unknown query, a wrong parameter, a text the engine refuses

Each carries ``what`` (naming the file, field or id) and ``remedy`` (what to do next); its text is
``"what. remedy"``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CircuitError",
    "CircuitWarning",
    "FormatError",
    "GraphError",
    "NotFoundError",
    "QueryError",
    "SchemaVersionError",
    "ScoreError",
    "SettingError",
    "StoreConnectionError",
    "StoreError",
    "StoreLockedError",
    "TracingError",
    "nearest",
]


class CircuitError(Exception):
    """Root of the tree.

    Parameters
    ----------
    what
        What is wrong, naming the file, field or id.
    remedy
        What the reader can do about it.

    Examples
    --------
    >>> str(CircuitError("night.json: file is empty", "Export the graph again"))
    'night.json: file is empty. Export the graph again.'
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        self.what = what.rstrip(".")
        self.remedy = remedy.rstrip(".")
        super().__init__(what, remedy)

    def __str__(self) -> str:
        parts = [part for part in (self.what, self.remedy) if part]
        return " ".join(part if part[-1] in "?!" else f"{part}." for part in parts)


class GraphError(CircuitError):
    """An attribution graph breaks a rule of its definition."""


class SettingError(CircuitError):
    """A threshold, rule or option is outside what it may be."""


class FormatError(CircuitError):
    """A file cannot be read or written."""


class TracingError(CircuitError):
    """A model, transcoder or prompt cannot be traced."""


class ScoreError(CircuitError):
    """A score that this graph does not determine."""


class StoreError(CircuitError):
    """The database refused, failed, or holds something unexpected."""


class StoreConnectionError(StoreError):
    """No server answers, it refuses the credentials, or it went away."""


class StoreLockedError(StoreError):
    """Another process holds the embedded store."""


class SchemaVersionError(StoreError):
    """The store was written by another version of circuitbase."""


class NotFoundError(StoreError):
    """No graph, set or node of that name is stored."""


class QueryError(CircuitError):
    """An unknown query, a wrong parameter, or a text that the engine refuses."""


class CircuitWarning(UserWarning):
    """Something was read or done that the user may not expect."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Word the suggestion of the known name closest to `name`, or nothing.

    Examples
    --------
    >>> nearest("recuring_edges", ["recurring_edges", "scores"])
    'Did you mean "recurring_edges"?'
    """
    found = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f'Did you mean "{found[0]}"?' if found else ""
