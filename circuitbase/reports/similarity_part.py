"""The part of a page about how alike graphs are: heat map, map, clusters, template control."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import queries
from circuitbase.page import Page
from circuitbase.reports.drawing import svg_of
from circuitbase.reports.similarity_pictures import control_figure, heat_map, map_figure
from tracer.errors import CircuitWarning, QueryError

if TYPE_CHECKING:
    from graphstore import Store
    from queries.similarity import Similarity

__all__ = ["add_similarity"]

_MOST: Final = 400  # graphs: a heat map of more shows nothing that a page can


def add_similarity(
    page: Page,
    store: Store,
    graphs: Sequence[str],
    groups: Mapping[str, Any] | None = None,
    name: str = "cluster",
) -> None:
    """Add heat maps, a map, clusters, and the template control where templates are known.

    Parameters
    ----------
    page
        The page.
    store
        The store.
    graphs
        Ids of the graphs.
    groups
        Colour of each graph on the map; left out, its cluster.
    name
        What the colours are called.
    """
    if len(graphs) > _MOST:
        step = -(-len(graphs) // _MOST)
        page.aside(f"Of {len(graphs):,} graphs, every {step}th is shown here.")
        graphs = list(graphs)[::step]
    if len(graphs) < 3:
        page.text("Fewer than three graphs have no structure to show.")
        return
    features = queries.similarity_matrix(store, list(graphs))
    found = queries.clusters(features)
    page.figure(svg_of(heat_map(features, found, "Features in common")), _reading(features))
    edges = queries.similarity_matrix(store, list(graphs), "edges", "weighted")
    page.figure(svg_of(heat_map(edges, queries.clusters(edges), "Pairs of features in common")))
    place = dict(zip(found["graph_id"], found["cluster"], strict=True))
    colours = [groups[i] if groups else f"cluster {place[i]}" for i in features.matrix.index]
    page.figure(svg_of(map_figure(features, colours, name, "Features in common")))
    page.heading("Beyond the template")
    _add_control(page, features)


def _reading(similarity: Similarity) -> str:
    return (
        "Graphs in the order of the tree (average linkage); the strips are clusters, as many as "
        "have the best mean silhouette."
    )


def _add_control(page: Page, similarity: Similarity) -> None:
    known = {name for name in ("template", "answer") if similarity.graphs[name].notna().any()}
    baseline: Literal["template", "tokens"]
    baseline = "template" if "template" in known else "tokens"
    content = "answer" if "answer" in known else "target"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CircuitWarning)  # the page says them
            control = queries.template_control(similarity, content=content, baseline=baseline)
    except QueryError as error:
        page.text(f"Likeness cannot be told from that of templates here: {error.what}.")
        return
    how = "have one template" if baseline == "template" else "share half of their tokens"
    what = "answer" if content == "answer" else "likeliest token"
    page.text(
        f"Prompts of one template look alike whatever they mean. The baseline is the mean "
        f"similarity of pairs that {how} and differ in their {what}: {control.baseline:.3f}. "
        f"Intervals are drawn over graphs."
    )
    page.figure(svg_of(control_figure(control)), wide=False)
    page.table(
        control.groups[control.groups["pairs"] > 0],
        names={
            "low": "from",
            "high": "to",
            "excess": "minus baseline",
            "excess_low": "from",
            "excess_high": "to",
            "beyond": "beyond it",
        },
    )
    for text in control.warnings:
        page.aside(text)
