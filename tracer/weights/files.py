"""Named arrays and a header in one file, written whole or not at all, and never unpickled.

The file is NumPy's ``.npz``: an uncompressed zip of ``.npy`` arrays. The header is JSON text in an
array of bytes, and says what the file is and of which version.
"""

from __future__ import annotations

import contextlib
import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tracer.errors import FormatError

__all__ = ["read_arrays", "write_arrays"]

_HEADER: Final = "header"


def write_arrays(
    path: str | os.PathLike[str],
    kind: str,
    version: int,
    header: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
) -> Path:
    """Write a file beside its place, then move it there.

    Parameters
    ----------
    path
        Where to.
    kind, version
        What the file is.
    header
        What else it says, JSON-able.
    arrays
        By name; numbers or booleans.

    Returns
    -------
    Path

    Raises
    ------
    FormatError
        If it cannot be written, such as on a full disk; what was there before stays.
    """
    path = Path(path)
    text = json.dumps({"format": kind, "version": version, **header}, allow_nan=False)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                **{_HEADER: np.frombuffer(text.encode(), dtype=np.uint8), **arrays},
            )
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise FormatError(
            f"{path}: cannot be written ({error.strerror or error})",
            "Free space, or choose another folder",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def read_arrays(
    path: str | os.PathLike[str], kind: str, version: int
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """Read a file of :func:`write_arrays`.

    Returns
    -------
    dict, dict
        The header, and the arrays by name.

    Raises
    ------
    FormatError
        If it cannot be read, is something else, of another version, or damaged.
    """
    path = Path(path)
    arrays: dict[str, NDArray[Any]] = {}
    try:
        # NumPy takes whatever is no zip for a pickle, and advises to open it unsafely.
        if path.is_file() and not zipfile.is_zipfile(path):
            raise ValueError("it is no whole .npz file")
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            if not hasattr(found, "files") or _HEADER not in found.files:
                raise ValueError("it has no header")
            header = json.loads(found[_HEADER].tobytes())
            if not isinstance(header, dict) or header.get("format") != kind:
                raise ValueError(f"it is no file of {kind}")
            if header.get("version") == version:
                arrays = {name: found[name] for name in found.files if name != _HEADER}
    except OSError as error:
        raise FormatError(
            f"{path}: cannot be read ({error.strerror or error})", "Check its name"
        ) from error
    except (
        *(ValueError, KeyError, TypeError, AttributeError, EOFError, MemoryError),
        *(zipfile.BadZipFile, NotImplementedError, RecursionError),
    ) as error:
        raise FormatError(
            f"{path}: cannot be read as {kind} ({error})",
            "It is damaged or something else: make it again",
        ) from error
    if header.get("version") != version:
        raise FormatError(
            f"{path}: is of version {header.get('version')}, and this reads {version}",
            "Make it again with this version of circuitbase",
        )
    return header, arrays
