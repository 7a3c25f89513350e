"""Trace a prompt: from a model, a transcoder and a text to an attribution graph.

Source: Circuit Tracing (2025), "Constructing an attribution graph"; spec, sections 3 and 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tracer.attribution.edges import Progress, Rows, residual_rows, rows
from tracer.attribution.local import CONSTANTS, Indices, LocalModel
from tracer.attribution.selecting import feature_targets, merge, select_features
from tracer.attribution.targets import Outputs, Target, describe_targets, find_outputs
from tracer.errors import SettingError, TracingError, nearest
from tracer.graph import JSON, AttributionGraph, graph_identity, node_table
from tracer.models import Model
from tracer.models.proof import tolerance
from tracer.transcoders import Transcoder

__all__ = ["TraceSettings", "local_model", "ran_out_of_memory", "trace", "trace_identity"]


@dataclass(frozen=True)
class TraceSettings:
    """What is traced, and how much of it.

    Attributes
    ----------
    targets
        Tokens (text or id), one difference ``(token, less)``, or features
        (``"feature/LAYER/INDEX/POSITION"``); None for the likeliest tokens.
    max_n_logits, desired_logit_prob
        The likeliest tokens: the fewest that reach the probability, at most so many.
    max_features
        Keep so many features, the most influential; None keeps all.
    zero_first
        First positions without features and errors; None for what the model asks for (1; 4 for
        Gemma 3 instruct models).
    parts
        Whether edges are also split into residual-direct and attention-mediated parts.
    check
        Whether every row is checked against its pre-activation.
    memory
        Bytes that the sources on their way up may take (:func:`tracer.attribution.edges.rows`).
    """

    targets: Sequence[Target] | None = None
    max_n_logits: int = 10
    desired_logit_prob: float = 0.95
    max_features: int | None = None
    zero_first: int | None = None
    parts: bool = False
    check: bool = True
    memory: int = 2 * 2**30

    def __post_init__(self) -> None:
        for name, kind, low, high in (
            ("max_n_logits", int, 1, None),
            ("desired_logit_prob", float, 0, 1),
            ("max_features", int, 1, None),
            ("zero_first", int, 0, None),
            ("memory", int, 0, None),
        ):
            value = getattr(self, name)
            if value is None and name in ("max_features", "zero_first"):
                continue
            is_number = isinstance(value, (int, kind)) and not isinstance(value, bool)
            # Written so that nan is refused.
            if not (is_number and low <= value <= (math.inf if high is None else high)):
                whole = "a whole number, " if kind is int else ""
                limit = f"{low} to {high}" if high is not None else f"{low} or more"
                raise SettingError(f"{name} is {value!r}", f"Give {whole}{limit}")

    def changed(self, **changes: Any) -> TraceSettings:
        """Copy with some settings changed.

        Raises
        ------
        SettingError
            If there is no setting of that name.
        """
        known = asdict(self)
        for name in changes:
            if name not in known:
                raise SettingError(f"there is no setting {name!r} of a trace", nearest(name, known))
        return replace(self, **changes)


def trace(
    model: Model,
    transcoder: Transcoder,
    prompt: str | Sequence[int],
    *,
    settings: TraceSettings | None = None,
    slug: str = "",
    source: Mapping[str, JSON] | None = None,
    progress: Progress | None = None,
    **changes: Any,
) -> AttributionGraph:
    """Trace one prompt into an attribution graph.

    Parameters
    ----------
    model, transcoder
        From :func:`tracer.load_model` and :func:`tracer.load_transcoder`.
    prompt
        A text (BOS is put in front if the tokenizer has one), or token ids as they are.
    settings
        See :class:`TraceSettings`; its fields can also be given as keywords.
    slug
        A name for people.
    source
        What else to keep with the graph in its ``source``, such as the prompt's metadata.
    progress
        Called with (rows done, rows in all).

    Returns
    -------
    AttributionGraph
        Unpruned: logits, active features, errors, embeddings, with ``bias`` and its three parts.
        Rows + bias equal the pre-activations, which is checked (`check`). With `max_features`,
        ``source["merged"]`` says how many features were merged into errors, and their share of the
        outputs' weight.

    Raises
    ------
    TracingError
        If the transcoder does not fit the model, the prompt is empty or too long, no feature is
        active, memory runs out, or a row is not a whole account (a freeze that does not hold).
    SettingError
        If a setting is out of range or unknown.

    References
    ----------
    .. [1] Circuit Tracing (2025), "Constructing an attribution graph".
    """
    settings = (settings or TraceSettings()).changed(**changes)
    ids = model.tokenize(prompt)
    described = describe_targets(settings.targets, model)
    try:
        with torch.no_grad():
            return _trace(
                model, transcoder, prompt, ids, described, settings, slug, source, progress
            )
    except (MemoryError, RuntimeError) as problem:
        if not ran_out_of_memory(problem):
            raise
        raise TracingError(
            f"memory ran out on a prompt of {len(ids)} tokens",
            "Lower max_features or memory, shorten the prompt, or leave the transcoder on disk",
        ) from problem


def trace_identity(
    model: Model, transcoder: Transcoder, ids: Sequence[int], settings: TraceSettings
) -> str:
    """Id that a trace will have: known beforehand, so that a resumed run can skip what it has."""
    described = describe_targets(settings.targets, model)
    return graph_identity(
        model_id=model.model_id,
        transcoder_id=transcoder.transcoder_id,
        tokens=[int(i) for i in ids],
        targets=described,
        settings=_recorded(model, transcoder, described, settings),
    )


def local_model(
    model: Model,
    transcoder: Transcoder,
    ids: Sequence[int],
    zero_first: int | None = None,
) -> LocalModel:
    """Freeze a model to a prompt and put the transcoder in place of its MLPs."""
    # Not proved here again: every row of a graph is checked against its pre-activation.
    frozen = model.freeze(ids, check=False)
    return LocalModel(frozen, transcoder, _zero_first(model, zero_first))


def ran_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error of torch or Python means that memory ran out."""
    # On the CPU, and in CUDA's libraries, torch has no type for it.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(
        sign in str(error)
        for sign in ("DefaultCPUAllocator", "ALLOC_FAILED", "CUDA error: out of memory")
    )


def _trace(
    model: Model,
    transcoder: Transcoder,
    prompt: str | Sequence[int],
    ids: Sequence[int],
    described: JSON,
    settings: TraceSettings,
    slug: str,
    source: Mapping[str, JSON] | None,
    progress: Progress | None,
) -> AttributionGraph:
    local = local_model(model, transcoder, ids, settings.zero_first)
    outputs = find_outputs(
        local, described, model, settings.max_n_logits, settings.desired_logit_prob
    )
    every = _in_cone(local, outputs)
    merged: dict[str, JSON] = {}
    chosen = every
    if settings.max_features is not None and settings.max_features < len(every):
        selection = select_features(local, outputs, settings.max_features, progress)
        chosen, found = selection.chosen, selection.rows
        merged = {
            "features": len(every) - len(chosen),
            "influence": selection.merged_influence,
        }
        targets = feature_targets(local, chosen, outputs) if settings.parts else None
    else:
        targets = feature_targets(local, every, outputs)
        found = rows(local, targets, memory=settings.memory, progress=progress)
    residual = None
    if settings.parts and targets is not None:
        residual = _square(local, residual_rows(local, targets), chosen, len(outputs))
    adjacency = _square(local, found.weights, chosen, len(outputs))
    nodes = _nodes(local, model, ids, outputs, chosen, found)
    if settings.check:
        _check_rows(model, local, nodes, adjacency, chosen, outputs)
    return AttributionGraph(
        nodes,
        adjacency,
        prompt=prompt if isinstance(prompt, str) else "".join(model.tokens(ids)),
        tokens=model.tokens(ids),
        token_ids=ids,
        model_id=model.model_id,
        transcoder_id=transcoder.transcoder_id,
        model_info=model.info,
        transcoder_info=transcoder.info,
        slug=slug,
        settings=_recorded(model, transcoder, described, settings),
        unpruned=True,
        residual=residual,
        attention=None if residual is None else csr_array(adjacency - residual),
        source={
            "format": "traced",
            **({"merged": merged} if merged else {}),
            **(source or {}),
        },
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        graph_id=trace_identity(model, transcoder, ids, settings),
    )


def _zero_first(model: Model, zero_first: int | None) -> int:
    return model.default_zero_first if zero_first is None else zero_first


def _recorded(
    model: Model, transcoder: Transcoder, described: JSON, settings: TraceSettings
) -> dict[str, JSON]:
    """Keep the settings that change the result, in the form that enters the graph's id."""
    recorded: dict[str, JSON] = {
        "targets": described,
        "zero_first": _zero_first(model, settings.zero_first),
        "max_features": settings.max_features,
        "model_fingerprint": model.info.get("fingerprint"),
        "transcoder_fingerprint": transcoder.fingerprint,
        "transcoder_dtype": str(transcoder.dtype).removeprefix("torch."),
        "model_dtype": str(model.dtype).removeprefix("torch."),
    }
    if described is None:
        recorded["max_n_logits"] = settings.max_n_logits
        recorded["desired_logit_prob"] = float(settings.desired_logit_prob)
    if settings.parts:
        recorded["parts"] = True
    return recorded


def _in_cone(local: LocalModel, outputs: Outputs) -> Indices:
    """Ranks of the features that can reach an output: nearly all, unless outputs are features."""
    numbers = local.canonical
    reaches = np.zeros(local.n_features, dtype=np.bool_)
    for layer, position in zip(outputs.layers, outputs.positions, strict=True):
        reaches |= (local.layers[numbers] < layer) & (local.positions[numbers] <= position)
    return np.flatnonzero(reaches)


def _square(local: LocalModel, weights: csr_array, chosen: Indices, n_outputs: int) -> csr_array:
    """Rows of features and outputs over kept columns, as the (n, n) matrix of a graph."""
    if len(chosen) < local.n_features:
        weights = merge(local, weights, chosen)
    n_features, n_sources = len(chosen), weights.shape[1]
    n = n_sources + n_outputs
    counts = np.diff(weights.indptr)
    per_row = np.zeros(n, dtype=np.int64)
    per_row[:n_features] = counts[:n_features]
    per_row[n_sources:] = counts[n_features:]
    # Of the indices' own type: scipy would widen 4-byte indices to match 8-byte pointers.
    indptr = np.concatenate([[0], np.cumsum(per_row)]).astype(weights.indptr.dtype)
    return csr_array((weights.data, weights.indices, indptr), shape=(n, n))


def _nodes(
    local: LocalModel,
    model: Model,
    ids: Sequence[int],
    outputs: Outputs,
    chosen: Indices,
    found: Rows,
) -> pd.DataFrame:
    frozen = local.frozen
    n_layers, n_positions = frozen.n_layers, frozen.n_positions
    n, n_errors, n_outputs = len(chosen), n_layers * n_positions, len(outputs)
    numbers = local.canonical[chosen]
    tokens = np.array(model.tokens(ids), dtype=object)
    positions = np.concatenate(
        [
            local.positions[numbers],
            np.tile(np.arange(n_positions), n_layers),
            np.arange(n_positions),
            outputs.positions,
        ]
    )
    nothing = np.full(n_errors + n_positions, np.nan)
    activations = local.activations[torch.from_numpy(numbers)].double().cpu().numpy()
    columns: dict[str, Any] = {
        "kind": np.repeat(
            ["feature", "error", "embedding", "logit"], [n, n_errors, n_positions, n_outputs]
        ),
        "layer": np.concatenate(
            [
                local.layers[numbers],
                np.repeat(np.arange(n_layers), n_positions),
                np.full(n_positions, -1),
                np.full(n_outputs, n_layers),
            ]
        ),
        "position": positions,
        "index": np.concatenate(
            [local.indices[numbers], np.full(n_errors, -1), np.asarray(ids), outputs.token_ids]
        ),
        "token": [*tokens[positions[: n + n_errors + n_positions]], *outputs.labels],
        "label": [None] * (n + n_errors + n_positions)
        + [
            None if token >= 0 else text
            for token, text in zip(outputs.token_ids, outputs.labels, strict=True)
        ],
        "activation": np.concatenate([activations, nothing, np.full(n_outputs, np.nan)]),
        "probability": np.concatenate([np.full(n, np.nan), nothing, outputs.weights]),
    }
    own = torch.cat([local.encoder_constants(numbers), outputs.constants]).double().cpu().numpy()
    constants = found.constants.copy()
    constants[:, CONSTANTS.index("parameters")] += own
    for i, part in enumerate(CONSTANTS):
        columns[f"bias_{part}"] = np.concatenate([constants[:n, i], nothing, constants[n:, i]])
    columns["bias"] = np.concatenate([constants[:n].sum(1), nothing, constants[n:].sum(1)])
    return node_table(columns)


def _check_rows(
    model: Model,
    local: LocalModel,
    nodes: pd.DataFrame,
    adjacency: csr_array,
    chosen: Indices,
    outputs: Outputs,
) -> None:
    """Invariant 2 of the spec: every row and its constant are the whole pre-activation."""
    numbers = torch.from_numpy(local.canonical[chosen])
    wanted = torch.cat([local.preactivations[numbers], outputs.values]).double().cpu().numpy()
    reading = np.concatenate(
        [np.arange(len(chosen)), np.arange(len(nodes) - len(outputs), len(nodes))]
    )
    account, size = _row_sums(adjacency)
    scale = size[reading] + np.abs(wanted)
    for part in CONSTANTS:
        scale = scale + nodes[f"bias_{part}"].abs().to_numpy()[reading]
    off = np.abs(account[reading] + nodes["bias"].to_numpy()[reading] - wanted) / np.maximum(
        scale, 1e-30
    )
    worst = int(np.argmax(off))
    # The model's own residual stream is rounded at every layer, and a transcoder's activations in
    # its dtype: the coarser one sets what can hold.
    computed = max(
        tolerance(local.transcoder.dtype, local.frozen.embeddings.dtype, whole=True),
        tolerance(model.dtype, local.frozen.embeddings.dtype, whole=True),
    )
    if not off[worst] <= computed:
        node = nodes.iloc[reading[worst]]
        raise TracingError(
            f"the {node['kind']} at layer {node['layer']}, position {node['position']}, index "
            f"{node['index']} is not explained by its inputs: {off[worst]:.2g} of it is missing, "
            f"{computed:g} is allowed",
            "The freeze of this model family does not hold here: report it, and do not use the "
            "graph (check=False traces it anyway)",
        )


def _row_sums(matrix: csr_array) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Σ w and Σ |w| of each row in float64, without a copy of the matrix."""
    sums, sizes = np.zeros(matrix.shape[0]), np.zeros(matrix.shape[0])
    for row in np.flatnonzero(np.diff(matrix.indptr)):
        data = matrix.data[matrix.indptr[row] : matrix.indptr[row + 1]]
        sums[row] = data.sum(dtype=np.float64)
        sizes[row] = np.abs(data).sum(dtype=np.float64)
    return sums, sizes
