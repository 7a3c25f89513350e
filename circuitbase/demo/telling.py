"""Telling a story twice at once: on the terminal, and on a page with pictures."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pandas as pd

from circuitbase.output import print_frame
from circuitbase.page import Page
from queries import Query

__all__ = ["Telling"]

_WIDTH: Final = 92
_LIST: Final = 60  # characters of a parameter that are shown


class Telling:
    """A page, and a terminal that reads the same without its pictures.

    Parameters
    ----------
    page
        Gets everything.
    terminal
        Whether the terminal does, too.
    """

    def __init__(self, page: Page, terminal: bool = True) -> None:
        self.page = page
        self.terminal = terminal
        self.tables: list[tuple[str, pd.DataFrame]] = []  # with the section of each
        self._section = ""

    def section(self, title: str, text: str = "") -> None:
        """Begin a chapter."""
        self._section = title
        self.page.section(title, text)
        if self.terminal:
            from rich.rule import Rule

            self._print("")
            self._print(Rule(f"[bold]{title}[/]", align="left", style="dim"))
            self._paragraphs(text)

    def text(self, text: str) -> None:
        """Add paragraphs."""
        self.page.text(text)
        if self.terminal:
            self._paragraphs(text)

    def heading(self, title: str) -> None:
        """Begin a part of a chapter."""
        self.page.heading(title)
        if self.terminal:
            self._print(f"\n[bold]{_escaped(title)}[/]")

    def aside(self, text: str) -> None:
        """Add a remark: a limit, a convention."""
        self.page.aside(text)
        if self.terminal:
            from rich.padding import Padding

            self._print(Padding(_marked(text, "dim"), (0, 0, 1, 2)))

    def facts(self, facts: Mapping[str, str | int | float]) -> None:
        """Add a row of figures."""
        self.page.facts(facts)
        if self.terminal:
            parts = [
                f"{_escaped(name)} [bold]{value if isinstance(value, str) else _figure(value)}[/]"
                for name, value in facts.items()
            ]
            self._print("   ".join(parts) + "\n")

    def table(
        self,
        frame: pd.DataFrame,
        caption: str = "",
        *,
        columns: Sequence[str] | None = None,
        names: Mapping[str, str] | None = None,
        bars: Sequence[str] = (),
        limit: int | None = None,
    ) -> None:
        """Add a table."""
        self.tables.append((self._section, frame))
        self.page.table(frame, caption, columns=columns, names=names, bars=bars, limit=limit)
        if self.terminal:
            print_frame(frame, "table", columns=columns, names=names, limit=limit, empty="(none)")
            if caption:
                self._print(_marked(caption, "dim"))
            self._print("")

    def figure(self, svg: str, caption: str = "", *, white: bool = True, wide: bool = True) -> None:
        """Add a picture, to the page."""
        self.page.figure(svg, caption, white=white, wide=wide)

    def query(self, query: Query, parameters: Mapping[str, Any], *, folded: bool = True) -> None:
        """Show a query of the library: its text on the page, how to ask it on the terminal."""
        # What the library fills in is told in words.
        given = {**parameters, **{name: f"… {what}" for name, what in query.filled.items()}}
        title = f"Cypher of query {query.name}"
        self.page.cypher(query.text, given, title=title, folded=folded)
        if self.terminal:
            words = " ".join(f"{key}={_shown(value)}" for key, value in parameters.items())
            line = _escaped(f"circuitbase query {query.name} {words}")
            self._print(f"[dim]$[/] [cyan]{line}[/]\n", soft_wrap=True)

    def cypher(self, text: str, parameters: Mapping[str, Any], title: str) -> None:
        """Show Cypher."""
        self.page.cypher(text, parameters, title=title)
        if self.terminal:
            from rich.padding import Padding
            from rich.syntax import Syntax

            code = Syntax(text.strip(), "cypher", theme="ansi_dark", background_color="default")
            self._print(Padding(code, (0, 0, 0, 2)))
            for key, value in parameters.items():
                self._print(f"  [dim]${key} = {_escaped(_shown(value))}[/]")
            self._print("")

    def code(self, text: str, title: str = "") -> None:
        """Show lines to type."""
        self.page.code(text, title)
        if self.terminal:
            for line in text.splitlines():
                self._print(f"  [cyan]{_escaped(line)}[/]", soft_wrap=True)

    def _paragraphs(self, text: str) -> None:
        for part in text.split("\n\n"):
            if part.strip():
                self._print(_marked(part))
                self._print("")

    def _print(self, what: Any, *, soft_wrap: bool = False) -> None:
        from rich.console import Console

        # Outside a terminal as wide as prose reads well, and without colours.
        wide = min(Console(file=sys.stdout).width, _WIDTH) if sys.stdout.isatty() else _WIDTH
        Console(file=sys.stdout, width=wide, highlight=False).print(what, soft_wrap=soft_wrap)


def _marked(text: str, style: str = "") -> Any:
    """Text in which ```code``` and ``**strong**`` stand out."""
    import re

    from rich.text import Text

    made = Text(style=style)
    for part in re.split(r"(`[^`\n]+`|\*\*[^*\n]+\*\*)", text):
        if part.startswith("`") and part.endswith("`") and len(part) > 1:
            made.append(part[1:-1], style="bold cyan")
        elif part.startswith("**") and len(part) > 4:
            made.append(part[2:-2], style="bold")
        else:
            made.append(part)
    return made


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def _shown(value: Any) -> str:
    import json

    plain = isinstance(value, str)
    text = value if plain else json.dumps(value, ensure_ascii=False)
    text = text if len(text) <= _LIST else f"{text[: _LIST - 2]} …"
    return f"'{text}'" if " " in text or "[" in text else text
