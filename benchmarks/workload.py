"""Many graphs out of few: real attribution graphs, varied so that they share what prompts share.

A copy keeps the nodes and edges of its file. Some of its features (:data:`REPLACED`, drawn anew for
each copy) become others of the same layer, and every weight changes a little. So copies have ids
and scores of their own; a feature kept by two copies recurs, and so does a pair of features where
both ends are kept. The share is chosen so that a thousand graphs have about as many feature pairs
as a thousand made from 57 prompts had (some 670,000).

Copy k of a file depends on nothing but the file, k and the seed: every engine, and the reference in
memory, see the same graphs without holding all of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from graphstore import read_graph
from tracer import AttributionGraph

__all__ = ["REPLACED", "SETS", "Workload", "synthetic_graph"]

REPLACED = 0.2  # share of a copy's features that become other features of their layer
NOISE = 0.05  # standard deviation of the logarithm of what each weight is multiplied by
SETS = ("first", "second")  # prompt sets: files take turns


class Workload:
    """Graphs to measure with.

    Parameters
    ----------
    n_graphs
        How many.
    seed
        Seed of the copies.
    folder
        Graph files; left out, ``$CIRCUITBASE_GRAPHS``, else ``../shared/data/graphs`` beside the
        project.
    """

    def __init__(self, n_graphs: int, seed: int = 0, folder: Path | None = None) -> None:
        beside = Path(__file__).resolve().parents[2] / "shared/data/graphs"
        folder = folder or Path(os.environ.get("CIRCUITBASE_GRAPHS") or beside)
        files = sorted(folder.glob("*.json"))
        if not files:
            raise SystemExit(
                f"error: no graph files in {folder}. Set CIRCUITBASE_GRAPHS to a folder of them."
            )
        self.n_graphs = n_graphs
        self.seed = seed
        self.files = [read_graph(file) for file in files]
        self._widths = _layer_widths(self.files)

    def __len__(self) -> int:
        return self.n_graphs

    def __iter__(self) -> Iterator[tuple[AttributionGraph, str]]:
        """Each graph with the name of its prompt set, files taking turns."""
        for number in range(self.n_graphs):
            yield self[number]

    def __getitem__(self, number: int) -> tuple[AttributionGraph, str]:
        """Graph by number; those from ``n_graphs`` on are further ones of the same kind."""
        copy, file = divmod(number, len(self.files))
        return self.copy(file, copy), SETS[file % len(SETS)]

    def copy(self, file: int, copy: int) -> AttributionGraph:
        """Copy of a file, by their numbers."""
        graph = self.files[file]
        random = np.random.default_rng([self.seed, file, copy])
        nodes = graph.nodes.copy()
        nodes["index"] = self._indices(graph, random)
        adjacency = graph.adjacency.copy()
        noise = np.exp(NOISE * random.standard_normal(adjacency.nnz))
        adjacency.data = (adjacency.data * noise).astype(adjacency.dtype)
        slug = f"{graph.slug}-{copy}"
        return graph.replace(nodes=nodes, adjacency=adjacency, slug=slug, graph_id=None)

    @property
    def typical(self) -> int:
        """Number of the file whose graph is nearest to 6,000 edges."""
        distances = [abs(graph.n_edges - 6000) for graph in self.files]
        return distances.index(min(distances))

    @property
    def grouped(self) -> int | None:
        """Number of the first file with supernodes, if there is one."""
        return next((i for i, graph in enumerate(self.files) if graph.supernodes), None)

    def _indices(self, graph: AttributionGraph, random: np.random.Generator) -> list[int]:
        """Feature indices of a copy: one to one within each layer, so that nodes stay distinct."""
        places = list(zip(graph.nodes["layer"], graph.nodes["index"], strict=True))
        features = sorted({p for p, f in zip(places, graph.is_feature, strict=True) if f})
        width = self._widths[graph.transcoder_id]
        taken = set(features)
        new = {}
        for place, chance in zip(features, random.random(len(features)), strict=True):
            if chance < REPLACED:
                other = place
                while other in taken:
                    other = (place[0], int(random.integers(width)))
                taken.add(other)
                new[place] = other[1]
        return [
            new.get(place, place[1]) if is_feature else place[1]
            for place, is_feature in zip(places, graph.is_feature, strict=True)
        ]


def _layer_widths(graphs: Sequence[AttributionGraph]) -> dict[str | None, int]:
    """Number of features a layer of each transcoder: as far as its files tell, at least 16,384."""
    widths: dict[str | None, int] = {}
    for graph in graphs:
        largest = int(graph.nodes.loc[graph.is_feature, "index"].max()) + 1
        widths[graph.transcoder_id] = max(largest, widths.get(graph.transcoder_id, 16_384))
    return widths


def synthetic_graph(
    n_nodes: int = 10_000, n_edges: int = 5_000_000, n_layers: int = 26, n_tokens: int = 12
) -> AttributionGraph:
    """Unpruned graph of about so many nodes and edges, in the tracer's order.

    Features read from a random part of the features of earlier layers, from all earlier error
    nodes and all embeddings; the ten logits read from everything.
    """
    random = np.random.default_rng(0)
    n_errors, n_logits = n_layers * n_tokens, 10
    n_features = n_nodes - n_errors - n_tokens - n_logits
    n_sources = n_features + n_errors + n_tokens
    layer = np.sort(random.integers(n_layers, size=n_features))
    error_layer = np.repeat(np.arange(n_layers), n_tokens)
    before = np.searchsorted(layer, layer)  # features of earlier layers come first
    always = n_features * n_tokens + n_tokens * int(layer.sum()) + n_logits * n_sources
    density = min(1.0, (n_edges - always) / before.sum())
    embeddings = np.arange(n_features + n_errors, n_sources)
    rows = [
        np.concatenate(
            [
                np.flatnonzero(random.random(before[t]) < density),
                n_features + np.flatnonzero(error_layer < layer[t]),
                embeddings,
            ]
        )
        for t in range(n_features)
    ]
    nothing = [np.empty(0, np.int64)] * (n_errors + n_tokens)
    rows += nothing + [np.arange(n_sources)] * n_logits
    columns = np.concatenate(rows).astype(np.int32)
    ends = np.cumsum([0, *map(len, rows)]).astype(np.int32)
    weights = random.standard_normal(len(columns)) * random.lognormal(0, 1.5, len(columns))
    empty = [np.nan] * n_sources
    nodes = pd.DataFrame(
        {
            "kind": ["feature"] * n_features
            + ["error"] * n_errors
            + ["embedding"] * n_tokens
            + ["logit"] * n_logits,
            "layer": [*layer, *error_layer, *[-1] * n_tokens, *[n_layers] * n_logits],
            "position": [
                *random.integers(n_tokens, size=n_features),
                *np.tile(np.arange(n_tokens), n_layers),
                *range(n_tokens),
                *[n_tokens - 1] * n_logits,
            ],
            "index": [*range(n_features), *[-1] * n_errors, *range(n_tokens), *range(n_logits)],
            "probability": [*empty, *[0.09] * n_logits],
        }
    )
    adjacency = csr_array((weights.astype(np.float32), columns, ends), shape=(n_nodes, n_nodes))
    return AttributionGraph(
        nodes,
        adjacency,
        tokens=["·"] * n_tokens,
        transcoder_id="synthetic",
        unpruned=True,
    )
