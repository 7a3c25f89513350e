"""The demonstration: the whole line on the shipped model, or on graph files."""

from __future__ import annotations

import errno
import glob
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitbase._session import Session, store_options
from circuitbase.commands_trace import _extra

if TYPE_CHECKING:
    from graphstore import Store

__all__ = ["demo"]

_SET = "demo"


@click.command()
@click.option(
    "--report",
    metavar="FILE",
    default="demo/report.html",
    show_default=True,
    help="Where to write the story as a page with pictures.",
)
@click.option("--prompts", type=click.IntRange(1), metavar="N", help="At most so many of each set.")
@click.option(
    "--graphs", "patterns", metavar="PATTERN…", multiple=True, help="Show graph files instead."
)
@click.argument("more", metavar="[FILE…]", nargs=-1)
@store_options
def demo(
    session: Session,
    report: str,
    prompts: int | None,
    patterns: tuple[str, ...],
    more: tuple[str, ...],
) -> None:
    """Show what this is for, on the model that ships with it.

    Traces some sixty prompts in families (capitals by two hops and by one, opposites, sums, …),
    stores the graphs, labels their features, and tells what they show, with the queries that were
    asked. Needs no network; takes a minute or two. The store stays, and what is in it is not
    traced again.

    With graph files, it imports these into the set `demo` and asks them four questions.

    For example:
      circuitbase demo
      circuitbase demo --store circuits.db --report demo/report.html
      circuitbase demo --graphs 'graphs/*.json'
    """
    files = _files((*patterns, *more))
    if files:
        _show_files(session, files)
        return
    with _extra():
        _tell(session, Path(report), prompts)


def _tell(session: Session, report: Path, limit: int | None) -> None:
    """Trace, store, label and tell."""
    import torch

    import tracer
    from circuitbase.demo import CHAPTERS, Story, Telling, choose_prompts, fill
    from circuitbase.demo.filling import describe
    from circuitbase.output import progress_bar
    from circuitbase.page import Page
    from circuitbase.shipped import CLT, MODEL
    from tracer.errors import TracingError

    if not (MODEL / "config.json").exists():
        raise TracingError(
            f"the shipped model is not in {MODEL.parent}",
            "Install circuitbase whole, or make the model: make model",
        )
    _check_writable(report)
    torch.set_num_threads(1)  # matrices so small that threads cost more than they save
    start = time.monotonic()
    sets = choose_prompts(limit)
    model = tracer.load_model(MODEL)
    transcoder = tracer.load_transcoder(CLT, lazy=False)
    page = Page(
        "Inside a small language model",
        "What it does between question and answer, traced prompt by prompt, kept in a graph "
        "database, and asked.",
    )
    tell = Telling(page, terminal=session.format == "table")
    with session.open() as store:
        session.say(f"tracing {sum(map(len, sets.values()))} prompts of the shipped model")
        with progress_bar("prompts") as progress:
            ids = fill(store, model, transcoder, sets, progress)
        session.say("labelling the features over the corpus")
        with progress_bar("sentences") as progress:
            describe(store, model, transcoder, progress)
        filled = time.monotonic() - start
        Story(store, model, transcoder, sets, tell, ids).tell_all(CHAPTERS)
        page.footer(
            f"Made by `circuitbase demo` from {MODEL.name} {model.info['fingerprint'][:12]} and "
            f"{transcoder.transcoder_id}. Everything here was computed on the spot: {filled:.0f} s "
            f"for tracing, storing and labelling, {time.monotonic() - start - filled:.0f} s for "
            "asking and drawing."
        )
        page.write(report)
    if session.format != "table":
        session.print(_joined(tell.tables))
    session.say(f"\n{time.monotonic() - start:.0f} s; the story with its pictures: {report}")


def _check_writable(report: Path) -> None:
    """Refuse a place for the report before the work, not after it."""
    from tracer.errors import FormatError

    try:
        report.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=report.parent):
            pass
        if report.is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder")
    except OSError as error:
        raise FormatError(
            f"{report}: cannot be written ({error.strerror or error})",
            "Choose another place: --report FILE",
        ) from error


def _joined(tables: list[tuple[str, Any]]) -> Any:
    """All tables of the story as one, with the chapter of each row."""
    import pandas as pd

    parts = [frame.astype(object).assign(chapter=title) for title, frame in tables]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


# Graph files -------------------------------------------------------------------------------------


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


def _show_files(session: Session, files: tuple[str, ...]) -> None:
    """Import files, then print scores and three questions across prompts."""
    from circuitbase.commands_files import import_files

    with session.open() as store:
        how = {"transcoder": None, "model": None, "drop_dangling": False}
        session.say(f"importing {len(files)} files into the prompt set {_SET!r}")
        records = import_files(session, store, files, _SET, None, how)
        _ask(session, store)
    if any(record["status"] == "failed" for record in records):
        click.get_current_context().exit(1)


def _ask(session: Session, store: Store) -> None:
    import queries as library

    graphs = store.graphs()
    if graphs.empty:
        session.say("The store is empty: no file could be read.")
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
