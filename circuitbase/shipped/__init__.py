"""The model that ships with the project, its transcoders, and the code that makes all of it.

``MODEL``, ``CLT`` and ``PLT`` are folders that :func:`tracer.load_model` and
:func:`tracer.load_transcoder` open; :mod:`circuitbase.shipped.making` makes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

__all__ = ["CLT", "DATA", "MODEL", "PLT"]

DATA: Final = Path(__file__).parent / "data"
MODEL: Final = DATA / "model"
CLT: Final = DATA / "clt"
PLT: Final = DATA / "plt"
