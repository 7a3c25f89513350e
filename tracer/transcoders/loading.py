"""Find a transcoder, on disk or on the Hugging Face hub, and open it.

Which layout it is follows from its files (:mod:`tracer.transcoders.layouts`); what it is called
follows from where it is from, from its tensors and from how they are interpreted.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch

from tracer.errors import FormatError, SettingError
from tracer.tensors import fingerprint_of
from tracer.transcoders import hub
from tracer.transcoders.checkpoint import Checkpoint
from tracer.transcoders.folder import Folder
from tracer.transcoders.layouts import find_layout
from tracer.transcoders.meaning import meaning_of
from tracer.transcoders.transcoder import Transcoder

__all__ = ["load_transcoder"]


def load_transcoder(
    path_or_id: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    lazy: bool = True,
    layout: str | None = None,
    fingerprint: bool = True,
) -> Transcoder:
    """Open a transcoder in any of the known checkpoint layouts.

    Parameters
    ----------
    path_or_id
        A folder (or a file in it), or ``owner/name[/folder][@revision]`` on the Hugging Face hub. A
        local folder of that name comes first. Where a folder holds several sets, a pattern
        chooses: ``…/transcoder_all/layer_*_width_16k_l0_small``.
    revision
        Branch, tag or commit on the hub; a local folder has none.
    dtype, device
        Of everything that the transcoder returns; weights are stored in whatever type they are.
    lazy
        Whether encoders and decoders stay on disk and are read in the parts that a prompt needs
        (the default: large ones do not fit), or are held in memory.
    layout
        Name of the layout, where the files do not tell.
    fingerprint
        Whether to make the digest of the tensors and of what the configuration makes of them
        (:mod:`tracer.transcoders.meaning`). Without it the id of a local folder is its name alone.

    Returns
    -------
    Transcoder

    Raises
    ------
    TracingError
        If there is no such folder or repository, or the hub does not answer.
    FormatError
        If no layout fits, a file is missing or damaged, or shapes do not belong together.
    SettingError
        If `layout` or `dtype` is unknown, or `revision` is given with a local folder.
    """
    text = os.fspath(path_or_id)
    local, select = _split_pattern(text)
    commit: str | None = None
    if local.exists():
        if revision:
            raise SettingError(
                f"revision {revision} is given, but {local} is on disk",
                "Leave the revision out, or give a name on the hub that no local folder has",
            )
        path = local if local.is_dir() else local.parent
        source = str(path)
    else:
        reference = hub.parse(text, revision)
        found = hub.fetch_folder(reference)
        path, commit, source = found.path, found.commit, reference.name
        revision, select = reference.revision, reference.select
    checkpoint = _read(Folder(path, hub.fetch_file, select), layout)
    digest = fingerprint_of(checkpoint.files, meaning_of(checkpoint)) if fingerprint else ""
    if commit is not None:
        name = f"{source}@{revision or commit}"
    else:
        base = _folder_name(path)
        name = f"{base}-{digest}" if digest else base
    return Transcoder(
        checkpoint,
        transcoder_id=name,
        fingerprint=digest,
        source=source,
        revision=commit,
        dtype=dtype,
        device=device,
        lazy=lazy,
    )


def _read(folder: Folder, layout: str | None) -> Checkpoint:
    checkpoint = find_layout(folder, layout).read(folder)
    if not checkpoint.layers:
        raise FormatError(f"{folder.path}: no layers", "Complete the checkpoint")
    return checkpoint


def _split_pattern(text: str) -> tuple[Path, str]:
    """Split off the pattern that the last parts of a path are."""
    path = Path(text).expanduser()
    if path.exists() or "*" not in text:
        return path, ""
    parts = path.parts
    first = next(place for place, part in enumerate(parts) if "*" in part)
    return Path(*parts[:first]), "/".join(parts[first:])


def _folder_name(path: Path) -> str:
    """Name of a folder, in letters that an id can have."""
    return re.sub(r"[^\w.\-]+", "-", path.resolve().name).strip("-") or "transcoder"
