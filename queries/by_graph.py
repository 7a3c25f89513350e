"""What each graph of a set has: where comparing, testing and measuring likeness start.

The typed functions answer in long tables, a row an item and graph. :class:`Incidence` holds the
same as sparse matrices, graphs × items; the offline tables make it too, so whatever is computed
from it is the same with and without a database.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csc_array

from queries.asking import Chosen, GraphSet, ask, choose, table, unpacked
from queries.core import check_limit
from queries.library import describe
from tracer.errors import QueryError, nearest

if TYPE_CHECKING:
    from graphstore import Store

__all__ = [
    "Incidence",
    "Labelling",
    "details_of",
    "edge_totals",
    "edges_by_graph",
    "features_by_graph",
    "graph_details",
    "graph_edges",
    "graph_nodes",
    "labels_of",
    "read_edges",
    "read_features",
]

EdgeValue = Literal["weight", "share", "influence"]
# What tells graphs apart: a property of the prompt by its name, or a value for each graph id.
Labelling = str | Mapping[str, Any]

# The library's functions -------------------------------------------------------------------------


def features_by_graph(
    store: Store, prompt_set: GraphSet | None = None, min_graphs: int = 1
) -> pd.DataFrame:
    """Which features act in which graphs.

    Parameters
    ----------
    store
        The store.
    prompt_set
        Graphs of one set, or a list of graphs; left out, all.
    min_graphs
        Features in at least so many of them.

    Returns
    -------
    DataFrame
        A row a feature and graph: ``feature_id``, ``layer``, ``index``, ``label``, ``graph_id``,
        ``influence`` (summed over the feature's nodes in the graph); by feature id, then in the
        order stored.

    Raises
    ------
    NotFoundError
        If no graph or set has the name.
    QueryError
        If `min_graphs` is less than 1.
    """
    query = describe("features_by_graph")
    query.check({"prompt_set": prompt_set, "min_graphs": min_graphs})
    chosen = choose(store, prompt_set=prompt_set)
    return table("features_by_graph", _features(store, chosen, min_graphs))


def edges_by_graph(
    store: Store, prompt_set: GraphSet | None = None, min_graphs: int = 2
) -> pd.DataFrame:
    """Which pairs of features have an edge in which graphs.

    Parameters
    ----------
    store
        The store.
    prompt_set
        Graphs of one set, or a list of graphs; left out, all.
    min_graphs
        Pairs in at least so many of them. With 1, a store of a thousand graphs answers with
        millions of rows: :mod:`queries.offline` is made for that.

    Returns
    -------
    DataFrame
        A row a pair and graph: ``source``, ``target`` (feature ids), ``graph_id``, ``weight``
        (signed sum over the pair's edges), ``share`` (of the target's input, in [0, 1]),
        ``influence`` (that runs over the pair; nan where an old store does not hold it); by
        source, target, then in the order stored.

    Raises
    ------
    NotFoundError
        If no graph or set has the name.
    QueryError
        If `min_graphs` is less than 1.
    """
    query = describe("edges_by_graph")
    query.check({"prompt_set": prompt_set, "min_graphs": min_graphs})
    chosen = choose(store, prompt_set=prompt_set)
    return table("edges_by_graph", _edges(store, chosen, min_graphs))


def edge_totals(store: Store, prompt_set: GraphSet | None = None) -> pd.DataFrame:
    """How many pairs of features each graph has, and how strong they are together.

    Parameters
    ----------
    store
        The store.
    prompt_set
        Graphs of one set, or a list of graphs; left out, all.

    Returns
    -------
    DataFrame
        ``graph_id``, ``pairs`` (how many have an edge), ``share`` and ``square``: sums over them
        of their share of the target's input, and of its square; in the order stored.

    Raises
    ------
    NotFoundError
        If no graph or set has the name.
    """
    query = describe("edge_totals")
    query.check({"prompt_set": prompt_set})
    chosen = choose(store, prompt_set=prompt_set)
    found = unpacked(ask(store, query, graph_ids=chosen.ids)).set_index("graph_id")
    found = found.reindex(chosen.ids).fillna(0).rename_axis("graph_id").reset_index()
    return table("edge_totals", found)


def graph_details(store: Store, prompt_set: GraphSet | None = None) -> pd.DataFrame:
    """Describe each graph: its tokens, its answer, and what the file of prompts said.

    Parameters
    ----------
    store
        The store.
    prompt_set
        Graphs of one set, or a list of graphs; left out, all.

    Returns
    -------
    DataFrame
        ``graph_id``, ``slug``, ``prompt``, ``model_id``, ``transcoder_id``, ``features`` (how
        many), ``tokens`` (list), ``target`` (likeliest token), and what the file of prompts said:
        ``template``, ``family``, ``answer``, ``hops``, ``language``, ``split``, ``metadata``
        (JSON, all of it); in the order stored, or named.

    Raises
    ------
    NotFoundError
        If no graph or set has the name.
    """
    query = describe("graph_details")
    query.check({"prompt_set": prompt_set})
    return details_of(store, choose(store, prompt_set=prompt_set))


def graph_nodes(store: Store, graph_id: str) -> pd.DataFrame:
    """Every node of a graph.

    Parameters
    ----------
    store
        The store.
    graph_id
        The graph, by id, beginning of an id or slug.

    Returns
    -------
    DataFrame
        ``node_id``, ``kind``, ``layer``, ``position``, ``index``, ``token``, ``label``,
        ``influence``, ``probability`` (nan but for logits); in the order of its matrix.

    Raises
    ------
    NotFoundError
        If no graph has the name.
    """
    query = describe("graph_nodes")
    query.check({"graph_id": graph_id})
    found = unpacked(ask(store, query, graph_id=store.find(graph_id)))
    found["label"] = found["label"].replace("", None)
    found["probability"] = found["probability"].astype("float64").where(lambda p: p >= 0)
    return table("graph_nodes", found)


def graph_edges(store: Store, graph_id: str) -> pd.DataFrame:
    """Every edge of a graph.

    Parameters
    ----------
    store
        The store.
    graph_id
        The graph, by id, beginning of an id or slug.

    Returns
    -------
    DataFrame
        ``source``, ``target`` (node ids), ``weight`` (signed), ``share`` (of the target's input),
        ``score`` (influence that runs over it); by falling score.

    Raises
    ------
    NotFoundError
        If no graph has the name.
    """
    query = describe("graph_edges")
    query.check({"graph_id": graph_id})
    found = unpacked(ask(store, query, graph_id=store.find(graph_id)))
    order = found.sort_values(["score", "source", "target"], ascending=[False, True, True])
    return table("graph_edges", order)


def details_of(store: Store, chosen: Chosen) -> pd.DataFrame:
    """Answer :func:`graph_details` for graphs that are chosen already, in their order."""
    found = ask(store, describe("graph_details"), graph_ids=chosen.ids)
    found["target"] = [
        tokens[int(np.argmax(probabilities))] if len(probabilities) else None
        for tokens, probabilities in zip(found["targets"], found["probabilities"], strict=True)
    ]
    found = found.set_index("graph_id").loc[chosen.ids].rename_axis("graph_id").reset_index()
    return table("graph_details", found)


def _features(store: Store, chosen: Chosen, least: int) -> pd.DataFrame:
    check_limit("features_by_graph", least, "min_graphs", 1)
    query = describe("features_by_graph")
    found = unpacked(ask(store, query, graph_ids=chosen.ids, min_graphs=least))
    found["label"] = found["label"].replace("", None)
    return _long(found, {"influences": "influence"}, chosen, ["feature_id"])


def _edges(store: Store, chosen: Chosen, least: int) -> pd.DataFrame:
    check_limit("edges_by_graph", least, "min_graphs", 1)
    query = describe("edges_by_graph")
    lists = {"weights": "weight", "shares": "share", "influences": "influence"}
    if least == 1:  # by graph: most pairs are in few graphs, and those of others are not looked at
        made = _by_graph(ask(store, query, "graphs", graph_ids=chosen.ids), chosen)
    else:
        found = ask(store, query, "pairs", flags=chosen.flags, min_graphs=least)
        made = _long(unpacked(found), lists, chosen, ["source", "target"])
    made["influence"] = made["influence"].where(made["influence"] >= 0)
    return made


def _by_graph(found: pd.DataFrame, chosen: Chosen) -> pd.DataFrame:
    """Turn a row a graph, with lists over its pairs, into a row a pair and graph."""
    counts = [len(pairs) for pairs in found["source"]]
    names = dict(zip(chosen.gnos, chosen.ids, strict=True))
    gnos = np.repeat(found["gno"].to_numpy(dtype=np.int64), counts)
    made: dict[str, Any] = {
        name: np.array(list(chain.from_iterable(found[name])), dtype=object)
        for name in ("source", "target")
    }
    made["graph_id"] = np.array([names[gno] for gno in gnos.tolist()], dtype=object)
    for name in ("weight", "share", "influence"):
        made[name] = np.fromiter(chain.from_iterable(found[name]), dtype=np.float64)
    frame = pd.DataFrame(made).assign(gno=gnos)
    return frame.sort_values(["source", "target", "gno"]).drop(columns="gno").reset_index(drop=True)


def _long(
    found: pd.DataFrame, lists: Mapping[str, str], chosen: Chosen, keys: list[str]
) -> pd.DataFrame:
    """Turn a row an item, with lists over graphs, into a row an item and graph."""
    counts = [len(gnos) for gnos in found["gnos"]]
    made = {
        str(name): np.repeat(found[name].to_numpy(dtype=object), counts)
        for name in found.columns
        if name not in lists and name != "gnos"
    }
    gnos = np.fromiter(chain.from_iterable(found["gnos"]), dtype=np.int64)
    rank = np.zeros(max(chosen.gnos, default=-1) + 1, dtype=np.int64)
    rank[chosen.gnos] = np.arange(len(chosen.gnos))
    made["graph_id"] = np.array(chosen.ids, dtype=object)[rank[gnos]]
    for name, column in lists.items():
        made[column] = np.fromiter(chain.from_iterable(found[name]), dtype=np.float64)
    frame = pd.DataFrame(made).assign(gno=gnos)
    return frame.sort_values([*keys, "gno"]).drop(columns="gno").reset_index(drop=True)


# Matrices ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Incidence:
    """Which graph has which item (feature, or pair of features), and how strong it is there.

    Attributes
    ----------
    graphs
        A row a graph, in the order of the matrices' rows: ``graph_id`` and more.
    items
        A row an item, in the order of their columns: ``feature_id``, ``layer``, ``index``,
        ``label``; or ``source``, ``target``.
    present
        1.0 where a graph has an item, shape (graphs, items).
    values
        Strength there; the same places, zeros included.
    """

    graphs: pd.DataFrame
    items: pd.DataFrame
    present: csc_array
    values: csc_array

    @classmethod
    def of_long(
        cls, graphs: pd.DataFrame, found: pd.DataFrame, keys: Sequence[str], value: str
    ) -> Incidence:
        """Make it of a long table, a row an item and graph."""
        columns = [c for c in (*keys, "layer", "index", "label") if c in found.columns]
        place = found.groupby(list(keys), sort=True).ngroup().to_numpy(np.int64)
        first = np.unique(place, return_index=True)[1]
        items = found.iloc[first][columns].reset_index(drop=True)
        rows = found["graph_id"].map(_rank(graphs["graph_id"])).to_numpy(np.int64)
        return cls.of_places(graphs, items, rows, place, found[value].to_numpy(np.float64))

    @classmethod
    def of_places(
        cls,
        graphs: pd.DataFrame,
        items: pd.DataFrame,
        rows: NDArray[Any],
        columns: NDArray[Any],
        values: NDArray[Any],
    ) -> Incidence:
        """Make it of one entry a graph and item."""
        items = pd.DataFrame({str(name): _typed(items[name]) for name in items.columns})
        shape = (len(graphs), len(items))
        order = np.lexsort((rows, columns))
        ends = np.concatenate([[0], np.cumsum(np.bincount(columns, minlength=shape[1]))])
        # Made by hand: entries that are 0 stay, they are present.
        strength = csc_array((values[order], rows[order], ends), shape=shape)
        there = csc_array((np.ones(len(rows)), rows[order], ends), shape=shape)
        return cls(graphs, items, there, strength)

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """In how many graphs each item is."""
        return np.diff(self.present.indptr).astype(np.int64)

    def part(self, columns: NDArray[Any]) -> Incidence:
        """Keep some of the items, and all graphs."""
        return Incidence(
            self.graphs,
            self.items.iloc[columns].reset_index(drop=True),
            self.present[:, columns],
            self.values[:, columns],
        )


def read_features(store: Store, chosen: Chosen, least: int = 1) -> Incidence:
    """Features of graphs, by influence."""
    found = _features(store, chosen, least)
    return Incidence.of_long(details_of(store, chosen), found, ["feature_id"], "influence")


def read_edges(
    store: Store, chosen: Chosen, least: int = 2, value: EdgeValue = "weight"
) -> Incidence:
    """Pairs of features of graphs, by their weight, share or influence."""
    found = _edges(store, chosen, least)
    return Incidence.of_long(details_of(store, chosen), found, ["source", "target"], value)


def _typed(values: pd.Series[Any]) -> pd.Series[Any]:
    """Numbers as integers, texts as objects with None where they are unknown."""
    if values.name in ("layer", "index"):
        return values.astype("int64")
    texts = values.astype(object)
    return texts.where(texts.notna(), None)


def _rank(ids: pd.Series[Any]) -> dict[str, int]:
    return {graph_id: rank for rank, graph_id in enumerate(ids)}


# What tells graphs apart -------------------------------------------------------------------------

_PROPERTIES: Final = (
    *("template", "family", "answer", "hops", "language", "split", "target", "prompt"),
    *("model_id", "transcoder_id", "slug"),
)


def labels_of(graphs: pd.DataFrame, by: Labelling | Callable[[Any], Any], what: str) -> list[Any]:
    """Value of a property for each graph; None where it is unknown.

    Parameters
    ----------
    graphs
        As :func:`graph_details` gives them.
    by
        A column, a key of what the file of prompts said, or a mapping from graph ids.
    what
        What it is for, for messages.

    Raises
    ------
    QueryError
        If no graph has it.
    """
    if isinstance(by, Mapping):
        values = [by.get(graph_id) for graph_id in graphs["graph_id"]]
        name = "the mapping"
    elif by in graphs.columns:
        values = graphs[by].tolist()
        name = repr(by)
    else:
        told = [json.loads(text) if text else {} for text in graphs["metadata"]]
        values = [entry.get(by) for entry in told]
        name = repr(by)
    # pd.NA where it is unknown among integers, nan among numbers and texts of pandas.
    values = [
        None if value is pd.NA or (isinstance(value, float) and value != value) else value
        for value in values
    ]
    if all(value is None for value in values):
        known = {c for c in _PROPERTIES if c in graphs and graphs[c].notna().any()}
        if "metadata" in graphs:
            told = [json.loads(text) for text in graphs["metadata"] if text]
            known |= {key for entry in told for key, v in entry.items() if not _nested(v)}
        hint = nearest(str(by), known) if isinstance(by, str) else ""
        raise QueryError(
            f"no graph has a value of {name}, which is to be the {what}",
            hint
            or "Trace from a file of prompts that says it, or give a mapping from graph ids"
            + (f"; known are {', '.join(sorted(known))}" if known else ""),
        )
    return values


def _nested(value: Any) -> bool:
    return isinstance(value, dict | list)
