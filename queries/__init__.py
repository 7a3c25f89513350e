"""A library of questions to a store of attribution graphs, each a documented Cypher file.

:func:`names` lists them, :func:`describe` shows one with its text, :func:`run` asks it by name, and
each has a typed function here under its own name. Importing this package imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from queries.by_graph import (
    edge_totals,
    edges_by_graph,
    features_by_graph,
    graph_details,
    graph_edges,
    graph_nodes,
)
from queries.comparing import compare
from queries.comparing_graphs import GraphComparison
from queries.comparing_sets import SetComparison
from queries.consensus import ConsensusCircuit, consensus_circuit, coverage
from queries.consensus_kept import keep_circuit, read_circuit
from queries.core import (
    error_share,
    graphs,
    influence_by_layer,
    influence_by_position,
    path_lengths,
    scores,
    top_nodes,
)
from queries.described import feature_examples, features
from queries.global_comparing import local_against_global
from queries.global_features import global_inputs, global_outputs, hubs
from queries.global_pairs import candidate_pairs, interference
from queries.global_walking import global_paths
from queries.library import Parameter, Query, describe, names
from queries.mining import (
    family_minus_common,
    features_only_in,
    recurring_edges,
    recurring_features,
    similar_graphs,
)
from queries.motifs import motifs, recurring_paths
from queries.roles import position_roles
from queries.similarity import Similarity, clusters, map_of, similarity_matrix
from queries.templates import TemplateControl, template_control
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
    "ConsensusCircuit",
    "GraphComparison",
    "Parameter",
    "Query",
    "SetComparison",
    "Similarity",
    "TemplateControl",
    "candidate_pairs",
    "clusters",
    "compare",
    "consensus_circuit",
    "coverage",
    "describe",
    "edge_totals",
    "edges_by_graph",
    "error_share",
    "family_minus_common",
    "feature_examples",
    "feature_occurrences",
    "features",
    "features_by_graph",
    "features_only_in",
    "global_inputs",
    "global_outputs",
    "global_paths",
    "graph_details",
    "graph_edges",
    "graph_nodes",
    "graphs",
    "hubs",
    "influence_by_layer",
    "influence_by_length",
    "influence_by_position",
    "interference",
    "keep_circuit",
    "local_against_global",
    "map_of",
    "motifs",
    "names",
    "neighbourhood",
    "path_lengths",
    "position_roles",
    "read_circuit",
    "recurring_edges",
    "recurring_features",
    "recurring_paths",
    "run",
    "scores",
    "similar_graphs",
    "similarity_matrix",
    "strongest_paths",
    "supernode_edges",
    "template_control",
    "top_nodes",
]

_FUNCTIONS: Final[dict[str, Callable[..., pd.DataFrame]]] = {
    function.__name__: function
    for function in (
        candidate_pairs,
        edge_totals,
        edges_by_graph,
        error_share,
        family_minus_common,
        feature_examples,
        feature_occurrences,
        features,
        features_by_graph,
        features_only_in,
        global_inputs,
        global_outputs,
        global_paths,
        graph_details,
        graph_edges,
        graph_nodes,
        graphs,
        hubs,
        influence_by_layer,
        influence_by_length,
        influence_by_position,
        interference,
        local_against_global,
        motifs,
        neighbourhood,
        path_lengths,
        position_roles,
        recurring_edges,
        recurring_features,
        recurring_paths,
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
