"""How alike graphs are: against dense formulas, scipy and scikit-free oracles; template control."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.spatial.distance import pdist, squareform

from queries.by_graph import Incidence
from queries.similarity import (
    Similarity,
    clusters,
    map_of,
    similarity_of,
)
from queries.templates import template_control, token_overlap
from tracer.errors import CircuitWarning, QueryError


def graphs_frame(n, **columns):
    ids = [f"{k:016x}" for k in range(n)]
    base = {"graph_id": ids, "slug": [f"g{k}" for k in range(n)], "metadata": None}
    unknown = dict.fromkeys(("template", "answer", "prompt", "target"))
    return pd.DataFrame({**base, **unknown, **columns})


def incidence(values):
    rows, columns = np.nonzero(values)
    items = pd.DataFrame({"feature_id": [f"t/0/{k}" for k in range(values.shape[1])]})
    return Incidence.of_places(
        graphs_frame(len(values)), items, rows, columns, values[rows, columns]
    )


def similarity(matrix, **columns) -> Similarity:
    graphs = graphs_frame(len(matrix), **columns)
    ids = graphs["graph_id"].tolist()
    return Similarity(pd.DataFrame(matrix, index=ids, columns=ids), graphs, "features", "jaccard")


@pytest.fixture(scope="module")
def values():
    random = np.random.default_rng(0)
    return random.lognormal(size=(13, 60)) * (random.random((13, 60)) < 0.4)


def test_matrices_are_the_dense_formulas(values):
    present = values > 0
    least = np.minimum(values[:, None], values).sum(axis=2)
    most = np.maximum(values[:, None], values).sum(axis=2)
    expected = {
        "jaccard": 1 - squareform(pdist(present, "jaccard")),
        "weighted": least / most,
        "cosine": 1 - squareform(pdist(values, "cosine")),
    }
    for measure, matrix in expected.items():
        found = similarity_of(incidence(values), "features", measure)
        assert found.values == pytest.approx(matrix, abs=1e-12)
        assert (np.diag(found.values) == 1).all()
        assert (found.values == found.values.T).all()
        assert measure in repr(found)


def test_items_of_one_graph_may_be_told_by_their_sums(values):
    """As it is done for pairs of features: most are in one graph only, and are not fetched."""
    full = incidence(values)
    shared = full.part(np.flatnonzero(full.counts >= 2))
    assert len(shared.items) < len(full.items) or (full.counts >= 2).all()
    totals = pd.DataFrame(
        {
            "pairs": (values > 0).sum(axis=1),
            "share": values.sum(axis=1),
            "square": (values**2).sum(axis=1),
        }
    )
    for measure in ("jaccard", "weighted", "cosine"):
        one, other = (
            similarity_of(full, "features", measure).values,
            similarity_of(shared, "edges", measure, totals).values,
        )
        assert one == pytest.approx(other, abs=1e-12)


def test_a_graph_without_items_is_like_none():
    values = np.array([[1.0, 2.0], [0.0, 0.0], [1.0, 0.0]])
    for measure in ("jaccard", "weighted", "cosine"):
        found = similarity_of(incidence(values), "features", measure).values
        assert found[1].tolist() == [0.0, 1.0, 0.0]
        assert np.isfinite(found).all()


def blocks(sizes, within=0.7, between=0.2, noise=0.05):
    random = np.random.default_rng(1)
    of = np.repeat(np.arange(len(sizes)), sizes)
    matrix = np.where(of[:, None] == of, within, between)
    matrix = matrix + random.uniform(-noise, noise, matrix.shape)
    matrix = (matrix + matrix.T) / 2
    np.fill_diagonal(matrix, 1)
    return matrix, of


@pytest.mark.parametrize("sizes", [(5, 4), (6, 5, 4), (7, 5, 4, 3)])
@pytest.mark.parametrize("how", [{}, {"threshold": 0.5}, {"n": None}])
def test_clusters_find_what_was_planted(sizes, how):
    matrix, of = blocks(sizes)
    how = {"n": len(sizes)} if "n" in how else how
    found = clusters(similarity(matrix), **how)
    assert sorted(found["order"]) == list(range(len(of)))
    assert found["order"].is_monotonic_increasing
    by_id = found.set_index("graph_id")["cluster"]
    mine = by_id.loc[similarity(matrix).matrix.index].to_numpy()
    assert (mine == of + 1).all()  # the largest first
    first = found[found["cluster"] == 1]
    assert first["similarity"].mean() == pytest.approx(0.7, abs=0.05)


def test_one_graph_is_a_cluster_and_bad_numbers_are_refused():
    one = similarity(np.ones((1, 1)))
    assert clusters(one)["cluster"].tolist() == [1]
    assert map_of(one)[["x", "y"]].to_numpy().tolist() == [[0.0, 0.0]]
    two = similarity(np.array([[1.0, 0.3], [0.3, 1.0]]))
    assert len(clusters(two)) == 2
    matrix = similarity(blocks((3, 3))[0])
    for how in ({"n": 0}, {"threshold": 1.5}, {"n": 2, "threshold": 0.1}, {"linkage": "wards"}):
        with pytest.raises(QueryError):
            clusters(matrix, **how)


def test_the_map_keeps_distances_of_a_plane():
    random = np.random.default_rng(2)
    points = random.normal(size=(12, 2))
    squared = squareform(pdist(points)) ** 2
    found = map_of(similarity(1 - squared / squared.max()))
    assert found.attrs["explained"] == pytest.approx(1)
    mine = pdist(found[["x", "y"]].to_numpy())
    assert mine == pytest.approx(pdist(points) / np.sqrt(squared.max()), abs=1e-9)


# The template control ----------------------------------------------------------------------------


def of_two_kinds(template_effect, content_effect, n_templates=4, n_contents=6, seed=3):
    """Graphs of every template with every content, alike by what they have in common."""
    random = np.random.default_rng(seed)
    template = np.repeat(np.arange(n_templates), n_contents)
    content = np.tile(np.arange(n_contents), n_templates)
    matrix = np.full((len(template), len(template)), 0.1)
    matrix += template_effect * (template[:, None] == template)
    matrix += content_effect * (content[:, None] == content)
    matrix += random.normal(0, 0.02, matrix.shape)
    matrix = np.clip((matrix + matrix.T) / 2, 0, 1)
    np.fill_diagonal(matrix, 1)
    answers = [f"answer {k}" for k in content]
    return similarity(matrix, template=[f"t{k}" for k in template], answer=answers)


def test_likeness_of_templates_is_not_taken_for_likeness_of_content():
    """The public example: 0.67 for the same template, 0.28 for the same content."""
    found = of_two_kinds(template_effect=0.57, content_effect=0.18)
    with pytest.warns(CircuitWarning, match="tells of templates, not of content"):
        control = template_control(found)
    groups = control.groups.set_index("group")
    assert control.baseline == pytest.approx(0.67, abs=0.01)
    row = groups.loc["same content, other template"]
    assert row["mean"] == pytest.approx(0.28, abs=0.01)
    assert row["excess"] == pytest.approx(-0.39, abs=0.02)
    assert row["excess_low"] <= row["excess"] <= row["excess_high"] < 0
    assert not row["beyond"]
    both = groups.loc["same content and template"]
    assert both["pairs"] == 0
    assert np.isnan(both["excess"])
    # Counted by hand: 4 templates × C(6, 2) pairs, 6 contents × C(4, 2), and the rest.
    assert groups.loc["same template, other content", "pairs"] == 4 * 15
    assert row["pairs"] == 6 * 6
    assert groups["pairs"].sum() == 24 * 23 // 2


def test_likeness_of_content_beyond_the_template_is_found(recwarn):
    control = template_control(of_two_kinds(template_effect=0.1, content_effect=0.4))
    row = control.groups.set_index("group").loc["same content, other template"]
    assert row["beyond"]
    assert row["excess"] == pytest.approx(0.3, abs=0.02)
    assert not control.warnings
    assert not recwarn
    assert control.matrix.to_numpy() == pytest.approx(control.similarity.values - control.baseline)


def test_intervals_are_drawn_over_graphs():
    """Half the graphs are noisy in all of their pairs: an interval over pairs would miss that."""
    random = np.random.default_rng(4)
    n = 40
    effect = random.normal(0, 0.1, n)  # of a graph, on each of its pairs
    matrix = np.clip(0.5 + effect[:, None] + effect, 0, 1)
    np.fill_diagonal(matrix, 1)
    template, content = ["t"] * n, [str(k) for k in range(n)]
    found = similarity(matrix, template=template, answer=content)
    with pytest.warns(CircuitWarning, match="No two graphs"):
        control = template_control(found)
    row = control.groups.set_index("group").loc["same template, other content"]
    width = row["high"] - row["low"]
    off = matrix[~np.eye(n, dtype=bool)]
    over_graphs = 2 * 1.96 * 2 * effect.std() / np.sqrt(n)  # the mean of pairs moves twice
    assert width == pytest.approx(over_graphs, rel=0.25)
    assert width > 2 * (2 * 1.96 * off.std() / np.sqrt(len(off) / 2))


def test_one_graph_against_its_own_template():
    with pytest.warns(CircuitWarning):
        control = template_control(of_two_kinds(0.57, 0.18))
    graph_id = control.similarity.matrix.index[0]
    found = control.of(graph_id)
    assert len(found) == 23
    peers = [
        row
        for row in range(24)
        if row and control.template[row] == "t0" and control.content[row] != "answer 0"
    ]
    baseline = control.similarity.values[0, peers].mean()
    assert found["baseline"].iloc[0] == pytest.approx(baseline)
    assert found["similarity"].is_monotonic_decreasing
    assert (found["excess"] == found["similarity"] - found["baseline"]).all()
    inside = (found["low"] <= found["excess"]) & (found["excess"] <= found["high"])
    assert inside.all()
    with pytest.raises(QueryError, match="not in the matrix"):
        control.of("nothing")


def test_tokens_stand_in_for_templates():
    tokens = [["the", "capital", "of", state, "is"] for state in ("Texas", "Ohio", "Iowa")] + [
        ["say", "the", "city", "ruling", state] for state in ("Texas", "Ohio", "Iowa")
    ]
    overlap = token_overlap(tokens)
    assert overlap[0, 1] == 0.8
    assert overlap[0, 3] < 0.5
    matrix = np.where(overlap >= 0.5, 0.6, 0.3)
    np.fill_diagonal(matrix, 1)
    answers = ["Austin", "Columbus", "Des Moines"] * 2
    found = similarity(matrix, tokens=tokens, answer=answers)
    with pytest.warns(CircuitWarning):
        control = template_control(found, baseline="tokens")
    assert control.baseline == pytest.approx(0.6)
    mapped = dict(zip(found.matrix.index, answers, strict=True))
    with pytest.warns(CircuitWarning):
        again = template_control(found, content=mapped, baseline="tokens")
    pd.testing.assert_frame_equal(again.groups, control.groups)


def test_what_cannot_be_controlled_is_explained():
    found = of_two_kinds(0.5, 0.2)
    unknown = similarity(found.values)
    cases = [
        (found, {"template": "templates"}, "template"),
        (unknown, {}, "no graph has a value of 'answer'"),
        (found, {"template": "answer"}, "no two graphs"),
        (found, {"baseline": "token"}, 'Did you mean "tokens"'),
        (found, {"baseline": "tokens", "min_overlap": 0}, "share of tokens"),
        (found, {"n_resamples": 0}, "from 1"),
    ]
    for matrix, how, part in cases:
        with pytest.raises(QueryError, match=part):
            template_control(matrix, **how)
