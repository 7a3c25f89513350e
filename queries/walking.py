"""Questions that follow edges: neighbours, paths, influence hop by hop, groups of nodes.

Paths in an attribution graph explode in number, so none of these enumerates them. Influence and
the best way to a target are carried over the edges one hop a statement (dynamic programming); the
k strongest paths then come from a best-first search whose bound is exact.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from queries.asking import GraphSet, ask, choose, find_node, table
from queries.core import check_limit
from queries.library import Query, describe
from tracer.errors import NotFoundError

if TYPE_CHECKING:
    from graphstore import Store

__all__ = [
    "feature_occurrences",
    "influence_by_length",
    "neighbourhood",
    "strongest_paths",
    "supernode_edges",
]

Vector = NDArray[np.float64]
_KINDS: Final = ("feature", "error", "embedding", "logit")


def influence_by_length(store: Store, graph_id: str) -> pd.DataFrame:
    """Influence of every node over paths of exactly k edges, worked out hop by hop.

    The same as each node's ``influence_by_length``, from the edges: ``v_k = v_{k−1}Â``, starting
    with the probabilities of the logits, one statement a hop, until nothing is left.

    Parameters
    ----------
    store
        The store.
    graph_id
        The graph, by id, beginning of an id or slug.

    Returns
    -------
    DataFrame
        ``node_id``, ``length`` in edges, ``influence``; where it is not zero, by length, then in
        the order of the graph's matrix.

    Raises
    ------
    NotFoundError
        If no graph has the name.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Evaluating attribution graphs", path length.
    """
    query = describe("influence_by_length")
    query.check({"graph_id": graph_id})
    graph_id = store.find(graph_id)
    targets = ask(store, query, "targets", graph_id=graph_id).iloc[0]
    node_ids = np.array(targets["node_id"], dtype=object)
    pieces = []
    hops = _hops(store, query, graph_id, np.array(targets["value"], np.float64), "influence")
    for length, values in enumerate(hops, start=1):
        rows = np.flatnonzero(values)
        pieces.append(
            pd.DataFrame({"node_id": node_ids[rows], "length": length, "influence": values[rows]})
        )
    empty = pd.DataFrame({"node_id": [], "length": [], "influence": []})
    return table("influence_by_length", pd.concat(pieces) if pieces else empty)


def neighbourhood(
    store: Store,
    graph_id: str,
    node: str,
    direction: Literal["in", "out", "both"] = "both",
    hops: int = 1,
    min_share: float = 0.0,
    limit: int = 20,
) -> pd.DataFrame:
    """Strongest edges into and out of a node, and those beyond them.

    Parameters
    ----------
    store
        The store.
    graph_id
        The graph, by id, beginning of an id or slug.
    node
        The node, by key (``feature/12/4711/8``), node id, or id in the file it came from.
    direction
        ``in``: towards its inputs; ``out``: towards the logits; ``both``.
    hops
        How many edges to follow; a further hop starts at the nodes that the last one reached.
    min_share
        Edges with a smaller share of their target's input are left out.
    limit
        How many edges at most, for each hop and direction: those with the highest scores.

    Returns
    -------
    DataFrame
        ``direction``, ``hop`` (from 1), ``source``, ``target`` (node ids), ``weight`` (signed),
        ``share`` (of the target's input), ``score`` (influence that runs over the edge); of the
        end that is further away ``kind``, ``layer``, ``position``, ``token``, ``label``. By
        direction, hop, and falling score.

    Raises
    ------
    NotFoundError
        If no graph has the name, or no node of it has.
    QueryError
        If a parameter is outside what it may be.
    """
    query = describe("neighbourhood")
    given = query.check(
        {
            "graph_id": graph_id,
            "node": node,
            "direction": direction,
            "hops": hops,
            "min_share": min_share,
            "limit": limit,
        }
    )
    check_limit("neighbourhood", limit)
    check_limit("neighbourhood", hops, "hops", least=1)
    graph_id = store.find(graph_id)
    start = find_node(store, graph_id, node)
    pieces = []
    for way in ("in", "out") if direction == "both" else (direction,):
        frontier, seen = [start], {start}
        for hop in range(1, hops + 1):
            found = ask(
                store, query, way, nodes=frontier, min_share=given["min_share"], limit=limit
            )
            pieces.append(found.assign(direction=way, hop=hop))
            far = found["source" if way == "in" else "target"]
            frontier = [name for name in dict.fromkeys(far) if name not in seen]
            seen.update(frontier)
            if not frontier:
                break
    filled = [piece for piece in pieces if len(piece)]
    return table("neighbourhood", pd.concat(filled) if filled else pieces[0])


def strongest_paths(
    store: Store,
    graph_id: str,
    source: str = "embedding",
    target: str = "logit",
    limit: int = 10,
    max_length: int | None = None,
) -> pd.DataFrame:
    """Strongest paths between two nodes, or between nodes of two kinds.

    The strength of a path is the product of its shares. Exact: first, the best way from every node
    to a target over each number of edges, one hop a statement; then a best-first search that goes
    on only where the rest, known by then, is best.

    Parameters
    ----------
    store
        The store.
    graph_id
        The graph, by id, beginning of an id or slug.
    source, target
        A kind (``feature``, ``error``, ``embedding``, ``logit``: any node of it), or a node by
        key, node id, or id in the file it came from.
    limit
        How many paths. Which of several equally strong ones are left out is not defined.
    max_length
        Most edges that a path may have; left out, any number.

    Returns
    -------
    DataFrame
        ``rank`` (from 1), ``strength``, ``length`` in edges, ``source``, ``target`` (node ids),
        ``path`` (list of node ids), ``shares`` (list, one an edge).

    Raises
    ------
    NotFoundError
        If no graph has the name, or no node of it has.
    QueryError
        If a parameter is outside what it may be.
    """
    query = describe("strongest_paths")
    query.check(
        {
            "graph_id": graph_id,
            "source": source,
            "target": target,
            "limit": limit,
            "max_length": max_length,
        }
    )
    check_limit("strongest_paths", limit)
    if max_length is not None:
        check_limit("strongest_paths", max_length, "max_length", least=1)
    graph_id = store.find(graph_id)
    ends = ask(store, query, "ends", graph_id=graph_id).iloc[0]
    node_ids, kinds = ends["node_id"], ends["kind"]

    def mask(end: str) -> NDArray[np.bool_]:
        if end in _KINDS:
            return np.array([kind == end for kind in kinds], np.bool_)
        wanted = find_node(store, graph_id, end)
        return np.array([node_id == wanted for node_id in node_ids], np.bool_)

    sources, targets = mask(source), mask(target)
    steps = _hops(store, query, graph_id, targets.astype(np.float64), "strength")
    best = list(itertools.accumulate(itertools.islice(steps, max_length), np.maximum))

    @cache
    def onward(row: int) -> list[tuple[int, float]]:
        found = ask(store, query, "onward", node_id=node_ids[row]).iloc[0]
        return list(zip(found["ord"], found["share"], strict=True))

    paths = best_first(np.flatnonzero(sources).tolist(), targets, best, onward)
    found = sorted(itertools.islice(paths, limit), key=lambda path: (-path.strength, path.rows))
    rows = [
        {
            "rank": rank,
            "strength": path.strength,
            "length": len(path.shares),
            "source": node_ids[path.rows[0]],
            "target": node_ids[path.rows[-1]],
            "path": [node_ids[row] for row in path.rows],
            "shares": list(path.shares),
        }
        for rank, path in enumerate(found, start=1)
    ]
    return table("strongest_paths", pd.DataFrame(rows, columns=list(query.columns)))


def supernode_edges(store: Store, graph_id: str) -> pd.DataFrame:
    """Edges between the supernodes of a graph.

    ``Σ_{t∈T} frac_ext(t)·Σ_{s∈S} Â[t, s] / Σ_{t∈T} frac_ext(t)``, with ``frac_ext(t)`` the share of
    t's input that comes from outside T.

    Parameters
    ----------
    store
        The store.
    graph_id
        The graph, by id, beginning of an id or slug.

    Returns
    -------
    DataFrame
        ``source``, ``target`` (names), ``share`` (the formula's value, in [0, 1]), ``source_id``,
        ``target_id``; strongest first. None into a group without inputs from outside.

    Raises
    ------
    NotFoundError
        If no graph has the name.

    References
    ----------
    .. [1] Circuit Tracing (2025), supernodes; the reference viewer's formula.
    """
    query = describe("supernode_edges")
    query.check({"graph_id": graph_id})
    return table("supernode_edges", ask(store, query, graph_id=store.find(graph_id)))


def feature_occurrences(
    store: Store, feature_id: str, prompt_set: GraphSet | None = None
) -> pd.DataFrame:
    """Where a feature acts: its nodes in every graph.

    Parameters
    ----------
    store
        The store.
    feature_id
        ``{transcoder_id}/{layer}/{index}``.
    prompt_set
        In the graphs of one set, or of a list; left out, in all.

    Returns
    -------
    DataFrame
        ``graph_id``, ``slug``, ``node_id``, ``position``, ``token``, ``activation``,
        ``influence``, ``influence_full`` (in the unpruned graph); unknown numbers are nan. Most
        influence first.

    Raises
    ------
    NotFoundError
        If no feature or set has the name.
    """
    query = describe("feature_occurrences")
    query.check({"feature_id": feature_id, "prompt_set": prompt_set})
    flags = choose(store, prompt_set=prompt_set).flags
    found = ask(store, query, feature_id=feature_id, flags=flags)
    if found.empty and not store.rows(_FEATURE, feature_id=feature_id):
        raise NotFoundError(
            f"no feature {feature_id!r} is stored",
            "Write {transcoder_id}/{layer}/{index}, as query recurring_features lists them",
        )
    return table("feature_occurrences", found)


_FEATURE: Final = "MATCH (f:Feature {feature_id: $feature_id}) RETURN f.feature_id AS feature_id"


# How it is done --------------------------------------------------------------------------------


def _hops(
    store: Store, query: Query, graph_id: str, values: Vector, result: str
) -> Iterator[Vector]:
    """Carry values against the edges, a hop a statement, until all of them are zero."""
    while values.any():
        found = ask(store, query, "hop", graph_id=graph_id, values=values.tolist()).iloc[0]
        values = np.zeros_like(values)
        values[np.array(found["ord"], np.int64)] = found[result]
        if values.any():
            yield values


class Path(NamedTuple):
    rows: tuple[int, ...]
    shares: tuple[float, ...]
    strength: float


def best_first(
    sources: list[int],
    targets: NDArray[np.bool_],
    best: list[Vector],
    onward: Callable[[int], list[tuple[int, float]]],
) -> Iterator[Path]:
    """Paths from sources to targets, strongest first.

    Parameters
    ----------
    sources
        Rows of the nodes to start from.
    targets
        (n,), which nodes are targets.
    best
        At k − 1, shape (n,): strength of the best way from each node to a target over 1 to k
        edges; as many as a path may have.
    onward
        Edges out of a node: rows of their targets, and shares.
    """
    heap: list[tuple[float, int, tuple[int, ...], Path]] = []

    def push(path: Path, rest: float, complete: bool) -> None:
        if path.strength * rest > 0:
            # Rounded, so that paths of one strength are finished one after another, not side by
            # side: among equals the longest goes first.
            bound = round(-math.log(path.strength * rest), 12)
            heapq.heappush(heap, (bound, -2 * len(path.rows) - complete, path.rows, path))

    def push_partial(path: Path) -> None:
        left = len(best) - len(path.shares)
        if left > 0:
            push(path, float(best[left - 1][path.rows[-1]]), complete=False)

    for row in sources:
        push_partial(Path((row,), (), 1.0))
    while heap:
        _, order, _, path = heapq.heappop(heap)
        if order % 2:
            yield path
            continue
        for row, share in onward(path.rows[-1]):
            longer = Path((*path.rows, row), (*path.shares, share), path.strength * share)
            if targets[row]:
                push(longer, 1.0, complete=True)
            push_partial(longer)
