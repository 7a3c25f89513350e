"""Texts of other people's files, made safe to show on one line of a terminal."""

from __future__ import annotations

import unicodedata

__all__ = ["visible"]


def visible(text: str) -> str:
    r"""Text on one line, with signs for what would not show or would move the cursor.

    Examples
    --------
    >>> visible("two\nlines\x1b[31m")
    'two↵lines\\x1b[31m'
    """
    signs = {"\n": "↵", "\r": "↵", "\t": "⇥", "\u2581": " "}
    return "".join(
        signs[sign]
        if sign in signs
        else sign.encode("unicode_escape").decode()
        if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        else sign
        for sign in text
    )
