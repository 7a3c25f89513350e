"""The page about one prompt set: what recurs, the consensus circuit, how alike its graphs are."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import pandas as pd

import queries
from circuitbase.page import Page
from circuitbase.picture import figure
from circuitbase.reports.comparison_page import add_cypher, footer
from circuitbase.reports.drawing import svg_of
from circuitbase.reports.similarity_part import add_similarity
from queries.asking import comparable
from queries.consensus import consensus_circuit
from tracer.errors import QueryError

if TYPE_CHECKING:
    from graphstore import Store

__all__ = ["set_page"]

_ROWS: Final = 25
_READ: Final = 300  # graphs: the consensus circuit reads each of them whole


def set_page(
    store: Store,
    name: str,
    min_share: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
) -> Page:
    """Page about a prompt set.

    Parameters
    ----------
    store
        The store.
    name
        The set.
    min_share
        In which share of the graphs what recurs must be.
    progress
        Called with how many graphs are read, and how many there are.

    Raises
    ------
    NotFoundError
        If no set has the name.
    QueryError
        If it holds no graph, its graphs are of several transcoders, or `min_share` is outside
        [0, 1].
    """
    chosen = comparable(store, "set-report", name)
    features = queries.recurring_features(store, name, min_share=min_share)
    edges = queries.recurring_edges(store, name, min_share=min_share)
    scores = queries.scores(store, prompt_set=name)
    page = Page(f"Prompt set {name}", _lead(store, name, chosen.transcoders))
    page.section("At a glance")
    page.facts(
        {
            "graphs": len(chosen.ids),
            f"features in {min_share:.0%} of them": len(features),
            f"pairs in {min_share:.0%} of them": len(edges),
            "mean replacement score": float(scores["replacement"].mean()),
            "mean completeness": float(scores["completeness"].mean()),
            "mean path length": float(scores["mean_path_length"].mean()),
        }
    )
    prompts = queries.graph_details(store, name).merge(
        scores[["graph_id", "rule", "completeness", "replacement", "mean_path_length"]],
        on="graph_id",
    )
    filled = [c for c in ("template", "family", "answer", "hops") if prompts[c].notna().any()]
    with page.details(f"The {len(prompts):,} prompts"):
        columns = ["prompt", "target", *filled, "features", "replacement", "completeness"]
        page.table(prompts, columns=columns, limit=200)
    page.section("What recurs", f"In at least {min_share:.0%} of the graphs; positions dropped.")
    page.heading("Features")
    labelled = ["label"] if features["label"].notna().any() else []
    shown = features.assign(
        feature=features["layer"].astype(str) + "/" + features["index"].astype(str)
    )
    page.table(
        shown,
        columns=["feature", *labelled, "graphs", "share", "mean_influence"],
        names={"mean_influence": "mean influence"},
        bars=["share", "mean_influence"],
        limit=_ROWS,
    )
    page.heading("Pairs of features")
    short = edges.assign(**{end: edges[end].map(_short) for end in ("source", "target")})
    page.table(
        short,
        columns=["source", "target", "graphs", "share", "mean_weight", "mean_share",
                 "mean_influence", "sign_agreement"],
        names={"mean_weight": "mean weight", "mean_share": "mean share of input",
               "mean_influence": "mean influence", "sign_agreement": "same sign"},
        bars=["share"],
        limit=_ROWS,
    )  # fmt: skip
    _add_circuit(page, store, name, chosen.ids, min_share, progress)
    page.section("How alike the graphs are")
    add_similarity(page, store, chosen.ids)
    page.section("How it was asked")
    least = chosen.at_least("set-report", 2, min_share)
    given = {"graph_ids": chosen.ids, "least": least}
    rules = ["recorded"] if (scores["rule"] != "as_stored").all() else []
    add_cypher(page, "recurring_features", given, statements=["dropped"])
    add_cypher(page, "recurring_edges", given, statements=["set"])
    add_cypher(page, "scores", given, statements=rules)
    add_cypher(page, "graph_details", given)
    add_cypher(page, "features_by_graph", {"graph_ids": chosen.ids, "min_graphs": 1})
    add_cypher(page, "edges_by_graph", {"min_graphs": 2}, statements=["pairs"])
    page.text("The consensus circuit reads each graph whole (`store.read`).")
    page.footer(footer())
    return page


def _lead(store: Store, name: str, transcoders: list[str]) -> str:
    sets = store.sets().set_index("name")
    described = sets.loc[name, "description"] if name in sets.index else None
    told = f"{described}. " if isinstance(described, str) and described else ""
    return f"{told}Features are of {', '.join(transcoders) or 'no transcoder'}."


def _add_circuit(
    page: Page,
    store: Store,
    name: str,
    ids: list[str],
    min_share: float,
    progress: Callable[[int, int], None] | None,
) -> None:
    page.section(
        "Consensus circuit",
        f"What at least {min_share:.0%} of the graphs have, as one graph: each feature where it "
        "mostly acts; error nodes stand for what does not recur of a feature's input.",
    )
    if len(ids) < 2:
        page.text("One graph has no consensus.")
        return
    chosen: str | list[str] = name
    if len(ids) > _READ:
        step = -(-len(ids) // _READ)
        chosen = ids[::step]
        page.aside(f"Of {len(ids):,} graphs, every {step}th was read for it.")
    try:
        circuit = consensus_circuit(store, chosen, min_share, progress=progress)
    except QueryError as error:
        page.text(f"There is none: {error}")
        return
    told = circuit.prompts
    page.facts(
        {
            "features": len(circuit.features),
            "edges": len(circuit.edges),
            "of a prompt's influence, mean": _mean(told, "influence_share"),
            "replacement, rest merged into error": _mean(told, "replacement"),
            "replacement as stored": _mean(told, "replacement_stored"),
        }
    )
    page.figure(svg_of(figure(circuit.graph, title=f"Consensus circuit of {name}")))
    with page.details("How much of each prompt it explains"):
        page.table(
            told.dropna(axis=1, how="all"),
            "Scores when everything else is merged into error, prompt by prompt. It was found in "
            "these graphs: figures on others are lower (queries.coverage).",
            limit=200,
        )


def _mean(frame: pd.DataFrame, column: str) -> float:
    return float(frame[column].mean()) if column in frame else float("nan")


def _short(feature_id: str) -> str:
    return "/".join(feature_id.rsplit("/", 2)[1:])
