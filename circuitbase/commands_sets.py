"""Commands about prompt sets: listing, filling and combining them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import click

from circuitbase._session import Session, parameters, store_options

if TYPE_CHECKING:
    from graphstore.sets import Combination

__all__ = ["sets"]


@click.group(invoke_without_command=True)
@store_options
def sets(session: Session) -> None:
    """List, fill and combine prompt sets.

    Sets are nested by their names: capitals stands for its own graphs and for those of
    capitals/states. Whatever takes a set takes such a name.

    For example:
      circuitbase sets
      circuitbase import graphs/*.json --set capitals      (makes or extends one)
      circuitbase sets make capitals/right family=capital right=true
      circuitbase sets add favourites night dark
      circuitbase sets difference rest capitals favourites
    """
    context = click.get_current_context()
    if context.invoked_subcommand is not None:
        return
    with session.open() as store:
        frame = store.sets()
    session.print(frame, empty="No prompt sets. Make one with: circuitbase import FILE… --set NAME")


@sets.command()
@click.argument("name")
@click.argument("pairs", metavar="[KEY=VALUE…]", nargs=-1)
@click.option("--within", metavar="SET", help="Only graphs of this set.")
@click.option("--cypher", metavar="TEXT", help="Only graphs whose graph_id this query returns.")
@store_options
def make(
    session: Session, name: str, pairs: tuple[str, ...], within: str | None, cypher: str | None
) -> None:
    """Fill the set NAME with graphs that meet conditions.

    KEY is template, family, answer, hops, language, split or any other key of the file of prompts;
    right (the most probable token is the answer), model_id, transcoder_id, prompt_id, slug or
    unpruned. A list means any of its values. Doing it again adds what has come since.

    For example:
      circuitbase sets make two-hop hops=2 right=true
      circuitbase sets make capitals/held-out 'family=["capital", "state"]' split=held_out
      circuitbase sets make long --cypher 'MATCH (g:Graph) WHERE g.n_tokens > 20
        RETURN g.graph_id AS graph_id'
    """
    conditions: dict[str, Any] = parameters(pairs)
    if not conditions and within is None and cypher is None:
        raise click.UsageError(
            "Give conditions, as in: sets make two-hop hops=2. By hand: sets add NAME GRAPH…"
        )
    with session.open() as store:
        found = store.fill_set(name, conditions, within=within, cypher=cypher)
    session.say(f"{name}: {_graphs(len(found))} found and added")


@sets.command()
@click.argument("name")
@click.argument("graphs", metavar="GRAPH…", nargs=-1, required=True)
@store_options
def add(session: Session, name: str, graphs: tuple[str, ...]) -> None:
    """Add GRAPHs to the set NAME by hand.

    For example:
      circuitbase sets add favourites night dark
    """
    with session.open() as store:
        found = store.fill_set(name, graphs=graphs)
    session.say(f"{name}: {_graphs(len(found))} added")


@sets.command()
@click.argument("name")
@click.argument("graphs", metavar="GRAPH…", nargs=-1, required=True)
@store_options
def remove(session: Session, name: str, graphs: tuple[str, ...]) -> None:
    """Take GRAPHs out of the set NAME; they stay stored.

    For example:
      circuitbase sets remove favourites dark
    """
    with session.open() as store:
        for graph in graphs:
            store.exclude(graph, name)
    session.say(f"{name}: {_graphs(len(graphs))} taken out")


@sets.command()
@click.argument("name")
@store_options
def drop(session: Session, name: str) -> None:
    """Remove the set NAME; its graphs and the sets below it stay.

    For example:
      circuitbase sets drop favourites
    """
    with session.open() as store:
        store.drop_set(name)
    session.say(f"dropped {name}")


def _graphs(count: int) -> str:
    return f"{count:,} graph{'' if count == 1 else 's'}"


def _combining(how: Combination, first_line: str) -> click.Command:
    @click.argument("name")
    @click.argument("names", metavar="SET…", nargs=-1, required=True)
    @store_options
    def command(session: Session, name: str, names: tuple[str, ...]) -> None:
        with session.open() as store:
            found = store.combine_sets(how, names, into=name)
        session.say(f"{name}: {_graphs(len(found))} found and added")

    command.__doc__ = f"""{first_line}

    The graphs are added to the set NAME, which is made if new.

    For example:
      circuitbase sets {how} both capitals opposites
    """
    return sets.command(how)(command)


_combining("union", "Put the graphs of every SET into the set NAME.")
_combining("intersection", "Put the graphs that are in all SETs into the set NAME.")
_combining("difference", "Put the first SET less the others into the set NAME.")

for _command in sets.commands.values():
    # Examples keep their lines: click knows that by the sign for a backspace.
    _command.help = inspect.cleandoc(_command.help or "").replace(
        "\n\nFor example:", "\n\n\b\nFor example:"
    )
