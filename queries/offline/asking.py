"""Answers from tables: each part is read once, and sums are carried from part to part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from queries.asking import Chosen, GraphSet, table
from queries.by_graph import EdgeValue, Incidence
from queries.comparing_sets import SetComparison, Settings, compare_incidence
from queries.core import check_limit
from queries.offline.tables import Rows, Tables, check_graphs
from queries.similarity import Items, Measure, Similarity, similarity_of
from tracer.errors import QueryError

__all__ = [
    "compare_sets",
    "features_only_in",
    "recurring_edges",
    "recurring_features",
    "similar_graphs",
    "similarity_matrix",
]

Vector = NDArray[np.float64]
Progress = Callable[[int, int], None]

_RANGE: Final = 8_000_000  # rows of edges that are added up at once
_BITS: Final = 32


def recurring_features(
    tables: Tables,
    prompt_set: GraphSet | None = None,
    min_graphs: int = 2,
    min_share: float | None = None,
) -> pd.DataFrame:
    """Features that act in several graphs; as :func:`queries.recurring_features`."""
    rows = tables.choose(prompt_set)
    least = _least(tables, rows, "recurring_features", min_graphs, min_share)
    counted, n = _flags(tables, rows), len(tables.features)
    graphs, influence = np.zeros(n, np.int64), np.zeros(n)
    for part in tables.chunks("features", ["feature", "graph", "influence"]):
        kept = counted[part["graph"].to_numpy()]
        codes = part["feature"].to_numpy()[kept]
        graphs += np.bincount(codes, minlength=n)
        influence += np.bincount(codes, part["influence"].to_numpy()[kept], minlength=n)
    codes = np.flatnonzero(graphs >= least)
    found = tables.features.iloc[codes].assign(
        graphs=graphs[codes],
        share=graphs[codes] / max(len(rows), 1),
        mean_influence=influence[codes] / graphs[codes],
        place=None,
    )
    order = found.sort_values(
        ["graphs", "mean_influence", "feature_id"], ascending=[False, False, True]
    )
    return table("recurring_features", order)


def recurring_edges(
    tables: Tables,
    prompt_set: GraphSet | None = None,
    min_graphs: int = 2,
    min_share: float | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Pairs of features that have an edge in several graphs; as :func:`queries.recurring_edges`."""
    rows = tables.choose(prompt_set)
    least = _least(tables, rows, "recurring_edges", min_graphs, min_share)
    counted = _flags(tables, rows)
    ranges = list(_ranges(tables))
    pieces = []
    for done, (low, high) in enumerate(ranges, start=1):
        pieces.append(_recurring_between(tables, counted, least, low, high))
        if progress is not None:
            progress(done, len(ranges))
    found = pd.concat(pieces, ignore_index=True)
    names = tables.features["feature_id"].to_numpy(dtype=object)
    keys = found["key"].to_numpy()
    found["source"], found["target"] = names[keys >> _BITS], names[keys & ((1 << _BITS) - 1)]
    for name in ("weight", "share", "influence"):
        found[f"mean_{name}"] = found[name] / found["graphs"]
    positive = found["positive"] / found["graphs"]
    found["sign_agreement"] = np.maximum(positive, 1 - positive)
    found["share"] = found["graphs"] / max(len(rows), 1)
    found["source_place"] = found["target_place"] = None
    order = found.sort_values(
        ["graphs", "mean_share", "source", "target"], ascending=[False, False, True, True]
    )
    return table("recurring_edges", order)


def features_only_in(
    tables: Tables,
    prompt_set: GraphSet,
    other: GraphSet,
    min_graphs: int = 1,
    min_share: float | None = None,
) -> pd.DataFrame:
    """Features that act in one set and not in another; as :func:`queries.features_only_in`."""
    rows = tables.choose(prompt_set)
    least = _least(tables, rows, "features_only_in", min_graphs, min_share)
    here, there = _flags(tables, rows), _flags(tables, tables.choose(other))
    n = len(tables.features)
    inside, outside = np.zeros(n, np.int64), np.zeros(n, np.int64)
    for part in tables.chunks("features", ["feature", "graph"]):
        codes, graphs = part["feature"].to_numpy(), part["graph"].to_numpy()
        inside += np.bincount(codes[here[graphs]], minlength=n)
        outside += np.bincount(codes[there[graphs]], minlength=n)
    codes = np.flatnonzero((inside >= least) & (outside == 0))
    found = tables.features.iloc[codes].assign(
        graphs=inside[codes], share=inside[codes] / max(len(rows), 1)
    )
    order = found.sort_values(
        ["graphs", "layer", "index", "feature_id"], ascending=[False, True, True, True]
    )
    return table("features_only_in", order)


def similar_graphs(
    tables: Tables, graph_id: str, prompt_set: GraphSet | None = None, limit: int = 10
) -> pd.DataFrame:
    """Graphs that share the most features with one; as :func:`queries.similar_graphs`."""
    check_limit("similar_graphs", limit)
    row = tables.find(graph_id)
    counted = _flags(tables, tables.choose(prompt_set))
    counted[row] = False
    mine = np.zeros(len(tables.features), dtype=bool)
    for part in tables.chunks("features", ["feature"], graph=(row, row + 1)):
        mine[part["feature"].to_numpy()] = True
    shared = np.zeros(len(tables.graphs), dtype=np.int64)
    for part in tables.chunks("features", ["feature", "graph"]):
        graphs = part["graph"].to_numpy()[mine[part["feature"].to_numpy()]]
        shared += np.bincount(graphs, minlength=len(shared))
    rows = np.flatnonzero((shared > 0) & counted)
    sizes = tables.graphs["features"].to_numpy()
    found = tables.graphs.iloc[rows][["graph_id", "slug"]].rename(columns={"graph_id": "other"})
    found["graph_id"] = tables.graphs["graph_id"].iloc[row]
    found["shared"] = shared[rows]
    found["jaccard"] = shared[rows] / (sizes[rows] + sizes[row] - shared[rows])
    order = found.sort_values(["jaccard", "other"], ascending=[False, True]).head(limit)
    return table("similar_graphs", order)


def similarity_matrix(
    tables: Tables,
    prompt_set: GraphSet | None = None,
    items: Items = "features",
    measure: Measure = "jaccard",
    progress: Progress | None = None,
) -> Similarity:
    """How alike every two graphs are; as :func:`queries.similarity_matrix`."""
    rows = tables.choose(prompt_set)
    check_graphs(tables, rows, "similarity_matrix")
    if items == "features":
        return similarity_of(_incidence(tables, rows), "features", measure, progress=progress)
    found = _edge_incidence(tables, rows, 2, "share")
    return similarity_of(found, "edges", measure, tables.graphs.iloc[rows], progress)


def compare_sets(
    tables: Tables,
    a: GraphSet,
    b: GraphSet,
    settings: Settings | None = None,
    progress: Progress | None = None,
    **more: Any,
) -> SetComparison:
    """Compare two sets; as :func:`queries.compare`."""
    settings = Settings(**(({} if settings is None else vars(settings)) | more))
    sides = [tables.choose(name) for name in (a, b)]
    shared = np.intersect1d(sides[0], sides[1])
    left = [side[~np.isin(side, shared)] for side in sides]
    names = [name if isinstance(name, str) else f"{len(name)} graphs" for name in (a, b)]
    for name, side in zip(names, left, strict=True):
        if len(side) < 2:
            raise QueryError(
                f"set {name!r} has {len(side)} graphs of its own, from which nothing can be told",
                "Compare sets of more",
            )
    rows = np.concatenate(left)
    check_graphs(tables, rows, "compare")
    return compare_incidence(
        (names[0], names[1]),
        np.arange(len(rows)) < len(left[0]),
        lambda: (
            _incidence(tables, rows),
            _edge_incidence(tables, rows, settings.min_graphs, settings.edge_value),
        ),
        settings,
        progress,
        n_shared=len(shared),
    )


# How it is done ----------------------------------------------------------------------------------


def _least(tables: Tables, rows: Rows, query: str, min_graphs: int, min_share: float | None) -> int:
    ids = tables.graphs["graph_id"].iloc[rows].tolist()
    return Chosen(ids, [], [], []).at_least(query, min_graphs, min_share)


def _flags(tables: Tables, rows: Rows) -> NDArray[np.bool_]:
    flags = np.zeros(len(tables.graphs), dtype=bool)
    flags[rows] = True
    return flags


def _ranges(tables: Tables) -> Iterator[tuple[int, int]]:
    """Ranges of source codes with so many rows of edges that they can be added up in memory."""
    up_to = np.cumsum(tables.features["edges"].to_numpy())
    n = len(up_to)
    parts = max(1, -(-int(up_to[-1] if n else 0) // _RANGE))
    ends = np.searchsorted(up_to, np.arange(1, parts) * _RANGE)
    starts = np.unique(np.concatenate([[0], ends, [n]]))
    yield from zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True)
    if len(starts) < 2:
        yield 0, n


_SUMS: Final = ("weight", "share", "influence")


def _recurring_between(
    tables: Tables, counted: NDArray[np.bool_], least: int, low: int, high: int
) -> pd.DataFrame:
    """Add up each pair whose source is in a range, and keep those in enough graphs."""
    every = (low, high) == (0, len(tables.features))
    between = {} if every else {"source": (low, high)}
    pieces = []
    for part in tables.chunks("edges", ["source", "target", "graph", *_SUMS], **between):
        kept = counted[part["graph"].to_numpy()]
        part = part if kept.all() else part[kept]
        key = part["source"].to_numpy(np.int64) << _BITS | part["target"].to_numpy(np.int64)
        sums = {name: part[name].to_numpy() for name in _SUMS}
        sums["positive"] = (sums["weight"] > 0).astype(np.float64)
        pieces.append(_added(key, np.ones(len(key)), sums))
    keys = np.concatenate([piece[0] for piece in pieces])
    order = np.argsort(keys, kind="stable")  # runs that are sorted already: fast
    graphs = np.concatenate([piece[1] for piece in pieces])[order]
    sums = {
        name: np.concatenate([piece[2][name] for piece in pieces])[order]
        for name in (*_SUMS, "positive")
    }
    key, counts, sums = _added(keys[order], graphs, sums)
    enough = counts >= least
    return pd.DataFrame(
        {"key": key[enough], "graphs": counts[enough].astype(np.int64)}
        | {name: values[enough] for name, values in sums.items()}
    )


def _added(
    key: Rows, counts: Vector, sums: dict[str, Vector]
) -> tuple[Rows, Vector, dict[str, Vector]]:
    """Add up rows of the same key, which stand together."""
    if not len(key):
        return key, counts, sums
    starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
    return (
        key[starts],
        np.add.reduceat(counts, starts),
        {name: np.add.reduceat(values, starts) for name, values in sums.items()},
    )


def _incidence(tables: Tables, rows: Rows) -> Incidence:
    """Features of some graphs, in the order of their ids."""
    place, counted = _places(tables, rows)
    pieces = []
    for part in tables.chunks("features", ["feature", "graph", "influence"]):
        pieces.append(part[counted[part["graph"].to_numpy()]])
    found = pd.concat(pieces, ignore_index=True)
    codes, column = np.unique(found["feature"].to_numpy(), return_inverse=True)
    items = tables.features.iloc[codes][["feature_id", "layer", "index", "label"]]
    return Incidence.of_places(
        tables.graphs.iloc[rows].reset_index(drop=True),
        items.reset_index(drop=True),
        place[found["graph"].to_numpy()],
        column,
        found["influence"].to_numpy(),
    )


def _edge_incidence(tables: Tables, rows: Rows, least: int, value: EdgeValue) -> Incidence:
    """Pairs of features that enough of some graphs have."""
    place, counted = _places(tables, rows)
    pieces = []
    for part in tables.chunks("edges", ["source", "target", "graph", value]):
        kept = part[counted[part["graph"].to_numpy()]]
        key = kept["source"].to_numpy(np.int64) << _BITS | kept["target"].to_numpy(np.int64)
        pieces.append((key, kept["graph"].to_numpy(), kept[value].to_numpy()))
    keys, graphs, values = (np.concatenate(column) for column in zip(*pieces, strict=True))
    known, column, counts = np.unique(keys, return_inverse=True, return_counts=True)
    enough = counts >= least
    new = np.cumsum(enough) - 1
    kept_rows = enough[column]
    names = tables.features["feature_id"].to_numpy(dtype=object)
    pairs = known[enough]
    items = pd.DataFrame(
        {"source": names[pairs >> _BITS], "target": names[pairs & ((1 << _BITS) - 1)]}
    )
    return Incidence.of_places(
        tables.graphs.iloc[rows].reset_index(drop=True),
        items,
        place[graphs[kept_rows]],
        new[column[kept_rows]],
        values[kept_rows],
    )


def _places(tables: Tables, rows: Rows) -> tuple[Rows, NDArray[np.bool_]]:
    """Where each graph stands among some, and whether it does."""
    place = np.full(len(tables.graphs), -1, dtype=np.int64)
    place[rows] = np.arange(len(rows))
    return place, place >= 0
