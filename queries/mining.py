"""Questions across prompts: what recurs, what tells sets apart, which graphs are alike.

They ask the summaries that the writer keeps (HAS_FEATURE, FeatureEdge), not the nodes, and answer
in lists, so they stay fast over thousands of graphs (measured: ``benchmarks/``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from queries.asking import ask, check_set, choose, table, unpacked
from queries.core import check_limit
from queries.library import describe

if TYPE_CHECKING:
    from graphstore import Store

__all__ = ["features_only_in", "recurring_edges", "recurring_features", "similar_graphs"]


def recurring_features(
    store: Store,
    prompt_set: str | None = None,
    min_graphs: int = 2,
    min_share: float | None = None,
) -> pd.DataFrame:
    """Features that act in several graphs.

    Parameters
    ----------
    store
        The store.
    prompt_set
        Graphs of one set; left out, all.
    min_graphs
        In how many graphs at least.
    min_share
        In which share of the graphs at least, in [0, 1]; given, it replaces `min_graphs`.

    Returns
    -------
    DataFrame
        ``feature_id``, ``layer``, ``index``, ``graphs`` (how many have it), ``share`` (of the
        graphs), ``mean_influence`` (summed over the feature's nodes in a graph, mean of the graphs
        that have it), ``label``; by falling graphs, then influence.

    Raises
    ------
    NotFoundError
        If no set has the name.
    QueryError
        If a parameter is outside what it may be.
    """
    query = describe("recurring_features")
    query.check({"prompt_set": prompt_set, "min_graphs": min_graphs, "min_share": min_share})
    chosen = choose(store, prompt_set=prompt_set)
    least = chosen.at_least("recurring_features", min_graphs, min_share)
    found = unpacked(ask(store, query, graph_ids=chosen.ids, least=least))
    found["share"] = found["graphs"] / max(len(chosen.ids), 1)
    found["label"] = found["label"].replace("", None)
    order = found.sort_values(
        ["graphs", "mean_influence", "feature_id"], ascending=[False, False, True]
    )
    return table("recurring_features", order)


def recurring_edges(
    store: Store,
    prompt_set: str | None = None,
    min_graphs: int = 2,
    min_share: float | None = None,
) -> pd.DataFrame:
    """Pairs of features that have an edge in several graphs.

    Parameters
    ----------
    store
        The store.
    prompt_set
        Graphs of one set; left out, all.
    min_graphs
        In how many graphs at least.
    min_share
        In which share of the graphs at least, in [0, 1]; given, it replaces `min_graphs`.

    Returns
    -------
    DataFrame
        ``source``, ``target`` (feature ids), ``graphs`` (how many have the pair), ``share`` (of the
        graphs), ``mean_weight`` (signed sum over a graph's edges of the pair), ``mean_share`` (mean
        over the target feature's nodes of what the source's nodes add up to, in [0, 1]), both means
        of the graphs that have it; by falling graphs, then mean share.

    Raises
    ------
    NotFoundError
        If no set has the name.
    QueryError
        If a parameter is outside what it may be.
    """
    query = describe("recurring_edges")
    query.check({"prompt_set": prompt_set, "min_graphs": min_graphs, "min_share": min_share})
    chosen = choose(store, prompt_set=prompt_set)
    least = chosen.at_least("recurring_edges", min_graphs, min_share)
    if prompt_set is None:  # every graph of the store counts, so the sums over all of them do
        found = unpacked(ask(store, query, "store", least=least))
    else:
        found = unpacked(ask(store, query, "set", flags=chosen.flags, least=least))
    found["share"] = found["graphs"] / max(len(chosen.ids), 1)
    order = found.sort_values(
        ["graphs", "mean_share", "source", "target"], ascending=[False, False, True, True]
    )
    return table("recurring_edges", order)


def features_only_in(
    store: Store,
    prompt_set: str,
    other: str,
    min_graphs: int = 1,
    min_share: float | None = None,
) -> pd.DataFrame:
    """Features that act in one prompt set and not in another.

    Parameters
    ----------
    store
        The store.
    prompt_set
        The set that they act in.
    other
        The set that has them in no graph.
    min_graphs
        In how many graphs of `prompt_set` at least.
    min_share
        In which share of its graphs at least, in [0, 1]; given, it replaces `min_graphs`.

    Returns
    -------
    DataFrame
        ``feature_id``, ``layer``, ``index``, ``graphs`` (of `prompt_set`, how many have it),
        ``share`` (of its graphs), ``label``; by falling graphs, then layer and index.

    Raises
    ------
    NotFoundError
        If no set has a name.
    QueryError
        If a parameter is outside what it may be.
    """
    query = describe("features_only_in")
    query.check(
        {
            "prompt_set": prompt_set,
            "other": other,
            "min_graphs": min_graphs,
            "min_share": min_share,
        }
    )
    chosen = choose(store, prompt_set=prompt_set)
    check_set(store, other)
    least = chosen.at_least("features_only_in", min_graphs, min_share)
    found = unpacked(ask(store, query, prompt_set=prompt_set, other=other, least=least))
    found["share"] = found["graphs"] / max(len(chosen.ids), 1)
    found["label"] = found["label"].replace("", None)
    order = found.sort_values(
        ["graphs", "layer", "index", "feature_id"], ascending=[False, True, True, True]
    )
    return table("features_only_in", order)


def similar_graphs(
    store: Store, graph_id: str, prompt_set: str | None = None, limit: int = 10
) -> pd.DataFrame:
    """Graphs that share the most features with one.

    Parameters
    ----------
    store
        The store.
    graph_id
        The graph, by id, beginning of an id or slug.
    prompt_set
        Compare with the graphs of one set; left out, with all.
    limit
        How many at most.

    Returns
    -------
    DataFrame
        ``graph_id``, ``other``, ``jaccard`` (features in both over features in either, in (0, 1]),
        ``shared`` (features in both), ``slug`` (of the other); most alike first. Graphs without a
        shared feature are left out.

    Raises
    ------
    NotFoundError
        If no graph or set has the name.
    QueryError
        If `limit` is negative.
    """
    query = describe("similar_graphs")
    query.check({"graph_id": graph_id, "prompt_set": prompt_set, "limit": limit})
    check_limit("similar_graphs", limit)
    graph_id = store.find(graph_id)
    flags = choose(store, prompt_set=prompt_set).flags
    return table("similar_graphs", ask(store, query, graph_id=graph_id, flags=flags, limit=limit))
