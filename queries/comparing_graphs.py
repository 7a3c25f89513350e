"""Two graphs side by side: what both have, what one has, and how much stronger it is there."""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd

from queries.asking import choose, one_transcoder
from queries.by_graph import details_of, graph_edges, graph_nodes
from tracer.errors import QueryError, nearest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from graphstore import Store

__all__ = ["GraphComparison", "Positions", "aligned", "compare_graphs"]

Positions = Literal["drop", "align"]
_KINDS: Final = ("feature", "error", "embedding", "logit")


@dataclass(frozen=True)
class GraphComparison:
    """Two graphs, node by node and edge by edge; made by :func:`compare_graphs`.

    Attributes
    ----------
    a, b
        One row of :func:`queries.graph_details` each.
    positions
        ``drop``: nodes of a feature (or error of a layer, token, target) are one, whatever their
        positions, and their influence is summed; ``align``: they are one where their positions
        correspond.
    alignment
        For each position of b the corresponding one of a, or None.
    nodes
        ``kind``, ``layer``, ``index``, ``label``, ``token``; ``position_a``, ``position_b``
        (unknown where dropped); ``nodes_a``, ``nodes_b`` (how many), ``influence_a``,
        ``influence_b`` (0 where absent), ``change`` (b − a), ``where`` (``both``, ``a``, ``b``),
        ``feature_id``, ``key``; largest change first.
    edges
        ``source``, ``target`` (keys of nodes), ``weight_a``, ``weight_b``, ``change_weight``
        (signed sums; 0 where absent), ``share_a``, ``share_b`` (of the target's input: mean over
        its nodes of the sum over the source's), ``influence_a``, ``influence_b`` (that runs over
        it), ``change``, ``where``; largest change of influence first.
    """

    a: pd.Series[Any]
    b: pd.Series[Any]
    positions: Positions
    alignment: tuple[int | None, ...]
    nodes: pd.DataFrame
    edges: pd.DataFrame

    @cached_property
    def summary(self) -> pd.DataFrame:
        """Count what is shared.

        Columns: ``what`` (nodes of each kind, pairs of features, edges), ``both``, ``a``, ``b``
        (how many), ``jaccard`` (both over all), ``weighted`` (Σmin over Σmax of their influence),
        ``share_a``, ``share_b`` (part of the influence in a and b that shared ones have).
        """
        parts = [(kind, self.nodes[self.nodes["kind"] == kind]) for kind in _KINDS]
        pairs = self.edges[
            self.edges["source"].str.startswith("feature/")
            & self.edges["target"].str.startswith("feature/")
        ]
        parts += [("pair of features", pairs), ("edge", self.edges)]
        return pd.DataFrame([_counts(what, part) for what, part in parts])

    def __repr__(self) -> str:
        features = self.summary.iloc[0]
        return (
            f"<GraphComparison {self.a['slug']} | {self.b['slug']}: {features['both']} features "
            f"in both, {features['a']} and {features['b']} in one, Jaccard "
            f"{features['jaccard']:.3f}, positions {self.positions}>"
        )


def compare_graphs(store: Store, a: str, b: str, positions: Positions = "drop") -> GraphComparison:
    """Compare two graphs.

    Parameters
    ----------
    store
        The store.
    a, b
        The graphs, by id, beginning of an id or slug.
    positions
        ``drop``: a feature is the same wherever it acts. ``align``: nodes are the same where their
        positions correspond, by the tokens of the prompts (see :func:`aligned`).

    Returns
    -------
    GraphComparison

    Raises
    ------
    NotFoundError
        If no graph has a name.
    QueryError
        If they are of different transcoders, or the same graph.
    """
    if positions not in ("drop", "align"):
        raise QueryError(
            f"positions is {positions!r}",
            nearest(str(positions), ("drop", "align")) or "Use drop or align",
        )
    chosen = choose(store, [a, b])
    if len(chosen.ids) < 2:
        raise QueryError(f"{a!r} and {b!r} are the same graph", "Give two")
    one_transcoder("compare", chosen)
    details = details_of(store, chosen)
    first, second = details.iloc[0], details.iloc[1]
    alignment = tuple(aligned(first["tokens"], second["tokens"]))
    sides = []
    for side, graph_id in zip("ab", chosen.ids, strict=True):
        nodes = graph_nodes(store, graph_id).rename(columns={"index": "number"})
        of_b = alignment if side == "b" else None
        keys = _keys(nodes, positions, of_b)
        edges = graph_edges(store, graph_id)
        sides.append((_nodes(nodes, keys, side), _edges(nodes, edges, keys, side)))
    (nodes_a, edges_a), (nodes_b, edges_b) = sides
    return GraphComparison(
        first,
        second,
        positions,
        alignment,
        _joined_nodes(nodes_a, nodes_b, positions, first["transcoder_id"]),
        _joined_edges(edges_a, edges_b),
    )


def aligned(tokens_a: Sequence[str], tokens_b: Sequence[str]) -> list[int | None]:
    """For each token of b, the place of the corresponding one of a, or None.

    Runs of the same tokens correspond; between them, replaced tokens correspond from the right,
    because what several tokens say together gathers at the last of them.

    Examples
    --------
    >>> aligned(["from", "Dallas", "to"], ["from", "San", "Jose", "to"])
    [0, None, 1, 2]
    """
    made: list[int | None] = [None] * len(tokens_b)
    matcher = SequenceMatcher(None, list(tokens_a), list(tokens_b), autojunk=False)
    for tag, start_a, end_a, start_b, end_b in matcher.get_opcodes():
        if tag in ("equal", "replace"):
            for back in range(1, min(end_a - start_a, end_b - start_b) + 1):
                made[end_b - back] = end_a - back
    return made


def _keys(
    nodes: pd.DataFrame, positions: Positions, alignment: tuple[int | None, ...] | None
) -> pd.Series[str]:
    """Key of each node: ``feature/12/4711``, with ``@position`` (of a) where aligned.

    Targets lie above all layers, whatever number a file gives that, and custom ones have a label
    in the place of an index.
    """
    made = []
    columns = (nodes[name].tolist() for name in ("kind", "layer", "number", "label", "token"))
    places = _places(nodes["position"].tolist(), positions, alignment)
    for kind, layer, index, label, token, place in zip(*columns, places, strict=True):
        if kind == "feature":
            name = f"feature/{layer}/{index}"
        elif kind == "error":
            name = f"error/{layer}"
        else:
            name = f"{kind}/{index if index >= 0 else label or token}"
        made.append(name + place)
    return pd.Series(made, index=nodes.index, dtype=object)


def _places(
    positions: list[int], how: Positions, alignment: tuple[int | None, ...] | None
) -> list[str]:
    """End of each node's key: where it stands in a, or that it stands where a has nothing."""
    if how == "drop":
        return [""] * len(positions)
    if alignment is None:
        return [f"@{position}" for position in positions]
    found = [alignment[p] if p < len(alignment) else None for p in positions]
    return [
        f"@b{position}" if place is None else f"@{place}"
        for position, place in zip(positions, found, strict=True)
    ]


def _nodes(nodes: pd.DataFrame, keys: pd.Series[str], side: str) -> pd.DataFrame:
    grouped = nodes.assign(key=keys).groupby("key", sort=False)
    return grouped.agg(
        **{
            "kind": ("kind", "first"),
            "layer": ("layer", "max"),
            "index": ("number", "first"),
            f"position_{side}": ("position", "first"),
            "label": ("label", "first"),
            "token": ("token", "first"),
            f"nodes_{side}": ("kind", "size"),
            f"influence_{side}": ("influence", "sum"),
            f"probability_{side}": ("probability", "sum"),
        }
    )


def _edges(
    nodes: pd.DataFrame, edges: pd.DataFrame, keys: pd.Series[str], side: str
) -> pd.DataFrame:
    key_of = dict(zip(nodes["node_id"], keys, strict=True))
    n_nodes = keys.value_counts()
    named = edges.assign(source=edges["source"].map(key_of), target=edges["target"].map(key_of))
    made = named.groupby(["source", "target"], sort=False).agg(
        **{
            f"weight_{side}": ("weight", "sum"),
            f"share_{side}": ("share", "sum"),
            f"influence_{side}": ("score", "sum"),
        }
    )
    targets = made.index.get_level_values("target")
    made[f"share_{side}"] /= n_nodes.loc[targets].to_numpy()
    return made


def _joined_nodes(
    a: pd.DataFrame, b: pd.DataFrame, positions: Positions, transcoder_id: str | None
) -> pd.DataFrame:
    joined = a.merge(b, how="outer", left_index=True, right_index=True, suffixes=("", "_of_b"))
    for name in ("kind", "layer", "index", "label", "token"):
        joined[name] = joined[name].where(joined[name].notna(), joined.pop(f"{name}_of_b"))
    joined["where"] = _where(joined["nodes_a"], joined["nodes_b"])
    for name in ("nodes_a", "nodes_b"):
        joined[name] = joined[name].fillna(0).astype("int64")
    for name in ("influence", "probability"):
        for side in "ab":
            joined[f"{name}_{side}"] = joined[f"{name}_{side}"].fillna(0.0).astype("float64")
    for name in ("layer", "index"):
        joined[name] = joined[name].astype("int64")
    for side in "ab":
        at = joined.pop(f"position_{side}").astype("Int64")
        joined[f"position_{side}"] = at if positions == "align" else pd.NA
        joined[f"position_{side}"] = joined[f"position_{side}"].astype("Int64")
    joined["change"] = joined["influence_b"] - joined["influence_a"]
    joined["label"] = joined["label"].astype(object).where(joined["label"].notna(), None)
    is_feature = joined["kind"] == "feature"
    names = [
        f"{transcoder_id}/{layer}/{index}" if feature else None
        for feature, layer, index in zip(is_feature, joined["layer"], joined["index"], strict=True)
    ]
    joined["feature_id"] = pd.Series(names, index=joined.index, dtype=object)
    joined["token"] = (
        joined["token"].astype(object).where(~is_feature | (positions == "align"), None)
    )
    order = [
        *("kind", "layer", "index", "label", "token", "position_a", "position_b", "where"),
        *("influence_a", "influence_b", "change", "probability_a", "probability_b"),
        *("nodes_a", "nodes_b", "feature_id"),
    ]
    return _largest_first(joined[order].rename_axis("key").reset_index(), ["key"])


def _joined_edges(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    joined = a.join(b, how="outer")
    joined["where"] = _where(joined["weight_a"], joined["weight_b"])
    joined = joined.fillna({name: 0.0 for name in joined.columns if name != "where"})
    joined["change_weight"] = joined["weight_b"] - joined["weight_a"]
    joined["change"] = joined["influence_b"] - joined["influence_a"]
    order = [
        *("weight_a", "weight_b", "change_weight", "share_a", "share_b"),
        *("influence_a", "influence_b", "change", "where"),
    ]
    return _largest_first(joined[order].reset_index(), ["source", "target"])


def _where(a: pd.Series[Any], b: pd.Series[Any]) -> Any:
    return np.where(a.notna() & b.notna(), "both", np.where(a.notna(), "a", "b")).astype(object)


def _largest_first(frame: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    order = frame.assign(size=-frame["change"].abs()).sort_values(["size", *keys])
    return order.drop(columns="size").reset_index(drop=True)


def _counts(what: str, part: pd.DataFrame) -> dict[str, Any]:
    both = part["where"] == "both"
    a, b = part["influence_a"], part["influence_b"]
    most = float(np.maximum(a, b).sum())
    return {
        "what": what,
        "both": int(both.sum()),
        "a": int((part["where"] == "a").sum()),
        "b": int((part["where"] == "b").sum()),
        "jaccard": _ratio(float(both.sum()), float(len(part))),
        "weighted": _ratio(float(np.minimum(a, b).sum()), most),
        "share_a": _ratio(float(a[both].sum()), float(a.sum())),
        "share_b": _ratio(float(b[both].sum()), float(b.sum())),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else float("nan")
