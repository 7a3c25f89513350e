"""How results are printed: tables for people, CSV and JSON for programs."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

__all__ = ["cells", "plain", "print_frame", "print_picture", "progress_bar", "records_of"]


def print_frame(
    frame: pd.DataFrame,
    how: Literal["table", "csv", "json"],
    *,
    columns: Sequence[str] | None = None,
    names: Mapping[str, str] | None = None,
    empty: str = "Nothing found.",
    limit: int | None = None,
    compact: bool = False,
    width: int | None = None,
) -> None:
    """Print a table of results on standard output.

    Parameters
    ----------
    frame
        The results.
    how
        ``table`` for people, ``csv``, or ``json``: one array of records, nan as null.
    columns
        Columns that people see; programs always get all of them.
    names
        What people read in the place of a column's name.
    empty
        What people read where there is no row (on standard error).
    limit
        The most rows that people see; programs always get all of them.
    compact
        Whether people are spared columns without any value.
    width
        How wide the table is outside a terminal, where it holds prose; else as wide as it needs.
    """
    if how == "json":
        click.echo(_json(records_of(frame)))
    elif how == "csv":
        click.echo(_csv(frame), nl=False)
    elif frame.empty:
        click.echo(empty, err=True)
    else:
        shown = frame if columns is None else frame[[c for c in columns if c in frame.columns]]
        if compact and len(filled := shown.dropna(axis=1, how="all").columns):
            shown = shown[filled]
        print_picture(_table(shown.head(limit) if limit else shown, names or {}), width)
        if limit and len(frame) > limit:  # beside its table, wherever that goes
            left = len(frame) - limit
            click.echo(f"… {left:,} more rows; --format csv or json has them all")


def print_picture(picture: RenderableType, width: int | None = None) -> None:
    """Print something rich on standard output; outside a terminal, this wide or as it needs."""
    from rich.console import Console

    terminal = sys.stdout.isatty()
    console = Console(file=sys.stdout, width=None if terminal else width or 10_000, highlight=False)
    console.print(picture, soft_wrap=False)


def records_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as dictionaries of values that JSON has.

    Examples
    --------
    >>> import pandas as pd
    >>> records_of(pd.DataFrame({"id": ["a", None], "x": [1.5, float("nan")]}))
    [{'id': 'a', 'x': 1.5}, {'id': None, 'x': None}]
    """
    columns = [str(name) for name in frame.columns]
    values = [[plain(value) for value in frame.iloc[:, k]] for k in range(len(columns))]
    return [dict(zip(columns, row, strict=True)) for row in zip(*values, strict=True)]


def plain(value: Any) -> Any:
    """Value as JSON has it: nan is None; times and arrays are unfolded."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    if hasattr(value, "iso_format"):  # the driver's dates and durations
        return value.iso_format()
    if hasattr(value, "isoformat"):
        return None if value != value else value.isoformat()  # NaT is not itself
    if hasattr(value, "tolist"):  # numpy
        return plain(value.tolist())
    missing = value != value  # pandas.NA is neither equal nor unequal
    return None if not isinstance(missing, bool) or missing else str(value)


def _json(records: list[dict[str, Any]]) -> str:
    """One array, a record a line: whole for programs, and for grep."""
    lines = [json.dumps(record, ensure_ascii=False, allow_nan=False) for record in records]
    return "[" + ",\n ".join(lines) + "]"


def _csv(frame: pd.DataFrame) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([str(name) for name in frame.columns])
    for record in records_of(frame):
        writer.writerow(
            json.dumps(value, ensure_ascii=False)
            if isinstance(value, list | dict | bool)
            else value
            for value in record.values()
        )
    return text.getvalue()


def _table(frame: pd.DataFrame, names: Mapping[str, str]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    records = records_of(frame)
    columns: list[list[str]] = []
    for name in map(str, frame.columns):
        values = [record[name] for record in records]
        columns.append(cells(values))
        numeric = any(isinstance(value, int | float) for value in values) and all(
            isinstance(value, int | float | None) and not isinstance(value, bool)
            for value in values
        )
        widest = max(map(len, columns[-1]), default=0)
        whole = widest <= 24 and not any(" " in text for text in columns[-1])  # ids, names
        table.add_column(
            Text(names.get(name, name)),
            justify="right" if numeric else "left",
            overflow="fold",
            min_width=widest if whole else None,
        )
    for row in zip(*columns, strict=True):
        table.add_row(*map(Text, row))
    return table


def cells(values: Sequence[Any]) -> list[str]:
    """Texts of a column as people read it; its numbers have the same number of digits."""
    reals = [abs(value) for value in values if isinstance(value, float)]
    form = ".4f" if reals and 0.01 <= max(reals) < 1e4 else ".3g"
    return [_cell(value, form) for value in values]


def _cell(value: Any, form: str = ".4g") -> str:
    from circuitbase._text import visible

    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        # What only rounding left is nothing to people.
        if abs(value) < 1e-12:
            return f"{0.0:{form}}"
        text = f"{value:{form}}"
        return text if float(text) else f"{value:.0e}"
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return ", ".join(_cell(item) for item in value)
    if isinstance(value, list | dict):
        return visible(json.dumps(value, ensure_ascii=False))
    return visible(str(value))


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Progress of a long job on standard error, where that is a terminal.

    Yields
    ------
    callable
        To be called with how many steps are done, and how many there are.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    # Lines printed meanwhile appear above the bar; those piped elsewhere must go there untouched.
    with Progress(
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=sys.stdout.isatty(),
    ) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
