"""The attribution graph: one exact, sparse, immutable object that everything else works on.

Nodes are a table in the order of the matrix; edges are a ``scipy.sparse`` matrix whose rows are
targets and whose columns are sources (Circuit Tracing 2025, "Constructing an attribution graph").
Nothing derived (influence, shares) is kept here: it is computed from the edges when asked for, so
it can never be stale. What only the *unpruned* graph could tell (``…_full`` columns, ``scores``)
is carried along, because the edges left cannot tell it any more.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from tracer.errors import GraphError

if TYPE_CHECKING:
    import networkx as nx

__all__ = [
    "FIELDS",
    "JSON",
    "KINDS",
    "NODE_COLUMNS",
    "PLAIN_FIELDS",
    "RULES",
    "AttributionGraph",
    "Rule",
    "Scores",
    "Supernode",
    "graph_identity",
    "node_table",
]

JSON = Any  # a value that json.dumps accepts
Mask = NDArray[np.bool_]
Vector = NDArray[np.float64]

SCHEMA_VERSION: Final = 1
KINDS: Final = ("feature", "error", "embedding", "logit")

Rule = Literal["full", "merge", "masked", "as_stored"]
RULES: Final[tuple[Rule, ...]] = ("full", "merge", "masked", "as_stored")


@dataclass(frozen=True)
class Column:
    """What one column of the node table holds."""

    type: Literal["text", "integer", "real"]
    doc: str
    always: bool = False  # present in every graph, filled with "unknown" where not given


NODE_COLUMNS: Final[Mapping[str, Column]] = {
    "kind": Column("text", "feature, error, embedding or logit", always=True),
    "layer": Column("integer", "layer read; −1 for embeddings, L for logits", always=True),
    "position": Column("integer", "prompt position, from 0", always=True),
    "index": Column(
        "integer", "feature index; token id of embeddings, logits; else −1", always=True
    ),
    "token": Column("text", "token at the position; the predicted token of a logit", always=True),
    "activation": Column("real", "activation of a feature, nan where unknown", always=True),
    "probability": Column("real", "weight w of a logit target, nan elsewhere", always=True),
    "label": Column("text", "human-readable label, from a file or a person", always=True),
    "source_id": Column("text", "id of the node in the file it came from"),
    "source_js_id": Column("text", "second id (jsNodeId) in the file it came from"),
    "influence_full": Column("real", "influence in the unpruned graph"),
    "error_fraction_full": Column("real", "error share of the input in the unpruned graph"),
    "input_full": Column("real", "Σ|weight| of the inputs in the unpruned graph"),
    "bias": Column("real", "constant part of the pre-activation, in no edge"),
    "bias_positions": Column("real", "part of bias from learned position embeddings"),
    "bias_parameters": Column("real", "part of bias from bias parameters"),
    "bias_zeroed": Column("real", "part of bias from MLP outputs at zeroed positions"),
}


@dataclass(frozen=True)
class Scores:
    """Evaluation figures of a graph under one pruning rule (spec, section 5).

    Attributes
    ----------
    rule
        ``full``, ``merge``, ``masked`` or ``as_stored``.
    completeness
        Share of (influence-weighted) inputs that do not come from error nodes, in [0, 1].
    replacement
        Share of embedding-and-error influence that embeddings hold, in [0, 1].
    mean_path_length
        Mean number of edges of embedding→logit paths, weighted by influence; nan without any.
    lost
        Share of the logits' weight that ends at features without inputs.
    """

    rule: Rule
    completeness: float
    replacement: float
    mean_path_length: float
    lost: float


def node_table(columns: Mapping[str, Any]) -> pd.DataFrame:
    """Make a table of nodes from its columns, with texts as Python's own.

    Where pyarrow is installed, pandas would keep them as Arrow strings, which hold no lone
    surrogates, and tokens of real vocabularies have them.

    Parameters
    ----------
    columns
        Values a column, by the names of :data:`NODE_COLUMNS`.
    """
    texts = {name for name, column in NODE_COLUMNS.items() if column.type == "text"}
    return pd.DataFrame(
        {
            name: pd.Series(values, dtype=object) if name in texts else values
            for name, values in columns.items()
        }
    )


@dataclass(frozen=True)
class Supernode:
    """A named group of nodes, by their rows in the graph's matrix."""

    name: str
    members: tuple[int, ...]
    author: str | None = None


class AttributionGraph:
    """An attribution graph of one prompt.

    Parameters
    ----------
    nodes
        One row a node, in the order of the matrix; columns as in :data:`NODE_COLUMNS`.
    adjacency
        ``(n, n)`` sparse matrix, ``adjacency[t, s]`` the signed weight of the edge s → t.
    prompt, tokens, token_ids
        The prompt, its tokens and their ids (``None`` where a file does not tell).
    model_id, transcoder_id
        Which model and which transcoder; ``None`` where unknown.
    model_info, transcoder_info
        What else is known of them (family, n_layers, read and write hooks, …).
    slug
        A name for people; never a key.
    settings
        Settings that change the result (targets, ``zero_first``, pruning thresholds, …).
    scores
        Scores that these edges cannot tell any more: the unpruned graph's, by rule.
    unpruned
        Whether the graph holds every node and edge that was traced.
    residual, attention
        Parts of `adjacency`: same shape, sum to it.
    supernodes, pinned
        Named groups of nodes, and nodes marked by a person (rows of the matrix).
    source
        Where an imported graph came from: format, what its fields meant, its other metadata.
    created_at
        ISO 8601 time of the trace, where known.
    parent_id
        The graph that this one was pruned from.
    graph_id
        16 hex digits; derived from the contents unless given (:func:`graph_identity`).

    Raises
    ------
    GraphError
        If shapes disagree, weights are not finite, edges form a cycle, errors or embeddings have
        inputs, logits have outputs, or a node appears twice. The message names the node.

    Examples
    --------
    >>> graph = AttributionGraph(
    ...     pd.DataFrame({"kind": ["embedding", "logit"], "layer": [-1, 1], "position": [0, 0],
    ...                   "index": [5, 7], "probability": [None, 0.9]}),
    ...     csr_array(([2.0], ([1], [0])), shape=(2, 2)), tokens=("a",))
    >>> graph
    <AttributionGraph 9bda50356bb8c49b: 2 nodes (1 embedding, 1 logit), 1 edge>
    """

    def __init__(
        self,
        nodes: pd.DataFrame,
        adjacency: Any,
        *,
        prompt: str = "",
        tokens: Sequence[str] = (),
        token_ids: Sequence[int] | None = None,
        model_id: str | None = None,
        transcoder_id: str | None = None,
        model_info: Mapping[str, JSON] | None = None,
        transcoder_info: Mapping[str, JSON] | None = None,
        slug: str = "",
        settings: Mapping[str, JSON] | None = None,
        scores: Mapping[Rule, Scores] | None = None,
        unpruned: bool = False,
        residual: Any = None,
        attention: Any = None,
        supernodes: Sequence[Supernode] = (),
        pinned: Sequence[int] = (),
        source: Mapping[str, JSON] | None = None,
        created_at: str | None = None,
        parent_id: str | None = None,
        graph_id: str | None = None,
    ) -> None:
        self.nodes = _node_table(nodes)
        self.adjacency = _matrix("adjacency", adjacency, len(self.nodes))
        self.prompt = prompt
        self.tokens = tuple(tokens)
        self.token_ids = None if token_ids is None else tuple(int(i) for i in token_ids)
        self.model_id = model_id
        self.transcoder_id = transcoder_id
        self.model_info = dict(model_info or {})
        self.transcoder_info = dict(transcoder_info or {})
        self.slug = slug
        self.settings = dict(settings or {})
        self.scores: dict[Rule, Scores] = dict(scores or {})
        self.unpruned = unpruned
        self.residual = None if residual is None else _matrix("residual", residual, self.n_nodes)
        self.attention = (
            None if attention is None else _matrix("attention", attention, self.n_nodes)
        )
        self.supernodes = tuple(
            Supernode(s.name, tuple(sorted(set(s.members))), s.author) for s in supernodes
        )
        self.pinned = tuple(sorted(set(pinned)))
        self.source = dict(source or {})
        self.created_at = created_at
        self.parent_id = parent_id
        _check(self)
        self.graph_id = graph_id or graph_identity(
            model_id=model_id,
            transcoder_id=transcoder_id,
            tokens=self.token_ids if self.token_ids is not None else self.tokens,
            targets=self.nodes.loc[self.is_logit, "index"].tolist(),
            settings={**self.settings, "parent": parent_id},
            content=self.digest(),
        )
        if len(self.graph_id) != 16 or not set(self.graph_id) <= set("0123456789abcdef"):
            raise GraphError(
                f"graph_id {self.graph_id!r} is not 16 lowercase hex digits",
                "Leave it out to have it derived from the contents",
            )

    # What is in it -----------------------------------------------------------------------------

    @property
    def n_nodes(self) -> int:
        """Number of nodes."""
        return len(self.nodes)

    @property
    def n_edges(self) -> int:
        """Number of edges (non-zero weights)."""
        return int(self.adjacency.nnz)

    @cached_property
    def is_feature(self) -> Mask:
        """Mask of the feature nodes, shape (n,)."""
        return self._is("feature")

    @cached_property
    def is_error(self) -> Mask:
        """Mask of the error nodes, shape (n,)."""
        return self._is("error")

    @cached_property
    def is_embedding(self) -> Mask:
        """Mask of the embedding nodes, shape (n,)."""
        return self._is("embedding")

    @cached_property
    def is_logit(self) -> Mask:
        """Mask of the logit nodes, shape (n,)."""
        return self._is("logit")

    @cached_property
    def logit_weights(self) -> Vector:
        """Weight w of each node: its probability at logits, 0 elsewhere, shape (n,)."""
        weights = self.nodes["probability"].to_numpy(dtype=np.float64, na_value=0.0)
        return np.where(self.is_logit, np.nan_to_num(weights), 0.0)

    @property
    def bias(self) -> Vector | None:
        """Constant of each row, shape (n,): row sums + bias = pre-activation; None if unknown."""
        return self.nodes["bias"].to_numpy() if "bias" in self.nodes else None

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Key of each node inside its graph: ``feature/12/4711/8``, ``error/3/8``, …."""
        return tuple(_keys(self.nodes))

    @property
    def node_ids(self) -> tuple[str, ...]:
        """Key of each node in a store: ``{graph_id}/`` and its key."""
        return tuple(f"{self.graph_id}/{key}" for key in self.keys)

    @cached_property
    def feature_ids(self) -> tuple[str | None, ...]:
        """Id of the feature of each node, ``{transcoder_id}/{layer}/{index}``; None elsewhere."""
        return tuple(
            f"{self.transcoder_id}/{layer}/{index}" if is_feature else None
            for is_feature, layer, index in zip(
                self.is_feature, self.nodes["layer"], self.nodes["index"], strict=True
            )
        )

    def row(self, key: str) -> int:
        """Row of the node with this key, node id, or id in its source file.

        Raises
        ------
        GraphError
            If no node, or more than one, has it.
        """
        rows = self._rows_by_id.get(key.removeprefix(f"{self.graph_id}/"), [])
        if len(rows) != 1:
            how = "no node" if not rows else f"{len(rows)} nodes"
            raise GraphError(
                f"graph {self.graph_id} has {how} {key!r}",
                "Name nodes as in graph.keys, such as feature/12/4711/8",
            )
        return rows[0]

    @cached_property
    def _rows_by_id(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for name in ("source_id", "source_js_id"):
            for row, value in enumerate(self.nodes.get(name, ())):
                if value is not None:
                    rows.setdefault(value, []).append(row)
        rows = {value: sorted(set(found)) for value, found in rows.items()}
        rows.update({key: [row] for row, key in enumerate(self.keys)})
        return rows

    def _is(self, kind: str) -> Mask:
        return (self.nodes["kind"] == kind).to_numpy(dtype=np.bool_)

    # Copies, comparison, identity --------------------------------------------------------------

    def replace(self, **changes: Any) -> AttributionGraph:
        """Copy with some constructor arguments changed; its id is kept unless changed too."""
        arguments = {name: getattr(self, name) for name in FIELDS}
        return AttributionGraph(**{**arguments, **changes})

    def differences(self, other: AttributionGraph) -> list[str]:
        """Names of the fields in which two graphs differ (exactly, nan equal to nan)."""
        found = []
        for name in FIELDS:
            mine, theirs = getattr(self, name), getattr(other, name)
            if isinstance(mine, pd.DataFrame):
                same = mine.equals(theirs)
            elif isinstance(mine, csr_array):
                same = isinstance(theirs, csr_array) and _same_matrix(mine, theirs)
            elif name == "scores":
                same = _scores_key(mine) == _scores_key(theirs)
            else:
                same = mine == theirs
            if not same:
                found.append(name)
        return found

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, AttributionGraph):
            return NotImplemented
        return not self.differences(other)

    def __hash__(self) -> int:
        return hash(self.graph_id)

    def digest(self) -> str:
        """SHA-256 of nodes (identity, activation, probability) and edges, as hex digits."""
        state = hashlib.sha256()
        for key in self.keys:
            state.update(key.encode() + b"\n")
        for name in ("activation", "probability"):
            state.update(self.nodes[name].to_numpy(dtype="<f8").tobytes())
        state.update(self.adjacency.indptr.astype("<i8").tobytes())
        state.update(self.adjacency.indices.astype("<i8", copy=False).data)
        state.update(self.adjacency.data.astype("<f8", copy=False).data)
        return state.hexdigest()

    # Conversions -------------------------------------------------------------------------------

    def to_pandas(self) -> pd.DataFrame:
        """Edge list: ``source``, ``target`` (node keys), ``weight``, and the parts where known."""
        from tracer.convert import to_pandas

        return to_pandas(self)

    def to_networkx(self) -> nx.DiGraph[str]:
        """NetworkX graph: nodes by key with the columns of the table, edges with their weight."""
        from tracer.convert import to_networkx

        return to_networkx(self)

    # Showing itself ----------------------------------------------------------------------------

    def __repr__(self) -> str:
        counts = self.nodes["kind"].value_counts()
        kinds = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if kind in counts)
        edges = f"{self.n_edges:,} edge{'' if self.n_edges == 1 else 's'}"
        name = f" {self.slug!r}" if self.slug else ""
        return (
            f"<AttributionGraph {self.graph_id}{name}: {self.n_nodes:,} nodes ({kinds}), {edges}>"
        )

    def _repr_html_(self) -> str:
        targets = self.nodes[self.is_logit].nlargest(5, "probability")
        rows = {
            "graph": f"{self.graph_id} {self.slug}",
            "prompt": self.prompt,
            "model": self.model_id or "unknown",
            "transcoder": self.transcoder_id or "unknown",
            "nodes": ", ".join(f"{int(self._is(kind).sum()):,} {kind}" for kind in KINDS),
            "edges": f"{self.n_edges:,}",
            "targets": ", ".join(
                f"{token!r} {probability:.3f}"
                for token, probability in zip(targets["token"], targets["probability"], strict=True)
            ),
        }
        cells = "".join(
            f"<tr><th style='text-align:left'>{name}</th>"
            f"<td style='text-align:left'>{html.escape(value)}</td></tr>"
            for name, value in rows.items()
        )
        return f"<table>{cells}</table>"


# Constructor arguments that are plain values, then all of them.
PLAIN_FIELDS: Final = (
    "prompt",
    "tokens",
    "token_ids",
    "model_id",
    "transcoder_id",
    "model_info",
    "transcoder_info",
    "slug",
    "settings",
    "unpruned",
    "source",
    "created_at",
    "parent_id",
    "graph_id",
)
FIELDS: Final = (
    *("nodes", "adjacency", "residual", "attention", "scores", "supernodes", "pinned"),
    *PLAIN_FIELDS,
)


def graph_identity(
    *,
    model_id: str | None,
    transcoder_id: str | None,
    tokens: Sequence[int] | Sequence[str],
    targets: JSON,
    settings: Mapping[str, JSON],
    content: str | None = None,
) -> str:
    """Derive a graph's id from what determines its result.

    Parameters
    ----------
    model_id, transcoder_id, tokens, targets, settings
        What a trace is made of; known before tracing, so a resumed run can skip what it has.
    content
        Digest of nodes and edges, for graphs whose settings are not fully known (imports).

    Returns
    -------
    str
        16 hex digits of a SHA-256.
    """
    text = json.dumps(
        [model_id, transcoder_id, list(tokens), targets, dict(settings), content],
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Construction and its checks -------------------------------------------------------------------


def _node_table(nodes: pd.DataFrame) -> pd.DataFrame:
    """Bring a node table into its one form: known columns, in order, with exact types."""
    if unknown := [str(name) for name in nodes.columns if name not in NODE_COLUMNS]:
        raise GraphError(
            f"node table has unknown columns {', '.join(unknown)}",
            f"Known are {', '.join(NODE_COLUMNS)}",
        )
    for name in ("kind", "layer", "position", "index"):
        if name not in nodes:
            raise GraphError(f"node table lacks column {name!r}", "Give it for every node")
    columns: dict[str, NDArray[Any]] = {}
    for name, column in NODE_COLUMNS.items():
        if name in nodes:
            values = _column(name, column, nodes[name])
            if column.always or not pd.isna(values).all():
                columns[name] = values
        elif column.always:
            empty: Any = np.nan if column.type == "real" else None
            columns[name] = np.full(len(nodes), empty, float if column.type == "real" else object)
    # The dtype is given, because pandas 3 would make None nan in a column of strings.
    return pd.DataFrame(
        {name: pd.Series(values, dtype=values.dtype) for name, values in columns.items()}
    )


def _column(name: str, column: Column, values: pd.Series[Any]) -> NDArray[Any]:
    try:
        if column.type == "integer":
            numbers = values.to_numpy(dtype=np.float64)
            if not np.array_equal(numbers, np.round(numbers)):
                raise ValueError("not whole numbers")
            return values.to_numpy(dtype=np.int64)
        if column.type == "real":
            return values.to_numpy(dtype=np.float64, na_value=np.nan)
    except (TypeError, ValueError, OverflowError) as error:
        raise GraphError(
            f"node column {name!r} does not hold {column.type} values ({error})",
            "Convert it before making the graph",
        ) from error
    missing = values.isna().to_numpy()
    return np.array(
        [None if gone else str(v) for v, gone in zip(values, missing, strict=True)], dtype=object
    )


def _matrix(name: str, matrix: Any, n: int) -> csr_array:
    """Bring a matrix into its one form: CSR, sorted, no stored zeros, float32 or float64, frozen.

    A matrix already in that form is shared, not copied: large graphs fit in memory once.
    """
    made = csr_array(matrix)
    if made.shape != (n, n):
        raise GraphError(
            f"{name} has shape {made.shape}, the node table has {n} rows",
            f"Give a matrix of shape ({n}, {n}), rows = targets",
        )
    if made.dtype not in (np.float32, np.float64):
        made = made.astype(np.float64)
    if not made.has_canonical_format or not made.data.all():
        made = made.copy()
        made.sum_duplicates()
        made.eliminate_zeros()
    if not np.isfinite(made.data).all():
        t, s = _first_entry(made, ~np.isfinite(made.data))
        raise GraphError(
            f"{name} holds a weight that is not finite, from node {s} to node {t}",
            "Trace again in a wider float type, or remove the edge",
        )
    frozen = csr_array(
        (made.data.view(), made.indices.view(), made.indptr.view()), shape=made.shape, copy=False
    )
    for array in (frozen.data, frozen.indices, frozen.indptr):
        array.flags.writeable = False
    return frozen


def _check(graph: AttributionGraph) -> None:
    """Check the rules of the definition; the first one broken is raised, naming the node."""
    nodes = graph.nodes
    if unknown := sorted(set(nodes["kind"]) - set(KINDS), key=str):
        raise GraphError(f"node kind {unknown[0]!r} is unknown", f"Known are {', '.join(KINDS)}")
    _check_places(graph)
    _check_values(graph)
    _check_unique(graph)
    _check_edges(graph)
    _check_parts(graph)
    for supernode in graph.supernodes:
        _check_rows(graph, f"supernode {supernode.name!r}", supernode.members)
    _check_rows(graph, "pinned", graph.pinned)


def _check_places(graph: AttributionGraph) -> None:
    nodes, n_tokens = graph.nodes, len(graph.tokens)
    if graph.token_ids is not None and len(graph.token_ids) != n_tokens:
        raise GraphError(
            f"{len(graph.token_ids)} token ids but {n_tokens} tokens", "Give one for each"
        )
    layer, position = nodes["layer"].to_numpy(), nodes["position"].to_numpy()
    bad_layer = np.where(graph.is_embedding, layer != -1, layer < 0)
    bad_position = (position < 0) | ((position >= n_tokens) & (n_tokens > 0))
    bad_index = graph.is_feature & (nodes["index"].to_numpy() < 0)
    for what, bad in (("layer", bad_layer), ("position", bad_position), ("index", bad_index)):
        if bad.any():
            row = int(np.argmax(bad))
            raise GraphError(
                f"node {row} ({nodes['kind'].iloc[row]}) has {what} {nodes[what].iloc[row]}",
                "Embeddings have layer −1, others a layer from 0; positions count the prompt's "
                f"{n_tokens} tokens from 0; features have an index from 0",
            )


def _check_values(graph: AttributionGraph) -> None:
    nodes = graph.nodes
    probability = nodes["probability"].to_numpy()
    bad = graph.is_logit & ~((probability >= 0) & (probability <= 1 + 1e-6))
    if bad.any():
        row = int(np.argmax(bad))
        raise GraphError(
            f"logit node {row} has probability {probability[row]}",
            "Every logit target needs a weight in [0, 1]",
        )
    if (~graph.is_logit & ~np.isnan(probability)).any():
        row = int(np.argmax(~graph.is_logit & ~np.isnan(probability)))
        raise GraphError(
            f"node {row} ({nodes['kind'].iloc[row]}) has a probability", "Only logits have one"
        )
    for name in nodes.columns:
        if NODE_COLUMNS[name].type == "real" and np.isinf(nodes[name]).any():
            row = int(np.argmax(np.isinf(nodes[name])))
            raise GraphError(f"node {row} has an infinite {name}", "Trace it again")


def _check_unique(graph: AttributionGraph) -> None:
    keys = pd.Series(graph.keys, dtype=object)
    if keys.duplicated().any():
        row = int(np.argmax(keys.duplicated()))
        raise GraphError(
            f"node {row} is {keys[row]} a second time", "Give each feature, error, token once"
        )


def _check_edges(graph: AttributionGraph) -> None:
    adjacency, keys = graph.adjacency, graph.keys
    inputs = np.diff(adjacency.indptr)
    sinks = (graph.is_embedding | graph.is_error) & (inputs > 0)
    if sinks.any():
        row = int(np.argmax(sinks))
        raise GraphError(
            f"node {keys[row]} has {inputs[row]} inputs",
            "Embeddings and errors have none: is the matrix transposed? Rows are targets",
        )
    leaving = graph.is_logit[adjacency.indices]
    if leaving.any():
        t, s = _first_entry(adjacency, leaving)
        raise GraphError(
            f"logit node {keys[s]} feeds {keys[t]}",
            "Logits have no outputs: is the matrix transposed? Rows are targets",
        )
    if adjacency.diagonal().any():
        row = int(np.argmax(adjacency.diagonal() != 0))
        raise GraphError(f"node {keys[row]} feeds itself", "An attribution graph has no cycle")
    count, component = connected_components(adjacency, directed=True, connection="strong")
    if count < graph.n_nodes:
        sizes = np.bincount(component)
        members = np.flatnonzero(component == np.argmax(sizes))
        names = ", ".join(keys[row] for row in members[:4])
        raise GraphError(
            f"{len(members)} nodes form a cycle: {names}{', …' if len(members) > 4 else ''}",
            "An attribution graph has no cycle; remove the links that point backwards",
        )


def _check_parts(graph: AttributionGraph) -> None:
    if (graph.residual is None) != (graph.attention is None):
        raise GraphError(
            "residual and attention parts come together", "Give both of them, or neither"
        )
    if graph.residual is None or graph.attention is None:
        return
    remainder = abs(graph.adjacency - graph.residual - graph.attention)
    scale = abs(graph.adjacency).max() if graph.n_edges else 0.0
    # Float32 parts of a float32 sum differ from it by rounding alone.
    if remainder.nnz and remainder.max() > 1e-5 * max(float(scale), 1e-30):
        raise GraphError(
            f"residual + attention differs from adjacency by {remainder.max():.2g}",
            "The parts must sum to the edge weights",
        )


def _check_rows(graph: AttributionGraph, what: str, rows: Sequence[int]) -> None:
    if bad := [row for row in rows if not 0 <= row < graph.n_nodes]:
        raise GraphError(
            f"{what} names node {bad[0]}", f"The graph has {graph.n_nodes} nodes, counted from 0"
        )


def _keys(nodes: pd.DataFrame) -> list[str]:
    keys, targets = [], 0
    for kind, layer, position, index in zip(
        nodes["kind"], nodes["layer"], nodes["position"], nodes["index"], strict=True
    ):
        if kind == "feature":
            keys.append(f"feature/{layer}/{index}/{position}")
        elif kind == "error":
            keys.append(f"error/{layer}/{position}")
        elif kind == "embedding":
            keys.append(f"embedding/{position}")
        elif index >= 0:
            keys.append(f"logit/{index}")
        else:  # a custom target has no token of its own
            keys.append(f"logit/target-{targets}")
            targets += 1
    return keys


def _first_entry(matrix: csr_array, mask: Mask) -> tuple[int, int]:
    """Row and column of the first stored entry under a mask."""
    entry = int(np.argmax(mask))
    row = int(np.searchsorted(matrix.indptr, entry, side="right")) - 1
    return row, int(matrix.indices[entry])


def _same_matrix(a: csr_array, b: csr_array) -> bool:
    return (
        a.shape == b.shape
        and a.dtype == b.dtype
        and np.array_equal(a.indptr, b.indptr)
        and np.array_equal(a.indices, b.indices)
        and np.array_equal(a.data, b.data)
    )


def _scores_key(scores: Mapping[Rule, Scores]) -> str:
    """Text form of the scores, in which nan equals nan."""
    return repr(
        {rule: [getattr(scores[rule], f.name) for f in fields(Scores)] for rule in sorted(scores)}
    )
