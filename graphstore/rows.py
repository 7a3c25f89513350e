"""What a graph is in the database: one pure function from an attribution graph to rows.

Writing, bulk export and checking all use these rows, so they cannot disagree. What the sparse
solve knows, the rows hold: influence, its split by path length and the error share on every node,
the normalised share and the score on every edge, the summaries of feature pairs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from graphstore.metadata import described
from graphstore.schema import SCHEMA_VERSION
from tracer.errors import StoreError
from tracer.graph import AttributionGraph
from tracer.influence import Flow
from tracer.scores import all_scores

__all__ = ["EDGE_COLUMNS", "SCORE_NAMES", "GraphRows"]

# Properties of CONTRIBUTES, in the order of the columns of `GraphRows.edges`.
EDGE_COLUMNS: Final = ("weight", "share", "score", "share_full", "residual", "attention")
SCORE_NAMES: Final = ("completeness", "replacement", "mean_path_length", "lost")

Properties = dict[str, Any]


@dataclass(frozen=True)
class GraphRows:
    """Rows of one graph.

    Raises
    ------
    StoreError
        If the graph has features but no transcoder: features of unknown identity cannot be
        compared across prompts.
    """

    graph: AttributionGraph

    def __post_init__(self) -> None:
        if self.graph.transcoder_id is None and self.graph.is_feature.any():
            raise StoreError(
                f"graph {self.graph.graph_id} does not say which transcoder its features are of",
                "Name it: read_graph(path, transcoder=…) or import --transcoder ID",
            )

    @cached_property
    def flow(self) -> Flow:
        """Influence and shares of the graph's own edges."""
        return Flow(self.graph)

    @cached_property
    def properties(self) -> Properties:
        """Properties of the Graph node, without those that a writer adds."""
        graph = self.graph
        pruning = graph.settings.get("pruning") or {}
        targets = graph.nodes[graph.is_logit]
        found: Properties = {
            "graph_id": graph.graph_id,
            "schema_version": SCHEMA_VERSION,
            "slug": graph.slug,
            "prompt": graph.prompt,
            "tokens": list(graph.tokens),
            "token_ids": None if graph.token_ids is None else list(graph.token_ids),
            "target_tokens": [token or "" for token in targets["token"]],
            "target_probabilities": targets["probability"].tolist(),
            "model_id": graph.model_id,
            "transcoder_id": graph.transcoder_id,
            "model_info": _json(graph.model_info),
            "transcoder_info": _json(graph.transcoder_info),
            "settings": _json(graph.settings),
            "source": _json(graph.source),
            "node_threshold": pruning.get("node_threshold"),
            "edge_threshold": pruning.get("edge_threshold"),
            "unpruned": graph.unpruned,
            "created_at": graph.created_at,
            "parent_id": graph.parent_id,
            "weight_type": str(graph.adjacency.dtype),
            "part_type": None if graph.residual is None else str(graph.residual.dtype),
            "recorded_rules": sorted(graph.scores),
            "pinned": list(graph.pinned),
            "n_nodes": graph.n_nodes,
            "n_edges": graph.n_edges,
            "n_features": len(self.features),
            "n_tokens": len(graph.tokens),
            **described(graph),
        }
        for rule, scores in all_scores(graph, flow=self.flow).items():
            for name in SCORE_NAMES:
                found[f"{name}_{rule}"] = getattr(scores, name)
        return _present(found)

    @cached_property
    def nodes(self) -> list[Properties]:
        """Properties of every node, in the order of the matrix; absent where unknown."""
        graph, flow = self.graph, self.flow
        table = graph.nodes.copy()
        table["influence"] = flow.influence
        table["error_fraction"] = flow.error_fraction
        table.insert(0, "node_id", graph.node_ids)
        table["ord"] = np.arange(graph.n_nodes)
        lengths = _by_length(flow)
        names = list(table.columns)
        return [
            _present({**dict(zip(names, row, strict=True)), "influence_by_length": parts})
            for row, parts in zip(
                zip(*(table[name].tolist() for name in names), strict=True), lengths, strict=True
            )
        ]

    @cached_property
    def edges(
        self,
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], list[NDArray[np.float64] | None]]:
        """Source rows, target rows, and the columns of :data:`EDGE_COLUMNS` (None: unknown)."""
        graph, flow = self.graph, self.flow
        coo = graph.adjacency.tocoo()
        targets, sources = coo.row.astype(np.int64), coo.col.astype(np.int64)
        weight = coo.data.astype(np.float64)
        share_full = None
        if "input_full" in graph.nodes:
            share_full = np.abs(weight) / graph.nodes["input_full"].to_numpy()[targets]
        columns: list[NDArray[np.float64] | None] = [
            weight,
            flow.normalised.data,
            flow.edge_scores.data,
            share_full,
        ]
        for part in (graph.residual, graph.attention):
            if part is None:
                columns.append(None)
            else:  # an edge may lack one of its two parts, never have one that is no edge
                columns.append(_at(part, targets, sources))
        return sources, targets, columns

    @cached_property
    def features(self) -> pd.DataFrame:
        """The graph's features, each once.

        Columns: ``feature_id``, ``layer``, ``index``, ``label``, and ``influence``, the sum over
        the feature's nodes.
        """
        graph = self.graph
        table = graph.nodes.loc[graph.is_feature, ["layer", "index", "label"]]
        codes, names = self._feature_codes
        _, first = np.unique(codes, return_index=True)
        # A label given at one position holds for the feature.
        labels: list[Any] = [None] * len(names)
        known = np.flatnonzero(table["label"].notna())
        for code, label in zip(codes[known], table["label"].iloc[known], strict=True):
            if labels[code] is None:
                labels[code] = label
        influence = self.flow.influence[graph.is_feature]
        return pd.DataFrame(
            {
                "feature_id": names,
                "layer": table["layer"].to_numpy()[first],
                "index": table["index"].to_numpy()[first],
                "label": pd.Series(labels, dtype=object),
                "influence": np.bincount(codes, weights=influence, minlength=len(names)),
            }
        )

    @cached_property
    def _feature_codes(self) -> tuple[NDArray[np.int64], NDArray[np.object_]]:
        """Of each feature node, the place of its feature in the list that follows."""
        graph = self.graph
        codes, names = pd.factorize(np.array(graph.feature_ids, dtype=object)[graph.is_feature])
        return codes, np.asarray(names, dtype=object)

    @cached_property
    def feature_edges(self) -> pd.DataFrame:
        """Pairs of features with an edge.

        Columns: ``source``, ``target``, ``share``, ``weight``, ``influence``. The
        share of a pair is the mean over the target feature's nodes of the sum over source positions
        of ``share`` (so at most 1); its weight is the sum of the signed weights, its influence that
        of the scores: what runs over the pair of the influence on the logits.
        """
        graph = self.graph
        sources, targets, columns = self.edges
        between = graph.is_feature[sources] & graph.is_feature[targets]
        codes, names = self._feature_codes
        code = np.full(graph.n_nodes, -1)
        code[graph.is_feature] = codes
        occurrences = np.bincount(codes, minlength=len(names))
        weight, share, score = columns[:3]
        if weight is None or share is None or score is None:  # pragma: no cover - always there
            raise StoreError("edges without weights", "Report this as a defect")
        ends = code[sources[between]] * len(names) + code[targets[between]]
        pairs, place = np.unique(ends, return_inverse=True)
        s, t = np.divmod(pairs, max(len(names), 1))
        shares = np.bincount(place, weights=share[between], minlength=len(pairs))
        return pd.DataFrame(
            {
                "source": names[s],
                "target": names[t],
                "share": shares / occurrences[t],
                "weight": np.bincount(place, weights=weight[between], minlength=len(pairs)),
                "influence": np.bincount(place, weights=score[between], minlength=len(pairs)),
            }
        )

    @cached_property
    def supernodes(self) -> list[Properties]:
        """Supernodes with their members' rows."""
        return [
            {
                "supernode_id": supernode_id(self.graph.graph_id, position),
                "name": supernode.name,
                "author": supernode.author,
                "ord": position,
                "members": list(supernode.members),
            }
            for position, supernode in enumerate(self.graph.supernodes)
        ]

    @cached_property
    def model(self) -> Properties | None:
        """Properties of the Model node."""
        return _described("model_id", self.graph.model_id, self.graph.model_info)

    @cached_property
    def transcoder(self) -> Properties | None:
        """Properties of the Transcoder node."""
        return _described("transcoder_id", self.graph.transcoder_id, self.graph.transcoder_info)


def edge_id(source: str, target: str) -> str:
    """Key of a feature pair; the writer's statement joins the two in the same way."""
    return f"{source} -> {target}"


def supernode_id(graph_id: str, position: int) -> str:
    """Key of the n-th supernode of a graph."""
    return f"{graph_id}/supernode/{position}"


def _described(key: str, name: str | None, info: Mapping[str, Any]) -> Properties | None:
    """Identity and the plain facts known of a model or transcoder."""
    if name is None:
        return None
    plain = {k: v for k, v in info.items() if isinstance(v, str | int | float | bool)}
    return {**plain, key: name}


def _by_length(flow: Flow) -> list[list[float]]:
    """Influence by path length of each node, trailing zeros left out."""
    dense = flow.by_length.toarray().T  # (n, k): k is the depth, some tens
    if not dense.shape[1]:  # no edge, no influence
        return [[] for _ in dense]
    last = np.where(dense.any(axis=1), dense.shape[1] - np.argmax(dense[:, ::-1] != 0, axis=1), 0)
    return [row[:end].tolist() for row, end in zip(dense, last, strict=True)]


def _at(part: Any, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float64]:
    """Entries of a sparse matrix at the given places, 0 where it has none."""
    return np.asarray(part[rows, columns], dtype=np.float64).ravel()


def _present(properties: Mapping[str, Any]) -> Properties:
    """Drop what is unknown or empty: null and nan are no properties, and bulk import has no []."""
    return {k: v for k, v in properties.items() if v is not None and v == v and v != []}


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)
