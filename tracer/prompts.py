"""Prompts, and the files that list them: text, JSON lines, CSV.

A prompt is a text or token ids, with what is to be known of it later: an id, a name, and metadata
(template, family, answer, roles, …). All of it comes along into the graph and the store.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from tracer.errors import FormatError
from tracer.graph import JSON

__all__ = ["Prompt", "PromptFormat", "as_prompt", "parse_prompts", "read_prompts"]

PromptFormat = Literal["text", "jsonl", "csv", "tsv"]

_ENDINGS: Final[Mapping[str, PromptFormat]] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
}
_SLUG: Final = 40  # characters of a name made from a text


@dataclass(frozen=True)
class Prompt:
    """One prompt.

    Attributes
    ----------
    prompt
        A text, which gets BOS in front if the tokenizer has one, or token ids as they are.
    id
        What its author calls it; empty if nothing.
    slug
        Name of its graph; empty for its id, or where it has none the first words of the text.
    metadata
        What else is known of it; JSON-able. Kept with the graph, without effect on its identity.
    where
        File and line it came from, for messages.

    Examples
    --------
    >>> Prompt("The capital of the state", metadata={"answer": "Austin"}).name
    'the-capital-of-the-state'
    """

    prompt: str | tuple[int, ...]
    id: str = ""
    slug: str = ""
    metadata: Mapping[str, JSON] = field(default_factory=dict)
    where: str = ""

    @property
    def name(self) -> str:
        """Slug of the graph: the prompt's own, its id, or the first words of its text."""
        if self.slug or self.id:
            return self.slug or self.id
        if not isinstance(self.prompt, str):
            return ""
        words = re.findall(r"\w+", self.prompt.lower())
        while len(words) > 1 and len("-".join(words)) > _SLUG:
            words.pop()
        return "-".join(words)[:_SLUG]

    def __str__(self) -> str:
        if self.where or self.id:
            return self.where or f"prompt {self.id!r}"
        text = self.prompt if isinstance(self.prompt, str) else f"{len(self.prompt)} token ids"
        return f"prompt {text if len(text) <= _SLUG else text[: _SLUG - 1] + '…'!r}"


def as_prompt(prompt: Prompt | str | Sequence[int]) -> Prompt:
    """Make a :class:`Prompt` of a text or of token ids; one that is made already stays as it is.

    Examples
    --------
    >>> as_prompt([1, 17, 4]).prompt
    (1, 17, 4)
    """
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, str):
        return Prompt(prompt)
    listed: Any = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    return Prompt(tuple(listed))


def read_prompts(path: str | os.PathLike[str]) -> list[Prompt]:
    """Read a file of prompts.

    Parameters
    ----------
    path
        ``….jsonl`` (also ``.ndjson``, ``.json``): one object a line, with ``prompt`` (a text) or
        ``token_ids``, ``id`` and ``slug`` if wanted; any other key is metadata. ``….csv``,
        ``….tsv``: a header that names the same columns (token ids are numbers with spaces
        between), all values are texts, and empty cells are left out. Anything else: one prompt a
        line, as it is; lines without anything on them are passed over.

    Returns
    -------
    list of Prompt
        In the order of the file; ``where`` names file and line.

    Raises
    ------
    FormatError
        If the file cannot be read, is not UTF-8, holds no prompt, or a line is not as above; the
        message names file and line.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror})", "Check its name") from error
    return parse_prompts(data, _ENDINGS.get(path.suffix.lower(), "text"), str(path))


def parse_prompts(data: bytes | str, format: PromptFormat, name: str) -> list[Prompt]:
    """Prompts of a file's content; see :func:`read_prompts`.

    Parameters
    ----------
    data
        The whole file.
    format
        ``text``, ``jsonl``, ``csv`` or ``tsv``.
    name
        What messages call the file.

    Examples
    --------
    >>> [p] = parse_prompts('{"prompt": "2 + 2 =", "id": "sum", "answer": " 4"}', "jsonl", "f")
    >>> p.id, dict(p.metadata), p.where
    ('sum', {'answer': ' 4'}, 'f:1')
    """
    prompts = list(_READERS[format](_decoded(data, name), name))
    if not prompts:
        raise FormatError(f"{name}: holds no prompt", "Write one a line")
    first: dict[str, str] = {}
    for prompt in prompts:
        if prompt.id and first.setdefault(prompt.id, prompt.where) != prompt.where:
            raise FormatError(
                f"{prompt.where}: has the id {prompt.id!r} of {first[prompt.id]}",
                "Give each prompt an id of its own",
            )
    return prompts


def _decoded(data: bytes | str, name: str) -> str:
    if isinstance(data, str):
        return data
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise FormatError(
            f"{name}:{line}: is not UTF-8 ({error.reason} at byte {error.start})",
            "Save the file as UTF-8 text",
        ) from error


def _lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines that hold something, with their numbers; only line feeds end a line."""
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line.strip():
            yield number, line


def _read_text(text: str, name: str) -> Iterator[Prompt]:
    for number, line in _lines(text):
        yield Prompt(line, where=f"{name}:{number}")


def _read_jsonl(text: str, name: str) -> Iterator[Prompt]:
    for number, line in _lines(text):
        where = f"{name}:{number}"
        if number == 1 and line.lstrip().startswith("["):
            raise FormatError(f"{where}: begins a JSON list", "Write one JSON object a line")
        try:
            record = json.loads(line, parse_constant=_no_number)
            json.dumps(record, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise FormatError(
                f"{where}: is not JSON ({error})", 'Write one object a line: {"prompt": "…"}'
            ) from error
        if not isinstance(record, dict):
            raise FormatError(f"{where}: is no JSON object", 'Write {"prompt": "…"}')
        yield _prompt(record, where)


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def _read_csv(text: str, name: str, delimiter: str = ",") -> Iterator[Prompt]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    start = 1
    try:
        for row in reader:
            where, start = f"{name}:{start}", reader.line_num + 1
            if not header:
                header = _header(row, where)
            elif len(row) > len(header):
                raise FormatError(
                    f"{where}: has {len(row)} cells, the header {len(header)}",
                    'Put a text that holds the separator between "quotes"',
                )
            elif any(row):
                record: dict[str, JSON] = dict(zip(header, row, strict=False))
                if numbers := record.get("token_ids"):
                    record["token_ids"] = _numbers(str(numbers), where)
                    if not record.get("prompt"):
                        record.pop("prompt", None)
                elif "prompt" in header:
                    record.setdefault("prompt", "")
                kept = {k: v for k, v in record.items() if v != "" or k == "prompt"}
                yield _prompt(kept, where)
    except csv.Error as error:
        raise FormatError(
            f"{name}:{start}: is not CSV ({error})", "Check the quotes on and above this line"
        ) from error


def _header(row: list[str], where: str) -> list[str]:
    header = [cell.strip() for cell in row]
    if "prompt" not in header and "token_ids" not in header:
        raise FormatError(
            f"{where}: the header names no column prompt, but {', '.join(header) or 'nothing'}",
            'Begin the file with a header, such as "id,prompt"',
        )
    if twice := [cell for cell in header if header.count(cell) > 1 or not cell]:
        raise FormatError(f"{where}: has two columns {twice[0]!r}", "Name each column once")
    return header


def _numbers(text: str, where: str) -> list[int]:
    try:
        return [int(word) for word in re.split(r"[\s,]+", text.strip().strip("[]").strip()) if word]
    except ValueError as error:
        raise FormatError(
            f"{where}: token_ids holds {text!r}", "Write whole numbers with spaces between"
        ) from error


def _read_tsv(text: str, name: str) -> Iterator[Prompt]:
    return _read_csv(text, name, "\t")


_READERS: Final[Mapping[str, Callable[[str, str], Iterable[Prompt]]]] = {
    "text": _read_text,
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
}


def _prompt(record: dict[str, JSON], where: str) -> Prompt:
    """Prompt of a record, every field of it checked."""
    if ("prompt" in record) == ("token_ids" in record):
        both = "both" if "prompt" in record else "neither"
        raise FormatError(
            f"{where}: has {both} prompt {'and' if both == 'both' else 'nor'} token_ids",
            'Give one of them, such as "prompt": "The capital of"',
        )
    rest = dict(record)
    names = {}
    for name in ("id", "slug"):
        value = rest.pop(name, None)
        if type(value) is int:
            value = str(value)
        if value is not None and not isinstance(value, str):
            raise FormatError(f"{where}: {name} is {_shown(value)}, not a text", "Give a text")
        names[name] = value or ""
    prompt = Prompt("", names["id"], names["slug"], where=where)
    if "prompt" in rest:
        text = rest.pop("prompt")
        if not isinstance(text, str):
            raise FormatError(
                f"{where}: prompt is {_shown(text)}, not a text", "Give token ids as token_ids"
            )
        return replace(prompt, prompt=text, metadata=rest)
    ids = rest.pop("token_ids")
    if not isinstance(ids, list) or not all(type(i) is int for i in ids):
        raise FormatError(
            f"{where}: token_ids is {_shown(ids)}, not a list of whole numbers",
            'Write "token_ids": [1, 17, 4]',
        )
    return replace(prompt, prompt=tuple(ids), metadata=rest)


def _shown(value: JSON) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SLUG else text[: _SLUG - 1] + "…"
