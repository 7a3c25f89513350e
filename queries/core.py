"""Questions about graphs one by one: what is stored, scores, path lengths, where influence sits.

The figures are those of Circuit Tracing (2025), "Evaluating attribution graphs". The store keeps
influence, its split by path length and the error share on every node, and the normalised share on
every edge, so a sum over nodes or edges tells each figure exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import pandas as pd

from queries.asking import GraphSet, ask, choose, choose_one_or_set, table
from queries.library import Query, describe
from tracer.errors import QueryError, ScoreError

if TYPE_CHECKING:
    from graphstore import Store
    from tracer.graph import Rule

__all__ = [
    "error_share",
    "graphs",
    "influence_by_layer",
    "influence_by_position",
    "path_lengths",
    "scores",
    "top_nodes",
]

Kind = Literal["feature", "error", "embedding", "logit"]

_FIGURES: Final = ("completeness", "replacement", "mean_path_length", "lost")


def graphs(store: Store, prompt_set: GraphSet | None = None) -> pd.DataFrame:
    """List stored graphs, in the order stored.

    Parameters
    ----------
    store
        The store.
    prompt_set
        Those of one set; left out, all.

    Returns
    -------
    DataFrame
        ``graph_id``, ``slug``, ``prompt``, ``model_id``, ``transcoder_id``; counts ``nodes``,
        ``edges``, ``features`` (distinct); ``unpruned``, ``prompt_sets`` (list of names),
        ``created_at`` (of the trace), ``stored_at``.

    Raises
    ------
    NotFoundError
        If no set has the name.
    """
    query = describe("graphs")
    query.check({"prompt_set": prompt_set})
    chosen = choose(store, prompt_set=prompt_set)
    return table("graphs", _in_order(ask(store, query, graph_ids=chosen.ids), chosen.ids))


def scores(
    store: Store,
    graphs: Sequence[str] | str | None = None,
    prompt_set: GraphSet | None = None,
    rule: Rule | None = None,
) -> pd.DataFrame:
    """Completeness, replacement and mean path length of graphs, under one rule of pruning.

    Parameters
    ----------
    store
        The store.
    graphs, prompt_set
        Graphs by id, beginning of an id or slug; or those of a set. Neither: all.
    rule
        ``full``, ``merge``, ``masked``: what the tracer recorded when it pruned the graph.
        ``as_stored``: worked out from the shares and influence of what is stored. Left out:
        ``full`` where it is known, else ``as_stored``.

    Returns
    -------
    DataFrame
        ``graph_id``, ``slug``, ``rule``; ``completeness``, ``replacement`` in [0, 1],
        ``mean_path_length`` in edges, ``lost`` (share of the targets' weight that ends at features
        without inputs), all nan where a graph that was not named does not tell them; the first
        three of the full graph, ``…_full``, nan where unknown.

    Raises
    ------
    NotFoundError
        If no graph or set has a name.
    ScoreError
        If `rule` is unknown for a graph that was named, or for all of them.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Evaluating attribution graphs".
    """
    query = describe("scores")
    given = query.check({"graphs": graphs, "prompt_set": prompt_set, "rule": rule})
    rows = _recorded(store, query, given["graphs"], prompt_set)
    for row in rows:
        row["rule"] = rule or ("as_stored" if row["lost_full"] is None else "full")
        recorded = "full" if row["rule"] == "as_stored" else row["rule"]
        row |= {name: row[f"{name}_{recorded}"] for name in _FIGURES}

    stored = [row for row in rows if row["rule"] == "as_stored"]
    if stored:
        _add_as_stored(store, query, stored)
    elif rule is not None:
        unknown = [row["graph_id"] for row in rows if row[f"lost_{rule}"] is None]
        if unknown and (graphs is not None or len(unknown) == len(rows)):
            raise ScoreError(
                f"graph {unknown[0]} does not tell its scores under rule {rule!r}: it was stored "
                "without the nodes and edges that pruning had removed, and was not pruned here",
                "Use rule as_stored, or prune the unpruned graph with tracer.prune and store that",
            )
    return table("scores", pd.DataFrame(rows, columns=query.columns, dtype=object))


def path_lengths(
    store: Store,
    graph_id: str | None = None,
    prompt_set: GraphSet | None = None,
    pooled: bool = False,
) -> pd.DataFrame:
    """How the influence on the logits spreads over embedding→logit paths of each length.

    Parameters
    ----------
    store
        The store.
    graph_id, prompt_set
        One graph, by id, beginning of an id or slug; or those of a set. Neither: all.
    pooled
        One distribution for all of them, instead of one each.

    Returns
    -------
    DataFrame
        ``graph_id`` (None if pooled), ``length`` in edges, ``mass`` (``m_k = wᵀÂᵏ1_emb``; pooled,
        the mean over the graphs), ``share`` (of all mass), ``cumulative`` (share up to this
        length).

    Raises
    ------
    NotFoundError
        If no graph or set has the name.
    QueryError
        If both are given.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Evaluating attribution graphs", average path length.
    """
    query = describe("path_lengths")
    query.check({"graph_id": graph_id, "prompt_set": prompt_set, "pooled": pooled})
    names = None if graph_id is None else [graph_id]
    chosen = choose_one_or_set(store, "path_lengths", names, prompt_set)
    found = _in_order(ask(store, query, graph_ids=chosen.ids), chosen.ids)
    found = found.astype({"length": "int64", "mass": "float64"})
    if pooled:
        found = found.groupby("length")[["mass"]].sum().reset_index()
        found["mass"] /= max(len(chosen.ids), 1)
        found["graph_id"] = None
    # One group for all where ids are None: they are not dropped.
    masses = found.groupby("graph_id", sort=False, dropna=False)["mass"]
    total = masses.transform("sum")
    found["share"] = found["mass"] / total
    found["cumulative"] = masses.cumsum() / total
    return table("path_lengths", found)


def top_nodes(
    store: Store, graph_id: str, kind: Kind | None = None, limit: int = 20
) -> pd.DataFrame:
    """Nodes of a graph with the most influence on its logits.

    Parameters
    ----------
    store
        The store.
    graph_id
        The graph, by id, beginning of an id or slug.
    kind
        ``feature``, ``error``, ``embedding`` or ``logit``; left out, all.
    limit
        How many at most.

    Returns
    -------
    DataFrame
        ``node_id``, ``kind``, ``layer``, ``position``, ``index`` (of the feature; token id of
        embeddings and logits; else −1), ``token``, ``label``, ``activation``, ``probability``,
        ``influence``, ``error_fraction`` (of the node's input), ``influence_full`` (in the
        unpruned graph); unknown numbers are nan.

    Raises
    ------
    NotFoundError
        If no graph has the name.
    QueryError
        If `kind` is unknown or `limit` is negative.
    """
    query = describe("top_nodes")
    query.check({"graph_id": graph_id, "kind": kind, "limit": limit})
    check_limit("top_nodes", limit)
    found = ask(store, query, graph_id=store.find(graph_id), kind=kind, limit=limit)
    return table("top_nodes", found)


def influence_by_position(store: Store, graph_id: str) -> pd.DataFrame:
    """Influence on the logits at each position of the prompt.

    Parameters
    ----------
    store
        The store.
    graph_id
        The graph, by id, beginning of an id or slug.

    Returns
    -------
    DataFrame
        ``position``, ``token``, ``nodes`` (how many), ``influence`` (summed over them), ``share``
        (of the influence of all nodes), and its parts by kind ``embedding``, ``feature``,
        ``error``. Logits count as nodes, at the last position, and have no influence.

    Raises
    ------
    NotFoundError
        If no graph has the name.
    """
    return _influence_by("influence_by_position", store, graph_id)


def influence_by_layer(store: Store, graph_id: str) -> pd.DataFrame:
    """Influence on the logits at each layer.

    Parameters
    ----------
    store
        The store.
    graph_id
        The graph, by id, beginning of an id or slug.

    Returns
    -------
    DataFrame
        ``layer`` (−1: embeddings; the last: logits), ``nodes`` (how many), ``influence`` (summed
        over them), ``share`` (of the influence of all nodes), and its parts by kind
        ``embedding``, ``feature``, ``error``.

    Raises
    ------
    NotFoundError
        If no graph has the name.
    """
    return _influence_by("influence_by_layer", store, graph_id)


def error_share(
    store: Store,
    graph_id: str | None = None,
    prompt_set: GraphSet | None = None,
    by: Literal["layer", "position", "token"] = "layer",
) -> pd.DataFrame:
    """Where the unexplained part sits: influence of the error nodes, by layer, position or token.

    An error node's influence is ``Σ_t Â[t, s]·(I_t + w_t)``, its part of what completeness counts
    as unexplained; so the parts add up to both scores' losses.

    Parameters
    ----------
    store
        The store.
    graph_id, prompt_set
        One graph, by id, beginning of an id or slug; or those of a set. Neither: all. Over
        several graphs, numerators and denominators are summed.
    by
        ``layer``, ``position`` or ``token``.

    Returns
    -------
    DataFrame
        ``layer``, ``position``, ``token`` (two of them unknown, as `by` says), ``nodes`` (how many
        error nodes), ``influence`` (summed over them), ``share`` (of all error nodes' influence),
        ``completeness_lost`` (of ``Σ_t (I_t + w_t)``; sums to 1 − completeness),
        ``replacement_lost`` (of ``I_emb + I_err``; sums to 1 − replacement), as stored. In the
        order of layers or positions; tokens by influence.

    Raises
    ------
    NotFoundError
        If no graph or set has the name.
    QueryError
        If both are given, or `by` is unknown.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Evaluating attribution graphs".
    """
    query = describe("error_share")
    query.check({"graph_id": graph_id, "prompt_set": prompt_set, "by": by})
    names = None if graph_id is None else [graph_id]
    ids = choose_one_or_set(store, "error_share", names, prompt_set).ids
    totals = ask(store, query, "totals", graph_ids=ids).iloc[0]
    found = ask(store, query, "errors", graph_ids=ids, by=by).astype({"influence": "float64"})
    found["share"] = found["influence"] / found["influence"].sum()
    found["completeness_lost"] = found["influence"] / totals["through"]
    found["replacement_lost"] = found["influence"] / totals["sources"]
    if by == "token":
        found = found.sort_values(["influence", "token"], ascending=[False, True])
    else:
        found = found.sort_values(by)
    return table("error_share", found)


# How it is done --------------------------------------------------------------------------------


def check_limit(query: str, limit: int, name: str = "limit", least: int = 0) -> None:
    """Check a number that the text takes as a limit.

    Raises
    ------
    QueryError
        If it is less than `least`.
    """
    if limit < least:
        raise QueryError(f"query {query}: {name} is {limit}", f"Give a number from {least}")


def _in_order(found: pd.DataFrame, ids: list[str]) -> pd.DataFrame:
    """Rows in the order of their graphs' ids in a list."""
    place = {graph_id: i for i, graph_id in enumerate(ids)}
    order = found["graph_id"].map(place).sort_values(kind="stable").index
    return found.loc[order].reset_index(drop=True)


def _recorded(
    store: Store, query: Query, names: Sequence[str] | None, prompt_set: GraphSet | None
) -> list[dict[str, Any]]:
    """Ask what the records of graphs tell, in the order of the graphs."""
    if names is not None and prompt_set is None:
        # Mostly they are ids: then there is no need to look for a graph by its name.
        rows = _by_graph(ask(store, query, "recorded", graph_ids=list(names)))
        if all(name in rows for name in names):
            return [rows[name] for name in dict.fromkeys(names)]
    chosen = choose_one_or_set(store, "scores", names, prompt_set)
    rows = _by_graph(ask(store, query, "recorded", graph_ids=chosen.ids))
    return [rows[graph_id] for graph_id in chosen.ids if graph_id in rows]


def _add_as_stored(store: Store, query: Query, rows: list[dict[str, Any]]) -> None:
    """Give rows the scores of their graphs' stored edges.

    Two statements: in one, the engines go over the nodes once more for every error edge.
    """
    ids = [row["graph_id"] for row in rows]
    sums = _by_graph(ask(store, query, "as_stored", graph_ids=ids))
    errors = _by_graph(ask(store, query, "unexplained", graph_ids=ids))
    for row in rows:
        row |= dict.fromkeys(_FIGURES)
        found = sums.get(row["graph_id"])
        if found is not None:
            row |= {name: found[name] for name in _FIGURES if name in found}
            unexplained = errors.get(row["graph_id"], {}).get("unexplained") or 0.0
            if found["through"] > 0:
                row["completeness"] = 1.0 - unexplained / found["through"]


def _by_graph(answer: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Rows by their graph; an unknown figure is None."""
    columns = [str(name) for name in answer.columns]
    values = zip(*(answer[name].astype(object).tolist() for name in columns), strict=True)
    rows: Iterator[dict[str, Any]] = (
        {
            name: None if isinstance(value, float) and math.isnan(value) else value
            for name, value in zip(columns, row, strict=True)
        }
        for row in values
    )
    return {row["graph_id"]: row for row in rows}


def _influence_by(name: str, store: Store, graph_id: str) -> pd.DataFrame:
    query = describe(name)
    query.check({"graph_id": graph_id})
    found = ask(store, query, graph_id=store.find(graph_id)).astype({"influence": "float64"})
    total = found["influence"].sum()
    found["share"] = found["influence"] / (total if total > 0 else 1.0)
    return table(name, found)
