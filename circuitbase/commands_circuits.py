"""Commands about consensus circuits: what recurs over a prompt set, kept under a name."""

from __future__ import annotations

import inspect

import click

from circuitbase._session import Session, store_options

__all__ = ["circuits"]


@click.group(invoke_without_command=True)
@store_options
def circuits(session: Session) -> None:
    """List, find, draw and test circuits.

    A circuit is what recurs over a prompt set: features, and edges between them.

    For example:
      circuitbase circuits
      circuitbase circuits find two-hop capitals/found
      circuitbase circuits test two-hop capitals/others
    """
    if click.get_current_context().invoked_subcommand is not None:
        return
    with session.open() as store:
        frame = store.circuits()
    session.print(frame, empty="No circuits. Find one with: circuitbase circuits find NAME SET")


@circuits.command()
@click.argument("name")
@click.argument("set_", metavar="SET")
@click.option(
    "--min-share",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="In which share of the graphs everything in it recurs.",
)
@click.option("--out", metavar="FILE", help="Draw it: .svg or .png.")
@store_options
def find(session: Session, name: str, set_: str, min_share: float, out: str | None) -> None:
    """Find what recurs over SET, and keep it as NAME.

    Prints how much of each prompt it explains when everything else is merged into error.

    For example:
      circuitbase circuits find two-hop capitals/found --min-share 0.6 --out two-hop.svg
    """
    import queries
    from circuitbase.output import progress_bar

    with session.open() as store, progress_bar("reading") as progress:
        found = queries.consensus_circuit(store, set_, min_share, progress=progress)
        if out is not None:  # first: where it cannot be drawn, nothing is kept either
            from circuitbase.picture import draw_figure

            draw_figure(found.graph, out)
        queries.keep_circuit(store, found, name)
    if out is not None:
        session.say(f"wrote {out}")
    session.say(f"{name}: {len(found.features):,} features, {len(found.edges):,} edges")
    session.print(found.prompts, columns=_SHOWN)


@circuits.command()
@click.argument("name")
@click.option("--out", metavar="FILE", help="Draw it: .svg or .png.")
@store_options
def show(session: Session, name: str, out: str | None) -> None:
    """Draw the circuit NAME; with --format csv or json, its edges.

    For example:
      circuitbase circuits show two-hop --out two-hop.svg
    """
    import queries

    with session.open() as store:
        circuit = queries.read_circuit(store, name)
    if out is not None:
        from circuitbase.picture import draw_figure

        draw_figure(circuit.graph, out)
        session.say(f"wrote {out}")
    if session.format != "table":
        session.print(circuit.edges)
        return
    from circuitbase.output import print_picture
    from circuitbase.picture import draw_terminal

    print_picture(draw_terminal(circuit.graph, 120, nodes=12, edges=12))


@circuits.command()
@click.argument("name")
@click.argument("set_", metavar="SET")
@click.option(
    "--random",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="How many random circuits of equal size to compare with.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of their draws.")
@store_options
def test(session: Session, name: str, set_: str, random: int, seed: int) -> None:
    """Test the circuit NAME on the graphs of SET, beside random circuits.

    For example:
      circuitbase circuits test two-hop capitals/others --random 100
    """
    import queries
    from circuitbase.output import progress_bar

    with session.open() as store, progress_bar("testing") as progress:
        frame = queries.coverage(store, name, set_, random, seed, progress=progress)
    session.print(frame, columns=[*_SHOWN, "random_influence_share", "random_replacement", "p"])


@circuits.command()
@click.argument("name")
@store_options
def drop(session: Session, name: str) -> None:
    """Remove the circuit NAME.

    For example:
      circuitbase circuits drop two-hop
    """
    with session.open() as store:
        store.delete_circuit(name)
    session.say(f"dropped {name}")


_SHOWN = [
    *("slug", "used", "features", "influence_share", "expected_share", "edge_share"),
    *("completeness", "replacement"),
]

for _command in circuits.commands.values():
    # Examples keep their lines: click knows that by the sign for a backspace.
    _command.help = inspect.cleandoc(_command.help or "").replace(
        "\n\nFor example:", "\n\n\b\nFor example:"
    )
