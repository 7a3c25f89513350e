"""Pictures of the demonstration, as SVG in the colours of the page."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from circuitbase._text import visible
from circuitbase.picture import draw_figure

if TYPE_CHECKING:
    from tracer.graph import AttributionGraph

__all__ = ["Box", "chain_svg", "graph_svg", "lengths_svg"]

_COLOURS: Final = ("--second", "--accent", "--warm", "--third")
_TEXT: Final = "font-family:var(--sans);fill:var(--ink)"
_SOFT: Final = "font-family:var(--sans);fill:var(--soft)"


def graph_svg(graph: AttributionGraph, title: str) -> str:
    """Figure of one graph."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.svg"
        draw_figure(graph, path, edges=220, nodes=16, width=13.0, title=title)
        return path.read_text("utf-8")


def lengths_svg(shares: Mapping[str, Sequence[float]]) -> str:
    """Bars of the share of influence at each path length, a group a length.

    Parameters
    ----------
    shares
        By name, the shares of lengths 1, 2, …
    """
    names = list(shares)
    longest = max(map(len, shares.values()))
    peak = max(max(values, default=0.0) for values in shares.values()) or 1.0
    left, top, group, height = 52.0, 34.0, 108.0, 190.0
    bar = min(26.0, (group - 26) / max(len(names), 1))
    width = left + group * longest + 10
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        if tick > peak * 1.08:
            break
        y = top + height * (1 - tick / (peak * 1.05))
        parts.append(_line(left, y, width - 10, y, "--line", 1))
        parts.append(_text(left - 8, y + 4, f"{100 * tick:.0f} %", 12, anchor="end", soft=True))
    for length in range(longest):
        x = left + group * length + (group - bar * len(names)) / 2
        for place, name in enumerate(names):
            value = shares[name][length] if length < len(shares[name]) else 0.0
            tall = height * value / (peak * 1.05)
            parts.append(
                f'<rect x="{x + place * bar:.1f}" y="{top + height - tall:.1f}" '
                f'width="{bar - 3:.1f}" height="{tall:.1f}" rx="2" '
                f'style="fill:var({_COLOURS[place % len(_COLOURS)]})"/>'
            )
        told = "1 edge" if length == 0 else f"{length + 1} edges"
        parts.append(_text(left + group * (length + 0.5), top + height + 20, told, 13, soft=True))
    x = left
    for place, name in enumerate(names):
        colour = _COLOURS[place % len(_COLOURS)]
        parts.append(
            f'<rect x="{x:.1f}" y="4" width="12" height="12" rx="2" style="fill:var({colour})"/>'
        )
        parts.append(_text(x + 18, 14.5, name, 13, anchor="start"))
        x += 42 + 7.4 * len(name)
    return _svg(max(width, x), top + height + 32, parts)


@dataclass(frozen=True)
class Box:
    """One stop of a chain: a title, and lines below it."""

    title: str
    lines: Sequence[str] = ()


def chain_svg(boxes: Sequence[Box], edges: Mapping[tuple[int, int], float]) -> str:
    """Boxes from left to right, and arrows as strong as the share that they carry.

    Parameters
    ----------
    boxes
        The stops.
    edges
        Share in [0, 1] by (source, target), places of boxes.
    """
    wide, gap, edge = 176.0, 92.0, 8.0
    tall = [48.0 + 19.0 * len(box.lines) for box in boxes]
    jumps = max((t - s for s, t in edges), default=1)
    above = 34.0 + (54.0 * (jumps - 1) if jumps > 1 else 0.0)
    middle = above + max(tall) / 2
    width = edge * 2 + len(boxes) * wide + (len(boxes) - 1) * gap
    parts = []
    for (source, target), share in sorted(edges.items(), key=lambda item: item[1]):
        parts += _arrow(source, target, share, wide, gap, edge, middle, tall)
    for place, box in enumerate(boxes):
        x, y = edge + place * (wide + gap), middle - tall[place] / 2
        ends = place in (0, len(boxes) - 1)
        colour = "--accent" if ends else "--third"
        parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide}" height="{tall[place]:.1f}" rx="10" '
            f'style="fill:var(--raised);stroke:var({colour});stroke-width:1.6"/>'
        )
        parts.append(_text(x + wide / 2, y + 30, _cut(box.title, 21), 15, bold=True))
        for number, line in enumerate(box.lines):
            at = y + 51 + 19 * number
            parts.append(_text(x + wide / 2, at, _cut(line, 27), 11.5, soft=True))
    return _svg(width, middle + max(tall) / 2 + 10, parts)


def _arrow(
    source: int,
    target: int,
    share: float,
    wide: float,
    gap: float,
    edge: float,
    middle: float,
    tall: Sequence[float],
) -> list[str]:
    stroke = 1.0 + 11.0 * share
    told = f"{100 * share:.0f} %"
    style = f"fill:none;stroke:var(--second);stroke-opacity:.55;stroke-width:{stroke:.2f}"
    x1 = edge + source * (wide + gap) + wide
    x2 = edge + target * (wide + gap)
    if target == source + 1:
        head = _head(x2 - 1, middle, 0, stroke)
        path = f'<path d="M{x1:.1f} {middle:.1f}H{x2 - 7:.1f}" style="{style}"/>'
        label = _text((x1 + x2) / 2, middle - 9 - stroke / 2, told, 13, bold=True)
        return [path, head, label]
    # Over the boxes between: from the top of one to the top of the other.
    x1, x2 = x1 - wide / 2, x2 + wide / 2
    y1, y2 = middle - tall[source] / 2, middle - tall[target] / 2
    high = middle - max(tall) / 2 - 26 - 46 * (target - source - 1)
    path = (
        f'<path d="M{x1:.1f} {y1:.1f}C{x1 + 40:.1f} {high:.1f} {x2 - 40:.1f} {high:.1f} '
        f'{x2:.1f} {y2 - 7:.1f}" style="{style}"/>'
    )
    rise = (y1 + y2) / 8 + 6 * high / 8
    label = _text((x1 + x2) / 2, rise - 7 - stroke / 2, told, 13, bold=True)
    return [path, _head(x2, y2 - 1, 90, stroke), label]


def _head(x: float, y: float, turn: float, stroke: float) -> str:
    size = 5.0 + stroke * 0.55
    return (
        f'<path d="M0 0L{-1.7 * size:.1f} {-size:.1f}V{size:.1f}Z" '
        f'transform="translate({x:.1f} {y:.1f}) rotate({turn})" style="fill:var(--second)"/>'
    )


def _svg(width: float, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}">{"".join(parts)}</svg>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'style="stroke:var({colour});stroke-width:{width}"/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    size: float,
    *,
    anchor: str = "middle",
    bold: bool = False,
    soft: bool = False,
) -> str:
    weight = ";font-weight:600" if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
        f'style="font-size:{size}px;{_SOFT if soft else _TEXT}{weight}">'
        f"{html.escape(visible(text))}</text>"
    )


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"
