"""Questions about one feature of global weights at a time: its inputs, its outputs, the hubs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pandas as pd

from queries.asking import ask, table
from queries.core import check_limit
from queries.library import describe
from tracer.errors import NotFoundError

if TYPE_CHECKING:
    from graphstore import Store

__all__ = ["Measure", "global_inputs", "global_outputs", "hubs"]

Measure = Literal["weight", "era", "twera"]


def global_inputs(
    store: Store,
    feature_id: str,
    weights_id: str | None = None,
    by: Measure = "twera",
    limit: int = 20,
) -> pd.DataFrame:
    """Strongest inputs of a feature in global weights.

    Parameters
    ----------
    store
        The store.
    feature_id
        ``{transcoder_id}/{layer}/{index}``.
    weights_id
        The global weights, by id or beginning of one; left out, the only ones stored.
    by
        What is compared: the virtual weight, ERA or TWERA, without its sign.
    limit
        How many at most.

    Returns
    -------
    DataFrame
        ``feature_id`` (of the input), ``layer``, ``index``, ``label``, ``weight``, ``era``,
        ``twera`` (signed), ``cofiring`` (tokens on which both act), ``standard_error_era``,
        ``standard_error_twera`` (lower bounds), ``share`` of the absolute inputs that are stored
        of the feature, in [0, 1]; strongest first.

    Raises
    ------
    NotFoundError
        If no weights are called so, or they do not cover the feature.
    QueryError
        If a parameter is outside what it may be.
    """
    return _neighbours(store, "global_inputs", feature_id, weights_id, by, limit)


def global_outputs(
    store: Store,
    feature_id: str,
    weights_id: str | None = None,
    by: Measure = "twera",
    limit: int = 20,
) -> pd.DataFrame:
    """Strongest outputs of a feature in global weights.

    Parameters
    ----------
    store
        The store.
    feature_id
        ``{transcoder_id}/{layer}/{index}``.
    weights_id
        The global weights, by id or beginning of one; left out, the only ones stored.
    by
        What is compared: the virtual weight, ERA or TWERA, without its sign.
    limit
        How many at most.

    Returns
    -------
    DataFrame
        As :func:`global_inputs`; ``feature_id`` is the output, ``share`` that of its inputs.

    Raises
    ------
    NotFoundError
        If no weights are called so, or they do not cover the feature.
    QueryError
        If a parameter is outside what it may be.
    """
    return _neighbours(store, "global_outputs", feature_id, weights_id, by, limit)


def hubs(
    store: Store,
    weights_id: str | None = None,
    by: Measure = "twera",
    direction: Literal["in", "out", "both"] = "out",
    limit: int = 20,
) -> pd.DataFrame:
    """Features that the most global weight runs into, out of, or through.

    Parameters
    ----------
    store
        The store.
    weights_id
        The global weights, by id or beginning of one; left out, the only ones stored.
    by
        What is summed: the absolute virtual weights, ERA or TWERA.
    direction
        ``in``: sums over inputs; ``out``: over outputs; ``both``.
    limit
        How many at most.

    Returns
    -------
    DataFrame
        ``feature_id``, ``layer``, ``index``, ``label``, ``strength`` (what they are sorted by),
        ``input``, ``output`` (the two sums), ``inputs``, ``outputs`` (numbers of pairs stored),
        ``influence`` (nan where none is attached); strongest first.

    Raises
    ------
    NotFoundError
        If no weights are called so.
    QueryError
        If a parameter is outside what it may be.
    """
    query = describe("hubs")
    query.check({"weights_id": weights_id, "by": by, "direction": direction, "limit": limit})
    check_limit("hubs", limit)
    weights_id = store.find_weights(weights_id)
    found = ask(store, query, weights_id=weights_id, by=by, direction=direction, limit=limit)
    return table("hubs", found)


def _neighbours(
    store: Store, name: str, feature_id: str, weights_id: str | None, by: Measure, limit: int
) -> pd.DataFrame:
    query = describe(name)
    query.check({"feature_id": feature_id, "weights_id": weights_id, "by": by, "limit": limit})
    check_limit(name, limit)
    weights_id = store.find_weights(weights_id)
    found = ask(store, query, feature_id=feature_id, weights_id=weights_id, by=by, limit=limit)
    if found.empty:
        require_covered(store, weights_id, [feature_id])
    return table(name, found)


_COVERED = """
UNWIND $ids AS id
MATCH (f:Feature {feature_id: id})<-[:COVERS]-(:GlobalWeights {weights_id: $weights_id})
RETURN f.feature_id AS feature_id
"""


def require_covered(store: Store, weights_id: str, feature_ids: list[str]) -> None:
    """Check that global weights cover features.

    Raises
    ------
    NotFoundError
        If they do not cover one of them.
    """
    rows = store.rows(_COVERED, ids=feature_ids, weights_id=weights_id)
    covered = {row["feature_id"] for row in rows}
    for feature_id in feature_ids:
        if feature_id not in covered:
            raise NotFoundError(
                f"feature {feature_id!r} is not among those of global weights {weights_id}",
                "Write {transcoder_id}/{layer}/{index}, as query hubs lists them",
            )
