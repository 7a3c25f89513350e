"""Compare two graphs, or two prompt sets.

Names are looked up among the sets and the graphs of the store; the work is done in
:mod:`queries.comparing_graphs` and :mod:`queries.comparing_sets`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from queries.asking import GraphSet, check_set
from queries.comparing_graphs import GraphComparison, compare_graphs
from queries.comparing_sets import SetComparison, compare_sets
from tracer.errors import NotFoundError, QueryError, nearest

if TYPE_CHECKING:
    from graphstore import Store

__all__ = ["compare"]

Kind = Literal["graphs", "sets"]


@overload
def compare(
    store: Store, a: GraphSet, b: GraphSet, kind: Literal["graphs"], **how: Any
) -> GraphComparison: ...
@overload
def compare(
    store: Store, a: GraphSet, b: GraphSet, kind: Literal["sets"], **how: Any
) -> SetComparison: ...
@overload
def compare(
    store: Store, a: GraphSet, b: GraphSet, kind: None = None, **how: Any
) -> GraphComparison | SetComparison: ...
def compare(
    store: Store, a: GraphSet, b: GraphSet, kind: Kind | None = None, **how: Any
) -> GraphComparison | SetComparison:
    """Compare two graphs, or two prompt sets.

    Parameters
    ----------
    store
        The store.
    a, b
        Two graphs, each by id, beginning of an id or slug; or two prompt sets by name; or two
        lists of graphs, which are compared as sets.
    kind
        ``graphs`` or ``sets``, where a name is both.
    **how
        As :func:`~queries.comparing_graphs.compare_graphs` or
        :func:`~queries.comparing_sets.compare_sets` take it.

    Returns
    -------
    GraphComparison or SetComparison

    Raises
    ------
    NotFoundError
        If nothing has a name; the message suggests the nearest.
    QueryError
        If a graph is to be compared with a set, or their transcoders differ.
    """
    if (kind or kind_of(store, a, b)) == "graphs":
        if not (isinstance(a, str) and isinstance(b, str)):
            raise QueryError("a list of graphs is a set", "Give two names of graphs")
        return compare_graphs(store, a, b, **how)
    return compare_sets(store, a, b, **how)


def kind_of(store: Store, a: GraphSet, b: GraphSet) -> Kind:
    """Whether two names are those of graphs or of sets.

    Raises
    ------
    NotFoundError
        If one of them is nothing's.
    QueryError
        If they can be both, or one is a graph's and the other a set's.
    """
    kinds = [_kinds(store, name) for name in (a, b)]
    common = [kind for kind in kinds[0] if kind in kinds[1]]
    if len(common) == 1:
        return common[0]
    if common:
        raise QueryError(
            f"{a!r} and {b!r} are names of graphs and of prompt sets",
            "Say which: --kind graphs or --kind sets; in Python, kind=…",
        )
    graph, other = (a, b) if kinds[0] == ["graphs"] else (b, a)
    raise QueryError(
        f"{graph!r} is a graph and {other!r} a prompt set",
        "Compare two of a kind; circuitbase query similar_graphs sets one graph beside a set",
    )


def _kinds(store: Store, name: GraphSet) -> Sequence[Kind]:
    if not isinstance(name, str):
        return ["sets"]
    found: list[Kind] = []
    graphs: NotFoundError | None = None
    try:
        store.find(name)
        found.append("graphs")
    except NotFoundError as error:
        graphs = error
    try:
        check_set(store, name)
        found.append("sets")
    except NotFoundError:
        if graphs is not None:
            raise _unknown(store, name, graphs) from None
    return found


def _unknown(store: Store, name: str, graphs: NotFoundError) -> NotFoundError:
    if "graphs are called" in graphs.what:
        return graphs
    known = [*store.sets()["name"], *store.graphs()["slug"]]
    return NotFoundError(
        f"no graph and no prompt set {name!r} is stored",
        nearest(name, known) or "circuitbase graphs and circuitbase sets list what is",
    )
