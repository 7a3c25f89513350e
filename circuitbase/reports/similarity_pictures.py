"""Pictures of how alike graphs are: a heat map beside its tree, and a map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from circuitbase.reports.drawing import INK, SOFT, bare, drawn, named
from queries.similarity import Similarity, linkage_of, map_of
from queries.templates import TemplateControl

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["control_figure", "heat_map", "map_figure"]

_NAMED: Final = 60  # graphs: more have no room for a name each
_GROUPS: Final = (
    *("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#7b3294"),
    "#525252",
)
_MARKS: Final = "osD^vP*X<>"


def heat_map(similarity: Similarity, groups: pd.DataFrame, title: str = "") -> Figure:
    """Heat map of a similarity, graphs in the order of their tree.

    Parameters
    ----------
    similarity
        As ``queries.similarity_matrix`` gives it.
    groups
        As ``queries.clusters`` gives it: the order, and strips for the clusters.
    title
        Text on top.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from scipy.cluster import hierarchy

    ids = groups["graph_id"].tolist()
    values = similarity.matrix.loc[ids, ids].to_numpy()
    names = dict(zip(similarity.matrix.index, similarity.names, strict=True))
    labels = [named(_ending(names[graph_id], 28), 28) for graph_id in ids]
    n = len(ids)
    side = float(np.clip(0.19 * n, 2.6, 7.6))
    left, tree, right, top = (2.1 if n <= _NAMED else 0.4), 1.0, 1.0, 0.75
    width, height = left + side + 0.12 + tree + right, side + top + 0.35
    with drawn(width, height) as figure:
        axes = figure.add_axes((left / width, 0.35 / height, side / width, side / height))
        off = values[~np.eye(n, dtype=bool)]
        top_value = float(off.max()) if len(off) else 1.0
        image = axes.imshow(
            values, cmap="viridis", vmin=0.0, vmax=max(top_value, 1e-9), interpolation="nearest"
        )
        bare(axes)
        if n <= _NAMED:
            size = float(np.clip(72 * side / n * 0.62, 4.5, 8.5))
            axes.set_yticks(range(n), labels, fontsize=size, color=INK)
            axes.tick_params(length=0, pad=0.03 * side * 72 + 4)
        _strips(axes, groups["cluster"].tolist())
        if n <= 12:
            for i in range(n):
                for j in range(n):
                    if i != j:
                        bright = values[i, j] < 0.6 * top_value
                        colour = "white" if bright else "black"
                        text = f"{values[i, j]:.2f}"
                        axes.text(j, i, text, ha="center", va="center", fontsize=6, color=colour)
        beside = figure.add_axes(
            ((left + side + 0.12) / width, 0.35 / height, tree / width, side / height)
        )
        bare(beside)
        if n > 1:
            branches = linkage_of(similarity)
            hierarchy.dendrogram(
                branches,
                orientation="right",
                ax=beside,
                no_labels=True,
                color_threshold=0,
                above_threshold_color=SOFT,
            )
            beside.invert_yaxis()
            beside.set_xlim(0.9 * branches[:, 2].min(), 1.01 * branches[:, 2].max())
            for line in beside.collections:
                line.set_linewidth(0.9)
        bar = figure.add_axes(
            (1 - 0.72 * right / width, 0.35 / height, 0.14 / width, 0.5 * side / height)
        )
        figure.colorbar(image, cax=bar)
        bar.tick_params(labelsize=7, colors=SOFT, length=2)
        for spine in bar.spines.values():
            spine.set_visible(False)
        what = {"jaccard": "Jaccard", "weighted": "weighted Jaccard", "cosine": "cosine"}
        figure.text(
            0.08 / width,
            1 - 0.12 / height,
            named(title or f"{n} graphs", 80),
            fontsize=11,
            fontweight="bold",
            va="top",
            color=INK,
        )
        figure.text(
            0.08 / width,
            1 - 0.36 / height,
            f"{what[similarity.measure]} of {similarity.items}; the diagonal is 1, colours end at "
            f"{top_value:.2f}",
            fontsize=8,
            va="top",
            color=SOFT,
        )
    return figure


def _ending(name: str, length: int) -> str:
    """End of a long name: what tells prompts apart mostly stands there."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def _strips(axes: Axes, clusters: Sequence[int]) -> None:
    """Draw a coloured strip along the left edge for each cluster."""
    from matplotlib.patches import Rectangle

    n = len(clusters)
    for row, cluster in enumerate(clusters):
        axes.add_patch(
            Rectangle(
                (-0.5 - 0.028 * n, row - 0.5),
                0.018 * n,
                1.0,
                color=_GROUPS[(cluster - 1) % len(_GROUPS)],
                linewidth=0,
                clip_on=False,
            )
        )


def map_figure(similarity: Similarity, by: Sequence[Any], name: str, title: str = "") -> Figure:
    """Map of graphs, near each other where they are alike.

    Parameters
    ----------
    similarity
        As ``queries.similarity_matrix`` gives it.
    by
        What colour each graph has: its cluster, template, family, …
    name
        What that is called.
    title
        Text on top.

    Returns
    -------
    matplotlib.figure.Figure
    """
    places = map_of(similarity)
    values = ["unknown" if value is None or value is pd.NA else str(value) for value in by]
    order = pd.Series(values).value_counts().index.tolist()
    shown = order[: len(_GROUPS) - 1] if len(order) > len(_GROUPS) else order
    width, height = 8.2, 5.2
    with drawn(width, height) as figure:
        axes = figure.add_axes((0.02, 0.03, 0.70, 0.85))
        bare(axes)
        axes.axhline(0, color="#e5e7eb", linewidth=0.8, zorder=0)
        axes.axvline(0, color="#e5e7eb", linewidth=0.8, zorder=0)
        for k, value in enumerate([*shown, None] if len(shown) < len(order) else shown):
            rows = [i for i, v in enumerate(values) if (v == value if value else v not in shown)]
            axes.scatter(
                places["x"].iloc[rows],
                places["y"].iloc[rows],
                s=34 if len(values) <= 200 else 14,
                marker=_MARKS[k % len(_MARKS)],
                color=_GROUPS[k % len(_GROUPS)],
                edgecolors="white",
                linewidths=0.5,
                label=named(value or f"{len(order) - len(shown)} others", 30),
                zorder=3,
            )
        if len(values) <= 12:
            names = similarity.names
            for x, y, text in zip(places["x"], places["y"], names, strict=True):
                axes.annotate(
                    named(text, 24),
                    (x, y),
                    (4, 3),
                    textcoords="offset points",
                    fontsize=6.5,
                    color=SOFT,
                )
        axes.margins(0.08)
        legend = axes.legend(
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            frameon=False,
            fontsize=8,
            title=named(name, 30),
            title_fontsize=8,
            alignment="left",
        )
        legend.get_title().set_fontweight("bold")
        figure.text(0.02, 0.97, named(title or f"{len(values)} graphs", 90), fontsize=11,
                    fontweight="bold", va="top", color=INK)  # fmt: skip
        figure.text(
            0.02,
            0.92,
            f"classical scaling; the two axes show {places.attrs['explained']:.0%} of the "
            "squared distances",
            fontsize=8,
            va="top",
            color=SOFT,
        )
    return figure


def control_figure(control: TemplateControl) -> Figure:
    """Means of the groups of pairs with their intervals, beside the template's baseline."""
    groups = control.groups[control.groups["pairs"] > 0]
    width, height = 7.2, 0.9 + 0.42 * len(groups)
    with drawn(width, height) as figure:
        axes = figure.add_axes((0.33, 0.42 / height, 0.62, 1 - 0.85 / height))
        axes.axvline(control.baseline, color="#d55e00", linewidth=1.0, linestyle="--", zorder=1)
        for k, row in enumerate(groups.to_dict("records")):
            colour = "#d55e00" if row["group"] == "same template, other content" else "#0072b2"
            axes.plot([row["low"], row["high"]], [-k, -k], color=colour, linewidth=3, alpha=0.45)
            axes.plot([row["mean"]], [-k], "o", color=colour, markersize=6)
        axes.set_yticks(
            [-k for k in range(len(groups))],
            [f"{row['group']} ({row['pairs']:,})" for row in groups.to_dict("records")],
            fontsize=8,
            color=INK,
        )
        axes.set_ylim(-len(groups) + 0.5, 0.5)
        axes.tick_params(axis="both", length=0, labelsize=8, colors=INK)
        axes.grid(axis="x", color="#e5e7eb", linewidth=0.7)
        axes.set_axisbelow(True)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_xlabel("mean similarity of the pairs (how many), with its interval; dashed: the "
                        "template's baseline", fontsize=7.5, color=SOFT)  # fmt: skip
    return figure
