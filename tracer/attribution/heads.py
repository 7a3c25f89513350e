"""Head loadings: how much of an edge runs through each attention head.

The loading of a head is the signed sum of the paths whose only attention step is that head; paths
with several attention steps are the remainder. Residual-direct part + loadings + remainder are the
edge's weight.

Source: Tracing Attention Computation (2025); spec, section 9.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from tracer.attribution.local import LocalModel
from tracer.attribution.targets import Outputs, find_outputs
from tracer.attribution.tracing import local_model
from tracer.errors import GraphError, SettingError, TracingError
from tracer.graph import AttributionGraph
from tracer.models import Model
from tracer.transcoders import Transcoder

__all__ = ["head_loadings"]


def head_loadings(
    graph: AttributionGraph,
    edges: pd.DataFrame | Iterable[tuple[str, str]],
    *,
    model: Model,
    transcoder: Transcoder,
) -> pd.DataFrame:
    """Split edges into residual-direct part, single heads, and paths with several attention steps.

    Parameters
    ----------
    graph
        A traced graph, pruned or not.
    edges
        Pairs of node keys (source, target), or a table with those columns, such as a selection of
        ``graph.to_pandas()``.
    model, transcoder
        What the graph was traced with.

    Returns
    -------
    pandas.DataFrame
        ``source, target, part, layer, head, loading``; `part` is ``residual``, ``head`` or
        ``remainder`` (layer and head −1 but for heads). Loadings of an edge sum to its weight.

    Raises
    ------
    GraphError
        If a node or edge is not in the graph, or an error node holds merged features too.
    TracingError
        If the graph is another model's or transcoder's, or has no token ids.

    References
    ----------
    .. [1] Tracing Attention Computation (2025), head loadings.
    """
    if graph.token_ids is None or graph.model_id != model.model_id:
        raise TracingError(
            f"graph {graph.graph_id} was traced with {graph.model_id!r}, not {model.model_id!r}",
            "Load the model that the graph names, and trace with this package",
        )
    if graph.transcoder_id != transcoder.transcoder_id:
        raise TracingError(
            f"graph {graph.graph_id} was traced with {graph.transcoder_id!r}, not "
            f"{transcoder.transcoder_id!r}",
            "Load the transcoder that the graph names",
        )
    for what, mine in (
        ("model_fingerprint", model.info.get("fingerprint")),
        ("transcoder_fingerprint", transcoder.fingerprint),
        ("model_dtype", str(model.dtype).removeprefix("torch.")),
    ):
        if graph.settings.get(what) != mine:
            raise TracingError(
                f"graph {graph.graph_id} was traced with {what} {graph.settings.get(what)}, "
                f"this is {mine}",
                "Load the files, and the dtype, that the graph was traced with",
            )
    if isinstance(edges, pd.DataFrame) and not {"source", "target"} <= set(edges.columns):
        raise SettingError(
            "the table of edges lacks a column source or target", "Give rows of graph.to_pandas()"
        )
    pairs = (
        list(zip(edges["source"], edges["target"], strict=True))
        if isinstance(edges, pd.DataFrame)
        else list(edges)
    )
    with torch.no_grad():
        local = local_model(model, transcoder, graph.token_ids, graph.settings.get("zero_first"))
        outputs = _outputs(graph, local, model)
        found = [_split(graph, local, outputs, source, target) for source, target in pairs]
    columns = ["source", "target", "part", "layer", "head", "loading"]
    return pd.DataFrame([row for rows in found for row in rows], columns=columns)


def _split(
    graph: AttributionGraph, local: LocalModel, outputs: Outputs, source: str, target: str
) -> list[tuple[Any, ...]]:
    s, t = graph.row(source), graph.row(target)
    weight = float(graph.adjacency[t, s])
    if not weight:
        raise GraphError(
            f"graph {graph.graph_id} has no edge from {source} to {target}",
            "Name edges as in graph.to_pandas()",
        )
    if graph.is_error[s] and graph.source.get("merged"):
        raise GraphError(
            f"{source} may hold features that max_features merged into it, which no head carries "
            "as one",
            "Trace without max_features to split edges from errors",
        )
    frozen = local.frozen
    here = int(graph.nodes["position"].iloc[s])
    layer, there, vector = _target(graph, local, outputs, t)
    before, direct = _carried(graph, local, s)
    reading = _reading(local, layer, there, vector)
    residual = 0.0
    if here == there:
        residual = float((direct[layer] @ vector).double())
    rows: list[tuple[Any, ...]] = [(source, target, "residual", -1, -1, residual)]
    for step, attention in enumerate(frozen.attentions):
        if reading[step] is None or here > there:
            continue
        read = torch.einsum("hdw,d->hw", attention.output, reading[step])
        value = torch.einsum("gwd,d->gw", attention.value, before[step])
        value = value.repeat_interleave(attention.groups, dim=0)
        loadings = (attention.pattern[:, there, here] * (read * value).sum(-1)).double().tolist()
        rows += [
            (source, target, "head", step, head, loading)
            for head, loading in enumerate(loadings)
            if loading
        ]
    rest = weight - sum(row[-1] for row in rows)
    return [*rows, (source, target, "remainder", -1, -1, rest)]


def _outputs(graph: AttributionGraph, local: LocalModel, model: Model) -> Outputs:
    """Make the graph's logit nodes again."""
    described = graph.settings.get("targets")
    if described is None:
        described = graph.nodes.loc[graph.is_logit, "index"].tolist()
    return find_outputs(local, described, model)


def _target(
    graph: AttributionGraph, local: LocalModel, outputs: Outputs, row: int
) -> tuple[int, int, Tensor]:
    """Layer and position where a node reads, and what it reads."""
    node = graph.nodes.iloc[row]
    if node["kind"] == "feature":
        number = _feature(local, node)
        vector = local.encoder_vectors(np.array([number]))[0]
        return int(node["layer"]), int(node["position"]), vector
    which = int(graph.is_logit[:row].sum())
    return int(outputs.layers[which]), int(outputs.positions[which]), outputs.vectors[which]


def _feature(local: LocalModel, node: Any) -> int:
    found = np.flatnonzero(
        (local.layers == node["layer"])
        & (local.positions == node["position"])
        & (local.indices == node["index"])
    )
    if not len(found):
        raise TracingError(
            f"feature {node['index']} of layer {node['layer']} is not active at position "
            f"{node['position']} now",
            "Load model and transcoder as they were when the graph was traced",
        )
    return int(found[0])


def _carried(
    graph: AttributionGraph, local: LocalModel, row: int
) -> tuple[list[Tensor], list[Tensor]]:
    """Carry a source up the stream of its own position, without any attention step.

    Returns
    -------
    list of Tensor, list of Tensor
        Before each layer's attention, and where each layer's features read (L: the final norm).
    """
    node, frozen = graph.nodes.iloc[row], local.frozen
    position, layer = int(node["position"]), int(node["layer"])
    x = frozen.embeddings.new_zeros(frozen.width)
    if node["kind"] == "embedding":
        x = frozen.embeddings[position].clone()
    number = _feature(local, node) if node["kind"] == "feature" else -1
    before, read = [], []
    for step in range(frozen.n_layers):
        before.append(x)
        read.append(x)
        x = x + local.skip(step, x[None], position)[0]
        if node["kind"] == "error" and step == layer:
            x = x + local.errors[layer, position]
        elif number >= 0:
            vectors, first = local.writers[step].at(position)
            if first <= number < first + len(vectors):
                x = x + vectors[number - first]
    return before, [*read, x]


def _reading(local: LocalModel, layer: int, position: int, vector: Tensor) -> list[Tensor | None]:
    """Carry a target down to after each layer's attention, without any attention step."""
    frozen = local.frozen
    after: list[Tensor | None] = [None] * frozen.n_layers
    r = vector
    for step in range(min(layer, frozen.n_layers - 1), -1, -1):
        if frozen.parallel:
            if step < layer:
                after[step] = r
                r = r + local.skip_transpose(step, r[None], position)[0]
        else:
            if step < layer:
                r = r + local.skip_transpose(step, r[None], position)[0]
            after[step] = r
    return after
