"""Prompt sets: nested by their names, filled by hand, by metadata or by a query, and combined.

A set whose name is ``capitals/states`` lies in ``capitals``, which stands for its own graphs and
those of every set below it; nobody has to make the set above.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

import pandas as pd

from graphstore.metadata import KNOWN
from tracer.errors import NotFoundError, StoreError, nearest

if TYPE_CHECKING:
    from graphstore.store import Store

__all__ = [
    "COMBINATIONS",
    "Combination",
    "check_set_name",
    "combine",
    "drop_set",
    "exclude_graphs",
    "graphs_where",
    "include_graphs",
    "list_sets",
    "members",
    "with_above",
]

Combination = Literal["union", "intersection", "difference"]
COMBINATIONS: Final[tuple[Combination, ...]] = ("union", "intersection", "difference")

_NAMES: Final = "MATCH (p:PromptSet) RETURN p.name AS name ORDER BY name"
_LISTED: Final = """
MATCH (p:PromptSet)
OPTIONAL MATCH (p)-[:INCLUDES]->(g:Graph) WHERE g.complete = true
WITH p, collect(g.gno) AS gnos
RETURN p.name AS name, p.description AS description, gnos ORDER BY name
"""
_MEMBERS: Final = """
MATCH (p:PromptSet)-[:INCLUDES]->(g:Graph)
WHERE (p.name = $name OR p.name STARTS WITH $below) AND g.complete = true
RETURN DISTINCT g.graph_id AS graph_id, g.gno AS gno ORDER BY gno
"""
_INCLUDE: Final = """
MERGE (p:PromptSet {name: $name})
WITH p UNWIND $ids AS id
MATCH (g:Graph {graph_id: id}) WHERE g.complete = true
MERGE (p)-[:INCLUDES]->(g)
"""
# Collected first, deleted then: the embedded engine skips relationships that a statement deletes
# while it walks them.
_EXCLUDE: Final = """
MATCH (:PromptSet {name: $name})-[r:INCLUDES]->(g:Graph) WHERE g.graph_id IN $ids
WITH collect(r) AS all_of_them UNWIND all_of_them AS r DELETE r
"""
_DROP: Final = "MATCH (p:PromptSet {name: $name}) DETACH DELETE p"


def list_sets(store: Store) -> pd.DataFrame:
    """List the sets; see :meth:`graphstore.Store.sets`."""
    rows = store.rows(_LISTED)
    described = {row["name"]: row["description"] for row in rows}
    graphs: dict[str, set[int]] = {}
    for row in rows:
        for name in with_above([row["name"]]):
            graphs.setdefault(name, set()).update(row["gnos"])
    names = sorted(graphs)
    return pd.DataFrame(
        {
            "name": pd.Series(names, dtype=object),
            "description": pd.Series([described.get(name) for name in names], dtype=object),
            "graphs": pd.Series([len(graphs[name]) for name in names], dtype="int64"),
        }
    )


def check_set_name(name: str) -> str:
    """Check the name of a set that is to be made.

    Raises
    ------
    StoreError
        If it is empty, or a part between slashes is.
    """
    if not isinstance(name, str) or not all(part.strip() for part in name.split("/")):
        raise StoreError(
            f"{name!r} names no prompt set", "Give a name such as capitals or capitals/states"
        )
    return name


def members(store: Store, prompt_set: str | Sequence[str]) -> list[str]:
    """Ids of the graphs of a set and those below it; or of graphs named one by one.

    Raises
    ------
    NotFoundError
        If no set, or no graph, has the name.
    """
    if not isinstance(prompt_set, str):
        return list(dict.fromkeys(store.find(name) for name in prompt_set))
    known = [row["name"] for row in store.rows(_NAMES)]
    if prompt_set not in known and not any(each.startswith(f"{prompt_set}/") for each in known):
        raise NotFoundError(
            f"no prompt set {prompt_set!r} is stored",
            nearest(prompt_set, with_above(known)) or "circuitbase sets lists what is",
        )
    rows = store.rows(_MEMBERS, name=prompt_set, below=f"{prompt_set}/")
    return [row["graph_id"] for row in rows]


def include_graphs(store: Store, name: str, ids: Sequence[str]) -> None:
    """Add graphs to a set, which is made if new."""
    check_set_name(name)
    store.transact(lambda tx: tx.run(_INCLUDE, name=name, ids=list(ids)).consume(), merges=True)


def exclude_graphs(store: Store, name: str, ids: Sequence[str]) -> None:
    """Take graphs out of a set itself; those of sets below it stay."""
    _known(store, name)
    store.change(_EXCLUDE, name=name, ids=list(ids))


def drop_set(store: Store, name: str) -> None:
    """Remove a set; its graphs, and the sets below it, stay."""
    _known(store, name)
    store.change(_DROP, name=name)


def _known(store: Store, name: str) -> None:
    known = [row["name"] for row in store.rows(_NAMES)]
    if below := [each for each in known if each.startswith(f"{name}/") and name not in known]:
        raise NotFoundError(
            f"prompt set {name!r} has no graphs of its own, only those of sets below it",
            f"Name one of these: {', '.join(below[:5])}{', …' if below[5:] else ''}",
        )
    if name not in known:
        raise NotFoundError(
            f"no prompt set {name!r} is stored",
            nearest(name, with_above(known)) or "circuitbase sets lists what is",
        )


def with_above(names: Iterable[str]) -> list[str]:
    """Names of sets, and of those that they lie in."""
    parts = [name.split("/") for name in names]
    return sorted({"/".join(p[:depth]) for p in parts for depth in range(1, len(p) + 1)})


def combine(
    store: Store, how: str, sets: Sequence[str | Sequence[str]], into: str | None
) -> list[str]:
    """Combine sets; see :meth:`graphstore.Store.combine_sets`."""
    if how not in COMBINATIONS:
        raise StoreError(
            f"sets are not combined by {how!r}",
            nearest(str(how), COMBINATIONS) or f"Known are {', '.join(COMBINATIONS)}",
        )
    if isinstance(sets, str) or not sets:
        raise StoreError("no sets are given to combine", 'Give a list, such as ["a", "b"]')
    if into is not None:
        check_set_name(into)
    first, *others = [members(store, each) for each in sets]
    found = dict.fromkeys(first)
    for other in others:
        if how == "union":
            found |= dict.fromkeys(other)
        else:
            there = set(other)
            found = {name: None for name in found if (name in there) == (how == "intersection")}
    if into is not None:
        include_graphs(store, into, list(found))
    return list(found)


# By metadata -------------------------------------------------------------------------------------

_COLUMNS: Final = ("right", "model_id", "transcoder_id", "prompt_id", "slug", "unpruned", *KNOWN)
# Every property by its name, so that values are parameters of nothing: they are compared here.
_RECORDS: Final = """
MATCH (g:Graph) WHERE g.complete = true
WITH g ORDER BY g.gno
RETURN g.graph_id AS graph_id, g.metadata AS metadata, g.right AS right, g.model_id AS model_id,
       g.transcoder_id AS transcoder_id, g.prompt_id AS prompt_id, g.slug AS slug,
       g.unpruned AS unpruned, g.template AS template, g.family AS family, g.answer AS answer,
       g.hops AS hops, g.language AS language, g.split AS split
"""


def graphs_where(
    store: Store, where: Mapping[str, Any], within: str | Sequence[str] | None = None
) -> list[str]:
    """Ids of graphs by what is known of their prompts, in the order stored.

    Parameters
    ----------
    store
        The store.
    where
        From keys of the metadata (and ``right``, ``model_id``, ``transcoder_id``, ``prompt_id``,
        ``slug``, ``unpruned``) to a value, or a list of values any of which will do.
    within
        Only graphs of this set, or of this list.

    Raises
    ------
    NotFoundError
        If no graph has one of the keys at all; the message suggests.
    """
    inside = None if within is None else set(members(store, within))
    rows = store.rows(_RECORDS)
    known: set[str] = set(_COLUMNS)
    for row in rows:
        row["metadata"] = json.loads(row["metadata"]) if row["metadata"] else {}
        known.update(row["metadata"])
    for key in where:
        if key not in known:
            raise NotFoundError(
                f"no graph has metadata {key!r}",
                nearest(key, known) or f"Known are {', '.join(sorted(known))}",
            )
    tests = [_test(key, value) for key, value in where.items()]
    return [
        row["graph_id"]
        for row in rows
        if (inside is None or row["graph_id"] in inside) and all(test(row) for test in tests)
    ]


def _test(key: str, wanted: Any) -> Callable[[Mapping[str, Any]], bool]:
    values = list(wanted) if isinstance(wanted, list | tuple | set) else [wanted]

    def test(row: Mapping[str, Any]) -> bool:
        found = row[key] if key in _COLUMNS else row["metadata"].get(key)
        return any(_same(found, value) for value in values)

    return test


def _same(found: Any, wanted: Any) -> bool:
    """Whether a value is the one wanted; 4 is "4", because files may write it either way."""
    if isinstance(found, bool) or isinstance(wanted, bool) or found is None or wanted is None:
        return found is wanted
    if isinstance(found, str) != isinstance(wanted, str):
        return str(found) == str(wanted)
    return bool(found == wanted)


def ids_of_answer(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Graph ids that a query returned, in its column ``graph_id`` or its only one.

    Raises
    ------
    StoreError
        If it returned something else.
    """
    found: dict[str, None] = {}
    for row in rows:
        value = row.get("graph_id", next(iter(row.values())) if len(row) == 1 else None)
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, str):
                raise StoreError(
                    f"the query returned {each!r}, no graph id",
                    "Let it RETURN g.graph_id AS graph_id",
                )
            found[each] = None
    return list(found)
