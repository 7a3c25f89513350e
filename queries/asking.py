"""How the typed functions ask: names resolved, statements run, answers typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pandas as pd

from graphstore.sets import with_above
from queries.library import Query, describe
from tracer.errors import NotFoundError, QueryError, nearest

if TYPE_CHECKING:
    from graphstore import Store

__all__ = [
    "Chosen",
    "GraphSet",
    "ask",
    "check_share",
    "choose",
    "choose_one_or_set",
    "comparable",
    "find_node",
    "one_transcoder",
    "table",
    "unpacked",
]

# Graphs that a question is about: a prompt set (with the sets below it) by name, or graphs, each by
# id, beginning of an id or slug.
GraphSet = str | Sequence[str]


def ask(
    store: Store, query: Query, statement: str | None = None, /, **parameters: Any
) -> pd.DataFrame:
    """Run one statement of a query; its errors carry the query's name.

    Raises
    ------
    QueryError
        If the engine refuses it.
    """
    text = query.statements[statement or query.name]
    answer = store.run_named(query.name, text, parameters)
    # The embedded engine names no columns where there are no rows.
    return answer if len(answer) else pd.DataFrame(columns=returned(text), dtype=object)


def returned(text: str) -> list[str]:
    """Names of the columns that a statement returns.

    Examples
    --------
    >>> returned("MATCH (n) WITH n.a AS b RETURN b, coalesce(n.c, 0) AS d ORDER BY d")
    ['b', 'd']
    """
    last = re.split(r"\bRETURN\b", text)[-1]
    items = re.split(r"\bORDER BY\b|\bLIMIT\b", last)[0]
    while "(" in items:  # commas inside calls part no columns
        items, before = re.sub(r"\([^()]*\)", "", items), items
        if items == before:
            break
    return [item.split(" AS ")[-1].strip() for item in items.split(",")]


def table(query: str, frame: pd.DataFrame) -> pd.DataFrame:
    """Give an answer the columns of its query, in order, and a type each.

    Unknown text is None, an unknown number nan, an unknown integer ``<NA>``.
    """
    made: dict[str, pd.Series[Any]] = {}
    for name in describe(query).columns:
        values = frame[name]
        if name in _INTEGERS:
            known = values.notna().all()
            made[name] = values.astype("int64") if known else values.astype("Int64")
        elif name in _REALS:
            made[name] = values.astype("float64")
        elif name in _BOOLEANS:
            made[name] = values.astype("bool")
        else:
            values = values.astype(object)
            made[name] = values.where(values.notna(), None)
    return pd.DataFrame(made).reset_index(drop=True)


# fmt: off
_INTEGERS: Final = frozenset((
    "layer", "position", "index", "length", "rank", "hop", "graphs", "shared", "nodes", "edges",
    "features", "offset", "other_graphs", "size", "pairs", "hops",
    "cofiring", "inputs", "outputs",
))
_REALS: Final = frozenset((
    "mass", "share", "cumulative", "completeness", "replacement", "mean_path_length", "lost",
    "completeness_full", "replacement_full", "mean_path_length_full", "activation",
    "probability", "influence", "error_fraction", "influence_full", "weight", "score",
    "strength", "embedding", "feature", "error", "completeness_lost", "replacement_lost",
    "mean_influence", "mean_weight", "mean_share", "jaccard", "sign_agreement",
    "mean_activation", "max_activation", "density", "other_share", "difference", "square",
    "era", "twera", "standard_error_era", "standard_error_twera", "expected_source", "input",
    "output", "residual", "local_share", "global_share",
))
# fmt: on
_BOOLEANS: Final = frozenset(["unpruned", "complete", "source_acts"])


def unpacked(answer: pd.DataFrame) -> pd.DataFrame:
    """Turn an answer of one row of lists into a row an item.

    Large answers travel as lists: a row of its own for each item costs several times as much.
    """
    return pd.DataFrame({name: answer[name].iloc[0] for name in answer.columns})


# Graphs ----------------------------------------------------------------------------------------


class Chosen(NamedTuple):
    """The graphs that a question is about.

    Attributes
    ----------
    ids
        Their ids, in the order named or stored.
    flags
        Whether a graph is one of them, by gno: on the embedded engine, a look into a list of
        flags is many times faster than a search in a list of ids.
    gnos
        Their numbers, in the order of `ids`.
    transcoders
        Ids of the transcoders whose features they have, each once.
    """

    ids: list[str]
    flags: list[bool]
    gnos: list[int]
    transcoders: list[str]

    def at_least(self, query: str, min_graphs: int, min_share: float | None) -> int:
        """How many graphs `min_graphs`, or `min_share` where given, ask for.

        Raises
        ------
        QueryError
            If there are fewer than 1, or the share is outside [0, 1].
        """
        if min_share is None:
            if min_graphs < 1:
                raise QueryError(
                    f"query {query}: min_graphs is {min_graphs}", "Give a number from 1"
                )
            return min_graphs
        if not 0 <= min_share <= 1:
            raise QueryError(
                f"query {query}: min_share is {min_share}", "Give a share of graphs, from 0 to 1"
            )
        n = len(self.ids)
        # The fewest graphs whose share, computed the same way as in the answer, is large enough.
        return next((k for k in range(1, n + 1) if k / n >= min_share), max(n, 1))


_ALL: Final = """
MATCH (g:Graph) WHERE g.complete = true
RETURN g.graph_id AS graph_id, g.gno AS gno, g.transcoder_id AS transcoder_id ORDER BY gno
"""
# Sets are nested by their names: capitals/states lies in capitals.
_SET: Final = """
MATCH (p:PromptSet)-[:INCLUDES]->(g:Graph)
WHERE (p.name = $name OR p.name STARTS WITH $below) AND g.complete = true
RETURN DISTINCT g.graph_id AS graph_id, g.gno AS gno, g.transcoder_id AS transcoder_id ORDER BY gno
"""
_NAMED: Final = """
UNWIND $ids AS id
MATCH (g:Graph {graph_id: id}) WHERE g.complete = true
RETURN g.graph_id AS graph_id, g.gno AS gno, g.transcoder_id AS transcoder_id
"""
_SETS: Final = "MATCH (p:PromptSet) RETURN p.name AS name ORDER BY name"


def choose(
    store: Store, graphs: Sequence[str] | None = None, prompt_set: GraphSet | None = None
) -> Chosen:
    """Complete graphs that are named, or of a prompt set, or (neither) of the store.

    Parameters
    ----------
    store
        The store.
    graphs
        Graphs by id, beginning of an id or slug.
    prompt_set
        Name of a set, which stands for its graphs and those of the sets below it
        (``capitals`` for ``capitals/states``, too); or a list, as `graphs`.

    Raises
    ------
    NotFoundError
        If no graph or set has the name; the message suggests the nearest.
    """
    if prompt_set is not None and not isinstance(prompt_set, str):
        graphs = prompt_set
    if graphs is not None:
        return _named(store, graphs)
    if isinstance(prompt_set, str):
        check_set(store, prompt_set)
        return _chosen(store.rows(_SET, name=prompt_set, below=f"{prompt_set}/"))
    return _chosen(store.rows(_ALL))


def _chosen(rows: Sequence[dict[str, Any]]) -> Chosen:
    flags = [False] * (1 + max((row["gno"] for row in rows), default=-1))
    for row in rows:
        flags[row["gno"]] = True
    names = dict.fromkeys(row["transcoder_id"] for row in rows if row["transcoder_id"] is not None)
    return Chosen(
        [row["graph_id"] for row in rows], flags, [row["gno"] for row in rows], list(names)
    )


def _named(store: Store, names: Sequence[str]) -> Chosen:
    """Graphs in the order named, once each; mostly they are ids, which one look-up finds."""
    rows = {row["graph_id"]: row for row in store.rows(_NAMED, ids=list(dict.fromkeys(names)))}
    ids = list(dict.fromkeys(name if name in rows else store.find(name) for name in names))
    if missing := [graph_id for graph_id in ids if graph_id not in rows]:
        rows |= {row["graph_id"]: row for row in store.rows(_NAMED, ids=missing)}
    return _chosen([rows[graph_id] for graph_id in ids if graph_id in rows])


def comparable(store: Store, query: str, prompt_set: GraphSet | None) -> Chosen:
    """Choose graphs whose features can be compared: some, and all of one transcoder.

    Raises
    ------
    NotFoundError
        If no graph or set has the name.
    QueryError
        If there is no graph, or they are of several transcoders, which are named.
    """
    chosen = choose(store, prompt_set=prompt_set)
    if not chosen.ids:
        what = f"set {prompt_set!r}" if isinstance(prompt_set, str) else "the selection"
        raise QueryError(
            f"query {query}: {what} holds no graph",
            "Fill it with circuitbase trace, import or sets make, or name another",
        )
    one_transcoder(query, chosen)
    return chosen


def one_transcoder(query: str, *chosen: Chosen) -> str | None:
    """Id of the one transcoder whose features graphs have; None where none has any.

    Raises
    ------
    QueryError
        If there are several: their features are not comparable.
    """
    names = list(dict.fromkeys(name for each in chosen for name in each.transcoders))
    if len(names) > 1:
        listed = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
        raise QueryError(
            f"query {query}: the graphs have features of {len(names)} transcoders ({listed}), "
            "which are not comparable",
            "Choose graphs of one; circuitbase sets make NAME transcoder_id=… makes a set of them",
        )
    return names[0] if names else None


def check_share(query: str, name: str, value: float) -> None:
    """Check a parameter that is a share.

    Raises
    ------
    QueryError
        If it is outside [0, 1].
    """
    if not 0 <= value <= 1:
        raise QueryError(f"query {query}: {name} is {value}", "Give a share, from 0 to 1")


def choose_one_or_set(
    store: Store, query: str, names: Sequence[str] | None, prompt_set: GraphSet | None
) -> Chosen:
    """Choose as :func:`choose` does, where a question takes graphs or a set.

    Raises
    ------
    QueryError
        If both are given.
    NotFoundError
        If no graph or set has the name.
    """
    if names is not None and prompt_set is not None:
        raise QueryError(f"query {query} was given graphs and a prompt set", "Give one of the two")
    return choose(store, names, prompt_set)


def check_set(store: Store, name: str) -> None:
    """Check that a prompt set exists.

    Raises
    ------
    NotFoundError
        If it does not; the message suggests the nearest.
    """
    known = [row["name"] for row in store.rows(_SETS)]
    if name not in known and not any(each.startswith(f"{name}/") for each in known):
        raise NotFoundError(
            f"no prompt set {name!r} is stored",
            nearest(name, with_above(known)) or "circuitbase sets lists them",
        )


# Nodes -----------------------------------------------------------------------------------------

_NODE: Final = """
UNWIND $ids AS id
MATCH (n:Node {node_id: id})
RETURN n.node_id AS node_id
"""
_NODES: Final = """
MATCH (:Graph {graph_id: $graph_id, complete: true})-[:CONTAINS]->(n:Node)
RETURN n.node_id AS node_id, n.source_id AS source_id, n.source_js_id AS source_js_id
"""


def find_node(store: Store, graph_id: str, name: str) -> str:
    """Id of the node of a graph with this key, node id, or id in the file it came from.

    Raises
    ------
    NotFoundError
        If none has, or more than one; the message suggests the nearest.
    """
    prefix = f"{graph_id}/"
    found = store.rows(_NODE, ids=[prefix + name.removeprefix(prefix)])
    if len(found) == 1:
        return str(found[0]["node_id"])
    nodes = store.rows(_NODES, graph_id=graph_id)
    matches = {row["node_id"] for row in nodes if name in (row["source_id"], row["source_js_id"])}
    if len(matches) == 1:
        return str(matches.pop())
    keys = [row["node_id"].removeprefix(prefix) for row in nodes]
    known = [*keys, *(row["source_id"] for row in nodes if row["source_id"] is not None)]
    raise NotFoundError(
        f"graph {graph_id} has {len(matches) or 'no'} nodes {name!r}",
        nearest(name, known) or "Name nodes as query top_nodes lists them",
    )
