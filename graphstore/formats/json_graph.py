"""Read attribution-graph JSON: circuit-tracer's, Neuronpedia's and Anthropic's.

One layout, three dialects. What a field means differs between files, so it is found out from the
file itself and recorded in ``graph.source``; what cannot be found out is refused, never guessed.
``docs/files.md`` lists what differs.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import repeat
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.sparse import coo_array, csr_array

from graphstore.formats.common import Limits, field, parse_json, read_bytes, shown
from graphstore.formats.identity import DEPTHS, Identity, cantor, identify, uncantor
from graphstore.formats.influence_field import influence_meaning
from tracer.errors import CircuitWarning, FormatError, GraphError
from tracer.graph import AttributionGraph, Supernode, node_table

__all__ = ["FEATURE_TYPES", "logit_token", "read_json", "source_facts"]

Rows = NDArray[np.int64]

FEATURE_TYPES: Final[Mapping[str, str]] = {
    "cross layer transcoder": "feature",  # per-layer transcoders are called so too
    "mlp reconstruction error": "error",
    "embedding": "embedding",
    "logit": "logit",
}

_NODE_ID: Final = re.compile(r"(\d{1,9})_(-?\d{1,18})_(\d{1,9})")
_EMBEDDING_ID: Final = re.compile(r"E_(\d{1,18})_(\d{1,9})")
_OUTPUT: Final = re.compile(r'\s*output:?\s*"(.*)"\s*\(p=[^()]*\)\s*', re.IGNORECASE | re.DOTALL)
_OLD_ERROR_REMEDY: Final = (
    "Write the file again with a circuit-tracer whose error ids are {layer}_-1_{position}"
)


def read_json(
    path: Path,
    limits: Limits,
    *,
    transcoder: str | None = None,
    model: str | None = None,
    drop_dangling: bool = False,
) -> AttributionGraph:
    """Read one attribution-graph JSON file.

    Parameters
    ----------
    path
        The file.
    limits
        Sizes and depths beyond which it is refused.
    transcoder, model
        Ids to use in place of those in the file.
    drop_dangling
        Drop links to nodes that the file does not list, with a warning, in place of refusing it.

    Returns
    -------
    AttributionGraph
        Never ``unpruned``: such files hold pruned graphs. Edge weights are float64.

    Raises
    ------
    FormatError
        Naming the file, the field and the remedy.
    """
    name = str(path)
    content = parse_json(read_bytes(path, limits), name, limits)
    if not isinstance(content, dict):
        raise FormatError(
            f"{name}: holds {shown(content)}, not an object with nodes and links",
            "Check that it is an attribution graph",
        )
    where = f"{name}: "
    if absent := [part for part in ("metadata", "nodes", "links") if part not in content]:
        raise FormatError(
            f"{name}: has no {' and no '.join(map(shown, absent))}",
            "Check that it is an attribution graph: such a file holds metadata, nodes and links",
        )
    metadata = field(content, "metadata", "object", where)
    parameters = field(content, "qParams", "object", where, {})
    tokens = field(metadata, "prompt_tokens", "list", f"{where}metadata")
    for place, token in enumerate(tokens):
        if not isinstance(token, str):
            raise FormatError(
                f"{name}: metadata.prompt_tokens[{place}] is {shown(token)}, not a text",
                "Export the graph again",
            )
    own = _own_record(metadata)
    identity = identify(metadata, name, transcoder=transcoder, model=model)
    nodes = _read_nodes(field(content, "nodes", "list", where), name)
    logit_layer = _settle_logits(nodes, own, identity, metadata, name)
    records = field(content, "links", "list", where)
    links = _link_columns(records, name)
    records.clear()  # most of the memory that reading takes
    adjacency = _read_links(*links, nodes, name, drop_dangling)
    references = _References(nodes, name)
    pinned, supernodes = references.read(parameters)
    source = {
        "format": _dialect(metadata, nodes),
        "influence": "absent",
        "transcoder_from": identity.transcoder_from,
        "logit_layer": logit_layer,
        "references": references.by,
        **({"unresolved": references.unresolved} if references.unresolved else {}),
    }
    if own.source:  # written by circuitbase: what its first file said still holds
        kept = {key: value for key, value in source.items() if key == "unresolved"}
        source = {**own.source, **kept}
        if transcoder is not None:
            source["transcoder_from"] = "argument"
    source |= _rest(metadata, parameters, own)
    token_ids = None if nodes.raw else _token_ids(nodes, len(tokens))
    if own.virtual_from is not None:  # custom targets have no token: they are numbered from here
        nodes.index = [
            -1 if kind == "logit" and index >= own.virtual_from else index
            for kind, index in zip(nodes.kind, nodes.index, strict=True)
        ]
    try:
        graph = AttributionGraph(
            _node_table(nodes, tokens),
            adjacency,
            prompt=field(metadata, "prompt", "text", f"{where}metadata", ""),
            tokens=tokens,
            token_ids=token_ids,
            model_id=identity.model_id,
            transcoder_id=identity.transcoder_id,
            transcoder_info=identity.transcoder_info,
            slug=field(metadata, "slug", "text", f"{where}metadata", ""),
            settings=_settings(metadata),
            supernodes=supernodes,
            pinned=pinned,
            source=source,
            created_at=_created(metadata),
        )
    except GraphError as error:
        raise FormatError(f"{name}: {error.what}", error.remedy) from error
    if not own.source:
        graph.source["influence"] = influence_meaning(graph, np.array(nodes.influence))
    return graph


# Nodes -----------------------------------------------------------------------------------------


@dataclass
class _Nodes:
    """Columns read from the file's nodes, one entry a node, and how its ids are to be read."""

    id: list[str]
    js_id: list[str | None]
    kind: list[str]
    layer: list[int]
    position: list[int]
    index: list[int]
    activation: list[float]
    probability: list[float]
    label: list[str | None]
    influence: list[float]
    raw: bool = False  # `feature` holds the index itself, as in Anthropic's files


def _read_nodes(records: list[Any], name: str) -> _Nodes:
    nodes = _Nodes([], [], [], [], [], [], [], [], [], [])
    features: list[tuple[int, int]] = []  # row and number in `feature`
    for row, record in enumerate(records):
        where = f"{name}: nodes[{row}]"
        if not isinstance(record, dict):
            raise FormatError(f"{where} is {shown(record)}, not an object", "Export it again")
        node_id = field(record, "node_id", "text", where)
        type_ = field(record, "feature_type", "text", where)
        kind = FEATURE_TYPES.get(type_)
        if kind is None:
            raise FormatError(
                f"{where}.feature_type is {shown(type_)}, an unknown kind of node",
                f"Known are {', '.join(FEATURE_TYPES)}",
            )
        layer = _layer(record, kind, where)
        position = field(record, "ctx_idx", "whole", where)
        nodes.id.append(node_id)
        nodes.js_id.append(field(record, "jsNodeId", "text", where, "") or None)
        nodes.kind.append(kind)
        nodes.layer.append(layer)
        nodes.position.append(position)
        nodes.index.append(_index(record, kind, layer, position, node_id, where))
        nodes.label.append(field(record, "clerp", "text", where, "") or None)
        nodes.activation.append(
            float(field(record, "activation", "number", where, np.nan))
            if kind == "feature"
            else np.nan
        )
        nodes.probability.append(
            float(field(record, "token_prob", "number", where)) if kind == "logit" else np.nan
        )
        nodes.influence.append(
            float(field(record, "influence", "number", where, np.nan))
            if kind != "logit"
            else np.nan
        )
        if kind == "feature":
            features.append((row, field(record, "feature", "whole", where)))
    nodes.raw = _feature_numbers(nodes, features, name)
    return nodes


def _layer(record: Mapping[str, Any], kind: str, where: str) -> int:
    layer = record.get("layer")
    if kind == "embedding":
        return -1
    if type(layer) is int and layer >= 0:
        return layer
    if isinstance(layer, str) and re.fullmatch(r"\d{1,9}", layer, re.ASCII):
        return int(layer)
    if "layer" not in record:
        raise FormatError(f"{where}.layer is missing", "Export the graph again")
    raise FormatError(f"{where}.layer is {shown(layer)}, not a layer's number", "Export it again")


def _index(
    record: Mapping[str, Any], kind: str, layer: int, position: int, node_id: str, where: str
) -> int:
    """Index of a feature, or the id of a token; −1 for errors and where the file has none."""
    if kind == "error":
        return -1
    if kind == "embedding":
        found = _EMBEDDING_ID.fullmatch(node_id)
        return int(found[1]) if found and int(found[2]) == position else -1
    parts = _NODE_ID.fullmatch(node_id)
    if kind == "logit":
        number = record.get("feature")
        if parts and int(parts[2]) >= 0 and number in (int(parts[2]), None):
            return int(parts[2])
        raise FormatError(
            f"{where}: its token cannot be told: node_id {shown(node_id)}, feature {shown(number)}",
            "The node_id of a logit is {layer}_{token id}_{position}",
        )
    if not parts or int(parts[2]) < 0:
        raise FormatError(
            f"{where}: the feature's index cannot be recovered from node_id {shown(node_id)}",
            "The node_id of a feature is {layer}_{index}_{position}",
        )
    if (int(parts[1]), int(parts[3])) != (layer, position):
        raise FormatError(
            f"{where}: node_id {shown(node_id)} contradicts layer {layer}, ctx_idx {position}",
            "The node_id of a feature is {layer}_{index}_{position}: export the graph again",
        )
    return int(parts[2])


def _feature_numbers(nodes: _Nodes, features: Sequence[tuple[int, int]], name: str) -> bool:
    """Check ``feature`` against ``node_id`` in every feature; tell whether it is the raw index.

    In circuit-tracer's files it is the Cantor pairing of layer and index, in Anthropic's the index.
    """
    raw = False
    own_layer = 0
    for row, number in features:
        layer, index = nodes.layer[row], nodes.index[row]
        if number == cantor(layer, index):
            continue
        if number != index:
            raise FormatError(
                f"{name}: nodes[{row}]: the feature's index cannot be recovered: node_id says "
                f"{index}, feature {number} is neither that nor its pairing with layer {layer}",
                "Export the graph again: circuitbase never guesses a feature's id",
            )
        raw = True
        own_layer += uncantor(number)[0] == layer
    if raw and own_layer == len(features):
        row = features[0][0]
        raise FormatError(
            f"{name}: node ids hold {nodes.index[row]} and the like, every one of which is the "
            "pairing of its layer with a smaller index: the features' indices cannot be recovered",
            "Export the graph with node ids {layer}_{index}_{position}",
        )
    return raw


def _settle_logits(
    nodes: _Nodes,
    own: _Own,
    identity: Identity,
    metadata: Mapping[str, Any],
    name: str,
) -> str:
    """Bring the logits to layer L, and tell which layer the file gave them: L or L+1."""
    rows = [row for row, kind in enumerate(nodes.kind) if kind == "logit"]
    layers = sorted({nodes.layer[row] for row in rows})
    if not layers:
        raise FormatError(f"{name}: has no logit node", "Check that it is an attribution graph")
    if len(layers) > 1:
        raise FormatError(
            f"{name}: has logits at layers {layers[0]} and {layers[1]}", "Export it again"
        )
    deepest = max(
        (
            layer
            for layer, kind in zip(nodes.layer, nodes.kind, strict=True)
            if kind in ("feature", "error")
        ),
        default=-1,
    )
    if layers[0] <= deepest:
        raise FormatError(
            f"{name}: its logits lie at layer {layers[0]}, not above its deepest node's, {deepest}",
            "Export the graph again",
        )
    convention = _logit_convention(layers[0], deepest, nodes.raw, own, identity, metadata)
    if convention == "L+1":
        for row in rows:
            nodes.layer[row] -= 1
    return convention


def _logit_convention(
    layer: int,
    deepest: int,
    raw: bool,
    own: _Own,
    identity: Identity,
    metadata: Mapping[str, Any],
) -> str:
    if layer == deepest + 1:  # layer − 1 holds features, so the model has at least `layer` layers
        return "L"
    if own.logit_layer is not None:
        return own.logit_layer
    for model in (identity.model_id, metadata.get("scan")):
        depth = DEPTHS.get(str(model).rsplit("/", 1)[-1].lower())
        if depth in (layer, layer - 1) and depth > deepest:
            return "L" if depth == layer else "L+1"
    return "L" if raw else "L+1"  # as Anthropic's own files have it, and circuit-tracer's


def _token_ids(nodes: _Nodes, n_tokens: int) -> list[int] | None:
    """Ids of the prompt's tokens, if an embedding node tells it of every position."""
    known = {
        position: index
        for kind, position, index in zip(nodes.kind, nodes.position, nodes.index, strict=True)
        if kind == "embedding" and index >= 0
    }
    return [known[p] for p in range(n_tokens)] if set(known) == set(range(n_tokens)) else None


def _node_table(nodes: _Nodes, tokens: Sequence[str]) -> pd.DataFrame:
    return node_table(
        {
            "kind": nodes.kind,
            "layer": nodes.layer,
            "position": nodes.position,
            "index": nodes.index,
            "token": [
                logit_token(label)
                if kind == "logit"
                else (tokens[position] if 0 <= position < len(tokens) else None)
                for kind, position, label in zip(
                    nodes.kind, nodes.position, nodes.label, strict=True
                )
            ],
            "activation": nodes.activation,
            "probability": nodes.probability,
            "label": nodes.label,
            "source_id": nodes.id,
            "source_js_id": nodes.js_id,
        }
    )


def logit_token(label: str | None) -> str | None:
    """Token that a logit's label names, or None.

    Examples
    --------
    >>> logit_token('Output " Austin" (p=0.396)')
    ' Austin'
    """
    found = _OUTPUT.fullmatch(label or "")
    return found[1] if found else None


# Links -----------------------------------------------------------------------------------------


def _read_links(
    starts: list[str],
    ends: list[str],
    values: list[float],
    nodes: _Nodes,
    name: str,
    drop_dangling: bool,
) -> csr_array:
    """Make the matrix of a file's links; links of weight 0 are no edges."""
    rows, errors = _rows_by_id(nodes, name)
    sources, targets = (
        np.fromiter(map(rows.get, named, repeat(-1)), dtype=np.int64, count=len(named))
        for named in (starts, ends)
    )
    weights = np.array(values, dtype=np.float64)
    dangling = np.flatnonzero((sources < 0) | (targets < 0))
    if len(dangling):
        place = int(dangling[0])
        end = ("starts", starts[place]) if sources[place] < 0 else ("ends", ends[place])
        _report_dangling(place, *end, len(dangling), len(starts), name, drop_dangling)
    places = np.flatnonzero((sources >= 0) & (targets >= 0) & (weights != 0))
    sources, targets, weights = sources[places], targets[places], weights[places]
    if errors:
        _resolve_collisions(targets, sources, errors, nodes, name)
    n = len(nodes.id)
    pairs = targets * n + sources
    order = np.argsort(pairs, kind="stable")
    again = order[1:][np.diff(pairs[order]) == 0]
    if len(again):
        extra = int(again.min())
        earlier = places[int(np.flatnonzero(pairs == pairs[extra])[0])]
        raise FormatError(
            f"{name}: links[{places[extra]}] repeats links[{earlier}], from "
            f"{shown(nodes.id[sources[extra]])} to {shown(nodes.id[targets[extra]])}",
            "Which weight is meant cannot be told: export the graph again",
        )
    return csr_array(coo_array((weights, (targets, sources)), shape=(n, n)))


def _link_columns(records: list[Any], name: str) -> tuple[list[str], list[str], list[float]]:
    """Take the links apart, all at once; if that fails, one by one to name the fault."""
    with suppress(KeyError, TypeError):
        starts = [record["source"] for record in records]
        ends = [record["target"] for record in records]
        weights = [record["weight"] for record in records]
        if set(map(type, starts + ends)) <= {str} and set(map(type, weights)) <= {int, float}:
            return starts, ends, weights
    for place, record in enumerate(records):
        where = f"{name}: links[{place}]"
        if not isinstance(record, dict):
            raise FormatError(f"{where} is {shown(record)}, not an object", "Export it again")
        field(record, "source", "text", where)
        field(record, "target", "text", where)
        field(record, "weight", "number", where)
    raise FormatError(f"{name}: its links cannot be read", "Export the graph again")


def _rows_by_id(nodes: _Nodes, name: str) -> tuple[dict[str, int], dict[int, int]]:
    """Row of each node id; and, by feature, the error node that has the same id.

    Error nodes of older files are called ``0_{layer}_{position}``, which is also the id of the
    feature whose index is that layer, in layer 0. No other id may stand for two nodes.
    """
    rows: dict[str, int] = {}
    errors: dict[int, int] = {}
    for row, node_id in enumerate(nodes.id):
        if node_id not in rows:
            rows[node_id] = row
            continue
        pair = {nodes.kind[rows[node_id]]: rows[node_id], nodes.kind[row]: row}
        if set(pair) != {"feature", "error"} or pair["feature"] in errors:
            raise FormatError(
                f"{name}: node {shown(node_id)} is listed twice, as nodes[{rows[node_id]}] and "
                f"nodes[{row}]",
                "Export the graph again",
            )
        errors[pair["feature"]] = pair["error"]
        rows[node_id] = pair["feature"]  # right for targets: errors have no inputs
    return rows, errors


def _resolve_collisions(
    targets: Rows, sources: Rows, errors: Mapping[int, int], nodes: _Nodes, name: str
) -> None:
    """Find out, where one id is a feature's and an error's, which of the two a link comes from.

    Certain in two cases. An error of layer m feeds only what lies above m. And circuit-tracer lists
    links by target, then by source, in the order of its nodes: in a file that keeps this order
    everywhere, a link's neighbours say which source can stand between them.
    """
    n = len(nodes.id)
    open_ = [
        int(link)
        for link in np.flatnonzero(np.isin(sources, list(errors)))
        if nodes.layer[targets[link]] > nodes.layer[errors[int(sources[link])]]
    ]
    keys = targets * n + sources
    pairs = keys.copy()
    certain = np.ones(len(keys), dtype=bool)
    certain[open_] = False
    ordered = bool((np.diff(keys[certain]) > 0).all())
    following = np.append(keys, [np.iinfo(np.int64).max] * 2)  # each link's key at its highest
    for link in open_:
        feature = int(sources[link])
        following[link] = targets[link] * n + max(feature, errors[feature])
    for link in open_:
        feature = int(sources[link])
        error = errors[feature]
        before = keys[link - 1] if link else -1
        twin = link + 1 < len(keys) and pairs[link + 1] == pairs[link]
        after = following[link + 2] if twin else following[link + 1]
        choices = [row for row in (feature, error) if before < targets[link] * n + row < after]
        if twin and choices == [feature, error]:
            choices = [feature]  # both are there, and the feature stands first
        if not ordered or len(choices) != 1:
            raise FormatError(
                f"{name}: node id {shown(nodes.id[feature])} is a feature's and an error node's, "
                f"and the source of links to {shown(nodes.id[targets[link]])} cannot be told",
                _OLD_ERROR_REMEDY,
            )
        sources[link] = choices[0]
        keys[link] = targets[link] * n + choices[0]


def _report_dangling(
    place: int, end: str, missing: str, dangling: int, links: int, name: str, drop: bool
) -> None:
    if not drop:
        raise FormatError(
            f"{name}: link {place:,} {end} at node {shown(missing)}, which the file does not list "
            f"({dangling:,} of {links:,} links are so)",
            "Export the graph again, or import it with --drop-dangling (drop_dangling=True)",
        )
    warnings.warn(
        f"{name}: dropped {dangling:,} of {links:,} links, which name nodes that the "
        f"file does not list, such as {shown(missing)}.",
        CircuitWarning,
        stacklevel=2,
    )


# Pinned nodes and supernodes -------------------------------------------------------------------


class _References:
    """Finds the nodes that ``pinnedIds`` and ``supernodes`` name, by node_id or by jsNodeId."""

    def __init__(self, nodes: _Nodes, name: str) -> None:
        self.name = name
        self.unresolved: dict[str, Any] = {}
        self._used: set[str] = set()
        self._node: dict[str, list[int]] = {}
        self._js: dict[str, list[int]] = {}
        for row, (node_id, js_id) in enumerate(zip(nodes.id, nodes.js_id, strict=True)):
            self._node.setdefault(node_id, []).append(row)
            if js_id is not None:
                self._js.setdefault(js_id, []).append(row)

    @property
    def by(self) -> str | None:
        """``node_id``, ``jsNodeId``, ``mixed``, or None without any reference."""
        return self._used.copy().pop() if len(self._used) == 1 else "mixed" if self._used else None

    def read(self, parameters: Mapping[str, Any]) -> tuple[list[int], list[Supernode]]:
        """Rows of the pinned nodes, and the supernodes; what names no node is kept and warned."""
        where = f"{self.name}: qParams"
        pinned, missing = self._rows(field(parameters, "pinnedIds", "list", where, []), where)
        if missing:
            self.unresolved["pinnedIds"] = missing
        supernodes, lost = [], []
        for place, group in enumerate(field(parameters, "supernodes", "list", where, [])):
            if not isinstance(group, list) or not group or not isinstance(group[0], str):
                raise FormatError(
                    f"{where}.supernodes[{place}] is {shown(group)}, not [name, id, …]",
                    "Export the graph again",
                )
            rows, missing = self._rows(group[1:], f"{where}.supernodes[{place}]")
            if rows:
                supernodes.append(Supernode(group[0], tuple(rows)))
            if missing or not rows:
                lost.append([group[0], *missing])
        if lost:
            self.unresolved["supernodes"] = lost
        count = len(self.unresolved.get("pinnedIds", ())) + sum(len(group) - 1 for group in lost)
        if count:
            warnings.warn(
                f"{self.name}: {count} pinned or grouped ids name no node of the file; they are "
                "kept and written back, but do nothing here.",
                CircuitWarning,
                stacklevel=2,
            )
        return pinned, supernodes

    def _rows(self, ids: Sequence[Any], where: str) -> tuple[list[int], list[str]]:
        rows, missing = [], []
        for reference in ids:
            if not isinstance(reference, str):
                raise FormatError(f"{where} names {shown(reference)}, not an id", "Export it again")
            for by, found in (("node_id", self._node), ("jsNodeId", self._js)):
                if reference in found:
                    self._used.add(by)
                    rows += found[reference]
                    break
            else:
                missing.append(reference)
        return sorted(set(rows)), missing


# Metadata --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Own:
    """What circuitbase wrote about a file of its own; as little to be trusted as the rest."""

    added: frozenset[str]
    source: dict[str, Any]
    logit_layer: str | None
    virtual_from: int | None


def _own_record(metadata: Mapping[str, Any]) -> _Own:
    found = metadata.get("circuitbase")
    record = found if isinstance(found, dict) else {}
    added, source = record.get("added"), record.get("source")
    layer, virtual = record.get("logit_layer"), record.get("virtual_from")
    return _Own(
        frozenset(x for x in added if isinstance(x, str))
        if isinstance(added, list)
        else frozenset(),
        source_facts(source) if isinstance(source, dict) else {},
        layer if layer in ("L", "L+1") else None,
        virtual if type(virtual) is int else None,
    )


def source_facts(source: Mapping[str, Any]) -> dict[str, str | None]:
    """Pick from a graph's ``source`` what it tells of the first file in words, less its rest."""
    return {k: v for k, v in source.items() if v is None or isinstance(v, str)}


def _dialect(metadata: Mapping[str, Any], nodes: _Nodes) -> str:
    if nodes.raw:
        return "anthropic"
    signs = ("info", "generation_settings", "pruning_settings", "feature_details")
    return "neuronpedia" if any(sign in metadata for sign in signs) else "circuit-tracer"


def _rest(metadata: Mapping[str, Any], parameters: Mapping[str, Any], own: _Own) -> dict[str, Any]:
    """Collect what the file says beyond the graph, verbatim, less what circuitbase added to it."""
    taken = {"slug", "prompt", "prompt_tokens", "circuitbase"}
    rest = {
        key: value
        for key, value in metadata.items()
        if key not in taken and f"metadata.{key}" not in own.added
    }
    if isinstance(rest.get("info"), dict):
        rest["info"] = {
            key: value
            for key, value in rest["info"].items()
            if key != "transcoder_set" and f"info.{key}" not in own.added
        }
    return {
        "metadata": rest,
        "qParams": {
            key: value
            for key, value in parameters.items()
            if key not in ("pinnedIds", "supernodes") and f"qParams.{key}" not in own.added
        },
    }


def _settings(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Thresholds that the graph was pruned at, where the file says so beyond doubt.

    ``metadata.node_threshold`` alone is no proof: some files hold a score there.
    """
    pruning = metadata.get("pruning_settings")
    if not isinstance(pruning, dict):
        return {}
    known = {
        key: pruning[key]
        for key in ("node_threshold", "edge_threshold")
        if type(pruning.get(key)) in (int, float)
    }
    return {"pruning": known} if known else {}


def _created(metadata: Mapping[str, Any]) -> str | None:
    info = metadata.get("info")
    moment = info.get("create_time_ms") if isinstance(info, dict) else None
    if not isinstance(moment, int | float) or not 0 <= moment < 1e14:
        return None
    return datetime.fromtimestamp(moment / 1000, UTC).isoformat(timespec="milliseconds")
