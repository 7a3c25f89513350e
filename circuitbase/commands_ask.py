"""Commands that ask the store: scores, queries, query, cypher."""

from __future__ import annotations

import inspect
import sys
from typing import TYPE_CHECKING

import click

from circuitbase._session import Session, parameters, store_options

if TYPE_CHECKING:
    from tracer.graph import Rule

__all__ = ["cypher", "queries", "query", "scores"]


@click.command()
@click.argument("graphs", metavar="[GRAPH…]", nargs=-1)
@click.option(
    "--rule",
    type=click.Choice(["full", "merge", "masked", "as_stored"]),
    help="What pruning did with the removed part.  [default: full where known, else as_stored]",
)
@store_options
def scores(session: Session, graphs: tuple[str, ...], rule: Rule | None) -> None:
    """Print completeness, replacement and mean path length.

    Of the GRAPHs given, or of all.

    Rules: `full` is the graph before pruning; `merge` adds what was removed to the error nodes;
    `masked` drops it; `as_stored` takes the edges that are stored. A graph whose removed part is
    unknown has `as_stored` only.

    For example:
      circuitbase scores
      circuitbase scores night dark --rule as_stored
      circuitbase scores --format json
    """
    import queries as library

    with session.open() as store:
        chosen = [store.find(name) for name in graphs] or None
        frame = library.scores(store, graphs=chosen, rule=rule)
    session.print(
        frame,
        compact=True,
        empty="The store has no graphs. Fill it with: circuitbase import FILE…",
    )


@click.command()
@click.argument("name", required=False)
@store_options
def queries(session: Session, name: str | None) -> None:
    """List the query library, or explain the query NAME.

    For example:
      circuitbase queries
      circuitbase queries recurring_features
    """
    import pandas as pd

    import queries as library

    if name is None:
        found = [library.describe(each) for each in library.names()]
        columns = {
            "name": [query.name for query in found],
            "purpose": [query.purpose for query in found],
            "parameters": [", ".join(p.name for p in query.parameters) for query in found],
        }
        if session.format == "table":  # the whole purpose is told by: queries NAME
            columns["purpose"] = [text.partition(";")[0] for text in columns["purpose"]]
        session.print(pd.DataFrame(columns, dtype=object), width=100)
        return
    query = library.describe(name)
    if session.format == "table":
        click.echo(str(query))
        return
    record = vars(query) | {"parameters": [vars(parameter) for parameter in query.parameters]}
    session.print(pd.DataFrame([record], dtype=object))


@click.command()
@click.argument("name")
@click.argument("pairs", metavar="[KEY=VALUE…]", nargs=-1)
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Rows shown in a table; csv and json have all.",
)
@store_options
def query(session: Session, name: str, pairs: tuple[str, ...], limit: int) -> None:
    """Run the query NAME of the library.

    Values are numbers, true, false, null and JSON lists where they look like it, else strings. A
    graph is named by its id, the beginning of one, or its slug.

    For example:
      circuitbase query recurring_features prompt_set=capitals min_graphs=3
      circuitbase query strongest_paths graph_id=night source=embedding target=logit
      circuitbase query similar_graphs graph_id=night --format json
    """
    import queries as library
    from circuitbase.output import progress_bar

    declared = library.describe(name).parameters
    given = parameters(pairs, {parameter.name: parameter.type for parameter in declared})
    with session.open() as store:
        if isinstance(graph := given.get("graph_id"), str):
            given["graph_id"] = store.find(graph)
        if isinstance(graphs := given.get("graphs"), list):
            given["graphs"] = [store.find(str(graph)) for graph in graphs]
        function = getattr(library, name)
        if "progress" not in inspect.signature(function).parameters:
            frame = library.run(store, name, **given)
        else:
            library.describe(name).check(given)
            with progress_bar(name) as progress:
                frame = function(store, **given, progress=progress)
    session.print(frame, limit=limit, compact=True, empty="The query found nothing.")
    if (found := frame.attrs.get("found", 0)) > len(frame):
        session.say(f"{found:,} were found; raise the parameter limit to have them all")


@click.command()
@click.argument("text")
@click.argument("pairs", metavar="[KEY=VALUE…]", nargs=-1)
@click.option("--write", is_flag=True, help="Allow the query to change the store.")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="Rows shown in a table; csv and json have all.",
)
@store_options
def cypher(session: Session, text: str, pairs: tuple[str, ...], write: bool, limit: int) -> None:
    """Run the Cypher query TEXT, read-only unless --write.

    Values enter through parameters, $name in the text, never by pasting. TEXT may be - for
    standard input.

    For example:
      circuitbase cypher 'MATCH (f:Feature) RETURN count(f) AS features'
      circuitbase cypher 'MATCH (g:Graph {slug: $s}) RETURN g.prompt AS prompt' s=night
      circuitbase cypher - < question.cypher --format csv
    """
    given = parameters(pairs)
    if text == "-":
        text = sys.stdin.read()
    if not text.strip():
        raise click.UsageError("The query is empty.")
    with session.open() as store:
        frame = store.run_named("query", text, given, write=write)
    session.print(frame, limit=limit, empty="The query returned no rows.")
