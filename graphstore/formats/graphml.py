"""GraphML, for Gephi, Cytoscape, igraph and NetworkX; and back.

Node and edge attributes are typed, one for each column of the node table and one for each matrix.
What else a graph holds is the header of ``.circuit`` as one graph-level text, so that a file
written here reads back equal in every field but the width of its floats. XML with a document type
is refused before it is parsed: entities can be made to expand without end.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from xml.parsers import expat

import numpy as np
import pandas as pd
from scipy.sparse import coo_array, csr_array

from graphstore.formats.common import Limits, atomic_file, read_bytes, shown
from graphstore.formats.header import build, dump_header, graph_header, load_header
from tracer.errors import FormatError, GraphError
from tracer.graph import NODE_COLUMNS, AttributionGraph

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["read_graphml", "write_graphml"]

_PARTS: Final = ("residual", "attention")
_NEEDED: Final = ("kind", "layer", "position", "index")
# What XML 1.0 cannot hold, or NetworkX would not give back: kept in the header in place of the tag.
_UNSAFE: Final = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


# Writing ---------------------------------------------------------------------------------------


def write_graphml(graph: AttributionGraph, path: Path) -> None:
    """Write a graph as GraphML.

    Raises
    ------
    FormatError
        If the file cannot be written, or settings hold what JSON cannot.
    """
    import networkx as nx  # slow to import, and needed for this format alone

    texts = {
        column: graph.nodes[column].tolist()
        for column in graph.nodes.columns
        if NODE_COLUMNS[column].type == "text" and not _safe(graph.nodes[column].tolist())
    }
    header = {
        **graph_header(graph),
        "columns": list(graph.nodes.columns),
        "dtypes": {
            name: str(matrix.dtype)
            for name in ("adjacency", *_PARTS)
            if (matrix := getattr(graph, name)) is not None
        },
        "texts": texts,
    }
    made: nx.DiGraph[str] = nx.DiGraph(
        circuitbase=dump_header(header, str(path)), **_readable(graph)
    )
    keys = graph.keys
    for key, row in zip(keys, graph.nodes.to_dict("records"), strict=True):
        made.add_node(key, **{str(k): _plain(v) for k, v in row.items() if _known(v)})
    for t, s, weights in _edges(graph):
        made.add_edge(keys[s], keys[t], **weights)
    buffer = io.BytesIO()
    nx.write_graphml_xml(made, buffer, encoding="utf-8", named_key_ids=True)
    with atomic_file(path) as file:
        file.write(buffer.getbuffer())


def _safe(values: list[Any]) -> bool:
    return not any(value is not None and (value == "" or _UNSAFE.search(value)) for value in values)


def _readable(graph: AttributionGraph) -> dict[str, Any]:
    """Header fields once more, for people and other programs; not read back."""
    fields = {
        "graph_id": graph.graph_id,
        "prompt": graph.prompt,
        "slug": graph.slug,
        "model_id": graph.model_id,
        "transcoder_id": graph.transcoder_id,
        "parent_id": graph.parent_id,
        "created_at": graph.created_at,
    }
    return {key: _UNSAFE.sub("\ufffd", value) for key, value in fields.items() if value}


def _known(value: Any) -> bool:
    return value is not None and not (isinstance(value, float) and math.isnan(value))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _UNSAFE.sub("\ufffd", value)
    return value.item() if isinstance(value, np.generic) else value


def _edges(graph: AttributionGraph) -> list[tuple[int, int, dict[str, float]]]:
    """Every edge as target, source and its weights; parts that cancel give a weight of 0."""
    edges: dict[tuple[int, int], dict[str, float]] = {}
    for name in ("adjacency", *_PARTS):
        matrix = getattr(graph, name)
        if matrix is None:
            continue
        entries = coo_array(matrix)
        attribute = "weight" if name == "adjacency" else name
        for t, s, value in zip(
            entries.row.tolist(), entries.col.tolist(), entries.data.tolist(), strict=True
        ):
            edges.setdefault((t, s), {"weight": 0.0})[attribute] = value
    return [(t, s, edges[t, s]) for t, s in sorted(edges)]


# Reading ---------------------------------------------------------------------------------------


def read_graphml(path: Path, limits: Limits) -> AttributionGraph:
    """Read a GraphML file: one written by circuitbase, or any with the node attributes it needs.

    Another program's file needs ``kind``, ``layer``, ``position`` and ``index`` at every node and
    ``weight`` at every edge; other attributes that circuitbase knows are read too.

    Raises
    ------
    FormatError
        If it is not such a file, has a document type, or breaks a rule of a graph.
    """
    import networkx as nx

    name = str(path)
    data = read_bytes(path, limits)
    _Checker(name, limits).check(data)
    try:
        found = nx.read_graphml(io.BytesIO(data))
    except (nx.NetworkXError, ValueError, KeyError) as error:
        raise FormatError(f"{name}: is not GraphML ({error})", "Export it again") from error
    if not found.is_directed() or found.is_multigraph():
        raise FormatError(
            f"{name}: its edges are not directed, or some are there twice", "Export it again"
        )
    rows = {node: row for row, node in enumerate(found.nodes)}
    table = pd.DataFrame(
        [dict(attributes) for _, attributes in found.nodes(data=True)],
        columns=[c for c in NODE_COLUMNS if any(c in a for _, a in found.nodes(data=True))],
        dtype=object,
    )
    for column in _NEEDED:
        missing = [node for node, a in found.nodes(data=True) if column not in a]
        if missing:
            raise FormatError(
                f"{name}: node {shown(missing[0])} has no {column}",
                f"Every node of an attribution graph needs {', '.join(_NEEDED)}",
            )
    table = table.where(table.notna(), None).astype(object) if len(table) else table
    text = found.graph.get("circuitbase")
    if text is None:
        matrix = _matrix(found, rows, "weight", np.float64, name)
        try:
            return AttributionGraph(table, matrix, source={"format": "graphml"})
        except GraphError as error:
            raise FormatError(f"{name}: {error.what}", error.remedy) from error
    header = load_header(str(text).encode(), name, limits)
    for column, values in _object(header, "texts", name).items():
        if column not in NODE_COLUMNS or not isinstance(values, list) or len(values) != len(rows):
            raise FormatError(f"{name}: header.texts has {shown(column)}", "Export it again")
        table[column] = pd.Series(values, dtype=object)
    matrices = {}
    for matrix_name, dtype in _object(header, "dtypes", name).items():
        if matrix_name not in ("adjacency", *_PARTS) or dtype not in ("float32", "float64"):
            raise FormatError(f"{name}: header.dtypes has {shown(matrix_name)}", "Export it again")
        attribute = "weight" if matrix_name == "adjacency" else matrix_name
        matrices[matrix_name] = _matrix(found, rows, attribute, np.dtype(dtype), name)
    if "adjacency" not in matrices:
        raise FormatError(f"{name}: header.dtypes lacks adjacency", "Export it again")
    return build(header, table, matrices, name)


def _object(header: Mapping[str, Any], key: str, name: str) -> dict[str, Any]:
    value = header.get(key)
    if not isinstance(value, dict):
        raise FormatError(f"{name}: header.{key} is {shown(value)}", "Export the graph again")
    return value


def _matrix(
    found: nx.Graph[Any], rows: Mapping[Any, int], attribute: str, dtype: Any, name: str
) -> csr_array:
    targets, sources, weights = [], [], []
    for source, target, attributes in found.edges(data=True):
        value = attributes.get(attribute, None if attribute == "weight" else 0.0)
        if not isinstance(value, int | float):
            raise FormatError(
                f"{name}: the edge from {shown(source)} to {shown(target)} has no number "
                f"{attribute}",
                "Every edge needs a weight",
            )
        if value != 0:
            targets.append(rows[target])
            sources.append(rows[source])
            weights.append(value)
    return csr_array((weights, (targets, sources)), shape=(len(rows), len(rows)), dtype=dtype)


class _Checker:
    """Walks the XML once without keeping it: refuses what must not, or need not, be parsed."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.name, self.limits, self.depth = name, limits, 0
        self.nodes: set[str] = set()
        self.edges: set[tuple[str, str]] = set()
        self.graphs = 0

    def check(self, data: bytes) -> None:
        parser = expat.ParserCreate(namespace_separator=" ")
        parser.StartDoctypeDeclHandler = self._doctype
        parser.EntityDeclHandler = self._doctype
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        try:
            parser.Parse(data, True)
        except (expat.ExpatError, ValueError, LookupError) as error:
            raise FormatError(
                f"{self.name}: is not XML ({error})", "It may be cut off: export it again"
            ) from error
        if self.graphs != 1:
            raise FormatError(
                f"{self.name}: holds {self.graphs} graphs, not one",
                "Check that it is a GraphML file",
            )
        dangling = [end for edge in self.edges for end in edge if end not in self.nodes]
        if dangling:
            raise FormatError(
                f"{self.name}: an edge names node {shown(min(dangling))}, which the file does not "
                "list",
                "Export the graph again",
            )

    def _doctype(self, *_: Any) -> None:
        raise FormatError(
            f"{self.name}: has a document type, which can make XML expand without end",
            "Remove it, or export the graph again",
        )

    def _start(self, tag: str, attributes: Mapping[str, str]) -> None:
        self.depth += 1
        if self.depth > self.limits.depth:
            raise FormatError(
                f"{self.name}: nested deeper than {self.limits.depth} levels", "Export it again"
            )
        kind = tag.rsplit(" ", 1)[-1]
        if kind == "graph":
            self.graphs += 1
        elif kind == "node":
            self._once(self.nodes, attributes.get("id", ""), "node")
        elif kind == "edge":
            ends = (attributes.get("source", ""), attributes.get("target", ""))
            self._once(self.edges, ends, "edge")

    def _end(self, _: str) -> None:
        self.depth -= 1

    def _once(self, seen: set[Any], item: Any, what: str) -> None:
        if item in seen:
            raise FormatError(
                f"{self.name}: {what} {' → '.join(item) if what == 'edge' else item} is listed "
                "twice",
                "Export the graph again",
            )
        seen.add(item)
