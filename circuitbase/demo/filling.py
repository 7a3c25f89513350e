"""Filling the demonstration's store: trace what it lacks, label the features, weigh their pairs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from circuitbase.shipped.classes import word_classes
from circuitbase.shipped.corpus import make_corpus
from tracer.corpora import Corpus
from tracer.describing import describe_features
from tracer.many import trace_many
from tracer.prompts import Prompt
from tracer.pruning import prune, pruned_identity
from tracer.weights.collecting import corpus_statistics
from tracer.weights.scores import global_weights
from tracer.weights.selection import FeatureSelection

if TYPE_CHECKING:
    from graphstore import Store
    from tracer.graph import AttributionGraph
    from tracer.models import Model
    from tracer.transcoders import Transcoder

__all__ = ["NODE_THRESHOLD", "describe", "fill", "pruned", "text_corpus", "weigh"]

# Keeps about a hundred nodes of a graph: with the usual 0.8, small graphs lose what they share.
NODE_THRESHOLD: Final = 0.95
_INDUCTION: Final = 1_500  # of these sentences, which are many and alike
_TOP: Final = 10  # pairs kept of each feature, in and out: enough to tell of

Progress = Callable[[int, int], None]


def fill(
    store: Store,
    model: Model,
    transcoder: Transcoder,
    sets: Mapping[str, list[Prompt]],
    progress: Progress | None = None,
) -> dict[str, str]:
    """Trace and store the prompts that a store lacks, and put all of them into their sets.

    Returns
    -------
    dict
        Id of the stored graph of each prompt, by the prompt's id.

    Raises
    ------
    CircuitError
        If a prompt cannot be traced.
    """
    stored = set(store.graphs()["graph_id"])
    total = sum(map(len, sets.values()))
    ids: dict[str, str] = {}

    def has(graph_id: str) -> bool:
        return pruned_identity(graph_id, NODE_THRESHOLD) in stored

    for name, prompts in sets.items():
        for result in trace_many(model, transcoder, prompts, skip=has, finish=pruned, parts=True):
            if result.error is not None:
                raise result.error
            if result.graph is not None:
                store.write(result.graph, prompt_set=name)
            graph_id = pruned_identity(result.graph_id or "", NODE_THRESHOLD)
            if result.graph is None:
                store.include(graph_id, name)
            ids[result.prompt.id] = graph_id
            if progress is not None:
                progress(len(ids), total)
    return ids


def pruned(graph: AttributionGraph) -> AttributionGraph:
    """Prune a graph as the demonstration stores it."""
    return prune(graph, NODE_THRESHOLD)


def describe(
    store: Store, model: Model, transcoder: Transcoder, progress: Progress | None = None
) -> int:
    """Describe and label the features that a store has and nobody described over this corpus.

    Returns
    -------
    int
        How many were described now.
    """
    corpus = text_corpus(model)
    known = store.rows(
        "MATCH (f:Feature) WHERE f.transcoder_id = $transcoder_id "
        "RETURN f.feature_id AS id, f.statistics AS statistics",
        transcoder_id=transcoder.transcoder_id,
    )
    name = corpus.fingerprint()
    wanted = [
        row["id"]
        for row in known
        if row["statistics"] is None or json.loads(row["statistics"]).get("corpus") != name
    ]
    if not wanted:
        return 0
    frame = describe_features(
        model, transcoder, corpus, wanted, classes=word_classes(), progress=progress
    )
    return store.describe_features(frame)


def weigh(
    store: Store, model: Model, transcoder: Transcoder, graph_ids: Sequence[str], name: str
) -> str:
    """Compute and store the global weights between the features of some graphs.

    Parameters
    ----------
    graph_ids, name
        Stored graphs, and what they are called together.

    Returns
    -------
    str
        Id of the weights; those that are stored are not computed again.
    """
    chosen = FeatureSelection.of_graphs((store.read(graph_id) for graph_id in graph_ids), name)
    wanted = [
        f"{transcoder.transcoder_id}/{layer}/{index}"
        for layer, index in zip(chosen.features["layer"], chosen.features["index"], strict=True)
    ]
    stored = store.rows(
        "MATCH (w:GlobalWeights {complete: true, transcoder_id: $transcoder_id})"
        "-[:COVERS]->(f:Feature) "
        "RETURN w.weights_id AS weights_id, w.norm AS norm, w.tokens AS tokens, "
        "collect(f.feature_id) AS features",
        transcoder_id=transcoder.transcoder_id,
    )
    corpus = text_corpus(model)
    tokens = corpus.n_tokens - len(corpus)  # BOS does not count
    for row in stored:  # not those that somebody made of the same features over other texts
        same = row["norm"] == "omitted" and row["tokens"] == tokens
        if same and set(row["features"]) == set(wanted):
            return str(row["weights_id"])
    sums = corpus_statistics(model, transcoder, corpus, chosen, name="the shipped corpus")
    weights = global_weights(model, transcoder, sums, top_k=_TOP)
    store.write_weights(weights)
    return weights.weights_id


def text_corpus(model: Model) -> Corpus:
    """Sentences of the shipped corpus as tokens."""
    corpus = make_corpus()
    induction = [s for s in corpus.sentences if s.family == "induction"][:_INDUCTION]
    facts = [s for s in corpus.sentences if s.family != "induction"]
    prompts = [sentence.prompt for sentence in (*facts, *induction)]
    return Corpus.of([model.tokenize(prompt) for prompt in prompts], name="the shipped corpus")
