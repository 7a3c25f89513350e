"""Pictures of an attribution graph: in the terminal, and as an SVG or PNG figure.

Positions run along the x axis, layers up the y axis (embeddings at the bottom, logits on top), as
in Circuit Tracing 2025, "Interactive attribution graphs". What is large or dark carries influence
on the logits; an edge is as strong as its score ``Â[t, s]·(I_t + w_t)``, the share of the logits'
weight that flows through it.
"""

from __future__ import annotations

from circuitbase._figure import ENDINGS, draw_figure, figure
from circuitbase._shared import strongest_edges, visible
from circuitbase._terminal import draw_terminal

__all__ = ["ENDINGS", "draw_figure", "draw_terminal", "figure", "strongest_edges", "visible"]
