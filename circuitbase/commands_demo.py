"""The demonstration: import graphs, then print scores and three questions to the database."""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING

import click

from circuitbase._session import Session, store_options

if TYPE_CHECKING:
    from graphstore import Store

__all__ = ["demo"]

_SET = "demo"


@click.command()
@click.option(
    "--graphs", "patterns", metavar="PATTERN…", multiple=True, help="Graph files to import."
)
@click.argument("more", metavar="", nargs=-1)
@store_options
def demo(session: Session, patterns: tuple[str, ...], more: tuple[str, ...]) -> None:
    """Show the whole line: graph files in, scores and answers out.

    Imports the files into the prompt set `demo`, then prints the scores of every graph in the
    store and three questions across prompts.

    For example:
      circuitbase demo --graphs 'graphs/*.json'
      circuitbase demo --graphs graphs/*.json --store ./demo.db
    """
    files = _files((*patterns, *more))
    from circuitbase.commands_files import import_files

    failed = 0
    with session.open() as store:
        if files:
            how = {"transcoder": None, "model": None, "drop_dangling": False}
            session.say(f"importing {len(files)} files into the prompt set {_SET!r}")
            records = import_files(session, store, files, _SET, None, how)
            failed = sum(record["status"] == "failed" for record in records)
        _tell(session, store)
    if failed:
        click.get_current_context().exit(1)


def _files(patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Files that the patterns name, each once, in order."""
    from tracer.errors import FormatError

    found: list[str] = []
    for pattern in patterns:
        names = sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207 - may be absolute
        if not names:
            raise FormatError(f"{pattern}: no such file", "Give --graphs 'folder/*.json'")
        found += names
    return tuple(dict.fromkeys(found))


def _tell(session: Session, store: Store) -> None:
    import queries as library

    graphs = store.graphs()
    if graphs.empty:
        session.say(
            "The store is empty. Give graph files: circuitbase demo --graphs 'folder/*.json'"
        )
        return
    first = str(graphs["graph_id"].iloc[0])
    slug = str(graphs["slug"].iloc[0] or first)
    answers = {
        "Scores: how much of each prompt the features explain": library.scores(store),
        "How far influence travels, over all graphs": library.run(
            store, "path_lengths", pooled=True
        ),
        "Features that recur across prompts": library.run(
            store, "recurring_features", min_graphs=2
        ),
        f"Graphs most like {slug}": library.run(store, "similar_graphs", graph_id=first),
    }
    if session.format == "table":
        for title, frame in answers.items():
            click.echo(f"\n{title}")
            session.print(frame, limit=12, compact=True, empty="(none)")
        return
    import pandas as pd

    parts = [frame.astype(object).assign(question=title) for title, frame in answers.items()]
    session.print(pd.concat(parts, ignore_index=True))
