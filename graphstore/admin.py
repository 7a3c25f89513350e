"""Files for ``neo4j-admin database import``: the fastest way to load very large sets.

One pass over graphs, from a store or straight from files; summaries across prompts included, so
``verify`` finds a store loaded this way sound. The folder holds a header and a data file a label
and relationship type, and ``import.args``, the command's arguments::

    cd DIR && neo4j-admin database import full @import.args
"""

from __future__ import annotations

import csv
import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from graphstore.circuits import (
    CIRCUIT_FIELDS,
    EDGE_FIELDS,
    FEATURE_FIELDS,
    all_circuits,
    check_circuit,
    circuit_properties,
    feature_rows,
)
from graphstore.describing import all_descriptions
from graphstore.metadata import KNOWN
from graphstore.rows import EDGE_COLUMNS, SCORE_NAMES, GraphRows, edge_id
from graphstore.schema import SCHEMA_VERSION, VAULT
from graphstore.weights_rows import WeightsRows
from tracer.errors import FormatError
from tracer.graph import NODE_COLUMNS, RULES, AttributionGraph
from tracer.weights import GlobalWeights

if TYPE_CHECKING:
    from graphstore.store import Store

__all__ = ["export", "write_admin_files"]

_LIST: Final = "\x1f"  # between elements of a list: no tokenizer writes it
_TYPES: Final = {"text": "string", "integer": "long", "real": "double"}

_NODE_FIELDS: Final = {
    "ord": "long",
    **{name: _TYPES[column.type] for name, column in NODE_COLUMNS.items()},
    "influence": "double",
    "error_fraction": "double",
    "influence_by_length": "double[]",
}
_GRAPH_FIELDS: Final = {
    "schema_version": "long",
    "gno": "long",
    "complete": "boolean",
    "stored_at": "string",
    **dict.fromkeys(("slug", "prompt", "model_id", "transcoder_id", "model_info"), "string"),
    **dict.fromkeys(("transcoder_info", "settings", "source", "created_at"), "string"),
    **dict.fromkeys(("parent_id", "weight_type", "part_type"), "string"),
    **dict.fromkeys(("tokens", "target_tokens", "recorded_rules"), "string[]"),
    **dict.fromkeys(("token_ids", "pinned"), "long[]"),
    "target_probabilities": "double[]",
    "unpruned": "boolean",
    "node_threshold": "double",
    "edge_threshold": "double",
    **dict.fromkeys(("n_nodes", "n_edges", "n_features", "n_tokens"), "long"),
    **dict.fromkeys(("prompt_id", "metadata"), "string"),
    **KNOWN,
    "right": "boolean",
    "role_names": "string[]",
    "role_positions": "long[]",
    **{f"{name}_{rule}": "double" for rule in RULES for name in SCORE_NAMES},
}

# file -> key of the node, its id space, and its other fields
_NODE_FILES: Final[dict[str, tuple[str, str, dict[str, str]]]] = {
    "Vault": ("vault_id", "Vault", {"schema_version": "long", "next_gno": "long"}),
    "Graph": ("graph_id", "Graph", _GRAPH_FIELDS),
    "Node": ("node_id", "Node", _NODE_FIELDS),
    "Feature": (
        "feature_id",
        "Feature",
        {
            "transcoder_id": "string",
            "layer": "long",
            "index": "long",
            "label": "string",
            "label_source": "string",
            **dict.fromkeys(("density", "mean_activation", "max_activation"), "double"),
            **dict.fromkeys(("statistics", "examples"), "string"),
        },
    ),
    "FeatureEdge": (
        "edge_id",
        "FeatureEdge",
        {
            "source": "string",
            "target": "string",
            "n_graphs": "long",
            "n_positive": "long",
            "sum_share": "double",
            "sum_weight": "double",
            "sum_influence": "double",
            "graphs": "long[]",
            "shares": "double[]",
            "weights": "double[]",
            "influences": "double[]",
        },
    ),
    "Supernode": (
        "supernode_id",
        "Supernode",
        {"name": "string", "author": "string", "ord": "long", "graph_id": "string"},
    ),
    "PromptSet": ("name", "PromptSet", {"description": "string"}),
    "Corpus": ("corpus_id", "Corpus", {"tokens": "long"}),
    "GlobalWeights": (
        "weights_id",
        "GlobalWeights",
        {
            **dict.fromkeys(("corpus_id", "model_id", "transcoder_id", "norm"), "string"),
            **dict.fromkeys(("selection", "cut", "conventions", "feature_columns"), "string"),
            **dict.fromkeys(("schema_version", "tokens", "n_features", "n_pairs"), "long"),
            "small_weight": "double",
            "influence_by": "string",
            "influence_targets": "string[]",
            "stored_at": "string",
            "complete": "boolean",
        },
    ),
    "Circuit": (
        "name",
        "Circuit",
        {
            **CIRCUIT_FIELDS,
            **{f"edge_{name}": f"{kind}[]" for name, kind in EDGE_FIELDS.items()},
            **dict.fromkeys(("n_features", "n_edges"), "long"),
        },
    ),
}
# file -> the two ends, and the fields
_LINK_FILES: Final[dict[str, tuple[str, str, dict[str, str]]]] = {
    "CONTAINS": ("Graph", "Node", {}),
    "INSTANCE_OF": ("Node", "Feature", {}),
    "CONTRIBUTES": ("Node", "Node", dict.fromkeys(EDGE_COLUMNS, "double")),
    "GROUPS": ("Supernode", "Node", {}),
    "INVOLVES": ("Circuit", "Feature", {"ord": "long", **FEATURE_FIELDS}),
    "INCLUDES": ("PromptSet", "Graph", {}),
    "TRACED_FROM": ("Graph", "Model", {}),
    "USES": ("Graph", "Transcoder", {}),
    "HAS_FEATURE": ("Graph", "Feature", {"influence": "double"}),
    "HAS_EDGE": (
        "Graph",
        "FeatureEdge",
        {"share": "double", "weight": "double", "influence": "double"},
    ),
}

_WHOLE: Final = ("source", "target", "cofiring")  # what is no real number of VIRTUAL

Labels = dict[str, tuple[str, str | None]]


def export(
    store: Store, folder: str | Path, progress: Callable[[int, int], None] | None = None
) -> int:
    """Write a whole store as import files; the number of graphs.

    Parameters
    ----------
    store
        Any store, embedded or not.
    folder
        New or empty.
    progress
        Called with how many graphs are written, and how many there are.

    Raises
    ------
    FormatError
        If the folder is not empty or cannot be written.
    """
    listed = store.graphs()
    described = "MATCH (p:PromptSet) RETURN p.name AS name, p.description AS description"
    sets = {row["name"]: row["description"] for row in store.rows(described)}
    labels: Labels = {
        row["id"]: (row["label"], row["source"])
        for row in store.rows(
            "MATCH (f:Feature) WHERE f.label IS NOT NULL "
            "RETURN f.feature_id AS id, f.label AS label, f.label_source AS source"
        )
    }

    descriptions = {row["feature_id"]: row for row in all_descriptions(store)}

    def read() -> Iterator[tuple[AttributionGraph, list[str]]]:
        for done, row in enumerate(listed.to_dict("records"), start=1):
            yield store.read(row["graph_id"]), row["prompt_sets"]
            if progress is not None:
                progress(done, len(listed))

    return write_admin_files(
        read(),
        folder,
        sets=sets,
        labels=labels,
        descriptions=descriptions,
        circuits=all_circuits(store),
        weights=(store.read_weights(name) for name in store.weights()["weights_id"].tolist()),
    )


def write_admin_files(
    graphs: Iterable[tuple[AttributionGraph, Sequence[str]]],
    folder: str | Path,
    *,
    sets: dict[str, str | None] | None = None,
    labels: Labels | None = None,
    descriptions: Mapping[str, dict[str, Any]] | None = None,
    circuits: Sequence[Mapping[str, Any]] = (),
    weights: Iterable[GlobalWeights] = (),
) -> int:
    """Write graphs as import files.

    Parameters
    ----------
    graphs
        Graphs with the names of the sets that include them; read one at a time.
    folder
        New or empty.
    sets
        Names and descriptions of further sets.
    labels
        Feature id → (label, source); go before labels in the graphs.
    descriptions
        Feature id → its figures and examples, as stored.
    circuits
        Records of kept circuits, as :meth:`graphstore.Store.circuit` reads them.
    weights
        Global weights, each once; read one at a time.

    Returns
    -------
    int
        How many graphs were written.
    """
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
        if any(place.iterdir()):
            raise FormatError(f"{place}: is not empty", "Name a new or empty folder")
        with _Files(place) as files:
            writer = _AdminWriter(files, dict(sets or {}), dict(labels or {}), descriptions or {})
            for graph, prompt_sets in graphs:
                writer.add(graph, prompt_sets)
            for circuit in circuits:
                writer.add_circuit(circuit)
            for each in weights:
                writer.add_weights(each)
            writer.finish()
        _write_arguments(place, files.written)
        return writer.count
    except OSError as error:
        raise FormatError(
            f"{place}: cannot be written ({error})", "Free space, or name another folder"
        ) from error


class _AdminWriter:
    """Writes each graph as it comes, and at the end what all of them share."""

    def __init__(
        self,
        files: _Files,
        sets: dict[str, str | None],
        labels: Labels,
        descriptions: Mapping[str, dict[str, Any]],
    ) -> None:
        self.files = files
        self.sets = sets
        self.labels = labels
        self.descriptions = descriptions
        self.count = 0
        self.seen: set[str] = set()
        self.features: dict[str, tuple[int, int, str]] = {}
        self.described: dict[str, dict[str, dict[str, Any]]] = {"Model": {}, "Transcoder": {}}
        self.corpora: dict[str, dict[str, Any]] = {}
        self.pairs: dict[str, tuple[int, str, str]] = {}
        self.entries: list[pd.DataFrame] = []
        self.now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")

    def add(self, graph: AttributionGraph, prompt_sets: Sequence[str]) -> None:
        """Write one graph; one that came before only joins further sets."""
        for name in prompt_sets:
            self.sets.setdefault(name, None)
            self.files.link("INCLUDES", name, graph.graph_id)
        if graph.graph_id in self.seen:
            return
        self.seen.add(graph.graph_id)
        rows = GraphRows(graph)
        added = {"gno": self.count, "complete": True, "stored_at": self.now}
        self.files.node("Graph", {**rows.properties, **added})
        self._add_nodes(rows)
        self._add_edges(rows)
        for label, described in (("Model", rows.model), ("Transcoder", rows.transcoder)):
            if described is not None:
                key = described[f"{label.lower()}_id"]
                self.described[label].setdefault(key, described)
                self.files.link("TRACED_FROM" if label == "Model" else "USES", graph.graph_id, key)
        self.count += 1

    def _add_nodes(self, rows: GraphRows) -> None:
        graph_id = rows.graph.graph_id
        for node, feature_id in zip(rows.nodes, rows.graph.feature_ids, strict=True):
            self.files.node("Node", node)
            self.files.link("CONTAINS", graph_id, node["node_id"])
            if feature_id is not None:
                self.files.link("INSTANCE_OF", node["node_id"], feature_id)
        for feature_id, layer, index, label, influence in rows.features.itertuples(index=False):
            self.features.setdefault(feature_id, (layer, index, str(rows.graph.transcoder_id)))
            self.files.link("HAS_FEATURE", graph_id, feature_id, influence)
            if isinstance(label, str) and label:
                source = f"file: {rows.graph.slug or graph_id}"
                self.labels.setdefault(feature_id, (label, source))
        for supernode in rows.supernodes:
            self.files.node("Supernode", {**supernode, "graph_id": graph_id})
            for row in supernode["members"]:
                self.files.link("GROUPS", supernode["supernode_id"], rows.nodes[row]["node_id"])

    def _add_edges(self, rows: GraphRows) -> None:
        graph_id, ids = rows.graph.graph_id, rows.graph.node_ids
        sources, targets, columns = rows.edges
        lists = [[None] * len(sources) if column is None else column.tolist() for column in columns]
        for s, t, *values in zip(sources.tolist(), targets.tolist(), *lists, strict=True):
            self.files.link("CONTRIBUTES", ids[s], ids[t], *values)
        pairs = rows.feature_edges
        codes = []
        for source, target, *values in pairs.itertuples(index=False):
            name = edge_id(source, target)
            code, *_ = self.pairs.setdefault(name, (len(self.pairs), source, target))
            codes.append(code)
            self.files.link("HAS_EDGE", graph_id, name, *values)
        self.entries.append(
            pd.DataFrame(
                {
                    "code": np.array(codes, dtype=np.int64),
                    "gno": self.count,
                    "share": pairs["share"].to_numpy(dtype=np.float64),
                    "weight": pairs["weight"].to_numpy(dtype=np.float64),
                    "influence": pairs["influence"].to_numpy(dtype=np.float64),
                }
            )
        )

    def add_circuit(self, record: Mapping[str, Any]) -> None:
        """Write a circuit, and links to its features."""
        name = check_circuit(record)
        self.files.node("Circuit", {"name": name, **circuit_properties(record)})
        for row in feature_rows(record):
            place = (row["layer"], row["index"], row["transcoder_id"])
            self.features.setdefault(row["feature_id"], place)
            values = [row["ord"], *(row.get(field) for field in FEATURE_FIELDS)]
            self.files.link("INVOLVES", name, row["feature_id"], *values)

    def add_weights(self, weights: GlobalWeights) -> None:
        """Write global weights; the files of their links are their own, as columns differ."""
        rows, files, ids = WeightsRows(weights), self.files, weights.feature_ids
        weights_id = weights.weights_id
        added = {"complete": True, "stored_at": self.now}
        files.node("GlobalWeights", {**rows.properties, **rows.influence, **added})
        self.corpora.setdefault(weights.corpus_id, rows.corpus)
        described = self.described["Transcoder"]
        described.setdefault(weights.transcoder_id, {"transcoder_id": weights.transcoder_id})
        for feature_id, layer, index in zip(
            ids, weights.features["layer"], weights.features["index"], strict=True
        ):
            self.features.setdefault(feature_id, (int(layer), int(index), weights.transcoder_id))
        covers = [
            {**row, **influence}
            for row, influence in zip(rows.covers, rows.influences or [{}] * len(ids), strict=True)
        ]
        names = sorted({name for row in covers for name in row})
        kinds = {name: _type_of([row[name] for row in covers if name in row]) for name in names}
        file = files.links(f"COVERS_{weights_id}", "COVERS", "GlobalWeights", "Feature", kinds)
        for feature_id, row in zip(ids, covers, strict=True):
            files.link(file, weights_id, feature_id, *(row.get(name) for name in names))
        kinds = {name: "long" if name in _WHOLE else "double" for name in rows.pairs}
        file = files.links(
            f"VIRTUAL_{weights_id}",
            "VIRTUAL",
            "Feature",
            "Feature",
            {"weights_id": "string"} | kinds,
        )
        lists = [values.tolist() for values in rows.pairs.values()]
        for source, target, *values in zip(*lists, strict=True):
            files.link(file, ids[source], ids[target], weights_id, source, target, *values)
        file = files.links(f"COUNTED_IN_{weights_id}", "COUNTED_IN", "GlobalWeights", "Corpus", {})
        files.link(file, weights_id, weights.corpus_id)
        file = files.links(f"USES_{weights_id}", "USES", "GlobalWeights", "Transcoder", {})
        files.link(file, weights_id, weights.transcoder_id)

    def finish(self) -> None:
        """Write what several graphs share: features, pairs, sets, models, the vault."""
        for feature_id in [*self.labels, *self.descriptions]:
            owner, at_layer, at_index = feature_id.rsplit("/", 2)
            self.features.setdefault(feature_id, (int(at_layer), int(at_index), owner))
        for feature_id, (layer, index, transcoder_id) in self.features.items():
            label, source = self.labels.get(feature_id, (None, None))
            self.files.node(
                "Feature",
                {
                    "feature_id": feature_id,
                    "transcoder_id": transcoder_id,
                    "layer": layer,
                    "index": index,
                    "label": label,
                    "label_source": source,
                    **self.descriptions.get(feature_id, {}),
                },
            )
        self._finish_pairs()
        for name, description in self.sets.items():
            self.files.node("PromptSet", {"name": name, "description": description})
        for corpus in self.corpora.values():
            self.files.node("Corpus", corpus)
        for label, described in self.described.items():
            self.files.described(label, list(described.values()))
        vault = {"vault_id": VAULT, "schema_version": SCHEMA_VERSION, "next_gno": self.count}
        self.files.node("Vault", vault)

    def _finish_pairs(self) -> None:
        if not self.entries:
            return
        entries = pd.concat(self.entries, ignore_index=True).sort_values(
            ["code", "gno"], ignore_index=True
        )
        bounds = np.searchsorted(entries["code"], np.arange(len(self.pairs) + 1))
        gnos, shares = entries["gno"].to_numpy(), entries["share"].to_numpy()
        weights, influences = entries["weight"].to_numpy(), entries["influence"].to_numpy()
        for name, (code, source, target) in self.pairs.items():
            part = slice(bounds[code], bounds[code + 1])
            self.files.node(
                "FeatureEdge",
                {
                    "edge_id": name,
                    "source": source,
                    "target": target,
                    "n_graphs": len(gnos[part]),
                    "n_positive": int((weights[part] > 0).sum()),
                    "sum_share": float(shares[part].sum()),
                    "sum_weight": float(weights[part].sum()),
                    "sum_influence": float(influences[part].sum()),
                    "graphs": gnos[part].tolist(),
                    "shares": shares[part].tolist(),
                    "weights": weights[part].tolist(),
                    "influences": influences[part].tolist(),
                },
            )


class _Files:
    """The open data files, with their headers."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.written: list[tuple[str, str, str]] = []  # group, label or type, file
        self._stack = ExitStack()
        self._open: dict[str, IO[str]] = {}

    def __enter__(self) -> _Files:
        for label, (key, space, fields) in _NODE_FILES.items():
            self._start("nodes", label, _header(key, space, fields))
        for kind, (start, end, fields) in _LINK_FILES.items():
            self.links(kind, kind, start, end, fields)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def node(self, label: str, properties: dict[str, Any]) -> None:
        """Write one node, its properties in the order of the header."""
        key, _, fields = _NODE_FILES[label]
        values = [properties[key], *(properties.get(name) for name in fields)]
        self._open[label].write(",".join(map(_field, values)) + "\n")

    def link(self, kind: str, start: str, end: str, *values: str | float | None) -> None:
        """Write one relationship."""
        self._open[kind].write(",".join(map(_field, (start, end, *values))) + "\n")

    def links(self, name: str, kind: str, start: str, end: str, fields: dict[str, str]) -> str:
        """Begin a file of relationships; its name."""
        header = [f":START_ID({start})", f":END_ID({end})"]
        header += [f"{field}:{its}" for field, its in fields.items()]
        self._start("relationships", name, header, kind)
        return name

    def described(self, label: str, rows: list[dict[str, Any]]) -> None:
        """Write models or transcoders, whose properties differ from one to the next."""
        key = f"{label.lower()}_id"
        names = sorted({name for row in rows for name in row} - {key})
        fields = {name: _type_of([row[name] for row in rows if name in row]) for name in names}
        self._start("nodes", label, _header(key, label, fields))
        for row in rows:
            values = [row[key], *(_as(fields[name], row.get(name)) for name in names)]
            self._open[label].write(",".join(map(_field, values)) + "\n")

    def _start(self, group: str, name: str, header: list[str], kind: str | None = None) -> None:
        with (self.place / f"{name}_header.csv").open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerow(header)
        data = (self.place / f"{name}.csv").open("w", encoding="utf-8", newline="")
        self._open[name] = self._stack.enter_context(data)
        self.written.append((group, kind or name, name))


def _header(key: str, space: str, fields: dict[str, str]) -> list[str]:
    return [f"{key}:ID({space})", *(f"{name}:{kind}" for name, kind in fields.items())]


def _field(value: Any) -> str:
    """One value as the importer reads it: nothing for unknown, quotes around every text."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | np.integer | np.floating):
        if value != value:
            return "NaN"
        return repr(float(value)) if isinstance(value, float | np.floating) else str(int(value))
    if isinstance(value, list):
        parts = [item if isinstance(item, str) else _field(item) for item in value]
        if any(_LIST in part for part in parts):
            raise FormatError(
                f"a list holds the control character U+001F ({value!r:.80})",
                "Write this graph through a connection instead: circuitbase import",
            )
        return _field(_LIST.join(parts)) if parts else ""
    return '"' + str(value).replace('"', '""') + '"'


def _type_of(values: list[Any]) -> str:
    kinds = {type(value) for value in values}
    if kinds == {bool}:
        return "boolean"
    if kinds == {int}:
        return "long"
    if kinds <= {int, float}:
        return "double"
    return "string"


def _as(kind: str, value: Any) -> Any:
    return str(value) if kind == "string" and value is not None else value


def _write_arguments(place: Path, written: list[tuple[str, str, str]]) -> None:
    """Write the arguments of the import command, in the folder that it runs in."""
    # The database's name first: options that take several files would take it for one of them.
    lines = ["neo4j", "--array-delimiter=U+001F", "--multiline-fields=true"]
    lines.append("--overwrite-destination")
    for group, kind, name in written:
        lines.append(f"--{group}={kind}=./{name}_header.csv,./{name}.csv")
    (place / "import.args").write_text("\n".join(lines) + "\n")
