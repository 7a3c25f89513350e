"""The files of a checkpoint, and the small configuration files beside them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tracer.errors import FormatError, TracingError
from tracer.tensors import TensorFile, open_tensors
from tracer.transcoders.checkpoint import READ_HOOKS, WRITE_HOOKS, hook_name

__all__ = ["Folder", "numbered", "read_json"]


@dataclass
class Folder:
    """A folder that holds a checkpoint.

    Attributes
    ----------
    path
        Where it is.
    fetch
        Turns an entry of a configuration's list of files that is a hub address into a local path.
    select
        Pattern of the folders to look at under `path`, where the user chose some; "" for all.
    """

    path: Path
    fetch: Callable[[str], Path]
    select: str = ""
    _yaml: dict[str, Any] | None = field(default=None, repr=False)

    def has(self, *names: str) -> bool:
        """Whether all these files are there."""
        return all((self.path / name).is_file() for name in names)

    def any(self, pattern: str) -> list[Path]:
        """Files that match, sorted."""
        return sorted(self.path.glob(pattern))

    def under(self, pattern: str) -> list[Path]:
        """Files that match anywhere below, within what the user chose; sorted."""
        return sorted(self.path.glob(f"{self.select or '**'}/{pattern}"))

    def lacks(self, layout: str, looked_for: str) -> FormatError:
        """Make the error for a folder that has no files of a layout."""
        return FormatError(
            f"{self.path}: no files of the layout {layout} in this folder",
            f"Looked for: {looked_for}; leave the layout out to have it found",
        )

    def listed(self) -> list[Path] | None:
        """Local paths of the files that ``config.yaml`` lists, one a layer; None without a list.

        Raises
        ------
        FormatError
            If the list is something else.
        TracingError
            If one is on the hub and cannot be fetched.
        """
        entries = self.config.get("transcoders")
        if entries is None:
            return None
        if not isinstance(entries, list) or not all(isinstance(one, str) for one in entries):
            raise FormatError(
                f"{self.path / 'config.yaml'}: transcoders is not a list of files",
                "List one file a layer",
            )
        return [self.fetch(entry) if "://" in entry else self.path / entry for entry in entries]

    def hooks(self, read: str | None, write: str | None) -> tuple[str, str]:
        """Hooks that ``config.yaml`` names, else these, by their canonical names.

        Raises
        ------
        FormatError
            If there is neither, or one that cannot be traced.
        """
        path = self.path / "config.yaml"
        found = []
        for setting, default, known in (
            ("feature_input_hook", read, READ_HOOKS),
            ("feature_output_hook", write, WRITE_HOOKS),
        ):
            name = self.config.get(setting, default)
            if not isinstance(name, str):
                raise FormatError(
                    f"{path}: {setting} is missing",
                    f"Say what the transcoders read or write; known are {', '.join(known)}",
                )
            found.append(hook_name(path if setting in self.config else self.path, name, known))
        return found[0], found[1]

    def open(self, name: str) -> TensorFile:
        """Open a tensor file.

        Raises
        ------
        FormatError
            If it is missing or cannot be read.
        """
        return open_tensors(self.path / name)

    @property
    def config(self) -> dict[str, Any]:
        """``config.yaml``; empty where there is none.

        Raises
        ------
        FormatError
            If it cannot be read as a table of plain values.
        """
        if self._yaml is None:
            path = self.path / "config.yaml"
            self._yaml = _read_yaml(path) if path.is_file() else {}
        return self._yaml


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    FormatError
        If the file is missing or something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise FormatError(f"{path}: cannot be read ({error})", "Complete the checkpoint") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: not a JSON object", "Complete the checkpoint")
    return value


def numbered(paths: list[Path], pattern: str, what: Path) -> list[Path]:
    """Files in the order of the number in their path below `what`, which must run 0, 1, 2, ….

    Raises
    ------
    FormatError
        If a number is missing, or there are several files of one.
    """
    by_number: dict[int, Path] = {}
    for path in paths:
        relative = path.relative_to(what).as_posix()
        match = re.search(pattern, relative)
        if match is None:
            continue
        number = int(match[1])
        if number in by_number:
            other = by_number[number].relative_to(what).as_posix()
            raise FormatError(
                f"{what}: several transcoders for layer {number}: {other}, {relative}",
                "Choose with a pattern, for instance FOLDER/layer_*_width_16k_l0_big, or list one "
                "file a layer under transcoders: in a config.yaml",
            )
        by_number[number] = path
    missing = [
        number for number in range(max(by_number, default=-1) + 1) if number not in by_number
    ]
    if missing:
        shown = ", ".join(str(number) for number in missing[:5])
        raise FormatError(
            f"{what}: files for layer {shown}{', …' if len(missing) > 5 else ''} are missing",
            "Complete the checkpoint: every layer of the model needs its transcoder",
        )
    return [by_number[number] for number in sorted(by_number)]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        import yaml
    except ImportError:
        raise TracingError(
            f"{path}: reading it needs pyyaml", "Install circuitbase[trace]"
        ) from None
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        problem = str(error).splitlines()[0]
        raise FormatError(f"{path}: cannot be read ({problem})", "Correct the file") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: not a table of settings", "Correct the file")
    return value
