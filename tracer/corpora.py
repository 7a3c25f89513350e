"""A corpus: token sequences of one model, each token perhaps with a class.

Classes (content words, answers, function words, …) say which tokens figures are reported for, and
how often training draws them: mean figures over all tokens are dominated by the easy ones.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.errors import FormatError, SettingError, TracingError

if TYPE_CHECKING:
    from tracer.models import Model

__all__ = ["Corpus", "Record", "read_corpus", "read_records", "record_of"]

_JSONL: Final = (".jsonl", ".ndjson", ".json")
_PARQUET: Final = (".parquet", ".pq")
_COLUMNS: Final = ("text", "prompt", "token_ids", "classes")
_CONTEXT: Final = 256  # tokens of a piece of a long text, where nothing else is asked for


@dataclass(frozen=True)
class Corpus:
    """Token sequences, one after another.

    Attributes
    ----------
    token_ids
        All sequences end to end, shape (T,).
    starts
        Where each begins, and T at the end, shape (n + 1,).
    classes
        Index into `class_names` of each token, −1 for none, shape (T,); None without classes.
    class_names
        Names of the classes.
    name
        Where it is from, for messages.

    Examples
    --------
    >>> corpus = Corpus.of([[1, 5, 2], [1, 7]], classes=[["", "fact", "fact"], ["", ""]])
    >>> len(corpus), corpus.n_tokens, corpus.class_names, corpus[1].tolist()
    (2, 5, ('fact',), [1, 7])
    """

    token_ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    classes: NDArray[np.int16] | None = None
    class_names: tuple[str, ...] = ()
    name: str = "corpus"

    @classmethod
    def of(
        cls,
        sequences: Iterable[Sequence[int]],
        classes: Iterable[Sequence[str]] | None = None,
        *,
        name: str = "corpus",
    ) -> Corpus:
        """Make a corpus of token ids.

        Parameters
        ----------
        sequences
            Token ids, BOS included where the model wants one.
        classes
            The class of each token by name, ``""`` for none; as many and as long as `sequences`.
        name
            For messages.

        Raises
        ------
        SettingError
            If classes and sequences differ in number or length.
        """
        listed = [np.asarray(ids, dtype=np.int32) for ids in sequences]
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in listed], dtype=np.int64)])
        flat = np.concatenate([*listed, np.empty(0, dtype=np.int32)])
        made = cls(flat, starts.astype(np.int64), name=name)
        if classes is None:
            return made
        named = [list(words) for words in classes]
        if [len(words) for words in named] != [len(ids) for ids in listed]:
            raise SettingError(
                f"{name}: classes and token ids differ in number", "Give each token one class"
            )
        names = tuple(sorted({word for words in named for word in words if word}))
        place = {"": -1, **{word: i for i, word in enumerate(names)}}
        numbers = np.array([place[word] for words in named for word in words], dtype=np.int16)
        return replace(made, classes=numbers, class_names=names)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> NDArray[np.int32]:
        return self.token_ids[self.starts[index] : self.starts[index + 1]]

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        return (self[index] for index in range(len(self)))

    @property
    def n_tokens(self) -> int:
        """Number of tokens T."""
        return int(self.starts[-1])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, shape (n,)."""
        return np.diff(self.starts)

    def usable(self, zero_first: int) -> int:
        """Tokens that are left when each sequence loses its first `zero_first`."""
        return int(np.maximum(self.lengths - zero_first, 0).sum())

    def select(self, indices: Sequence[int] | NDArray[np.int64]) -> Corpus:
        """Corpus of some of the sequences, in the order given."""
        chosen = [np.arange(self.starts[i], self.starts[i + 1]) for i in indices]
        places = np.concatenate([*chosen, np.empty(0, dtype=np.int64)]).astype(np.int64)
        starts = np.concatenate([[0], np.cumsum([len(one) for one in chosen], dtype=np.int64)])
        return replace(
            self,
            token_ids=self.token_ids[places],
            starts=starts.astype(np.int64),
            classes=None if self.classes is None else self.classes[places],
        )

    def fingerprint(self) -> str:
        """Sixteen hex digits over tokens, sequence boundaries and classes."""
        digest = hashlib.sha256()
        for array in (self.token_ids, self.starts, self.classes):
            if array is not None:
                digest.update(np.ascontiguousarray(array).tobytes())
        digest.update("\0".join(self.class_names).encode())
        return digest.hexdigest()[:16]


def read_corpus(
    path: str | os.PathLike[str], model: Model, *, context: int | None = None
) -> Corpus:
    """Read a file of texts or token ids.

    Parameters
    ----------
    path
        ``….jsonl`` (also ``.ndjson``, ``.json``): one object a line, with ``text`` (or ``prompt``)
        or ``token_ids``, and with these perhaps ``classes``, one name for each token (``""`` for
        none); other keys are passed over. ``….parquet``: the same as columns (needs the extra
        ``parquet``). Anything else: a text, each line of it a sequence.
    model
        Tokenizes texts, BOS in front where it has one.
    context
        The most tokens of a sequence: longer lines are cut into pieces, each with its BOS. None for
        256, or what the model reads if that is less.

    Returns
    -------
    Corpus

    Raises
    ------
    FormatError
        If the file cannot be read, is not UTF-8, holds no sequence of two tokens, or a line is not
        as above; the message names file and line.
    TracingError
        If a token id is not one of the model's.
    SettingError
        If `context` is below 2 or above what the model reads.
    """
    path = Path(path)
    length = min(_CONTEXT, model.context) if context is None else context
    if not 2 <= length <= model.context:
        raise SettingError(
            f"context is {length}", f"{model.model_id} reads 2 to {model.context:,} tokens"
        )
    sequences: list[list[int]] = []
    classes: list[list[str]] = []
    for where, ids, names in _records(path, model):
        bos = ids[:1] if model.bos_id is not None and ids[:1] == [model.bos_id] else []
        body, marks = ids[len(bos) :], names[len(bos) :]
        step = length - len(bos)
        for start in range(0, len(body), step):
            piece = bos + body[start : start + step]
            if len(piece) > 1:
                sequences.append(piece)
                classes.append(names[: len(bos)] + marks[start : start + step])
        _check(ids, model, where)
    if not sequences:
        raise FormatError(
            f"{path}: holds no sequence of two tokens or more", "Write one text a line"
        )
    marked = any(any(names) for names in classes)
    return Corpus.of(sequences, classes if marked else None, name=path.name)


def _records(path: Path, model: Model) -> Iterator[tuple[str, list[int], list[str]]]:
    """Token ids and classes of each line."""
    for record in read_records(path):
        text = record.text
        ids = list(record.token_ids or []) if text is None else _tokenized(text, model)
        yield record.where, ids, record.classes or [""] * len(ids)


class Record(NamedTuple):
    """One document of a corpus, not yet tokenized.

    Attributes
    ----------
    where
        File and line, for messages.
    text, token_ids
        One of the two.
    classes
        A name for each token id, or None.
    """

    where: str
    text: str | None = None
    token_ids: list[int] | None = None
    classes: list[str] | None = None


def read_records(path: str | os.PathLike[str]) -> Iterator[Record]:
    """Read the documents of a file one after another, as :func:`read_corpus` describes them.

    Raises
    ------
    FormatError
        As :func:`read_corpus`; if a Parquet file is read without the extra ``parquet``.
    """
    path = Path(path)
    if path.suffix.lower() in _PARQUET:
        yield from _parquet(path)
        return
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                where = f"{path}:{number}"
                line = _decoded(raw, where)
                if not line.strip():
                    continue
                yield _record(line, where) if path.suffix.lower() in _JSONL else Record(where, line)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror})", "Check its name") from error


def _parquet(path: Path) -> Iterator[Record]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise FormatError(
            f"{path}: Parquet needs the package pyarrow, which a plain install leaves out",
            "Install it with: pip install 'circuitbase[parquet]'",
        ) from error
    number = 0
    try:
        with ParquetFile(path) as file:
            columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=columns):
                for row in batch.to_pylist():
                    number += 1
                    yield record_of(row, f"{path}:{number}")
    except (OSError, ArrowException) as error:
        raise FormatError(
            f"{path}: cannot be read as Parquet ({error})", "Check its name, or write it again"
        ) from error


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"{where}: is not UTF-8 ({error.reason})", "Save the file as UTF-8 text"
        ) from error


def _tokenized(text: str, model: Model) -> list[int]:
    if model.tokenizer is None:
        raise TracingError(
            f"{model.model_id} came without a tokenizer, so a text cannot be read",
            'Give token ids: a .jsonl file with {"token_ids": […]}',
        )
    found = model.tokenizer.encode(text, add_special_tokens=False, verbose=False)
    ids = [int(token) for token in found]
    return ids if model.bos_id is None or ids[:1] == [model.bos_id] else [model.bos_id, *ids]


def _record(line: str, where: str) -> Record:
    try:
        record: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(
            f"{where}: is not JSON ({error})", 'Write one object a line: {"text": "…"}'
        ) from error
    return record_of(record, where)


def record_of(record: Any, where: str) -> Record:
    """Check one object of a file or data set: ``text`` (or ``prompt``) or ``token_ids``.

    Raises
    ------
    FormatError
        If it is not as :func:`read_corpus` says.
    """
    if not isinstance(record, dict):
        raise FormatError(f"{where}: is no JSON object", 'Write {"text": "…"}')
    text = record.get("text")
    if text is None:
        text = record.get("prompt")
    ids, names = record.get("token_ids"), record.get("classes")
    if (text is None) == (ids is None):
        raise FormatError(
            f"{where}: has {'neither' if ids is None else 'both'} of text and token_ids",
            "Give one of the two",
        )
    if ids is None:
        if not isinstance(text, str):
            raise FormatError(f"{where}: text is not a string", 'Write {"text": "…"}')
        if names is not None:
            raise FormatError(f"{where}: classes go with token_ids", "Give token_ids, not text")
        return Record(where, text)
    if not isinstance(ids, list) or not set(map(type, ids)) <= {int}:
        raise FormatError(
            f"{where}: token_ids is not a list of whole numbers", 'Write "token_ids": [1, 17, 4]'
        )
    if names is not None and (
        not isinstance(names, list)
        or len(names) != len(ids)
        or not all(isinstance(name, str) for name in names)
    ):
        raise FormatError(
            f"{where}: classes is not a list of {len(ids)} names", 'Write "" for tokens of no class'
        )
    return Record(where, token_ids=ids, classes=names)


def _check(ids: list[int], model: Model, where: str) -> None:
    for position, token in enumerate(ids):
        if not 0 <= token < model.vocab_size:
            raise TracingError(
                f"{where}: token id {token} at position {position} is not one of the "
                f"{model.vocab_size:,} of {model.model_id}",
                "Tokenize the corpus with this model's own tokenizer",
            )
