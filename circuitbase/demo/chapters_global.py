"""The chapter that sets one prompt against the whole corpus: global weights."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from circuitbase.demo.filling import weigh
from circuitbase.demo.prompts import TWO_HOP
from circuitbase.demo.story import Story

__all__ = ["whole_corpus"]

_INPUTS: Final = 8


def whole_corpus(story: Story) -> None:
    """Tell which inputs of a feature the corpus uses, and what of it the one graph shows."""
    feature = _feature(story)
    if feature is None:
        return
    graphs = list(dict.fromkeys(story.ids[p.id] for p in story.prompts(TWO_HOP)))
    weights_id = weigh(story.store, story.model, story.transcoder, graphs, TWO_HOP)
    tell, label = story.tell, story.labels[feature]
    tell.section(
        "One prompt and the whole corpus",
        "A graph shows what features did to each other in one prompt. A virtual weight is what one "
        "can do to another in any prompt, by the directions that it writes and the other reads; "
        "TWERA weighs that by how they fire together over the whole corpus. Here are the strongest "
        f"inputs of “{label}” (feature {'/'.join(feature.rsplit('/', 2)[1:])}) by TWERA, among the "
        f"features of the {TWO_HOP} graphs:",
    )
    found = story.ask(
        "global_inputs", feature_id=feature, weights_id=weights_id, by="twera", limit=_INPUTS
    )
    tell.table(
        found,
        "Cofiring: tokens of the corpus at which both act. The standard error takes tokens as "
        "independent, so it is the least that it can be.",
        columns=["layer", "index", "label", "weight", "twera", "standard_error_twera", "cofiring"],
        names={"standard_error_twera": "± standard error", "weight": "virtual weight"},
    )
    compared = story.ask(
        "local_against_global", graph_id=story.hero_name, weights_id=weights_id, limit=2_000
    )
    counts = compared["kind"].value_counts()
    here = compared[(compared["target"] == feature) & (compared["kind"] == "typical")]
    story.findings["global"] = {
        "weights_id": weights_id,
        "feature": feature,
        "inputs": found[["feature_id", "twera"]].to_dict("records"),
        "kinds": {str(kind): int(count) for kind, count in counts.items()},
        "typical_here": list(here["source"]),
    }
    text = (
        f"Set beside the graph of `{story.hero.prompt}`: of the strong direct edges between its "
        f"features, **{counts.get('typical', 0)} are strong over the corpus, too**, and "
        f"{counts.get('specific', 0)} are this prompt's own. {counts.get('silent', 0)} more pairs "
        "are strong over the corpus, and silent here."
    )
    tell.text(text)
    named = compared["source_label"].map(_tells) & compared["target_label"].map(_tells)
    typical = compared[(compared["kind"] == "typical") & named]
    tell.table(
        typical.sort_values("local_share", ascending=False, ignore_index=True),
        "Strong here and everywhere, of pairs whose labels say something: the share of the "
        "target's direct inputs in this graph, and of its TWERA over the corpus.",
        columns=["source_label", "target_label", "local_share", "global_share"],
        names={
            "source_label": "from",
            "target_label": "to",
            "local_share": "share here",
            "global_share": "share in the corpus",
        },
        bars=["local_share", "global_share"],
        limit=6,
    )
    tell.aside(
        "Global weights know what features do to each other at one position. What attention moves "
        "between positions, as from the city to the last word, is not in them."
    )


def _tells(label: object) -> bool:
    return isinstance(label, str) and not label.startswith(("mixed", "mostly"))


def _feature(story: Story) -> str | None:
    """Find the most influential feature above layer 0 whose label names what the city lies in."""
    graph = story.hero_graph
    bridge = str(story.hero.metadata.get("bridge", ""))
    above = graph.is_feature & (graph.nodes["layer"].to_numpy() > 0)
    order = sorted(np.flatnonzero(above), key=lambda row: -story.influence[row])
    names = pd.unique(pd.Series([str(graph.feature_ids[row]) for row in order], dtype=object))
    named = [name for name in names if bridge in story.labels.get(name, "")]
    # "Texas cities" says more than "partly about Texas".
    whole = [name for name in named if not story.labels[name].startswith(("partly", "mixed"))]
    return next(iter([*whole, *named]), None)
