"""Write attribution-graph JSON that circuit-tracer's and Neuronpedia's viewers accept.

Ids and numbers follow circuit-tracer (``frontend/graph_models.py``, version 0.5), except where the
graph came from a file with ids of its own: those are kept. What the layout has no field for, and
what a reader needs to give back an equal graph, stands in ``metadata.circuitbase``.
"""

from __future__ import annotations

import math
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from scipy.sparse import coo_array

from graphstore.formats.common import atomic_file
from graphstore.formats.identity import cantor, identify
from graphstore.formats.influence_field import cumulative_share
from graphstore.formats.json_graph import FEATURE_TYPES, source_facts
from tracer.errors import FormatError
from tracer.graph import AttributionGraph
from tracer.influence import influence

__all__ = ["graph_to_json", "write_json"]

_TYPES: Final = {kind: name for name, kind in FEATURE_TYPES.items()}
_DIALECTS: Final = ("circuit-tracer", "neuronpedia", "anthropic")


def write_json(graph: AttributionGraph, path: Path) -> None:
    """Write a graph as JSON.

    Raises
    ------
    FormatError
        If the file cannot be written, or a text in the graph is not valid Unicode.
    """
    try:
        data = orjson.dumps(graph_to_json(graph), option=orjson.OPT_INDENT_2)
    except TypeError as error:  # orjson's errors are such: half a surrogate pair, a strange object
        raise FormatError(
            f"{path}: graph {graph.graph_id} holds what JSON cannot ({error})",
            "Write it as .circuit",
        ) from error
    with atomic_file(path) as file:
        file.write(data)


def graph_to_json(graph: AttributionGraph) -> dict[str, Any]:
    """Lay a graph out as the JSON object of its file.

    ``influence`` is the cumulative share, as circuit-tracer writes it, of the influence in this
    graph's own edges.

    Parameters
    ----------
    graph
        Any attribution graph.

    Returns
    -------
    dict
        ``metadata``, ``qParams``, ``nodes`` and ``links``.
    """
    ids = _Ids(graph)
    metadata = _metadata(graph, ids)
    parameters = _parameters(graph, ids, metadata["circuitbase"]["added"])
    return {
        "metadata": metadata,
        "qParams": parameters,
        "nodes": _nodes(graph, ids),
        "links": _links(graph, ids),
    }


# Ids -------------------------------------------------------------------------------------------


class _Ids:
    """The ids of a graph's nodes in the file, and the conventions behind them."""

    def __init__(self, graph: AttributionGraph) -> None:
        nodes, imported = graph.nodes, graph.source.get("format") in _DIALECTS
        self.raw = graph.source.get("format") == "anthropic"
        self.logit_layer = graph.source.get("logit_layer", "L+1") if imported else "L+1"
        self.kind: list[str] = nodes["kind"].tolist()
        self.layer: list[int] = nodes["layer"].tolist()
        self.position: list[int] = nodes["position"].tolist()
        self.virtual_from = _virtual_from(graph)
        self.index = self._indices(nodes["index"].tolist())
        unknown = [None] * graph.n_nodes
        self._kept = nodes["source_id"].tolist() if imported and "source_id" in nodes else unknown
        kept_js = (
            nodes["source_js_id"].tolist() if imported and "source_js_id" in nodes else unknown
        )
        self.node = self._settle([self._scheme(row) for row in range(graph.n_nodes)])
        self.js = [kept or self._js(row) for row, kept in enumerate(kept_js)]

    def layer_text(self, row: int) -> str:
        """Word the `layer` field: a text; E for embeddings; L+1 for logits, if so written."""
        if self.kind[row] == "embedding":
            return "E"
        above = self.kind[row] == "logit" and self.logit_layer == "L+1"
        return str(self.layer[row] + above)

    def _indices(self, indices: list[int]) -> list[int]:
        """Give custom targets numbers past the vocabulary, as circuit-tracer does."""
        custom = self.virtual_from or 0
        for row, kind in enumerate(self.kind):
            if kind == "logit" and indices[row] < 0:
                indices[row], custom = custom, custom + 1
        return indices

    def _scheme(self, row: int) -> str:
        if self.kind[row] == "embedding":
            return f"E_{self.index[row]}_{self.position[row]}"
        index = -1 if self.kind[row] == "error" else self.index[row]
        return f"{self.layer_text(row)}_{index}_{self.position[row]}"

    def _settle(self, scheme: list[str]) -> list[str]:
        """Keep ids of the source where the index does not stand in them, and they are unique."""
        free = [
            kind == "error" or (kind == "embedding" and index < 0)
            for kind, index in zip(self.kind, self.index, strict=True)
        ]
        wish = [
            kept if kept and may else made
            for kept, may, made in zip(self._kept, free, scheme, strict=True)
        ]
        count = Counter(wish)
        return [made if count[id_] > 1 else id_ for id_, made in zip(wish, scheme, strict=True)]

    def _js(self, row: int) -> str:
        layer, position, index = self.layer[row], self.position[row], self.index[row]
        return {
            "feature": f"{layer}_{index}-0",
            "error": f"{layer}_{position}-0",
            "embedding": f"E_{index}-{position}",
            "logit": f"L_{index}-{position}",
        }[self.kind[row]]


def _virtual_from(graph: AttributionGraph) -> int | None:
    """First number for custom targets, past every token id; None without such targets."""
    indices = graph.nodes["index"].to_numpy()
    if not (graph.is_logit & (indices < 0)).any():
        return None
    vocabulary = graph.model_info.get("vocab_size")
    tokens = indices[graph.is_logit | graph.is_embedding]
    return max(int(tokens.max()) + 1, vocabulary if isinstance(vocabulary, int) else 0)


# Parts of the file -----------------------------------------------------------------------------


def _metadata(graph: AttributionGraph, ids: _Ids) -> dict[str, Any]:
    rest = graph.source.get("metadata")
    metadata: dict[str, Any] = dict(rest) if isinstance(rest, dict) else {}
    added: list[str] = []

    def supply(key: str, value: Any) -> None:
        if key not in metadata:
            metadata[key] = value
            added.append(f"metadata.{key}")

    supply("scan", graph.model_id or graph.transcoder_id or "unknown")
    supply("transcoder_list", list(graph.transcoder_info.get("transcoders", [])))
    supply("schema_version", 1)
    metadata |= {"slug": graph.slug, "prompt_tokens": list(graph.tokens), "prompt": graph.prompt}
    _pruning(graph, metadata, added)
    _info(graph, metadata, added)
    metadata["circuitbase"] = {
        "version": 1,
        "model_id": graph.model_id,
        "transcoder_id": graph.transcoder_id,
        "logit_layer": ids.logit_layer,
        "added": added,
        **({} if ids.virtual_from is None else {"virtual_from": ids.virtual_from}),
    }
    if facts := source_facts(graph.source):
        metadata["circuitbase"]["source"] = facts
    return metadata


def _pruning(graph: AttributionGraph, metadata: dict[str, Any], added: list[str]) -> None:
    """Say at which thresholds the graph was pruned, if not said by the file it came from."""
    pruning = graph.settings.get("pruning")
    if not isinstance(pruning, dict):
        return
    known = {key: pruning[key] for key in ("node_threshold", "edge_threshold") if key in pruning}
    before = metadata.get("pruning_settings")
    if isinstance(before, dict) and all(before.get(key) == known[key] for key in known):
        return
    metadata["pruning_settings"] = {**(before if isinstance(before, dict) else {}), **known}
    if "node_threshold" in known:
        metadata["node_threshold"] = known["node_threshold"]
        if not graph.source:
            added.append("metadata.node_threshold")


def _info(graph: AttributionGraph, metadata: dict[str, Any], added: list[str]) -> None:
    """Add what other tools read from `info`: the transcoder set, the generator, the time."""
    info = dict(metadata["info"]) if isinstance(metadata.get("info"), dict) else {}
    fresh = "info" not in metadata

    def supply(key: str, value: Any) -> None:
        if key not in info:
            info[key] = value
            added.append(f"info.{key}")

    named = identify({**metadata, "info": info}, warn=False).transcoder_id
    if graph.transcoder_id is not None and named != graph.transcoder_id:
        info["transcoder_set"] = graph.transcoder_id
    if not graph.source.get("metadata"):
        supply("generator", {"name": "circuitbase"})
        if (moment := _milliseconds(graph.created_at)) is not None:
            info["create_time_ms"] = moment
    if info:
        metadata["info"] = info
        if fresh:
            added.append("metadata.info")


def _milliseconds(moment: str | None) -> int | None:
    try:
        return None if moment is None else round(datetime.fromisoformat(moment).timestamp() * 1000)
    except ValueError:
        return None


def _parameters(graph: AttributionGraph, ids: _Ids, added: list[str]) -> dict[str, Any]:
    rest = graph.source.get("qParams")
    parameters: dict[str, Any] = dict(rest) if isinstance(rest, dict) else {}
    for key, value in (("linkType", "both"), ("clickedId", ""), ("sg_pos", "")):
        if key not in parameters:
            parameters[key] = value
            added.append(f"qParams.{key}")
    refer = _referrer(graph, ids)
    lost_pins, lost_groups = _unresolved(graph)
    groups = [[s.name, *refer(s.members)] for s in graph.supernodes]
    open_ = {group[0]: group for group in reversed(groups)}  # the first of each name
    for name, *members in lost_groups:
        if name in open_:
            open_.pop(name).extend(members)
        else:
            groups.append([name, *members])
    return {
        **parameters,
        "pinnedIds": [*refer(graph.pinned), *lost_pins],
        "supernodes": groups,
    }


def _unresolved(graph: AttributionGraph) -> tuple[list[str], list[list[str]]]:
    """Pinned ids and groups of the source that name no node: ids, and [name, id, …] each."""
    found = graph.source.get("unresolved")
    found = found if isinstance(found, dict) else {}
    pins, groups = found.get("pinnedIds"), found.get("supernodes")

    def texts(values: Any) -> list[str]:
        return [v for v in values if isinstance(v, str)] if isinstance(values, list) else []

    named = [texts(group) for group in groups] if isinstance(groups, list) else []
    return texts(pins), [group for group in named if group]


def _referrer(graph: AttributionGraph, ids: _Ids) -> Any:
    """Make the function that names rows: by node_id, or by jsNodeId as in the source.

    A jsNodeId stands for every node that has it, so it is used only where all of them are meant.
    """
    by_js: dict[str, set[int]] = {}
    for row, js_id in enumerate(ids.js):
        by_js.setdefault(js_id, set()).add(row)
    js = graph.source.get("references") == "jsNodeId"

    def refer(rows: tuple[int, ...]) -> list[str]:
        wanted, names = set(rows), []
        for row in rows:
            whole = js and by_js[ids.js[row]] <= wanted
            name = ids.js[row] if whole else ids.node[row]
            if name not in names:
                names.append(name)
        return names

    return refer


def _nodes(graph: AttributionGraph, ids: _Ids) -> list[dict[str, Any]]:
    nodes, shares = graph.nodes, cumulative_share(influence(graph)).tolist()
    first_logit = int(np.flatnonzero(graph.is_logit)[0]) if graph.is_logit.any() else -1
    labels, tokens = nodes["label"].tolist(), nodes["token"].tolist()
    activations: list[float] = nodes["activation"].tolist()
    probabilities = graph.logit_weights.tolist()
    records = []
    for row, kind in enumerate(ids.kind):
        label = labels[row] or ""
        if kind == "logit" and not label:
            label = f'Output "{tokens[row] or ""}" (p={probabilities[row]:.3f})'
        records.append(
            {
                "node_id": ids.node[row],
                "feature": _feature(ids, row),
                "layer": ids.layer_text(row),
                "ctx_idx": ids.position[row],
                "feature_type": _TYPES[kind],
                "token_prob": probabilities[row],
                "is_target_logit": row == first_logit,
                "run_idx": 0,
                "reverse_ctx_idx": _reverse(ids.js[row]) if ids.raw else 0,
                "jsNodeId": ids.js[row],
                "clerp": label,
                "influence": None if kind == "logit" else shares[row],
                "activation": None if math.isnan(activations[row]) else activations[row],
            }
        )
    return records


def _feature(ids: _Ids, row: int) -> int:
    """Give the `feature` field: Cantor pairing, position, token id or −1, or the raw id."""
    kind, index = ids.kind[row], ids.index[row]
    if kind == "logit":
        return index
    if ids.raw:
        parts = ids.node[row].split("_")
        return int(parts[1]) if kind == "error" and parts[1].isdecimal() else index
    if kind == "feature":
        return cantor(ids.layer[row], index)
    return ids.position[row] if kind == "embedding" else -1


def _reverse(js_id: str) -> int:
    """Count of the same feature's later occurrences, which Anthropic's jsNodeId ends with."""
    tail = js_id.rsplit("-", 1)[-1]
    return int(tail) if tail.isdecimal() and "-" in js_id else 0


def _links(graph: AttributionGraph, ids: _Ids) -> list[dict[str, Any]]:
    """Links by target, then by source, in the order of the nodes, as circuit-tracer lists them."""
    edges = coo_array(graph.adjacency)
    return [
        {"source": ids.node[s], "target": ids.node[t], "weight": weight}
        for t, s, weight in zip(
            edges.row.tolist(), edges.col.tolist(), edges.data.tolist(), strict=True
        )
    ]
