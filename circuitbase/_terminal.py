"""Picture of an attribution graph in the terminal: a grid of positions and layers, and lists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from rich.cells import cell_len, set_cell_size
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from circuitbase._shared import (
    Rows,
    Vector,
    figures,
    fit,
    strongest_edges,
    strongest_nodes,
    targets_of,
    token_of,
    tokens_of,
    visible,
)
from tracer.errors import CircuitError
from tracer.graph import AttributionGraph
from tracer.influence import Flow
from tracer.scores import all_scores

__all__ = ["draw_terminal"]

# Shade of a cell by its share of all influence, darkest last.
_SHADES: Final = (
    (0.0, "·", "grey50"),
    (0.001, "░", "color(24)"),
    (0.005, "▒", "color(31)"),
    (0.02, "▓", "bold color(38)"),
    (0.05, "█", "bold color(220)"),
)


def draw_terminal(
    graph: AttributionGraph,
    width: int = 100,
    *,
    nodes: int = 12,
    edges: int = 12,
    max_rows: int = 40,
) -> RenderableType:
    """Picture of a graph in the terminal.

    A grid of positions (columns) and layers (rows): each cell has its number of feature nodes and
    a shade for their share of all influence. Scores stand above it, the strongest nodes and edges
    below.

    Parameters
    ----------
    graph
        The graph, best a pruned one.
    width
        Columns of the terminal.
    nodes, edges
        How many of the strongest to list.
    max_rows
        Layers are put together in twos, threes, … until they fit into this many rows.

    Returns
    -------
    rich.console.RenderableType
        Print it with ``rich.print`` or a ``rich.console.Console``.
    """
    width = max(width, 40)
    flow = Flow(graph)
    parts: list[RenderableType] = [_heading(graph), Text(), _scores_table(graph), Text()]
    parts += [*_grid(graph, flow, width, max_rows), Text()]
    lists = [
        table
        for table in (_nodes_table(graph, flow, nodes), _edges_table(graph, flow, edges))
        if table.row_count
    ]
    if width >= 170 and len(lists) == 2:
        beside = Table.grid(padding=(0, 4))
        beside.add_row(*lists)
        parts.append(beside)
    else:
        for table in lists:
            parts += [table, Text()]
    return Group(*parts)


def _heading(graph: AttributionGraph) -> Text:
    counts = [
        f"{int(mask.sum()):,} {name}{'' if mask.sum() == 1 else 's'}"
        for name, mask in (
            ("feature", graph.is_feature),
            ("error", graph.is_error),
            ("embedding", graph.is_embedding),
            ("logit", graph.is_logit),
        )
    ]
    text = Text()
    text.append(visible(graph.slug) or graph.graph_id, style="bold")
    text.append(f"  {graph.graph_id}\n" if graph.slug else "\n", style="dim")
    text.append(f"“{visible(graph.prompt)}”\n", style="italic")
    known = [visible(name) for name in (graph.model_id, graph.transcoder_id) if name]
    text.append(" · ".join(known or ["model and transcoder unknown"]) + "\n", style="dim")
    text.append(f"{graph.n_nodes:,} nodes ({', '.join(counts)}), {graph.n_edges:,} edges")
    targets = targets_of(graph)
    if targets:
        text.append("\npredicts ")
        for k, (token, probability) in enumerate(targets[:5]):
            text.append(", " if k else "")
            text.append(f"“{token}”", style="bold green")
            text.append(f" {probability:.1%}")
        if len(targets) > 5:
            text.append(f", {len(targets) - 5} more", style="dim")
    return text


def _scores_table(graph: AttributionGraph) -> RenderableType:
    try:
        scores = all_scores(graph)
    except CircuitError as error:
        return Text(f"no scores: {error.what}", style="yellow")
    table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
    table.add_column("scores", style="dim")
    for name in ("completeness", "replacement", "mean path length", "lost"):
        table.add_column(name, justify="right")
    for rule, found in scores.items():
        table.add_row(
            rule,
            figures(found.completeness),
            figures(found.replacement),
            figures(found.mean_path_length, 2),
            figures(found.lost),
        )
    return table


def _grid(
    graph: AttributionGraph, flow: Flow, width: int, max_rows: int
) -> Iterator[RenderableType]:
    """Yield the grid of positions and layers, and its legend."""
    place = _Places.of(graph, max_rows)
    total = float(flow.influence.sum()) or 1.0
    share = flow.influence / total
    count = place.sum_over(graph.is_feature.astype(np.float64))
    heat = place.sum_over(np.where(graph.is_feature, share, 0.0))
    errors = place.sum_over(np.where(graph.is_error, share, 0.0)).sum(axis=1)
    embeddings = np.bincount(
        graph.nodes["position"].to_numpy(),
        np.where(graph.is_embedding, share, 0.0),
        minlength=place.n_positions,
    )
    at_position = heat.sum(axis=0) + embeddings
    label_width = max([5, *(len(name) for name in place.names)])
    bars = 8 if width >= 100 else 0
    margin = label_width + 18 + bars
    columns, cell = _columns(at_position, width - margin)

    def line(name: str, cells: Sequence[Text], *ends: Text) -> Text:
        row = Text(f"{name:>{label_width}} ", style="dim", no_wrap=True, overflow="crop")
        row = Text.assemble(row, " ")
        for k, column in enumerate(columns):
            if k and column != columns[k - 1] + 1:
                row.append("⋮ ", style="dim")
            row.append_text(cells[column])
        for end in ends:
            row.append_text(end)
        row.no_wrap = True
        return row

    def padded(text: str, style: str = "") -> Text:
        return Text(set_cell_size(f"{text:>{cell - 1}}", cell - 1) + " ", style=style)

    def bar(value: float) -> Text:
        drawn = _bar(value / max(peak, 1e-12), bars)
        return Text(f" {value:8.1%} ") + Text(drawn, style="color(38)")

    peak = float(max([*heat.sum(axis=1), embeddings.sum()]))
    blank = [padded("")] * place.n_positions
    yield line("layer", blank, Text(f" influence{'':{bars}}  error", style="dim"))
    for row in reversed(range(len(place.names))):
        cells = [
            _shaded(int(n), float(h), cell) for n, h in zip(count[row], heat[row], strict=True)
        ]
        error = Text(f" {errors[row]:6.1%}" if errors[row] else "", style="dim")
        yield line(place.names[row], cells, bar(float(heat[row].sum())), error)
    cells = [_shaded(None, float(h), cell) for h in embeddings]
    yield line("token", cells, bar(float(embeddings.sum())))
    tokens = [
        Text(" " * (cell - 1 - cell_len(token)) + token + " ", style="bold")
        for token in (fit(token, cell - 1) for token in place.tokens)
    ]
    yield line("", tokens)
    left_out = place.n_positions - len(columns)
    if left_out:
        rest = 1 - float(at_position[columns].sum()) / (float(at_position.sum()) or 1.0)
        yield Text(
            f"{'':>{label_width}}  {left_out} of {place.n_positions} positions are left out: they "
            f"hold {rest:.1%} of the influence. A wider terminal shows more.",
            style="dim",
        )
    legend = Text(f"{'':>{label_width}}  ", style="dim")
    legend.append("number of features, shaded by their share of all influence: ", style="dim")
    for (least, sign, style), (most, _, _) in zip(
        _SHADES[1:], [*_SHADES[2:], (1.0, "", "")], strict=True
    ):
        legend.append(sign, style=style)
        legend.append(f" {least:.1%}–{most:.1%}  " if most < 1 else f" over {least:.0%}")
    yield legend


def _nodes_table(graph: AttributionGraph, flow: Flow, limit: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", title_justify="left")
    # Of all kinds: the grid and the figure tell of features.
    for name, right in (("strongest nodes, all kinds", 0), ("token", 0), ("influence", 1)):
        table.add_column(name, justify="right" if right else "left", overflow="fold")
    labels = graph.nodes["label"].to_list()
    rows = strongest_nodes(graph, flow.influence, limit)
    if any(labels[row] for row in rows):
        table.add_column("label", overflow="fold")
    for row in rows:
        cells = [
            Text(graph.keys[row]),
            Text(f"“{token_of(graph, row)}”", style="green"),
            Text(f"{flow.influence[row]:.4f}"),
        ]
        if len(table.columns) > len(cells):
            cells.append(Text(visible(labels[row] or "")))
        table.add_row(*cells)
    return table


def _edges_table(graph: AttributionGraph, flow: Flow, limit: int) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("strongest edges: from", "to"):
        table.add_column(name, overflow="fold")
    for name in ("weight", "share", "score"):
        table.add_column(name, justify="right")
    targets, sources, scores = strongest_edges(graph, limit, flow=flow)
    for t, s, score in zip(targets, sources, scores, strict=True):
        weight = float(graph.adjacency[t, s])
        table.add_row(
            _named(graph, s),
            _named(graph, t),
            Text(f"{weight:+.3g}", style="blue" if weight > 0 else "red"),
            f"{float(flow.normalised[t, s]):.1%}",
            f"{score:.4f}",
        )
    return table


def _named(graph: AttributionGraph, row: int) -> Text:
    return Text(graph.keys[row]) + Text(f" “{token_of(graph, row)}”", style="green")


def _shaded(count: int | None, heat: float, width: int) -> Text:
    """One cell: how many features, and a shade for their influence."""
    if count == 0:
        return Text(" " * width)
    _, sign, style = next(shade for shade in reversed(_SHADES) if heat >= shade[0])
    number = "" if count is None else f"{count:,}"
    room = max(width - 2 - len(number), 0)
    return Text(f"{' ' * room}{number}{sign} ", style=style)


def _bar(value: float, width: int) -> str:
    eighths = round(min(max(value, 0.0), 1.0) * width * 8)
    return ("█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8]).ljust(width)[:width]


def _columns(influence: Vector, room: int) -> tuple[list[int], int]:
    """Choose the positions to show, and the width of a cell, for this many columns."""
    n = len(influence)
    narrowest, widest = 4, 11
    if n * narrowest <= room:
        return list(range(n)), min(widest, room // max(n, 1))
    # Gaps between the chosen positions cost two columns each, at most one a position.
    fitting = max(room // (narrowest + 2), 1)
    strongest = np.argsort(-influence, kind="stable")[:fitting]
    return sorted(int(p) for p in strongest), narrowest


@dataclass(frozen=True)
class _Places:
    """Rows (layers, or groups of them) and columns (positions) of the nodes."""

    names: list[str]
    row_of: Rows  # of each node; −1 where it has none (embeddings and logits)
    position: Rows
    n_positions: int
    tokens: list[str]

    @classmethod
    def of(cls, graph: AttributionGraph, max_rows: int) -> _Places:
        inner = graph.is_feature | graph.is_error
        layer = graph.nodes["layer"].to_numpy()
        position = graph.nodes["position"].to_numpy()
        first = int(layer[inner].min()) if inner.any() else 0
        last = int(layer[inner].max()) if inner.any() else -1
        step = max(1, -(-(last - first + 1) // max(max_rows, 1)))
        starts = range(first, last + 1, step)
        return cls(
            names=[
                str(start) if step == 1 else f"{start}–{min(start + step - 1, last)}"
                for start in starts
            ],
            row_of=np.where(inner, (layer - first) // step, -1),
            position=position,
            n_positions=max(len(graph.tokens), int(position.max(initial=-1)) + 1),
            tokens=tokens_of(graph),
        )

    def sum_over(self, values: Vector) -> Vector:
        """Sum values of nodes by cell, shape (rows, positions)."""
        made = np.zeros((len(self.names), self.n_positions))
        inner = self.row_of >= 0
        np.add.at(made, (self.row_of[inner], self.position[inner]), values[inner])
        return made
