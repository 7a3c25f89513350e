"""Reports as one HTML file: text, tables, pictures and Cypher, with nothing loaded from elsewhere.

A page needs no network and no script: its style sheet and its pictures are inside it, and it
follows the reader's choice of a light or a dark background, small screens, and paper. Whatever is
given is escaped; a content security policy forbids scripts besides.
"""

from __future__ import annotations

import contextlib
import html
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from circuitbase._page_parts import embedded_svg, highlighted, inline, parameter_lines, printable
from circuitbase._page_style import STYLE
from circuitbase._text import visible
from circuitbase.output import cells, records_of
from tracer.errors import FormatError

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Page"]

_ONE_LINE: Final = 34  # letters of a cell that stay together
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class Page:
    """A report, written from top to bottom.

    Texts are plain: of markup, only `` `code` `` and ``**strong**`` mean something, and an empty
    line begins a paragraph. They are escaped, as is everything else.

    Parameters
    ----------
    title
        Of the page, and of the browser's tab.
    lead
        A sentence or two below it.

    Examples
    --------
    >>> import pandas as pd
    >>> page = Page("Two graphs", "What they share.")
    >>> page.section("Scores", "Of each graph.")
    >>> page.table(pd.DataFrame({"graph": ["a<b"], "replacement": [0.5]}), bars=["replacement"])
    >>> page.cypher("MATCH (g:Graph) WHERE g.slug = $slug RETURN g", {"slug": "night"})
    >>> "a&lt;b" in page.html() and "<script" not in page.html()
    True
    """

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self.lead = lead
        self._sections: list[tuple[str, str]] = []  # id and title
        self._parts: list[str] = []
        self._pictures = 0
        self._footer = ""

    # What a page is made of ----------------------------------------------------------------------

    def section(self, title: str, text: str = "") -> None:
        """Begin a section; the page's list of contents names it."""
        name = f"part-{len(self._sections) + 1}"
        if self._sections:
            self._parts.append("</section>")
        self._sections.append((name, title))
        self._parts.append(f'<section id="{name}"><h2>{_line(title)}</h2>')
        self.text(text)

    def heading(self, title: str) -> None:
        """Begin a smaller part of a section."""
        self._parts.append(f"<h3>{_line(title)}</h3>")

    def text(self, text: str) -> None:
        """Add paragraphs."""
        self._parts += [f"<p>{inline(part)}</p>" for part in text.split("\n\n") if part.strip()]

    def aside(self, text: str) -> None:
        """Add a remark, set apart: a limit, a convention, how to read what follows."""
        parts = "".join(f"<p>{inline(part)}</p>" for part in text.split("\n\n") if part.strip())
        self._parts.append(f'<div class="aside">{parts}</div>')

    def facts(self, facts: Mapping[str, str | int | float]) -> None:
        """Add a row of tiles, a name and a figure each; a float has three digits."""
        tiles = "".join(
            f"<div><dt>{_line(name)}</dt><dd>{_line(_figure(value))}</dd></div>"
            for name, value in facts.items()
        )
        self._parts.append(f'<dl class="facts">{tiles}</dl>')

    def table(
        self,
        frame: pd.DataFrame,
        caption: str = "",
        *,
        columns: Sequence[str] | None = None,
        names: Mapping[str, str] | None = None,
        bars: Sequence[str] = (),
        limit: int | None = None,
        strong: Callable[[Mapping[str, Any]], bool] | None = None,
        empty: str = "Nothing found.",
    ) -> None:
        """Add a table; a wide one scrolls.

        Parameters
        ----------
        frame
            Its rows; numbers are shown as in the terminal, lists with commas.
        caption
            A sentence below it.
        columns
            Columns to show, in this order; those that the table lacks are passed over.
        names
            What readers see in the place of a column's name.
        bars
            Columns of numbers ≥ 0 that get a bar behind them, as long as the number is large.
        limit
            The most rows to show; how many are left out is said.
        strong
            Whether a row, given as a dictionary, is set in bold type.
        empty
            What stands there if there is no row.
        """
        if frame.empty:
            self.text(empty)
            return
        shown = frame if columns is None else frame[[c for c in columns if c in frame.columns]]
        cut = shown.head(limit) if limit is not None else shown
        records = records_of(cut)
        made = [_Column(str(name), records, str(name) in bars) for name in shown.columns]
        head = "".join(
            f"<th{_class(column.kind)}>{_line((names or {}).get(column.name, column.name))}</th>"
            for column in made
        )
        body = "".join(
            f"<tr{_class('strong' if strong and strong(record) else '')}>"
            f"{''.join(column.cell(row) for column in made)}</tr>"
            for row, record in enumerate(records)
        )
        left = len(shown) - len(cut)
        said = " ".join(part for part in (caption, f"{left:,} more rows." if left else "") if part)
        below = f"<caption>{inline(said)}</caption>" if said else ""
        self._parts.append(
            f'<div class="scroll"><table>{below}<thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def figure(self, svg: str, caption: str = "", *, white: bool = True, wide: bool = True) -> None:
        """Add a picture.

        Parameters
        ----------
        svg
            Its text. Ids are made unique in the page, and scripts are left out.
        caption
            A sentence below it.
        white
            Whether it is drawn for white paper, which it then gets on a dark background too. One
            that is not takes the page's colours: ``var(--ink)``, ``--soft``, ``--line``,
            ``--accent``, ``--second``, ``--third``, ``--warm``, ``--negative``.
        wide
            Whether it is too fine for small screens and scrolls there, rather than shrinks.

        Raises
        ------
        FormatError
            If it is no SVG.
        """
        self._pictures += 1
        picture = embedded_svg(svg, f"picture-{self._pictures}")
        classes = " ".join(
            name for name, on in (("picture", True), ("white", white), ("wide", wide)) if on
        )
        below = f"<figcaption>{inline(caption)}</figcaption>" if caption else ""
        self._parts.append(f'<figure><div class="{classes}">{picture}</div>{below}</figure>')

    def cypher(
        self,
        text: str,
        parameters: Mapping[str, Any] | None = None,
        *,
        title: str = "Cypher",
        folded: bool = False,
    ) -> None:
        """Add a query and the values of its parameters; folded, readers open it."""
        given = f'<div class="given">{parameter_lines(parameters)}</div>' if parameters else ""
        block = f"<pre>{highlighted(text.strip())}</pre>{given}"
        self._parts.append(
            f"<details><summary>{_line(title)}</summary>{block}</details>"
            if folded
            else f'<div class="block"><div class="name">{_line(title)}</div>{block}</div>'
        )

    def code(self, text: str, title: str = "") -> None:
        """Add lines of code or of a terminal, as they are."""
        name = f'<div class="name">{_line(title)}</div>' if title else ""
        lines = html.escape(printable(text.strip("\n")))
        self._parts.append(f'<div class="block">{name}<pre>{lines}</pre></div>')

    @contextmanager
    def details(self, summary: str) -> Iterator[None]:
        """Fold away whatever is added meanwhile (no sections); readers open it."""
        self._parts.append(f'<details><summary>{_line(summary)}</summary><div class="inside">')
        yield
        self._parts.append("</div></details>")

    def footer(self, text: str) -> None:
        """Set the last line: what made the page, and of what."""
        self._footer = text

    # The whole -----------------------------------------------------------------------------------

    def html(self) -> str:
        """Text of the page."""
        links = "".join(f'<a href="#{name}">{_line(title)}</a>' for name, title in self._sections)
        contents = f'<nav aria-label="Contents">{links}</nav>' if len(self._sections) > 2 else ""
        lead = f'<p class="lead">{inline(self.lead)}</p>' if self.lead else ""
        end = "</section>" if self._sections else ""
        foot = f"<footer>{inline(self._footer)}</footer>" if self._footer else ""
        body = "\n".join(self._parts)
        return (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{_line(self.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
            f'<header class="top"><h1>{_line(self.title)}</h1>{lead}{contents}</header>\n'
            f"<main>\n{body}\n{end}{foot}\n</main>\n</body>\n</html>\n"
        )

    def write(self, path: str | os.PathLike[str]) -> Path:
        """Write the page; an older file of the name is replaced whole or not at all.

        Parameters
        ----------
        path
            Where to; folders that lack are made.

        Returns
        -------
        Path
            The same path.

        Raises
        ------
        FormatError
            If it cannot be written.
        """
        path = Path(path)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(self.html(), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise FormatError(
                f"{path}: cannot be written ({error.strerror or error})",
                "Choose a folder that exists and can be written, with space left",
            ) from error
        return path


class _Column:
    """One column of a table, as HTML."""

    def __init__(self, name: str, records: Sequence[Mapping[str, Any]], bar: bool) -> None:
        values = [record[name] for record in records]
        numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
        numeric = bool(numbers) and len(numbers) == sum(v is not None for v in values)
        peak = max(map(float, numbers), default=0.0)
        self.name = name
        self.texts = cells(values)
        # Names and ids stay on one line; prose may take several.
        short = all(len(text) <= _ONE_LINE for text in self.texts)
        self.kind = (
            "number" if numeric else "id" if name.endswith("_id") else "short" if short else ""
        )
        self.parts = (
            [min(max((value or 0.0) / peak, 0.0), 1.0) for value in values]
            if bar and numeric and peak > 0
            else None
        )

    def cell(self, row: int) -> str:
        text = html.escape(self.texts[row])
        if self.parts is None:
            return f"<td{_class(self.kind)}>{text}</td>"
        part = f"--part: {self.parts[row]:.4f}"
        return f'<td class="number bar" style="{part}"><span>{text}</span></td>'


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""


def _line(text: str) -> str:
    """Text on one line, escaped."""
    return html.escape(visible(text))


def _figure(value: str | int | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
