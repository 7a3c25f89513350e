"""Tables of what graphs have, in a folder of Parquet files.

==========================  =====================================================================
file                        holds
==========================  =====================================================================
``about.json``              version of the form, number of graphs and parts
``graphs.parquet``          a row a graph: ``graph_id``, ``slug``, ``prompt``, … , ``sets``
``features.parquet``        a row a feature; its place in the file is its code
``features-00000.parquet``  a row a feature and graph: ``feature`` (code), ``graph``, ``influence``
``edges-00000.parquet``     a row a pair and graph: ``source``, ``target``, ``graph``, ``weight``,
                            ``share``, ``influence``
==========================  =====================================================================

A part holds some hundreds of graphs, sorted by code, so that a question goes over each once and
adds up without sorting again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from queries.asking import GraphSet, choose
from queries.by_graph import details_of, edges_by_graph, features_by_graph
from tracer.errors import FormatError, NotFoundError, QueryError, SettingError, nearest

if TYPE_CHECKING:
    from graphstore import Store
    from tracer.graph import AttributionGraph

__all__ = ["Tables", "export_tables", "open_tables", "write_tables"]

Rows = NDArray[np.int64]
Progress = Callable[[int, int], None]

VERSION: Final = 1
_PART: Final = 500  # graphs in a part: some hundred thousand rows, a second of sorting
_ROW_GROUP: Final = 131_072
_DETAILS: Final = (
    *("graph_id", "slug", "prompt", "model_id", "transcoder_id", "features", "tokens", "target"),
    *("template", "family", "answer", "hops", "language", "split", "metadata"),
)


@dataclass(frozen=True)
class Tables:
    """Tables in a folder; made by :func:`open_tables`.

    Attributes
    ----------
    folder
        Where they are.
    graphs
        One row of :func:`queries.graph_details` each, with ``sets`` (names), ``pairs`` (how many
        it has), ``share`` and ``square`` (sums over them).
    features
        ``feature_id``, ``layer``, ``index``, ``label``, ``edges`` (rows of which it is the source);
        the row is the feature's code.
    parts
        How many parts there are.
    """

    folder: Path
    graphs: pd.DataFrame
    features: pd.DataFrame
    parts: int

    @cached_property
    def names(self) -> dict[str, int]:
        """Row of each graph, by id."""
        return {graph_id: row for row, graph_id in enumerate(self.graphs["graph_id"])}

    def find(self, name: str) -> int:
        """Row of the graph that has this id, this beginning of an id, or this slug.

        Raises
        ------
        NotFoundError
            If none has, or more than one.
        """
        if name in self.names:
            return self.names[name]
        by_slug = np.flatnonzero(self.graphs["slug"] == name)
        by_id = [row for key, row in self.names.items() if len(name) >= 4 and key.startswith(name)]
        for rows in (by_slug.tolist(), by_id):
            if len(rows) == 1:
                return int(rows[0])
            if rows:
                raise NotFoundError(f"{len(rows)} graphs are called {name!r}", "Name one by its id")
        known = [*self.names, *self.graphs["slug"].dropna()]
        raise NotFoundError(f"no graph {name!r} is in {self.folder}", nearest(name, known))

    def choose(self, prompt_set: GraphSet | None = None) -> Rows:
        """Rows of the graphs of a set (with the sets below it), of a list, or (left out) all.

        Raises
        ------
        NotFoundError
            If no graph or set has the name.
        """
        if prompt_set is None:
            return np.arange(len(self.graphs))
        if not isinstance(prompt_set, str):
            return np.array(list(dict.fromkeys(map(self.find, prompt_set))), dtype=np.int64)
        below = f"{prompt_set}/"
        rows = [
            row
            for row, names in enumerate(self.graphs["sets"])
            if any(name == prompt_set or name.startswith(below) for name in names)
        ]
        if not rows:
            known = {name for names in self.graphs["sets"] for name in names}
            raise NotFoundError(
                f"no prompt set {prompt_set!r} is in {self.folder}",
                nearest(prompt_set, known) or f"There are {', '.join(sorted(known)) or 'none'}",
            )
        return np.array(rows, dtype=np.int64)

    def chunks(self, items: str, columns: Sequence[str], **between: Any) -> Iterator[pd.DataFrame]:
        """Rows of one part after another.

        Parameters
        ----------
        items
            ``features`` or ``edges``.
        columns
            Which to read.
        **between
            ``source=(low, high)``: only rows whose source is at least `low` and below `high`.
        """
        filters = [
            test
            for column, (low, high) in between.items()
            for test in ((column, ">=", int(low)), (column, "<", int(high)))
        ]
        for part in range(self.parts):
            yield pd.read_parquet(
                self.folder / f"{items}-{part:05d}.parquet",
                columns=list(columns),
                filters=filters or None,
                engine="pyarrow",
            )

    def __repr__(self) -> str:
        return (
            f"<Tables {self.folder}: {len(self.graphs):,} graphs, {len(self.features):,} features, "
            f"{self.parts} parts>"
        )


def open_tables(folder: str | os.PathLike[str]) -> Tables:
    """Open tables.

    Raises
    ------
    FormatError
        If the folder holds none, or of another version.
    """
    _check_pyarrow()
    folder = Path(folder)
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        version, parts = about["version"], int(about["parts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{folder}: holds no tables of graphs", "Make them with write_tables or export_tables"
        ) from error
    if version != VERSION:
        raise FormatError(
            f"{folder}: tables of version {version}, this circuitbase knows {VERSION}",
            "Make them again, or upgrade circuitbase",
        )
    graphs = pd.read_parquet(folder / "graphs.parquet", engine="pyarrow")
    for name in ("sets", "tokens"):
        graphs[name] = pd.Series([list(v) for v in graphs[name]], dtype=object)
    for name in graphs.columns:
        if name not in ("features", "pairs", "share", "square", "hops"):
            graphs[name] = graphs[name].astype(object).where(graphs[name].notna(), None)
    features = pd.read_parquet(folder / "features.parquet", engine="pyarrow")
    for name in ("feature_id", "label"):
        features[name] = features[name].astype(object).where(features[name].notna(), None)
    return Tables(folder, graphs, features, parts)


def write_tables(
    graphs: Iterable[AttributionGraph | tuple[AttributionGraph, str | Sequence[str]]],
    folder: str | os.PathLike[str],
    progress: Progress | None = None,
) -> Tables:
    """Make tables of graphs, without a store.

    Parameters
    ----------
    graphs
        Graphs, or pairs of a graph and the name (or names) of its prompt sets; each is asked for
        when the one before is done.
    folder
        Where to; a folder that does not exist or is empty.
    progress
        Called with how many graphs are done, twice (how many there are is not known).

    Returns
    -------
    Tables

    Raises
    ------
    FormatError
        If the folder holds something, or cannot be written.
    """
    from graphstore.rows import GraphRows

    writer = _Writer(folder)
    for number, given in enumerate(graphs, start=1):
        graph, sets = given if isinstance(given, tuple) else (given, ())
        rows = GraphRows(graph)
        writer.add(
            _details(rows.properties),
            [sets] if isinstance(sets, str) else list(sets),
            rows.features,
            rows.feature_edges,
        )
        if progress is not None:
            progress(number, number)
    return writer.end()


def export_tables(
    store: Store,
    folder: str | os.PathLike[str],
    prompt_set: GraphSet | None = None,
    progress: Progress | None = None,
) -> Tables:
    """Make tables of the graphs of a store.

    Parameters
    ----------
    store
        The store.
    folder
        Where to; a folder that does not exist or is empty.
    prompt_set
        Graphs of one set, or a list of graphs; left out, all.
    progress
        Called with how many graphs are done, and how many there are.

    Raises
    ------
    NotFoundError
        If no graph or set has the name.
    FormatError
        If the folder holds something, or cannot be written.
    """
    chosen = choose(store, prompt_set=prompt_set)
    details = details_of(store, chosen)
    sets = store.graphs().set_index("graph_id")["prompt_sets"].to_dict()
    writer = _Writer(folder)
    step = 100
    for start in range(0, len(chosen.ids), step):
        ids = chosen.ids[start : start + step]
        features = dict(list(features_by_graph(store, ids).groupby("graph_id")))
        edges = dict(list(edges_by_graph(store, ids, min_graphs=1).groupby("graph_id")))
        for row, graph_id in enumerate(ids, start=start):
            writer.add(
                {str(name): value for name, value in details.iloc[row].items()},
                sets.get(graph_id, []),
                features.get(graph_id, _NO_FEATURES),
                edges.get(graph_id, _NO_EDGES),
            )
        if progress is not None:
            progress(start + len(ids), len(chosen.ids))
    return writer.end()


_NO_FEATURES: Final = pd.DataFrame(
    {name: [] for name in ("feature_id", "layer", "index", "label", "influence")}
)
_NO_EDGES: Final = pd.DataFrame(
    {name: [] for name in ("source", "target", "weight", "share", "influence")}
)


def _details(properties: Mapping[str, Any]) -> dict[str, Any]:
    tokens, chances = (
        properties.get("target_tokens", []),
        properties.get("target_probabilities", []),
    )
    found = {name: properties.get(name) for name in _DETAILS}
    found["features"] = properties["n_features"]
    found["tokens"] = list(properties.get("tokens", []))
    found["target"] = tokens[int(np.argmax(chances))] if len(chances) else None
    return found


@dataclass
class _Writer:
    """Adds graph after graph, and writes a part whenever one is full."""

    folder: str | os.PathLike[str]
    graphs: list[dict[str, Any]] = field(default_factory=list)
    codes: dict[str, int] = field(default_factory=dict)
    described: list[tuple[int, int, str | None]] = field(default_factory=list)
    parts: int = 0

    def __post_init__(self) -> None:
        _check_pyarrow()
        self.path = Path(self.folder)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            taken = any(self.path.iterdir())
        except OSError as error:
            raise FormatError(
                f"{self.path}: {error.strerror or error}", "Choose a folder that can be written"
            ) from error
        if taken:
            raise FormatError(f"{self.path}: is not empty", "Choose a new folder")
        self._features: list[tuple[int, Rows, NDArray[np.float64]]] = []
        self._edges: list[tuple[int, Rows, Rows, NDArray[np.float64]]] = []
        self._edge_rows = np.zeros(0, dtype=np.int64)

    def add(
        self,
        details: Mapping[str, Any],
        sets: Sequence[str],
        features: pd.DataFrame,
        edges: pd.DataFrame,
    ) -> None:
        number = len(self.graphs)
        names = _texts(features["feature_id"])
        columns = (
            features["layer"].tolist(),
            features["index"].tolist(),
            _texts(features["label"]),
        )
        found = np.empty(len(names), dtype=np.int64)
        for place, (name, layer, index, label) in enumerate(zip(names, *columns, strict=True)):
            code = found[place] = self.codes.setdefault(name, len(self.codes))
            if code == len(self.described):
                self.described.append((int(layer), int(index), label or None))
            elif label and self.described[code][2] is None:
                self.described[code] = (int(layer), int(index), label)
        self._features.append((number, found, features["influence"].to_numpy(np.float64)))
        ends = [
            np.fromiter(map(self.codes.__getitem__, _texts(edges[end])), np.int64, len(edges))
            for end in ("source", "target")
        ]
        values = edges[["weight", "share", "influence"]].to_numpy(np.float64)
        self._edges.append((number, ends[0], ends[1], values))
        shares = values[:, 1]
        self.graphs.append(
            {
                **{name: details.get(name) for name in _DETAILS},
                "sets": sorted(sets),
                "pairs": len(edges),
                "share": float(shares.sum()),
                "square": float((shares**2).sum()),
            }
        )
        if len(self._features) == _PART:
            self._flush()

    def end(self) -> Tables:
        """Write what is left, and open the tables."""
        if not self.graphs:
            raise FormatError(f"{self.path}: there are no graphs to write", "Give some")
        if self._features:
            self._flush()
        graphs = pd.DataFrame(
            self.graphs, columns=[*_DETAILS, "sets", "pairs", "share", "square"]
        ).astype({"hops": "Int64", "features": "int64", "pairs": "int64"})
        self._write(graphs, "graphs.parquet")
        layers, indices, labels = zip(*self.described, strict=True) if self.described else ([],) * 3
        edge_rows = np.zeros(len(self.codes), dtype=np.int64)
        edge_rows[: len(self._edge_rows)] = self._edge_rows
        self._write(
            pd.DataFrame(
                {
                    "feature_id": list(self.codes),
                    "layer": np.array(layers, dtype=np.int64),
                    "index": np.array(indices, dtype=np.int64),
                    "label": pd.Series(labels, dtype=object),
                    "edges": edge_rows,
                }
            ),
            "features.parquet",
        )
        about = {"version": VERSION, "graphs": len(self.graphs), "parts": self.parts}
        (self.path / "about.json").write_text(json.dumps(about), encoding="utf-8")
        return open_tables(self.path)

    def _flush(self) -> None:
        graphs, codes, influence = (
            [np.full(len(found), number) for number, found, _ in self._features],
            [found for _, found, _ in self._features],
            [values for _, _, values in self._features],
        )
        features = pd.DataFrame(
            {
                "feature": np.concatenate(codes).astype(np.int32),
                "graph": np.concatenate(graphs).astype(np.int32),
                "influence": np.concatenate(influence),
            }
        )
        self._write(
            features.sort_values(["feature", "graph"]), f"features-{self.parts:05d}.parquet"
        )
        values = np.concatenate([values for *_, values in self._edges])
        source = np.concatenate([s for _, s, _, _ in self._edges])
        target = np.concatenate([t for _, _, t, _ in self._edges])
        graph = np.concatenate([np.full(len(s), number) for number, s, _, _ in self._edges])
        order = np.lexsort((graph, target, source))
        edges = pd.DataFrame(
            {
                "source": source[order].astype(np.int32),
                "target": target[order].astype(np.int32),
                "graph": graph[order].astype(np.int32),
                "weight": values[order, 0],
                "share": values[order, 1],
                "influence": values[order, 2],
            }
        )
        self._write(edges, f"edges-{self.parts:05d}.parquet")
        counts = np.bincount(source, minlength=len(self._edge_rows))
        counts[: len(self._edge_rows)] += self._edge_rows
        self._edge_rows = counts
        self._features, self._edges = [], []
        self.parts += 1

    def _write(self, frame: pd.DataFrame, name: str) -> None:
        try:
            frame.to_parquet(
                self.path / name,
                engine="pyarrow",
                index=False,
                compression="zstd",
                row_group_size=_ROW_GROUP,
            )
        except OSError as error:
            raise FormatError(
                f"{self.path / name}: {error.strerror or error}", "Free some space, and try again"
            ) from error


def _texts(column: pd.Series[Any]) -> list[Any]:
    """Texts of a column; None where there is none. Going over the column itself is slow."""
    texts: list[Any] = column.astype(object).where(column.notna(), None).tolist()
    return texts


def _check_pyarrow() -> None:
    if find_spec("pyarrow") is None:
        raise SettingError(
            "tables are Parquet files, and pyarrow is not installed",
            "Install the extra: pip install 'circuitbase[parquet]'",
        )


def check_graphs(tables: Tables, rows: Rows, query: str) -> None:
    """Check that there are graphs, all of one transcoder.

    Raises
    ------
    QueryError
        If not; the message names the transcoders.
    """
    if not len(rows):
        raise QueryError(f"{query}: the set holds no graph", "Name another")
    names = sorted({n for n in tables.graphs["transcoder_id"].iloc[rows] if n is not None})
    if len(names) > 1:
        raise QueryError(
            f"{query}: the graphs have features of {len(names)} transcoders "
            f"({', '.join(names[:3])}), which are not comparable",
            "Choose graphs of one",
        )
