"""Local graphs against global weights: what is typical, what is special, what is silent here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from queries.asking import GraphSet, ask, check_share, choose_one_or_set, table, unpacked
from queries.core import check_limit
from queries.global_features import Measure
from queries.library import Query, describe
from tracer.errors import QueryError

if TYPE_CHECKING:
    from graphstore import Store

__all__ = ["local_against_global"]

_FIRST: Final = 200  # what is looked up first; twice as much in each further turn
_KINDS: Final = ("typical", "specific", "silent", "uncovered")


def local_against_global(
    store: Store,
    graph_id: str | None = None,
    prompt_set: GraphSet | None = None,
    weights_id: str | None = None,
    by: Measure = "twera",
    min_share: float = 0.05,
    limit: int = 50,
) -> pd.DataFrame:
    """Strong residual-direct edges of a graph, or of a set, beside strong global connections.

    Parameters
    ----------
    store
        The store.
    graph_id
        One graph, by id, beginning of an id or slug; or
    prompt_set
        a set, or a list of graphs.
    weights_id
        The global weights, by id or beginning of one; left out, the only ones stored.
    by
        What is strong globally: the absolute virtual weight, ERA or TWERA.
    min_share
        What is strong: at least this share of the target's absolute inputs, in (0, 1]. Locally of
        its residual-direct ones from features, each the mean over the nodes of the target in
        these graphs; globally of the pairs stored.
    limit
        How many pairs of each kind at most.

    Returns
    -------
    DataFrame
        ``kind``: ``typical`` (strong here and globally), ``specific`` (strong here only),
        ``silent`` (strong globally only; the target acts here), ``uncovered`` (strong here, but the
        weights do not have both features); ``source``, ``target`` (feature ids), ``source_label``,
        ``target_label``, ``residual`` (signed mean over the target's nodes), ``local_share``,
        ``weight``, ``era``, ``twera``, ``cofiring`` (unknown where no such pair is stored),
        ``global_share``, ``source_acts`` (here), ``nodes`` (of the target). In the order of these
        kinds; silent ones by global, others by local share.

    Raises
    ------
    NotFoundError
        If no weights, set or graph are called so.
    QueryError
        If a parameter is outside what it may be, the weights cover no feature of these graphs, or
        a graph does not say which part of its edges is residual-direct.
    """
    query = describe("local_against_global")
    query.check(
        {
            "graph_id": graph_id,
            "prompt_set": prompt_set,
            "weights_id": weights_id,
            "by": by,
            "min_share": min_share,
            "limit": limit,
        }
    )
    check_limit("local_against_global", limit)
    check_share("local_against_global", "min_share", min_share)
    if min_share == 0:
        raise QueryError(
            "query local_against_global: min_share is 0", "Give a share above 0, up to 1"
        )
    if graph_id is None and prompt_set is None:
        raise QueryError(
            "query local_against_global needs a graph or a prompt set",
            "Give graph_id=… or prompt_set=…",
        )
    weights_id = store.find_weights(weights_id)
    names = None if graph_id is None else [graph_id]
    ids = choose_one_or_set(store, "local_against_global", names, prompt_set).ids
    _require_parts(store, query, ids)
    nodes = unpacked(ask(store, query, "nodes", graph_ids=ids))
    local = _local_pairs(store, query, ids, nodes)
    acting = nodes["feature_id"].value_counts()
    weights = _Weights(store, query, weights_id, by, min_share, acting.index.tolist())
    strong = local[local["local_share"] >= min_share].sort_values(
        ["local_share", "source", "target"], ascending=[False, True, True]
    )
    known = strong["source"].isin(weights.places) & strong["target"].isin(weights.places)
    kinds = {
        **weights.typical_and_specific(strong[known], limit),
        "silent": weights.silent(local, limit),
        "uncovered": strong[~known].head(limit),
    }
    pieces = [kinds[kind].assign(kind=kind) for kind in _KINDS if len(kinds[kind])]
    pairs = pd.concat(pieces) if pieces else strong.assign(kind="")
    pairs = pairs.reindex(columns=list(query.columns)).reset_index(drop=True)
    pairs["source_acts"] = pairs["source"].isin(acting.index)
    pairs["nodes"] = pairs["target"].map(acting)
    _add_labels(store, query, pairs)
    return table("local_against_global", pairs)


def _require_parts(store: Store, query: Query, ids: list[str]) -> None:
    found = ask(store, query, "graphs", graph_ids=ids)
    lacking = found.loc[found["parts"].isna(), "graph_id"].tolist()
    if lacking:
        raise QueryError(
            f"query local_against_global: {len(lacking)} of {len(found)} graphs do not say which "
            f"part of an edge is residual-direct ({', '.join(lacking[:3])})",
            "Trace them with circuitbase trace, which stores both parts",
        )


def _local_pairs(store: Store, query: Query, ids: list[str], nodes: pd.DataFrame) -> pd.DataFrame:
    """Pairs of features with a residual-direct edge: mean over the target's nodes, and share."""
    edges = unpacked(ask(store, query, "local", graph_ids=ids)).astype(
        {**dict.fromkeys(("gno", "source", "target"), np.int64), "residual": np.float64}
    )
    # In numbers, as names of features are slow to sort and group.
    codes, names = pd.factorize(nodes["feature_id"])
    span = 1 + int(nodes["ord"].max()) if len(nodes) else 1
    keys = (nodes["gno"] * span + nodes["ord"]).to_numpy(np.int64)
    order = np.argsort(keys)
    ends = {}
    for end in ("source", "target"):
        at = np.searchsorted(keys[order], (edges["gno"] * span + edges[end]).to_numpy(np.int64))
        ends[end] = codes[order][at]
    found, place = np.unique(ends["source"] * len(names) + ends["target"], return_inverse=True)
    source, target = np.divmod(found, max(len(names), 1))
    total = np.bincount(place, weights=edges["residual"].to_numpy(), minlength=len(found))
    residual = total / np.bincount(codes, minlength=len(names))[target]
    inputs = np.bincount(target, weights=np.abs(residual), minlength=len(names))[target]
    share = np.divide(np.abs(residual), inputs, out=np.zeros(len(found)), where=inputs > 0)
    columns = {"source": names[source], "target": names[target]}
    table = pd.DataFrame({**columns, "residual": residual, "local_share": share})
    return table.astype(dict.fromkeys(columns, object))


class _Weights:
    """Global weights of the features that act in some graphs.

    Attributes
    ----------
    places
        Place in the weights of each of the features that they have.
    """

    def __init__(
        self,
        store: Store,
        query: Query,
        weights_id: str,
        by: Measure,
        min_share: float,
        features: list[str],
    ) -> None:
        self.store, self.query = store, query
        self.given = {"weights_id": weights_id, "by": by}
        self.min_share = min_share
        found = unpacked(ask(store, query, "covered", ids=features, **self.given))
        if found.empty:
            raise QueryError(
                f"query local_against_global: global weights {weights_id} cover no feature of "
                "these graphs",
                "Choose their features when making weights, or name other weights or graphs",
            )
        self.places = dict(zip(found["feature_id"], found["ord"].astype(int), strict=True))
        self.totals = dict(zip(found["feature_id"], found["total"], strict=True))
        self.largest = found.sort_values(["largest", "feature_id"], ascending=[False, True])

    def typical_and_specific(self, strong: pd.DataFrame, limit: int) -> dict[str, pd.DataFrame]:
        """Tell strong local pairs apart, the strongest first, until there are enough of both."""
        kinds = {"typical": strong.head(0), "specific": strong.head(0)}
        largest = strong["target"].map(self.largest.set_index("feature_id")["largest"])
        for count in (_FIRST, len(strong)):  # a feature's inputs are read again in each turn
            if all(len(pairs) >= limit for pairs in kinds.values()):
                break
            if len(kinds["specific"]) >= limit:  # what is typical has a strong global input
                strong = strong[largest.loc[strong.index] >= self.min_share * (1 - 1e-9)]
            part, strong = strong.head(count), strong.iloc[count:]
            wanted: dict[str, list[int]] = {}
            for source, target in part[["source", "target"]].itertuples(index=False):
                wanted.setdefault(target, []).append(self.places[source])
            found = self._pairs(wanted)
            part = part.merge(found, on=["source", "target"], how="left")
            part["global_share"] = part["global_share"].fillna(0.0)
            globally = part["global_share"] >= self.min_share
            for kind, more in (("typical", part[globally]), ("specific", part[~globally])):
                kinds[kind] = pd.concat([kinds[kind], more]).head(limit)
        return kinds

    def silent(self, local: pd.DataFrame, limit: int) -> pd.DataFrame:
        """Strong global pairs that are weak here, or absent: the largest global shares."""
        targets = self.largest[self.largest["largest"] >= self.min_share * (1 - 1e-9)]
        names, bounds = targets["feature_id"].tolist(), targets["largest"].to_numpy(np.float64)
        start, count, found, least = 0, _FIRST, pd.DataFrame(), 0.0
        while start < len(names) and bounds[start] >= least * (1 - 1e-9):
            part = self._strong(names[start : start + count])
            part = part[part["global_share"] >= self.min_share]
            part = part.merge(local, on=["source", "target"], how="left")
            part[["residual", "local_share"]] = part[["residual", "local_share"]].fillna(0.0)
            part = part[part["local_share"] < self.min_share]
            found = pd.concat([found, part]) if len(found) else part
            found = found.sort_values(
                ["global_share", "source", "target"], ascending=[False, True, True]
            ).head(limit)
            if len(found) == limit:
                least = float(found["global_share"].min()) if limit else np.inf
            start, count = start + count, 2 * count
        return found

    def _pairs(self, wanted: dict[str, list[int]]) -> pd.DataFrame:
        """Global pairs into features from those at the given places."""
        rows: list[list[Any]] = [[target, places] for target, places in wanted.items()]
        weights_id = self.given["weights_id"]
        return self._told(ask(self.store, self.query, "pairs", rows=rows, weights_id=weights_id))

    def _strong(self, names: list[str]) -> pd.DataFrame:
        """Strong global pairs into features."""
        given = {**self.given, "min_share": self.min_share}
        return self._told(ask(self.store, self.query, "strong", ids=names, **given))

    def _told(self, answer: pd.DataFrame) -> pd.DataFrame:
        """Pairs of an answer, with their shares."""
        found = unpacked(answer).astype(
            {
                **dict.fromkeys(("source", "target"), object),
                **dict.fromkeys(("weight", "era", "twera"), np.float64),
            }
        )
        total = found["target"].map(self.totals).astype(np.float64)
        found["global_share"] = (found[self.given["by"]].abs() / total).where(total > 0, 0.0)
        return found


def _add_labels(store: Store, query: Query, pairs: pd.DataFrame) -> None:
    names = sorted(set(pairs["source"]) | set(pairs["target"]))
    found = ask(store, query, "labels", ids=names)
    labels = dict(zip(found["feature_id"], found["label"], strict=True))
    for end in ("source", "target"):
        pairs[f"{end}_label"] = [labels.get(name) for name in pairs[end]]
