"""Statistics of two groups of graphs: against scipy one by one, and by what p-values promise.

Monte-Carlo checks allow 4 standard errors of the share that is estimated; seeds are fixed, so they
pass or fail for good.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from scipy.sparse import csc_array

from queries.by_graph import Incidence
from queries.comparing_sets import Settings, compare_incidence
from queries.statistics import (
    bootstrap_intervals,
    least_presence_p,
    mann_whitney,
    permutation_p,
    presence_p,
    q_values,
    relabelled,
)
from tracer.errors import CircuitError, QueryError, SettingError

ALPHAS = (0.01, 0.05, 0.2, 0.5)


def at_most(share: float, alpha: float, n: int) -> bool:
    """Whether a share of n trials is no more than alpha, within Monte-Carlo error."""
    return share <= alpha + 4 * np.sqrt(alpha * (1 - alpha) / n)


# Presence ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_a", "n_b"), [(1, 1), (3, 3), (5, 8), (20, 11), (40, 40)])
def test_fisher_is_scipys(n_a, n_b):
    tables = list(itertools.product(range(n_a + 1), range(n_b + 1)))
    if len(tables) > 300:
        tables = tables[:: len(tables) // 300]
    a, b = np.array(tables).T
    expected = [
        stats.fisher_exact([[x, n_a - x], [y, n_b - y]]).pvalue for x, y in zip(a, b, strict=True)
    ]
    assert presence_p(a, n_a, b, n_b, "fisher") == pytest.approx(expected, rel=1e-9)


def test_midp_counts_equally_likely_tables_half():
    # Two of five against none of four: hypergeometric by hand, in ninths choose two.
    n_a, n_b, a, b = 5, 4, 2, 0
    weights = {k: len(list(itertools.combinations(range(n_a), k))) for k in range(3)}
    rest = {0: 6, 1: 4, 2: 1}  # ways to choose 2 − k of b's four
    chance = {k: weights[k] * rest[k] / 36 for k in range(3)}
    seen = chance[a]
    expected = sum(p for p in chance.values() if p < seen - 1e-12)
    expected += sum(p for p in chance.values() if abs(p - seen) < 1e-12) / 2
    assert presence_p([a], n_a, [b], n_b, "midp")[0] == pytest.approx(expected)
    # Under the null its mean is 1/2, whatever the margins: what mid-p is made for.
    for total in range(1, 9):
        support = np.arange(max(0, total - n_b), min(total, n_a) + 1)
        p = presence_p(support, n_a, total - support, n_b, "midp")
        chances = stats.hypergeom.pmf(support, n_a + n_b, total, n_a)
        assert (p * chances).sum() == pytest.approx(0.5)


def test_the_least_p_that_few_graphs_allow():
    assert least_presence_p(3, 3) == pytest.approx(0.1)
    assert least_presence_p(8, 8) < 0.001


def test_impossible_counts_and_methods_are_refused():
    with pytest.raises(SettingError, match="more graphs than a group"):
        presence_p([4], 3, [0], 3, "fisher")
    with pytest.raises(SettingError, match="unknown"):
        presence_p([1], 3, [0], 3, "chi2")


# Labels and permutations -------------------------------------------------------------------------


def test_few_graphs_take_every_labelling_once():
    is_a = np.array([True, False, True, False, False])
    labels = relabelled(is_a, 10, 0)
    assert labels.every
    assert labels.a.shape == (10, 5)
    assert len({tuple(way) for way in labels.a}) == 10
    assert (labels.a.sum(axis=1) == 2).all()
    assert (labels.a[0] == is_a).all()


def test_strata_keep_their_own_labels():
    is_a = np.array([True, False, True, False, False, True])
    strata = ["x", "x", "y", "y", "y", None]
    labels = relabelled(is_a, 1000, 0, strata)
    assert labels.every
    assert len(labels.a) == 2 * 3
    assert len({tuple(way) for way in labels.a}) == 6
    assert (labels.a[:, :2].sum(axis=1) == 1).all()
    assert labels.a[:, 5].all()
    drawn = relabelled(np.arange(40) < 20, 50, 0, ["x", "y"] * 20)
    assert not drawn.every
    assert (drawn.a[:, ::2].sum(axis=1) == 10).all()
    with pytest.raises(SettingError, match="no stratum has graphs of both"):
        relabelled([True, True, False], 10, 0, ["x", "x", "y"])
    with pytest.raises(SettingError, match="no graphs"):
        relabelled([True, True], 10, 0)


def test_permutation_is_scipys_exact_test():
    random = np.random.default_rng(1)
    values = random.integers(0, 4, (9, 12)).astype(float)
    is_a = np.arange(9) < 4
    mine = permutation_p(csc_array(values), relabelled(is_a, 1000, 0))
    expected = [
        stats.permutation_test(
            (column[is_a], column[~is_a]),
            lambda x, y: abs(x.mean() - y.mean()),
            alternative="greater",
            n_resamples=np.inf,
        ).pvalue
        for column in values.T
    ]
    assert mine == pytest.approx(expected)


def test_within_strata_the_test_looks_both_ways_from_what_strata_give():
    """b is stronger in each stratum, and weaker over all, as its graphs are of the weaker one."""
    strata = np.array(["x"] * 6 + ["y"] * 6)
    is_a = np.array([True] * 4 + [False] * 2 + [True] * 2 + [False] * 4)
    values = np.where(strata == "x", 9.0, 1.0) + np.where(is_a, 0.0, 3.0) + np.arange(12) / 16
    p = permutation_p(csc_array(values[:, None]), relabelled(is_a, 1000, 0, strata))
    # Every labelling by hand, of the difference less its mean over all of them.
    differences = [
        values[[*x, *y]].sum()
        for x in itertools.combinations(range(6), 4)
        for y in itertools.combinations(range(6, 12), 2)
    ]
    far = np.abs(np.array(differences) - np.mean(differences))
    expected = np.mean(far >= abs(values[is_a].sum() - np.mean(differences)) - 1e-9)
    assert p[0] == pytest.approx(expected)
    assert p[0] < 0.02


def test_p_is_never_0_and_unknown_where_a_value_is():
    assert presence_p([2000], 2000, [0], 2000, "fisher")[0] > 0  # 1 in 10^1203
    values = np.array([[1.0, np.nan], [2.0, 1.0], [3.0, 1.0], [4.0, 1.0]])
    p = permutation_p(csc_array(values), relabelled([True, True, False, False], 100, 0))
    assert p == pytest.approx([1 / 3, np.nan], nan_ok=True)


def test_random_permutations_estimate_the_exact_test_and_are_never_zero():
    random = np.random.default_rng(2)
    values = random.normal(size=(12, 30))
    values[:6, 0] += 50
    is_a = np.arange(12) < 6
    exact = permutation_p(csc_array(values), relabelled(is_a, 924, 0))
    drawn = permutation_p(csc_array(values), relabelled(is_a, 900, 0))
    assert drawn == pytest.approx(exact, abs=4 * 0.5 / np.sqrt(900))
    assert drawn[0] >= 1 / 901


def test_mann_whitney_is_scipys_where_present():
    random = np.random.default_rng(3)
    values = random.normal(size=(30, 8))
    present = random.random((30, 8)) < 0.6
    present[:, 7] = False
    present[:2, 7] = True
    is_a = np.arange(30) < 14
    mine = mann_whitney(
        csc_array(np.where(present, values, 0)), csc_array(present.astype(float)), is_a
    )
    for item in range(7):
        a, b = (values[present[:, item] & side, item] for side in (is_a, ~is_a))
        assert mine[item] == pytest.approx(stats.mannwhitneyu(a, b).pvalue)
    assert np.isnan(mine[7])


# What p-values promise ---------------------------------------------------------------------------


def null_graphs(random, n_graphs=24, n_items=60):
    """Graphs of one kind: items of any frequency, strengths of any scale, all dependent."""
    frequency = random.beta(0.5, 1.0, n_items)
    level = random.normal(size=(n_graphs, 1))  # what the items of a graph have in common
    present = random.random((n_graphs, n_items)) < frequency
    values = np.exp(random.normal(size=(n_graphs, n_items)) + level) * present
    return csc_array(values), csc_array(present.astype(float))


def test_on_shuffled_labels_p_is_at_most_alpha():
    random = np.random.default_rng(4)
    fisher, permuted, ranked = [], [], []
    n = 120
    for _ in range(n):
        values, present = null_graphs(random)
        is_a = random.permutation(24) < 10
        counts = [np.asarray(present[side].sum(axis=0)).ravel() for side in (is_a, ~is_a)]
        # One item a draw: those of a draw are not independent.
        item = int(random.integers(60))
        fisher.append(presence_p(counts[0], 10, counts[1], 14, "fisher")[item])
        permuted.append(permutation_p(values[:, [item]], relabelled(is_a, 199, random))[0])
        ranked.append(mann_whitney(values[:, [item]], present[:, [item]], is_a)[0])
    for alpha in ALPHAS:
        assert at_most(np.mean(np.array(fisher) <= alpha), alpha, n)
        assert at_most(np.mean(np.array(permuted) <= alpha), alpha, n)
        known = np.array([p for p in ranked if p == p])
        assert at_most(np.mean(known <= alpha), alpha, len(known))


def test_permutation_p_is_uniform_on_shuffled_labels():
    random = np.random.default_rng(5)
    n = 1500
    # Distinct strengths in every graph: no ties, so the p-value takes all of its 200 values.
    p = [
        permutation_p(
            csc_array(random.lognormal(size=(20, 1))),
            relabelled(random.permutation(20) < 9, 199, random),
        )[0]
        for _ in range(n)
    ]
    counts = np.bincount((np.array(p) * 10 - 1e-9).astype(int), minlength=10)
    assert stats.chisquare(counts).pvalue > 0.001
    assert stats.kstest(np.array(p) - random.uniform(0, 1 / 200, n), "uniform").pvalue > 0.001


@pytest.mark.parametrize("strength", ["permutation", "mann-whitney"])
def test_the_false_discovery_rate_holds_with_planted_effects(strength):
    random = np.random.default_rng(6)
    shares, power = {"presence": [], "strength": []}, {"presence": [], "strength": []}
    runs = 12
    for run in range(runs):
        n_graphs, n_items, planted = 60, 200, 20
        is_a = np.arange(n_graphs) < 30
        frequency = np.full((n_graphs, n_items), 0.5)
        frequency[:30, :planted], frequency[30:, :planted] = 0.1, 0.9
        level = random.normal(0, 0.3, size=(n_graphs, 1))
        present = random.random((n_graphs, n_items)) < frequency
        scale = np.ones((n_graphs, n_items))
        scale[30:, planted : 2 * planted] = 6.0  # as common in both, and stronger in b
        values = np.exp(random.normal(0, 0.5, (n_graphs, n_items)) + level) * scale * present
        items = incidence(values, present)
        settings = Settings(n_permutations=1999, n_resamples=1, seed=run, strength=strength)
        found = compare_incidence(("a", "b"), is_a, lambda i=items: (i, i), settings).features
        number = found["index"].to_numpy()
        true = {"presence": number < planted, "strength": number < 2 * planted}
        for what in shares:
            called = (found[f"q_{what}"] < 0.1).to_numpy()
            false = called & ~true[what]
            shares[what].append(false.sum() / max(called.sum(), 1))
            sought = true[what] if what == "presence" else (number >= planted) & true[what]
            power[what].append((called & sought).sum() / sought.sum())
    # The mean of the shares of false discoveries is what is bounded, by 0.1.
    for what, found in shares.items():
        assert np.mean(found) <= 0.1 + 4 * np.std(found) / np.sqrt(runs), what
        assert np.mean(power[what]) > 0.9, what


def incidence(values, present) -> Incidence:
    n_graphs, n_items = values.shape
    graphs = pd.DataFrame(
        {
            "graph_id": [f"{k:016x}" for k in range(n_graphs)],
            "template": ["t"] * n_graphs,
            "metadata": None,
        }
    )
    items = pd.DataFrame(
        {
            "feature_id": [f"t/0/{k}" for k in range(n_items)],
            "layer": 0,
            "index": np.arange(n_items),
            "label": None,
        }
    )
    rows, columns = np.nonzero(present)
    return Incidence.of_places(graphs, items, rows, columns, values[rows, columns])


def test_within_a_template_its_difference_is_no_finding():
    """Two templates, one feature of the first; the sets have them in different shares."""
    template = np.array(["x"] * 20 + ["y"] * 20)
    is_a = np.array([True] * 16 + [False] * 4 + [True] * 4 + [False] * 16)
    present = np.stack([template == "x", np.arange(40) % 2 == 0], axis=1)
    items = incidence(present.astype(float), present)
    items.graphs["template"] = template
    plain, controlled = (
        compare_incidence(
            ("a", "b"), is_a, lambda: (items, items), Settings(n_resamples=10, within=within)
        ).features.set_index("index")
        for within in (None, "template")
    )
    assert plain.loc[0, "q_presence"] < 0.01
    assert controlled.loc[0, "q_presence"] == 1.0
    assert controlled.loc[0, "q_strength"] == 1.0


def test_graphs_of_unknown_template_keep_their_names():
    is_a = np.arange(16) % 2 == 0
    present = np.stack([is_a & (np.arange(16) < 8), np.arange(16) < 9], axis=1)
    items = incidence(present.astype(float), present)
    items.graphs["template"] = ["x"] * 4 + [None] * 12
    settings = Settings(n_resamples=10, within="template", strength="mann-whitney")
    found = compare_incidence(("a", "b"), is_a, lambda: (items, items), settings)
    # Only the first four change places: one in C(4, 2) ways is as seen, and one is its mirror.
    assert found.features.set_index("index").loc[0, "p_presence"] == pytest.approx(2 / 6)
    text = " ".join(found.limits)
    assert "4 of 16 graphs have a value of template that is in both sets" in text
    assert "Mann-Whitney U test of strength is not within the same template" in text
    items.graphs["template"] = np.where(is_a, "x", "y")
    with pytest.raises(QueryError, match="no template in common"):
        compare_incidence(("a", "b"), is_a, lambda: (items, items), settings)


# q-values and intervals --------------------------------------------------------------------------


def test_q_values_leave_out_what_was_not_tested():
    p = [0.01, np.nan, 0.04, 0.03]
    assert q_values(p) == pytest.approx([0.03, np.nan, 0.04, 0.04], nan_ok=True)
    assert q_values(p, "by")[0] == pytest.approx(0.03 * (1 + 1 / 2 + 1 / 3))
    assert len(q_values([])) == 0


def test_intervals_are_scipys_percentile_bootstrap():
    random = np.random.default_rng(7)
    values = random.lognormal(size=(60, 4)) * (random.random((60, 4)) < 0.7)
    is_a = np.arange(60) < 25
    low, high = bootstrap_intervals(csc_array(values), is_a, 4000, 0.9, 0)
    for item in range(4):
        expected = stats.bootstrap(
            (values[~is_a, item], values[is_a, item]),
            lambda b, a, axis: b.mean(axis) - a.mean(axis),
            n_resamples=4000,
            confidence_level=0.9,
            method="percentile",
            rng=np.random.default_rng(1),
        )
        spread = expected.standard_error  # of a quantile in 4,000 draws: some percent of it
        ends = expected.confidence_interval
        assert low[item] == pytest.approx(ends.low, abs=0.15 * spread)
        assert high[item] == pytest.approx(ends.high, abs=0.15 * spread)


def test_intervals_cover_what_they_should():
    random = np.random.default_rng(8)
    is_a = np.arange(80) < 40
    values = random.normal(size=(80, 400)) + np.where(is_a, 0.0, 0.7)[:, None]
    low, high = bootstrap_intervals(csc_array(values), is_a, 1000, 0.95, 0)
    assert np.mean((low <= 0.7) & (high >= 0.7)) == pytest.approx(0.95, abs=0.045)


def test_what_cannot_vary_has_no_width():
    present = np.array([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    low, high = bootstrap_intervals(csc_array(present), np.arange(4) < 2, 50, 0.95, 0)
    assert low.tolist() == high.tolist() == [0.0, 1.0]


# Settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"presence": "fischer"}, 'Did you mean "fisher"'),
        ({"strength": "t-test"}, "permutation"),
        ({"min_graphs": 0}, "from 1"),
        ({"n_permutations": 0}, "from 1"),
        ({"confidence": 1.0}, "between 0 and 1"),
        ({"fdr": "x"}, "bh, by"),
    ],
)
def test_settings_outside_what_they_may_be(given, message):
    with pytest.raises(CircuitError, match=message):
        Settings(**given)


def test_a_limit_that_is_reached_is_said():
    random = np.random.default_rng(9)
    values, present = null_graphs(random)
    items = incidence(values.toarray(), present.toarray() > 0)
    found = compare_incidence(
        ("a", "b"),
        np.arange(24) < 12,
        lambda: (items, items),
        Settings(max_items=5, n_permutations=99, n_resamples=10),
    )
    assert len(found.features) == 5
    assert any("the 5 in the most graphs" in text for text in found.limits)
    kept = found.features["graphs_a"] + found.features["graphs_b"]
    assert kept.min() >= np.sort(items.counts)[-5]


def test_progress_runs_from_start_to_end():
    random = np.random.default_rng(10)
    values, present = null_graphs(random)
    items = incidence(values.toarray(), present.toarray() > 0)
    seen = []
    settings = Settings(n_permutations=99, n_resamples=10)
    found = compare_incidence(
        ("a", "b"),
        np.arange(24) < 12,
        lambda: (items, items),
        settings,
        lambda *step: seen.append(step),
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1]
    assert "Fisher's exact test" in found.method
    again = compare_incidence(("a", "b"), np.arange(24) < 12, lambda: (items, items), settings)
    pd.testing.assert_frame_equal(found.features, again.features)  # the same seed


def test_an_unknown_stratum_is_explained():
    values, present = null_graphs(np.random.default_rng(11))
    items = incidence(values.toarray(), present.toarray() > 0)
    with pytest.raises(QueryError, match="templates"):
        compare_incidence(
            ("a", "b"), np.arange(24) < 12, lambda: (items, items), Settings(within="templates")
        )
