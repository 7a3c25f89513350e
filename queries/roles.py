"""Where in a prompt a feature acts: at which places, relative to the prompt's named tokens.

A place is a token's position told by the nearest role of its prompt: ``city`` for the tokens of the
city, ``city+1`` for the one behind it, ``last-2`` for the third from the end. So places of prompts
of different length, or template, can be compared, and positions cannot.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

import pandas as pd

from queries.asking import GraphSet, ask, comparable, table
from queries.library import describe
from tracer.errors import NotFoundError, QueryError

if TYPE_CHECKING:
    from graphstore import Store

__all__ = ["Align", "Place", "places", "position_roles"]

Align = Literal["none", "position", "role"]
_LAST: Final = "last"


class Place(NamedTuple):
    """A token's place: the nearest role, and how many tokens behind it (negative: before)."""

    role: str
    offset: int

    def __str__(self) -> str:
        return f"{self.role}{self.offset:+d}" if self.offset else self.role


def position_roles(
    store: Store,
    feature_id: str | None = None,
    prompt_set: GraphSet | None = None,
    min_share: float = 0.5,
) -> pd.DataFrame:
    """Places at which features act, relative to the roles of their prompts.

    Parameters
    ----------
    store
        The store.
    feature_id
        One feature; left out, those that act in a share `min_share` of the graphs.
    prompt_set
        Graphs of one set, or a list of graphs; left out, all.
    min_share
        In which share of the graphs a feature acts at least, where none is named.

    Returns
    -------
    DataFrame
        ``feature_id``, ``layer``, ``index``, ``place`` (``city``, ``city+1``, ``last-2``), its
        parts ``role`` (the nearest one; of two equally near the one before the token, and
        ``last`` after the others) and ``offset`` (in tokens), ``graphs`` (how many have the
        feature there), ``share`` (of those that have it anywhere), ``nodes``, ``mean_influence``
        (per node), ``mean_activation`` (nan where unknown), ``label``. By feature, then by falling
        graphs. Every prompt has the role ``last``.

    Raises
    ------
    NotFoundError
        If no feature, graph or set has the name.
    QueryError
        If there is no graph, they are of several transcoders, or `min_share` is outside [0, 1].
    """
    query = describe("position_roles")
    query.check({"feature_id": feature_id, "prompt_set": prompt_set, "min_share": min_share})
    chosen = comparable(store, "position_roles", prompt_set)
    least = chosen.at_least("position_roles", 1, min_share)
    if feature_id is not None:
        names = [feature_id]
    else:
        names = list(
            ask(store, query, "features", graph_ids=chosen.ids, least=least)["feature_id"].iloc[0]
        )
    found = ask(store, query, "nodes", feature_ids=names, flags=chosen.flags)
    if found.empty and feature_id is not None and not store.rows(_FEATURE, feature_id=feature_id):
        raise NotFoundError(
            f"no feature {feature_id!r} is stored",
            "Write {transcoder_id}/{layer}/{index}, as query recurring_features lists them",
        )
    prompts = ask(store, query, "prompts", graph_ids=chosen.ids)
    place_of = {row["gno"]: places(row) for row in prompts.to_dict("records")}
    rows: list[dict[str, Any]] = []
    for feature in found.to_dict("records"):
        rows += _rows_of(feature, place_of)
    frame = pd.DataFrame(rows, columns=list(query.columns))
    order = frame.sort_values(
        ["layer", "index", "graphs", "nodes", "place"], ascending=[True, True, False, False, True]
    )
    return table("position_roles", order)


_FEATURE: Final = "MATCH (f:Feature {feature_id: $feature_id}) RETURN f.feature_id AS feature_id"


def _rows_of(
    feature: Mapping[Any, Any], place_of: Mapping[int, Sequence[Place]]
) -> list[dict[str, Any]]:
    graphs: dict[Place, set[int]] = defaultdict(set)
    influence: dict[Place, list[float]] = defaultdict(list)
    activation: dict[Place, list[float]] = defaultdict(list)
    for gno, position, mass, active in zip(
        feature["gno"],
        feature["position"],
        feature["influence"],
        feature["activation"],
        strict=True,
    ):
        place = place_of[gno][position]
        graphs[place].add(gno)
        influence[place].append(mass)
        activation[place].append(active)
    anywhere = len(set(feature["gno"]))
    return [
        {
            "feature_id": feature["feature_id"],
            "layer": feature["layer"],
            "index": feature["index"],
            "place": str(place),
            "role": place.role,
            "offset": place.offset,
            "graphs": len(graphs[place]),
            "share": len(graphs[place]) / anywhere,
            "nodes": len(values),
            "mean_influence": sum(values) / len(values),
            # An unknown activation travels as −1, which none is.
            "mean_activation": sum(activation[place]) / len(values)
            if min(activation[place]) >= 0
            else None,
            "label": feature["label"] or None,
        }
        for place, values in influence.items()
    ]


def places(prompt: Mapping[Any, Any]) -> list[Place]:
    """Place of every token of a prompt.

    Parameters
    ----------
    prompt
        ``n_tokens``, and in parallel lists ``role_names`` and ``role_positions``; without the
        lists only ``last`` is known.

    Examples
    --------
    >>> prompt = {"n_tokens": 6, "role_names": ["city", "city"], "role_positions": [1, 2]}
    >>> [str(place) for place in places(prompt)]
    ['city-1', 'city', 'city', 'city+1', 'last-1', 'last']
    """
    last = int(prompt["n_tokens"]) - 1
    roles: dict[str, list[int]] = defaultdict(list)
    names, positions = prompt.get("role_names"), prompt.get("role_positions")
    if isinstance(names, list) and isinstance(positions, list):
        for name, position in zip(names, positions, strict=True):
            roles[name].append(position)
    roles[_LAST] = [last]
    found = []
    for position in range(last + 1):
        candidates = []
        for name, held in roles.items():
            offset = min((position - p for p in held), key=lambda d: (abs(d), d < 0))
            candidates.append(((abs(offset), offset < 0, name == _LAST, name), offset))
        (*_, name), offset = min(candidates)
        found.append(Place(name, offset))
    return found


def labelled_places(prompt: Mapping[Any, Any], align: Align) -> list[str]:
    """Names of the places of a prompt's tokens: positions, or relative to its roles."""
    if align == "position":
        return [str(position) for position in range(int(prompt["n_tokens"]))]
    if align != "role":
        raise QueryError(f"places are not aligned by {align!r}", "Give position or role")
    return [str(place) for place in places(prompt)]
