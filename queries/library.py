"""The query library: Cypher files, each a document with a header, and what their headers say.

A file ``queries/cypher/NAME.cypher`` begins with comment lines::

    // Recurring features
    // purpose     which features act in at least $min_graphs graphs of a prompt set
    // parameters  prompt_set: string = null · min_graphs: integer = 2
    // filled      graph_ids: complete graphs of the set
    // columns     feature_id, layer, index, graphs, share, mean_influence
    // cost        one pass over HAS_FEATURE of the set

``parameters`` are those that a user gives; one without a default is required, and a default of
``null`` allows null. ``filled`` (left out where there are none) are those that the Python function
works out and passes to the text. Below the header is the text; where a query takes several
statements, each follows a line ``// statement NAME``.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Final

from tracer.errors import QueryError, nearest

__all__ = ["Parameter", "Query", "describe", "names"]

_TYPES: Final = ("string", "strings", "set", "integer", "number", "boolean")
_FIELDS: Final = ("purpose", "parameters", "filled", "columns", "cost")
_STATEMENT: Final = "// statement "


@dataclass(frozen=True)
class Parameter:
    """One parameter of a query, as its header declares it.

    Attributes
    ----------
    name
        Its name, in Python, on the command line and (``$name``) in the text.
    type
        ``string``, ``strings``, ``set`` (a prompt set by name, or a list of graphs), ``integer``,
        ``number``, ``boolean``, or words to choose from, joined by ``|``.
    required
        Whether it has no default.
    default
        Its default; None allows None.
    """

    name: str
    type: str
    required: bool
    default: Any = None

    def __str__(self) -> str:
        default = "" if self.required else f" = {json.dumps(self.default)}"
        return f"{self.name}: {self.type}{default}"

    def check(self, query: str, value: Any) -> Any:
        """Return the value in the form that the text takes.

        Raises
        ------
        QueryError
            If it is of another type; the message says which is wanted.
        """
        if value is None and not self.required and self.default is None:
            return None
        if self.type == "strings" and isinstance(value, str):
            return [value]
        if not self._fits(value):
            raise QueryError(
                f"query {query}: parameter {self.name!r} is {value!r}", self._remedy(value)
            )
        if self.type == "strings" or (self.type == "set" and not isinstance(value, str)):
            return [str(item) for item in value]
        return float(value) if self.type == "number" else value

    def _fits(self, value: Any) -> bool:
        match self.type:
            case "string":
                return isinstance(value, str)
            case "strings":
                return isinstance(value, list | tuple) and all(isinstance(v, str) for v in value)
            case "set":
                listed = isinstance(value, list | tuple) and len(value) > 0
                return isinstance(value, str) or (listed and all(isinstance(v, str) for v in value))
            case "boolean":
                return isinstance(value, bool)
            case "integer":
                return isinstance(value, int) and not isinstance(value, bool)
            case "number":
                return (
                    isinstance(value, int | float)
                    and not isinstance(value, bool)
                    and value == value
                )
            case words:
                return value in words.split("|")

    def _remedy(self, value: Any) -> str:
        match self.type:
            case "string":
                return f"Give a string; on the command line, {self.name}='\"…\"' quotes a number"
            case "strings":
                return f'Give a list of strings, such as {self.name}=\'["a", "b"]\''
            case "set":
                return f'Give a set by name, or graphs as {self.name}=\'["a", "b"]\''
            case "boolean":
                return "Give true or false"
            case "integer":
                return "Give a whole number"
            case "number":
                return "Give a number"
            case words:
                choices = words.split("|")
                return nearest(str(value), choices) or f"Give one of {', '.join(choices)}"


@dataclass(frozen=True, repr=False)
class Query:
    """One query of the library, as its file describes it.

    Attributes
    ----------
    name
        Its name: that of its file and of its Python function.
    title, purpose, cost
        What its header says.
    parameters
        What a user gives.
    filled
        What the Python function passes beside them, by name.
    columns
        Columns of the result.
    text
        The Cypher: one statement, or several, each after a line ``// statement NAME``.
    """

    name: str
    title: str
    purpose: str
    parameters: tuple[Parameter, ...]
    filled: Mapping[str, str]
    columns: tuple[str, ...]
    cost: str
    text: str

    @property
    def statements(self) -> dict[str, str]:
        """Statements of the text, by name; a single one has the query's own."""
        parts = self.text.split(_STATEMENT)
        if len(parts) == 1:
            return {self.name: self.text}
        found = {}
        for part in parts[1:]:
            name, _, statement = part.partition("\n")
            found[name.strip()] = statement.strip()
        return found

    def check(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Values of all parameters, defaults filled in.

        Raises
        ------
        QueryError
            If a parameter is unknown, missing or mistyped.
        """
        known = {parameter.name: parameter for parameter in self.parameters}
        for name in given:
            if name not in known:
                listed = f"It takes {', '.join(known)}" if known else "It takes none"
                raise QueryError(
                    f"query {self.name} has no parameter {name!r}", nearest(name, known) or listed
                )
        missing = [name for name, p in known.items() if p.required and name not in given]
        if missing:
            raise QueryError(
                f"query {self.name} needs {' and '.join(map(repr, missing))}",
                f"Give {missing[0]}=…; circuitbase queries {self.name} explains it",
            )
        return {
            name: parameter.check(self.name, given.get(name, parameter.default))
            for name, parameter in known.items()
        }

    def __str__(self) -> str:
        lines = [
            f"{self.name}: {self.title}",
            f"  purpose     {self.purpose}",
            f"  parameters  {' · '.join(map(str, self.parameters)) or 'none'}",
            f"  columns     {', '.join(self.columns)}",
            f"  cost        {self.cost}",
        ]
        if self.filled:
            filled = " · ".join(f"{name}: {what}" for name, what in self.filled.items())
            lines.insert(3, f"  filled      {filled}")
        return "\n".join([*lines, "", self.text])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def names() -> list[str]:
    """Names of the queries, in alphabetical order.

    Examples
    --------
    >>> "recurring_edges" in names()
    True
    """
    return list(_library())


def describe(name: str) -> Query:
    """Describe one query: purpose, parameters, columns, cost and text.

    Raises
    ------
    QueryError
        If no query has this name; the message suggests the nearest.

    Examples
    --------
    >>> describe("similar_graphs").columns
    ('graph_id', 'other', 'jaccard', 'shared', 'slug')
    """
    library = _library()
    if name not in library:
        raise QueryError(
            f"no query is called {name!r}",
            nearest(str(name), library) or "circuitbase queries lists them",
        )
    return library[name]


@cache
def _library() -> dict[str, Query]:
    folder = resources.files("queries") / "cypher"
    found = {}
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        name, dot, ending = file.name.rpartition(".")
        if dot and ending == "cypher":
            found[name] = parse(name, file.read_text(encoding="utf-8"))
    return found


def parse(name: str, source: str) -> Query:
    """Read one query file; `name` is for the query and for messages.

    Raises
    ------
    QueryError
        If the header lacks a field, or says something that is not understood.
    """
    lines = source.splitlines()
    n_header = next((i for i, line in enumerate(lines) if not line.startswith("//")), len(lines))
    # A statement's own line is no part of the header.
    n_header = next((i for i in range(n_header) if lines[i].startswith(_STATEMENT)), n_header)
    header = [line[2:] for line in lines[:n_header]]
    if not header:
        raise _defect(name, "has no header")
    fields: dict[str, str] = {}
    field = ""
    for line in header[1:]:
        word, _, rest = line.strip().partition(" ")
        if word in _FIELDS and not line.startswith("    "):
            field = word
            fields[field] = rest.strip()
        elif field:
            fields[field] += f" {line.strip()}"
    for field in ("purpose", "parameters", "columns", "cost"):
        if not fields.get(field):
            raise _defect(name, f"has no {field} in its header")
    declared = fields["parameters"]
    filled = (part.partition(":") for part in _items(fields.get("filled", "")))
    return Query(
        name=name,
        title=header[0].strip(),
        purpose=fields["purpose"],
        parameters=()
        if declared == "none"
        else tuple(_parameter(name, part) for part in _items(declared)),
        filled={key.strip(): what.strip() for key, _, what in filled},
        columns=tuple(column.strip() for column in fields["columns"].split(",")),
        cost=fields["cost"],
        text="\n".join(lines[n_header:]).strip(),
    )


def _items(text: str) -> list[str]:
    return [part.strip() for part in text.split("·") if part.strip()]


def _parameter(query: str, text: str) -> Parameter:
    match = re.fullmatch(r"(\w+): ([\w|]+)(?: = (.+))?", text)
    if match is None or not (match[2] in _TYPES or "|" in match[2]):
        raise _defect(query, f"declares a parameter as {text!r}")
    if match[3] is None:
        return Parameter(match[1], match[2], required=True)
    try:
        default = json.loads(match[3])
    except ValueError as error:
        raise _defect(query, f"gives {match[1]} the default {match[3]!r}, no JSON") from error
    return Parameter(match[1], match[2], required=False, default=default)


def _defect(query: str, what: str) -> QueryError:
    return QueryError(f"query file {query}.cypher {what}", "See the top of queries/library.py")
