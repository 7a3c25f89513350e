"""The graph of a consensus circuit: means over the graphs of a set, with the rest as error.

A node stands for a feature wherever it acts, an embedding for a place. An edge's share is the mean,
over the graphs that have its target, of the share of the target's input that comes from its source;
so the shares of a target's inputs sum to at most 1, and what is left goes to an error node. On this
graph influence, scores and pictures mean what they mean on any other.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from graphstore.metadata import graph_roles
from queries.roles import Place, places
from tracer.graph import AttributionGraph
from tracer.influence import Flow
from tracer.roles import LAST

__all__ = ["Means"]

_EMBEDDINGS: Final = "embedding "
_LOGIT: Final = "logit"
_LEAST: Final = 1e-12  # of an input, what is rounding


class Means:
    """Sums over the graphs of a set, from which the circuit's own graph is made.

    Parameters
    ----------
    feature_ids
        Features that recur.
    pairs
        Pairs of them that recur.
    least
        In how many graphs.
    """

    def __init__(self, feature_ids: list[str], pairs: set[tuple[str, str]], least: int) -> None:
        self.feature_ids = frozenset(feature_ids)
        self.pairs = pairs
        self.least = least
        self.order = feature_ids
        self.graphs = 0
        self.model_id: str | None = None
        self.transcoder_id: str | None = None
        self.n_layers = 0
        self.weight = 0.0  # of the targets, over all graphs
        self.acting: Counter[str] = Counter()
        self.at: dict[str, Counter[str]] = defaultdict(Counter)  # nodes of a feature, by place
        self.reach: dict[str, list[float]] = defaultdict(list)  # of a place, how far along prompts
        self.shares: dict[tuple[str, str], float] = defaultdict(float)
        self.counts: Counter[tuple[str, str]] = Counter()

    def add(self, graph: AttributionGraph) -> None:
        """Add one graph."""
        nodes, flow = graph.nodes, Flow(graph)
        self.graphs += 1
        self.model_id, self.transcoder_id = graph.model_id, graph.transcoder_id
        layers = nodes["layer"].to_numpy()
        self.n_layers = max(self.n_layers, int(layers[graph.is_logit].max(initial=1)))
        self.weight += float(flow.weights.sum())
        spots = [str(place) for place in _places(graph)]
        for position, spot in enumerate(spots):
            self.reach[spot].append(position / max(len(spots) - 1, 1))
        positions = nodes["position"].to_numpy()
        names: list[str | None] = []
        for row, (feature, kind) in enumerate(zip(graph.feature_ids, nodes["kind"], strict=True)):
            if feature in self.feature_ids:
                names.append(feature)
                self.at[str(feature)][spots[positions[row]]] += 1
            elif kind == "embedding" and positions[row] < len(spots):
                names.append(_embedding(spots[positions[row]]))
            else:
                names.append(_LOGIT if kind == "logit" else None)
        # A row of weights over each target's nodes, which sum to 1: means over a feature's nodes,
        # over logits by their probabilities.
        of_rows = pd.Series(names, dtype=object)
        for target, rows in of_rows.groupby(of_rows).groups.items():
            if target != _LOGIT and target not in self.feature_ids:
                continue
            self.acting[target] += 1
            at = np.asarray(rows, dtype=np.int64)
            shares = np.full(len(at), 1 / len(at))
            if target == _LOGIT and flow.weights[at].sum() > 0:
                shares = flow.weights[at] / flow.weights[at].sum()
            given = shares @ flow.normalised[at]
            found: dict[str, float] = defaultdict(float)
            for source in np.flatnonzero(given):
                name = names[source]
                if name is not None:
                    found[name] += float(given[source])
            for name, share in found.items():
                self.shares[name, target] += share
                self.counts[name, target] += 1

    def place_of(self, feature: str) -> str:
        """Where a feature mostly acts."""
        return max(self.at[feature].items(), key=lambda item: (item[1], item[0]))[0]

    def graph(self, edges: pd.DataFrame, min_share: float) -> AttributionGraph:
        """Make the circuit's own graph."""
        signs = {
            (source, target): math.copysign(1.0, weight)
            for source, target, weight in edges[["source", "target", "mean_weight"]].itertuples(
                index=False
            )
        }
        layer = {name: int(name.rsplit("/", 2)[1]) for name in self.order}
        layer[_LOGIT] = self.n_layers
        kept = {
            pair: share / self.acting[pair[1]]
            for pair, share in self.shares.items()
            if self._recurs(pair, layer)
        }
        place = {name: self.place_of(name) for name in self.order}
        place[_LOGIT] = LAST
        embeddings = sorted({source for source, _ in kept if source.startswith(_EMBEDDINGS)})
        place |= {name: name.removeprefix(_EMBEDDINGS) for name in embeddings}
        spots = sorted(set(place.values()), key=lambda s: (float(np.mean(self.reach[s])), s))
        position = {spot: number for number, spot in enumerate(spots)}

        features = sorted(self.order, key=lambda f: (layer[f], position[place[f]], f))
        rest = dict.fromkeys([*features, _LOGIT], 1.0)
        for (_, target), share in kept.items():
            rest[target] -= share
        errors = sorted(
            {
                (max(layer[t] - 1, 0), position[place[t]])
                for t, left in rest.items()
                if left > _LEAST
            }
        )
        names = [*features, *errors, *embeddings, _LOGIT]
        row = {name: number for number, name in enumerate(names)}
        entries = [
            (row[t], row[s], signs.get((s, t), 1.0) * share) for (s, t), share in kept.items()
        ]
        entries += [
            (row[t], row[max(layer[t] - 1, 0), position[place[t]]], left)
            for t, left in rest.items()
            if left > _LEAST
        ]
        targets, sources, weights = zip(*entries, strict=True) if entries else ((), (), ())
        return AttributionGraph(
            self._nodes(features, errors, embeddings, layer, position, place, spots),
            csr_array((weights, (targets, sources)), shape=(len(names), len(names))),
            prompt=f"What recurs in {min_share:.0%} of {self.graphs} prompts",
            tokens=spots,
            model_id=self.model_id,
            transcoder_id=self.transcoder_id,
            slug="consensus",
            settings={"consensus": {"min_share": float(min_share), "graphs": self.graphs}},
            source={"format": "consensus"},
        )

    def _recurs(self, pair: tuple[str, str], layer: Mapping[str, int]) -> bool:
        source, target = pair
        if source in self.feature_ids and target in self.feature_ids:
            return pair in self.pairs and layer[source] < layer[target]
        return self.counts[pair] >= self.least

    def _nodes(
        self,
        features: list[str],
        errors: list[tuple[int, int]],
        embeddings: list[str],
        layer: Mapping[str, int],
        position: Mapping[str, int],
        place: Mapping[str, str],
        spots: list[str],
    ) -> pd.DataFrame:
        rows: list[dict[str, Any]] = [
            {
                "kind": "feature",
                "layer": layer[name],
                "position": position[place[name]],
                "index": int(name.rsplit("/", 1)[1]),
                "token": place[name],
            }
            for name in features
        ]
        rows += [
            {"kind": "error", "layer": at, "position": where, "index": -1, "token": spots[where]}
            for at, where in errors
        ]
        rows += [
            {
                "kind": "embedding",
                "layer": -1,
                "position": position[place[name]],
                "index": -1,
                "token": place[name],
            }
            for name in embeddings
        ]
        rows.append(
            {
                "kind": "logit",
                "layer": self.n_layers,
                "position": position[LAST],
                "index": -1,
                "token": "answers",
                "label": "answers",
                "probability": min(1.0, self.weight / max(self.graphs, 1)),
            }
        )
        return pd.DataFrame(rows)


def _embedding(spot: str) -> str:
    return f"{_EMBEDDINGS}{spot}"


def _places(graph: AttributionGraph) -> list[Place]:
    roles = graph_roles(graph)
    n_tokens = max(len(graph.tokens), int(graph.nodes["position"].max()) + 1)
    return places(
        {
            "n_tokens": n_tokens,
            "role_names": [name for name, held in roles.items() for _ in held],
            "role_positions": [p for held in roles.values() for p in held],
        }
    )
