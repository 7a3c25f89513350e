"""One pass over a corpus: sums and strongest contexts of every described feature.

Of each feature, the squared activation is added up by the token at the position, the one after it,
the ones before it, and the classes of words at, after, and at or before it. Each sum is a product
of two sparse matrices, activations (features × positions) and a table (positions × names), added
over batches of positions; memory follows what occurs together, not features × vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from tracer.corpora import Corpus
from tracer.describing.chosen import Chosen
from tracer.errors import TracingError
from tracer.models import Model
from tracer.training.activations import MlpHooks, Padded, padded
from tracer.transcoders import Transcoder

__all__ = ["Context", "Counts", "Sums", "gather"]

_PASS: Final = 4096  # tokens of one forward pass
_LOGITS: Final = 1 << 27  # numbers of the logits of one forward pass, at most
_HELD: Final = 4_000_000  # activations that are held before they are added up
_BEFORE: Final = 16  # tokens before the position that count as before it
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no prefix is lost to overflow

Progress = Callable[[int, int], None]
Ints = NDArray[np.int64]


@dataclass
class Context:
    """What is known of each token of the corpus beside the token itself.

    Attributes
    ----------
    zero_first
        First positions of each sequence that are left out.
    after
        Id of the token after each, shape (T,); −1 until the model has said what follows the last.
    classes
        Classes of words, by word.
    class_names
        In the order of the columns of `class_of`.
    class_of
        Which classes each token of the vocabulary is in, (V, C).
    """

    zero_first: int
    after: Ints
    classes: Mapping[str, Sequence[str]]
    class_names: list[str]
    class_of: csr_array

    @classmethod
    def of(
        cls,
        model: Model,
        corpus: Corpus,
        zero_first: int,
        classes: Mapping[str, Sequence[str]] | None,
    ) -> Context:
        """Look up the classes of every token that occurs, and lay the tables out."""
        after = np.full(corpus.n_tokens, -1, dtype=np.int64)
        after[:-1] = corpus.token_ids[1:]
        after[corpus.starts[1:][corpus.lengths > 0] - 1] = -1
        classes = classes or {}
        named: list[Sequence[str]] = [()] * model.vocab_size
        if classes:
            for token in range(model.vocab_size):
                named[token] = classes.get(model.tokens([token])[0].strip(), ())
        names = sorted({name for row in named for name in row})
        place = {name: i for i, name in enumerate(names)}
        rows = np.array([i for i, row in enumerate(named) for _ in set(row)], dtype=np.int64)
        columns = np.array([place[name] for row in named for name in set(row)], dtype=np.int64)
        shape = (len(named), len(names))
        class_of = csr_array((np.ones(len(rows)), (rows, columns)), shape=shape)
        return cls(zero_first, after, classes, names, class_of)


@dataclass
class Counts:
    """Activation of each feature by name (a token, a class).

    Attributes
    ----------
    mass
        Sum of squared activations, (n, names).
    active
        Positions where the feature is active, (n, names).
    base
        Positions that have the name, whether or not a feature is active, shape (names,).
    positions
        All positions.
    totals
        Sum of squared activations over all positions, shape (n,).
    """

    mass: csr_array
    active: csr_array
    base: NDArray[np.float64]
    positions: int = 0
    totals: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))

    @classmethod
    def zero(cls, rows: int, names: int) -> Counts:
        """Nothing yet."""
        empty = csr_array((rows, names))
        return cls(empty, empty.copy(), np.zeros(names))

    def add(self, activations: csr_array, ones: csr_array, table: csr_array) -> None:
        """Add positions: what is active there, and which names they have."""
        self.mass = self.mass + activations @ table
        self.active = self.active + ones @ table
        self.base += np.asarray(table.sum(axis=0)).ravel()
        self.positions += table.shape[0]

    def coverage(self, class_of: csr_array, least: float) -> tuple[csr_array, NDArray[np.float64]]:
        """Words of each class that each feature covers, (n, C), and words that occur, (C,).

        A feature covers a word where it is active at so large a share of its occurrences.
        """
        covers = csr_array(self.active)
        covers.data = (covers.data >= least * self.base[covers.indices]).astype(np.float64)
        occur = csr_array((self.base > 0).astype(np.float64)[None, :])
        return csr_array(covers @ class_of), (occur @ class_of).toarray().ravel()

    def row(self, row: int, limit: int) -> Iterator[tuple[int, float, float, float]]:
        """Names of one feature by falling share.

        Yields
        ------
        int, float, float, float
            Column; share of the feature's activation; how often positions of the name have it
            active; share of all positions that have the name.
        """
        start, end = self.mass.indptr[row], self.mass.indptr[row + 1]
        columns, mass = self.mass.indices[start:end], self.mass.data[start:end]
        order = np.lexsort((columns, -mass))[:limit]
        hits = dict(
            zip(
                self.active.indices[self.active.indptr[row] : self.active.indptr[row + 1]].tolist(),
                self.active.data[self.active.indptr[row] : self.active.indptr[row + 1]].tolist(),
                strict=True,
            )
        )
        total = float(self.totals[row])
        for column, value in zip(columns[order].tolist(), mass[order].tolist(), strict=True):
            if value > 0 and total > 0:
                base = float(self.base[column])
                yield column, value / total, hits[column] / base, base / self.positions


@dataclass
class Sums:
    """Sums over a corpus, row by row of the described features.

    Attributes
    ----------
    tokens
        Positions that count.
    active
        Positions where each is active, shape (n,).
    mass, peak
        Sum and maximum of its activations, shape (n,).
    at, after, before
        By the token at the position, the one after it, and those up to 16 before it.
    classes_at, classes_after, classes_before
        By the classes of the first two, and of all words at or before the position, each once.
    best
        The strongest contexts: ``row``, ``place``, ``activation``; in this order.
    """

    tokens: int
    active: Ints
    mass: NDArray[np.float64]
    peak: NDArray[np.float64]
    at: Counts
    after: Counts
    before: Counts
    classes_at: Counts
    classes_after: Counts
    classes_before: Counts
    best: pd.DataFrame

    def examples(self, row: int) -> list[tuple[int, float]]:
        """Places and activations of one feature's strongest contexts."""
        low, high = np.searchsorted(self.best["row"].to_numpy(), [row, row + 1])
        part = self.best.iloc[low:high]
        return list(zip(part["place"].tolist(), part["activation"].tolist(), strict=True))


def gather(
    model: Model,
    transcoder: Transcoder,
    corpus: Corpus,
    chosen: Chosen,
    context: Context,
    examples: int,
    progress: Progress | None = None,
) -> Sums:
    """Run the corpus through the model once and add up what the features do.

    Raises
    ------
    TracingError
        If no position is left, or a sequence is longer than the model reads.
    """
    tally = _Tally(model, corpus, chosen, context, examples)
    hooks = MlpHooks(model, transcoder.read_hook, transcoder.write_hook)
    size = max(64, min(_PASS, _LOGITS // model.vocab_size))
    everything = np.flatnonzero(corpus.lengths > context.zero_first)
    done = 0
    for batch in padded(corpus, everything, size, model.context):
        live = batch.live(context.zero_first)
        with torch.no_grad(), hooks.running():
            output = model.module(input_ids=batch.token_ids.to(model.device), use_cache=False)
            _note_predictions(context, batch, output.logits)
            mask = live.to(model.device)
            for layer in range(transcoder.n_layers):
                read = hooks.reads[layer][mask].to(transcoder.device, transcoder.dtype)
                found = transcoder.active(layer, read)
                tally.note(layer, found.positions, found.indices, found.activations)
        tally.close(batch, live)
        done += len(batch.token_ids)
        if progress is not None:
            progress(done, len(everything))
    return tally.sums()


def _note_predictions(context: Context, batch: Padded, logits: Any) -> None:
    """Let the model say what comes after the last token of each sequence."""
    places = batch.places.numpy()
    last = (places >= 0).sum(axis=1) - 1
    rows = np.arange(len(last))
    chosen = (torch.from_numpy(rows), torch.from_numpy(last))
    likeliest = logits[chosen].argmax(dim=-1).cpu().numpy()
    context.after[places[rows, last]] = likeliest


class _Tally:
    """Activations of some batches, added up when they are many."""

    def __init__(
        self, model: Model, corpus: Corpus, chosen: Chosen, context: Context, examples: int
    ) -> None:
        n, vocabulary = len(chosen), model.vocab_size
        self.corpus, self.chosen, self.context, self.k = corpus, chosen, context, examples
        self.n = n
        self.sequence_of = np.repeat(np.arange(len(corpus)), corpus.lengths)
        self.active = np.zeros(n, dtype=np.int64)
        self.mass = np.zeros(n)
        self.energy = np.zeros(n)
        self.peak = np.zeros(n)
        self.at, self.after, self.before = (Counts.zero(n, vocabulary) for _ in range(3))
        self.classes_at, self.classes_after, self.classes_before = (
            Counts.zero(n, len(context.class_names)) for _ in range(3)
        )
        self.best = pd.DataFrame(
            {
                "row": np.empty(0, dtype=np.int64),
                "place": np.empty(0, dtype=np.int64),
                "activation": np.empty(0),
                "prefix": np.empty(0, dtype=np.uint64),
            }
        )
        self.tokens = 0
        self._clear()

    def _clear(self) -> None:
        self.rows: list[Ints] = []
        self.columns: list[Ints] = []
        self.values: list[NDArray[np.float64]] = []
        self.places: list[Ints] = []
        self.prefixes: list[NDArray[np.uint64]] = []
        self.held = 0
        self.width = 0  # positions that are closed

    def note(self, layer: int, positions: Any, indices: Any, activations: Any) -> None:
        """Take in one layer of the batch that is not closed yet."""
        rows = self.chosen.rows[layer][indices.cpu().numpy()]
        kept = rows >= 0
        self.rows.append(rows[kept])
        self.columns.append(positions.cpu().numpy()[kept] + self.width)
        self.values.append(activations.double().cpu().numpy()[kept])
        self.held += int(kept.sum())

    def close(self, batch: Padded, live: Any) -> None:
        """End a batch; add up if many activations are held."""
        mask = live.numpy()
        self.places.append(batch.places.numpy()[mask])
        self.prefixes.append(_prefixes(batch.token_ids.numpy())[mask])
        self.width += int(mask.sum())
        if self.held >= _HELD:
            self._add()

    def _add(self) -> None:
        """Add what is held to the sums."""
        rows, columns = np.concatenate(self.rows), np.concatenate(self.columns)
        values = np.concatenate(self.values)
        places, prefixes = np.concatenate(self.places), np.concatenate(self.prefixes)
        self._clear()
        self.tokens += len(places)
        self.active += np.bincount(rows, minlength=self.n)
        self.mass += np.bincount(rows, weights=values, minlength=self.n)
        np.maximum.at(self.peak, rows, values)
        shape = (self.n, len(places))
        activations = csr_array((np.square(values), (rows, columns)), shape=shape)
        self.energy += np.bincount(rows, weights=np.square(values), minlength=self.n)
        ones = csr_array((np.ones(len(values)), (rows, columns)), shape=shape)
        token, after = self.corpus.token_ids[places].astype(np.int64), self.context.after[places]
        vocabulary = self.at.mass.shape[1]
        at, following = _one_each(token, vocabulary), _one_each(after, vocabulary)
        before, class_of = self._before(places, vocabulary), self.context.class_of
        self.at.add(activations, ones, at)
        self.after.add(activations, ones, following)
        self.before.add(activations, ones, before)
        self.classes_at.add(activations, ones, at @ class_of)
        self.classes_after.add(activations, ones, following @ class_of)
        self.classes_before.add(activations, ones, _each_once((before + at) @ class_of))
        if self.k:
            self._keep_best(rows, places[columns], values, prefixes[columns])

    def _before(self, places: Ints, vocabulary: int) -> csr_array:
        """Which tokens stand before each position, each once."""
        corpus = self.corpus
        first = corpus.starts[self.sequence_of[places]] + self.context.zero_first
        rows, tokens = [], []
        for distance in range(1, _BEFORE + 1):
            has = np.flatnonzero(places - distance >= first)
            rows.append(has)
            tokens.append(corpus.token_ids[places[has] - distance].astype(np.int64))
        flat = (np.concatenate(rows), np.concatenate(tokens))
        return _each_once(csr_array((np.ones(len(flat[0])), flat), (len(places), vocabulary)))

    def _keep_best(
        self, rows: Ints, places: Ints, values: NDArray[np.float64], prefixes: NDArray[np.uint64]
    ) -> None:
        least = np.zeros(self.n)  # a full list's last entry: what is weaker cannot enter
        sizes = np.bincount(self.best["row"], minlength=self.n)
        smallest = self.best.groupby("row")["activation"].min()
        full = sizes[smallest.index] >= self.k
        least[smallest.index[full]] = smallest[full]
        may = values >= least[rows]
        found = pd.DataFrame(
            {
                "row": rows[may],
                "place": places[may],
                "activation": values[may],
                "prefix": prefixes[may],
            }
        )
        found = found if self.best.empty else pd.concat([self.best, found], ignore_index=True)
        found = found.sort_values(
            ["row", "activation", "place"], ascending=[True, False, True], kind="stable"
        )
        found = found.drop_duplicates(["row", "prefix"])
        self.best = found.groupby("row").head(self.k).reset_index(drop=True)

    def sums(self) -> Sums:
        """Add up what is left; return all sums."""
        if self.places:
            self._add()
        if not self.tokens:
            raise TracingError(
                f"{self.corpus.name}: no sequence has more than {self.context.zero_first} tokens",
                "Give longer texts, or zero_first=0",
            )
        tokens = (self.at, self.after, self.before)
        classes = (self.classes_at, self.classes_after, self.classes_before)
        for one in (*tokens, *classes):
            one.mass, one.active = csr_array(one.mass), csr_array(one.active)
            one.totals = self.energy
        return Sums(self.tokens, self.active, self.mass, self.peak, *tokens, *classes, self.best)


def _one_each(names: Ints, width: int) -> csr_array:
    """One name a position; none where it is negative."""
    has = np.flatnonzero(names >= 0)
    return csr_array((np.ones(len(has)), (has, names[has])), shape=(len(names), width))


def _each_once(table: csr_array) -> csr_array:
    table.data[:] = 1.0  # what occurs twice was added up
    return table


def _prefixes(token_ids: Ints) -> NDArray[np.uint64]:
    """Digest of the tokens up to each position, (S, P)."""
    found = np.zeros(token_ids.shape, dtype=np.uint64)
    before = np.zeros(len(token_ids), dtype=np.uint64)
    for position in range(token_ids.shape[1]):
        before = before * _FACTOR + token_ids[:, position].astype(np.uint64) + np.uint64(1)
        before ^= before >> np.uint64(29)
        found[:, position] = before
    return found
