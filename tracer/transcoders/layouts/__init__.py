"""One file a checkpoint layout; which one a folder holds is found from its files.

Each module offers ``NAME``, ``LOOKS_FOR`` (for the message when nothing fits),
``recognise(folder)`` and ``read(folder) -> Checkpoint``.
"""

from __future__ import annotations

from typing import Final, Protocol, cast

from tracer.errors import FormatError, SettingError, nearest
from tracer.transcoders.checkpoint import Checkpoint
from tracer.transcoders.folder import Folder
from tracer.transcoders.layouts import (
    circuit_tracer_clt,
    circuit_tracer_plt,
    clt_forge,
    crosslayer_coding,
    gemma_scope,
    gemma_scope_2,
    saelens,
    sparsify,
)

__all__ = ["LAYOUTS", "Layout", "find_layout"]


class Layout(Protocol):
    """What a layout's module offers."""

    NAME: str
    LOOKS_FOR: str

    def recognise(self, folder: Folder) -> bool:
        """Whether the folder holds this layout, judged by names of files and tensors."""

    def read(self, folder: Folder) -> Checkpoint:
        """Read the configuration and the lists of tensors; no weights."""


# In this order: the ones with the most particular files first.
LAYOUTS: Final = {
    layout.NAME: layout
    for layout in (
        cast(Layout, module)
        for module in (
            clt_forge,
            crosslayer_coding,
            circuit_tracer_clt,
            circuit_tracer_plt,
            gemma_scope_2,
            gemma_scope,
            sparsify,
            saelens,
        )
    )
}


def find_layout(folder: Folder, name: str | None = None) -> Layout:
    """Find the layout of a folder, or the named one.

    Raises
    ------
    SettingError
        If no layout is called `name`.
    FormatError
        If the folder fits none. Whether it fits the named one is for that layout's ``read`` to say:
        a name is given because the usual signs are missing.
    """
    if name is not None:
        if name not in LAYOUTS:
            raise SettingError(
                f"transcoder layout {name!r} is unknown",
                nearest(name, LAYOUTS) or f"Known are {', '.join(LAYOUTS)}",
            )
        return LAYOUTS[name]
    for layout in LAYOUTS.values():
        if layout.recognise(folder):
            return layout
    looked = "; ".join(f"{one.LOOKS_FOR} ({one.NAME})" for one in LAYOUTS.values())
    raise FormatError(
        f"{folder.path}: no transcoder layout fits what is in this folder",
        f"Looked for: {looked}",
    )
