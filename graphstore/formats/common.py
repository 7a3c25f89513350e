"""What every file format needs: limits, checked reading of JSON and zip, atomic writing.

Files come from strangers. Sizes are checked before anything is inflated or parsed, and every
refusal is a :class:`~tracer.errors.FormatError` that names the file and what to do.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, Literal, overload

import numpy as np
import orjson

from tracer.errors import FormatError

__all__ = [
    "Limits",
    "atomic_file",
    "check_depth",
    "field",
    "open_zip",
    "parse_json",
    "read_bytes",
    "read_member",
    "shown",
    "unreadable",
]

_GIB: Final = 1 << 30
_BLOCK: Final = 1 << 22


@dataclass(frozen=True)
class Limits:
    """How much a file may ask for before it is refused.

    Attributes
    ----------
    file_bytes
        Largest file that is opened, in bytes.
    content_bytes
        Largest content of a compressed file once inflated, in bytes.
    depth
        Deepest nesting of JSON or XML.
    opcodes
        Longest pickle program of a ``.pt`` file, in instructions.
    """

    file_bytes: int = 4 * _GIB
    content_bytes: int = 16 * _GIB
    depth: int = 64
    opcodes: int = 100_000


# Reading ---------------------------------------------------------------------------------------


def read_bytes(path: Path, limits: Limits) -> bytes:
    """Read a whole file, if it is one and not larger than the limit."""
    check_size(path, limits)
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def check_size(path: Path, limits: Limits) -> None:
    """Refuse what is no file, is empty, or is larger than the limit."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
    except OSError as error:
        raise unreadable(path, error) from error
    if size == 0:
        raise FormatError(f"{path}: file is empty", "Export the graph again")
    if size > limits.file_bytes:
        raise FormatError(
            f"{path}: {size:,} bytes, more than the limit of {limits.file_bytes:,}",
            "Prune the graph before exporting it, or raise Limits.file_bytes",
        )


def unreadable(path: Path, error: OSError) -> FormatError:
    """Word an operating-system error met in reading."""
    remedy = {
        errno.ENOENT: "Check the path",
        errno.EISDIR: "Name the files in it",
        errno.EACCES: "Ask its owner for permission to read it",
    }.get(error.errno or 0, "Check the disk and the path")
    return FormatError(f"{path}: cannot be read ({_reason(error)})", remedy)


def parse_json(data: bytes, name: str, limits: Limits) -> Any:
    """Parse strict JSON: no NaN, no Infinity, no deeper than the limit.

    Raises
    ------
    FormatError
        Naming the line and column of the first thing that is not JSON.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    check_depth(data, name, limits)
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError as error:
        text = error.doc[max(error.pos - 1, 0) : error.pos + 10]
        if re.match(r".?-?(NaN|Inf)", text, re.DOTALL):
            what, remedy = "NaN or infinity is no number in JSON", "Export without such values"
        elif "infinity" in error.msg:
            what, remedy = "a number is too large for a float", "Export the graph again"
        elif "UTF-8" in error.msg:
            raise FormatError(f"{name}: its text is not UTF-8", "Export it again") from error
        elif error.pos >= len(error.doc.rstrip()):
            what, remedy = "the file ends too early", "It is cut off: copy or export it again"
        else:
            what, remedy = f"not JSON ({error.msg})", "Export the graph again"
        raise FormatError(
            f"{name}: line {error.lineno}, column {error.colno}: {what}", remedy
        ) from error


def check_depth(data: bytes, name: str, limits: Limits) -> None:
    """Refuse JSON nested deeper than the limit, by counting brackets outside strings."""
    inside, depth = 0, 0
    # Escapes never matter for where a string ends once \\ and \" are gone, in this order.
    for start in range(0, len(data), _BLOCK):
        piece = data[start : start + _BLOCK]
        if b"\\" in piece:  # rare: blocks must not cut an escape in two
            return _check_depth_of(data.replace(b"\\\\", b"").replace(b'\\"', b""), name, limits)
        inside, depth = _nesting(piece, inside, depth, name, limits)
    return None


def _check_depth_of(data: bytes, name: str, limits: Limits) -> None:
    inside, depth = 0, 0
    for start in range(0, len(data), _BLOCK):
        inside, depth = _nesting(data[start : start + _BLOCK], inside, depth, name, limits)


def _nesting(piece: bytes, inside: int, depth: int, name: str, limits: Limits) -> tuple[int, int]:
    """Carry (inside a string, depth) over one block, and refuse it where too deep."""
    signs = _SIGNS[np.frombuffer(piece, dtype=np.uint8)]
    signs = signs[signs != 0]  # a tenth of the bytes, as a rule
    if not len(signs):
        return inside, depth
    quotes = signs == _QUOTE
    strings = np.cumsum(quotes, dtype=np.int32) + inside
    signs[quotes | (strings % 2 == 1)] = 0
    depths = np.cumsum(signs, dtype=np.int32) + depth
    if depths.max(initial=0) > limits.depth:
        raise FormatError(
            f"{name}: nested deeper than {limits.depth} levels",
            "An attribution graph needs six; raise Limits.depth if this one is meant to be so",
        )
    return int(strings[-1] % 2), int(depths[-1])


_QUOTE: Final = 2
_SIGNS: Final = np.zeros(256, dtype=np.int8)
_SIGNS[[ord("["), ord("{")]] = 1
_SIGNS[[ord("]"), ord("}")]] = -1
_SIGNS[ord('"')] = _QUOTE


# Fields of parsed JSON -------------------------------------------------------------------------

Wanted = Literal["text", "whole", "number", "list", "object"]
_WANTED: Final[Mapping[Wanted, tuple[tuple[type, ...], str]]] = {
    "text": ((str,), "a text"),
    "whole": ((int,), "a whole number"),
    "number": ((int, float), "a number"),
    "list": ((list,), "a list"),
    "object": ((dict,), "an object"),
}
_MISSING: Final = object()


@overload
def field(
    record: Mapping[str, Any], key: str, wanted: Literal["text"], where: str, default: str = ...
) -> str: ...
@overload
def field(
    record: Mapping[str, Any], key: str, wanted: Literal["whole"], where: str, default: int = ...
) -> int: ...
@overload
def field(
    record: Mapping[str, Any],
    key: str,
    wanted: Literal["number"],
    where: str,
    default: float = ...,
) -> float: ...
@overload
def field(
    record: Mapping[str, Any],
    key: str,
    wanted: Literal["list"],
    where: str,
    default: list[Any] = ...,
) -> list[Any]: ...
@overload
def field(
    record: Mapping[str, Any],
    key: str,
    wanted: Literal["object"],
    where: str,
    default: dict[str, Any] = ...,
) -> dict[str, Any]: ...
def field(
    record: Mapping[str, Any], key: str, wanted: Wanted, where: str, default: Any = _MISSING
) -> Any:
    """Take one field of a JSON object, of the type that the format gives it.

    Parameters
    ----------
    record, key
        The object and the name of its field.
    wanted
        ``text``, ``whole``, ``number``, ``list`` or ``object``.
    where
        File and place, as ``night.json: nodes[17]``, or ``night.json: `` for the file's own
        fields, for the message.
    default
        What a missing or null field means; without it, the field is required.

    Raises
    ------
    FormatError
        If it is missing or of another type.
    """
    value = record.get(key, _MISSING)
    if (value is _MISSING or value is None) and default is not _MISSING:
        return default
    place = f"{where}{key}" if where.endswith(": ") else f"{where}.{key}"
    if value is _MISSING:
        raise FormatError(f"{place} is missing", "Export the graph again: the format needs it")
    types, words = _WANTED[wanted]
    if type(value) not in types:  # exactly: true is no number
        raise FormatError(f"{place} is {shown(value)}, not {words}", "Export the graph again")
    return value


def shown(value: Any) -> str:
    """Show a value in an error message: as JSON, and short."""
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


# Zip -------------------------------------------------------------------------------------------


@contextmanager
def open_zip(path: Path, limits: Limits) -> Iterator[zipfile.ZipFile]:
    """Open an archive whose contents, inflated, stay within the limit; name it in every error."""
    check_size(path, limits)
    try:
        with zipfile.ZipFile(path) as archive:
            _check_members(archive, str(path), limits)
            yield archive
    except OSError as error:
        raise unreadable(path, error) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise FormatError(
            f"{path}: the archive is damaged ({error})",
            "It may be cut off: copy or export it again",
        ) from error


def _check_members(archive: zipfile.ZipFile, name: str, limits: Limits) -> None:
    size, names = 0, set()
    for member in archive.infolist():
        size += member.file_size
        if member.filename in names:
            raise FormatError(
                f"{name}: holds {shown(member.filename)} twice", "Export the graph again"
            )
        names.add(member.filename)
        if member.flag_bits & 0x1:
            raise FormatError(f"{name}: is encrypted", "Export the graph without a password")
    if size > limits.content_bytes:
        raise FormatError(
            f"{name}: inflates to {size:,} bytes, more than the limit of {limits.content_bytes:,}",
            "Do not open it unless you know its maker; then raise Limits.content_bytes",
        )


def read_member(archive: zipfile.ZipFile, member: str, name: str) -> bytes:
    """Read one member whole; never more than the size that was checked, and with its checksum."""
    try:
        return archive.read(member)
    except KeyError as error:
        raise FormatError(f"{name}: lacks its part {shown(member)}", "Export it again") from error


# Writing ---------------------------------------------------------------------------------------


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Write a file beside its place and move it there when whole; a failure leaves nothing.

    Raises
    ------
    FormatError
        If the folder is missing, read-only or full. What stood at `path` before is intact.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            with suppress(OSError):
                temporary.unlink()
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> FormatError:
    remedy = {
        errno.ENOENT: "Make the folder first",
        errno.ENOTDIR: "Choose a folder",
        errno.EISDIR: "Name a file, not a folder",
        errno.EACCES: "Choose a folder that you may write to",
        errno.EROFS: "Choose a folder on a disk that can be written to",
        errno.ENOSPC: "Free some space, or choose another disk; nothing was left behind",
        errno.EDQUOT: "Free some of your quota; nothing was left behind",
        errno.EFBIG: "Choose a disk that takes files of this size; nothing was left behind",
    }.get(error.errno or 0, "Check the disk and the path; nothing was left behind")
    return FormatError(f"{path}: cannot be written ({_reason(error)})", remedy)


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
