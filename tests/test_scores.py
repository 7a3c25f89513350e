"""Scores against golden files, figures that published files carry, and exact fractions."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.sparse import csr_array

import tracer
from tracer import AttributionGraph, Flow, Scores
from tracer.errors import ScoreError, SettingError
from tracer.graph import RULES
from tracer.scores import flow_scores, masked_scores, merged_scores

FIGURES = ("completeness", "replacement", "mean_path_length", "lost")


@st.composite
def graphs(draw):
    """Random small graphs whose weights are whole numbers, so that fractions are exact."""
    counts = {
        "feature": draw(st.integers(1, 6)),
        "error": draw(st.integers(0, 4)),
        "embedding": draw(st.integers(0, 2)),
        "logit": draw(st.integers(1, 2)),
    }
    kind = np.array([k for k, count in counts.items() for _ in range(count)], dtype=object)
    n = len(kind)
    matrix = draw(hnp.arrays(np.int64, (n, n), elements=st.integers(-4, 4), fill=st.nothing()))
    place = np.where(kind == "feature", 1 + np.arange(n), np.where(kind == "logit", n + 1, 0))
    matrix = np.where(place[:, None] > place[None, :], matrix, 0)
    matrix[np.isin(kind, ["error", "embedding"])] = 0
    matrix[:, kind == "logit"] = 0
    # Two layers and two positions: features share places with each other, and with errors or not.
    places = [divmod(i, 2) for i in range(4)]
    spot = [draw(st.sampled_from(places)) for _ in range(n)]
    for i, row in enumerate(np.flatnonzero(kind == "error")):
        spot[row] = places[i]
    nodes = pd.DataFrame(
        {
            "kind": kind,
            "layer": np.select(
                [kind == "embedding", kind == "logit"], [-1, 2], [layer for layer, _ in spot]
            ),
            "position": np.where(kind == "embedding", np.arange(n), [p for _, p in spot]),
            "index": np.arange(n),
            "probability": [draw(st.integers(1, 7)) / 16 if k == "logit" else np.nan for k in kind],
        }
    )
    return AttributionGraph(nodes, csr_array(matrix.astype(float)), unpruned=True)


def exact_scores(weights, w, embeddings, errors):
    """Scores from the definitions, in fractions; `weights[t][s]`, one list a target."""
    n = len(weights)
    sums = [sum(abs(x) for x in row) for row in weights]
    share = [
        [abs(x) / total if total else Fraction(0) for x in row]
        for row, total in zip(weights, sums, strict=True)
    ]
    step, influence, masses = list(w), [Fraction(0)] * n, []
    for _ in range(n):
        step = [sum((step[t] * share[t][s] for t in range(n)), Fraction(0)) for s in range(n)]
        influence = [a + b for a, b in zip(influence, step, strict=True)]
        masses.append(sum((step[s] for s in embeddings), Fraction(0)))
    through = [a + b for a, b in zip(influence, w, strict=True)]
    explained = [1 - sum((share[t][s] for s in errors), Fraction(0)) for t in range(n)]
    emb, err = (sum((influence[s] for s in group), Fraction(0)) for group in (embeddings, errors))
    return {
        "completeness": ratio(
            sum(a * b for a, b in zip(explained, through, strict=True)), sum(through)
        ),
        "replacement": ratio(emb, emb + err),
        "mean_path_length": ratio(sum(k * m for k, m in enumerate(masses, 1)), sum(masses)),
        "lost": 1 - ratio(emb + err, sum(w)),
    }


def ratio(part, whole):
    return Fraction(part) / whole if whole else math.nan


def exact_parts(graph):
    weights = [[Fraction(x) for x in row] for row in graph.adjacency.toarray().tolist()]
    w = [Fraction(x) for x in graph.logit_weights.tolist()]
    return weights, w, np.flatnonzero(graph.is_embedding), np.flatnonzero(graph.is_error)


def exact_masked(graph, keep):
    weights, w, embeddings, errors = exact_parts(graph)
    n = len(w)
    for t in range(n):
        for s in range(n):
            if not (keep[t] and keep[s]):
                weights[t][s] = Fraction(0)
    return exact_scores(weights, w, embeddings, errors)


def exact_merged(graph, keep):
    """Error nodes by place, made where there is none; each takes the outputs of what went."""
    weights, w, embeddings, errors = exact_parts(graph)
    n, places = len(w), list(zip(graph.nodes["layer"], graph.nodes["position"], strict=True))
    removed = [row for row in np.flatnonzero(graph.is_feature) if not keep[row]]
    error_at = {places[row]: row for row in errors}
    for row in removed:
        if places[row] not in error_at:
            error_at[places[row]] = len(weights)
            weights = [[*line, Fraction(0)] for line in weights]
            weights.append([Fraction(0)] * len(weights[0]))
            w.append(Fraction(0))
    for row in removed:
        for t in range(n):
            weights[t][error_at[places[row]]] += weights[t][row]
            weights[t][row] = Fraction(0)
        weights[row] = [Fraction(0)] * len(w)
    return exact_scores(weights, w, embeddings, list(error_at.values()))


def assert_scores(found: Scores, expected) -> None:
    for name in FIGURES:
        # Float64 sums of a few terms against exact fractions.
        assert getattr(found, name) == pytest.approx(
            float(expected[name]), rel=1e-12, abs=1e-14, nan_ok=True
        ), name


# Golden files and published figures ------------------------------------------------------------


def test_scores_equal_the_reference(golden_pair):
    graph, arrays = golden_pair
    # The reference works in float32.
    assert tracer.replacement_score(graph) == pytest.approx(
        float(arrays["replacement_score"]), rel=1e-6
    )
    assert tracer.completeness_score(graph) == pytest.approx(
        float(arrays["completeness_score"]), rel=1e-6
    )


def test_rules_give_the_figures_of_the_definition(golden):
    """The definition quotes them for this file: three digits, at 0.8 and 0.98."""
    found = tracer.all_scores(tracer.prune(golden("gpt2_clt_residmid")[0]))
    quoted = {"full": 0.561, "merge": 0.474, "masked": 0.461}
    assert {rule: round(found[rule].replacement, 3) for rule in quoted} == quoted
    assert list(found) == list(RULES)
    assert [scores.rule for scores in found.values()] == list(RULES)


def test_rules_on_golden_files_equal_dense_float64(golden_pair):
    graph, arrays = golden_pair
    small = tracer.prune(graph)
    keep = arrays["node_mask"]
    signed = graph.adjacency.toarray().astype(np.float64)
    removed = np.flatnonzero(graph.is_feature & ~keep)
    masked = np.where(np.outer(keep, keep), signed, 0)
    stored = np.where(arrays["edge_mask"] & np.outer(keep, keep), signed, 0)
    merged = signed.copy()
    for row in removed:
        same = graph.is_error & (graph.nodes["layer"] == graph.nodes["layer"][row]).to_numpy()
        same &= (graph.nodes["position"] == graph.nodes["position"][row]).to_numpy()
        (error,) = np.flatnonzero(same)
        merged[:, error] += signed[:, row]
    merged[:, removed] = 0
    merged[removed] = 0
    found = tracer.all_scores(small)
    for rule, matrix in (
        ("full", signed),
        ("merge", merged),
        ("masked", masked),
        ("as_stored", stored),
    ):
        magnitudes = abs(matrix)
        sums = magnitudes.sum(axis=1, keepdims=True)
        shares = np.divide(magnitudes, sums, out=np.zeros_like(magnitudes), where=sums > 0)
        inverse, w = np.linalg.inv(np.eye(len(shares)) - shares), graph.logit_weights
        through, ones = w @ inverse, graph.is_embedding.astype(float)
        emb, err = (through[m].sum() for m in (graph.is_embedding, graph.is_error))
        explained = 1 - shares[:, graph.is_error].sum(axis=1)
        expected = {
            "completeness": (explained * through).sum() / through.sum(),
            "replacement": emb / (emb + err),
            # The closed form: Σ k·Âᵏ = Â(I − Â)⁻².
            "mean_path_length": (w @ shares @ inverse @ inverse @ ones) / (w @ inverse @ ones),
            "lost": 1 - (emb + err) / w.sum(),
        }
        for name in FIGURES:
            assert getattr(found[rule], name) == pytest.approx(
                expected[name], rel=1e-10, abs=1e-12
            ), (rule, name)


@pytest.mark.parametrize("name", ["gemma2-plt--dallas_ea", "gemma2-plt--ngsa_ea"])
def test_completeness_equals_what_published_files_hold(real_graphs, name):
    """These files hold the completeness score in ``metadata.node_threshold``."""
    (path,) = (path for path in real_graphs if path.stem == name)
    content = json.loads(path.read_text())
    kinds = {"cross layer transcoder": "feature", "mlp reconstruction error": "error"}
    kind = [kinds.get(node["feature_type"], node["feature_type"]) for node in content["nodes"]]
    middle = [int(node["node_id"].split("_")[1]) for node in content["nodes"]]
    nodes = pd.DataFrame(
        {
            "kind": kind,
            "layer": [
                -1 if k == "embedding" else m if k == "error" else int(node["layer"])
                for k, m, node in zip(kind, middle, content["nodes"], strict=True)
            ],
            "position": [node["ctx_idx"] for node in content["nodes"]],
            "index": [-1 if k == "error" else m for k, m in zip(kind, middle, strict=True)],
            "probability": [
                node["token_prob"] if k == "logit" else None
                for k, node in zip(kind, content["nodes"], strict=True)
            ],
        }
    )
    row = {node["node_id"]: i for i, node in enumerate(content["nodes"])}
    links = content["links"]
    adjacency = csr_array(
        (
            [link["weight"] for link in links],
            ([row[link["target"]] for link in links], [row[link["source"]] for link in links]),
        ),
        shape=(len(nodes), len(nodes)),
    )
    graph = AttributionGraph(nodes, adjacency)
    assert tracer.completeness_score(graph) == pytest.approx(
        content["metadata"]["node_threshold"], abs=1e-6
    )


# Exact fractions -------------------------------------------------------------------------------


@given(graphs())
@settings(max_examples=50, deadline=None)
def test_scores_equal_fractions(graph):
    assert_scores(tracer.scores(graph), exact_scores(*exact_parts(graph)))


@given(graphs(), st.data())
@settings(max_examples=50, deadline=None)
def test_masked_and_merge_equal_fractions(graph, data):
    keep = graph.is_embedding | graph.is_logit
    drawn = data.draw(st.lists(st.booleans(), min_size=graph.n_nodes, max_size=graph.n_nodes))
    keep |= np.array(drawn)
    assert_scores(masked_scores(graph, keep), exact_masked(graph, keep))
    assert_scores(merged_scores(graph, keep), exact_merged(graph, keep))


@given(graphs(), st.integers(0, 20), st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_pruned_graph_carries_its_scores(graph, node_threshold, edge_threshold):
    small = tracer.prune(graph, node_threshold / 20, edge_threshold / 20)
    keep = np.isin(graph.keys, small.keys)
    found = tracer.all_scores(small)
    assert_scores(found["full"], exact_scores(*exact_parts(graph)))
    assert_scores(found["masked"], exact_masked(graph, keep))
    assert_scores(found["merge"], exact_merged(graph, keep))
    assert_scores(found["as_stored"], exact_scores(*exact_parts(small)))


@given(graphs())
@settings(max_examples=50, deadline=None)
def test_identities(graph):
    flow, w = Flow(graph), graph.logit_weights
    figures = flow_scores(flow, "full")
    through = flow.influence + w
    # What errors contribute to all inputs is their influence.
    np.testing.assert_allclose(
        (flow.error_fraction * through).sum(), flow.error_influence, rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(
        flow.masses.sum() / w.sum(),
        0.0 if figures.lost == 1 else np.nan_to_num(figures.replacement) * (1 - figures.lost),
        rtol=1e-12,
        atol=1e-14,
    )
    # Nothing is lost but at features without inputs, and at logits without any.
    dead = (flow.inputs == 0) & (graph.is_feature | graph.is_logit)
    np.testing.assert_allclose(through[dead].sum() / w.sum(), figures.lost, rtol=1e-12, atol=1e-14)


def test_merge_adds_signed_weights_before_absolute_values():
    """Removed weights of −3 and +2 join an error of +1 at their place, and cancel; by hand."""
    nodes = pd.DataFrame(
        {
            "kind": ["feature", "feature", "error", "embedding", "logit"],
            "layer": [0, 0, 0, -1, 1],
            "position": 0,
            "index": [1, 2, -1, 5, 7],
            "probability": [None] * 4 + [0.5],
        }
    )
    weights = np.zeros((5, 5))
    weights[4] = [-3, 2, 1, 4, 0]
    weights[0, 3] = weights[1, 3] = 1
    graph = AttributionGraph(nodes, csr_array(weights), unpruned=True)
    found = merged_scores(graph, ~graph.is_feature)
    assert (found.replacement, found.lost) == (1.0, 0.0)
    # With one of them kept, the error is 1 + 2: 4 of 10 directly, 3 of 10 through the feature.
    assert merged_scores(graph, graph.nodes["index"].to_numpy() != 2).replacement == pytest.approx(
        0.7
    )
    # Another place has its own error, of 2 then, beside that of 1.
    apart = graph.replace(nodes=graph.nodes.assign(layer=[0, 1, 0, -1, 2]))
    assert merged_scores(apart, graph.nodes["index"].to_numpy() != 2).replacement == pytest.approx(
        0.7
    )
    against = apart.replace(nodes=apart.nodes.assign(layer=[1, 0, 0, -1, 2]))
    assert merged_scores(against, ~graph.is_feature).replacement == pytest.approx(4 / (4 + 3 + 3))


def test_merge_of_weights_that_cancel_is_no_edge():
    """A removed −2 and an error of +2 at its place: the logit is left without inputs."""
    nodes = pd.DataFrame(
        {
            "kind": ["feature", "error", "embedding", "logit"],
            "layer": [0, 0, -1, 1],
            "position": 0,
            "index": [1, -1, 5, 7],
            "probability": [None] * 3 + [0.5],
        }
    )
    weights = np.zeros((4, 4))
    weights[3, [0, 1]] = [-2, 2]
    weights[0, 2] = 1
    graph = AttributionGraph(nodes, csr_array(weights), unpruned=True)
    found = merged_scores(graph, ~graph.is_feature)
    assert math.isnan(found.replacement)
    assert (found.completeness, found.lost) == (1.0, 1.0)


# Which rule ------------------------------------------------------------------------------------


@pytest.fixture
def small():
    nodes = pd.DataFrame(
        {
            "kind": ["embedding", "error", "logit"],
            "layer": [-1, 0, 1],
            "position": 0,
            "index": [5, -1, 7],
            "probability": [None, None, 0.5],
        }
    )
    return AttributionGraph(nodes, csr_array([[0, 0, 0], [0, 0, 0], [3.0, -1.0, 0]]))


def test_rule_is_full_where_known_else_as_stored(small):
    assert tracer.scores(small).rule == "as_stored"
    assert tracer.scores(small.replace(unpruned=True)).rule == "full"
    kept = Scores("full", 0.1, 0.2, 3.0, 0.4)
    carrying = small.replace(scores={"full": kept})
    assert tracer.scores(carrying) == kept
    assert tracer.scores(carrying, "as_stored").replacement == 0.75
    assert list(tracer.all_scores(carrying)) == ["full", "as_stored"]
    assert tracer.replacement_score(carrying) == 0.2
    assert tracer.completeness_score(carrying) == 0.1
    assert tracer.mean_path_length(carrying) == 3.0


def test_unpruned_graph_has_four_equal_rules(small):
    found = tracer.all_scores(small.replace(unpruned=True))
    assert list(found) == list(RULES)
    assert len({tuple(getattr(s, name) for name in FIGURES) for s in found.values()}) == 1
    assert [scores.rule for scores in found.values()] == list(RULES)


@pytest.mark.parametrize("rule", ["full", "merge", "masked"])
def test_rule_that_cannot_be_computed_says_why(small, rule):
    with pytest.raises(ScoreError, match=f"{small.graph_id}.*{rule}.*removed"):
        tracer.scores(small, rule)


def test_unknown_rule_is_named(small):
    with pytest.raises(SettingError, match=r"rule 'merged' is unknown. Did you mean \"merge\""):
        tracer.scores(small, "merged")


def test_scores_without_anything_to_score(small):
    """Figures without a denominator are nan in the record, and errors when asked for alone."""
    bare = small.replace(adjacency=csr_array((3, 3)))
    found = tracer.scores(bare)
    assert math.isnan(found.replacement)
    assert math.isnan(found.mean_path_length)
    assert (found.completeness, found.lost) == (1.0, 1.0)
    with pytest.raises(ScoreError, match="no replacement"):
        tracer.replacement_score(bare)
    with pytest.raises(ScoreError, match="no mean path length"):
        tracer.mean_path_length(bare)
    headless = AttributionGraph(small.nodes[:2], csr_array((2, 2)))
    with pytest.raises(ScoreError, match="no completeness"):
        tracer.completeness_score(headless)
    assert math.isnan(tracer.scores(headless).lost)


def test_scores_use_the_flow_that_they_are_given(small):
    flow = Flow(small)
    assert tracer.scores(small, flow=flow) == tracer.scores(small)
    other = Flow(small.replace(adjacency=csr_array([[0, 0, 0], [0, 0, 0], [1.0, -1.0, 0]])))
    assert tracer.scores(small, flow=other).replacement == 0.5
    assert tracer.all_scores(small, flow=other)["as_stored"].replacement == 0.5
