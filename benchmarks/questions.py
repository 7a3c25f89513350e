"""What is asked: every query of the library, with the same question to arrays in memory.

An answer in memory starts where the store does: what the writer puts into the database at write
time (influence, shares of feature pairs, …) is in the tables already, for questions about many
graphs. Questions about one graph start from its edges, as a notebook would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

import queries
import tracer
from benchmarks.timing import say
from benchmarks.workload import SETS, Workload
from graphstore import Store
from graphstore.rows import GraphRows
from tracer import AttributionGraph
from tracer.influence import Flow

__all__ = ["QUESTIONS", "Question", "Subject", "Tables", "least_graphs"]


def least_graphs(n_graphs: int) -> int:
    """How many graphs count as many: a twentieth, half of the copies of a file."""
    return max(2, n_graphs // 20)


class Subject:
    """What questions are about: one typical graph, a node and a feature of it."""

    def __init__(self, workload: Workload) -> None:
        self.n_graphs = len(workload)
        self.graph = workload[workload.typical][0]
        self.number = workload.typical
        self.grouped = None if workload.grouped is None else workload[workload.grouped][0]
        flow = Flow(self.graph)
        features = np.flatnonzero(self.graph.is_feature)
        strongest = int(features[np.argmax(flow.influence[features])])
        self.node = self.graph.keys[strongest]
        self.row = strongest
        self.feature = str(self.graph.feature_ids[strongest])
        self.many = least_graphs(self.n_graphs)


class Tables:
    """All graphs of a workload as pandas and scipy hold them."""

    def __init__(self, workload: Workload) -> None:
        self.features: dict[str, int] = {}
        self.in_second = np.array([s == SETS[1] for _, s in _slots(workload)])
        nodes, pairs, masses = [], [], []
        for number, (graph, _) in enumerate(workload):
            rows = GraphRows(graph)
            codes = [
                self.features.setdefault(name, len(self.features))
                for name in graph.feature_ids
                if name is not None
            ]
            influence = rows.flow.influence[graph.is_feature]
            nodes.append((np.full(len(codes), number), codes, influence))
            table = rows.feature_edges
            source = table["source"].map(self.features).to_numpy(np.int64)
            target = table["target"].map(self.features).to_numpy(np.int64)
            pairs.append(
                (
                    np.full(len(table), number),
                    source << 32 | target,
                    table["share"].to_numpy(),
                    table["weight"].to_numpy(),
                )
            )
            masses.append(rows.flow.masses)
            if (number + 1) % max(1, len(workload) // 5) == 0:
                say(f"in memory: {number + 1:,} graphs")
        self.nodes = pd.DataFrame(
            dict(zip(("graph", "feature", "influence"), _joined(nodes), strict=True))
        )
        graph, key, share, weight = _joined(pairs)
        self.pair_keys, place = np.unique(key, return_inverse=True)
        shape = (len(workload), len(self.pair_keys))
        self.shares = csr_array((share, (graph, place)), shape=shape)
        self.weights = csr_array((weight, (graph, place)), shape=shape)
        self.has_pair = csr_array((np.ones(len(share)), (graph, place)), shape=shape)
        self.masses = masses

    @cached_property
    def has_feature(self) -> csr_array:
        """Graph × feature, 1 where a graph has it."""
        once = self.nodes.drop_duplicates(["graph", "feature"])
        shape = (len(self.masses), len(self.features))
        return csr_array((np.ones(len(once)), (once["graph"], once["feature"])), shape=shape)


def _slots(workload: Workload) -> list[tuple[int, str]]:
    n_files = len(workload.files)
    return [(n, SETS[n % n_files % len(SETS)]) for n in range(len(workload))]


def _joined(pieces: list[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
    return [np.concatenate(column) for column in zip(*pieces, strict=True)]


@dataclass(frozen=True)
class Question:
    """A question to a store, and to arrays where there is a plain way.

    Attributes
    ----------
    name
        What the table of results calls it.
    ask
        To the store.
    in_memory
        To arrays; its answer agrees with the store's in number of rows and sum of `column`.
    column
        The column to compare.
    """

    name: str
    ask: Callable[[Store, Subject], pd.DataFrame]
    in_memory: Callable[[Tables, Subject], pd.DataFrame] | None = None
    column: str = "influence"


# One graph ---------------------------------------------------------------------------------------


def _scores(tables: Tables, subject: Subject) -> pd.DataFrame:
    return pd.DataFrame([vars(tracer.scores(subject.graph, "as_stored"))])


def _top_nodes(tables: Tables, subject: Subject) -> pd.DataFrame:
    influence = Flow(subject.graph).influence
    return subject.graph.nodes.assign(influence=influence).nlargest(20, "influence")


def _influence_by(column: str) -> Callable[[Tables, Subject], pd.DataFrame]:
    def ask(tables: Tables, subject: Subject) -> pd.DataFrame:
        nodes = subject.graph.nodes.assign(influence=Flow(subject.graph).influence)
        return nodes.groupby(column, as_index=False)["influence"].sum()

    return ask


def _error_share(tables: Tables, subject: Subject) -> pd.DataFrame:
    graph = subject.graph
    nodes = graph.nodes.assign(influence=Flow(graph).influence)[graph.is_error]
    return nodes.groupby("layer", as_index=False)["influence"].sum()


def _influence_by_length(tables: Tables, subject: Subject) -> pd.DataFrame:
    found = Flow(subject.graph).by_length.tocoo()
    return pd.DataFrame({"length": found.row + 1, "node": found.col, "influence": found.data})


def _neighbourhood(tables: Tables, subject: Subject) -> pd.DataFrame:
    scores = Flow(subject.graph).edge_scores
    inputs = scores[[subject.row]].tocoo()
    return pd.DataFrame({"source": inputs.col, "score": inputs.data}).nlargest(20, "score")


# Many graphs -------------------------------------------------------------------------------------


def _pooled_path_lengths(tables: Tables, subject: Subject) -> pd.DataFrame:
    total = np.zeros(max(map(len, tables.masses)))
    for masses in tables.masses:
        total[: len(masses)] += masses
    mass = np.trim_zeros(total, "b") / len(tables.masses)
    return pd.DataFrame({"length": np.arange(1, len(mass) + 1), "mass": mass})


def _recurring_features(tables: Tables, subject: Subject) -> pd.DataFrame:
    nodes = tables.nodes
    graphs = nodes.groupby("feature")["graph"].nunique()
    graphs = graphs[graphs >= subject.many]
    kept = nodes[nodes["feature"].isin(graphs.index)]
    influence = kept.groupby("feature")["influence"].sum()
    found = pd.DataFrame({"graphs": graphs, "mean_influence": influence / graphs})
    return found.sort_values(["graphs", "mean_influence"], ascending=False)


def _recurring_edges(least: str) -> Callable[[Tables, Subject], pd.DataFrame]:
    def ask(tables: Tables, subject: Subject) -> pd.DataFrame:
        chosen = np.ones(len(tables.masses))
        graphs = chosen @ tables.has_pair
        pairs = np.flatnonzero(graphs >= (subject.many if least == "many" else 2))
        share, weight = (chosen @ m for m in (tables.shares, tables.weights))
        found = pd.DataFrame(
            {
                "pair": tables.pair_keys[pairs],
                "graphs": graphs[pairs],
                "mean_share": share[pairs] / graphs[pairs],
                "mean_weight": weight[pairs] / graphs[pairs],
            }
        )
        return found.sort_values(["graphs", "mean_share"], ascending=False)

    return ask


def _features_only_in(tables: Tables, subject: Subject) -> pd.DataFrame:
    has = tables.has_feature
    second = tables.in_second.astype(np.float64)
    inside, outside = (1 - second) @ has, second @ has
    found = np.flatnonzero((inside >= 2) & (outside == 0))
    return pd.DataFrame({"feature": found, "graphs": inside[found]})


def _similar_graphs(tables: Tables, subject: Subject) -> pd.DataFrame:
    has = tables.has_feature
    shared = np.asarray((has @ has[[subject.number]].T).toarray()).ravel()
    sizes = has.sum(axis=1)
    jaccard = shared / (sizes + sizes[subject.number] - shared)
    jaccard[subject.number] = 0
    found = pd.DataFrame({"jaccard": jaccard}).nlargest(10, "jaccard")
    return found[found["jaccard"] > 0]


def _feature_occurrences(tables: Tables, subject: Subject) -> pd.DataFrame:
    nodes = tables.nodes
    return nodes[nodes["feature"] == tables.features[subject.feature]]


def _supernode_edges(store: Store, subject: Subject) -> pd.DataFrame:
    graph: AttributionGraph = subject.grouped or subject.graph
    return queries.supernode_edges(store, graph.graph_id)


QUESTIONS = (
    Question("graphs", lambda store, s: queries.graphs(store)),
    Question(
        "scores, one graph",
        lambda store, s: queries.scores(store, s.graph.graph_id, rule="as_stored"),
        _scores,
        "completeness",
    ),
    Question("scores, all graphs", lambda store, s: queries.scores(store, rule="as_stored")),
    Question(
        "path_lengths, one graph",
        lambda store, s: queries.path_lengths(store, s.graph.graph_id),
        lambda tables, s: tracer.path_lengths(s.graph),
        "mass",
    ),
    Question(
        "path_lengths, pooled",
        lambda store, s: queries.path_lengths(store, pooled=True),
        _pooled_path_lengths,
        "mass",
    ),
    Question("top_nodes", lambda store, s: queries.top_nodes(store, s.graph.graph_id), _top_nodes),
    Question(
        "influence_by_layer",
        lambda store, s: queries.influence_by_layer(store, s.graph.graph_id),
        _influence_by("layer"),
    ),
    Question(
        "influence_by_position",
        lambda store, s: queries.influence_by_position(store, s.graph.graph_id),
        _influence_by("position"),
    ),
    Question(
        "influence_by_length",
        lambda store, s: queries.influence_by_length(store, s.graph.graph_id),
        _influence_by_length,
    ),
    Question(
        "error_share, one graph",
        lambda store, s: queries.error_share(store, s.graph.graph_id),
        _error_share,
    ),
    Question("error_share, all graphs", lambda store, s: queries.error_share(store)),
    Question(
        "neighbourhood",
        lambda store, s: queries.neighbourhood(store, s.graph.graph_id, s.node, "in"),
        _neighbourhood,
        "score",
    ),
    Question("strongest_paths", lambda store, s: queries.strongest_paths(store, s.graph.graph_id)),
    Question("supernode_edges", _supernode_edges),
    Question(
        "feature_occurrences",
        lambda store, s: queries.feature_occurrences(store, s.feature),
        _feature_occurrences,
    ),
    Question(
        "recurring_features, n/20",
        lambda store, s: queries.recurring_features(store, min_graphs=s.many),
        _recurring_features,
        "mean_influence",
    ),
    Question(
        "recurring_edges, n/20",
        lambda store, s: queries.recurring_edges(store, min_graphs=s.many),
        _recurring_edges("many"),
        "mean_share",
    ),
    Question(
        "recurring_edges, 2",
        lambda store, s: queries.recurring_edges(store, min_graphs=2),
        _recurring_edges("two"),
        "mean_share",
    ),
    Question(
        "features_only_in",
        lambda store, s: queries.features_only_in(store, *SETS, min_graphs=2),
        _features_only_in,
        "graphs",
    ),
    Question(
        "similar_graphs",
        lambda store, s: queries.similar_graphs(store, s.graph.graph_id),
        _similar_graphs,
        "jaccard",
    ),
)
