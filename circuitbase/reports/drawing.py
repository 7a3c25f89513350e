"""What the pictures of comparisons share: colours, settings, and becoming a file or a text."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from circuitbase._figure import ENDINGS, _drawable, _settings, _umask
from circuitbase._shared import shortened
from circuitbase._text import visible
from tracer.errors import FormatError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "BOTH",
    "INK",
    "ONLY_A",
    "ONLY_B",
    "SOFT",
    "bare",
    "drawn",
    "named",
    "save",
    "svg_of",
]

# Colours of Okabe and Ito: colour-blind readers tell them apart.
ONLY_A: Final = "#0072b2"
ONLY_B: Final = "#d55e00"
BOTH: Final = "#4b5563"
INK: Final = "#1f2937"
SOFT: Final = "#6b7280"


@contextmanager
def drawn(width: float, height: float) -> Iterator[Figure]:
    """Make a figure of this many inches, with settings that do not depend on the user's."""
    from matplotlib.figure import Figure

    with _settings():
        yield Figure(figsize=(width, height), facecolor="white")


def svg_of(figure: Figure) -> str:
    """Text of a figure as SVG; the same figure gives the same text."""
    with _settings():
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": "circuitbase"})
    return text.getvalue()


def save(figure: Figure, path: str | os.PathLike[str], dpi: int = 160) -> Path:
    """Write a figure to an ``.svg`` or ``.png`` file, whole or not at all.

    Raises
    ------
    FormatError
        If the ending is neither, or the file cannot be written.
    """
    path = Path(path)
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise FormatError(
            f"{path}: no picture is made for the ending {ending!r}", f"Use {' or '.join(ENDINGS)}"
        )
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=ending, delete=False) as file:
            temporary = Path(file.name)
            try:
                if ending == ".svg":
                    file.write(svg_of(figure).encode())
                else:
                    with _settings():
                        figure.savefig(file, format="png", dpi=dpi, metadata={"Software": None})
                file.close()
                temporary.chmod(0o666 & ~_umask())
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise FormatError(
            f"{path}: {error.strerror or error}", "Choose a folder that exists and can be written"
        ) from error
    return path


def named(text: object, length: int = 40) -> str:
    """Text that can be drawn, on one line."""
    return _drawable(shortened(visible(str(text)), length))


def bare(axes: Axes) -> None:
    """Take the box and the ticks from an axes."""
    axes.set_xticks([])
    axes.set_yticks([])
    for side in axes.spines.values():
        side.set_visible(False)
