"""Figure of an attribution graph as SVG or PNG, drawn by matplotlib without pyplot."""

from __future__ import annotations

import os
import tempfile
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.cells import cell_len

from circuitbase._shared import (
    Rows,
    Vector,
    figures,
    fit,
    shortened,
    strongest_edges,
    strongest_nodes,
    token_of,
    tokens_of,
    visible,
)
from tracer.errors import CircuitError, FormatError
from tracer.graph import AttributionGraph, Rule, Scores
from tracer.influence import Flow
from tracer.scores import all_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ENDINGS", "draw_figure", "figure"]

ENDINGS: Final = (".svg", ".png")

# Blue and red differ for colour-blind readers too; outlines are Okabe and Ito's.
_POSITIVE: Final = "#2c6fb3"
_NEGATIVE: Final = "#d1495b"
_FEATURES: Final = ("#e4dff0", "#9e8fc9", "#5b3d99", "#2f0f5d")
_ERROR: Final = "#8f8f8f"
_EMBEDDING: Final = "#0f7b6c"
_LOGIT: Final = "#1f2937"
_PITCH: Final = 0.175  # inches a line of the panel
_SUPERNODES: Final = 8  # at most this many are listed
_NUMBERED: Final = 80.0  # square points: the least node with room for a number
_OUTLINES: Final = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#cc79a7", "#d55e00", "#0072b2")
_FALLBACK_FONTS: Final = (
    "Noto Sans CJK JP",
    "Noto Sans CJK SC",
    "Noto Sans Arabic",
    "Noto Sans Hebrew",
    "Noto Sans Devanagari",
    "Noto Sans Thai",
    "WenQuanYi Zen Hei",
    "Arial Unicode MS",
    "Hiragino Sans",
    "Microsoft YaHei",
    "Noto Sans Symbols",
    "Noto Sans Symbols 2",
)


def draw_figure(
    graph: AttributionGraph,
    path: str | os.PathLike[str],
    *,
    edges: int = 300,
    nodes: int = 20,
    width: float = 14.0,
    title: str | None = None,
    dpi: int = 160,
) -> None:
    """Write a figure of a graph to an ``.svg`` or ``.png`` file.

    The file is replaced whole or not at all; an SVG of the same graph is the same, byte for byte.

    Parameters
    ----------
    graph
        The graph, best a pruned one.
    path
        Where to write; its ending chooses the format.
    edges
        How many of the strongest edges to draw; all nodes are drawn.
    nodes
        How many of the strongest features to number and list beside the picture.
    width
        Width in inches; the height follows from the number of layers.
    title
        Text on top; the prompt, unless given.
    dpi
        Dots per inch of a PNG.

    Raises
    ------
    FormatError
        If the ending is neither, or the file cannot be written.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise FormatError(
            f"{path}: no picture is made for the ending {ending!r}",
            f"Use {' or '.join(ENDINGS)}",
        )
    with _settings():
        made = figure(graph, edges=edges, nodes=nodes, width=width, title=title)
        # No dates or versions: the same graph gives the same file.
        metadata = (
            {"Date": None, "Creator": "circuitbase"} if ending == ".svg" else {"Software": None}
        )
        try:
            with tempfile.NamedTemporaryFile(
                dir=path.parent, prefix=f".{path.name}.", suffix=ending, delete=False
            ) as file:
                temporary = Path(file.name)
                try:
                    made.savefig(file, format=ending[1:], dpi=dpi, metadata=metadata)
                    file.close()
                    temporary.chmod(0o666 & ~_umask())
                    temporary.replace(path)
                finally:
                    temporary.unlink(missing_ok=True)
        except OSError as error:
            raise FormatError(
                f"{path}: {error.strerror or error}",
                "Choose a folder that exists and can be written",
            ) from error


def figure(
    graph: AttributionGraph,
    *,
    edges: int = 300,
    nodes: int = 20,
    width: float = 14.0,
    title: str | None = None,
) -> Figure:
    """Figure of a graph, as a matplotlib object (no pyplot state is touched).

    Parameters are those of :func:`draw_figure`.

    Returns
    -------
    matplotlib.figure.Figure
    """
    from matplotlib.figure import Figure

    flow = Flow(graph)
    with _settings():
        heights, rows = _row_heights(graph)
        panel, left, head = 4.3, 0.55, 0.85  # inches
        tall = min(max(5.0, head + 0.5 + 0.27 * rows[-1][0]), 24.0)  # without the tokens
        strongest = strongest_nodes(graph, np.where(graph.is_feature, flow.influence, 0.0), nodes)
        numbered = _listable(graph, strongest, tall)
        sizes = _sizes(graph, flow.influence, numbered)
        layout = _Layout.of(graph, sizes, heights, rows, width - left - panel)
        bottom = 0.95 if layout.slanted else 0.45
        height = tall + bottom
        made = Figure(figsize=(width, height), facecolor="white")
        axes = made.add_axes(
            (
                left / width,
                bottom / height,
                1 - (left + panel) / width,
                1 - (bottom + head) / height,
            )
        )
        drawn = strongest_edges(graph, edges, flow=flow)
        _draw_axes(axes, layout)
        _draw_edges(axes, graph, layout, drawn)
        _draw_nodes(axes, graph, flow, layout, sizes, numbered)
        _draw_targets(axes, graph, layout)
        _draw_title(made, graph, width, height, title, len(drawn[0]))
        side = made.add_axes(
            (1 - (panel - 0.15) / width, 0.0, (panel - 0.25) / width, 1 - 0.2 / height)
        )
        _draw_panel(side, graph, flow, numbered, height - 0.2)
    return made


class _Layout:
    """Where each node is drawn, in inches along x and in rows of layers along y."""

    def __init__(
        self, x: Vector, y: Vector, ends: Vector, rows: list[tuple[float, str]], tokens: list[str]
    ) -> None:
        self.x = x
        self.y = y
        self.ends = ends  # left and right ends of the columns, shape (positions + 1,)
        self.rows = rows
        self.tokens = tokens

    @classmethod
    def of(
        cls,
        graph: AttributionGraph,
        sizes: Vector,
        heights: Mapping[tuple[bool, int], float],
        rows: list[tuple[float, str]],
        width: float,
    ) -> _Layout:
        """Lay out nodes of these areas (square points) in this many inches."""
        layer = graph.nodes["layer"].to_numpy()
        position = graph.nodes["position"].to_numpy()
        tokens = tokens_of(graph)
        y = np.array(
            [heights[bool(top), int(at)] for top, at in zip(graph.is_logit, layer, strict=True)],
            dtype=np.float64,
        )
        outlined = sizes.copy()
        for supernode in graph.supernodes:
            members = list(supernode.members)
            outlined[members] = _outline(sizes[members]) * 1.2
        across = 2 * np.sqrt(outlined / np.pi) / 72 + 0.03  # of each marker, with a gap
        cells: dict[tuple[int, float], list[int]] = {}
        for row in np.lexsort((np.arange(len(y)), -sizes)):
            if not graph.is_logit[row]:
                cells.setdefault((int(position[row]), float(y[row])), []).append(int(row))
        large = sizes >= _NUMBERED
        ends = _column_ends(cells, np.where(large, across, across / 3), len(tokens), width)
        x = np.zeros(len(y))
        for (at, height), members in cells.items():
            room = float(ends[at + 1] - ends[at]) - 0.06
            places, lifts = _spread(across[members], large[members], room)
            x[members] = (ends[at] + ends[at + 1]) / 2 + places
            y[members] = height + lifts
        _place_targets(graph, x, ends)
        return cls(x, y, ends, rows, tokens)

    @property
    def top(self) -> float:
        """Height of the logits' row."""
        return self.rows[-1][0]

    @property
    def slanted(self) -> bool:
        """Whether a token is wider than its column (0.085 inches a letter of its font)."""
        widths = np.diff(self.ends)
        return any(
            cell_len(token) * 0.085 > width
            for token, width in zip(self.tokens, widths, strict=True)
        )


def _column_ends(
    cells: Mapping[tuple[int, float], Sequence[int]], across: Vector, n: int, width: float
) -> Vector:
    """Give every column what its fullest cell needs, within limits, and share out the rest."""
    least = min(0.34, width / max(n, 1))
    needs = np.full(n, least)
    for (at, _), members in cells.items():
        needs[at] = max(needs[at], min(float(across[members].sum()) + 0.15, 2.4))
    extra, room = needs - least, width - least * n
    needs = least + extra * min(1.0, room / max(float(extra.sum()), 1e-9))
    needs += max(width - float(needs.sum()), 0.0) / max(n, 1)
    return np.concatenate([[0.0], np.cumsum(needs)])


def _spread(across: Vector, large: NDArray[np.bool_], room: float) -> tuple[Vector, Vector]:
    """Offsets in x and y of the nodes of a cell: the first in the middle, the rest outwards.

    In a cell too full for one line, the small nodes are staggered over two or three.
    """
    n = len(across)
    lines = int(np.clip(np.ceil(across.sum() / max(room, 1e-9)), 1, min(n, 3)))
    order = [*range(n - 1 - (n % 2), 0, -2), *range(0, n, 2)]  # …5 3 1 0 2 4…
    arranged = np.where(large, across, across / lines)[order]
    middle = np.cumsum(arranged) - arranged / 2 - arranged.sum() / 2
    middle *= min(1.0, room / max(float(arranged.sum()), 1e-9))
    places, lifts = np.zeros(n), np.zeros(n)
    places[order] = middle
    lifts[order] = 0.27 * ((np.arange(n) % lines) - (lines - 1) / 2)
    return places, np.where(large, 0.0, lifts)


def _place_targets(graph: AttributionGraph, x: Vector, ends: Vector) -> None:
    """Set the logits side by side, so that their names have room.

    The likeliest stands above its column, the others to its left.
    """
    rows = np.flatnonzero(graph.is_logit)
    rows = rows[np.argsort(graph.logit_weights[rows], kind="stable")]
    if not len(rows):
        return
    letters = [max(cell_len(_target_name(graph, int(row))), 4) for row in rows]
    wide = np.array(letters) * 0.088 + 0.1
    wide *= min(1.0, float(ends[-1]) / float(wide.sum()))
    at = int(graph.nodes["position"].iloc[rows[-1]])
    start = (ends[at] + ends[at + 1]) / 2 + wide[-1] / 2 - wide.sum()
    start = min(max(start, 0.0), max(ends[-1] - wide.sum(), 0.0))
    x[rows] = start + np.cumsum(wide) - wide / 2


def _target_name(graph: AttributionGraph, row: int) -> str:
    token = token_of(graph, row)
    return fit(token.strip() or "␣", 12)


def _row_heights(
    graph: AttributionGraph,
) -> tuple[dict[tuple[bool, int], float], list[tuple[float, str]]]:
    """Height of each layer that occurs; a gap where layers have no node."""
    layer = graph.nodes["layer"].to_numpy()
    inner = sorted({int(at) for at in layer[graph.is_feature | graph.is_error]})
    heights: dict[tuple[bool, int], float] = {(False, -1): 0.0}
    rows, height, before = [(0.0, "emb")], 0.0, -1
    for at in inner:
        height += 1.2 if before == -1 and at == 0 else 1.0 if at == before + 1 else 1.6
        heights[False, at] = height
        rows.append((height, str(at)))
        before = at
    height += 1.6
    for at in {int(at) for at in layer[graph.is_logit]}:
        heights[True, at] = height
    rows.append((height, "logit"))
    return heights, rows


def _sizes(graph: AttributionGraph, influence: Vector, numbered: Sequence[int]) -> Vector:
    """Area of each node in square points: by influence, or probability for logits."""
    inner = graph.is_feature | graph.is_error
    peak = max(float(influence[inner].max(initial=0.0)), 1e-12)
    sizes = 9.0 + 190.0 * np.clip(influence / peak, 0.0, 1.0)
    sizes = np.where(graph.is_error, np.minimum(sizes * 0.7, 90.0), sizes)
    embedding = max(float(influence[graph.is_embedding].max(initial=0.0)), 1e-12)
    sizes = np.where(graph.is_embedding, 20.0 + 110.0 * influence / embedding, sizes)
    sizes = np.where(graph.is_logit, 30.0 + 150.0 * graph.logit_weights, sizes)
    sizes[list(numbered)] = np.maximum(sizes[list(numbered)], _NUMBERED)  # room for the number
    return np.asarray(sizes, dtype=np.float64)


def _outline(sizes: Vector) -> Vector:
    """Area of the ring around nodes of a supernode."""
    return sizes * 1.35 + 26


def _draw_axes(axes: Axes, layout: _Layout) -> None:
    axes.set_xlim(layout.ends[0], layout.ends[-1])
    axes.set_ylim(-0.8, layout.top + 1.5)
    for k in range(0, len(layout.tokens), 2):
        axes.axvspan(layout.ends[k], layout.ends[k + 1], color="#f6f6f8", zorder=0, linewidth=0)
    axes.set_yticks([at for at, _ in layout.rows], [name for _, name in layout.rows])
    axes.tick_params(axis="y", length=0, labelsize=7, labelcolor="#555555")
    axes.set_ylabel("layer", fontsize=8, color="#555555", labelpad=2)
    axes.set_xticks([])
    for side in axes.spines.values():
        side.set_visible(False)
    before = -1.0
    for k, token in enumerate(layout.tokens):
        centre = float(layout.ends[k] + layout.ends[k + 1]) / 2
        if centre - before < 0.22:  # inches: in long prompts not every token has room
            continue
        before = centre
        axes.text(
            centre,
            -0.9,
            _drawable(shortened(token, 18)),
            rotation=35 if layout.slanted else 0,
            rotation_mode="anchor",
            ha="right" if layout.slanted else "center",
            va="top",
            fontsize=9,
            color=_EMBEDDING,
            fontweight="bold",
            clip_on=False,
        )


def _draw_edges(
    axes: Axes, graph: AttributionGraph, layout: _Layout, drawn: tuple[Rows, Rows, Vector]
) -> None:
    from matplotlib.collections import PathCollection
    from matplotlib.colors import to_rgba
    from matplotlib.path import Path as Curve

    targets, sources, scores = drawn
    if not len(scores):
        return
    codes = [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4]
    strength = np.sqrt(scores / scores.max())
    curves, colours = [], []
    for t, s, strong in zip(targets[::-1], sources[::-1], strength[::-1], strict=True):
        (x0, y0), (x1, y1) = (layout.x[s], layout.y[s]), (layout.x[t], layout.y[t])
        # Straight up would run through the nodes between: bulge a little, more the longer it is.
        bulge = 0.012 * (y1 - y0) if abs(x1 - x0) < 0.4 else 0.0
        lift = 0.42 * (y1 - y0)
        curves.append(
            Curve([(x0, y0), (x0 + bulge, y0 + lift), (x1 + bulge, y1 - lift), (x1, y1)], codes)
        )
        colour = _POSITIVE if graph.adjacency[t, s] > 0 else _NEGATIVE
        colours.append(to_rgba(colour, 0.1 + 0.6 * float(strong)))
    axes.add_collection(
        PathCollection(
            curves,
            facecolors="none",
            edgecolors=colours,
            linewidths=(0.3 + 2.5 * strength[::-1]).tolist(),
            capstyle="round",
            zorder=1,
        )
    )


def _draw_nodes(
    axes: Axes,
    graph: AttributionGraph,
    flow: Flow,
    layout: _Layout,
    sizes: Vector,
    numbered: Sequence[int],
) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("influence", _FEATURES)
    peak = max(float(flow.influence[graph.is_feature].max(initial=0.0)), 1e-12)
    order = np.argsort(flow.influence, kind="stable")

    def draw(mask: NDArray[np.bool_], marker: str, colour: Any, edge: str, line: float) -> None:
        rows = order[mask[order]]
        axes.scatter(
            layout.x[rows],
            layout.y[rows],
            s=sizes[rows],
            marker=marker,
            c=colour(rows) if callable(colour) else colour,
            edgecolors=edge,
            linewidths=line,
            zorder=3,
            clip_on=False,
        )

    draw(graph.is_error, "D", "#f1f1f1", _ERROR, 0.6)
    draw(
        graph.is_feature,
        "o",
        lambda rows: shades(np.sqrt(flow.influence[rows] / peak)),
        "#4a4458",
        0.4,
    )
    draw(graph.is_embedding, "s", _EMBEDDING, "white", 0.5)
    draw(graph.is_logit, "s", _LOGIT, "white", 0.5)
    for k, supernode in enumerate(graph.supernodes):
        rows = list(supernode.members)
        axes.scatter(
            layout.x[rows],
            layout.y[rows],
            s=_outline(sizes[rows]),
            marker="o",
            facecolors="none",
            edgecolors=_OUTLINES[k % len(_OUTLINES)],
            linewidths=1.8,
            zorder=2.5,
            clip_on=False,
        )
    for number, row in enumerate(numbered, start=1):
        dark = flow.influence[row] / peak > 0.12
        axes.text(
            layout.x[row],
            layout.y[row],
            str(number),
            ha="center",
            va="center_baseline",
            fontsize=5.8,
            fontweight="bold",
            color="white" if dark else "#2f0f5d",
            zorder=4,
        )


def _draw_targets(axes: Axes, graph: AttributionGraph, layout: _Layout) -> None:
    for row in np.flatnonzero(graph.is_logit):
        probability = f"{graph.logit_weights[row]:.0%}"
        for lift, text in ((1.25, _target_name(graph, int(row))), (0.65, probability)):
            axes.text(
                layout.x[row],
                layout.top + lift,
                _drawable(text),
                ha="center",
                va="baseline",
                fontsize=8,
                color=_LOGIT,
                fontweight="bold",
                clip_on=False,
            )


def _draw_title(
    made: Figure,
    graph: AttributionGraph,
    width: float,
    height: float,
    title: str | None,
    n_drawn: int,
) -> None:
    text = visible(graph.prompt if title is None else title) or graph.slug or graph.graph_id
    made.text(
        0.3 / width,
        1 - 0.16 / height,
        _drawable(shortened(text, int((width - 4.6) * 7.4))),
        fontsize=13,
        fontweight="bold",
        va="top",
        color="#111827",
    )
    known = [visible(name) for name in (graph.slug, graph.model_id, graph.transcoder_id) if name]
    shown = f"the {n_drawn:,} strongest of " if n_drawn < graph.n_edges else ""
    known.append(f"{graph.n_nodes:,} nodes, {shown}{graph.n_edges:,} edges")
    made.text(
        0.3 / width,
        1 - 0.45 / height,
        _drawable(shortened(" · ".join(known), int((width - 4.6) * 11))),
        fontsize=8.5,
        va="top",
        color="#6b7280",
    )


def _draw_panel(
    axes: Axes, graph: AttributionGraph, flow: Flow, numbered: Sequence[int], inches: float
) -> None:
    """Write what the picture cannot say: scores, legend, supernodes, the numbered features."""
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(-inches, 0)
    at = _Pen(axes)
    at.heading("Scores")
    for line in _score_lines(graph):
        at.line(line)
    at.heading("Key")
    at.marker("o", _FEATURES[2], "feature: larger and darker, more influence", "#4a4458")
    at.marker("D", "#f1f1f1", "error (what the transcoder misses)", _ERROR)
    at.marker("s", _EMBEDDING, "token embedding", "white")
    at.marker("s", _LOGIT, "predicted token", "white")
    at.stroke(_POSITIVE, "positive edge: wider, higher score")
    at.stroke(_NEGATIVE, "negative edge")
    if graph.supernodes:
        at.heading("Supernodes")
        for k, supernode in enumerate(graph.supernodes[:_SUPERNODES]):
            text = f"{shortened(visible(supernode.name), 44)} ({len(supernode.members)})"
            at.marker("o", "none", text, _OUTLINES[k % len(_OUTLINES)], 1.8)
        if len(graph.supernodes) > _SUPERNODES:
            at.line(f"… {len(graph.supernodes) - _SUPERNODES} more")
    if numbered:
        at.heading("Strongest features", "influence")
    for number, row in enumerate(numbered, start=1):
        text, label = _described(graph, row)
        at.line(text, number=number, right=f"{flow.influence[row]:.3f}")
        if label:
            at.line(shortened(label, 56), detail=True)


def _listable(graph: AttributionGraph, strongest: Sequence[int], inches: float) -> list[int]:
    """Return as many of the strongest features as there is room to list."""
    groups = min(len(graph.supernodes), _SUPERNODES + 1)
    used = len(_score_lines(graph)) + 6 + groups + 1.85 * (4 if groups else 3)
    made: list[int] = []
    for row in strongest:
        used += 1.86 if _described(graph, row)[1] else 1.0
        if used * _PITCH > inches - 0.3:
            break
        made.append(row)
    return made


def _described(graph: AttributionGraph, row: int) -> tuple[str, str]:
    """Name of a feature node, and its label where that needs a line of its own."""
    node = graph.nodes.iloc[row]
    text = f"layer {node['layer']} · {node['index']} · “{fit(token_of(graph, row), 14)}”"
    label = visible(node["label"] or "")
    if label and len(text) + len(label) < 52:
        return f"{text} · {label}", ""
    return text, label


class _Pen:
    """Writes lines of text down an axes, in inches."""

    def __init__(self, axes: Axes) -> None:
        self.axes = axes
        self.y = 0.0

    def heading(self, text: str, right: str = "") -> None:
        self.y += _PITCH * (0.75 if self.y else 0.0)
        self._text(0.0, text, fontsize=9, fontweight="bold", color="#111827")
        if right:
            self._text(1.0, right, fontsize=7.5, ha="right", color="#6b7280")
        self.y += _PITCH * 1.1

    def line(
        self, text: str, *, number: int | None = None, right: str = "", detail: bool = False
    ) -> None:
        if detail:
            self.y -= _PITCH * 0.14
        if number is not None:
            self._text(
                0.055, str(number), fontsize=7.5, ha="right", fontweight="bold", color=_FEATURES[2]
            )
        indent = 0.075 if number is not None or detail else 0.0
        style = {"style": "italic", "color": "#6b7280"} if detail else {"color": "#1f2937"}
        self._text(indent, text, fontsize=7.5, **style)
        if right:
            self._text(1.0, right, fontsize=7.5, ha="right", color="#1f2937")
        self.y += _PITCH

    def marker(self, marker: str, colour: str, text: str, edge: str, line: float = 0.7) -> None:
        self.axes.scatter(
            [0.03],
            [-self.y - _PITCH * 0.33],
            s=42,
            marker=marker,
            c=colour,
            edgecolors=edge,
            linewidths=line,
            clip_on=False,
        )
        self._text(0.075, text, fontsize=7.5, color="#1f2937")
        self.y += _PITCH

    def stroke(self, colour: str, text: str) -> None:
        self.axes.plot(
            [0.005, 0.055],
            [-self.y - _PITCH * 0.33] * 2,
            color=colour,
            linewidth=2.2,
            alpha=0.8,
        )
        self._text(0.075, text, fontsize=7.5, color="#1f2937")
        self.y += _PITCH

    def _text(self, x: float, text: str, **style: Any) -> None:
        self.axes.text(x, -self.y, _drawable(text), va="top", clip_on=False, **style)


def _score_lines(graph: AttributionGraph) -> list[str]:
    try:
        found: Mapping[Rule, Scores] = all_scores(graph)
    except CircuitError as error:
        return textwrap.wrap(f"none: {error.what}", 62)[:3]
    return [
        f"{rule.replace('_', ' ')}: completeness {figures(s.completeness)}, replacement "
        f"{figures(s.replacement)}, path length {figures(s.mean_path_length, 2)}"
        for rule, s in found.items()
    ]


@contextmanager
def _settings() -> Iterator[None]:
    """Draw with matplotlib's defaults and ours, whatever a user's matplotlibrc says."""
    import matplotlib
    import matplotlib.style

    ours: dict[Any, Any] = {
        "font.family": list(_fonts()[0]),
        "svg.hashsalt": "circuitbase",
        "svg.fonttype": "path",
        "text.parse_math": False,  # a $ in a prompt is a $
        "text.usetex": False,
    }
    with matplotlib.style.context("default"), matplotlib.rc_context(ours):
        yield


@cache
def _fonts() -> tuple[tuple[str, ...], frozenset[int]]:
    """Font families to draw with, and the code points that one of them has."""
    from matplotlib.font_manager import fontManager
    from matplotlib.ft2font import FT2Font

    names = {font.name for font in fontManager.ttflist}
    families = ("DejaVu Sans", *(name for name in _FALLBACK_FONTS if name in names))
    known: set[int] = set()
    for family in families:
        known |= set(FT2Font(fontManager.findfont(family)).get_charmap())
    return families, frozenset(known)


def _drawable(text: str) -> str:
    """Text with escapes for what no font at hand can draw."""
    known = _fonts()[1]
    return "".join(
        sign
        if sign == "\n" or ord(sign) in known
        else f"\\u{ord(sign):04x}"
        if ord(sign) < 0x10000
        else f"\\U{ord(sign):08x}"
        for sign in text
    )


def _umask() -> int:
    """Mask of new files (reading it means setting it)."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
