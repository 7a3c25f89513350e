"""Commands about what is stored: graphs, global-weights, show, group, delete, verify."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from circuitbase._session import Session, store_options

if TYPE_CHECKING:
    from graphstore import Store
    from tracer import AttributionGraph

__all__ = ["delete", "global_weights", "graphs", "group", "show", "verify"]


@click.command()
@click.option("--set", "set_", metavar="NAME", help="Only the graphs of this prompt set.")
@store_options
def graphs(session: Session, set_: str | None) -> None:
    """List the stored graphs.

    For example:
      circuitbase graphs
      circuitbase graphs --set capitals
      circuitbase graphs --format csv > graphs.csv
    """
    with session.open() as store:
        frame = store.graphs(set_)
    session.print(
        frame,
        columns=["graph_id", "slug", "prompt", "nodes", "edges", "prompt_sets"],
        names={"prompt_sets": "sets"},
        empty="The store is empty. Fill it with: circuitbase import FILE…"
        if set_ is None
        else "The set is empty.",
    )


@click.command("global-weights")
@store_options
def global_weights(session: Session) -> None:
    """List the stored global weights.

    `circuitbase weights` makes them, `circuitbase import FILE.npz` takes those of a file; queries
    about them take weights_id, which may be left out where one is stored.

    For example:
      circuitbase global-weights
      circuitbase query hubs direction=out
      circuitbase query global_inputs feature_id=owner/clt@main/12/4711 by=era
      circuitbase export 3f09c2d1a4b58e76 weights.npz
      circuitbase delete 3f09c2d1a4b58e76
    """
    with session.open() as store:
        frame = store.weights()
    session.print(
        frame,
        columns=["weights_id", "corpus_id", "norm", "features", "pairs", "tokens", "transcoder_id"],
        names={"transcoder_id": "transcoder"},
        empty="No global weights. Make some with: circuitbase weights",
    )


@click.command()
@click.argument("graph")
@click.option("--out", metavar="FILE", help="Write a figure: .svg or .png.")
@click.option(
    "--nodes",
    type=click.IntRange(0),
    help="How many of the strongest nodes to list, of all kinds; in a figure, how many features to "
    "number.  [default: 12, figure: 20]",
)
@click.option(
    "--edges",
    type=click.IntRange(0),
    help="How many of the strongest edges to list or draw.  [default: 12, figure: 300]",
)
@store_options
def show(
    session: Session, graph: str, out: str | None, nodes: int | None, edges: int | None
) -> None:
    """Draw GRAPH: an id, the beginning of one, or a slug.

    In the terminal: positions as columns, layers as rows, each cell with its number of features
    and a shade for their influence; then the strongest nodes and edges. With --out a figure, too.
    With --format csv or json the nodes are printed instead, strongest first.

    For example:
      circuitbase show night
      circuitbase show 9bda50 --out night.svg
      circuitbase show night --out night.png --edges 800
      circuitbase show night --format json
    """
    with session.open() as store:
        read = _with_labels(store, store.read(store.find(graph)))
    if out is not None:
        from circuitbase.picture import draw_figure

        draw_figure(
            read, out, nodes=20 if nodes is None else nodes, edges=300 if edges is None else edges
        )
        session.say(f"wrote {out}")
    if session.format == "table":
        from rich.console import Console

        from circuitbase.output import print_picture
        from circuitbase.picture import draw_terminal

        width = Console(file=sys.stdout).width if sys.stdout.isatty() else 120
        print_picture(
            draw_terminal(
                read,
                width,
                nodes=12 if nodes is None else nodes,
                edges=12 if edges is None else edges,
            )
        )
        return
    from tracer.influence import influence

    frame = read.nodes.copy()
    frame.insert(0, "node_id", list(read.node_ids))
    frame["influence"] = influence(read)
    frame = frame.sort_values("influence", ascending=False, kind="stable")
    session.print(frame if nodes is None else frame.head(nodes))


def _with_labels(store: Store, graph: AttributionGraph) -> AttributionGraph:
    """Graph with the labels that its features have now, whichever it was stored with."""
    found = store.cypher(
        "MATCH (:Graph {graph_id: $graph_id})-[:CONTAINS]->(n:Node)-[:INSTANCE_OF]->(f:Feature) "
        "WHERE f.label IS NOT NULL RETURN n.ord AS row, f.label AS label",
        graph_id=graph.graph_id,
    )
    if found.empty:
        return graph
    nodes = graph.nodes.copy()
    nodes.loc[found["row"].to_list(), "label"] = found["label"].to_list()
    return graph.replace(nodes=nodes)


@click.command()
@click.argument("graph")
@click.argument("name")
@click.argument("nodes", metavar="NODE…", nargs=-1, required=True)
@click.option("--author", metavar="NAME", help="Who says so.")
@store_options
def group(
    session: Session, graph: str, name: str, nodes: tuple[str, ...], author: str | None
) -> None:
    """Make the supernode NAME of some NODEs of GRAPH.

    NODE is a key such as feature/12/4711/8 (layer, index, position), as `show` lists them, or the
    id of the node in the file that the graph came from.

    For example:
      circuitbase group night "say night" feature/25/288/12 feature/20/81487/12
      circuitbase query supernode_edges graph_id=night
    """
    with session.open() as store:
        graph_id = store.find(graph)
        store.group(graph_id, name, nodes, author=author)
    session.say(f"grouped {len(nodes)} nodes of {graph_id} as {name!r}")


@click.command()
@click.argument("graphs", metavar="GRAPH…", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask; needed where nobody can be asked.")
@store_options
def delete(session: Session, graphs: tuple[str, ...], yes: bool) -> None:
    """Delete GRAPHs or global weights, and what only they used.

    What cannot be undone takes whole ids: neither slugs nor beginnings of ids.

    Features that have a label or statistics stay, and so do sets that become empty.

    For example:
      circuitbase delete 9bda50e4a1f2c3d7
      circuitbase delete 9bda50e4a1f2c3d7 7c0f00112233aabb --yes
    """
    if not (yes or (sys.stdin.isatty() and sys.stderr.isatty())):
        raise click.UsageError("Nobody can be asked here. Add --yes to delete without asking.")
    chosen = list(dict.fromkeys(graphs))
    with session.open() as store:
        weights = set(store.weights()["weights_id"]) & set(chosen)
        for graph_id in chosen:  # all, before any is gone
            if graph_id not in weights:
                store.require_id(graph_id)
        if not yes and not click.confirm(f"Delete {', '.join(chosen)}?", err=True):
            session.say("nothing deleted")
            return
        for graph_id in chosen:
            if graph_id in weights:
                store.delete_weights(graph_id)
            else:
                store.delete(graph_id)
            session.say(f"deleted {graph_id}")


@click.command()
@click.option("--repair", is_flag=True, help="Mend what an interrupted writer left.")
@store_options
def verify(session: Session, repair: bool) -> None:
    """Check every invariant of the store, and change nothing.

    Prints the problems; the status is 1 if there are any. --repair removes what interrupted
    writers left, makes summaries again, and rebuilds indexes.

    For example:
      circuitbase verify
      circuitbase verify --repair
    """
    with session.open() as store:
        found = store.verify()
        left = store.verify(repair=True) if repair and len(found) else found
    session.print(left, empty="The store is sound.")
    if len(left) < len(found):
        session.say(f"mended {len(found) - len(left)}")
    if len(left):
        count = f"{len(left)} problem{'' if len(left) == 1 else 's'}"
        session.say(f"{count} left" if repair else f"{count}; try circuitbase verify --repair")
        click.get_current_context().exit(1)
