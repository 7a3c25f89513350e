"""What is known of a graph's prompt: from its ``source`` to properties that queries can ask for.

``source["metadata"]`` holds whatever the file of prompts said. The keys of :data:`KNOWN` become
properties of Graph of their own, and all of it the property ``metadata``, as JSON. ``roles`` become
two parallel lists. None of it is part of a graph's identity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tracer.errors import StoreError, nearest
from tracer.roles import LAST

if TYPE_CHECKING:
    from graphstore.client import Client
    from tracer.graph import AttributionGraph

__all__ = ["KNOWN", "LAST", "add_metadata", "described", "graph_roles"]

# Keys of the metadata that are properties of Graph of their own, with their types.
KNOWN: Final = {
    "template": "string",
    "family": "string",
    "answer": "string",
    "hops": "long",
    "language": "string",
    "split": "string",
}


def described(graph: AttributionGraph) -> dict[str, Any]:
    """Properties of Graph that tell of its prompt.

    Parameters
    ----------
    graph
        The graph; of its ``source`` counts what is well formed, and the rest is passed over.

    Returns
    -------
    dict
        ``metadata`` (JSON), the keys of :data:`KNOWN` that it has, ``prompt_id``, ``role_names``
        and ``role_positions`` (parallel; a role of several tokens is listed once for each), and
        ``right``: whether the most probable token is (the beginning of) the answer. Unknown ones
        are None: `right` is, where there is no answer, or targets were chosen.
    """
    targets = graph.nodes[graph.is_logit]
    return _described(
        graph.source,
        n_tokens=len(graph.tokens),
        chosen=graph.settings.get("targets") is not None,
        tokens=[token or "" for token in targets["token"]],
        probabilities=targets["probability"].tolist(),
    )


def _described(
    source: Mapping[str, Any],
    *,
    n_tokens: int,
    chosen: bool,
    tokens: Sequence[str],
    probabilities: Sequence[float],
) -> dict[str, Any]:
    metadata = source.get("metadata")
    metadata = metadata if isinstance(metadata, Mapping) else {}
    roles = _roles(source, n_tokens)
    return {
        "prompt_id": source["prompt_id"] if isinstance(source.get("prompt_id"), str) else None,
        "metadata": json.dumps(metadata, sort_keys=True, ensure_ascii=False) if metadata else None,
        **{name: _value(name, metadata.get(name)) for name in KNOWN},
        "right": None if chosen else _right(source, metadata, tokens, probabilities),
        "role_names": [name for name, positions in roles.items() for _ in positions],
        "role_positions": [p for positions in roles.values() for p in positions],
    }


def graph_roles(graph: AttributionGraph) -> dict[str, list[int]]:
    """Positions of the roles of a graph's prompt, by name; ``last`` is among them.

    Examples
    --------
    >>> from tracer import AttributionGraph
    >>> import pandas as pd
    >>> nodes = pd.DataFrame({"kind": ["embedding"], "layer": [-1], "position": 0, "index": 5})
    >>> graph = AttributionGraph(nodes, [[0]], tokens=("Dallas",),
    ...                          source={"roles": {"city": [0], "odd": "no"}})
    >>> graph_roles(graph)
    {'city': [0], 'last': [0]}
    """
    return _roles(graph.source, len(graph.tokens))


def _roles(source: Mapping[str, Any], n_tokens: int) -> dict[str, list[int]]:
    roles = source.get("roles")
    found = {
        name: sorted(set(positions))
        for name, positions in (roles.items() if isinstance(roles, Mapping) else ())
        if isinstance(name, str)
        and name not in ("", LAST)
        and isinstance(positions, list)
        and positions
        and all(type(p) is int and 0 <= p < n_tokens for p in positions)
    }
    return {**found, LAST: [n_tokens - 1]} if n_tokens else {}


def _value(name: str, value: Any) -> str | int | None:
    """Value of a known key as its property holds it; None where it has no such form."""
    if name == "answer" and isinstance(value, list) and value:
        value = value[0]
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if KNOWN[name] == "string":
        return str(value)
    try:
        number = int(value)
        return number if number == float(value) and abs(number) < 2**63 else None
    except (ValueError, OverflowError):
        return None


def _right(
    source: Mapping[str, Any],
    metadata: Mapping[str, Any],
    tokens: Sequence[str],
    probabilities: Sequence[float],
) -> bool | None:
    answer = metadata.get("answer")
    known = [a for a in (answer if isinstance(answer, list) else [answer]) if _plain(a)]
    if not known or not probabilities:
        return None
    best = tokens[max(range(len(probabilities)), key=probabilities.__getitem__)]
    begun = source.get("answer_tokens")
    if isinstance(begun, list) and begun:  # what the tokenizer said when it was traced
        return best in begun
    return best.strip() in {str(each).strip() for each in known}


def _plain(value: Any) -> bool:
    return isinstance(value, str | int | float) and not isinstance(value, bool)


# Adding to a stored graph ------------------------------------------------------------------------

_RECORD: Final = """
MATCH (g:Graph {graph_id: $graph_id, complete: true})
RETURN g.source AS source, g.settings AS settings, g.n_tokens AS n_tokens,
       g.target_tokens AS tokens, g.target_probabilities AS probabilities
"""
_DESCRIBE: Final = """
MATCH (g:Graph {graph_id: $graph_id, complete: true}) SET g += $properties
"""
_ADDED: Final = ("prompt_id", "roles", "answer_tokens")


def add_metadata(store: Client, graph_id: str, more: Mapping[str, Any]) -> list[str]:
    """Add what is not yet known of a stored graph's prompt; what is stored stays as it is.

    Parameters
    ----------
    store
        The store.
    graph_id
        Id of a complete graph.
    more
        As a graph's ``source``: ``metadata``, ``roles`` (positions by name), ``prompt_id``,
        ``answer_tokens``.

    Returns
    -------
    list of str
        Keys of the metadata whose stored values differ from those given, and were kept.
    """
    given = more.get("metadata")
    given = dict(given) if isinstance(given, Mapping) else {}
    if not given and not any(more.get(name) for name in _ADDED):
        return []

    def work(tx: Any) -> list[str]:
        record = tx.run(_RECORD, graph_id=graph_id).single()
        if record is None:
            return []
        source = json.loads(record["source"])
        before = source.get("metadata")
        before = before if isinstance(before, dict) else {}
        differ = sorted(k for k, v in given.items() if k in before and before[k] != v)
        added = {k: v for k, v in given.items() if k not in before}
        roles = source.get("roles")
        roles = roles if isinstance(roles, dict) else {}
        new_roles = {k: v for k, v in dict(more.get("roles") or {}).items() if k not in roles}
        changed = dict(source)
        if added:
            changed["metadata"] = {**before, **added}
        if new_roles:
            changed["roles"] = {**roles, **new_roles}
        # Of an answer that is stored, the tokens are those it was stored with.
        late = ["prompt_id", *(["answer_tokens"] if "answer" in added else [])]
        changed |= {k: more[k] for k in late if more.get(k) and k not in source}
        if changed != source:
            properties = _described(
                changed,
                n_tokens=record["n_tokens"],
                chosen=json.loads(record["settings"]).get("targets") is not None,
                tokens=record["tokens"] or [],
                probabilities=record["probabilities"] or [],
            )
            text = json.dumps(changed, sort_keys=True, ensure_ascii=False)
            kept = {k: v for k, v in properties.items() if v is not None and v != []}
            tx.run(_DESCRIBE, graph_id=graph_id, properties={**kept, "source": text}).consume()
        return differ

    return store.transact(work)


def checked_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Check metadata that a person gives.

    Raises
    ------
    StoreError
        If a value is no JSON, or one of a known key has not its type.
    """
    for name, value in metadata.items():
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise StoreError(f"metadata {name!r} is {value!r}, no JSON ({error})", "") from error
        if name in KNOWN and _value(name, value) is None:
            whole = "a whole number" if KNOWN[name] == "long" else "a text"
            raise StoreError(f"metadata {name!r} is {value!r}", f"Give {whole}")
        if name == "roles":
            raise StoreError(
                "roles are resolved when a prompt is traced",
                nearest(name, KNOWN) or "Put them into the file of prompts",
            )
    return dict(metadata)
