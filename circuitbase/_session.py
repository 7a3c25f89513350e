"""What every command shares: which store to open, and how to show what it answers."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, Literal, ParamSpec

import click

if TYPE_CHECKING:
    import pandas as pd

    from graphstore import Store

__all__ = ["Format", "Session", "parameters", "shared_options", "store_options"]

Format = Literal["table", "csv", "json"]
P = ParamSpec("P")


def shared_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, or the group of all, the options that every command has."""
    for option in reversed(_OPTIONS.values()):
        command = option(command)
    return command


_OPTIONS = {
    "store": click.option("--store", metavar="PATH", help="Folder of the embedded store."),
    "uri": click.option(
        "--uri", metavar="URI", help="Neo4j server, such as bolt://localhost:7687."
    ),
    "user": click.option(
        "--user",
        metavar="NAME",
        help="User of the server; the password comes from $NEO4J_PASSWORD, or is asked for.",
    ),
    "database": click.option("--database", metavar="NAME", help="Database of the server."),
    "format_": click.option(
        "--format",
        "format_",
        type=click.Choice(["table", "csv", "json"]),
        default="table",
        show_default=True,
        help="How to print results.",
    ),
}


def store_options(command: Callable[Concatenate[Session, P], None]) -> Callable[P, None]:
    """Give a command the options of every command; it gets them as its first argument.

    They may stand before the command's name, too; what stands after it wins.
    """

    @shared_options
    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> None:
        options: dict[str, Any] = dict(kwargs)
        session = Session(*(_given(name, options.pop(name)) for name in _OPTIONS))
        command(session, *args, **options)

    return wrapped


def _given(name: str, value: Any) -> Any:
    """Value of a shared option: given after the command, before it, or by default."""
    context: click.Context | None = click.get_current_context()
    typed = click.core.ParameterSource.COMMANDLINE
    while context is not None:
        if context.get_parameter_source(name) is typed:
            return context.params[name]
        context = context.parent
    return value


@dataclass(frozen=True)
class Session:
    """The options that every command has."""

    store: str | None = None
    uri: str | None = None
    user: str | None = None
    database: str | None = None
    format: Format = "table"

    @contextmanager
    def open(self) -> Iterator[Store]:
        """Open the store that the options or the environment name, and close it afterwards."""
        if self.store and self.uri:
            raise click.UsageError("Give --store or --uri, not both.")
        if self.store and "://" in self.store:
            raise click.UsageError(f"--store takes a folder. Use --uri {self.store} for a server.")
        if self.uri and "://" not in self.uri:
            raise click.UsageError(
                f"--uri takes an address such as bolt://localhost:7687, not {self.uri!r}. "
                "Use --store for a folder."
            )
        served = self.uri or (not self.store and os.environ.get("NEO4J_URI"))
        if not served and (self.user or self.database):
            raise click.UsageError("--user and --database belong to a server: give its --uri.")
        import graphstore

        target = self.uri or self.store
        auth = self._auth() if served else None
        with graphstore.connect(target, auth=auth, database=self.database) as store:
            yield store

    def _auth(self) -> tuple[str, str] | None:
        password = os.environ.get("NEO4J_PASSWORD")
        user = self.user or os.environ.get("NEO4J_USERNAME") or ("neo4j" if password else None)
        if user is None:
            return None
        if password is None:
            if not sys.stdin.isatty():
                raise click.UsageError(
                    f"No password for user {user!r}. Set NEO4J_PASSWORD, or run this in a terminal "
                    "to be asked."
                )
            password = click.prompt(f"Password of {user}", hide_input=True, err=True)
        return user, str(password)

    def print(self, frame: pd.DataFrame, *, empty: str = "Nothing found.", **how: Any) -> None:
        """Print a table of results in the chosen format (see ``circuitbase.output``)."""
        from circuitbase.output import print_frame

        print_frame(frame, self.format, empty=empty, **how)

    def say(self, text: str) -> None:
        """Print a message to a person, on standard error."""
        # Not click.echo: it keeps the stream of the start, past a progress bar's.
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def tell(self, text: str) -> None:
        """Print a line of results, on standard output, above a progress bar."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


def parameters(pairs: tuple[str, ...], types: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Typed values of ``key=value`` words.

    Numbers, ``true``, ``false``, ``null`` and JSON lists, objects and quoted strings are what they
    look like; all else is a string. A parameter that is known to be a string is one whatever it
    looks like: ids may consist of digits.

    Parameters
    ----------
    pairs
        The words.
    types
        Types of the parameters that are known (``string``, ``strings``, ``integer``, …), by name.

    Examples
    --------
    >>> parameters(("k=2", "share=0.5", "name=night", 'tokens=["a", 1]', 'id="007"', "x="))
    {'k': 2, 'share': 0.5, 'name': 'night', 'tokens': ['a', 1], 'id': '007', 'x': ''}
    >>> parameters(("graph_id=1234567890123456",), {"graph_id": "string"})
    {'graph_id': '1234567890123456'}
    """
    made: dict[str, Any] = {}
    for pair in pairs:
        key, sign, text = pair.partition("=")
        if not sign or not key.strip():
            raise click.UsageError(f"Parameters are given as key=value, not {pair!r}.")
        key = key.strip().lstrip("$")
        if key in made:
            raise click.UsageError(f"Parameter {key!r} is given twice.")
        value = _value(key, text)
        if (types or {}).get(key) in ("string", "strings", "set") and isinstance(
            value, bool | int | float
        ):
            value = text
        made[key] = value
    return made


def _value(key: str, text: str) -> Any:
    import json
    import math

    try:
        value = json.loads(text, parse_constant=_not_a_constant)
    except ValueError as error:
        if text[:1] in ("[", "{"):  # meant as JSON: a string would only hide the slip
            raise click.UsageError(
                f"Parameter {key!r} looks like JSON but is not: {error}. "
                'Write strings in it as "text", and quote the whole word for the shell.'
            ) from error
        return text
    # An id such as 12e4567890123456 is no number.
    return text if isinstance(value, float) and not math.isfinite(value) else value


def _not_a_constant(name: str) -> Any:
    raise ValueError(f"{name} is a word here, not a number")
