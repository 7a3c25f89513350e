"""Commands that move graphs between files and the store: import, export."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from circuitbase._session import Session, store_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphstore import Store
    from tracer import AttributionGraph
    from tracer.errors import CircuitError

__all__ = ["export", "import_", "import_files"]

_STORED, _KNOWN, _FAILED = "stored", "already stored", "failed"


@click.command("import")
@click.argument("files", metavar="FILE…", nargs=-1, required=True, type=click.Path())
@click.option("--set", "set_", metavar="NAME", help="Add the graphs to this prompt set.")
@click.option("--prune", is_flag=True, help="Prune the graphs before storing them.")
@click.option(
    "--node-threshold",
    type=click.FloatRange(0, 1),
    default=0.8,
    show_default=True,
    help="Share of the influence whose nodes --prune keeps.",
)
@click.option(
    "--edge-threshold",
    type=click.FloatRange(0, 1),
    default=0.98,
    show_default=True,
    help="Share of the edge scores whose edges --prune keeps.",
)
@click.option("--transcoder", metavar="ID", help="Transcoder of the graphs, whatever files say.")
@click.option("--model", metavar="ID", help="Model of the graphs, whatever files say.")
@click.option("--drop-dangling", is_flag=True, help="Leave out links to nodes that are not there.")
@store_options
def import_(
    session: Session,
    files: tuple[str, ...],
    set_: str | None,
    prune: bool,
    node_threshold: float,
    edge_threshold: float,
    transcoder: str | None,
    model: str | None,
    drop_dangling: bool,
) -> None:
    """Import graph FILEs into the store.

    Reads circuit-tracer and Neuronpedia JSON, Anthropic's JSON, circuit-tracer's .pt (nothing in
    it is executed), GraphML and .circuit; the format is found from the content. A folder made by
    `circuitbase export --all` is taken back as a whole. A graph that is stored already is only
    added to the set. A file that cannot be read is named and skipped; the status is then 1.
    Files of global weights (.npz, made by `circuitbase weights`) are taken, too.

    For example:
      circuitbase import graphs/*.json --set capitals
      circuitbase import night.json --transcoder owner/clt@main
      circuitbase import traced.circuit --prune
      circuitbase import backup/
    """
    pruning = (node_threshold, edge_threshold) if prune else None
    how = {"transcoder": transcoder, "model": model, "drop_dangling": drop_dangling}
    with session.open() as store:
        records = import_files(session, store, files, set_, pruning, how)
    if session.format != "table":
        import pandas as pd

        names = ["file", "graph_id", "slug", "nodes", "edges", "status", "error"]
        if any("weights_id" in record for record in records):
            names[2:2] = ["weights_id"]
        session.print(pd.DataFrame(records, columns=names, dtype=object))
    failed = sum(record["status"] == _FAILED for record in records)
    if failed:
        session.say(f"{failed} of {len(records)} not imported")
        click.get_current_context().exit(1)


def import_files(
    session: Session,
    store: Store,
    files: tuple[str, ...],
    prompt_set: str | None,
    pruning: tuple[float, float] | None,
    how: dict[str, Any],
) -> list[dict[str, Any]]:
    """Import files one by one; print a line for each, skip those that cannot be read."""
    from circuitbase.output import progress_bar
    from graphstore.files import holds_global_weights
    from tracer.errors import CircuitError, StoreError

    records: list[dict[str, Any]] = []
    with progress_bar("importing") as progress:
        for done, name in enumerate(files):
            progress(done, len(files))
            path = Path(name)
            try:
                if path.is_dir():
                    if pruning is not None or any(how.values()):
                        raise click.UsageError(
                            f"{name} is an export, taken back as it is: only --set goes with it."
                        )
                    records += _restore(session, store, path, prompt_set, progress)
                elif holds_global_weights(path):
                    records.append(_take_weights(session, store, path))
                else:
                    graph = _read(path, pruning, how)
                    new = store.write(graph, prompt_set=prompt_set)
                    records.append(_record(session, name, graph, _STORED if new else _KNOWN))
            except StoreError:
                raise  # the store's troubles are not this file's
            except CircuitError as error:
                text = " ".join(str(error).split())
                named = text if " ".join(str(path).split()) in text else f"{name}: {text}"
                session.say(f"error: {named}")
                records.append({"file": name, "status": _FAILED, "error": named})
    return records


def _take_weights(session: Session, store: Store, path: Path) -> dict[str, Any]:
    """Store the global weights of a file."""
    from tracer.weights import GlobalWeights

    weights = GlobalWeights.load(path)
    status = _STORED if store.write_weights(weights) else _KNOWN
    if session.format == "table":
        session.tell(
            f"{weights.weights_id}  {'global weights':<28} {len(weights):>7,} features "
            f"{weights.weights.nnz:>9,} pairs  {status}"
        )
    return {"file": str(path), "weights_id": weights.weights_id, "status": status, "error": None}


def _read(path: Path, pruning: tuple[float, float] | None, how: dict[str, Any]) -> AttributionGraph:
    import graphstore
    from tracer.pruning import prune

    graph = graphstore.read_graph(path, **how)
    if pruning is None:
        return graph
    node_threshold, edge_threshold = pruning
    return prune(graph, node_threshold=node_threshold, edge_threshold=edge_threshold)


def _record(session: Session, name: str, graph: AttributionGraph, status: str) -> dict[str, Any]:
    if session.format == "table":
        from circuitbase._text import visible

        session.tell(
            f"{graph.graph_id}  {visible(graph.slug or Path(name).stem):<28} "
            f"{graph.n_nodes:>7,} nodes {graph.n_edges:>9,} edges  {status}"
        )
    return {
        "file": name,
        "graph_id": graph.graph_id,
        "slug": graph.slug,
        "nodes": graph.n_nodes,
        "edges": graph.n_edges,
        "status": status,
        "error": None,
    }


def _restore(
    session: Session,
    store: Store,
    folder: Path,
    prompt_set: str | None,
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    from graphstore.backup import is_dump, restore
    from tracer.errors import FormatError

    if not is_dump(folder) and not (folder / "graphs").is_dir():
        raise FormatError(
            f"{folder}: is a folder, but none that `circuitbase export --all` made",
            f"Give the files in it, such as {folder}/*.json",
        )
    before = set(store.graphs()["graph_id"])
    bad: list[dict[str, Any]] = []

    def failed(path: Path, error: CircuitError) -> None:
        session.say(f"error: {error}")
        bad.append({"file": str(path), "status": _FAILED, "error": str(error)})

    restore(store, folder, progress, prompt_set=prompt_set, failed=failed)
    rows = store.graphs().to_dict("records")
    new = [row for row in rows if row["graph_id"] not in before]
    if session.format == "table":
        session.tell(f"{folder}: {len(new)} graphs stored, {len(rows)} now in the store")
        if count := len(store.weights()):
            session.tell(f"{folder}: {count} global weights now in the store")
    return [
        {
            "file": str(folder),
            **{key: row[key] for key in ("graph_id", "slug", "nodes", "edges")},
            "status": _STORED,
            "error": None,
        }
        for row in new
    ] + bad


@click.command()
@click.argument("words", metavar="[GRAPH… FILE]", nargs=-1)
@click.option("--all", "all_", metavar="DIR", help="Every graph, set, label and supernode.")
@click.option("--admin", metavar="DIR", help="Files for `neo4j-admin database import`.")
@store_options
def export(session: Session, words: tuple[str, ...], all_: str | None, admin: str | None) -> None:
    """Write graphs to a FILE, or the whole store to a folder.

    The ending of FILE chooses the format: .json (circuit-tracer, Neuronpedia), .graphml, or
    .circuit, which alone keeps everything. For several graphs FILE holds {slug} or {id}. GRAPH is
    an id, the beginning of one, or a slug; global weights, by id, go to a FILE.npz.

    For example:
      circuitbase export night night.circuit
      circuitbase export night dark '{slug}.json'
      circuitbase export --all backup/        (circuitbase import backup/ takes it back)
      circuitbase export --admin bulk/        (prints the neo4j-admin command)
    """
    if sum((bool(words), all_ is not None, admin is not None)) != 1:
        raise click.UsageError("Give GRAPH… FILE, or --all DIR, or --admin DIR.")
    if len(words) == 1:
        raise click.UsageError(f"Give the graph, then the file: export GRAPH {words[0]}")
    from circuitbase.output import progress_bar

    with session.open() as store:
        if all_ is not None:
            from graphstore.backup import dump

            with progress_bar("exporting") as progress:
                count = dump(store, Path(all_), progress)
            session.say(
                f"wrote {count} graphs to {all_}; `circuitbase import {all_}` takes them back"
            )
        elif admin is not None:
            from graphstore import admin as bulk

            with progress_bar("exporting") as progress:
                count = bulk.export(store, Path(admin), progress)
            session.say(f"wrote {count} graphs; load them into an empty Neo4j with")
            session.say(f"cd {admin} && neo4j-admin database import full @import.args")
        else:
            _export_graphs(session, store, words[:-1], words[-1])


def _export_graphs(session: Session, store: Store, names: tuple[str, ...], file: str) -> None:
    import graphstore

    if file.endswith(".npz"):
        _export_weights(session, store, names, file)
        return
    if len(names) > 1 and "{slug}" not in file and "{id}" not in file:
        raise click.UsageError(
            f"{len(names)} graphs need a file each: put {{slug}} or {{id}} into its name, such as "
            "'{slug}.json'."
        )
    written: set[str] = set()
    for graph_id in [store.find(name) for name in names]:
        graph = store.read(graph_id)
        slug = "".join(c if c.isalnum() or c in "-_." else "-" for c in graph.slug).strip(".")
        path = file.replace("{slug}", slug or graph_id).replace("{id}", graph_id)
        if path in written:
            raise click.UsageError(f"Two graphs would go to {path}: use {{id}} in its name.")
        graphstore.write_graph(graph, Path(path))
        written.add(path)
        session.say(f"wrote {path}")


def _export_weights(session: Session, store: Store, names: tuple[str, ...], file: str) -> None:
    if len(names) > 1 and "{id}" not in file:
        raise click.UsageError(f"{len(names)} global weights need a file each: '{{id}}.npz'.")
    for weights_id in [store.find_weights(name) for name in names]:
        path = store.read_weights(weights_id).save(file.replace("{id}", weights_id))
        session.say(f"wrote {path}")
