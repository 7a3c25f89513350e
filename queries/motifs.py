"""Chains and small subgraphs of features that recur over a set of prompts.

Exact frequent-subgraph growth. A feature is the same in every graph, so a subgraph is a set of
pairs of features, and a graph has it if it has every pair: the graphs of a subgraph are the
intersection of those of its pairs, as sets of bits. Growth goes by one edge at a time, and only
from what recurs: no subgraph recurs in more graphs than a part of it (the a-priori rule), and every
connected subgraph has a connected part with one edge less, so none is missed.

Positions are dropped: a pair stands for an edge between any nodes of its two features, so two pairs
that meet in a feature may do so at different positions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from queries.asking import Chosen, GraphSet, ask, comparable, table
from queries.core import check_limit
from queries.library import Query, describe

if TYPE_CHECKING:
    from graphstore import Store

__all__ = ["Found", "Pairs", "Shape", "grow_paths", "grow_subgraphs", "motifs", "recurring_paths"]

Shape = Literal["any", "chain", "fork", "join", "triangle"]
Progress = Callable[[int, int], None]
Bits = NDArray[np.uint64]
Rows = NDArray[np.int32]
Mask = NDArray[np.bool_]

_CHUNK: Final = 1 << 18  # candidates looked at at a time
_HELD: Final = 8  # times the bound, what is held before the weakest are left out
_CANDIDATES: Final = 1 << 26  # candidates of one size, beyond which the weakest are left out

log = logging.getLogger(__name__)


def recurring_paths(
    store: Store,
    prompt_set: GraphSet | None = None,
    min_graphs: int = 2,
    min_share: float | None = None,
    max_length: int = 4,
    limit: int = 1000,
    bound: int = 100_000,
    *,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Chains of features that recur in the same graphs.

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
    max_length
        Most edges of a chain; the least are 2 (one edge: :func:`~queries.recurring_edges`).
    limit
        How many chains at most: those in the most graphs, then the strongest.
    bound
        How many chains of each length are kept and grown. Where there are more, those in fewer
        graphs are left out, and the answer is partial.
    progress
        Called with how many lengths are done, and how many there are.

    Returns
    -------
    DataFrame
        ``path`` (list of feature ids, in the order of influence), ``length`` in edges, ``graphs``
        (how many have all its edges), ``share`` (of the graphs), ``strength`` (product of its
        edges' mean shares), ``complete`` (False in every row of an answer that `bound` made
        partial). ``attrs["complete"]`` says the same, ``attrs["found"]`` how many chains there
        are before `limit`.

    Raises
    ------
    NotFoundError
        If no set or graph has the name.
    QueryError
        If there is no graph, they are of several transcoders, or a parameter is outside what it
        may be.
    """
    name = "recurring_paths"
    query = describe(name)
    query.check(
        {
            "prompt_set": prompt_set,
            "min_graphs": min_graphs,
            "min_share": min_share,
            "max_length": max_length,
            "limit": limit,
            "bound": bound,
        }
    )
    check_limit(name, max_length, "max_length", least=2)
    check_limit(name, limit)
    check_limit(name, bound, "bound", least=1)
    chosen = comparable(store, name, prompt_set)
    least = chosen.at_least(name, min_graphs, min_share)
    pairs = _recurring(store, query, chosen, least)
    found = Found.joined(list(grow_paths(pairs, least, max_length, bound, progress)))
    ids = pairs.features
    rows = found.strongest(limit)
    frame = pd.DataFrame(
        {
            "path": pd.Series(
                [[ids[code] for code in found.items[row] if code >= 0] for row in rows],
                dtype=object,
            ),
            "length": found.sizes[rows],
            "graphs": found.graphs[rows],
            "share": found.graphs[rows] / len(chosen.ids),
            "strength": found.strength[rows],
            "complete": found.complete,
        }
    )
    return _told(table(name, frame), found)


def motifs(
    store: Store,
    prompt_set: GraphSet | None = None,
    min_graphs: int = 2,
    min_share: float | None = None,
    shape: Shape = "any",
    max_size: int = 3,
    limit: int = 1000,
    bound: int = 100_000,
    *,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Small connected subgraphs of features that recur in the same graphs.

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
    shape
        ``chain`` (a→b→c…), ``fork`` (a→b, a→c, …), ``join`` (a→c, b→c, …), ``triangle`` (a→b→c and
        a→c), or ``any`` connected one. Further edges between its features are no matter.
    max_size
        Most edges, at least 2.
    limit
        How many subgraphs at most: those in the most graphs, then the strongest.
    bound
        How many subgraphs of each number of edges are kept and grown. Where there are more, those
        in fewer graphs are left out, and the answer is partial.
    progress
        Called with how many sizes are done, and how many there are.

    Returns
    -------
    DataFrame
        ``shape`` (``other``, where it has no name), ``size`` (edges), ``members`` (feature ids),
        ``edge_ids`` (its edges, ``{source} -> {target}``), ``graphs`` (how many have all of them),
        ``share`` (of the graphs), ``strength`` (product of its edges' mean shares), ``complete``
        (False in every row of an answer that `bound` made partial). ``attrs`` as those of
        :func:`recurring_paths`.

    Raises
    ------
    NotFoundError
        If no set or graph has the name.
    QueryError
        If there is no graph, they are of several transcoders, or a parameter is outside what it
        may be.
    """
    name = "motifs"
    query = describe(name)
    query.check(
        {
            "prompt_set": prompt_set,
            "min_graphs": min_graphs,
            "min_share": min_share,
            "shape": shape,
            "max_size": max_size,
            "limit": limit,
            "bound": bound,
        }
    )
    check_limit(name, max_size, "max_size", least=3 if shape == "triangle" else 2)
    check_limit(name, limit)
    check_limit(name, bound, "bound", least=1)
    chosen = comparable(store, name, prompt_set)
    least = chosen.at_least(name, min_graphs, min_share)
    pairs = _recurring(store, query, chosen, least)
    found = Found.joined(list(grow_subgraphs(pairs, least, max_size, bound, shape, progress)))
    records = []
    for row in found.strongest(limit):
        edges = found.items[row][: found.sizes[row]]
        ends = [(pairs.features[pairs.source[e]], pairs.features[pairs.target[e]]) for e in edges]
        records.append(
            {
                "shape": shape_of(pairs, edges),
                "size": len(edges),
                "members": list(dict.fromkeys(end for pair in ends for end in pair)),
                "edge_ids": [f"{source} -> {target}" for source, target in ends],
                "graphs": found.graphs[row],
                "share": found.graphs[row] / len(chosen.ids),
                "strength": found.strength[row],
                "complete": found.complete,
            }
        )
    return _told(table(name, pd.DataFrame(records, columns=list(query.columns))), found)


def _told(frame: pd.DataFrame, found: Found) -> pd.DataFrame:
    frame.attrs |= {"complete": found.complete, "found": len(found.graphs)}
    if not found.complete:
        log.warning(
            "the answer is partial: more recur than bound lets grow. Raise min_graphs, min_share "
            "or bound"
        )
    return frame


# What recurs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """Pairs of features that recur, with the graphs that have them.

    Attributes
    ----------
    features
        Feature ids, by code.
    source, target
        (e,), codes of the two ends of each pair.
    bits
        (e, w), of each graph whether it has the pair, 64 graphs a word.
    strength
        (e,), mean share of the pair.
    """

    features: list[str]
    source: Rows
    target: Rows
    bits: Bits
    strength: NDArray[np.float64]

    @property
    def graphs(self) -> NDArray[np.int64]:
        """(e,), in how many graphs each pair is."""
        return counted(self.bits)

    @classmethod
    def of(
        cls,
        source: list[str],
        target: list[str],
        graphs: list[list[int]],
        strength: list[float],
        n_graphs: int,
    ) -> Pairs:
        """Make them of ids, and of the places (from 0) of each pair's graphs in the set."""
        codes, names = pd.factorize(np.array([*source, *target], dtype=object))
        ends = codes.astype(np.int32).reshape(2, -1)
        bits = np.zeros((len(source), max(1, -(-n_graphs // 64))), dtype=np.uint64)
        rows = np.repeat(np.arange(len(source)), [len(each) for each in graphs])
        places = np.array([place for each in graphs for place in each], dtype=np.int64)
        np.bitwise_or.at(
            bits, (rows, places // 64), np.uint64(1) << (places % 64).astype(np.uint64)
        )
        return cls(list(names), ends[0], ends[1], bits, np.array(strength, dtype=np.float64))


def _recurring(store: Store, query: Query, chosen: Chosen, least: int) -> Pairs:
    answer = ask(store, query, flags=chosen.flags, least=least).iloc[0]
    place = {gno: i for i, gno in enumerate(sorted(chosen.gnos))}
    graphs = [[place[gno] for gno in gnos] for gnos in answer["gnos"]]
    return Pairs.of(
        answer["source"], answer["target"], graphs, answer["mean_share"], len(chosen.ids)
    )


def counted(bits: Bits) -> NDArray[np.int64]:
    """Count the graphs of each row of bits."""
    found: NDArray[np.int64] = np.bitwise_count(bits).sum(axis=1, dtype=np.int64)
    return found


# Growth ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Patterns of one size or of several.

    Attributes
    ----------
    items
        (m, k), what each consists of (features of a path, edges of a subgraph), −1 beyond its end.
    sizes
        (m,), how many edges each has.
    bits, graphs
        Which graphs have it, and how many.
    strength
        (m,), product of the strengths of its edges.
    complete
        Whether these are all that recur.
    """

    items: Rows
    sizes: NDArray[np.int64]
    bits: Bits
    graphs: NDArray[np.int64]
    strength: NDArray[np.float64]
    complete: bool = True

    @classmethod
    def made(cls, items: Rows, size: int, bits: Bits, strength: NDArray[np.float64]) -> Found:
        """Patterns that all have one number of edges."""
        return cls(items, np.full(len(items), size), bits, counted(bits), strength)

    @classmethod
    def joined(cls, parts: list[Found]) -> Found:
        """Patterns of several sizes, one after another."""
        width = max((part.items.shape[1] for part in parts), default=0)
        if not parts:
            nothing = np.empty(0)
            return cls(
                np.empty((0, 0), np.int32),
                nothing.astype(np.int64),
                np.empty((0, 1), np.uint64),
                nothing.astype(np.int64),
                nothing,
            )
        padded = [
            np.pad(p.items, ((0, 0), (0, width - p.items.shape[1])), constant_values=-1)
            for p in parts
        ]
        return cls(
            np.concatenate(padded),
            np.concatenate([p.sizes for p in parts]),
            np.concatenate([p.bits for p in parts]),
            np.concatenate([p.graphs for p in parts]),
            np.concatenate([p.strength for p in parts]),
            all(p.complete for p in parts),
        )

    def strongest(self, limit: int) -> NDArray[np.intp]:
        """Rows of those in the most graphs, then the strongest, then in order of their items."""
        items = self.items.T[::-1].astype(np.float64)
        order: NDArray[np.intp] = np.lexsort([*items, -self.strength, -self.graphs])
        return order[:limit]

    def only(self, rows: NDArray[np.intp] | Mask, complete: bool | None = None) -> Found:
        """Keep some of them."""
        return Found(
            self.items[rows],
            self.sizes[rows],
            self.bits[rows],
            self.graphs[rows],
            self.strength[rows],
            self.complete if complete is None else complete,
        )

    def bounded(self, bound: int, costs: NDArray[np.int64] | None = None) -> Found:
        """Keep the strongest of them, as many as `bound` and the candidates they give allow."""
        if len(self.graphs) <= bound and (costs is None or costs.sum() <= _CANDIDATES):
            return self
        rows = self.strongest(bound)
        if costs is not None:
            within = np.cumsum(costs[rows]) <= _CANDIDATES
            within[:1] = True
            rows = rows[within]
        return self.only(rows, complete=False)


def grow_paths(
    pairs: Pairs, least: int, max_length: int, bound: int, progress: Progress | None = None
) -> Iterator[Found]:
    """Grow chains of features whose edges are all in at least `least` of the same graphs.

    Parameters
    ----------
    pairs
        What recurs.
    least
        In how many graphs.
    max_length
        Most edges.
    bound
        How many of each length are grown further.
    progress
        Called with how many lengths are done, and how many there are.

    Yields
    ------
    Found
        For each length from 2 on; its items are codes of features. Where what it grew from was
        cut, it is not complete.
    """
    order = np.argsort(pairs.source, kind="stable")
    starts = np.searchsorted(pairs.source[order], np.arange(len(pairs.features) + 1))
    known = pairs.graphs >= least
    level = Found.made(
        np.stack([pairs.source, pairs.target], axis=1), 1, pairs.bits, pairs.strength
    ).only(known)
    for length in range(2, max_length + 1):
        last = level.items[:, -1]
        level = level.bounded(bound, starts[last + 1] - starts[last])
        last = level.items[:, -1]
        pieces = []
        for rows, places in _candidates(starts[last], starts[last + 1]):
            edges = order[places]
            ends = pairs.target[edges]
            bits = level.bits[rows] & pairs.bits[edges]
            good = counted(bits) >= least
            good &= (level.items[rows] != ends[:, None]).all(axis=1)
            pieces.append(
                Found.made(
                    np.concatenate([level.items[rows[good]], ends[good, None]], axis=1),
                    length,
                    bits[good],
                    level.strength[rows[good]] * pairs.strength[edges[good]],
                )
            )
            if sum(len(piece.graphs) for piece in pieces) > _HELD * bound:
                pieces = [Found.joined(pieces).bounded(bound)]
        if progress is not None:
            progress(length - 1, max_length - 1)
        whole = level.complete
        if not pieces:
            return
        level = Found.joined(pieces).bounded(bound)
        level = replace(level, complete=level.complete and whole)
        yield level


def grow_subgraphs(
    pairs: Pairs,
    least: int,
    max_size: int,
    bound: int,
    shape: Shape = "any",
    progress: Progress | None = None,
) -> Iterator[Found]:
    """Grow connected subgraphs whose edges are all in at least `least` of the same graphs.

    Parameters
    ----------
    pairs, least, bound, progress
        As for :func:`grow_paths`.
    max_size
        Most edges.
    shape
        Only these; each of them has a part of its shape with one edge less (a triangle: a chain),
        so growth keeps to it.

    Yields
    ------
    Found
        For each number of edges from 2 on; its items are rows of `pairs`, ascending. Where what
        it grew from was cut, it is not complete.
    """
    ends = np.stack([pairs.source, pairs.target], axis=1)
    incident = np.concatenate([pairs.source, pairs.target])
    edge_of = np.tile(np.arange(len(pairs.source), dtype=np.int32), 2)
    order = np.argsort(incident, kind="stable")
    edge_of = edge_of[order]
    starts = np.searchsorted(incident[order], np.arange(len(pairs.features) + 1))
    edges = np.flatnonzero(pairs.graphs >= least).astype(np.int32)
    level = Found.made(edges[:, None], 1, pairs.bits[edges], pairs.strength[edges])
    most = min(max_size, 3) if shape == "triangle" else max_size
    for size in range(2, most + 1):
        costs = (starts[1:] - starts[:-1])[ends[level.items]].sum(axis=(1, 2))
        level = level.bounded(bound, costs)
        pieces = []
        nodes = ends[level.items].reshape(len(level.items), 2 * (size - 1))
        for column in range(nodes.shape[1]):
            node = nodes[:, column]
            for rows, places in _candidates(starts[node], starts[node + 1]):
                more = edge_of[places]
                new = (level.items[rows] != more[:, None]).all(axis=1)
                rows, more = rows[new], more[new]
                bits = level.bits[rows] & pairs.bits[more]
                good = counted(bits) >= least
                rows, more, bits = rows[good], more[good], bits[good]
                items = np.sort(np.concatenate([level.items[rows], more[:, None]], axis=1), axis=1)
                fits = _has_shape(pairs, items, shape)
                strength = level.strength[rows] * pairs.strength[more]
                pieces.append(Found.made(items[fits], size, bits[fits], strength[fits]))
                if sum(len(piece.graphs) for piece in pieces) > _HELD * bound:
                    pieces = [_once(Found.joined(pieces))]
                    if len(pieces[0].graphs) > _HELD * bound // 2:
                        pieces = [pieces[0].bounded(bound)]
        if progress is not None:
            progress(size - 1, most - 1)
        whole = level.complete
        if not pieces:
            if shape == "triangle":  # nothing was told of chains; that they were cut, must be
                yield level
            return
        level = _once(Found.joined(pieces)).bounded(bound)
        level = replace(level, complete=level.complete and whole)
        if shape != "triangle" or size == most:
            yield level


def _once(found: Found) -> Found:
    """Keep each set of edges once, in whichever order it was found."""
    _, first = np.unique(found.items, axis=0, return_index=True)
    return found.only(first)


def _candidates(
    starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.int64]]]:
    """Rows with the places of their range, one by one: some rows at a time."""
    counts = ends - starts
    first = 0
    sums = np.cumsum(counts)
    while first < len(counts):
        done = int(sums[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(sums, done + _CHUNK, side="right")))
        count = counts[first:last]
        rows = np.repeat(np.arange(first, last), count)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(count) - count, count)
        yield rows, starts[rows] + within
        first = last


def _has_shape(pairs: Pairs, items: Rows, shape: Shape) -> Mask:
    """Which sets of edges are of a shape, or can become a triangle."""
    source, target = pairs.source[items], pairs.target[items]
    size = items.shape[1]
    if shape == "any" or not len(items):
        return np.ones(len(items), np.bool_)
    if shape == "fork":
        return np.asarray((source == source[:, :1]).all(axis=1))
    if shape == "join":
        return np.asarray((target == target[:, :1]).all(axis=1))
    distinct = [_distinct(source), _distinct(target)]
    n_nodes = _distinct(np.concatenate([source, target], axis=1))
    if shape == "triangle" and size == 3:
        # Three edges between three features: one has two outputs, and one two inputs.
        return np.asarray((n_nodes == 3) & (distinct[0] == 2) & (distinct[1] == 2))
    return np.asarray((distinct[0] == size) & (distinct[1] == size) & (n_nodes == size + 1))


def _distinct(values: Rows) -> NDArray[np.int64]:
    """How many different values each row has."""
    ordered = np.sort(values, axis=1)
    found: NDArray[np.int64] = (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1, dtype=np.int64)
    return 1 + found


def shape_of(pairs: Pairs, edges: Rows) -> str:
    """Name of the shape of one set of edges; ``other``, where it has none."""
    items = np.asarray(edges)[None]
    names: tuple[Shape, ...] = ("chain", "fork", "join")
    for name in names:
        if _has_shape(pairs, items, name)[0]:
            return name
    if len(edges) == 3 and _has_shape(pairs, items, "triangle")[0]:
        return "triangle"
    return "other"
