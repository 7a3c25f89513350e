"""Tensors that stay on disk until a part of them is asked for.

A safetensors file is a header (names, types, shapes, offsets) and then the numbers, row by row; an
uncompressed npz file is the same with a header before each tensor. Both are read here with plain
reads at computed offsets: exactly the wanted rows, into memory that belongs to the caller. Compared
with a memory map this costs no address space, a file that was cut short is an error rather than a
signal, and what was read once does not stay resident.

Sources: the safetensors format (8 bytes of header length, JSON, data); NumPy's npy format (NEP 1).
"""

from __future__ import annotations

import ast
import hashlib
import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracer.errors import FormatError
from tracer.graph import JSON

__all__ = ["StoredTensor", "TensorFile", "fingerprint_of", "open_tensors", "ranges"]

Indices = NDArray[np.int64]

_SAFETENSORS_TYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NPY_TYPES: Final = {
    "f8": torch.float64,
    "f4": torch.float32,
    "f2": torch.float16,
    "i8": torch.int64,
    "i4": torch.int32,
    "i2": torch.int16,
    "i1": torch.int8,
    "u1": torch.uint8,
    "b1": torch.bool,
}
_LONGEST_HEADER: Final = 100 << 20  # the limit that the safetensors library itself sets
_DAMAGED: Final = "Download or copy it again"


def open_tensors(path: Path) -> TensorFile:
    """Read the list of tensors of a safetensors or npz file, and nothing else.

    Raises
    ------
    FormatError
        If the file is missing, cut short, or not what its name says.

    Examples
    --------
    >>> import tempfile
    >>> from safetensors.torch import save_file
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "weights.safetensors"
    ...     save_file({"W": torch.arange(6.0).reshape(3, 2)}, path)
    ...     open_tensors(path)["W"].take(np.array([0, 2])).tolist()
    [[0.0, 1.0], [4.0, 5.0]]
    """
    if not path.is_file():
        raise FormatError(f"{path}: no such file", "Complete the checkpoint")
    if path.suffix == ".npz":
        return TensorFile(path, _npz_tensors(path))
    return TensorFile(path, _safetensors_tensors(path))


@dataclass(frozen=True)
class TensorFile(Mapping[str, "StoredTensor"]):
    """The tensors of one file by name; a missing one is an error that says what there is."""

    path: Path
    tensors: dict[str, StoredTensor]

    def __getitem__(self, name: str) -> StoredTensor:
        if name not in self.tensors:
            shown = ", ".join(sorted(self.tensors)[:8]) or "nothing"
            raise FormatError(
                f'{self.path}: tensor "{name}" is missing (the file holds {shown}'
                f"{', …' if len(self.tensors) > 8 else ''})",
                "Complete the checkpoint",
            )
        return self.tensors[name]

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def __len__(self) -> int:
        return len(self.tensors)

    def at(self, name: str, *shape: int | None) -> StoredTensor:
        """Tensor `name`, which must have this shape (None: any length).

        Raises
        ------
        FormatError
            If it is missing or has another shape.
        """
        tensor = self[name]
        fits = len(shape) == len(tensor.shape) and all(
            wanted in (None, length) for wanted, length in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            raise FormatError(
                f'{self.path}: tensor "{name}" has shape {list(tensor.shape)}, '
                f"but the rest of the checkpoint needs [{wanted}]",
                "Do the files belong to one checkpoint?",
            )
        return tensor


@dataclass(frozen=True)
class StoredTensor:
    """A tensor, or a part of one, in a file.

    Attributes
    ----------
    source
        Where its bytes are.
    name
        As the file names it.
    dtype
        As stored.
    shape
        As stored, or of the part.
    offset
        Of its first byte.
    stride
        Bytes between two items of the first axis; all other axes are contiguous.
    """

    source: _Source
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    stride: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.source.path

    def __getitem__(self, index: int) -> StoredTensor:
        """Part of the first axis, which goes."""
        inner = self.shape[1:]
        return replace(
            self,
            shape=inner,
            offset=self.offset + index * self.stride,
            stride=_stride(inner, self.dtype),
        )

    def inner(self, start: int, stop: int) -> StoredTensor:
        """Slice of the second axis."""
        step = math.prod(self.shape[2:]) * self.dtype.itemsize
        shape = (self.shape[0], stop - start, *self.shape[2:])
        return replace(self, shape=shape, offset=self.offset + start * step)

    def rows(self, start: int, stop: int) -> StoredTensor:
        """Slice of the first axis."""
        shape = (stop - start, *self.shape[1:])
        return replace(self, shape=shape, offset=self.offset + start * self.stride)

    def read(self) -> Tensor:
        """All of it.

        Raises
        ------
        FormatError
            If the file ends early, or a number is NaN or infinite.
        """
        if not self.shape:
            return replace(self, shape=(1,)).read()[0]
        tensor = self._read_runs([(0, self.shape[0])])
        key = (self.offset, self.shape)
        if key not in self.source.checked:  # once: blocks of encoders are read for every prompt
            self._check(tensor)
            self.source.checked.add(key)
        return tensor

    def take(self, rows: Indices) -> Tensor:
        """Rows of the first axis, which must be sorted and unique.

        Raises
        ------
        FormatError
            If the file ends early, or a number is NaN or infinite.
        """
        tensor = self._read_runs(ranges(rows))
        self._check(tensor)
        return tensor

    def raw(self, stretches: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes of a contiguous tensor, given (start in the tensor, length) of each stretch."""
        found = []
        with self.source.open() as file:
            for start, length in stretches:
                file.seek(self.offset + start)
                found.append(file.read(length))
        return found

    @property
    def nbytes(self) -> int:
        """Bytes it takes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def _read_runs(self, runs: list[tuple[int, int]]) -> Tensor:
        """Rows of each [start, stop), one run after the other."""
        row = _stride(self.shape, self.dtype)
        count = sum(stop - start for start, stop in runs)
        tensor = torch.empty((count, *self.shape[1:]), dtype=self.dtype)
        if tensor.numel() == 0:
            return tensor
        if self.stride != row:
            runs = [(one, one + 1) for start, stop in runs for one in range(start, stop)]
        view = tensor.reshape(-1).view(torch.uint8).numpy().data
        done = 0
        with self.source.open() as file:
            for start, stop in runs:
                file.seek(self.offset + start * self.stride)
                end = done + (stop - start) * row
                while done < end:  # the system may give less than asked for
                    got = file.readinto(view[done:end])
                    if not got:
                        raise FormatError(
                            f'{self.path}: ends inside tensor "{self.name}"', _DAMAGED
                        )
                    done += got
        return tensor

    def _check(self, tensor: Tensor) -> None:
        if not tensor.is_floating_point() or tensor.numel() == 0:
            return
        low, high = tensor.aminmax()  # one pass, and NaN comes through
        if not (math.isfinite(float(low)) and math.isfinite(float(high))):
            raise FormatError(
                f'{self.path}: tensor "{self.name}" holds NaN or infinite numbers', _DAMAGED
            )


def ranges(rows: Indices) -> list[tuple[int, int]]:
    """Find runs [start, stop) of consecutive numbers in sorted, unique `rows`.

    Examples
    --------
    >>> ranges(np.array([2, 3, 4, 7, 9, 10]))
    [(2, 5), (7, 8), (9, 11)]
    """
    if len(rows) == 0:
        return []
    breaks = np.flatnonzero(np.diff(rows) != 1)
    starts = rows[np.concatenate(([0], breaks + 1))]
    stops = rows[np.concatenate((breaks, [len(rows) - 1]))] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


class _Bytes(Protocol):
    """What is asked of an open file, whether on disk or in memory."""

    def seek(self, offset: int, /) -> int: ...

    def read(self, size: int = -1, /) -> bytes: ...

    def readinto(self, buffer: memoryview, /) -> int | None: ...


@dataclass(eq=False)
class _Source:
    """A file, opened for each read: nothing stays open, and threads and processes can share it."""

    path: Path
    checked: set[tuple[int, tuple[int, ...]]] = field(default_factory=set)

    @contextmanager
    def open(self) -> Iterator[_Bytes]:
        try:
            file = self.path.open("rb", buffering=0)
        except OSError as error:
            raise FormatError(f"{self.path}: {error.strerror}", "Complete the checkpoint") from None
        with file:
            yield file


@dataclass(eq=False)
class _Inflated(_Source):
    """A compressed (or column-major) member of an npz file, unpacked while it is in use."""

    member: str = ""
    _last: bytes | None = None

    @contextmanager
    def open(self) -> Iterator[_Bytes]:
        if self._last is None:
            try:
                with np.load(self.path, allow_pickle=False) as archive:
                    self._last = np.ascontiguousarray(archive[self.member]).tobytes()
            except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
                raise FormatError(
                    f'{self.path}: tensor "{self.member}" cannot be unpacked ({error})', _DAMAGED
                ) from None
        yield io.BytesIO(self._last)


def _stride(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape[1:]) * dtype.itemsize


def _safetensors_tensors(path: Path) -> dict[str, StoredTensor]:
    source, size = _Source(path), path.stat().st_size
    with source.open() as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= min(_LONGEST_HEADER, size - 8):
            raise FormatError(f"{path}: not a safetensors file, or cut short", _DAMAGED)
        text = file.read(length)
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        return {
            name: _entry(source, size, 8 + length, name, entry) for name, entry in entries.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise FormatError(f"{path}: the safetensors header cannot be read", _DAMAGED) from None


def _entry(
    source: _Source, size: int, base: int, name: str, entry: Mapping[str, object]
) -> StoredTensor:
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2):
        raise TypeError
    if any(not isinstance(number, int) or number < 0 for number in (*shape, *offsets)):
        raise TypeError
    if kind not in _SAFETENSORS_TYPES:
        raise FormatError(
            f'{source.path}: tensor "{name}" has type {kind}, which is not supported',
            f"Save it as one of {', '.join(list(_SAFETENSORS_TYPES)[:4])}",
        )
    dtype = _SAFETENSORS_TYPES[str(kind)]
    start, stop = offsets
    if stop - start != math.prod(shape) * dtype.itemsize:
        raise FormatError(
            f'{source.path}: tensor "{name}" has {stop - start} bytes, not what its shape '
            f"{shape} takes",
            _DAMAGED,
        )
    if base + stop > size:
        raise FormatError(
            f'{source.path}: cut short: tensor "{name}" ends at byte {base + stop}, the file at '
            f"{size}",
            _DAMAGED,
        )
    shape_ = tuple(shape)
    return StoredTensor(source, name, dtype, shape_, base + start, _stride(shape_, dtype))


def _npz_tensors(path: Path) -> dict[str, StoredTensor]:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if one.filename.endswith(".npy")]
            return {
                member.filename.removesuffix(".npy"): _member(path, archive, member)
                for member in members
            }
    except (OSError, zipfile.BadZipFile, EOFError, zlib.error, NotImplementedError):
        raise FormatError(f"{path}: not an npz file, or cut short", _DAMAGED) from None


def _member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> StoredTensor:
    name = member.filename.removesuffix(".npy")
    with archive.open(member) as file:
        kind, column_major, shape, header = _npy_header(path, name, file)
    dtype = _NPY_TYPES[kind]
    if column_major or member.compress_type != zipfile.ZIP_STORED:
        inflated = _Inflated(path, member=name)
        return StoredTensor(inflated, name, dtype, shape, 0, _stride(shape, dtype))
    if member.file_size - header < math.prod(shape) * dtype.itemsize:
        raise FormatError(f'{path}: ends inside tensor "{name}"', _DAMAGED)
    # A member's own header (30 bytes, name, extra field) can differ from the archive's list of it.
    source = _Source(path)
    with source.open() as raw:
        raw.seek(member.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", raw.read(4))
    offset = member.header_offset + 30 + name_length + extra_length + header
    return StoredTensor(source, name, dtype, shape, offset, _stride(shape, dtype))


def _npy_header(path: Path, name: str, file: IO[bytes]) -> tuple[str, bool, tuple[int, ...], int]:
    """Type, order, shape and length of the header of an npy member (literals only: no objects)."""
    read = file.read
    start = read(8)
    try:
        if start[:6] != b"\x93NUMPY":
            raise ValueError
        width, form = (2, "<H") if start[6] == 1 else (4, "<I")
        length = struct.unpack(form, read(width))[0]
        header = ast.literal_eval(read(min(length, 1 << 16)).decode("latin1"))
        descr, shape = header["descr"], header["shape"]
        if descr[0] not in "<|" or descr[1:] not in _NPY_TYPES:
            raise FormatError(
                f'{path}: tensor "{name}" has type {descr!r}, which is not supported',
                "Save it as float32",
            )
        if not all(isinstance(one, int) and one >= 0 for one in shape):
            raise ValueError
        return descr[1:], bool(header["fortran_order"]), tuple(shape), 8 + width + length
    except (ValueError, TypeError, KeyError, IndexError, SyntaxError, struct.error):
        raise FormatError(f'{path}: tensor "{name}" cannot be read', _DAMAGED) from None


# The fingerprint tells checkpoints apart; it is not a checksum. Reading every byte of a 2.5-million
# feature transcoder would take longer than the tracing. So small tensors are digested whole, and
# of larger ones 64 stretches, spread evenly from the first byte to the last. Two training runs, or
# two steps of one, differ in nearly every number and so in every stretch. What it can miss is an
# edit by hand of a few rows of a large matrix that falls between the stretches.
_STRETCHES: Final = 64
_STRETCH: Final = 4096


def fingerprint_of(files: Iterable[TensorFile], meaning: JSON = None) -> str:
    """Sixteen hex digits over names, types, shapes and sampled contents of all tensors.

    It does not depend on where the files are or what they are called, so a folder and the hub
    repository it was copied from have the same.

    Parameters
    ----------
    files
        In an order that does not depend on where they are.
    meaning
        What else decides the results that the tensors give: how they are interpreted. It is
        digested as JSON with sorted names.
    """
    digest = hashlib.sha256()
    if meaning is not None:
        digest.update(json.dumps(meaning, sort_keys=True).encode() + b"\0")
    for file in files:
        for name in sorted(file):
            tensor = file[name]
            digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
            for part in _samples(tensor):
                digest.update(part)
    return digest.hexdigest()[:16]


def _samples(tensor: StoredTensor) -> list[bytes]:
    length = tensor.nbytes
    if length <= _STRETCHES * _STRETCH:
        return [tensor.raw([(0, length)])[0]]
    last = length - _STRETCH
    starts = [last * number // (_STRETCHES - 1) for number in range(_STRETCHES)]
    return tensor.raw([(start, _STRETCH) for start in starts])
