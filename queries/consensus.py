"""The consensus circuit of a set of prompts: what recurs, with strengths, as one graph.

Features and pairs of features that recur become the nodes and edges of a graph of its own, each
where it mostly acts (:mod:`queries.roles`). How good it is, is told prompt by prompt: everything
else of the prompt's graph is merged into error, as pruning would, and the graph is scored again.
The same figures on prompts that were not used to find the circuit, beside circuits drawn at random,
say whether it is more than a summary.
"""

from __future__ import annotations

import datetime as dt
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from queries.asking import GraphSet, check_share, comparable
from queries.consensus_graph import Means
from queries.core import check_limit
from queries.mining import recurring_edges, recurring_features
from tracer.errors import QueryError
from tracer.graph import AttributionGraph
from tracer.influence import Flow
from tracer.scores import flow_scores, merged_scores

if TYPE_CHECKING:
    from graphstore import Store

__all__ = [
    "EDGE_COLUMNS",
    "FEATURE_COLUMNS",
    "ConsensusCircuit",
    "consensus_circuit",
    "coverage",
    "explained",
    "prompts_table",
]

Progress = Callable[[int, int], None]
Mask = NDArray[np.bool_]

FEATURE_COLUMNS: Final = (
    "feature_id",
    "layer",
    "index",
    "place",
    "graphs",
    "share",
    "mean_influence",
)
EDGE_COLUMNS: Final = (
    *("source", "target", "graphs", "share", "mean_weight", "mean_share", "mean_influence"),
    "sign_agreement",
)
_COVERAGE: Final = (
    *("graph_id", "slug", "used", "features", "influence_share", "expected_share", "edge_share"),
    *("completeness", "replacement", "completeness_stored", "replacement_stored"),
    *("random_influence_share", "random_replacement", "p"),
)


@dataclass(frozen=True)
class ConsensusCircuit:
    """What recurs over a set of prompts.

    Attributes
    ----------
    features
        ``feature_id``, ``layer``, ``index``, ``place`` (where it mostly acts: ``city``,
        ``last-1``), ``graphs``, ``share`` (of the set), ``mean_influence``.
    edges
        ``source``, ``target`` (feature ids), ``graphs``, ``share``, ``mean_weight``,
        ``mean_share``, ``mean_influence``, ``sign_agreement``, as
        :func:`~queries.recurring_edges` tells them.
    graph
        An attribution graph of it, to draw and to score. Its tokens are places; its nodes the
        features, embeddings that recur as inputs, one logit (the prompts' targets together), and
        error nodes. An edge has the share of its target's input that it has in the mean of the
        graphs with the target, and the sign of its mean weight; what does not recur of a target's
        input comes from the error node beside it.
    prompts
        How much of each prompt it explains, as :func:`coverage` tells it (without random circuits).
    min_share
        In which share of the graphs everything in it recurs.
    graph_ids
        Graphs that it was found in.
    model_id, transcoder_id
        Of those graphs.
    name
        What it is kept as; empty where it is not.
    created_at
        When it was found, ISO 8601.
    """

    features: pd.DataFrame
    edges: pd.DataFrame
    graph: AttributionGraph
    prompts: pd.DataFrame
    min_share: float
    graph_ids: tuple[str, ...]
    model_id: str | None
    transcoder_id: str | None
    name: str = ""
    created_at: str = field(
        default_factory=lambda: dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    )

    @cached_property
    def feature_ids(self) -> frozenset[str]:
        """Ids of its features."""
        return frozenset(self.features["feature_id"])

    @cached_property
    def pairs(self) -> frozenset[tuple[str, str]]:
        """Source and target of its edges."""
        return frozenset(zip(self.edges["source"], self.edges["target"], strict=True))

    def __repr__(self) -> str:
        name = f" {self.name!r}" if self.name else ""
        return (
            f"<ConsensusCircuit{name}: {len(self.features)} features and {len(self.edges)} edges "
            f"in {self.min_share:.0%} of {len(self.graph_ids)} graphs>"
        )

    def _repr_html_(self) -> str:
        return f"<p>{repr(self)[1:-1]}</p>{self.features.head(20).to_html(index=False)}"


def consensus_circuit(
    store: Store,
    prompt_set: GraphSet,
    min_share: float = 0.5,
    *,
    progress: Progress | None = None,
) -> ConsensusCircuit:
    """Find the circuit that recurs over a set of prompts.

    Reads every graph of the set once: some tens of milliseconds each.

    Parameters
    ----------
    store
        The store.
    prompt_set
        A set, or a list of graphs; at least two.
    min_share
        In which share of the graphs features and edges recur at least, in [0, 1].
    progress
        Called with how many graphs are read, and how many there are.

    Raises
    ------
    NotFoundError
        If no set or graph has the name.
    QueryError
        If there are fewer than two graphs, they are of several transcoders, `min_share` is outside
        [0, 1], or no feature recurs.
    """
    name = "consensus_circuit"
    check_share(name, "min_share", min_share)
    chosen = comparable(store, name, prompt_set)
    if len(chosen.ids) < 2:
        raise QueryError(
            f"query {name}: one graph alone (in {prompt_set!r}) has no consensus",
            "Add graphs to the set, or name another",
        )
    features = recurring_features(store, chosen.ids, min_share=min_share)
    if features.empty:
        raise QueryError(
            f"query {name}: no feature is in a share {min_share:g} of the {len(chosen.ids)} graphs",
            "Lower min_share",
        )
    edges = recurring_edges(store, chosen.ids, min_share=min_share)[list(EDGE_COLUMNS)]
    found = Means(
        features["feature_id"].tolist(),
        set(zip(edges["source"], edges["target"], strict=True)),
        chosen.at_least(name, 1, min_share),
    )
    rows = []
    for done, graph_id in enumerate(chosen.ids, start=1):
        graph = store.read(graph_id)
        found.add(graph)
        rows.append({**explained(graph, found.feature_ids, found.pairs), "used": True})
        if progress is not None:
            progress(done, len(chosen.ids))
    spots = [found.place_of(feature) for feature in features["feature_id"]]
    features["place"] = pd.Series(spots, index=features.index, dtype=object)
    return ConsensusCircuit(
        features=features[list(FEATURE_COLUMNS)],
        edges=edges,
        graph=found.graph(edges, min_share),
        prompts=prompts_table(rows),
        min_share=float(min_share),
        graph_ids=tuple(chosen.ids),
        model_id=found.model_id,
        transcoder_id=found.transcoder_id,
    )


def coverage(
    store: Store,
    circuit: ConsensusCircuit | str,
    prompt_set: GraphSet,
    random: int = 20,
    seed: int = 0,
    *,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """How much of each prompt a circuit explains, beside random circuits of equal size.

    Parameters
    ----------
    store
        The store.
    circuit
        A circuit, or the name of a stored one.
    prompt_set
        Graphs to test it on, such as those it was not found in: a set, or a list of graphs.
    random
        How many random circuits: as many features of each layer, drawn from all that act in the
        graphs that it was found in (where they are stored) and in those tested.
    seed
        Of their draws.
    progress
        Called with how many graphs are read, and how many there are.

    Returns
    -------
    DataFrame
        One row a graph: ``graph_id``, ``slug``, ``used`` (whether the circuit was found in it),
        ``features`` (of the circuit, how many act in it), ``influence_share`` (of the influence of
        all its feature nodes, what theirs hold), ``expected_share`` (the same for as many features
        drawn among those that act in this very graph: a hard comparison), ``edge_share`` (of the
        influence over edges between features, what runs over pairs of the circuit),
        ``completeness``, ``replacement`` (all other features merged into error),
        ``completeness_stored``, ``replacement_stored`` (of the graph as stored),
        ``random_influence_share``, ``random_replacement`` (means over the random circuits), ``p``
        ((1 + how many of those explain at least as much influence) / (1 + how many)). A share of
        nothing is nan.

    Raises
    ------
    NotFoundError
        If no circuit, set or graph has the name.
    QueryError
        If there is no graph, or one of another transcoder; if `random` is negative.
    """
    name = "coverage"
    if isinstance(circuit, str):
        from queries.consensus_kept import read_circuit

        circuit = read_circuit(store, circuit)
    check_limit(name, random, "random")
    chosen = comparable(store, name, prompt_set)
    if other := [each for each in chosen.transcoders if each != circuit.transcoder_id]:
        raise QueryError(
            f"query {name}: the circuit's features are of {circuit.transcoder_id}, the graphs' of "
            f"{other[0]}: they are not comparable",
            "Choose graphs of the circuit's transcoder",
        )
    draws = _random_circuits(store, circuit, chosen.ids, random, seed)
    used = set(circuit.graph_ids)
    rows = []
    for done, graph_id in enumerate(chosen.ids, start=1):
        graph = store.read(graph_id)
        row = explained(graph, circuit.feature_ids, circuit.pairs)
        drawn = [explained(graph, features, frozenset()) for features in draws]
        if drawn:
            shares = np.array([each["influence_share"] for each in drawn])
            row["random_influence_share"] = float(shares.mean())
            row["random_replacement"] = float(np.mean([each["replacement"] for each in drawn]))
            at_least = int((shares >= row["influence_share"]).sum())
            known = not math.isnan(row["influence_share"])
            row["p"] = (1 + at_least) / (1 + len(drawn)) if known else math.nan
        rows.append({**row, "used": graph_id in used})
        if progress is not None:
            progress(done, len(chosen.ids))
    return _coverage_table(rows)


def explained(
    graph: AttributionGraph,
    features: frozenset[str] | set[str],
    pairs: frozenset[tuple[str, str]] | set[tuple[str, str]],
) -> dict[str, Any]:
    """How much of one graph some features and pairs of features explain.

    Parameters
    ----------
    graph
        The graph, as stored.
    features
        Ids of features; all others are merged into error.
    pairs
        Source and target of the edges that count in ``edge_share``.
    """
    flow = Flow(graph)
    ids = graph.feature_ids
    inside = np.array([name in features for name in ids], np.bool_)
    acting = {name for name in ids if name is not None}
    mass = flow.influence[graph.is_feature].sum()
    scores = flow.edge_scores.tocoo()
    between = graph.is_feature[scores.row] & graph.is_feature[scores.col]
    held = np.array(
        [(ids[s], ids[t]) in pairs for s, t in zip(scores.col, scores.row, strict=True)], np.bool_
    )
    stored = flow_scores(flow, "as_stored")
    merged = merged_scores(graph, ~graph.is_feature | inside)
    here = len(acting & features)
    return {
        "graph_id": graph.graph_id,
        "slug": graph.slug,
        "features": here,
        "influence_share": _ratio(flow.influence[inside].sum(), mass),
        "expected_share": _ratio(here, len(acting)),
        "edge_share": _ratio(scores.data[between & held].sum(), scores.data[between].sum()),
        "completeness": merged.completeness,
        "replacement": merged.replacement,
        "completeness_stored": stored.completeness,
        "replacement_stored": stored.replacement,
    }


def prompts_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """Make the table of how much of each prompt is explained, without random circuits."""
    return _coverage_table(rows).drop(columns=["random_influence_share", "random_replacement", "p"])


def _coverage_table(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    frame = pd.DataFrame(list(rows), columns=list(_COVERAGE))
    texts, rest = ["graph_id", "slug"], ["used", "features"]
    real = [name for name in _COVERAGE if name not in (*texts, *rest)]
    return frame.astype({"used": bool, "features": "int64", **dict.fromkeys(real, "float64")})


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else math.nan


def _random_circuits(
    store: Store, circuit: ConsensusCircuit, ids: Sequence[str], count: int, seed: int
) -> list[frozenset[str]]:
    """Draw sets of features, as many of each layer as the circuit has."""
    if not count:
        return []
    known = [row["id"] for row in store.rows(_STORED, ids=list(circuit.graph_ids))]
    pool = recurring_features(store, list(dict.fromkeys([*known, *ids])), min_graphs=1)
    by_layer = {layer: sorted(part["feature_id"]) for layer, part in pool.groupby("layer")}
    sizes = Counter(circuit.features["layer"])
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(count):
        drawn: set[str] = set()
        for layer, size in sorted(sizes.items()):
            there = by_layer.get(layer, [])
            places_ = generator.choice(len(there), min(size, len(there)), replace=False)
            drawn.update(there[place] for place in places_)
        draws.append(frozenset(drawn))
    return draws


_STORED: Final = """
UNWIND $ids AS id MATCH (g:Graph {graph_id: id, complete: true}) RETURN g.graph_id AS id
"""
