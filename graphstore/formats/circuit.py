"""The ``.circuit`` file: a graph, exact in every field, that opens without executing anything.

A zip archive of ``header.json``, the node table's columns (``nodes/{column}.npy``, texts as
``nodes/{column}.json``) and the matrices in CSR form (``adjacency/data.npy``, ``indices``,
``indptr``; likewise ``residual`` and ``attention``). Arrays are plain NumPy files (format 1.0, no
objects). The same graph gives the same bytes.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from graphstore.formats.common import (
    Limits,
    atomic_file,
    check_depth,
    field,
    open_zip,
    read_member,
    shown,
)
from graphstore.formats.header import build, dump_header, graph_header, load_header
from tracer.errors import FormatError
from tracer.graph import NODE_COLUMNS, AttributionGraph, node_table

__all__ = ["HEADER", "read_circuit", "write_circuit"]

HEADER: Final = "header.json"

_MATRICES: Final = ("adjacency", "residual", "attention")
_DTYPES: Final = {
    "real": ("<f8",),
    "integer": ("<i8",),
    "data": ("<f4", "<f8"),
    "indices": ("<i4", "<i8"),
    "indptr": ("<i4", "<i8"),
}
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # one time for all, so that equal graphs are equal files


# Reading ---------------------------------------------------------------------------------------


def read_circuit(path: Path, limits: Limits) -> AttributionGraph:
    """Read a ``.circuit`` file.

    Raises
    ------
    FormatError
        If it is damaged, too large, of an unknown version, or breaks a rule of a graph.
    """
    name = str(path)
    with open_zip(path, limits) as archive:
        header = load_header(read_member(archive, HEADER, name), name, limits)
        n = field(header, "n_nodes", "whole", f"{name}: header")
        nodes = node_table(
            {
                column: _read_column(archive, str(column), n, name, limits)
                for column in field(header, "columns", "list", f"{name}: header")
            }
        )
        matrices = {
            str(matrix): _read_matrix(archive, str(matrix), n, name)
            for matrix in field(header, "matrices", "list", f"{name}: header")
        }
    if "adjacency" not in matrices or set(matrices) - set(_MATRICES):
        raise FormatError(
            f"{name}: holds the matrices {', '.join(matrices)}", f"Known are {', '.join(_MATRICES)}"
        )
    return build(header, nodes, matrices, name)


def _read_column(
    archive: zipfile.ZipFile, column: str, n: int, name: str, limits: Limits
) -> NDArray[Any]:
    if column not in NODE_COLUMNS:
        raise FormatError(
            f"{name}: has an unknown node column {shown(column)}", "Upgrade circuitbase"
        )
    type_ = NODE_COLUMNS[column].type
    if type_ != "text":
        return _read_array(archive, f"nodes/{column}.npy", _DTYPES[type_], n, name)
    member = f"nodes/{column}.json"
    data = read_member(archive, member, name)
    check_depth(data, name, limits)
    try:
        values = json.loads(data)
    except ValueError as error:
        raise FormatError(f"{name}: {member} is not JSON ({error})", "Export it again") from error
    if not isinstance(values, list) or len(values) != n:
        raise FormatError(f"{name}: {member} does not list {n} texts", "Export the graph again")
    for place, value in enumerate(values):
        if value is not None and not isinstance(value, str):
            raise FormatError(
                f"{name}: {member}[{place}] is {shown(value)}, not a text", "Export it again"
            )
    texts = np.empty(n, dtype=object)
    texts[:] = values
    return texts


def _read_matrix(archive: zipfile.ZipFile, matrix: str, n: int, name: str) -> csr_array:
    parts = {
        part: _read_array(archive, f"{matrix}/{part}.npy", _DTYPES[part], None, name)
        for part in ("data", "indices", "indptr")
    }
    data, indices, indptr = parts["data"], parts["indices"], parts["indptr"]
    whole = (
        len(indptr) == n + 1
        and indptr[0] == 0
        and indptr[-1] == len(data) == len(indices)
        and bool((np.diff(indptr) >= 0).all())
        and (len(indices) == 0 or bool(indices.min() >= 0 and indices.max() < n))
    )
    if not whole:
        raise FormatError(
            f"{name}: the parts of {matrix} do not fit a matrix of {n} nodes",
            "The file is damaged: export the graph again",
        )
    return csr_array((data, indices, indptr), shape=(n, n))


def _read_array(
    archive: zipfile.ZipFile, member: str, dtypes: tuple[str, ...], n: int | None, name: str
) -> NDArray[Any]:
    """Read a one-dimensional NumPy file, believing its header only if the bytes agree."""
    data = read_member(archive, member, name)
    file = io.BytesIO(data)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("not version 1.0")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except ValueError as error:
        raise FormatError(f"{name}: {member} is no array ({error})", "Export it again") from error
    fits = (
        dtype.str in dtypes
        and len(shape) == 1
        and shape[0] * dtype.itemsize == len(data) - file.tell()
        and n in (None, shape[0])
    )
    if not fits:
        raise FormatError(
            f"{name}: {member} holds {dtype.str} of shape {shape}, not what the graph needs",
            "The file is damaged: export the graph again",
        )
    return np.frombuffer(data, dtype=dtype, offset=file.tell())


# Writing ---------------------------------------------------------------------------------------


def write_circuit(graph: AttributionGraph, path: Path) -> None:
    """Write a graph as ``.circuit``.

    Raises
    ------
    FormatError
        If the file cannot be written, or settings hold what JSON cannot.
    """
    matrices = {name: matrix for name in _MATRICES if (matrix := getattr(graph, name)) is not None}
    header = dump_header(
        {
            **graph_header(graph),
            "n_nodes": graph.n_nodes,
            "columns": list(graph.nodes.columns),
            "matrices": list(matrices),
        },
        str(path),
    )
    with atomic_file(path) as file, zipfile.ZipFile(file, "w") as archive:
        _put(archive, HEADER, header.encode())
        for column in graph.nodes.columns:
            values = graph.nodes[column]
            if NODE_COLUMNS[column].type == "text":
                texts = json.dumps(values.tolist(), ensure_ascii=True, separators=(",", ":"))
                _put(archive, f"nodes/{column}.json", texts.encode())
            else:
                _put_array(archive, f"nodes/{column}.npy", values.to_numpy())
        for name, matrix in matrices.items():
            for part in ("data", "indices", "indptr"):
                _put_array(archive, f"{name}/{part}.npy", getattr(matrix, part))


def _put_array(archive: zipfile.ZipFile, member: str, values: NDArray[Any]) -> None:
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("<"))
    head = io.BytesIO()
    header = np.lib.format.header_data_from_array_1_0(values)
    np.lib.format.write_array_header_1_0(head, header)
    _put(archive, member, head.getvalue(), values.data.cast("B") if values.size else b"")


def _put(archive: zipfile.ZipFile, member: str, *pieces: bytes | memoryview) -> None:
    info = zipfile.ZipInfo(member, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.create_system = 3  # the same on every platform
    info.external_attr = 0o644 << 16
    # Deflate's level hardly matters for weights, which are noise to it; this one is fast.
    info._compresslevel = 3  # type: ignore[attr-defined]
    with archive.open(info, "w", force_zip64=True) as file:
        for piece in pieces:
            file.write(piece)
