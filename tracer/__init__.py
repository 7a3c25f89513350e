"""Attribution graphs: the object, its influence, pruning and scores.

Importing this package imports neither torch nor NumPy: each name below loads its file when it is
first used (PEP 562), so that a command which only asks for help starts at once.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from tracer.errors import CircuitError, CircuitWarning

if TYPE_CHECKING:
    from tracer.convert import from_networkx, from_pandas, to_networkx, to_pandas
    from tracer.graph import AttributionGraph, Scores, Supernode
    from tracer.influence import (
        Flow,
        edge_scores,
        error_fraction,
        influence,
        influence_by_length,
        normalised,
        path_lengths,
    )
    from tracer.pruning import prune, prune_masks
    from tracer.scores import (
        all_scores,
        completeness_score,
        mean_path_length,
        replacement_score,
        scores,
    )

__all__ = [
    "AttributionGraph",
    "CircuitError",
    "CircuitWarning",
    "Flow",
    "Scores",
    "Supernode",
    "all_scores",
    "completeness_score",
    "edge_scores",
    "error_fraction",
    "from_networkx",
    "from_pandas",
    "influence",
    "influence_by_length",
    "mean_path_length",
    "normalised",
    "path_lengths",
    "prune",
    "prune_masks",
    "replacement_score",
    "scores",
    "to_networkx",
    "to_pandas",
]

_FILES: Final = {
    "tracer.convert": ("from_networkx", "from_pandas", "to_networkx", "to_pandas"),
    "tracer.graph": ("AttributionGraph", "Scores", "Supernode"),
    "tracer.influence": (
        "Flow",
        "edge_scores",
        "error_fraction",
        "influence",
        "influence_by_length",
        "normalised",
        "path_lengths",
    ),
    "tracer.pruning": ("prune", "prune_masks"),
    "tracer.scores": (
        "all_scores",
        "completeness_score",
        "mean_path_length",
        "replacement_score",
        "scores",
    ),
}
_FILE_OF: Final = {name: file for file, names in _FILES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _FILE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_FILE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))


class _Package(ModuleType):
    """Package that keeps its functions apart from its files of the same name.

    Importing the file ``tracer.influence`` would otherwise put the file where users find the
    function ``tracer.influence`` (and ``scores`` likewise).
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, ModuleType) and name in _FILE_OF):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
