"""A library of questions to a store of attribution graphs, each a documented Cypher file.

:func:`names` lists them, :func:`describe` shows one with its text, :func:`run` asks it by name, and
each has a typed function here under its own name. Importing this package imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from queries.core import (
    error_share,
    graphs,
    influence_by_layer,
    influence_by_position,
    path_lengths,
    scores,
    top_nodes,
)
from queries.library import Parameter, Query, describe, names
from queries.mining import (
    features_only_in,
    recurring_edges,
    recurring_features,
    similar_graphs,
)
from queries.walking import (
    feature_occurrences,
    influence_by_length,
    neighbourhood,
    strongest_paths,
    supernode_edges,
)

if TYPE_CHECKING:
    from graphstore import Store

__all__ = [
    "Parameter",
    "Query",
    "describe",
    "error_share",
    "feature_occurrences",
    "features_only_in",
    "graphs",
    "influence_by_layer",
    "influence_by_length",
    "influence_by_position",
    "names",
    "neighbourhood",
    "path_lengths",
    "recurring_edges",
    "recurring_features",
    "run",
    "scores",
    "similar_graphs",
    "strongest_paths",
    "supernode_edges",
    "top_nodes",
]

_FUNCTIONS: Final[dict[str, Callable[..., pd.DataFrame]]] = {
    function.__name__: function
    for function in (
        error_share,
        feature_occurrences,
        features_only_in,
        graphs,
        influence_by_layer,
        influence_by_length,
        influence_by_position,
        neighbourhood,
        path_lengths,
        recurring_edges,
        recurring_features,
        scores,
        similar_graphs,
        strongest_paths,
        supernode_edges,
        top_nodes,
    )
}


def run(store: Store, name: str, /, **parameters: Any) -> pd.DataFrame:
    """Ask a query of the library by its name.

    The same as calling its function: ``run(store, "top_nodes", graph_id="night")`` is
    ``top_nodes(store, graph_id="night")``.

    Parameters
    ----------
    store
        The store.
    name
        One of :func:`names`.
    parameters
        As ``describe(name).parameters`` lists them.

    Raises
    ------
    QueryError
        If the query or a parameter is unknown, missing or mistyped; the message suggests.
    """
    query = describe(name)
    query.check(parameters)
    return _FUNCTIONS[name](store, **parameters)
