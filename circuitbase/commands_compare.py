"""Commands that compare graphs and sets, and write reports: compare, set-report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from circuitbase._session import Session, store_options

if TYPE_CHECKING:
    import pandas as pd

    from graphstore import Store
    from queries.comparing_graphs import GraphComparison
    from queries.comparing_sets import SetComparison

__all__ = ["compare", "set_report"]


@click.command()
@click.argument("a")
@click.argument("b")
@click.option("--kind", type=click.Choice(["graphs", "sets"]), help="Where a name is both.")
@click.option("--html", metavar="FILE", help="Write a report: one page with everything in it.")
@click.option("--out", metavar="FILE", help="Two graphs: write the picture, .svg or .png.")
@click.option(
    "--positions",
    type=click.Choice(["drop", "align"]),
    help="Two graphs: a feature is one wherever it acts, or where positions correspond.  "
    "[default: drop]",
)
@click.option(
    "--presence",
    type=click.Choice(["fisher", "midp"]),
    help="Two sets: the test of presence.  [default: fisher]",
)
@click.option(
    "--strength",
    type=click.Choice(["permutation", "mann-whitney"]),
    help="Two sets: the test of strength.  [default: permutation]",
)
@click.option(
    "--within",
    metavar="KEY",
    help="Two sets: permute only among graphs of the same KEY, such as template.",
)
@click.option("--min-graphs", type=int, help="Two sets: test what so many have.  [default: 2]")
@click.option("--n-permutations", type=int, help="Two sets: how many at most.  [default: 9999]")
@click.option("--seed", type=int, help="Two sets: of permutations and intervals.  [default: 0]")
@click.option(
    "--limit",
    type=click.IntRange(1),
    default=20,
    show_default=True,
    help="Rows shown in a table; csv and json have all.",
)
@store_options
def compare(
    session: Session,
    /,
    a: str,
    b: str,
    kind: Any,
    html: str | None,
    out: str | None,
    positions: str | None,
    limit: int,
    **tests: Any,
) -> None:
    """Compare two graphs, or two prompt sets.

    Of graphs: shared, only-a and only-b nodes and edges, and how influence changes. Of sets: every
    feature and pair of features, tested for presence and strength, with q-values and intervals.

    For example:
      circuitbase compare night dark
      circuitbase compare night dark --positions align --out difference.svg
      circuitbase compare one-hop two-hop --html report.html
      circuitbase compare one-hop two-hop --within answer --format json
    """
    from circuitbase.output import progress_bar
    from queries.comparing import compare as compare_
    from queries.comparing import kind_of

    given = {name: value for name, value in tests.items() if value is not None}
    with session.open() as store:
        kind = kind or kind_of(store, a, b)
        if kind == "graphs":
            if given:
                name = next(iter(given)).replace("_", "-")
                raise click.UsageError(f"--{name} is for two sets; {a!r} and {b!r} are graphs.")
            found = compare_(store, a, b, kind="graphs", positions=positions or "drop")
            _show_graphs(session, found, html, out, limit)
            return
        for name, value in (("--out", out), ("--positions", positions)):
            if value is not None:
                raise click.UsageError(f"{name} is for two graphs; {a!r} and {b!r} are sets.")
        with progress_bar("testing") as progress:
            tested = compare_(store, a, b, kind="sets", progress=progress, **given)
        _show_sets(session, store, tested, html, limit)


def _show_graphs(
    session: Session, found: GraphComparison, html: str | None, out: str | None, limit: int
) -> None:
    if out is not None:
        from circuitbase.reports.diff_picture import diff_figure
        from circuitbase.reports.drawing import save

        session.say(f"wrote {save(diff_figure(found), out)}")
    if html is not None:
        from circuitbase.reports.comparison_page import graph_comparison_page

        session.say(f"wrote {graph_comparison_page(found).write(html)}")
    if session.format != "table":
        session.print(_together({"node": found.nodes, "edge": found.edges}))
    elif html is None and out is None:
        import shutil

        from circuitbase.output import print_picture
        from circuitbase.reports.diff_picture import diff_terminal

        width = shutil.get_terminal_size((120, 40)).columns
        print_picture(diff_terminal(found, width, limit), width)


def _show_sets(
    session: Session, store: Store, found: SetComparison, html: str | None, limit: int
) -> None:
    if html is not None:
        from circuitbase.reports.comparison_page import set_comparison_page

        session.say(f"wrote {set_comparison_page(store, found).write(html)}")
    if session.format != "table":
        session.print(_together({"feature": found.features, "edge": found.edges}))
        return
    if html is None:
        click.echo(found.method)
        click.echo()
        session.print(found.summary)
        for title, items in (("features", found.features), ("pairs of features", found.edges)):
            click.echo(f"\n{title}, smallest p of presence first")
            shown = items[[c for c in _SHOWN if c in items]]
            session.print(shown, limit=limit, compact=True, empty="Nothing was tested.")
    for text in found.limits:
        session.say(f"note: {text}")


_SHOWN = (
    *("feature_id", "source", "target", "label", "graphs_a", "graphs_b", "difference", "low"),
    *("high", "p_presence", "q_presence", "change", "p_strength", "q_strength"),
)


def _together(parts: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One table for programs, with a column that says what a row is."""
    import pandas as pd

    made = [frame.assign(what=what).astype(object) for what, frame in parts.items()]
    joined = pd.concat(made, ignore_index=True)
    first = [name for name in joined.columns if name != "what"]
    return joined[["what", *first]]


@click.command("set-report")
@click.argument("name")
@click.option("--html", metavar="FILE", required=True, help="Where to write the page.")
@click.option(
    "--min-share",
    type=float,
    default=0.5,
    show_default=True,
    help="What recurs is in at least this share of the graphs.",
)
@store_options
def set_report(session: Session, name: str, html: str, min_share: float) -> None:
    """Write a page about the prompt set NAME.

    What recurs, the consensus circuit, how alike the graphs are (beside their templates), and the
    Cypher of each: one file with everything in it.

    For example:
      circuitbase set-report capitals --html capitals.html
      circuitbase set-report capitals --html capitals.html --min-share 0.8
    """
    from circuitbase.output import progress_bar
    from circuitbase.reports.set_page import set_page

    with session.open() as store:
        with progress_bar("reading") as progress:
            page = set_page(store, name, min_share, progress)
        session.say(f"wrote {page.write(html)}")
