"""Pictures of two sets: every feature by difference and p, and the largest differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from circuitbase.reports.drawing import BOTH, INK, ONLY_A, ONLY_B, SOFT, drawn, named
from queries.comparing_sets import SetComparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["differences_figure", "name_of", "scatter_figure"]

_POINTS: Final = 4_000  # drawn one by one; the rest of the uninteresting ones is thinned out


def scatter_figure(comparison: SetComparison, level: float = 0.05) -> Figure:
    """Every feature and pair: how much more common in b, against how sure that is.

    Parameters
    ----------
    comparison
        As ``queries.compare`` gives it.
    level
        q-values below it are coloured.

    Returns
    -------
    matplotlib.figure.Figure
    """
    width, height = 10.2, 3.9
    with drawn(width, height) as figure:
        parts = (("features", comparison.features), ("pairs of features", comparison.edges))
        for k, (what, items) in enumerate(parts):
            axes = figure.add_axes((0.065 + 0.49 * k, 0.15, 0.43, 0.68))
            _scatter(axes, items, level)
            found = int((items["q_presence"] < level).sum())
            axes.set_title(
                f"{len(items):,} {what}, {found:,} with q < {level:g}",
                fontsize=9,
                color=INK,
                loc="left",
            )
            axes.set_xlabel(
                named(f"share in {comparison.b} − share in {comparison.a}", 70),
                fontsize=8,
                color=SOFT,
            )
            if not k:
                axes.set_ylabel("−log₁₀ p of presence", fontsize=8, color=SOFT)
        figure.text(0.015, 0.97, "Presence", fontsize=11, fontweight="bold", va="top", color=INK)
    return figure


def _scatter(axes: Axes, items: pd.DataFrame, level: float) -> None:
    strong = items["q_presence"] < level
    weak = items[~strong]
    if len(weak) > _POINTS:
        weak = weak.drop_duplicates(["graphs_a", "graphs_b"]).head(_POINTS)
    random = np.random.default_rng(0)
    for part, size, alpha in ((weak, 7, 0.35), (items[strong].head(_POINTS), 14, 0.75)):
        if part.empty:
            continue
        at = part["difference"].to_numpy() + random.uniform(-0.006, 0.006, len(part))
        colours = (
            BOTH if part is weak else np.where(part["difference"] > 0, ONLY_B, ONLY_A).tolist()
        )
        axes.scatter(
            at,
            -np.log10(np.maximum(part["p_presence"].to_numpy(), 1e-300)),
            s=size,
            c=colours,
            alpha=alpha,
            linewidths=0,
        )
    axes.axvline(0, color="#d1d5db", linewidth=0.8, zorder=0)
    axes.set_xlim(-1.05, 1.05)
    axes.set_ylim(top=max(axes.get_ylim()[1], 1.5))
    axes.tick_params(labelsize=7.5, colors=SOFT, length=2)
    for name in ("top", "right"):
        axes.spines[name].set_visible(False)


def differences_figure(comparison: SetComparison, n: int = 24) -> Figure:
    """Features that differ most, with the intervals of their difference of shares.

    Parameters
    ----------
    comparison
        As ``queries.compare`` gives it.
    n
        How many, those with the smallest p first.

    Returns
    -------
    matplotlib.figure.Figure
    """
    rows = comparison.features.head(n).sort_values("difference", ascending=False)
    width, height = 9.0, 1.0 + 0.24 * max(len(rows), 1)
    with drawn(width, height) as figure:
        axes = figure.add_axes((0.34, 0.5 / height, 0.62, 1 - 0.95 / height))
        for k, row in enumerate(rows.to_dict("records")):
            colour = ONLY_B if row["difference"] > 0 else ONLY_A
            strong = 0.9 if row["q_presence"] < 0.05 else 0.35
            axes.plot(
                [row["low"], row["high"]], [-k, -k], color=colour, linewidth=4, alpha=0.35 * strong
            )
            axes.plot([row["difference"]], [-k], "o", color=colour, markersize=5, alpha=strong)
        axes.axvline(0, color="#9ca3af", linewidth=0.8, zorder=0)
        axes.set_yticks(
            [-k for k in range(len(rows))],
            [named(name_of(row), 42) for row in rows.to_dict("records")],
            fontsize=7.5,
            color=INK,
        )
        axes.set_xlim(-1.08, 1.08)
        axes.set_ylim(-max(len(rows), 1) + 0.4, 0.6)
        axes.tick_params(axis="both", length=0, labelsize=7.5, colors=INK)
        axes.grid(axis="x", color="#eef0f2", linewidth=0.7)
        for side in axes.spines.values():
            side.set_visible(False)
        axes.set_xlabel(
            named(f"share of graphs, {comparison.b} minus {comparison.a} (pale: q ≥ 0.05)", 90),
            fontsize=8,
            color=SOFT,
        )
        figure.text(
            0.02,
            1 - 0.1 / height,
            "Features that differ most",
            fontsize=11,
            fontweight="bold",
            va="top",
            color=INK,
        )
    return figure


def name_of(row: Mapping[Any, Any]) -> str:
    """Name a feature as people do: by its layer, index and label."""
    label = row.get("label")
    name = f"{row['layer']}/{row['index']}"
    return f"{name} · {label}" if isinstance(label, str) and label else name
