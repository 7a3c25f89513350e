"""A corpus as a stream of units: stretches of whole documents that are counted together.

A unit is the same however a run is cut into shards, stopped or merged, and each is run through the
model by itself; that is what makes sums equal to the last bit. It ends with the document that
brings its size to so many tokens (four characters of a text count as one, so that a shard need not
tokenize the units of the others).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from tracer.corpora import Corpus, Record, read_records, record_of
from tracer.errors import FormatError, SettingError, TracingError
from tracer.models import Model

__all__ = ["CorpusLike", "Counting", "Documents", "Unit"]

CorpusLike: TypeAlias = Any  # a file's name, a Corpus, a data set, or an iterable of documents

_CHARACTERS: Final = 4  # of a text that count as one token in cutting units
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Counting:
    """What of a corpus is counted, and how it is cut.

    Attributes
    ----------
    context
        The most tokens of a sequence: longer documents are cut into pieces.
    bos
        Token in front of each sequence, or None for none.
    add_bos
        Whether token ids get it too, not only texts.
    zero_first
        First positions of each sequence that are not counted.
    special
        Token ids that are not counted wherever they stand, in rising order.
    unit
        Tokens of a unit, about.
    """

    context: int
    bos: int | None
    add_bos: bool
    zero_first: int
    special: tuple[int, ...]
    unit: int

    @classmethod
    def of(
        cls,
        model: Model,
        *,
        context: int | None = None,
        bos: bool | int | None = None,
        zero_first: int | None = None,
        special: Sequence[int] | None = None,
        unit: int = 65_536,
    ) -> Counting:
        """Fill in what the model and its tokenizer say; see :func:`tracer.corpus_statistics`.

        Raises
        ------
        SettingError
            If a number is out of range, or BOS is asked for where there is none.
        """
        length = min(256, model.context) if context is None else context
        if not 2 <= length <= model.context:
            raise SettingError(
                f"context is {length}", f"{model.model_id} reads 2 to {model.context:,} tokens"
            )
        if unit < 1:
            raise SettingError(f"unit is {unit}", "Give a whole number of tokens, 1 or more")
        if bos is True and model.bos_id is None:
            raise SettingError(
                f"the tokenizer of {model.model_id} has no BOS to add", "Give bos a token id"
            )
        token = model.bos_id if bos is None or bos is True else None if bos is False else int(bos)
        if token is not None and not 0 <= token < model.vocab_size:
            raise SettingError(
                f"bos is {token}", f"{model.model_id} has token ids 0 to {model.vocab_size - 1:,}"
            )
        first = model.default_zero_first if zero_first is None else zero_first
        if first < 0:
            raise SettingError(f"zero_first is {first}", "Give 0 or more")
        found = getattr(model.tokenizer, "all_special_ids", None) or []
        ids = {int(i) for i in (found if special is None else special)}
        ids |= set() if token is None else {token}
        return cls(
            length, token, bos is not None and bos is not False, first, tuple(sorted(ids)), unit
        )

    def live(self, ids: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which tokens of padded sequences, (S, P), are counted; places are −1 for padding."""
        live = places >= 0
        live[:, : self.zero_first] = False
        if self.special:
            live &= ~np.isin(ids, self.special)
        return live

    def sequences(self, ids: list[int]) -> Iterator[list[int]]:
        """Cut a document into sequences, each with its BOS."""
        front = ids[:1] if self.bos is not None and ids[:1] == [self.bos] else []
        body = ids[len(front) :]
        if self.add_bos and self.bos is not None:
            front = [self.bos]
        step = self.context - len(front)
        for start in range(0, len(body), step):
            yield front + body[start : start + step]


class Unit(NamedTuple):
    """Some documents one after another.

    Attributes
    ----------
    number
        From 0.
    first, documents
        Number of its first document, and how many there are.
    records
        The documents.
    """

    number: int
    first: int
    records: list[Record]

    @property
    def documents(self) -> int:
        """Number of documents."""
        return len(self.records)


class Documents:
    """A corpus that can be read as units.

    Parameters
    ----------
    corpus
        Name of a file (text, JSONL or Parquet; :func:`tracer.read_corpus` says how they look) or
        of a folder that ``datasets`` saved; a :class:`tracer.Corpus`; a data set of ``datasets`` or
        any iterable of texts, lists of token ids, or mappings with ``text`` or ``token_ids``.
    model
        Its tokenizer and vocabulary.
    counting
        How it is cut.
    name
        Tells corpora apart that cannot be read twice; else what they hold does.

    Attributes
    ----------
    source
        Sixteen hex digits over what is read and how it is cut; equal in all shards.
    again
        Whether it can be read more than once.
    """

    def __init__(
        self, corpus: CorpusLike, model: Model, counting: Counting, name: str | None = None
    ) -> None:
        self._model, self.counting = model, counting
        self._corpus = _opened(corpus)
        self.again = not isinstance(self._corpus, Iterator)
        if name is None:
            name = _digest(self._corpus, self._records) if self.again else "one pass"
        self.source = hashlib.sha256(repr((name, counting)).encode()).hexdigest()[:16]

    def units(self) -> Iterator[Unit]:
        """Cut into units, all of them, in order."""
        number, first, size = 0, 0, 0.0
        records: list[Record] = []
        for record in self._records():
            records.append(record)
            ids = record.token_ids
            size += len(ids) if ids is not None else len(record.text or "") / _CHARACTERS
            if size >= self.counting.unit:
                yield Unit(number, first, records)
                number, first, size = number + 1, first + len(records), 0.0
                records = []
        if records:
            yield Unit(number, first, records)

    def sequences(self, unit: Unit) -> Corpus:
        """Token ids of a unit, cut to the context, BOS in front.

        Raises
        ------
        TracingError
            If a token id is not one of the model's, or a text cannot be tokenized.
        """
        found: list[list[int]] = []
        for record in unit.records:
            ids = record.token_ids
            if ids is None:
                ids = self._tokenized(record)
            if ids and not 0 <= min(ids) <= max(ids) < self._model.vocab_size:
                wrong = next(i for i in ids if not 0 <= i < self._model.vocab_size)
                raise TracingError(
                    f"{record.where}: token id {wrong} is not one of the "
                    f"{self._model.vocab_size:,} of {self._model.model_id}",
                    "Tokenize the corpus with this model's own tokenizer",
                )
            found += self.counting.sequences(ids)
        return Corpus.of(found, name=unit.records[0].where if unit.records else "corpus")

    def _tokenized(self, record: Record) -> list[int]:
        tokenizer, bos = self._model.tokenizer, self.counting.bos
        if tokenizer is None:
            raise TracingError(
                f"{record.where}: {self._model.model_id} came without a tokenizer, so a text "
                f"cannot be read",
                "Give token ids",
            )
        # verbose: transformers would print a note of its own where a text is long.
        found = tokenizer.encode(record.text, add_special_tokens=False, verbose=False)
        ids = [int(token) for token in found]
        return ids if bos is None or ids[:1] == [bos] or not ids else [bos, *ids]

    def _records(self) -> Iterator[Record]:
        if isinstance(self._corpus, Path):
            yield from read_records(self._corpus)
            return
        number = 0
        for number, document in enumerate(self._corpus, 1):
            yield _record(document, f"document {number:,}")


def _opened(corpus: CorpusLike) -> Path | Iterable[Any]:
    """Tell files, folders of data sets, and iterables apart."""
    if isinstance(corpus, Mapping):
        raise SettingError(
            f"the corpus is a {type(corpus).__name__} of {len(corpus)} parts",
            f"Give one of them: {', '.join(map(str, list(corpus)[:5]))}",
        )
    if isinstance(corpus, str | os.PathLike):
        path = Path(corpus)
        if not path.is_dir():
            if not path.exists():
                raise FormatError(
                    f"{path}: there is no such file",
                    "Check its name; give texts as a list of strings",
                )
            return path
        try:
            from datasets import load_from_disk
        except ModuleNotFoundError as error:
            raise FormatError(
                f"{path}: a folder needs the package datasets, which a plain install leaves out",
                "Install it with: pip install datasets, or give a file",
            ) from error
        try:
            found: Any = load_from_disk(str(path))
        except (OSError, ValueError) as error:
            raise FormatError(
                f"{path}: holds no data set ({error})", "Give a file, or save the data set again"
            ) from error
        return _opened(found)
    if not isinstance(corpus, Iterable):
        raise SettingError(
            f"the corpus is a {type(corpus).__name__}", "Give a file, or a list of texts"
        )
    return corpus


def _record(document: Any, where: str) -> Record:
    if isinstance(document, Record):
        return document
    if isinstance(document, str):
        return Record(where, document)
    if isinstance(document, Mapping):
        return record_of(dict(document), where)
    listed = document.tolist() if hasattr(document, "tolist") else document
    if not isinstance(listed, list | tuple):
        raise FormatError(
            f"{where}: is a {type(document).__name__}",
            "Give texts, lists of token ids, or objects with text or token_ids",
        )
    return record_of({"token_ids": list(listed)}, where)


def _digest(corpus: Path | Iterable[Any], records: Any) -> str:
    """Digest of all that is in a corpus."""
    digest = hashlib.sha256()
    if isinstance(corpus, Path):
        try:
            with corpus.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise FormatError(
                f"{corpus}: cannot be read ({error.strerror})", "Check its name"
            ) from error
        return digest.hexdigest()
    if isinstance(corpus, Corpus):
        return replace(corpus, classes=None, class_names=()).fingerprint()
    known = getattr(corpus, "_fingerprint", None)  # of a data set: it follows its contents
    if isinstance(known, str):
        return known
    for record in records():
        ids = record.token_ids
        said = repr(record.text).encode() if ids is None else np.array(ids, dtype="<i8").tobytes()
        digest.update(len(said).to_bytes(8, "little") + said)
    return digest.hexdigest()
