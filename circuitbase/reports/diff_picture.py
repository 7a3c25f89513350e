"""Picture of two graphs laid over each other: in the terminal, and as a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from circuitbase._shared import fit
from circuitbase._text import visible
from circuitbase.reports.drawing import BOTH, INK, ONLY_A, ONLY_B, SOFT, bare, drawn, named
from queries.comparing_graphs import GraphComparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["diff_figure", "diff_terminal"]

Vector = NDArray[np.float64]

_COLOURS: Final = {"both": BOTH, "a": ONLY_A, "b": ONLY_B}
_STYLES: Final = {"both": "bold", "a": "color(33)", "b": "color(208)"}
_MANY: Final = {"pair of features": "pairs of features"}
_MARKS: Final = {"feature": "o", "error": "D", "embedding": "s", "logit": "s"}


# In the terminal ---------------------------------------------------------------------------------


def diff_terminal(comparison: GraphComparison, width: int = 100, limit: int = 12) -> RenderableType:
    """Picture of a comparison in the terminal.

    Layers are rows. With positions aligned, they are columns: each cell has the number of features
    that both graphs have, only a and only b. With positions dropped there are three columns.

    Parameters
    ----------
    comparison
        As ``queries.compare`` gives it.
    width
        Columns of the terminal.
    limit
        How many of the largest changes to list.
    """
    parts: list[RenderableType] = [_heading(comparison), Text(), _summary(comparison), Text()]
    parts += [*_grid(comparison, width), Text(), _changes(comparison, limit)]
    return Group(*parts)


def _heading(comparison: GraphComparison) -> Text:
    text = Text()
    for side, graph in (("a", comparison.a), ("b", comparison.b)):
        text.append(f"{side} ", style="bold " + _STYLES[side])
        text.append(f"{visible(str(graph['slug'] or graph['graph_id']))}  ", style="bold")
        text.append(f"{graph['graph_id']}  ", style="dim")
        text.append(f"“{visible(str(graph['prompt']))}”\n", style="italic")
    how = {
        "drop": "Positions are dropped: a feature is one wherever it acts.",
        "align": "Positions are aligned by the prompts' tokens.",
    }
    text.append(how[comparison.positions], style="dim")
    return text


def _summary(comparison: GraphComparison) -> Table:
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("")
    for name in ("both", "only a", "only b", "Jaccard", "weighted", "of a's influence", "of b's"):
        table.add_column(name, justify="right")
    for row in comparison.summary.to_dict("records"):
        if row["both"] + row["a"] + row["b"]:
            shares = [
                _figure(v)
                for v in (row["jaccard"], row["weighted"], row["share_a"], row["share_b"])
            ]
            table.add_row(
                _MANY.get(row["what"], row["what"] + "s"),
                Text(f"{row['both']:,}", style=_STYLES["both"]),
                Text(f"{row['a']:,}", style=_STYLES["a"]),
                Text(f"{row['b']:,}", style=_STYLES["b"]),
                *shares,
            )
    return table


def _grid(comparison: GraphComparison, width: int) -> list[RenderableType]:
    """Count features by layer, and by position or by where they are."""
    features = comparison.nodes[comparison.nodes["kind"] == "feature"]
    names, columns = _columns(comparison)
    at = columns(features)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column("layer", justify="right", style="dim")
    shown = list(range(len(names)))
    room = max((width - 8) // 9, 3)
    if len(shown) > room:
        influence = np.bincount(
            at, features["influence_a"] + features["influence_b"], minlength=len(names)
        )
        shown = sorted(np.argsort(-influence, kind="stable")[:room].tolist())
    for k in shown:
        table.add_column(fit(visible(names[k]), 12), justify="center", no_wrap=True)
    table.add_column("change", justify="right")
    layers = features["layer"].to_numpy()
    where = features["where"].to_numpy()
    change = features["change"].to_numpy()
    for layer in sorted(set(layers.tolist()), reverse=True):
        cells = []
        for k in shown:
            here = where[(layers == layer) & (at == k)]
            counts = {side: int((here == side).sum()) for side in _STYLES}
            if comparison.positions == "drop":
                counts = {side: n for side, n in counts.items() if n}
            cells.append(_cell(counts))
        moved = float(change[layers == layer].sum())
        style = _STYLES["b" if moved > 0 else "a"]
        table.add_row(str(layer), *cells, Text(f"{moved:+.3f}", style=style))
    left = len(names) - len(shown)
    legend = "features in both · only a · only b; change: influence in b minus in a"
    legend += f"; {left} positions with less influence left out" if left else ""
    return [table, Text(legend, style="dim")]


def _cell(counts: dict[str, int]) -> Text:
    text = Text()
    if not sum(counts.values()):
        return Text("·", style="grey42")
    for k, (side, n) in enumerate(counts.items()):
        text.append(" " if k else "")
        text.append(str(n) if n else "·", style=_STYLES[side] if n else "grey42")
    return text


def _changes(comparison: GraphComparison, limit: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("largest changes", overflow="fold")
    table.add_column("what", overflow="fold")
    for name in ("influence in a", "in b", "change"):
        table.add_column(name, justify="right")
    for row in comparison.nodes.head(limit).to_dict("records"):
        table.add_row(
            Text(str(row["key"]), style=_STYLES[str(row["where"])]),
            Text(visible(str(row["label"] or row["token"] or ""))),
            f"{row['influence_a']:.4f}",
            f"{row['influence_b']:.4f}",
            Text(f"{row['change']:+.4f}", style=_STYLES["b" if row["change"] > 0 else "a"]),
        )
    return table


def _figure(value: Any) -> str:
    return "–" if value != value else f"{value:.3f}"


# As a figure -------------------------------------------------------------------------------------


def diff_figure(comparison: GraphComparison, nodes: int = 160, edges: int = 220) -> Figure:
    """Two graphs laid over each other: shared parts grey, a's own blue, b's own orange.

    Parameters
    ----------
    comparison
        As ``queries.compare`` gives it.
    nodes, edges
        How many of the strongest (in either graph) to draw; tokens and targets always are.

    Returns
    -------
    matplotlib.figure.Figure
    """
    names, columns = _columns(comparison)
    shown = _strongest(comparison.nodes, nodes)
    heights, rows = _rows(shown)
    at = columns(shown)
    panel, left, head, foot = 3.9, 0.55, 0.95, 0.75
    ends = _column_ends(shown, at, len(names))
    wide = float(ends[-1])
    tall = float(np.clip(0.30 * rows[-1][0] + 0.5, 3.6, 16.0))
    width, height = left + wide + panel, head + tall + foot
    with drawn(width, height) as figure:
        axes = figure.add_axes((left / width, foot / height, wide / width, tall / height))
        bare(axes)
        axes.set_xlim(0, wide)
        axes.set_ylim(-0.8, rows[-1][0] + 1.0)
        for k in range(0, len(names), 2):
            axes.axvspan(ends[k], ends[k + 1], color="#f6f6f8", zorder=0, linewidth=0)
        axes.set_yticks([y for y, _ in rows], [name for _, name in rows])
        axes.tick_params(axis="y", length=0, labelsize=7, labelcolor=SOFT)
        middles, room = (ends[1:] + ends[:-1]) / 2, np.diff(ends)
        letters = np.array([len(name) for name in names])
        slanted = bool((letters * 0.075 > room).any())
        for middle, name in zip(middles.tolist(), names, strict=True):
            axes.text(
                middle,
                -0.95,
                named(name, 22),
                fontsize=8,
                color=INK,
                va="top",
                clip_on=False,
                rotation=28 if slanted else 0,
                rotation_mode="anchor",
                ha="right" if slanted else "center",
            )
        either = ["influence_a", "influence_b", "probability_a", "probability_b"]
        size = shown[either].max(axis=1).to_numpy(np.float64)
        place = dict(zip(shown["key"], _placed(shown, at, ends, heights, size), strict=True))
        n_drawn = _draw_edges(axes, comparison.edges, place, edges)
        numbered = _draw_nodes(axes, shown, place, size)
        _draw_texts(figure, comparison, width, height, len(shown), n_drawn)
        _draw_list(figure, comparison, numbered, (width, height), (panel, head))
    return figure


def _columns(comparison: GraphComparison) -> tuple[list[str], Any]:
    """Names of the columns, and a function from nodes to the column each stands in."""
    if comparison.positions == "drop":
        order = {"a": 0, "both": 1, "b": 2}
        names = ["only a", "both", "only b"]
        return names, lambda nodes: nodes["where"].map(order).to_numpy(np.int64)
    tokens_a, tokens_b = list(comparison.a["tokens"]), list(comparison.b["tokens"])
    partner: dict[int, int] = {p: q for q, p in enumerate(comparison.alignment) if p is not None}
    names, column_a, column_b = [], {}, {}
    q = 0
    for p, token in enumerate(tokens_a):
        while q < len(tokens_b) and comparison.alignment[q] is None:
            column_b[q] = len(names)
            names.append(f"– / {tokens_b[q].strip() or '␣'}")
            q += 1
        column_a[p] = len(names)
        if p in partner:
            column_b[partner[p]] = len(names)
            q = partner[p] + 1
            other = tokens_b[partner[p]]
            same = other == token
            names.append(token.strip() or "␣" if same else f"{token.strip()} / {other.strip()}")
        else:
            names.append(f"{token.strip() or '␣'} / –")
    for rest in range(q, len(tokens_b)):
        column_b[rest] = len(names)
        names.append(f"– / {tokens_b[rest].strip() or '␣'}")

    def column(nodes: pd.DataFrame) -> NDArray[np.int64]:
        found = [
            column_a.get(int(a), 0) if a is not pd.NA and a == a else column_b.get(int(b), 0)
            for a, b in zip(nodes["position_a"], nodes["position_b"], strict=True)
        ]
        return np.array(found, dtype=np.int64)

    return names or ["–"], column


def _strongest(nodes: pd.DataFrame, limit: int) -> pd.DataFrame:
    inner = nodes["kind"].isin(["feature", "error"])
    size = nodes[["influence_a", "influence_b"]].max(axis=1)
    kept = size[inner].sort_values(ascending=False, kind="stable").index[:limit]
    return nodes[~inner | nodes.index.isin(kept)].reset_index(drop=True)


def _rows(nodes: pd.DataFrame) -> tuple[dict[tuple[str, int], float], list[tuple[float, str]]]:
    """Height of each kind and layer: embeddings, layers that occur, targets."""
    inner = nodes[nodes["kind"].isin(["feature", "error"])]
    rows, heights, y = [(0.0, "emb")], {}, 0.2
    for layer in sorted(set(inner["layer"].tolist())):
        y += 1.0
        heights["feature", layer] = heights["error", layer] = y
        rows.append((y, str(layer)))
    y += 1.4
    rows.append((y, "logit"))
    for layer in set(nodes["layer"].tolist()):
        heights["embedding", layer], heights["logit", layer] = 0.0, y
    return heights, rows


def _column_ends(nodes: pd.DataFrame, at: NDArray[np.int64], n: int) -> Vector:
    """Left and right ends of the columns, in inches: as wide as their fullest cell needs."""
    level = np.where(nodes["kind"] == "logit", 10_000, nodes["layer"]).astype(np.int64)
    cells, counts = np.unique(np.stack([at, level], axis=1), axis=0, return_counts=True)
    needs = np.full(n, 0.5)
    np.maximum.at(needs, cells[:, 0], np.minimum(0.25 + 0.17 * counts, 3.2))
    needs *= max(1.0, 6.0 / needs.sum())
    return np.concatenate([[0.0], np.cumsum(needs)])


def _placed(
    nodes: pd.DataFrame,
    at: NDArray[np.int64],
    ends: Vector,
    heights: dict[tuple[str, int], float],
    size: Vector,
) -> list[tuple[float, float]]:
    """Spread the nodes of a cell: a's own to the left, shared in the middle, b's to the right."""
    y = np.array(
        [heights[kind, layer] for kind, layer in zip(nodes["kind"], nodes["layer"], strict=True)]
    )
    side = nodes["where"].map({"a": 0, "both": 1, "b": 2}).to_numpy()
    x, room = (ends[at] + ends[at + 1]) / 2, ends[at + 1] - ends[at]
    for cell in {(int(a), float(b)) for a, b in zip(at, y, strict=True)}:
        rows = np.flatnonzero((at == cell[0]) & (y == cell[1]))
        rows = rows[np.lexsort((-size[rows], side[rows]))]
        if len(rows) > 1:
            across = min(float(room[rows[0]]) - 0.2, 0.3 * (len(rows) - 1))
            x[rows] += np.linspace(-across / 2, across / 2, len(rows))
    return list(zip(x.tolist(), y.tolist(), strict=True))


def _draw_edges(
    axes: Axes, edges: pd.DataFrame, place: dict[str, tuple[float, float]], limit: int
) -> int:
    from matplotlib.collections import PathCollection
    from matplotlib.colors import to_rgba
    from matplotlib.path import Path as Curve

    known = edges[edges["source"].isin(place) & edges["target"].isin(place)]
    size = known[["influence_a", "influence_b"]].max(axis=1)
    known = known.loc[size.sort_values(ascending=False, kind="stable").index[:limit]]
    if known.empty:
        return 0
    strength = known[["influence_a", "influence_b"]].max(axis=1).to_numpy(np.float64)
    strength = np.sqrt(strength / max(float(strength.max()), 1e-12))
    codes = [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
    curves, colours = [], []
    for source, target, where, strong in zip(
        known["source"][::-1], known["target"][::-1], known["where"][::-1], strength[::-1],
        strict=True,
    ):  # fmt: skip
        (x0, y0), (x1, y1) = place[source], place[target]
        lift = 0.42 * (y1 - y0)
        curves.append(Curve([(x0, y0), (x0, y0 + lift), (x1, y1 - lift), (x1, y1)], codes))
        colours.append(to_rgba(_COLOURS[where], 0.10 + 0.5 * float(strong)))
    axes.add_collection(
        PathCollection(
            curves,
            facecolors="none",
            edgecolors=colours,
            linewidths=(0.3 + 2.2 * strength[::-1]).tolist(),
            capstyle="round",
            zorder=1,
        )
    )
    return len(known)


def _draw_nodes(
    axes: Axes, nodes: pd.DataFrame, place: dict[str, tuple[float, float]], size: Vector
) -> list[int]:
    """Draw the nodes; the rows of those that get a number."""
    inner = nodes["kind"].isin(["feature", "error"]).to_numpy()
    peak = max(float(size[inner].max(initial=0.0)), 1e-12)
    area = np.where(inner, 10 + 170 * size / peak, 45.0)
    points = np.array([place[key] for key in nodes["key"]]).reshape(-1, 2)
    for kind, mark in _MARKS.items():
        for where, colour in _COLOURS.items():
            rows = np.flatnonzero((nodes["kind"] == kind) & (nodes["where"] == where))
            if len(rows):
                axes.scatter(points[rows, 0], points[rows, 1], s=area[rows], marker=mark,
                             c=colour if kind != "error" else "white", alpha=0.92,
                             edgecolors=colour if kind == "error" else "white",
                             linewidths=1.0 if kind == "error" else 0.6, zorder=3)  # fmt: skip
    for row in np.flatnonzero((nodes["kind"] == "logit").to_numpy()):
        x, y = points[row]
        name = named(str(nodes["token"].iloc[row]).strip() or "␣", 12)
        colour = _COLOURS[nodes["where"].iloc[row]]
        axes.text(x, y + 0.42, name, fontsize=6.5, ha="center", color=colour, rotation=30)
    features = np.flatnonzero((nodes["kind"] == "feature").to_numpy())
    change = nodes["change"].abs().to_numpy()
    numbered: list[int] = features[np.argsort(-change[features], kind="stable")[:18]].tolist()
    for number, place_of in enumerate(numbered, start=1):
        x, y = points[place_of]
        axes.annotate(str(number), (x, y), (0, 5), textcoords="offset points", fontsize=6.5,
                      ha="center", fontweight="bold", color=INK, zorder=5)  # fmt: skip
    return numbered


def _draw_texts(
    figure: Figure, comparison: GraphComparison, width: float, height: float, n: int, edges: int
) -> None:
    x = 0.12 / width
    figure.text(x, 1 - 0.12 / height, "a", fontsize=11, fontweight="bold", va="top", color=ONLY_A)
    figure.text(x, 1 - 0.34 / height, "b", fontsize=11, fontweight="bold", va="top", color=ONLY_B)
    for k, graph in enumerate((comparison.a, comparison.b)):
        text = named(f"“{graph['prompt']}”  ({graph['slug'] or graph['graph_id']})", 110)
        figure.text(
            0.34 / width, 1 - (0.12 + 0.22 * k) / height, text, fontsize=10, va="top", color=INK
        )
    drawn_of = f"{n:,} of {len(comparison.nodes):,} nodes, {edges:,} of {len(comparison.edges):,}"
    figure.text(
        x,
        1 - 0.6 / height,
        f"{drawn_of} edges drawn. Grey: in both. Blue: only a. Orange: only b. Larger and wider: "
        "more influence in either.",
        fontsize=8,
        va="top",
        color=SOFT,
    )


def _draw_list(
    figure: Figure,
    comparison: GraphComparison,
    numbered: list[int],
    size: tuple[float, float],
    margins: tuple[float, float],
) -> None:
    (width, height), (panel, head) = size, margins
    shown = _strongest(comparison.nodes, 160) if numbered else comparison.nodes
    x, y = 1 - (panel - 0.2) / width, 1 - (head - 0.1) / height
    figure.text(x, y, "Features that change most", fontsize=9, fontweight="bold", va="top",
                color=INK)  # fmt: skip
    figure.text(1 - 0.12 / width, y, "a → b", fontsize=8, ha="right", va="top", color=SOFT)
    for number, row in enumerate(numbered, start=1):
        node = shown.iloc[row]
        at = y - (0.24 + 0.185 * (number - 1)) / height
        if at * height < 0.2:
            break
        label = f" · {node['label']}" if isinstance(node["label"], str) else ""
        text = named(f"{number}  {node['layer']}/{node['index']}{label}", 38)
        figure.text(x, at, text, fontsize=7.5, va="top", color=_COLOURS[node["where"]])
        values = f"{node['influence_a']:.3f} → {node['influence_b']:.3f}"
        figure.text(1 - 0.12 / width, at, values, fontsize=7.5, ha="right", va="top", color=INK)
