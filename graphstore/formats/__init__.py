"""One module for each file format of attribution graphs; :mod:`graphstore.files` chooses."""

from __future__ import annotations

__all__: list[str] = []
