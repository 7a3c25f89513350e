"""A whole store as a folder, and back: backup, migration and repair in one.

::

    DIR/
        circuitbase.json         written last: sets, labels, which graphs; its absence means an
                                 interrupted export, which `dump` starts again
        features.jsonl           a line a described feature: figures and examples over a corpus
        graphs/{graph_id}.circuit
        weights/{weights_id}.npz
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import neo4j
import orjson

from graphstore.circuits import all_circuits, circuit_from_file
from graphstore.claims import lock_vault
from graphstore.describing import add_descriptions, all_descriptions
from graphstore.files import read_graph, write_graph
from graphstore.grouping import LABEL_ROWS, parts_of_feature_id
from tracer.errors import FormatError, GraphError, NotFoundError
from tracer.weights import GlobalWeights

if TYPE_CHECKING:
    from graphstore.store import Store
    from tracer.errors import CircuitError
    from tracer.graph import AttributionGraph

__all__ = ["dump", "is_dump", "restore"]

MANIFEST: Final = "circuitbase.json"
FEATURES: Final = "features.jsonl"
_FORMAT: Final = "circuitbase export"
_DESCRIPTIONS: Final = 1_000  # descriptions that are added together
_VERSION: Final = 1

Progress = Callable[[int, int], None]

_GRAPHS: Final = """
MATCH (g:Graph) WHERE g.complete = true
OPTIONAL MATCH (p:PromptSet)-[:INCLUDES]->(g)
WITH g.graph_id AS graph_id, g.gno AS gno, collect(p.name) AS sets
RETURN graph_id, sets ORDER BY gno
"""
_SETS: Final = """
MATCH (p:PromptSet) RETURN p.name AS name, p.description AS description ORDER BY name
"""
_LABELS: Final = """
MATCH (f:Feature) WHERE f.label IS NOT NULL
RETURN f.feature_id AS feature_id, f.label AS label, f.label_source AS source ORDER BY feature_id
"""


def dump(store: Store, folder: str | Path, progress: Progress | None = None) -> int:
    """Write every graph, set and label of a store into a folder.

    Parameters
    ----------
    store
        The store; it may be written meanwhile, graphs that come later are left out.
    folder
        New or empty, or what an interrupted export left.
    progress
        Called with how many graphs are written, and how many there are.

    Returns
    -------
    int
        How many graphs the folder holds.

    Raises
    ------
    FormatError
        If the folder holds something else, or cannot be written.
    """
    place = Path(folder)
    _prepare(place)
    listed = store.rows(_GRAPHS)
    graphs = []
    for done, row in enumerate(listed, start=1):
        try:  # again even if an earlier try left a file: groups may have been made since
            write_graph(
                store.read(row["graph_id"]), place / "graphs" / f"{row['graph_id']}.circuit"
            )
        except NotFoundError:
            continue  # deleted meanwhile
        graphs.append(row)
        if progress is not None:
            progress(done, len(listed))
    _remove_others(place, {row["graph_id"] for row in graphs})
    weights = _write_weights(store, place / "weights")
    described = _write_descriptions(store, place / FEATURES)
    manifest = {
        "format": _FORMAT,
        "version": _VERSION,
        "graphs": [{**row, "sets": sorted(row["sets"])} for row in graphs],
        "sets": store.rows(_SETS),
        "labels": store.rows(_LABELS),
        "weights": weights,
        "circuits": _without_nan(all_circuits(store)),
        "described": described,
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False)
    try:
        temporary = place / f"{MANIFEST}.tmp"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(place / MANIFEST)
    except OSError as error:
        raise FormatError(
            f"{place / MANIFEST}: cannot be written ({error})", "Free space and export again"
        ) from error
    return len(graphs)


def _write_descriptions(store: Store, path: Path) -> int:
    """Write descriptions of features, if there are any; how many."""
    count = 0
    try:
        with path.open("w", encoding="utf-8") as file:
            for row in all_descriptions(store):
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                count += 1
        if not count:
            path.unlink()
    except OSError as error:
        raise FormatError(
            f"{path}: cannot be written ({error})", "Free space and export again"
        ) from error
    return count


def _without_nan(value: Any) -> Any:
    """Value as JSON has it: what is unknown is null."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and value != value else value


def _write_weights(store: Store, place: Path) -> list[str]:
    """Write every submatrix of global weights, if there are any; their ids."""
    written = []
    for weights_id in store.weights()["weights_id"].tolist():
        try:
            store.read_weights(weights_id).save(place / f"{weights_id}.npz")
        except NotFoundError:
            continue  # deleted meanwhile
        written.append(weights_id)
    for path in place.glob("*.npz"):  # of an earlier, interrupted export
        if path.stem not in written:
            path.unlink()
    return written


def is_dump(path: str | Path) -> bool:
    """Whether a path is a folder that :func:`dump` finished."""
    return (Path(path) / MANIFEST).is_file()


_ADD_LABELS: Final = """
UNWIND $rows AS r
MERGE (f:Feature {feature_id: r.feature_id})
ON CREATE SET f.transcoder_id = r.transcoder_id, f.layer = r.layer, f.index = r.index
WITH f, r WHERE f.label IS NULL
SET f.label = r.label, f.label_source = r.source
"""


def restore(
    store: Store,
    folder: str | Path,
    progress: Progress | None = None,
    *,
    prompt_set: str | None = None,
    failed: Callable[[Path, CircuitError], None] | None = None,
) -> int:
    """Take a folder made by :func:`dump` into a store; nothing stored is overwritten.

    Parameters
    ----------
    store, folder
        Where to, and where from.
    progress
        Called with how many graphs are read, and how many there are.
    prompt_set
        A set that gets every graph, beside the sets it was in.
    failed
        Called with each file of a graph or of global weights that cannot be read, which is then
        skipped; without it, the first one is raised.

    Returns
    -------
    int
        How many graphs were new to the store.

    Raises
    ------
    FormatError
        If the manifest or a file of the folder cannot be read; what was read before is stored.
    """
    place = Path(folder)
    manifest = _read_manifest(place)
    for row in manifest["sets"]:
        store.add_set(row["name"], row.get("description"))
    # Before the graphs: a label of the manifest comes before the one in a graph's file.
    labels = [_label_row(place, row) for row in manifest["labels"]]
    for start in range(0, len(labels), LABEL_ROWS):
        _add_labels(store, labels[start : start + LABEL_ROWS])
    _restore_descriptions(store, place / FEATURES, manifest.get("described", 0))
    known = set(store.circuits()["name"])
    for circuit in manifest.get("circuits", []):
        if circuit_from_file(circuit, str(place / MANIFEST))["name"] not in known:
            store.keep_circuit(circuit)
    new = 0
    for done, row in enumerate(manifest["graphs"], start=1):
        path = place / "graphs" / f"{row['graph_id']}.circuit"
        try:
            graph = _read_member(path, row["graph_id"])
        except (FormatError, GraphError) as error:
            if failed is None:
                raise
            failed(path, error)
            continue
        new += store.write(graph)
        for name in [*row["sets"], *([prompt_set] if prompt_set else [])]:
            store.write(graph, prompt_set=name)
        if progress is not None:
            progress(done, len(manifest["graphs"]))
    _restore_weights(store, place / "weights", manifest["weights"], failed)
    return new


def _restore_weights(
    store: Store,
    place: Path,
    names: list[str],
    failed: Callable[[Path, CircuitError], None] | None,
) -> None:
    for weights_id in names:
        path = place / f"{weights_id}.npz"
        try:
            weights = GlobalWeights.load(path)
            if weights.weights_id != weights_id:
                raise FormatError(
                    f"{path}: holds global weights {weights.weights_id}",
                    "Export again: the folder was changed",
                )
        except FormatError as error:
            if failed is None:
                raise
            failed(path, error)
            continue
        store.write_weights(weights)


def _add_labels(store: Store, rows: list[dict[str, Any]]) -> None:
    def work(tx: neo4j.ManagedTransaction) -> None:
        lock_vault(tx)  # else a delete may remove a feature before it has its label
        tx.run(_ADD_LABELS, rows=rows).consume()

    store.transact(work, merges=True)


def _restore_descriptions(store: Store, path: Path, count: int) -> None:
    """Add the descriptions that a folder holds to features that have none."""
    if not count:
        return
    batch: list[dict[str, Any]] = []
    found = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                batch.append(_description(line, f"{path}:{number}"))
                found += 1
                if len(batch) == _DESCRIPTIONS:
                    add_descriptions(store, batch)
                    batch = []
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error})", "Export again") from error
    if found != count:
        raise FormatError(f"{path}: has {found} lines, {MANIFEST} says {count}", "Export again")
    add_descriptions(store, batch)


def _description(line: bytes, where: str) -> dict[str, Any]:
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise FormatError(f"{where}: is not JSON ({error})", "Export again") from error
    if not isinstance(row, dict) or not isinstance(row.get("feature_id"), str):
        raise FormatError(f"{where}: describes no feature", "Export again")
    return row


def _read_member(path: Path, graph_id: str) -> AttributionGraph:
    graph = read_graph(path)
    if graph.graph_id != graph_id:
        raise FormatError(
            f"{path}: holds graph {graph.graph_id}", "Export again: the folder was changed"
        )
    return graph


def _remove_others(place: Path, kept: set[str]) -> None:
    """Remove what an earlier, interrupted export wrote of graphs that are gone."""
    for path in (place / "graphs").glob("*.circuit"):
        if path.stem not in kept:
            path.unlink()


def _prepare(place: Path) -> None:
    try:
        if (place / MANIFEST).exists():
            raise FormatError(f"{place}: holds an export already", "Name a new folder")
        made = {"graphs", "weights", FEATURES}
        if place.exists() and {entry.name for entry in place.iterdir()} - made:
            raise FormatError(f"{place}: holds other files", "Name a new or empty folder")
        (place / "graphs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FormatError(
            f"{place}: cannot be written ({error})", "Name a folder that can be made or written"
        ) from error


def _read_manifest(place: Path) -> dict[str, Any]:
    path = place / MANIFEST
    try:
        manifest = orjson.loads(path.read_bytes())
    except OSError as error:
        raise FormatError(
            f"{path}: cannot be read ({error})",
            "An export without it was interrupted; export to the same folder again",
        ) from error
    except orjson.JSONDecodeError as error:
        raise FormatError(f"{path}: is not JSON ({error})", "Export again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise FormatError(f"{path}: is no circuitbase export", "Name a folder that export made")
    if manifest.get("version") != _VERSION:
        raise FormatError(
            f"{path}: has version {manifest.get('version')}, this circuitbase knows {_VERSION}",
            "Upgrade circuitbase (pip install --upgrade circuitbase)",
        )
    _check_rows(path, manifest, "graphs", {"graph_id": str, "sets": list})
    _check_rows(path, manifest, "sets", {"name": str})
    _check_rows(path, manifest, "labels", {"feature_id": str, "label": str})
    if "circuits" in manifest:  # exports of older versions hold none
        _check_rows(path, manifest, "circuits", {"name": str, "features": list, "edges": list})
    ids = [row["graph_id"] for row in manifest["graphs"]]
    if not isinstance(manifest.setdefault("weights", []), list):  # older versions have none
        raise FormatError(f"{path}: weights is not a list", "Export again")
    for what, names in (("graph id", ids), ("id of global weights", manifest["weights"])):
        for name in names:
            if not (isinstance(name, str) and re.fullmatch("[0-9a-f]{16}", name)):
                raise FormatError(f"{path}: {name!r} is no {what}", "Export again")
    return manifest


def _check_rows(path: Path, manifest: dict[str, Any], name: str, types: dict[str, type]) -> None:
    rows = manifest.get(name)
    if not isinstance(rows, list):
        raise FormatError(f"{path}: {name} is not a list", "Export again")
    for number, row in enumerate(rows):
        for key, expected in types.items():
            if not isinstance(row, dict) or not isinstance(row.get(key), expected):
                raise FormatError(
                    f"{path}: {name}[{number}].{key} is not a {expected.__name__}", "Export again"
                )


def _label_row(place: Path, row: dict[str, Any]) -> dict[str, Any]:
    parts = parts_of_feature_id(row["feature_id"])
    if parts is None:
        raise FormatError(
            f"{place / MANIFEST}: {row['feature_id']!r} is no feature id", "Export again"
        )
    return {
        **row,
        "source": row.get("source"),
        "transcoder_id": parts[0],
        "layer": parts[1],
        "index": parts[2],
    }
