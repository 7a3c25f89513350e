"""Pruning against golden masks and against the definition in exact fractions."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_array

import tracer
from tracer import AttributionGraph, Flow, Scores, Supernode
from tracer.errors import SettingError

THRESHOLDS = [(0.8, 0.98, ""), (0.5, 0.5, "_50_50"), (0.6, 0.7, "_60_70")]


@pytest.fixture
def ties(data):
    """Graph of equal weights, and the reference's masks of it."""
    with np.load(data / "golden" / "pruning_ties.npz") as file:
        arrays = {key: file[key] for key in file.files}
    n_features, n_positions = int(arrays["n_features"]), int(arrays["n_positions"])
    n_errors = int(arrays["n_layers"]) * n_positions
    n_logits = len(arrays["logit_probabilities"])
    kind = np.repeat(
        ["feature", "error", "embedding", "logit"], [n_features, n_errors, n_positions, n_logits]
    )
    probability = np.full(len(kind), np.nan)
    probability[-n_logits:] = arrays["logit_probabilities"]
    nodes = pd.DataFrame(
        {
            "kind": kind,
            "layer": np.where(kind == "embedding", -1, arrays["layer"]),
            "position": np.where(kind == "logit", n_positions - 1, arrays["position"]),
            "index": np.where(np.isin(kind, ["feature", "logit"]), np.arange(len(kind)), -1),
            "probability": probability,
        }
    )
    return AttributionGraph(nodes, csr_array(arrays["adjacency"]), unpruned=True), arrays


@st.composite
def graphs(draw):
    """Random small graphs whose weights are few whole numbers: many ties, many dead ends."""
    counts = {
        "feature": draw(st.integers(1, 7)),
        "error": draw(st.integers(0, 3)),
        "embedding": draw(st.integers(0, 2)),
        "logit": draw(st.integers(1, 2)),
    }
    kind = np.array([k for k, count in counts.items() for _ in range(count)], dtype=object)
    n = len(kind)
    matrix = draw(hnp.arrays(np.int64, (n, n), elements=st.integers(-3, 3), fill=st.nothing()))
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
            "probability": [draw(st.integers(1, 7)) / 16 if k == "logit" else np.nan for k in kind],
        }
    )
    order = np.array(draw(st.permutations(range(n))), dtype=int)
    weights = matrix[np.ix_(order, order)].astype(float)
    return AttributionGraph(
        nodes.iloc[order].reset_index(drop=True), csr_array(weights), unpruned=True
    )


def exact_masks(graph, node_threshold, edge_threshold, rule):
    """Prune as the definition says, in fractions; sets of rows and of (target, source)."""
    kind, n = list(graph.nodes["kind"]), graph.n_nodes
    w = [Fraction(x) for x in graph.logit_weights.tolist()]
    weights = {
        (t, s): abs(Fraction(x))
        for t, row in enumerate(graph.adjacency.toarray().tolist())
        for s, x in enumerate(row)
        if x
    }
    influence, _ = exact_influence(n, weights, w)
    kept = {s for s in range(n) if influence[s] in most(influence, node_threshold)}
    stays = {"embedding", "logit"} | ({"error"} if rule == "paper" else set())
    kept |= {s for s in range(n) if kind[s] in stays}

    weights = {(t, s): x for (t, s), x in weights.items() if t in kept and s in kept}
    influence, share = exact_influence(n, weights, w)
    if rule == "paper":  # replaced, not added
        arriving = [w[t] if kind[t] == "logit" else influence[t] for t in range(n)]
    else:
        arriving = [influence[t] + w[t] for t in range(n)]
    score = {(t, s): share[t, s] * arriving[t] for t, s in weights}
    enough = most(list(score.values()), edge_threshold)
    edges = {edge for edge in score if score[edge] in enough}

    while True:
        feeding, fed = {s for _, s in edges}, {t for t, _ in edges}
        gone = {
            row
            for row in kept
            if kind[row] not in stays
            and (row not in feeding or (kind[row] == "feature" and row not in fed))
        }
        if not gone:
            return kept, edges
        kept -= gone
        edges = {(t, s) for t, s in edges if t in kept and s in kept}


def exact_influence(n, weights, w):
    total = [sum((x for (t, _), x in weights.items() if t == row), Fraction(0)) for row in range(n)]
    share = {(t, s): x / total[t] for (t, s), x in weights.items()}
    step, influence = list(w), [Fraction(0)] * n
    while any(step):
        after = [Fraction(0)] * n
        for (t, s), x in share.items():
            after[s] += step[t] * x
        step = after
        influence = [a + b for a, b in zip(influence, step, strict=True)]
    return influence, share


def most(scores, threshold):
    """Values that stay: not zero, and at least that at which the share is first reached."""
    ordered, total, so_far = sorted(scores, reverse=True), sum(scores), Fraction(0)
    if threshold == 1:
        return {value for value in scores if value}
    for value in ordered:
        so_far += value
        if total and so_far / total >= threshold:
            return {other for other in scores if other >= value and other}
    return set()


# Golden masks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("node_threshold", "edge_threshold", "suffix"), THRESHOLDS)
def test_masks_equal_the_reference(golden_pair, node_threshold, edge_threshold, suffix):
    graph, arrays = golden_pair
    nodes, edges = tracer.prune_masks(graph, node_threshold, edge_threshold)
    np.testing.assert_array_equal(nodes, arrays[f"node_mask{suffix}"])
    np.testing.assert_array_equal(edges.toarray(), arrays[f"edge_mask{suffix}"])
    small = tracer.prune(graph, node_threshold, edge_threshold)
    assert small.keys == tuple(np.array(graph.keys)[arrays[f"node_mask{suffix}"]])
    expected = np.where(arrays[f"edge_mask{suffix}"], arrays["adjacency"], 0)
    kept = arrays[f"node_mask{suffix}"]
    np.testing.assert_array_equal(small.adjacency.toarray(), expected[np.ix_(kept, kept)])


@pytest.mark.parametrize(("node_threshold", "edge_threshold", "suffix"), THRESHOLDS)
def test_masks_of_ties_equal_the_reference(ties, node_threshold, edge_threshold, suffix):
    graph, arrays = ties
    suffix = suffix or "_80_98"
    np.testing.assert_allclose(
        tracer.influence(graph), arrays["node_influence"], rtol=1e-5, atol=1e-7
    )
    nodes, edges = tracer.prune_masks(graph, node_threshold, edge_threshold)
    np.testing.assert_array_equal(nodes, arrays[f"node_mask{suffix}"])
    np.testing.assert_array_equal(edges.toarray(), arrays[f"edge_mask{suffix}"])


def test_golden_masks_exercise_the_third_step(golden, ties):
    """So that the comparisons above are about all three: nodes go that had influence enough."""
    dropped = 0
    for graph in (golden("llama_plt_mlp")[0], ties[0]):
        nodes, _ = tracer.prune_masks(graph, 0.5, 0.5)
        influence = tracer.influence(graph)
        weakest = influence[nodes & (graph.is_feature | graph.is_error)].min(initial=np.inf)
        dropped += int(((influence > weakest) & ~nodes).sum())
    assert dropped


# The definition, in fractions ------------------------------------------------------------------


@given(
    graphs(), st.integers(0, 20), st.integers(0, 20), st.sampled_from(["circuit-tracer", "paper"])
)
@settings(max_examples=120, deadline=None)
def test_masks_equal_fractions(graph, node_threshold, edge_threshold, rule):
    nodes, edges = tracer.prune_masks(graph, node_threshold / 20, edge_threshold / 20, rule)
    kept, links = exact_masks(
        graph, Fraction(node_threshold, 20), Fraction(edge_threshold, 20), rule
    )
    assert set(np.flatnonzero(nodes)) == kept
    assert edges.dtype == np.bool_
    assert set(zip(*map(np.ndarray.tolist, edges.nonzero()), strict=True)) == links


@given(graphs(), st.integers(0, 20), st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_pruned_graph_has_the_edges_of_the_masks(graph, node_threshold, edge_threshold):
    nodes, edges = tracer.prune_masks(graph, node_threshold / 20, edge_threshold / 20)
    small = tracer.prune(graph, node_threshold / 20, edge_threshold / 20)
    expected = np.where(edges.toarray(), graph.adjacency.toarray(), 0)[np.ix_(nodes, nodes)]
    np.testing.assert_array_equal(small.adjacency.toarray(), expected)
    assert small.keys == tuple(key for key, stays in zip(graph.keys, nodes, strict=True) if stays)
    assert small.unpruned is False
    flow = Flow(graph)
    for column, values in (
        ("influence_full", flow.influence),
        ("error_fraction_full", flow.error_fraction),
        ("input_full", flow.inputs),
    ):
        np.testing.assert_array_equal(small.nodes[column], values[nodes])


# By hand ---------------------------------------------------------------------------------------


@pytest.fixture
def star():
    """Three embeddings feed a feature each; the features feed a logit with 6, −3 and 1."""
    nodes = pd.DataFrame(
        {
            "kind": ["embedding"] * 3 + ["feature"] * 3 + ["error", "logit"],
            "layer": [-1] * 3 + [0] * 3 + [0, 1],
            "position": [0, 1, 2, 0, 1, 2, 2, 2],
            "index": [5, 6, 7, 1, 2, 3, -1, 9],
            "probability": [None] * 7 + [0.8],
            "label": [None, None, None, "one", "two", "three", None, None],
            "bias": [0, 0, 0, 0.1, 0.2, 0.3, 0, 0.7],
        }
    )
    edges = pd.DataFrame(
        {
            "source": [
                *("embedding/0", "embedding/1", "embedding/2", "error/0/2"),
                *("feature/0/1/0", "feature/0/2/1", "feature/0/3/2"),
            ],
            "target": [
                *("feature/0/1/0", "feature/0/2/1", "feature/0/3/2", "feature/0/3/2"),
                *["logit/9"] * 3,
            ],
            "weight": [1.0, 1.0, 0.5, 0.5, 6.0, -3.0, 1.0],
            "residual": [1.0, 0.25, 0.5, 0.5, 5.0, 0.0, 1.0],
            "attention": [0.0, 0.75, 0.0, 0.0, 1.0, -3.0, 0.0],
        }
    )
    return tracer.from_pandas(
        nodes,
        edges,
        prompt="a b c",
        tokens=("a", "b", "c"),
        token_ids=(5, 6, 7),
        model_id="m",
        transcoder_id="t",
        slug="star",
        settings={"zero_first": 1},
        unpruned=True,
        supernodes=[Supernode("ends", (3, 5, 7), "me"), Supernode("weak", (5, 6))],
        pinned=(4, 5, 7),
        source={"format": "made"},
        created_at="2026-01-01T00:00:00Z",
    )


def test_everything_said_of_what_stays_comes_along(star):
    small = tracer.prune(star, 0.8)
    assert small.keys == (
        *("embedding/0", "embedding/1", "embedding/2"),
        *("feature/0/1/0", "feature/0/2/1", "logit/9"),
    )
    np.testing.assert_allclose(
        small.nodes["influence_full"], 0.8 * np.array([0.6, 0.3, 0.05, 0.6, 0.3, 0])
    )
    assert small.nodes["input_full"].tolist() == [0, 0, 0, 1, 1, 10]
    assert small.nodes["error_fraction_full"].tolist() == [0] * 6
    assert small.nodes["label"].tolist() == [None, None, None, "one", "two", None]
    assert small.bias is not None
    assert small.bias.tolist() == [0, 0, 0, 0.1, 0.2, 0.7]
    assert small.supernodes == (Supernode("ends", (3, 5), "me"),)  # the logit moved up
    assert small.pinned == (4, 5)
    assert small.residual is not None
    assert small.attention is not None
    assert small.residual.toarray()[5].tolist() == [0, 0, 0, 5, 0, 0]
    assert small.attention.toarray()[4].tolist() == [0, 0.75, 0, 0, 0, 0]
    assert small.attention.toarray()[5].tolist() == [0, 0, 0, 1, -3, 0]
    unchanged = ("prompt", "tokens", "token_ids", "model_id", "transcoder_id", "slug", "source")
    for name in (*unchanged, "created_at"):
        assert getattr(small, name) == getattr(star, name)


def test_id_follows_from_parent_and_thresholds(star):
    small = tracer.prune(star)
    assert small.parent_id == star.graph_id != small.graph_id
    assert small.settings == {
        "zero_first": 1,
        "pruning": {"node_threshold": 0.8, "edge_threshold": 0.98, "rule": "circuit-tracer"},
    }
    assert tracer.prune(star) == small
    assert tracer.prune(star, 1).graph_id == tracer.prune(star, 1.0).graph_id
    ids = {
        tracer.prune(parent, nodes, edges, rule).graph_id
        for parent in (star, star.replace(graph_id="0" * 16))
        for nodes in (0.8, 0.9)
        for edges in (0.98, 0.9)
        for rule in ("circuit-tracer", "paper")
    }
    assert len(ids) == 16


def test_scores_of_the_unpruned_graph_are_carried(star):
    small = tracer.prune(star, 0.8)
    assert set(small.scores) == {"full", "merge", "masked"}
    assert small.scores["full"].replacement == pytest.approx(0.95)
    assert small.scores["masked"].replacement == pytest.approx(1.0)
    # The removed feature's weight of 1 counts as error at its place: 9 of 10 are left.
    assert small.scores["merge"].replacement == pytest.approx(0.9)
    assert tracer.scores(small, "as_stored").replacement == pytest.approx(1.0)


def test_pruning_again_keeps_what_is_still_true(star):
    """Full figures still hold; masks have changed, so the scores under them are gone."""
    once = tracer.prune(star, 0.95)
    twice = tracer.prune(once, 0.5)
    assert twice.parent_id == once.graph_id
    assert twice.settings["pruning"]["node_threshold"] == 0.5
    assert twice.scores == {"full": once.scores["full"]}
    full = pd.Series(once.nodes["influence_full"].to_numpy(), index=once.keys)
    np.testing.assert_array_equal(twice.nodes["influence_full"], full[list(twice.keys)])


def test_imported_graph_gets_no_full_values(star):
    imported = star.replace(unpruned=False)
    small = tracer.prune(imported)
    assert small.scores == {}
    assert not {"influence_full", "error_fraction_full", "input_full"} & set(small.nodes)
    kept = Scores("full", 0.1, 0.2, 3.0, 0.4)
    assert tracer.prune(imported.replace(scores={"full": kept})).scores == {"full": kept}


def test_zero_keeps_the_strongest_and_one_keeps_all(star):
    nodes, edges = tracer.prune_masks(star, 0, 0)
    assert np.array(star.keys)[nodes & star.is_feature].tolist() == ["feature/0/1/0"]
    # Its edge to the logit and the one from its only input carry the same influence.
    assert edges.nnz == 2
    nodes, edges = tracer.prune_masks(star, 1, 1)
    assert nodes.all()
    assert edges.nnz == star.n_edges


def test_one_drops_what_has_no_influence(star):
    weights = star.adjacency.toarray()
    weights[star.row("logit/9"), star.row("feature/0/3/2")] = 0
    nodes, edges = tracer.prune_masks(
        star.replace(adjacency=csr_array(weights), residual=None, attention=None), 1, 1
    )
    assert np.array(star.keys)[~nodes].tolist() == ["feature/0/3/2", "error/0/2"]
    assert edges.nnz == 4  # those of the dead end are gone


def test_paper_keeps_error_nodes(star):
    nodes, edges = tracer.prune_masks(star, 0.8, 0.98, "paper")
    assert nodes[star.row("error/0/2")]
    assert not nodes[star.row("feature/0/3/2")]
    assert not edges[[star.row("feature/0/3/2")]].nnz
    small = tracer.prune(star, 0.8, 0.98, "paper")
    assert small.settings["pruning"]["rule"] == "paper"
    assert "error/0/2" in small.keys


def test_third_step_goes_on_until_nothing_changes():
    """A chain whose weakest edge falls: what was before it and after it goes one by one."""
    n = 6
    nodes = pd.DataFrame(
        {
            "kind": ["embedding", *["feature"] * n, "logit"],
            "layer": [-1, *range(n), n],
            "position": 0,
            "index": [5, *range(n), 9],
            "probability": [None] * (n + 1) + [1.0],
        }
    )
    weights = np.zeros((n + 2, n + 2))
    weights[np.arange(1, n + 2), np.arange(n + 1)] = 1
    weights[n + 1, 0] = 9  # nine tenths of the influence go directly
    graph = AttributionGraph(nodes, csr_array(weights))
    assert tracer.prune_masks(graph, 1, 1)[0].all()
    # Every edge of the chain has a tenth: one score, which is not needed to reach one half.
    kept, edges = tracer.prune_masks(graph, 1, 0.5)
    assert kept.tolist() == [True, *[False] * n, True]
    assert edges.nnz == 1
    # A second input of the second feature makes the edges before it weaker than those after it.
    weights[2, 0] = 1
    graph = graph.replace(adjacency=csr_array(weights))
    total = 0.9 + 5 * 0.1 + 3 * 0.05
    kept, edges = tracer.prune_masks(graph, 1, (0.9 + 5 * 0.1) / total - 0.01)
    assert kept.tolist() == [True, *[False] * n, True]
    assert edges.nnz == 1


@given(st.randoms(use_true_random=False))
@settings(max_examples=30, deadline=None)
def test_ties_stay_whatever_the_order(random):
    """Seven equal paths of thirds and sevenths: sums differ in the last digit by their order."""
    n = 7
    nodes = pd.DataFrame(
        {
            "kind": ["embedding"] * 3 + ["feature"] * n + ["logit"],
            "layer": [-1] * 3 + [0] * n + [1],
            "position": [0, 1, 2] + [0] * n + [2],
            "index": range(n + 4),
            "probability": [None] * (n + 3) + [0.3],
        }
    )
    weights = np.zeros((n + 4, n + 4))
    weights[3 : n + 3, :3] = [[random.choice([0.1, 0.7, 1.3])] * 3 for _ in range(n)]
    weights[n + 3, 3 : n + 3] = 0.1
    order = list(range(n + 4))
    random.shuffle(order)
    graph = AttributionGraph(
        nodes.iloc[order].reset_index(drop=True), csr_array(weights[np.ix_(order, order)])
    )
    # The embeddings have half of the influence, the features, all equal, the other half.
    kept, edges = tracer.prune_masks(graph, 0.6, 0.6)
    assert kept.all()
    assert edges.nnz == graph.n_edges
    # One half is reached exactly: without the features, and without the edges into them.
    assert not tracer.prune_masks(graph, 0.5, 1)[0][graph.is_feature].any()
    assert tracer.prune_masks(graph, 1, 0.5)[1].nnz == 0


def errors_only(*weights: float) -> AttributionGraph:
    """Errors that feed one logit directly, and nothing else."""
    n = len(weights)
    nodes = pd.DataFrame(
        {
            "kind": ["error"] * n + ["logit"],
            "layer": [*range(n), n],
            "position": 0,
            "index": [-1] * n + [7],
            "probability": [None] * n + [0.5],
        }
    )
    matrix = np.zeros((n + 1, n + 1))
    matrix[n, :n] = weights
    return AttributionGraph(nodes, csr_array(matrix))


@pytest.mark.parametrize(
    ("weights", "threshold", "kept"),
    [((12, 8, 7, 3), 0.4, 1), ((12, 8, 7, 3), 0.9, 3), ((11, 9, 8, 7), 0.8, 3)],
)
def test_share_reached_exactly_is_reached(weights, threshold, kept):
    """12, 8 and 7 are nine tenths of 30; in float64 their sum falls short by a last digit."""
    graph = errors_only(*weights)
    assert tracer.prune_masks(graph, threshold, 1)[0].sum() == kept + 1
    assert tracer.prune_masks(graph, 1, threshold)[1].nnz == kept


def test_one_keeps_the_smallest():
    graph = errors_only(1, 1e-14, 1e-200)
    assert tracer.prune_masks(graph, 1, 1)[0].all()
    assert tracer.prune_masks(graph, 1, 1)[1].nnz == 3


def test_edges_into_a_target_of_no_weight_are_no_edges():
    """Their scores are zero: not even a threshold of 1 keeps them, nor what feeds only them."""
    graph = errors_only(1, 1)
    nodes = graph.nodes.assign(probability=[np.nan, np.nan, 0.0])
    kept, edges = tracer.prune_masks(AttributionGraph(nodes, graph.adjacency), 1, 1)
    assert kept.tolist() == [False, False, True]
    assert edges.nnz == 0


# Bad settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), float("inf"), "0.8", None, True])
@pytest.mark.parametrize("name", ["node_threshold", "edge_threshold"])
def test_threshold_outside_zero_to_one_is_named(star, name, bad):
    for function in (tracer.prune, tracer.prune_masks):
        with pytest.raises(SettingError, match=f"{name} is {bad!r}"):
            function(star, **{name: bad})


def test_unknown_rule_is_named(star):
    with pytest.raises(SettingError, match=r"rule 'papers' is unknown. Did you mean \"paper\""):
        tracer.prune(star, rule="papers")


def test_given_flow_is_used(star):
    assert tracer.prune(star, flow=Flow(star)) == tracer.prune(star)


def test_graph_without_edges_keeps_tokens_and_logits(star):
    bare = star.replace(
        adjacency=csr_array((8, 8)), residual=None, attention=None, supernodes=(), pinned=()
    )
    small = tracer.prune(bare)
    assert small.keys == ("embedding/0", "embedding/1", "embedding/2", "logit/9")
    assert np.isnan(small.scores["full"].replacement)
