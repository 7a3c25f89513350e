"""The template control: likeness beside that of the same template with another content.

Prompts of one template look alike whatever they mean: publicly, 0.67 for the same template against
0.28 for the same content. So a similarity is told beside that of prompts of the same template (or
of nearly the same tokens) that mean something else, with an interval over graphs.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np
import pandas as pd

from queries.by_graph import Labelling, labels_of
from queries.similarity import Mask, Similarity, Vector, check_choice
from queries.statistics import check_share
from tracer.errors import CircuitWarning, QueryError, nearest

__all__ = ["TemplateControl", "template_control", "token_overlap"]

_SAME_CONTENT: Final = "same content, other template"
_BASELINE: Final = "same template, other content"
_BOTH: Final = "same content and template"
_NEITHER: Final = "other content and template"


@dataclass(frozen=True)
class TemplateControl:
    """Similarity beside that of the same template with another content.

    Attributes
    ----------
    similarity
        What is controlled.
    groups
        Pairs of graphs by what they have in common: ``group`` (``same content, other template``,
        ``same template, other content``, …), ``pairs``, ``graphs`` (in them), ``mean``, ``low``,
        ``high``; and against the baseline ``excess`` (mean − baseline), ``excess_low``,
        ``excess_high``, ``beyond`` (whether the interval lies above 0).
    baseline
        Mean similarity of pairs of the same template (or nearly the same tokens) and different
        content.
    template, content
        What tells them apart.
    settings
        Resamples, confidence, seed, and how many draws could not be used.
    warnings
        Which excess is not beyond the template.
    """

    similarity: Similarity
    groups: pd.DataFrame
    baseline: float
    template: list[Any]
    content: list[Any]
    settings: dict[str, Any]
    warnings: tuple[str, ...]
    masks: dict[str, Mask]

    def of(self, graph_id: str) -> pd.DataFrame:
        """Say how alike a graph is to each other one, beyond its own template.

        Parameters
        ----------
        graph_id
            Whole id of a graph of the matrix.

        Returns
        -------
        DataFrame
            ``graph_id``, ``other``, ``slug``, ``similarity``, ``baseline`` (mean over the graphs
            of this one's template and different content; of all such pairs, if it has none),
            ``excess``, ``low``, ``high`` (bootstrap over those graphs), ``beyond``; most alike
            first.

        Raises
        ------
        QueryError
            If it is not in the matrix.
        """
        ids = self.similarity.matrix.index
        if graph_id not in ids:
            raise QueryError(
                f"graph {graph_id!r} is not in the matrix", nearest(str(graph_id), ids) or ""
            )
        row = ids.tolist().index(graph_id)
        values = self.similarity.values[row]
        mask = self.masks[_BASELINE][row]
        random = np.random.default_rng(self.settings["seed"])
        ends = [(1 - self.settings["confidence"]) / 2, (1 + self.settings["confidence"]) / 2]
        if mask.any():
            peers = values[mask]
            drawn = random.choice(peers, (self.settings["n_resamples"], len(peers))).mean(axis=1)
            baseline = float(peers.mean())
            least, most = np.quantile(drawn, ends)
        else:
            baseline, least, most = self.baseline, np.nan, np.nan
        made = self.similarity.graphs[["graph_id", "slug"]].rename(columns={"graph_id": "other"})
        made.insert(0, "graph_id", graph_id)
        made = made.assign(similarity=values, baseline=baseline, excess=values - baseline)
        made = made.assign(low=values - most, high=values - least)
        made["beyond"] = made["low"] > 0
        others = made[np.arange(len(values)) != row]
        order: pd.DataFrame = others.sort_values(["similarity", "other"], ascending=[False, True])
        return order.reset_index(drop=True)

    @cached_property
    def matrix(self) -> pd.DataFrame:
        """Every similarity minus the baseline, named as the matrix is."""
        return self.similarity.matrix - self.baseline

    def __repr__(self) -> str:
        return f"<TemplateControl: baseline {self.baseline:.3f}\n{self.groups.to_string()}>"


def template_control(
    similarity: Similarity,
    template: Labelling = "template",
    content: Labelling = "answer",
    baseline: Literal["template", "tokens"] = "template",
    min_overlap: float = 0.5,
    n_resamples: int = 2_000,
    confidence: float = 0.95,
    seed: int = 0,
) -> TemplateControl:
    """Set the similarity of graphs beside what their templates alone would give.

    For each group of pairs, its mean similarity minus the mean over pairs of the same template and
    different content. Intervals are drawn over graphs, not over pairs: pairs of one graph belong
    together.

    Parameters
    ----------
    similarity
        As :func:`similarity_matrix` gives it.
    template, content
        What tells templates and contents apart: a property of the prompt by its name, or a value
        for each graph id. Graphs without a value of either are left out.
    baseline
        ``template``, or ``tokens``: prompts count as of one template where at least a share
        `min_overlap` of their tokens is the same, place by place (from either end).
    min_overlap
        That share.
    n_resamples, confidence, seed
        Of the bootstrap.

    Returns
    -------
    TemplateControl
        It warns (:class:`~tracer.errors.CircuitWarning`) where the excess of pairs of the same
        content and another template is not beyond 0.

    Raises
    ------
    QueryError
        If templates or contents are unknown, or no two graphs have the same template and
        different content.
    """
    check_choice("baseline", baseline, ("template", "tokens"))
    check_share("confidence", confidence)
    if n_resamples < 1:
        raise QueryError(f"n_resamples is {n_resamples}", "Give a number from 1")
    if not 0 < min_overlap <= 1:
        raise QueryError(f"min_overlap is {min_overlap}", "Give a share of tokens, up to 1")
    graphs = similarity.graphs
    contents = labels_of(graphs, content, "content")
    if baseline == "tokens":
        templates: list[Any] = [None] * len(graphs)
        same_template = token_overlap(graphs["tokens"].tolist()) >= min_overlap
        known = np.array([c is not None for c in contents])
    else:
        templates = labels_of(graphs, template, "template")
        same_template = _same(templates)
        known = np.array(
            [t is not None and c is not None for t, c in zip(templates, contents, strict=True)]
        )
    same_content = _same(contents)
    pairs = known[:, None] & known & ~np.eye(len(graphs), dtype=bool)
    masks = {
        _SAME_CONTENT: pairs & same_content & ~same_template,
        _BASELINE: pairs & ~same_content & same_template,
        _BOTH: pairs & same_content & same_template,
        _NEITHER: pairs & ~same_content & ~same_template,
    }
    if not masks[_BASELINE].any():
        raise QueryError(
            "no two graphs have the same template and different content, so there is no baseline",
            "Trace such prompts (as many templates as contents is best), or name another template "
            "or content",
        )
    groups, unused = _groups(similarity.values, masks, n_resamples, confidence, seed)
    told = _warnings(groups, confidence)
    for text in told:
        warnings.warn(text, CircuitWarning, stacklevel=2)
    settings = {
        **{"baseline": baseline, "n_resamples": n_resamples, "confidence": confidence},
        **{"seed": seed, "unused_draws": unused, "left_out": int((~known).sum())},
    }
    mean = float(groups.loc[groups["group"] == _BASELINE, "mean"].iloc[0])
    return TemplateControl(similarity, groups, mean, templates, contents, settings, told, masks)


def token_overlap(tokens: list[list[str]]) -> Vector:
    """Share of tokens that two prompts have in the same place, from the beginning or the end.

    Of the longer one's; shape (prompts, prompts).

    Examples
    --------
    >>> token_overlap([["the", "sun", "is"], ["the", "red", "moon", "is"]]).round(2)
    array([[1. , 0.5],
           [0.5, 1. ]])
    """
    known: dict[str, int] = {}
    coded = [np.array([known.setdefault(t, len(known)) for t in each]) for each in tokens]
    made = np.eye(len(tokens))
    for i, a in enumerate(coded):
        for j, b in enumerate(coded[:i]):
            n = min(len(a), len(b))
            from_left = a[:n] == b[:n]
            from_right = a[len(a) - n :] == b[len(b) - n :]
            # The best place to go from counting from the left to counting from the right.
            before = np.concatenate([[0], np.cumsum(from_left)])
            after = np.concatenate([np.cumsum(from_right[::-1])[::-1], [0]])
            made[i, j] = made[j, i] = (before + after).max() / max(len(a), len(b), 1)
    return made


def _same(values: list[Any]) -> Mask:
    _, codes = np.unique([repr(value) for value in values], return_inverse=True)
    return np.asarray(codes[:, None] == codes)


def _groups(
    values: Vector, masks: dict[str, Mask], n_resamples: int, confidence: float, seed: int
) -> tuple[pd.DataFrame, int]:
    n = len(values)
    random = np.random.default_rng(seed)
    drawn = random.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)
    draws = {name: _mean_of_pairs(values, mask, drawn) for name, mask in masks.items()}
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    means = {
        name: float(values[mask].mean()) if mask.any() else np.nan for name, mask in masks.items()
    }
    rows, unused = [], 0
    for name, mask in masks.items():
        row: dict[str, Any] = {
            "group": name,
            "pairs": int(mask.sum()) // 2,
            "graphs": int(mask.any(axis=1).sum()),
            "mean": means[name],
        }
        row["low"], row["high"] = _ends(draws[name], ends)
        excess = draws[name] - draws[_BASELINE]
        if name == _BASELINE:
            row |= {"excess": 0.0, "excess_low": np.nan, "excess_high": np.nan, "beyond": False}
        else:
            low, high = _ends(excess, ends)
            row |= {"excess": means[name] - means[_BASELINE], "excess_low": low}
            row |= {"excess_high": high, "beyond": bool(low > 0)}
            if mask.any():
                unused = max(unused, int(np.isnan(excess).sum()))
        rows.append(row)
    return pd.DataFrame(rows), unused


def _mean_of_pairs(values: Vector, mask: Mask, drawn: Vector) -> Vector:
    """Mean similarity of pairs when graph i is drawn ``drawn[:, i]`` times; nan without pairs."""
    weight = ((drawn @ mask.astype(np.float64)) * drawn).sum(axis=1)
    total = ((drawn @ (values * mask)) * drawn).sum(axis=1)
    made: Vector = np.divide(total, weight, out=np.full(len(drawn), np.nan), where=weight > 0)
    return made


def _ends(draws: Vector, ends: list[float]) -> tuple[float, float]:
    known = draws[~np.isnan(draws)]
    if not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, ends)
    return float(low), float(high)


def _warnings(groups: pd.DataFrame, confidence: float) -> tuple[str, ...]:
    row = groups[groups["group"] == _SAME_CONTENT].iloc[0]
    if not row["pairs"]:
        return (
            "No two graphs have the same content and different templates: similarity of content "
            "cannot be told from similarity of template.",
        )
    if row["excess_low"] > 0:
        return ()
    where = "contains 0" if row["excess_high"] >= 0 else "lies below 0"
    return (
        f"Graphs of the same content and another template are alike by {row['mean']:.2f}, "
        f"{row['excess']:+.2f} against the same template with another content; the "
        f"{confidence:.0%} interval ({row['excess_low']:+.2f} to {row['excess_high']:+.2f}) "
        f"{where}: likeness here tells of templates, not of content.",
    )
