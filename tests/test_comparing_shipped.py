"""Single-hop against two-hop prompts of the shipped model: they differ where they should.

Asked for a city's state, and for the capital of the state containing it, the model must do other
things at the last position. Asked for the capital of a state, or of the state containing a city, it
must say the same there, and what differs is each prompt's own.
"""

from __future__ import annotations

import pytest

import queries
import tracer
from circuitbase.shipped import CLT, MODEL
from circuitbase.shipped.corpus import make_corpus

torch = pytest.importorskip("torch")
if not (MODEL / "model.safetensors").exists() or not (CLT / "config.yaml").exists():
    pytest.skip("the shipped model is not made (make model)", allow_module_level=True)

N = 12


@pytest.fixture(scope="module")
def traced():
    """Graphs of prompts about the same places, by what is asked."""
    corpus = make_corpus()
    two = [s for s in corpus.of("train", family="city-state-capital") if s.template == "of"]
    two = two[:: len(two) // N][:N]
    cities = {s.roles["city"] for s in two}
    states = {s.bridge for s in two}
    asked = {
        "state": [
            s
            for s in corpus.of(family="city-state")
            if s.template == "is" and s.roles["city"] in cities
        ],
        "capital": [
            s
            for s in corpus.of(family="state-capital")
            if s.template == "of" and s.roles["state"] in states
        ],
        "two-hop": two,
    }
    model, clt = tracer.load_model(MODEL), tracer.load_transcoder(CLT)
    found = {}
    for name, sentences in asked.items():
        prompts = [
            tracer.Prompt(s.prompt, s.id, metadata={"answer": s.answer, "template": s.template})
            for s in sentences
        ]
        found[name] = [
            tracer.prune(traced.graph) for traced in tracer.trace_many(model, clt, prompts)
        ]
    return found


def test_single_hop_and_two_hop_differ_where_they_should(traced, embedded_store):
    store = embedded_store
    for name, graphs in traced.items():
        store.write_many(graphs, name)

    found = queries.compare(store, "state", "two-hop").features
    differs = found[(found["q_presence"] < 0.05) | (found["q_strength"] < 0.05)]
    assert len(differs)
    assert found["q_presence"].min() < 0.05
    # They act where the answer is said: at the last position, whatever the place is.
    lengths = {graph.graph_id: len(graph.tokens) for graph in traced["state"] + traced["two-hop"]}
    for feature in differs["feature_id"]:
        at = queries.feature_occurrences(store, feature)
        at = at[at["graph_id"].isin(lengths)]
        last = at["graph_id"].map(lengths) - 1 == at["position"]
        assert last.mean() > 0.5, feature

    same = queries.compare(store, "capital", "two-hop")
    assert same.features["q_presence"].min() > 0.05
    assert same.features["q_strength"].min() > 0.05

    alike = queries.similarity_matrix(store, items="features", measure="weighted")
    names = alike.matrix.index
    of = {name: [g.graph_id for g in graphs] for name, graphs in traced.items()}
    question = alike.matrix.loc[of["capital"], of["two-hop"]].to_numpy().mean()
    other = alike.matrix.loc[of["state"], of["capital"]].to_numpy().mean()
    assert len(names) == sum(map(len, of.values()))
    assert question > other


def test_shuffled_sets_of_the_shipped_model_differ_nowhere(traced, embedded_store):
    store = embedded_store
    graphs = traced["two-hop"]
    store.write_many(graphs)
    ids = [graph.graph_id for graph in graphs]
    found = queries.compare(store, ids[::2], ids[1::2])
    assert found.features["q_presence"].min() > 0.05
