"""Questions across prompts: what recurs, what tells sets apart, which graphs are alike.

They ask the summaries that the writer keeps (HAS_FEATURE, FeatureEdge), not the nodes, and answer
in lists, so they stay fast over thousands of graphs (measured: ``benchmarks/``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd

from queries.asking import (
    GraphSet,
    ask,
    check_share,
    choose,
    comparable,
    one_transcoder,
    table,
    unpacked,
)
from queries.core import check_limit
from queries.library import Query, describe
from queries.roles import Align, labelled_places
from tracer.errors import QueryError

if TYPE_CHECKING:
    from graphstore import Store

__all__ = [
    "family_minus_common",
    "features_only_in",
    "recurring_edges",
    "recurring_features",
    "similar_graphs",
]


def recurring_features(
    store: Store,
    prompt_set: GraphSet | None = None,
    min_graphs: int = 2,
    min_share: float | None = None,
    align: Align = "none",
) -> pd.DataFrame:
    """Features that act in several graphs.

    Parameters
    ----------
    store
        The store.
    prompt_set
        Graphs of one set, or a list of graphs; left out, all.
    min_graphs
        In how many graphs at least.
    min_share
        In which share of the graphs at least, in [0, 1]; given, it replaces `min_graphs`.
    align
        ``none``: wherever they act. ``position``: a feature counts once for each position that it
        acts at. ``role``: once for each place relative to the prompts' roles (``city+1``).

    Returns
    -------
    DataFrame
        ``feature_id``, ``layer``, ``index``, ``graphs`` (how many have it), ``share`` (of the
        graphs), ``mean_influence`` (summed over the feature's nodes in a graph, mean of the graphs
        that have it), ``label``, ``place`` (position or place, where aligned; else None); by
        falling graphs, then influence.

    Raises
    ------
    NotFoundError
        If no set or graph has the name.
    QueryError
        If a parameter is outside what it may be.
    """
    query = describe("recurring_features")
    query.check(
        {"prompt_set": prompt_set, "min_graphs": min_graphs, "min_share": min_share, "align": align}
    )
    chosen = choose(store, prompt_set=prompt_set)
    least = chosen.at_least("recurring_features", min_graphs, min_share)
    if align == "none":
        found = unpacked(ask(store, query, "dropped", graph_ids=chosen.ids, least=least))
        found["place"] = None
    else:
        found = _aligned_features(store, query, chosen.ids, least, align)
    found["share"] = found["graphs"] / max(len(chosen.ids), 1)
    found["label"] = found["label"].replace("", None)
    order = found.sort_values(
        ["graphs", "mean_influence", "feature_id", "place"], ascending=[False, False, True, True]
    )
    return table("recurring_features", order)


def recurring_edges(
    store: Store,
    prompt_set: GraphSet | None = None,
    min_graphs: int = 2,
    min_share: float | None = None,
    align: Align = "none",
) -> pd.DataFrame:
    """Pairs of features that have an edge in several graphs.

    Parameters
    ----------
    store
        The store.
    prompt_set
        Graphs of one set, or a list of graphs; left out, all.
    min_graphs
        In how many graphs at least.
    min_share
        In which share of the graphs at least, in [0, 1]; given, it replaces `min_graphs`.
    align
        ``none``: wherever the two act. ``position``: a pair counts once for each two positions.
        ``role``: once for each two places relative to the prompts' roles.

    Returns
    -------
    DataFrame
        ``source``, ``target`` (feature ids), ``graphs`` (how many have the pair), ``share`` (of the
        graphs), ``mean_weight`` (signed sum over a graph's edges of the pair), ``mean_share`` (mean
        over the target feature's nodes of what the source's nodes add up to, in [0, 1]),
        ``mean_influence`` (of the influence on the logits, what runs over the pair), all means of
        the graphs that have it; ``sign_agreement`` (share of those graphs whose weights have the
        sign that most have), ``source_place``, ``target_place`` (where aligned; else None). By
        falling graphs, then mean share.

    Raises
    ------
    NotFoundError
        If no set or graph has the name.
    QueryError
        If a parameter is outside what it may be.
    """
    query = describe("recurring_edges")
    query.check(
        {"prompt_set": prompt_set, "min_graphs": min_graphs, "min_share": min_share, "align": align}
    )
    chosen = choose(store, prompt_set=prompt_set)
    least = chosen.at_least("recurring_edges", min_graphs, min_share)
    if align != "none":
        found = _aligned_edges(store, query, chosen.ids, least, align)
    else:
        if prompt_set is None:  # every graph of the store counts, so the sums over all of them do
            found = unpacked(ask(store, query, "store", least=least))
        else:
            found = unpacked(ask(store, query, "set", flags=chosen.flags, least=least))
        found["source_place"] = found["target_place"] = None
    # What an older circuitbase wrote, circuitbase verify --repair completes; until then: unknown.
    found.loc[found["mean_influence"] < 0, "mean_influence"] = float("nan")
    positive = found["positive"].where(found["positive"] >= 0).astype("float64")
    of_graphs = positive / found["graphs"]
    found["sign_agreement"] = of_graphs.where(of_graphs >= 0.5, 1 - of_graphs)
    found["share"] = found["graphs"] / max(len(chosen.ids), 1)
    order = found.sort_values(
        ["graphs", "mean_share", "source", "target", "source_place", "target_place"],
        ascending=[False, False, True, True, True, True],
    )
    return table("recurring_edges", order)


def features_only_in(
    store: Store,
    prompt_set: GraphSet,
    other: GraphSet,
    min_graphs: int = 1,
    min_share: float | None = None,
) -> pd.DataFrame:
    """Features that act in one prompt set and not in another.

    Parameters
    ----------
    store
        The store.
    prompt_set
        The set (or list of graphs) that they act in.
    other
        The set (or list) that has them in no graph.
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
    others = choose(store, prompt_set=other)
    least = chosen.at_least("features_only_in", min_graphs, min_share)
    ids = list(dict.fromkeys([*chosen.ids, *others.ids]))
    flags = {"flags": chosen.flags, "other_flags": others.flags}
    found = unpacked(ask(store, query, graph_ids=ids, least=least, **flags))
    found["share"] = found["graphs"] / max(len(chosen.ids), 1)
    found["label"] = found["label"].replace("", None)
    order = found.sort_values(
        ["graphs", "layer", "index", "feature_id"], ascending=[False, True, True, True]
    )
    return table("features_only_in", order)


def family_minus_common(
    store: Store,
    prompt_set: GraphSet,
    others: GraphSet | None = None,
    what: Literal["features", "edges"] = "features",
    min_share: float = 0.5,
    max_other_share: float = 0.1,
) -> pd.DataFrame:
    """Find what a family of prompts has beyond what unrelated prompts have, too.

    Parameters
    ----------
    store
        The store.
    prompt_set
        The family: a set, or a list of graphs.
    others
        Unrelated prompts: a set or a list, of which graphs of the family are left out; left out,
        all other graphs of the same transcoder.
    what
        ``features``, or ``edges`` (pairs of features).
    min_share
        In which share of the family's graphs at least, in [0, 1].
    max_other_share
        In which share of the others at most, in [0, 1].

    Returns
    -------
    DataFrame
        ``feature_id`` (None for edges), ``source``, ``target`` (None for features), ``graphs``,
        ``share`` (of the family), ``other_graphs``, ``other_share`` (of the others; nan where there
        are none), ``difference`` of the two shares, ``mean_influence`` (mean of the family's graphs
        that have it), ``label`` (of the feature). By falling difference, then influence.

    Raises
    ------
    NotFoundError
        If no set or graph has the name.
    QueryError
        If a set is empty, the graphs are of several transcoders, or a share is outside [0, 1].

    References
    ----------
    .. [1] Circuit Tracing (2025), on features that recur over a family of prompts.
    """
    name = "family_minus_common"
    query = describe(name)
    query.check(
        {
            "prompt_set": prompt_set,
            "others": others,
            "what": what,
            "min_share": min_share,
            "max_other_share": max_other_share,
        }
    )
    check_share(name, "max_other_share", max_other_share)
    family = comparable(store, name, prompt_set)
    least = family.at_least(name, 1, min_share)
    if others is None:
        everything = choose(store)
        unrelated = _of_transcoder(store, everything.ids, family.transcoders)
    else:
        given = comparable(store, name, others)
        one_transcoder(name, family, given)
        unrelated = given.ids
    inside = set(family.ids)
    other_ids = [graph_id for graph_id in unrelated if graph_id not in inside]
    if others is not None and not other_ids:
        raise QueryError(
            f"query {name}: every graph of the others is one of the family",
            "Name a set of unrelated prompts",
        )
    other = choose(store, graphs=other_ids)
    flags = {"flags": family.flags, "other_flags": other.flags, "least": least}
    if what == "features":
        ids = [*family.ids, *other_ids]
        found = unpacked(ask(store, query, "features", graph_ids=ids, **flags))
        found["source"] = found["target"] = None
    else:
        found = unpacked(ask(store, query, "edges", **flags))
        found["feature_id"] = found["label"] = None
    n_others = len(other_ids)
    found["share"] = found["graphs"] / len(family.ids)
    found["other_share"] = found["other_graphs"] / n_others if n_others else float("nan")
    found = found[~(found["other_share"] > max_other_share)].copy()
    found["difference"] = found["share"] - found["other_share"].fillna(0.0)
    found.loc[found["mean_influence"] < 0, "mean_influence"] = float("nan")
    found["label"] = found["label"].replace("", None)
    order = found.sort_values(
        ["difference", "mean_influence", "feature_id", "source", "target"],
        ascending=[False, False, True, True, True],
    )
    return table(name, order)


_TRANSCODERS: Final = """
MATCH (g:Graph) WHERE g.complete = true AND g.transcoder_id IN $names
RETURN g.graph_id AS graph_id, g.gno AS gno ORDER BY gno
"""


def _of_transcoder(store: Store, ids: list[str], names: list[str]) -> list[str]:
    found = {row["graph_id"] for row in store.rows(_TRANSCODERS, names=names)}
    return [graph_id for graph_id in ids if graph_id in found]


def similar_graphs(
    store: Store, graph_id: str, prompt_set: GraphSet | None = None, limit: int = 10
) -> pd.DataFrame:
    """Graphs that share the most features with one.

    Parameters
    ----------
    store
        The store.
    graph_id
        The graph, by id, beginning of an id or slug.
    prompt_set
        Compare with the graphs of one set, or of a list; left out, with all.
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


# By position or place -----------------------------------------------------------------------------

_AT_ONCE: Final = 50  # graphs whose nodes or edges travel in one answer


def _aligned_features(
    store: Store, query: Query, ids: list[str], least: int, align: Align
) -> pd.DataFrame:
    """Count features once for each place that they act at."""
    columns = ["feature_id", "layer", "index", "label", "place", "graph", "influence"]
    pieces = [pd.DataFrame(columns=columns)]
    for record in _by_graph(store, query, "nodes", ids):
        place = labelled_places(record, align)
        piece = pd.DataFrame(
            {name: record[name] for name in ("feature_id", "layer", "index", "label", "influence")}
        )
        piece["place"] = [place[position] for position in record["position"]]
        pieces.append(piece.assign(graph=record["graph_id"]))
    nodes = pd.concat([p for p in pieces if len(p)] or pieces[:1], ignore_index=True)
    # First within a graph, where roles of several tokens hold several nodes; then over graphs.
    keys = ["feature_id", "layer", "index", "label", "place"]
    each = nodes.groupby([*keys, "graph"], sort=False)["influence"].sum().reset_index()
    counted = each.groupby(keys, sort=False)["influence"].agg(["size", "mean"]).reset_index()
    found = counted.rename(columns={"size": "graphs", "mean": "mean_influence"})
    return found[found["graphs"] >= least].copy()


def _aligned_edges(
    store: Store, query: Query, ids: list[str], least: int, align: Align
) -> pd.DataFrame:
    """Count pairs once for each two places; only pairs that recur at all can recur at a place."""
    given = choose(store, graphs=ids)
    recur = unpacked(ask(store, query, "set", flags=given.flags, least=least))
    candidates = set(zip(recur["source"], recur["target"], strict=True))
    nodes = {record["graph_id"]: record for record in _by_graph(store, query, "nodes", ids)}
    keys = ["source", "target", "source_place", "target_place"]
    values = ["weight", "share", "influence"]
    pieces = [pd.DataFrame(columns=[*keys, *values])]
    for record in _by_graph(store, query, "edges", ids):
        node = nodes[record["graph_id"]]
        place = labelled_places(node, align)
        n = max(node["ord"], default=-1) + 1
        feature, at = np.empty(n, dtype=object), np.empty(n, dtype=object)
        feature[node["ord"]] = node["feature_id"]
        at[node["ord"]] = [place[position] for position in node["position"]]
        edges = pd.DataFrame(
            {
                "source": feature[record["source"]],
                "target": feature[record["target"]],
                "source_place": at[record["source"]],
                "target_place": at[record["target"]],
                "weight": record["weight"],
                "share": record["share"],
                "influence": record["score"],
            }
        )
        pairs = zip(edges["source"], edges["target"], strict=True)
        edges = edges[[pair in candidates for pair in pairs]]
        if edges.empty:
            continue
        summed = edges.groupby(keys, sort=False)[values].sum().reset_index()
        # As without places: the mean over the target's nodes, here those at this place.
        held = pd.Series(
            1, index=pd.MultiIndex.from_arrays([feature[node["ord"]], at[node["ord"]]])
        )
        counts = held.groupby(level=[0, 1]).sum()
        at_target = pd.MultiIndex.from_frame(summed[["target", "target_place"]])
        summed["share"] /= counts.reindex(at_target).to_numpy()
        pieces.append(summed)
    each = pd.concat([p for p in pieces if len(p)] or pieces[:1], ignore_index=True)
    each["positive"] = (each["weight"] > 0).astype("int64")
    counted = each.groupby(keys, sort=False).agg(
        graphs=("weight", "size"),
        mean_weight=("weight", "mean"),
        mean_share=("share", "mean"),
        mean_influence=("influence", "mean"),
        positive=("positive", "sum"),
    )
    return counted[counted["graphs"] >= least].reset_index()


def _by_graph(
    store: Store, query: Query, statement: str, ids: list[str]
) -> Iterator[dict[str, Any]]:
    """Answers of a statement that returns lists, one record a graph, some graphs at a time."""
    for start in range(0, len(ids), _AT_ONCE):
        part = ask(store, query, statement, graph_ids=ids[start : start + _AT_ONCE])
        for record in part.to_dict("records"):
            yield {str(name): value for name, value in record.items()}
