"""Chapters that follow one circuit: a path read aloud, and the groups that it runs through."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd

from circuitbase.demo.drawing import Box, chain_svg
from circuitbase.demo.story import Story
from tracer.errors import StoreError

__all__ = ["path_aloud", "supernodes"]

_PATHS: Final = 400  # that are looked through for one whose features all have a telling label


def path_aloud(story: Story) -> None:
    """Read the strongest labelled path from the city to the answer aloud."""
    tell, graph = story.tell, story.hero_graph
    city = str(story.hero.metadata["roles"]["city"])
    source = f"embedding/{story.city_position()}"
    target = graph.node_ids[story.target_row()].removeprefix(f"{graph.graph_id}/")
    answer = story.findings["answer"]
    tell.section(
        f"From {city} to {answer}",
        "The strength of a path is the product of its shares: how much of each node's input comes "
        "from the one before it. Many paths lead to the answer; these are the strongest that begin "
        f"at `{city}`.",
    )
    found = story.ask(
        "strongest_paths", graph_id=story.hero_name, source=source, target=target, limit=_PATHS
    )
    found = found.assign(read=[_aloud(story, path) for path in found["path"]])
    tell.table(found, "", columns=["strength", "length", "read"], limit=6, bars=["strength"])
    chosen = _labelled(story, found)
    story.findings["paths"] = found[["strength", "length"]].to_dict("records")
    if chosen is None:
        return
    path, shares = chosen["path"], chosen["shares"]
    rows = [
        {
            "from": _name(story, before),
            "to": _name(story, after),
            "at token": _token(story, after),
            "layer": int(graph.nodes["layer"].iloc[story.row_of(after)]),
            "share": float(share),
            "why the label": _why(story, after),
        }
        for before, after, share in zip(path, path[1:], shares, strict=False)
    ]
    story.findings["path"] = {
        "nodes": list(path),
        "strength": float(chosen["strength"]),
        "labels": [row["to"] for row in rows[:-1]],
    }
    tell.heading("Read aloud")
    tell.text(
        f"Number {int(chosen['rank'])} of them runs over {len(path) - 2} features, all of which "
        f"have a label that says something:\n\n**{_aloud(story, path)}**\n\nIts strength is "
        f"{float(chosen['strength']):.4f}, edge by edge:"
    )
    tell.table(
        pd.DataFrame(rows),
        "Each edge: the share of the target's input that comes from the source, and the evidence "
        "from which the target's label was computed.",
        bars=["share"],
    )
    _feature_card(story, path)


def _labelled(story: Story, found: pd.DataFrame) -> dict[str, Any] | None:
    """Find the strongest path over two features or more, all of them with telling labels.

    Best one that names what lies between the city and the answer, and visits the last token.
    """
    bridge = str(story.hero.metadata.get("bridge", ""))
    end = story.hero_graph.tokens[-1].strip()
    telling = [
        row
        for row in found.to_dict("records")
        if row["length"] >= 3 and all(_tells(_label(story, node)) for node in row["path"][1:-1])
    ]
    named = [
        row for row in telling if any(bridge in _label(story, node) for node in row["path"][1:-1])
    ]
    moved = [row for row in named if _token(story, row["path"][-2]) == end]
    return next(iter([*moved, *named, *telling]), None)  # type: ignore[return-value]


def _tells(label: str) -> bool:
    return bool(label) and not label.startswith(("mixed", "mostly"))


def _feature_card(story: Story, path: list[str]) -> None:
    """Show where the label of a feature on the path comes from."""
    tell, graph = story.tell, story.hero_graph
    bridge = str(story.hero.metadata.get("bridge", ""))
    inner = [node for node in path[1:-1] if _label(story, node)]
    if not inner:
        return
    node = next((node for node in inner if bridge in _label(story, node)), inner[0])
    row = story.row_of(node)
    feature = str(graph.feature_ids[row])
    story.findings["feature"] = feature
    told: dict[Any, Any] = story.known.loc[feature].to_dict()
    tell.heading(f"Where “{told['label']}” comes from")
    tell.text(
        f"Over the whole corpus, feature {'/'.join(feature.rsplit('/', 2)[1:])} is active at "
        f"{100 * float(told['density']):.2f} % of the tokens, and it promotes "
        f"{', '.join(f'`{token}`' for token in told['promoted'][:4])}. It is called so because "
        f"{str(told['label_source']).removeprefix('computed: ')}."
        if str(told["label_source"]).startswith("computed")
        else f"Its label is from {told['label_source']}."
    )
    found = story.ask("feature_examples", feature_id=feature, limit=6)
    tell.table(
        found,
        "Where it is most active: the token in brackets.",
        columns=["activation", "context", "next"],
        bars=["activation"],
    )


# Groups ------------------------------------------------------------------------------------------


def supernodes(story: Story) -> None:
    """Group features by their labels, and ask how the groups feed each other."""
    tell, graph = story.tell, story.hero_graph
    city = str(story.hero.metadata["roles"]["city"])
    bridge, answer = str(story.hero.metadata.get("bridge", "")), story.findings["answer"]
    at_city = [r for r in _rows_at(story, story.city_position()) if _speaks_of(story, r, bridge)]
    last = len(graph.tokens) - 1
    at_end = [
        r
        for r in _rows_at(story, last)
        if _speaks_of(story, r, bridge) or _speaks_of(story, r, answer) or _says(story, r)
    ]
    at, end = (f"{bridge}, at “{token}”" for token in (city, graph.tokens[-1].strip()))
    groups = {
        city: [int(np.flatnonzero(graph.is_embedding)[story.city_position()])],
        at: at_city,
        end: at_end,
        answer: [story.target_row()],
    }
    if not all(groups.values()) or len(groups) < 4:
        return
    tell.section(
        "The same in groups",
        f"One path is one of many. So the features at `{city}` that speak of {bridge} (by their "
        f"label, or because {bridge} is among the five tokens that they promote most) make one "
        f"group, and those at the last token that speak of {bridge} or {answer}, or that say "
        "some capital, another. The share of a group's input from outside that comes from another "
        "group is what the arrows carry.",
    )
    names = {node.name for node in graph.supernodes}
    for name, members in groups.items():
        if name not in names:
            try:
                story.store.group(
                    story.hero_id, name, [graph.node_ids[r] for r in members], author="demo"
                )
            except StoreError:  # an earlier run made it
                continue
    found = story.ask("supernode_edges", folded=False, graph_id=story.hero_name)
    order = list(groups)
    edges = {
        (order.index(s), order.index(t)): float(share)
        for s, t, share in found[["source", "target", "share"]].itertuples(index=False)
        if s in groups and t in groups and order.index(s) < order.index(t)
    }
    story.findings["groups"] = {
        "sizes": {name: len(members) for name, members in groups.items()},
        "edges": {(order[s], order[t]): share for (s, t), share in edges.items()},
    }
    boxes = [
        Box(name, _lines(story, members) if 0 < place < 3 else ["token" if not place else "answer"])
        for place, (name, members) in enumerate(groups.items())
    ]
    tell.figure(
        chain_svg(boxes, {pair: share for pair, share in edges.items() if share >= 0.01}),
        "Shares of each group's input from outside itself; the rest comes from other tokens, "
        "features and errors.",
        white=False,
    )
    shown = found[found["source"].isin(order) & found["target"].isin(order)]
    tell.table(shown, columns=["source", "target", "share"], bars=["share"])


def _rows_at(story: Story, position: int) -> list[int]:
    graph = story.hero_graph
    here = graph.is_feature & (graph.nodes["position"].to_numpy() == position)
    return [int(row) for row in np.flatnonzero(here)]


def _speaks_of(story: Story, row: int, word: str) -> bool:
    feature = str(story.hero_graph.feature_ids[row])
    return word in story.labels.get(feature, "") or word in story.promoted.get(feature, [])


def _says(story: Story, row: int) -> bool:
    label = story.labels.get(str(story.hero_graph.feature_ids[row]), "")
    return label.startswith("say") and "capital" in label


def _lines(story: Story, members: list[int]) -> list[str]:
    """How many features there are, and the labels of the strongest."""
    graph = story.hero_graph
    influence = story.influence
    strongest = sorted(members, key=lambda row: -influence[row])
    labels: list[str] = []
    for row in strongest:
        label = story.labels.get(str(graph.feature_ids[row]), "")
        if _tells(label) and label not in labels:
            labels.append(label)
    return [f"{len(members)} feature{'s' if len(members) > 1 else ''}", *labels[:3]]


# Names -------------------------------------------------------------------------------------------


def _aloud(story: Story, path: list[str]) -> str:
    return " → ".join(_name(story, node) for node in path)


def _name(story: Story, node: str) -> str:
    graph, row = story.hero_graph, story.row_of(node)
    if graph.is_feature[row]:
        return f"[{_label(story, node) or graph.feature_ids[row]}]"
    if graph.is_embedding[row]:
        return f"“{graph.tokens[int(graph.nodes['position'].iloc[row])].strip()}”"
    if graph.is_logit[row]:
        return str(graph.nodes["token"].iloc[row]).strip()
    return "error"


def _label(story: Story, node: str) -> str:
    feature = story.hero_graph.feature_ids[story.row_of(node)]
    return "" if feature is None else story.labels.get(feature, "")


def _token(story: Story, node: str) -> str:
    graph = story.hero_graph
    position = int(graph.nodes["position"].iloc[story.row_of(node)])
    return graph.tokens[position].strip()


def _why(story: Story, node: str) -> str:
    feature = story.hero_graph.feature_ids[story.row_of(node)]
    return "" if feature is None else story.sources.get(feature, "").removeprefix("computed: ")
