"""Influence against golden files, a dense inverse, and paths enumerated one by one."""

from __future__ import annotations

import sys
import tracemalloc

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_array

import tracer
from tracer import AttributionGraph, Flow
from tracer.errors import GraphError, SettingError

# Float64 sums of at most a few hundred terms, taken in different orders.
EXACT = {"rtol": 1e-12, "atol": 1e-14}


@st.composite
def graphs(draw, dtype=np.float64):
    """Random small graphs with zeros, ties, negative weights and rows in any order."""
    counts = {
        "feature": draw(st.integers(0, 7)),
        "error": draw(st.integers(0, 3)),
        "embedding": draw(st.integers(0, 3)),
        "logit": draw(st.integers(0, 3)),
    }
    kind = np.array([k for k, count in counts.items() for _ in range(count)], dtype=object)
    n = len(kind)
    weight = st.one_of(st.just(0.0), st.integers(-3, 3).map(float), st.floats(-9, 9, width=16))
    matrix = draw(hnp.arrays(dtype, (n, n), elements=weight, fill=st.nothing()))
    # Features feed later features only; a random order afterwards hides that from the code.
    place = np.where(kind == "feature", 1 + np.arange(n), np.where(kind == "logit", n + 1, 0))
    matrix = np.where(place[:, None] > place[None, :], matrix, 0)
    matrix[np.isin(kind, ["error", "embedding"])] = 0
    matrix[:, kind == "logit"] = 0
    nodes = pd.DataFrame(
        {
            "kind": kind,
            "layer": np.select([kind == "embedding", kind == "logit"], [-1, n], np.arange(n)),
            "position": np.where(kind == "embedding", np.arange(n), 0),
            "index": np.arange(n),
            "probability": [draw(st.floats(0, 0.3)) if k == "logit" else np.nan for k in kind],
        }
    )
    order = np.array(draw(st.permutations(range(n))), dtype=int)
    return AttributionGraph(
        nodes.iloc[order].reset_index(drop=True), csr_array(matrix[np.ix_(order, order)])
    )


def dense_shares(graph: AttributionGraph) -> np.ndarray:
    magnitudes = np.abs(graph.adjacency.toarray().astype(np.float64))
    sums = magnitudes.sum(axis=1, keepdims=True)
    return np.divide(magnitudes, sums, out=np.zeros_like(magnitudes), where=sums > 0)


def dense_inverse(shares: np.ndarray) -> np.ndarray:
    return np.linalg.inv(np.eye(len(shares)) - shares)


@pytest.fixture
def chain():
    """Two embeddings and an error feed a, a and an embedding feed b, both feed two logits."""
    nodes = pd.DataFrame(
        {
            "kind": ["embedding", "embedding", "error", "feature", "feature", "logit", "logit"],
            "layer": [-1, -1, 0, 0, 1, 2, 2],
            "position": [0, 1, 1, 1, 1, 1, 1],
            "index": [5, 6, -1, 1, 2, 8, 9],
            "probability": [None] * 5 + [0.5, 0.25],
        }
    )
    edges = pd.DataFrame(
        [
            ("embedding/0", "feature/0/1/1", 2.0),
            ("embedding/1", "feature/0/1/1", -1.0),
            ("error/0/1", "feature/0/1/1", 1.0),
            ("feature/0/1/1", "feature/1/2/1", -3.0),
            ("embedding/1", "feature/1/2/1", 1.0),
            ("feature/1/2/1", "logit/8", 1.0),
            ("feature/0/1/1", "logit/8", 1.0),
            ("feature/1/2/1", "logit/9", -2.0),
        ],
        columns=["source", "target", "weight"],
    )
    return tracer.from_pandas(nodes, edges)


# Golden files ----------------------------------------------------------------------------------


def test_influence_equals_the_reference(golden_pair):
    graph, arrays = golden_pair
    found = tracer.influence(graph)
    # The reference works in float32.
    np.testing.assert_allclose(
        found, arrays["node_influence"], rtol=2e-5, atol=1e-6 * arrays["node_influence"].max()
    )
    assert (found[graph.is_logit] == 0).all()


# Dense inverse ---------------------------------------------------------------------------------


@given(graphs())
@settings(max_examples=80, deadline=None)
def test_influence_equals_a_dense_inverse(graph):
    shares, w = dense_shares(graph), graph.logit_weights
    flow = Flow(graph)
    np.testing.assert_allclose(flow.normalised.toarray(), shares, **EXACT)
    expected = w @ (dense_inverse(shares) - np.eye(len(w)))
    np.testing.assert_allclose(flow.influence, expected, **EXACT)
    np.testing.assert_allclose(
        flow.edge_scores.toarray(), shares * (expected + w)[:, None], **EXACT
    )
    np.testing.assert_allclose(flow.error_fraction, shares[:, graph.is_error].sum(axis=1), **EXACT)
    np.testing.assert_allclose(flow.inputs, np.abs(graph.adjacency.toarray()).sum(axis=1), **EXACT)


@given(graphs())
@settings(max_examples=50, deadline=None)
def test_influence_by_length_equals_powers_and_sums_to_influence(graph):
    shares = dense_shares(graph)
    flow = Flow(graph)
    by_length = flow.by_length.toarray()
    for k in range(flow.n_steps + 2):
        expected = graph.logit_weights @ np.linalg.matrix_power(shares, k + 1)
        row = by_length[k] if k < flow.n_steps else np.zeros(graph.n_nodes)
        np.testing.assert_allclose(row, expected, **EXACT)
    if flow.n_steps:
        assert by_length[-1].any()  # no row too many
    np.testing.assert_allclose(by_length.sum(axis=0), flow.influence, **EXACT)
    np.testing.assert_allclose(flow.masses, by_length[:, graph.is_embedding].sum(axis=1), **EXACT)


@given(graphs())
@settings(max_examples=50, deadline=None)
def test_edge_scores_conserve_influence(graph):
    """What leaves a node is its influence; what enters it is influence + w, where it has inputs."""
    flow = Flow(graph)
    scores = flow.edge_scores
    np.testing.assert_allclose(scores.sum(axis=0), flow.influence, **EXACT)
    through = np.where(flow.inputs > 0, flow.influence + flow.weights, 0)
    np.testing.assert_allclose(scores.sum(axis=1), through, **EXACT)


@given(graphs(), st.sampled_from(["signed", "positive"]))
@settings(max_examples=50, deadline=None)
def test_other_signs_equal_a_dense_inverse(graph, sign):
    weights = graph.adjacency.toarray()
    part = weights if sign == "signed" else np.maximum(weights, 0)
    sums = np.abs(part).sum(axis=1, keepdims=True)
    shares = np.divide(part, sums, out=np.zeros_like(part), where=sums > 0)
    np.testing.assert_allclose(tracer.normalised(graph, sign).toarray(), shares, **EXACT)
    expected = graph.logit_weights @ (dense_inverse(shares) - np.eye(len(shares)))
    np.testing.assert_allclose(tracer.influence(graph, sign), expected, **EXACT)


@given(graphs(), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_order_of_nodes_does_not_matter(graph, random):
    order = list(range(graph.n_nodes))
    random.shuffle(order)
    shuffled = AttributionGraph(
        graph.nodes.iloc[order].reset_index(drop=True), graph.adjacency[order][:, order]
    )
    np.testing.assert_allclose(tracer.influence(shuffled), tracer.influence(graph)[order], **EXACT)


# Paths, one by one -----------------------------------------------------------------------------


def test_influence_equals_enumerated_paths(chain):
    """Every path from a node to a logit carries w times the product of its shares."""
    network = chain.to_networkx()
    inputs = {t: sum(abs(d["weight"]) for *_, d in network.in_edges(t, data=True)) for t in network}
    longest = nx.dag_longest_path_length(network, weight=None)
    expected = np.zeros((longest, chain.n_nodes))
    for row, source in enumerate(chain.keys):
        for logit in np.flatnonzero(chain.is_logit):
            for path in nx.all_simple_edge_paths(network, source, chain.keys[logit]):
                shares = [abs(network.edges[s, t]["weight"]) / inputs[t] for s, t in path]
                if path:
                    carried = chain.logit_weights[logit] * np.prod(shares)
                    expected[len(path) - 1, row] += carried
    np.testing.assert_allclose(tracer.influence_by_length(chain).toarray(), expected, **EXACT)
    np.testing.assert_allclose(tracer.influence(chain), expected.sum(axis=0), **EXACT)


def test_influence_on_paper(chain):
    """By hand: logit 8 takes half of b and of a, logit 9 all of b, b three quarters of a."""
    b = 0.5 * 0.5 + 0.25
    a = 0.5 * 0.5 + 0.75 * b
    expected = [a / 2, a / 4 + b / 4, a / 4, a, b, 0, 0]
    np.testing.assert_allclose(tracer.influence(chain), expected, **EXACT)
    np.testing.assert_allclose(tracer.error_fraction(chain), [0, 0, 0, 0.25, 0, 0, 0], **EXACT)
    # Over its own inputs only: 3 of 4 is the share of a in b, whose influence is b.
    scores = tracer.edge_scores(chain)
    assert scores[chain.row("feature/1/2/1"), chain.row("feature/0/1/1")] == pytest.approx(0.75 * b)
    # A logit has no influence but passes its weight on.
    assert scores[chain.row("logit/9"), chain.row("feature/1/2/1")] == pytest.approx(0.25)


def test_path_lengths_on_paper(chain):
    table = tracer.path_lengths(chain)
    assert list(table.columns) == ["length", "mass", "share", "cumulative"]
    assert table["length"].tolist() == [1, 2, 3]
    # No embedding feeds a logit directly; in two steps: over a to 8, over b to 8 and 9.
    two = 0.25 * 0.75 + 0.5 * 0.25
    three = 0.5 * 0.75 * 0.75
    np.testing.assert_allclose(table["mass"], [0, two, three], **EXACT)
    np.testing.assert_allclose(table["share"], np.array([0, two, three]) / (two + three), **EXACT)
    np.testing.assert_allclose(table["cumulative"], [0, two / (two + three), 1], **EXACT)


@given(graphs())
@settings(max_examples=50, deadline=None)
def test_path_lengths_equal_powers(graph):
    table = tracer.path_lengths(graph)
    shares, ones = dense_shares(graph), graph.is_embedding.astype(float)
    for length, mass in zip(table["length"], table["mass"], strict=True):
        power = np.linalg.matrix_power(shares, length)
        np.testing.assert_allclose(mass, graph.logit_weights @ power @ ones, **EXACT)
    if len(table):
        assert table["mass"].iloc[-1] > 0
        np.testing.assert_allclose(table["share"].sum(), 1, **EXACT)
        np.testing.assert_allclose(table["cumulative"], table["share"].cumsum(), **EXACT)
    total = graph.logit_weights @ dense_inverse(shares) @ ones
    np.testing.assert_allclose(table["mass"].sum(), total, **EXACT)


# Precision, memory, edges of the definition ----------------------------------------------------


@given(graphs(dtype=np.float32))
@settings(max_examples=40, deadline=None)
def test_float32_weights_are_computed_in_float64(graph):
    assert graph.adjacency.dtype == np.float32
    double = graph.replace(adjacency=graph.adjacency.astype(np.float64))
    for name in ("influence", "error_fraction", "inputs", "masses"):
        found = getattr(Flow(graph), name)
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, getattr(Flow(double), name))


def test_functions_are_the_parts_of_a_flow(chain):
    flow = Flow(chain)
    np.testing.assert_array_equal(tracer.influence(chain), flow.influence)
    np.testing.assert_array_equal(tracer.error_fraction(chain), flow.error_fraction)
    for function, part in (
        (tracer.normalised, flow.normalised),
        (tracer.influence_by_length, flow.by_length),
        (tracer.edge_scores, flow.edge_scores),
    ):
        np.testing.assert_array_equal(function(chain).toarray(), part.toarray())
    assert flow.influence is flow.influence  # computed once
    with pytest.raises(ValueError, match="read-only"):
        flow.influence[0] = 1.0


def test_pattern_is_shared_and_the_graph_untouched(chain):
    before = chain.digest()
    flow = Flow(chain)
    _ = flow.influence, flow.masses
    assert np.shares_memory(flow.normalised.indices, chain.adjacency.indices)
    assert np.shares_memory(flow.edge_scores.indices, chain.adjacency.indices)
    assert chain.digest() == before


def test_long_chain_stays_sparse():
    """A path of n nodes has n lengths: anything dense in n × n would take 200 MB here."""
    n = 5_000
    nodes = pd.DataFrame(
        {
            "kind": ["embedding", *["feature"] * (n - 2), "logit"],
            "layer": range(-1, n - 1),
            "position": 0,
            "index": range(n),
            "probability": [*[None] * (n - 1), 0.5],
        }
    )
    graph = AttributionGraph(
        nodes, csr_array((np.ones(n - 1), (np.arange(1, n), np.arange(n - 1))), shape=(n, n))
    )
    tracemalloc.start()
    flow = Flow(graph)
    masses = flow.masses
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert flow.n_steps == n - 1
    assert masses[-1] == 0.5
    assert not masses[:-1].any()
    assert flow.by_length.nnz == n - 1
    assert peak < 20e6


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_scaling_in_blocks_of_any_size(golden, monkeypatch, block):
    """Large graphs are scaled block by block; this one fits into one block otherwise."""
    graph, _ = golden("llama_plt_mlp")
    assert graph.n_edges > 1000
    whole = Flow(graph)
    monkeypatch.setattr(sys.modules["tracer.influence"], "_BLOCK", block)
    found = Flow(graph)
    np.testing.assert_array_equal(found.normalised.data, whole.normalised.data)
    np.testing.assert_array_equal(found.edge_scores.data, whole.edge_scores.data)


def test_graph_without_edges_targets_or_nodes():
    nodes = pd.DataFrame(
        {"kind": ["embedding", "logit"], "layer": [-1, 0], "position": 0, "index": [1, 2]}
    )
    bare = AttributionGraph(nodes.assign(probability=[None, 0.5]), csr_array((2, 2)))
    assert tracer.influence(bare).tolist() == [0, 0]
    assert tracer.influence_by_length(bare).shape == (0, 2)
    assert tracer.path_lengths(bare).empty
    headless = AttributionGraph(nodes[:1], csr_array((1, 1)))
    assert tracer.influence(headless).tolist() == [0]
    empty = AttributionGraph(nodes[:0], csr_array((0, 0)))
    assert tracer.influence(empty).shape == (0,)
    assert tracer.edge_scores(empty).shape == (0, 0)


def test_tiny_weights_still_make_shares(chain):
    """Rows are divided by their sums, however small; the reference stops at 1e-10."""
    tiny = chain.replace(adjacency=chain.adjacency * 1e-300)
    np.testing.assert_allclose(tracer.influence(tiny), tracer.influence(chain), **EXACT)


def test_unknown_sign_is_named(chain):
    with pytest.raises(SettingError, match="sign 'absolut' is unknown"):
        tracer.influence(chain, "absolut")


def test_weights_that_sum_to_infinity_are_refused(chain):
    huge = chain.replace(adjacency=chain.adjacency * 5.9e307)
    with pytest.raises(GraphError, match=f"node {chain.row('feature/0/1/1')} "):
        tracer.influence(huge)
