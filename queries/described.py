"""Questions about features themselves: their labels, figures and examples over a corpus."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from queries.asking import GraphSet, ask, choose, table
from queries.core import check_limit
from queries.library import describe
from tracer.errors import NotFoundError, StoreError

if TYPE_CHECKING:
    from graphstore import Store

__all__ = ["feature_examples", "features"]

_PROMOTED: Final = 5


def features(
    store: Store,
    prompt_set: GraphSet | None = None,
    label: str | None = None,
    layer: int | None = None,
    limit: int = 50,
) -> pd.DataFrame:
    """Tell what is known of features.

    Parameters
    ----------
    store
        The store.
    prompt_set
        Features of the graphs of one set, or of a list of graphs; left out, every feature that has
        a label or figures.
    label
        Only those whose label holds this text, in large or small letters.
    layer
        Only those of one layer.
    limit
        How many at most.

    Returns
    -------
    DataFrame
        ``feature_id``, ``layer``, ``index``, ``label``, ``label_source``, ``density`` (share of
        the corpus' tokens at which it is active), ``mean_activation`` (over these),
        ``max_activation``, ``promoted`` (up to five output tokens, most promoted first), ``graphs``
        (of the set, or of all, that have it); by falling graphs, then layer and index. What is
        unknown is None or nan.

    Raises
    ------
    NotFoundError
        If no set has the name.
    QueryError
        If `limit` is negative.
    """
    query = describe("features")
    query.check({"prompt_set": prompt_set, "label": label, "layer": layer, "limit": limit})
    check_limit("features", limit)
    given: dict[str, Any] = {
        "label": None if label is None else label.lower(),
        "layer": layer,
        "limit": limit,
    }
    if prompt_set is None:
        found = ask(store, query, "store", **given)
    else:
        ids = choose(store, prompt_set=prompt_set).ids
        found = ask(store, query, "set", graph_ids=ids, **given)
    pairs = zip(found["statistics"], found["feature_id"], strict=True)
    promoted = [_promoted(text, feature) for text, feature in pairs]
    found["promoted"] = pd.Series(promoted, index=found.index, dtype=object)
    return table("features", found)


def feature_examples(store: Store, feature_id: str, limit: int = 10) -> pd.DataFrame:
    """Where in a corpus a feature is most active.

    Parameters
    ----------
    store
        The store.
    feature_id
        ``{transcoder_id}/{layer}/{index}``.
    limit
        How many examples at most.

    Returns
    -------
    DataFrame
        ``rank`` (from 1), ``activation``, ``token``, ``next`` (the token that follows, or that the
        model finds likeliest where none does), ``context``, the tokens around with the token itself
        in brackets; most active first. Empty for a feature that nobody has described.

    Raises
    ------
    NotFoundError
        If no feature has the id.
    QueryError
        If `limit` is negative.
    """
    query = describe("feature_examples")
    query.check({"feature_id": feature_id, "limit": limit})
    check_limit("feature_examples", limit)
    found = ask(store, query, feature_id=feature_id)
    if found.empty:
        raise NotFoundError(
            f"no feature {feature_id!r} is stored",
            "Write {transcoder_id}/{layer}/{index}, as query features lists them",
        )
    examples = _read(found["examples"].iloc[0], feature_id, "examples") or []
    rows = [
        {
            "rank": rank,
            "activation": example.get("activation"),
            "token": example.get("token"),
            "next": example.get("next"),
            "context": _context(example),
        }
        for rank, example in enumerate(examples[:limit], 1)
    ]
    return table("feature_examples", pd.DataFrame(rows, columns=list(query.columns)))


def _promoted(text: str | None, feature_id: str) -> list[str] | None:
    statistics = _read(text, feature_id, "statistics")
    return (
        None if statistics is None else [t for t, _ in statistics.get("promoted", [])][:_PROMOTED]
    )


def _read(text: Any, feature_id: str, what: str) -> Any:
    """Read a JSON text of a feature; None where there is none."""
    if not isinstance(text, str):
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise StoreError(
            f"feature {feature_id}: its {what} are not JSON ({error})",
            "Describe the feature again: circuitbase label --corpus FILE",
        ) from error


def _context(example: Mapping[str, Any]) -> str:
    """Tokens of an example as a text, the one at the position in brackets."""
    tokens, at = [str(token) for token in example.get("tokens", ())], example.get("at", -1)
    # Tokenizers of pieces keep the spaces in the tokens; those of words have none.
    between = "" if any(" " in token[:1] for token in tokens) else " "
    shown = []
    for place, token in enumerate(tokens):
        space = token[: len(token) - len(token.lstrip())]
        shown.append(f"{space}[{token.strip()}]" if place == at else token)
    return between.join(shown).strip()
