"""What is known of features beyond their graphs: figures over a corpus, examples, computed labels.

Kept as properties of ``Feature``: ``density``, ``mean_activation``, ``max_activation``, and
``statistics`` and ``examples`` as JSON texts. A computed label (its ``label_source`` begins with
``computed:``) comes with them and goes with them; a label of any other source is never replaced.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

import neo4j
import pandas as pd

from graphstore.claims import lock_vault
from graphstore.grouping import parts_of_feature_id
from tracer.errors import StoreError

if TYPE_CHECKING:
    from graphstore.client import Client

__all__ = [
    "DESCRIPTION",
    "add_descriptions",
    "all_descriptions",
    "describe_stored_features",
    "problem_of",
]

DESCRIPTION: Final = ("density", "mean_activation", "max_activation", "statistics", "examples")
COMPUTED: Final = "computed:"
_NUMBERS: Final = DESCRIPTION[:3]
_BATCH: Final = 1_000  # descriptions a transaction: some kilobytes each

_DESCRIBE: Final = """
UNWIND $rows AS r
MERGE (f:Feature {feature_id: r.feature_id})
ON CREATE SET f.transcoder_id = r.transcoder_id, f.layer = r.layer, f.index = r.index
WITH f, r, f.label IS NULL OR coalesce(f.label_source, '') STARTS WITH 'computed:' AS free
SET f.density = r.density, f.mean_activation = r.mean_activation,
    f.max_activation = r.max_activation, f.statistics = r.statistics, f.examples = r.examples,
    f.label = CASE WHEN free THEN r.label ELSE f.label END,
    f.label_source = CASE WHEN free THEN r.label_source ELSE f.label_source END
"""
_ADD: Final = """
UNWIND $rows AS r
MERGE (f:Feature {feature_id: r.feature_id})
ON CREATE SET f.transcoder_id = r.transcoder_id, f.layer = r.layer, f.index = r.index
WITH f, r WHERE f.statistics IS NULL
SET f.density = r.density, f.mean_activation = r.mean_activation,
    f.max_activation = r.max_activation, f.statistics = r.statistics, f.examples = r.examples
"""
_IDS: Final = """
MATCH (f:Feature)
WHERE f.statistics IS NOT NULL OR f.examples IS NOT NULL OR f.density IS NOT NULL
   OR f.mean_activation IS NOT NULL OR f.max_activation IS NOT NULL
WITH f.feature_id AS id ORDER BY id RETURN collect(id) AS ids
"""
_PAGE: Final = """
UNWIND $ids AS id
MATCH (f:Feature {feature_id: id})
RETURN f.feature_id AS feature_id, f.density AS density, f.mean_activation AS mean_activation,
       f.max_activation AS max_activation, f.statistics AS statistics, f.examples AS examples
"""


def describe_stored_features(
    store: Client, table: pd.DataFrame, progress: Callable[[int, int], None] | None = None
) -> int:
    """Keep descriptions; see :meth:`graphstore.Store.describe_features`."""
    for column in ("feature_id", *DESCRIPTION):
        if column not in table:
            raise StoreError(
                f"the table of descriptions lacks column {column!r}",
                "Give what tracer.describe_features returns",
            )
    columns = ("feature_id", *DESCRIPTION, "label", "label_source")
    lists = [
        table[name].astype(object).tolist() if name in table else [None] * len(table)
        for name in columns
    ]
    rows = [_row(dict(zip(columns, values, strict=True))) for values in zip(*lists, strict=True)]
    _write(store, _DESCRIBE, rows, progress)
    return len(rows)


def add_descriptions(store: Client, rows: list[dict[str, Any]]) -> None:
    """Add descriptions to features that have none.

    Raises
    ------
    StoreError
        If one is not as it should be; then none is added.
    """
    _write(store, _ADD, [_row(row) for row in rows])


def all_descriptions(store: Client) -> Iterator[dict[str, Any]]:
    """Descriptions of all features that have one, as stored, by id."""
    ids = store.rows(_IDS)[0]["ids"]
    for start in range(0, len(ids), _BATCH):
        for row in store.rows(_PAGE, ids=ids[start : start + _BATCH]):
            yield {key: value for key, value in row.items() if value is not None}


def _write(
    store: Client,
    text: str,
    rows: list[dict[str, Any]],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    for start in range(0, len(rows), _BATCH):
        batch = rows[start : start + _BATCH]

        def work(tx: neo4j.ManagedTransaction, batch: list[dict[str, Any]] = batch) -> None:
            lock_vault(tx)  # else a delete may remove a feature before it has its description
            tx.run(text, rows=batch).consume()

        store.transact(work, merges=True)
        if progress is not None:
            progress(start + len(batch), len(rows))


def _row(given: Mapping[str, Any]) -> dict[str, Any]:
    """One row of a table as the statements take it."""
    feature_id = given["feature_id"]
    parts = parts_of_feature_id(feature_id)
    if parts is None:
        raise StoreError(
            f"{feature_id!r} is no feature id",
            "Write {transcoder_id}/{layer}/{index}, the two numbers without leading zeros",
        )
    label, source = given.get("label"), given.get("label_source")
    if isinstance(label, str) and label:
        source = source if isinstance(source, str) and source else COMPUTED
        if not source.startswith(COMPUTED):
            raise StoreError(
                f"the label of {feature_id} has the source {source!r}",
                "Store labels that were not computed with Store.label",
            )
    else:
        label = source = None
    row = {
        "feature_id": feature_id,
        **dict(zip(("transcoder_id", "layer", "index"), parts, strict=True)),
        **{name: _number(given.get(name)) for name in _NUMBERS},
        **{name: _text(given.get(name)) for name in DESCRIPTION[3:]},
        "label": label,
        "label_source": source,
    }
    problem = problem_of(row)
    if problem is not None:
        raise StoreError(f"the description of {feature_id}: {problem}", "Compute it again")
    return row


def _number(value: Any) -> Any:
    return float(value) if hasattr(value, "__float__") and not isinstance(value, str) else value


def _text(value: Any) -> Any:
    if isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    return value if isinstance(value, str) else None


def problem_of(row: Mapping[str, Any]) -> str | None:
    """Return what is wrong with a description, as stored; None if nothing is.

    Examples
    --------
    >>> sound = {"density": 0.25, "mean_activation": 1.0, "max_activation": 2.0}
    >>> problem_of({**sound, "statistics": "{}", "examples": "[]"}) is None
    True
    >>> problem_of({**sound, "density": 1.5, "statistics": "{}", "examples": "[]"})
    'density is 1.5, not a share'
    """
    missing = [name for name in DESCRIPTION if row.get(name) is None]
    if missing:
        return f"has no {' and no '.join(missing)}"
    for name in _NUMBERS:
        value = row[name]
        real = isinstance(value, int | float) and not isinstance(value, bool)
        if not real or not math.isfinite(value):
            return f"{name} is {value!r}, no number"
    if not 0 <= row["density"] <= 1:
        return f"density is {row['density']}, not a share"
    if row["mean_activation"] > row["max_activation"] * (1 + 1e-6) + 1e-12:
        return f"its mean activation {row['mean_activation']} is above its maximum"
    for name, kind, told in (("statistics", dict, "object"), ("examples", list, "array")):
        try:
            found = json.loads(row[name])
        except (TypeError, ValueError, RecursionError):
            return f"{name} is not JSON"
        if not isinstance(found, kind):
            return f"{name} is no JSON {told}"
    return None
