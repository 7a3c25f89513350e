"""Checkpoints of a run: everything that the next step depends on, and what the run was.

``state.safetensors`` holds tensors (weights, both moments of Adam, the cut, tokens since each
feature was active, normalisation, sums since the last line of metrics); ``state.json`` says which
run it is of, and where it was. The JSON names the tensors' file, which is new each time, so that
the two can never be of different steps.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tracer.errors import FormatError, SettingError
from tracer.transcoders.saving import write_tensors

__all__ = ["Checkpoint", "clear", "find_checkpoint", "write_checkpoint"]

_VERSION: Final = 1
_STATE: Final = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """State of a run.

    Attributes
    ----------
    step
        Steps done.
    position
        Of the buffer.
    tensors
        By name.
    finished
        Whether the run is over, and the transcoder saved.
    seconds
        Time that the run took so far.
    """

    step: int
    position: tuple[int, int, int]
    tensors: dict[str, Tensor]
    finished: bool = False
    seconds: float = 0.0


def write_checkpoint(folder: Path, checkpoint: Checkpoint, identity: dict[str, Any]) -> None:
    """Write a checkpoint beside the last one, then remove that.

    Parameters
    ----------
    folder
        Of checkpoints.
    checkpoint
        The state. One that is finished keeps no tensors.
    identity
        What the run is of, JSON-able: settings, model, corpus.

    Raises
    ------
    FormatError
        If it cannot be written; the last one stays.
    """
    name = "" if checkpoint.finished else f"state_{checkpoint.step:08}.safetensors"
    if name:
        write_tensors(folder / name, checkpoint.tensors)
    state = {
        "version": _VERSION,
        "step": checkpoint.step,
        "position": list(checkpoint.position),
        "finished": checkpoint.finished,
        "seconds": round(checkpoint.seconds, 3),
        "tensors": name,
        "run": identity,
    }
    part = folder / f".{_STATE}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(state, indent=1) + "\n", "utf-8")
        part.replace(folder / _STATE)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise FormatError(
            f"{folder / _STATE}: cannot be written ({error.strerror})",
            "Free space, or choose another folder",
        ) from error
    for old in folder.glob("state_*.safetensors"):
        if old.name != name:
            old.unlink(missing_ok=True)


def find_checkpoint(folder: Path, identity: dict[str, Any]) -> Checkpoint | None:
    """Last checkpoint in a folder, if there is one.

    Raises
    ------
    SettingError
        If it is of other settings, another model or another corpus; the message says what differs.
    FormatError
        If it cannot be read.
    """
    path = folder / _STATE
    if not path.exists():
        return None
    try:
        state = json.loads(path.read_text("utf-8"))
        version, found = state["version"], state["run"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(
            f"{path}: is no checkpoint ({error})", "Remove it to start over"
        ) from error
    if version != _VERSION:
        raise FormatError(
            f"{path}: is of version {version}, and this reads {_VERSION}", "Remove it to start over"
        )
    wanted = json.loads(json.dumps(identity))
    if found != wanted:
        raise SettingError(
            f"{folder}: holds a checkpoint of another run: {_difference(found, wanted)}",
            "Take the settings of that run, another folder, or start over with resume=False "
            "(--fresh)",
        )
    tensors: dict[str, Tensor] = {}
    if state["tensors"]:
        try:
            tensors = load_file(folder / str(state["tensors"]))
        except (OSError, SafetensorError) as error:
            raise FormatError(
                f"{folder / str(state['tensors'])}: cannot be read ({error})",
                "Start over with resume=False (--fresh)",
            ) from error
    first, second, third = state["position"]
    return Checkpoint(
        int(state["step"]),
        (int(first), int(second), int(third)),
        tensors,
        bool(state["finished"]),
        float(state["seconds"]),
    )


def clear(folder: Path) -> None:
    """Remove the checkpoints of a folder, and nothing else."""
    for path in (folder / _STATE, *folder.glob("state_*.safetensors")):
        path.unlink(missing_ok=True)


def _difference(found: Any, wanted: Any) -> str:
    """Word what differs between two runs."""
    if not isinstance(found, dict):
        return "it does not say which"
    told = []
    for part in wanted:
        mine, theirs = wanted[part], found.get(part)
        if isinstance(mine, dict) and isinstance(theirs, dict):
            told += [
                f"{name} was {theirs.get(name)} and is {mine.get(name)}"
                for name in sorted({*mine, *theirs})
                if mine.get(name) != theirs.get(name)
            ]
        elif mine != theirs:
            told.append(f"{part} was {theirs} and is {mine}")
    return "; ".join(told[:4]) + (f"; {len(told) - 4} more" if len(told) > 4 else "")
