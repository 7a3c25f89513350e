"""Pages about a comparison: of two graphs, or of two prompt sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

import queries
from circuitbase import __version__
from circuitbase.page import Page
from circuitbase.reports.diff_picture import diff_figure
from circuitbase.reports.drawing import svg_of
from circuitbase.reports.set_pictures import differences_figure, scatter_figure
from circuitbase.reports.similarity_part import add_similarity
from queries.comparing_graphs import GraphComparison
from queries.comparing_sets import SetComparison

if TYPE_CHECKING:
    from graphstore import Store

__all__ = ["add_cypher", "footer", "graph_comparison_page", "set_comparison_page"]

_NODES: Final = (
    *("kind", "layer", "index", "label", "token", "position_a", "position_b", "where"),
    *("influence_a", "influence_b", "change"),
)
_EDGES: Final = (
    *("source", "target", "where", "weight_a", "weight_b", "share_a", "share_b"),
    *("influence_a", "influence_b", "change"),
)
_TESTED: Final = (
    *("feature", "source", "target", "label", "graphs_a", "graphs_b", "presence", "p_presence"),
    *("q_presence", "strength", "p_strength", "q_strength"),
)
_NAMES: Final = {
    "where": "in",
    "presence": "share, b − a",
    "strength": "mean strength, b − a",
    "graphs_a": "graphs of a",
    "graphs_b": "graphs of b",
    "p_presence": "p presence",
    "q_presence": "q presence",
    "change": "b − a",
    "p_strength": "p strength",
    "q_strength": "q strength",
    "influence_a": "influence in a",
    "influence_b": "influence in b",
}
_ROWS: Final = 30


def graph_comparison_page(comparison: GraphComparison) -> Page:
    """Page about two graphs.

    Parameters
    ----------
    comparison
        As ``queries.compare`` gives it.
    """
    a, b = comparison.a, comparison.b
    names = [str(graph["slug"] or graph["graph_id"]) for graph in (a, b)]
    page = Page(f"{names[0]} and {names[1]}", f"a: “{a['prompt']}”. b: “{b['prompt']}”.")
    summary = comparison.summary
    features = summary[summary["what"] == "feature"].to_dict("records")[0]
    page.section("What they share", _how(comparison))
    page.facts(
        {
            "features in both": int(features["both"]),
            "only in a": int(features["a"]),
            "only in b": int(features["b"]),
            "Jaccard of features": float(features["jaccard"]),
            "a's influence in shared features": f"{features['share_a']:.0%}",
            "b's influence in shared features": f"{features['share_b']:.0%}",
        }
    )
    page.table(
        summary[summary[["both", "a", "b"]].sum(axis=1) > 0],
        "Jaccard: in both over in either. Weighted: Σmin over Σmax of influence. The last two: "
        "which part of the influence of a and of b shared ones have.",
        names={
            "what": "",
            "a": "only a",
            "b": "only b",
            "jaccard": "Jaccard",
            "share_a": "of a's influence",
            "share_b": "of b's influence",
        },
    )
    page.section("One over the other")
    page.figure(svg_of(diff_figure(comparison)), "Circles: features. Diamonds: errors. Squares: "
                "tokens (bottom) and predicted tokens (top).")  # fmt: skip
    page.section("Nodes", "By change of influence on the predicted tokens, b minus a.")
    columns = [name for name in _NODES if comparison.positions == "align" or "pos" not in name]
    page.table(comparison.nodes, columns=columns, names=_NAMES, limit=_ROWS)
    page.section("Edges", "By change of the influence that runs over them, b minus a.")
    page.table(comparison.edges, columns=list(_EDGES), names=_NAMES, limit=_ROWS)
    page.section("How it was asked", "Each of both graphs; what is shared is worked out from that.")
    for side, graph in (("a", a), ("b", b)):
        for name in ("graph_nodes", "graph_edges"):
            add_cypher(page, name, {"graph_id": graph["graph_id"]}, f"{name}, {side}")
    page.footer(footer())
    return page


def set_comparison_page(store: Store, comparison: SetComparison) -> Page:
    """Page about two sets.

    Parameters
    ----------
    store
        The store, which is asked for similarity.
    comparison
        As ``queries.compare`` gives it.
    """
    n_a, n_b = comparison.n_graphs
    page = Page(
        f"{comparison.a} and {comparison.b}",
        f"Which features and pairs of features are more common, or stronger, in one of two sets of "
        f"prompts: a, {comparison.a} ({n_a} graphs), and b, {comparison.b} ({n_b} graphs).",
    )
    page.section("What was found", comparison.method)
    of_features, of_pairs = comparison.summary.to_dict("records")
    page.facts(
        {
            "features tested": of_features["tested"],
            "of another presence, q < 0.05": of_features["presence"],
            "of another strength, q < 0.05": of_features["strength"],
            "pairs tested": of_pairs["tested"],
            "pairs of another presence": of_pairs["presence"],
            "pairs of another strength": of_pairs["strength"],
        }
    )
    page.aside("**Before believing it.** " + "\n\n".join(comparison.limits))
    page.section("Presence")
    page.figure(svg_of(scatter_figure(comparison)), "Coloured where q < 0.05. Counts are few "
                "numbers, so points are moved a little to the side.")  # fmt: skip
    page.figure(
        svg_of(differences_figure(comparison)),
        f"Difference of shares with its {comparison.settings.confidence:.0%} interval.",
    )
    page.section(
        "Features",
        "Smallest p of presence first; in bold where a q is below 0.05. Differences are b − a with "
        "their intervals.",
    )
    _tested(page, comparison.features)
    page.section("Pairs of features", "An edge from the first to the second, positions dropped.")
    _tested(page, comparison.edges)
    ids = comparison.graphs["graph_id"].tolist()
    where = dict(zip(ids, comparison.graphs["where"], strict=True))
    names = {"a": comparison.a, "b": comparison.b}
    page.section("How alike the graphs are")
    add_similarity(page, store, ids, {i: names[side] for i, side in where.items()}, "set")
    page.section("How it was asked")
    least = comparison.settings.min_graphs
    add_cypher(page, "features_by_graph", {"graph_ids": ids, "min_graphs": 1})
    add_cypher(page, "edges_by_graph", {"min_graphs": least}, statements=["pairs"])
    add_cypher(page, "graph_details", {"graph_ids": ids})
    page.footer(footer())
    return page


def add_cypher(
    page: Page,
    name: str,
    parameters: Mapping[str, Any],
    title: str | None = None,
    statements: Sequence[str] = (),
) -> None:
    """Add a query of the library, folded: those of its statements that were asked.

    The page cuts long lists among the parameters, and says how long they are.
    """
    query = queries.describe(name)
    flags = {"flags": "for each graph of the store, by its number, whether it counts"}
    for statement, text in query.statements.items():
        if statements and statement not in statements:
            continue
        part = "" if statement == name else f" ({statement})"
        given = {key: value for key, value in {**flags, **parameters}.items() if f"${key}" in text}
        page.cypher(text, given, title=f"{title or name}{part}", folded=True)


def footer() -> str:
    """Last line of a page."""
    return f"Made by circuitbase {__version__}. All figures are worked out from the stored graphs."


def _how(comparison: GraphComparison) -> str:
    if comparison.positions == "drop":
        return "Positions are dropped: a feature is one wherever it acts."
    return (
        "Positions are aligned: runs of the same tokens correspond, and replaced tokens between "
        "them from the right."
    )


def _tested(page: Page, items: pd.DataFrame) -> None:
    shown = items.head(_ROWS)
    made = shown.assign(
        presence=_interval(shown, "difference", "low", "high"),
        strength=_interval(shown, "change", "change_low", "change_high"),
    )
    if "feature_id" in made:
        made["feature"] = made["layer"].astype(str) + "/" + made["index"].astype(str)
        if not made["label"].notna().any():
            made = made.drop(columns="label")
    else:
        for name in ("source", "target"):
            made[name] = [_short(feature) for feature in made[name]]
    page.table(
        made,
        f"{len(items):,} were tested." if len(items) > _ROWS else "",
        columns=list(_TESTED),
        names=_NAMES,
        strong=lambda row: min(_known(row["q_presence"]), _known(row["q_strength"])) < 0.05,
        empty="Nothing was tested.",
    )


def _short(feature_id: str) -> str:
    """Layer and index of a feature; its transcoder is the same in the whole page."""
    return "/".join(feature_id.rsplit("/", 2)[1:])


def _known(q: float | None) -> float:
    return 1.0 if q is None else q


def _interval(frame: pd.DataFrame, value: str, low: str, high: str) -> list[str]:
    """Values with their intervals, on one line (the blanks do not break)."""
    columns = (frame[name].tolist() for name in (value, low, high))
    return [
        f"{_signed(middle)}\u00a0({_signed(least)},\u00a0{_signed(most)})"
        for middle, least, most in zip(*columns, strict=True)
    ]


def _signed(value: float) -> str:
    if abs(value) < 1e-12:
        return "0"
    return (f"{value:+.2f}" if abs(value) >= 0.01 else f"{value:+.1e}").replace("-", "−")
