"""Two prompt sets side by side: what is more common, or stronger, in one of them, beyond chance.

Presence of every feature and pair of features is tested, and its strength; both with q-values,
effect sizes and bootstrap intervals (:mod:`queries.statistics`). The unit is the graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from numbers import Integral
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from queries.asking import Chosen, GraphSet, choose, one_transcoder
from queries.by_graph import EdgeValue, Incidence, Labelling, labels_of, read_edges, read_features
from queries.statistics import (
    bootstrap_intervals,
    check_share,
    least_presence_p,
    mann_whitney,
    permutation_p,
    presence_p,
    q_values,
    relabelled,
)
from tracer.errors import QueryError, nearest

if TYPE_CHECKING:
    from graphstore import Store

__all__ = ["SetComparison", "Settings", "compare_incidence", "compare_sets"]

Progress = Callable[[int, int], None]
Mask = NDArray[np.bool_]

_PARTS: Final = 1000  # steps of a progress bar for each part of the work


@dataclass(frozen=True)
class Settings:
    """How two sets are tested.

    Attributes
    ----------
    presence
        ``fisher`` or ``midp``: whether as large a share of the graphs has the item in both sets.
        With `within`, labels are permuted instead.
    strength
        ``permutation``: whether its mean over all graphs of the set is the same, 0 where absent.
        ``mann-whitney``: whether it is as strong where it is present.
    edge_value
        Strength of a pair of features: its signed ``weight``, its ``share`` of the target's input,
        or the ``influence`` that runs over it. A feature's strength is its influence.
    min_graphs
        Items in fewer graphs of both sets together are not tested. The count does not look at
        labels, so tests stay valid.
    max_items
        At most so many features, and pairs, are tested: those in the most graphs.
    within
        A property of the prompts, or a mapping from graph ids: labels change places only among
        graphs that have it in common (such as ``template``), so what it explains is no finding.
    n_permutations, n_resamples
        How many labellings, and bootstrap draws.
    confidence
        Of the intervals.
    fdr
        ``bh`` (Benjamini-Hochberg), or ``by`` (Benjamini-Yekutieli), for any dependence.
    seed
        Of all that is random.
    """

    presence: Literal["fisher", "midp"] = "fisher"
    strength: Literal["permutation", "mann-whitney"] = "permutation"
    edge_value: EdgeValue = "weight"
    min_graphs: int = 2
    max_items: int = 200_000
    within: Labelling | None = None
    n_permutations: int = 9_999
    n_resamples: int = 2_000
    confidence: float = 0.95
    fdr: Literal["bh", "by"] = "bh"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            if value not in known:
                raise QueryError(
                    f"compare: {name} is {value!r}",
                    nearest(str(value), known) or f"Give one of {', '.join(known)}",
                )
        for name in ("min_graphs", "max_items", "n_permutations", "n_resamples"):
            value = getattr(self, name)
            if not isinstance(value, Integral) or value < 1:
                raise QueryError(f"compare: {name} is {value!r}", "Give a whole number from 1")
        check_share("confidence", self.confidence)


_CHOICES: Final = {
    "presence": ("fisher", "midp"),
    "strength": ("permutation", "mann-whitney"),
    "edge_value": ("weight", "share", "influence"),
    "fdr": ("bh", "by"),
}


@dataclass(frozen=True)
class SetComparison:
    """Two sets, item by item; made by :func:`compare_sets`.

    Attributes
    ----------
    a, b
        What the sets are called.
    graphs
        One row of :func:`queries.graph_details` each, with ``where`` (``a`` or ``b``).
    features, edges
        What each is (``feature_id``, ``layer``, ``index``, ``label``; or ``source``, ``target``);
        ``graphs_a``, ``graphs_b`` (how many have it), ``share_a``, ``share_b`` (of the set's
        graphs), ``difference`` (b − a) with ``low`` and ``high``, ``p_presence``, ``q_presence``;
        ``mean_a``, ``mean_b`` (strength, over all graphs of the set, 0 where absent), ``change``
        (b − a) with ``change_low`` and ``change_high``, ``p_strength``, ``q_strength``;
        ``where`` (``both``, ``a``, ``b``). Smallest p of presence first.
    settings
        How they were tested.
    limits
        What a reader has to know before believing it.
    """

    a: str
    b: str
    graphs: pd.DataFrame
    features: pd.DataFrame
    edges: pd.DataFrame
    settings: Settings
    limits: tuple[str, ...] = field(default=())

    @property
    def seed(self) -> int:
        """Seed of all that is random."""
        return self.settings.seed

    @property
    def n_graphs(self) -> tuple[int, int]:
        """How many graphs each set has in the comparison."""
        where = self.graphs["where"]
        return int((where == "a").sum()), int((where == "b").sum())

    @cached_property
    def method(self) -> str:
        """One paragraph that says what was done."""
        given, (n_a, n_b) = self.settings, self.n_graphs
        presence = (
            f"permuting the sets' names among graphs of the same {_name_of(given.within)}"
            if given.within is not None
            else {"fisher": "Fisher's exact test", "midp": "the mid-p of Fisher's exact test"}[
                given.presence
            ]
        )
        strength = (
            "permuting the sets' names over graphs, means over all graphs of a set, 0 where absent"
            if given.strength == "permutation"
            else "the Mann-Whitney U test among the graphs that have the item"
        )
        correction = {"bh": "Benjamini-Hochberg", "by": "Benjamini-Yekutieli"}[given.fdr]
        return (
            f"{n_a} graphs of {self.a} and {n_b} of {self.b}. Presence: {presence}. Strength "
            f"(influence of a feature, {given.edge_value} of a pair): {strength}. "
            f"{given.n_permutations:,} permutations at most, {given.n_resamples:,} bootstrap draws "
            f"of whole graphs for {given.confidence:.0%} intervals, seed {given.seed}. q-values: "
            f"{correction}, features and pairs, presence and strength each a family. Items in "
            f"fewer than {given.min_graphs} graphs are not tested."
        )

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Count what was found.

        Columns: ``what``, ``tested``, ``both``, ``a``, ``b`` (in how many sets), and how many have
        a q below 0.05: ``presence``, ``strength``.
        """
        rows = []
        for what, items in (("feature", self.features), ("pair of features", self.edges)):
            where = items["where"].value_counts()
            rows.append(
                {
                    "what": what,
                    "tested": len(items),
                    **{place: int(where.get(place, 0)) for place in ("both", "a", "b")},
                    "presence": int((items["q_presence"] < 0.05).sum()),
                    "strength": int((items["q_strength"] < 0.05).sum()),
                }
            )
        return pd.DataFrame(rows)

    def __repr__(self) -> str:
        return f"<SetComparison {self.a} | {self.b}: {self.method}>"


def compare_sets(
    store: Store,
    a: GraphSet,
    b: GraphSet,
    settings: Settings | None = None,
    progress: Progress | None = None,
    **more: Any,
) -> SetComparison:
    """Compare two prompt sets.

    Graphs that are in both are left out, and said.

    Parameters
    ----------
    store
        The store.
    a, b
        Sets by name, or lists of graphs.
    settings
        How to test; or its attributes as keywords.
    progress
        Called with how many steps are done, and how many there are.
    **more
        Attributes of :class:`Settings`.

    Returns
    -------
    SetComparison

    Raises
    ------
    NotFoundError
        If no graph or set has a name.
    QueryError
        If a set is empty or has one graph only, all of its graphs are in the other, the graphs
        are of several transcoders, or a setting is outside what it may be.
    """
    settings = _settings(settings, more)
    names = [name if isinstance(name, str) else f"{len(name)} graphs" for name in (a, b)]
    sides = [choose(store, prompt_set=name) for name in (a, b)]
    for name, side in zip(names, sides, strict=True):
        if not side.ids:
            raise QueryError(
                f"set {name!r} holds no graph", "Fill it with circuitbase trace or import"
            )
    one_transcoder("compare", *sides)
    shared = set(sides[0].ids) & set(sides[1].ids)
    left = [[graph_id for graph_id in side.ids if graph_id not in shared] for side in sides]
    for name, other, ids in zip(names, names[::-1], left, strict=True):
        if not ids:
            raise QueryError(
                f"every graph of {name!r} is in {other!r} too",
                "Compare it with the others: a set of the difference (circuitbase sets)",
            )
        if len(ids) == 1:
            raise QueryError(
                f"set {name!r} has one graph{' of its own' if shared else ''}, from which nothing "
                "can be told of a set",
                "Compare graphs one by one: circuitbase compare GRAPH GRAPH",
            )
    chosen = choose(store, [*left[0], *left[1]])
    return compare_incidence(
        (names[0], names[1]),
        np.arange(len(chosen.ids)) < len(left[0]),
        lambda: _read(store, chosen, settings),
        settings,
        progress,
        n_shared=len(shared),
    )


def compare_incidence(
    names: tuple[str, str],
    is_a: Mask,
    read: Callable[[], tuple[Incidence, Incidence]],
    settings: Settings,
    progress: Progress | None = None,
    n_shared: int = 0,
) -> SetComparison:
    """Compare groups of graphs whose features and pairs are known, wherever they come from.

    Parameters
    ----------
    names
        What the groups are called.
    is_a
        Whether each graph is of the first, shape (graphs,).
    read
        Gives features and pairs.
    settings, progress
        As in :func:`compare_sets`.
    n_shared
        How many graphs of both were left out.
    """
    steps = _Steps(progress, 2 * (3 if settings.within is None else 4))
    features, edges = read()
    details = features.graphs
    limits = _limits(details, is_a, settings, n_shared)
    strata = None
    if settings.within is not None:
        strata = labels_of(details, settings.within, "template (within)")
        # What is unknown is nobody's in common: such graphs keep their names.
        strata = [f"{k}" if value is None else repr((value,)) for k, value in enumerate(strata)]
        limits += _within_limits(strata, is_a, settings)
    tested = []
    for what, items in (("features", features), ("pairs of features", edges)):
        columns = np.flatnonzero(items.counts >= settings.min_graphs)
        if len(columns) > settings.max_items:
            order = np.argsort(-items.counts[columns], kind="stable")[: settings.max_items]
            limits.append(
                f"Of {len(columns):,} {what}, the {settings.max_items:,} in the most graphs were "
                "tested; the others were left out (max_items)."
            )
            columns = np.sort(columns[order])
        left = items.present.shape[1] - len(columns)
        if left and what == "features":
            limits.append(
                f"{left:,} features in fewer than {settings.min_graphs} graphs were not tested."
            )
        # A family of m tests finds k of them at most at p = k * 0.05 / m.
        least = 1 / (settings.n_permutations + 1)
        together = math.ceil(least * len(columns) / 0.05)
        if together > 1 and (settings.strength == "permutation" or strata is not None):
            limits.append(
                f"{settings.n_permutations:,} permutations give no p below {least:.2g}: of "
                f"{len(columns):,} {what}, {together:,} at least must reach it for a q below 0.05 "
                "(n_permutations)."
            )
        tested.append(_test(items.part(columns), is_a, settings, strata, steps))
    steps.end()
    return SetComparison(
        names[0],
        names[1],
        details.assign(where=np.where(is_a, "a", "b")),
        tested[0],
        tested[1],
        settings,
        tuple(limits),
    )


def _settings(settings: Settings | None, more: dict[str, Any]) -> Settings:
    known = Settings.__dataclass_fields__
    for name in more:
        if name not in known:
            raise QueryError(
                f"compare has no setting {name!r}",
                nearest(name, known) or f"It takes {', '.join(known)}",
            )
    if settings is None:
        return Settings(**more)
    given = {name: getattr(settings, name) for name in known}
    return Settings(**(given | more))


def _read(store: Store, chosen: Chosen, settings: Settings) -> tuple[Incidence, Incidence]:
    return (
        read_features(store, chosen),
        read_edges(store, chosen, settings.min_graphs, settings.edge_value),
    )


def _test(
    items: Incidence, is_a: Mask, settings: Settings, strata: list[Any] | None, steps: _Steps
) -> pd.DataFrame:
    """Test every item."""
    random = np.random.default_rng(settings.seed)
    n_a, n_b = int(is_a.sum()), int((~is_a).sum())
    in_a = np.asarray(items.present[is_a].sum(axis=0)).ravel()
    in_b = np.asarray(items.present[~is_a].sum(axis=0)).ravel()
    sum_a = np.asarray(items.values[is_a].sum(axis=0)).ravel()
    sum_b = np.asarray(items.values[~is_a].sum(axis=0)).ravel()
    found = items.items.copy()
    found["graphs_a"], found["graphs_b"] = in_a.astype(np.int64), in_b.astype(np.int64)
    found["share_a"], found["share_b"] = in_a / n_a, in_b / n_b
    found["difference"] = found["share_b"] - found["share_a"]
    found["low"], found["high"] = bootstrap_intervals(
        items.present, is_a, settings.n_resamples, settings.confidence, random, steps.next()
    )
    labels = None
    if strata is not None or settings.strength == "permutation":
        labels = relabelled(is_a, settings.n_permutations, random, strata)
    if strata is None or labels is None:
        found["p_presence"] = presence_p(in_a, n_a, in_b, n_b, settings.presence)
    else:
        found["p_presence"] = permutation_p(items.present, labels, steps.next())
    found["q_presence"] = q_values(found["p_presence"], settings.fdr)
    found["mean_a"], found["mean_b"] = sum_a / n_a, sum_b / n_b
    found["change"] = found["mean_b"] - found["mean_a"]
    found["change_low"], found["change_high"] = bootstrap_intervals(
        items.values, is_a, settings.n_resamples, settings.confidence, random, steps.next()
    )
    if settings.strength == "permutation" and labels is not None:
        found["p_strength"] = permutation_p(items.values, labels, steps.next())
    else:
        found["p_strength"] = mann_whitney(items.values, items.present, is_a, steps.next())
    found["q_strength"] = q_values(found["p_strength"], settings.fdr)
    found["where"] = np.where((in_a > 0) & (in_b > 0), "both", np.where(in_a > 0, "a", "b")).astype(
        object
    )
    order = found.assign(size=-found["difference"].abs()).sort_values(
        ["p_presence", "p_strength", "size", *items.items.columns[:2]]
    )
    return order.drop(columns="size").reset_index(drop=True)


def _limits(details: pd.DataFrame, is_a: Mask, settings: Settings, n_shared: int) -> list[str]:
    n_a, n_b = int(is_a.sum()), int((~is_a).sum())
    limits = []
    if n_shared:
        limits.append(f"{n_shared} graphs in both sets were left out.")
    least = least_presence_p(n_a, n_b, settings.presence)
    if settings.within is None and least > 0.001:
        limits.append(
            f"With {n_a} and {n_b} graphs, no test of presence can give p below {least:.2g}; "
            "corrected for many items, what only a few of them show cannot be found."
        )
    templates = details["template"] if "template" in details else pd.Series(dtype=object)
    known = templates.notna().all() and len(templates) > 0
    shared = set(templates[is_a]) & set(templates[~is_a]) if known else set()
    if settings.within is None and known and not shared:
        limits.append(
            "No template occurs in both sets: what is found may tell of templates rather than of "
            "what the prompts mean."
        )
    elif settings.within is None and not known:
        limits.append(
            "Templates of the prompts are not known: what is found may tell of templates rather "
            "than of what the prompts mean."
        )
    limits.append(
        "Graphs count as independent and as drawn from what the set stands for; prompts that were "
        "chosen or written alike are not."
    )
    limits.append(
        "Intervals come from the graphs at hand: of what is in all of a set or in none, they have "
        "no width, and are too narrow for few graphs."
    )
    limits.append(
        "Absent means pruned or inactive: a feature below the pruning threshold counts as absent."
    )
    if settings.strength == "mann-whitney":
        limits.append(
            "Strength is compared where an item is present; that can differ because presence does."
        )
    return limits


def _within_limits(strata: list[str], is_a: Mask, settings: Settings) -> list[str]:
    """Say how much of the sets `within` leaves to the tests, and what it does not touch."""
    name = _name_of(settings.within)
    a = {stratum for stratum, first in zip(strata, is_a, strict=True) if first}
    b = {stratum for stratum, first in zip(strata, is_a, strict=True) if not first}
    moved = sum(stratum in a & b for stratum in strata)
    if not moved:
        raise QueryError(
            f"the sets have no {name} in common, within which to compare them",
            "Name another property (within), or none",
        )
    limits = [
        f"Shares, means and their intervals are of whole sets; only p and q are within the same "
        f"{name}."
    ]
    if moved < len(strata):
        limits.append(
            f"{moved} of {len(strata)} graphs have a value of {name} that is in both sets; the "
            "others keep their names, so the tests tell nothing of them."
        )
    if settings.strength == "mann-whitney":
        limits.append(f"The Mann-Whitney U test of strength is not within the same {name}.")
    return limits


def _name_of(within: Labelling | None) -> str:
    return within if isinstance(within, str) else "given group"


class _Steps:
    """One progress bar over several parts of the work."""

    def __init__(self, progress: Progress | None, parts: int) -> None:
        self._progress = progress
        self._parts = parts
        self._done = 0

    def next(self) -> Progress | None:
        """Begin a part: what to call with its own counts."""
        if self._progress is None:
            return None
        before, self._done = self._done, self._done + 1
        progress = self._progress

        def tell(done: int, total: int) -> None:
            part = before + done / max(total, 1)
            progress(min(int(_PARTS * part), self._parts * _PARTS), self._parts * _PARTS)

        return tell

    def end(self) -> None:
        if self._progress is not None:
            self._progress(self._parts * _PARTS, self._parts * _PARTS)
