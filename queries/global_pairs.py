"""Questions about the pairs of global weights: where they mislead, and which are worth a look.

A store may hold millions of pairs, so none of these reads them all: features carry the largest
values of their inputs, and only inputs of those that can be among the strongest are looked at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from queries.asking import GraphSet, ask, choose, table, unpacked
from queries.core import check_limit
from queries.global_features import Measure
from queries.library import Query, describe
from tracer.errors import QueryError

if TYPE_CHECKING:
    from graphstore import Store

__all__ = ["candidate_pairs", "interference"]

_FIRST = 100  # features whose inputs are looked at first; twice as many in each further turn


def interference(
    store: Store,
    weights_id: str | None = None,
    kind: Literal["unused", "tiny"] = "unused",
    limit: int = 20,
) -> pd.DataFrame:
    """Pairs whose virtual weight misleads: large but never used, or tiny but with a large TWERA.

    Parameters
    ----------
    store
        The store.
    weights_id
        The global weights, by id or beginning of one; left out, the only ones stored.
    kind
        ``unused``: the largest weights of pairs that never fire together in the corpus.
        ``tiny``: the largest TWERA of pairs whose weight is below the median of all.
    limit
        How many at most.

    Returns
    -------
    DataFrame
        ``source``, ``target`` (feature ids), ``source_label``, ``target_label``, ``weight``,
        ``era``, ``twera`` (signed), ``cofiring``, ``expected_source``, ``standard_error_era``,
        ``standard_error_twera``; by falling absolute weight, or TWERA.

    Raises
    ------
    NotFoundError
        If no weights are called so.
    QueryError
        If a parameter is outside what it may be.
    """
    query = describe("interference")
    query.check({"weights_id": weights_id, "kind": kind, "limit": limit})
    check_limit("interference", limit)
    given = {"weights_id": store.find_weights(weights_id), "limit": limit}
    found = ask(store, query, "least", **given, kind=kind)
    features = int(found["features"].iloc[0]) if len(found) else 0
    # The limit-th largest of the features' largest: at least so many pairs are as large.
    least = float(found["least"].iloc[0]) if 0 < features == limit else 0.0
    return table("interference", ask(store, query, kind, **given, least=least))


def candidate_pairs(
    store: Store,
    prompt_set: GraphSet,
    weights_id: str | None = None,
    by: Measure = "twera",
    min_graphs: int = 1,
    limit: int = 50,
) -> pd.DataFrame:
    """Strongest global pairs among the features of a prompt set: what to trace and intervene on.

    Parameters
    ----------
    store
        The store.
    prompt_set
        A set, or a list of graphs by id, beginning of an id or slug.
    weights_id
        The global weights, by id or beginning of one; left out, the only ones stored.
    by
        What is compared: the virtual weight, ERA or TWERA, without its sign.
    min_graphs
        In how many graphs of the set a feature acts at least.
    limit
        How many at most.

    Returns
    -------
    DataFrame
        ``source``, ``target`` (feature ids), ``source_label``, ``target_label``, ``weight``,
        ``era``, ``twera`` (signed), ``cofiring``, ``standard_error_era``,
        ``standard_error_twera``, ``graphs`` (of the set, in which both act), ``edges`` (of the
        set, in which the pair has a local edge); strongest first.

    Raises
    ------
    NotFoundError
        If no weights, set or graph are called so.
    QueryError
        If a parameter is outside what it may be, or the weights cover no feature of the set.
    """
    query = describe("candidate_pairs")
    query.check(
        {
            "prompt_set": prompt_set,
            "weights_id": weights_id,
            "by": by,
            "min_graphs": min_graphs,
            "limit": limit,
        }
    )
    check_limit("candidate_pairs", limit)
    check_limit("candidate_pairs", min_graphs, "min_graphs", least=1)
    weights_id = store.find_weights(weights_id)
    chosen = choose(store, prompt_set=prompt_set)
    features = unpacked(
        ask(
            store,
            query,
            "features",
            graph_ids=chosen.ids,
            weights_id=weights_id,
            by=by,
            min_graphs=min_graphs,
        )
    )
    if features.empty:
        raise QueryError(
            f"query candidate_pairs: global weights {weights_id} cover no feature of these graphs",
            "Choose features of the set when making weights, or name other weights or graphs",
        )
    pairs = _strongest(store, query, features, weights_id, by, limit)
    names = sorted(set(pairs["source"]) | set(pairs["target"]))
    where = ask(store, query, "together", ids=names, flags=chosen.flags)
    graphs = {
        name: set(numbers)
        for name, numbers in zip(where["feature_id"], where["graphs"], strict=True)
    }
    pairs["graphs"] = [
        len(graphs.get(s, set()) & graphs.get(t, set()))
        for s, t in zip(pairs["source"], pairs["target"], strict=True)
    ]
    keys = [f"{s} -> {t}" for s, t in zip(pairs["source"], pairs["target"], strict=True)]
    local = ask(store, query, "edges", ids=keys, flags=chosen.flags)
    edges = dict(zip(local["edge_id"], local["edges"], strict=True))
    pairs["edges"] = [edges.get(key, 0) for key in keys]
    return table("candidate_pairs", pairs)


def _strongest(
    store: Store, query: Query, features: pd.DataFrame, weights_id: str, by: Measure, limit: int
) -> pd.DataFrame:
    """Strongest pairs between some features, looking at those first that have the largest inputs.

    Exact: it ends when no feature that is left has an input as large as the last pair found.
    """
    features = features.sort_values(["largest", "feature_id"], ascending=[False, True])
    flags = np.zeros(int(features["ord"].max()) + 1, np.bool_)
    flags[features["ord"]] = True  # sources stand before their targets, so within the list
    largest = features["largest"].to_numpy(np.float64)
    found = pd.DataFrame(columns=[*query.columns[:-2], "size"])
    start, count, least = 0, _FIRST, 0.0
    while start < len(features) and largest[start] >= least:
        part = ask(
            store,
            query,
            "pairs",
            ids=features["feature_id"].iloc[start : start + count].tolist(),
            flags=flags.tolist(),
            weights_id=weights_id,
            by=by,
            least=least,
            limit=limit,
        )
        found = pd.concat([each for each in (found, part) if len(each)]) if len(part) else found
        found = found.sort_values(["size", "source", "target"], ascending=[False, True, True])
        found = found.head(limit)
        if len(found) == limit:
            least = float(found["size"].min()) if limit else np.inf
        start, count = start + count, 2 * count
    return found.reset_index(drop=True)
