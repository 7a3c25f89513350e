"""The page of the manual about the query library, made from the headers of the query files."""

from __future__ import annotations

import json

from queries.library import Parameter, Query, describe, names

__all__ = ["document"]

_HEAD = """\
# The query library

Questions to a store, each a Cypher file in `queries/cypher/` with a Python function of the same
name. The text is the same on Neo4j and on the embedded engine, values enter as parameters only,
and only complete graphs are asked.

```python
import graphstore, queries

with graphstore.connect() as store:
    queries.recurring_features(store, prompt_set="capitals", min_share=0.5)
    queries.run(store, "top_nodes", graph_id="night", limit=5)   # the same, by name
queries.describe("top_nodes")                                    # a query's header and text
```

On the command line: `circuitbase queries`, `circuitbase queries NAME`,
`circuitbase query NAME key=value …`. Wherever a graph is named, its id, the beginning of its id or
its slug will do. Parameters marked *filled* are worked out by the Python function from those that
you give; in the Neo4j browser you give them yourself.

This page is made from the headers of the files (`queries.documenting.document`); a test fails when
it is stale.
"""


def document() -> str:
    """Write the page ``docs/queries.md``.

    Examples
    --------
    >>> document().splitlines()[0]
    '# The query library'
    """
    queries = [describe(name) for name in names()]
    listed = "\n".join(f"- [`{query.name}`](#{query.name}): {query.title}" for query in queries)
    return "\n".join([_HEAD, listed, "", *map(_section, queries)])


def _section(query: Query) -> str:
    rows = [_row(parameter) for parameter in query.parameters]
    rows += [f"| `{name}` | *filled* | {what} |" for name, what in query.filled.items()]
    parts = [
        f"## {query.name}",
        f"{query.title}: {query.purpose}.",
        "\n".join(["| parameter | type | default |", "|---|---|---|", *rows]) if rows else "",
        f"Columns: {', '.join(f'`{column}`' for column in query.columns)}.",
        f"Cost: {query.cost}.",
        f"```cypher\n{query.text}\n```",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _row(parameter: Parameter) -> str:
    kind = parameter.type.replace("|", ", ")
    default = "required" if parameter.required else f"`{json.dumps(parameter.default)}`"
    return f"| `{parameter.name}` | {kind} | {default} |"
