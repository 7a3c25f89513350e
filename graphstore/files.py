"""Graph files in and out: one function to read any of them, one to write.

What a file is is found from its content; what to write, from the name's ending. A format is an
entry of :data:`FORMATS`.
"""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from graphstore.formats.circuit import HEADER, read_circuit, write_circuit
from graphstore.formats.common import Limits, check_size, unreadable
from graphstore.formats.graphml import read_graphml, write_graphml
from graphstore.formats.json_graph import read_json
from graphstore.formats.json_write import write_json
from graphstore.formats.torch_graph import read_torch
from tracer.errors import FormatError, nearest
from tracer.graph import AttributionGraph

__all__ = ["FORMATS", "Format", "Limits", "holds_global_weights", "read_graph", "write_graph"]


@dataclass(frozen=True)
class Format:
    """One kind of graph file.

    Attributes
    ----------
    name
        What it is called in messages.
    endings
        Endings of names under which it is written; none for formats that are only read.
    recognise
        Whether the start of a file and the names in it, if it is a zip archive, are of this kind.
    read
        Reads ``(path, limits, options)``; options are those of :func:`read_graph`.
    write
        Writes a graph to a path, or None.
    """

    name: str
    endings: tuple[str, ...]
    recognise: Callable[[bytes, tuple[str, ...]], bool]
    read: Callable[[Path, Limits, dict[str, Any]], AttributionGraph]
    write: Callable[[AttributionGraph, Path], None] | None = None


def read_graph(
    path: str | os.PathLike[str],
    *,
    transcoder: str | None = None,
    model: str | None = None,
    drop_dangling: bool = False,
    limits: Limits | None = None,
) -> AttributionGraph:
    """Read an attribution graph from a file of any known format.

    Parameters
    ----------
    path
        A circuit-tracer, Neuronpedia or Anthropic JSON, a circuit-tracer ``.pt``, a GraphML or a
        ``.circuit`` file, under any name.
    transcoder, model
        Ids of the transcoder and the model, where you know better than the file.
    drop_dangling
        Drop links of a JSON file to nodes that it does not list, in place of refusing it.
    limits
        Sizes and depths beyond which a file is refused; ``Limits()`` if None.

    Returns
    -------
    AttributionGraph
        ``source`` tells where it came from and what the file's fields meant.

    Raises
    ------
    FormatError
        If the file is unreadable, damaged, too large, of no known format or version, or does not
        hold an attribution graph; the message names the file and the field.

    Warns
    -----
    CircuitWarning
        If the transcoder may not be known, links are dropped, or pinned ids name no node.
    """
    path, limits = Path(path), limits or Limits()
    check_size(path, limits)
    options = {"transcoder": transcoder, "model": model, "drop_dangling": drop_dangling}
    return _recognise(path).read(path, limits, options)


def holds_global_weights(path: str | os.PathLike[str]) -> bool:
    """Whether a file says that it is one of :meth:`tracer.GlobalWeights.save`, not of a graph."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open("header.npy") as header:
            return b'"circuitbase global weights"' in header.read(4096)
    except (OSError, KeyError, RuntimeError, zipfile.BadZipFile, NotImplementedError):
        return False


def write_graph(graph: AttributionGraph, path: str | os.PathLike[str]) -> None:
    """Write an attribution graph in the format that the name's ending says.

    The file appears whole or not at all; what stood there before is replaced only when the new one
    is complete.

    Parameters
    ----------
    graph
        What to write.
    path
        ``….json`` (circuit-tracer's and Neuronpedia's layout), ``….graphml`` or ``….circuit`` (the
        only one that keeps every field).

    Raises
    ------
    FormatError
        If the ending is unknown, or the file cannot be written.
    """
    path = Path(path)
    for format_ in FORMATS:
        if format_.write is not None and path.name.lower().endswith(format_.endings):
            return format_.write(graph, path)
    known = [ending for format_ in FORMATS for ending in format_.endings]
    raise FormatError(
        f"{path}: no format is written to the ending {path.suffix!r}",
        f"{nearest(path.suffix, known)} Use one of {', '.join(known)}".strip(),
    )


def _recognise(path: Path) -> Format:
    try:
        with path.open("rb") as file:
            start = file.read(512)
        members: tuple[str, ...] = ()
        if start.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                members = tuple(archive.namelist())
    except OSError as error:
        raise unreadable(path, error) from error
    except zipfile.BadZipFile as error:
        raise FormatError(
            f"{path}: the archive is damaged ({error})",
            "It may be cut off: copy or export it again",
        ) from error
    for format_ in FORMATS:
        if format_.recognise(start, members):
            return format_
    for signs, what, remedy in _NEARLY:
        if start.startswith(signs):
            raise FormatError(f"{path}: is {what}", remedy)
    raise FormatError(
        f"{path}: is no graph file of a known format",
        f"Known are {', '.join(format_.name for format_ in FORMATS)}",
    )


def _starts(sign: bytes) -> Callable[[bytes, tuple[str, ...]], bool]:
    return lambda start, _: start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(sign)


FORMATS: Final = (
    Format(
        "circuit",
        (".circuit",),
        lambda _, members: HEADER in members,
        lambda path, limits, options: _named(read_circuit(path, limits), options),
        write_circuit,
    ),
    Format(
        "circuit-tracer .pt",
        (),
        lambda _, members: any(member.endswith("data.pkl") for member in members),
        lambda path, limits, options: read_torch(
            path, limits, transcoder=options["transcoder"], model=options["model"]
        ),
    ),
    Format(
        "attribution-graph JSON",
        (".json",),
        _starts(b"{"),
        lambda path, limits, options: read_json(path, limits, **options),
        write_json,
    ),
    Format(
        "GraphML",
        (".graphml",),
        _starts(b"<"),
        lambda path, limits, options: _named(read_graphml(path, limits), options),
        write_graphml,
    ),
)

_NEARLY: Final = (
    (b"\x1f\x8b", "compressed by gzip", "Decompress it first"),
    (b"\x80", "a bare pickle, which circuitbase does not open", "Save it with torch.save"),
    (
        b"[",
        "a JSON list, not an object with nodes and links",
        "Check that it is an attribution graph",
    ),
    (b"PK", "a zip archive without a graph in it", "Unpack it, and name the files in it"),
)


def _named(graph: AttributionGraph, options: dict[str, Any]) -> AttributionGraph:
    """Replace the ids of a file that carries its own by those that the caller knows better.

    The graph's id goes with them: it is another graph, of other features.
    """
    changes = {
        key: value
        for key, value in (
            ("transcoder_id", options["transcoder"]),
            ("model_id", options["model"]),
        )
        if value is not None and value != getattr(graph, key)
    }
    return graph.replace(**changes, graph_id=None) if changes else graph
