"""The pass over a corpus: counts of all features, and sums for chosen ones.

Source: spec, section 6.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tracer.attribution.local import check_fit
from tracer.corpora import Corpus
from tracer.errors import SettingError, TracingError
from tracer.models import Model
from tracer.transcoders import Transcoder
from tracer.weights.documents import CorpusLike, Counting, Documents, Unit
from tracer.weights.products import moments, pairs
from tracer.weights.recording import Recorder
from tracer.weights.selection import FeatureSelection, check_features
from tracer.weights.statistics import CorpusStatistics
from tracer.weights.sums import MOST_ADDITIONS
from tracer.weights.weights import NORMS, Norm

__all__ = ["FeatureCounts", "corpus_statistics", "feature_counts", "folding_refusal"]

Indices = NDArray[np.int64]
Progress = Callable[[int], None]

_ACTIVE: Final = 10  # tokens a feature is active on, where no features are given
_MOST_DENSE: Final = 16_384  # features whose products a GPU does as dense ones


def corpus_statistics(
    model: Model,
    transcoder: Transcoder,
    corpus: CorpusLike,
    features: FeatureSelection | pd.DataFrame | Iterable[tuple[int, int]] | None = None,
    *,
    norms: Sequence[Norm] | None = None,
    context: int | None = None,
    bos: bool | int | None = None,
    zero_first: int | None = None,
    special: Sequence[int] | None = None,
    name: str | None = None,
    unit: int = 65_536,
    batch: int = 4096,
    shard: tuple[int, int] | None = None,
    units: Collection[int] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    every: int = 1_000_000,
    resume: bool = True,
    progress: Progress | None = None,
) -> CorpusStatistics:
    """Sum over the tokens of a corpus what ERA, TWERA and their standard errors need.

    Parameters
    ----------
    model, transcoder
        From :func:`tracer.load_model` and :func:`tracer.load_transcoder`.
    corpus
        A file (text, JSONL, Parquet: :func:`tracer.read_corpus`), a :class:`tracer.Corpus`, a data
        set of ``datasets``, or any iterable of texts, lists of token ids, or mappings with ``text``
        or ``token_ids``.
    features
        A :class:`FeatureSelection`, a table or pairs of layer and index; None for every feature
        that is active on 10 tokens or more, which takes a pass of its own.
    norms
        Conventions to keep sums of; None for ``omitted``, and ``folded`` where it holds.
    context
        The most tokens of a sequence: longer documents are cut. None for 256, or what the model
        reads if that is less.
    bos
        None: texts get the tokenizer's BOS, token ids are taken as they are. True, or a token id:
        token ids get it too. False: none is added. It is never counted.
    zero_first
        First positions of each sequence that are not counted; None for what graphs of this model
        leave out (1; 4 for Gemma 3 instruct models).
    special
        Token ids that are not counted anywhere; None for the tokenizer's special tokens.
    name
        Of a corpus that can be read only once; shards of it need the same.
    unit
        Tokens of a unit, about: what is counted between two points where a run can be cut.
    batch
        Tokens of one forward pass, padding included. Another one changes sums by the rounding of
        the model's own pass, nothing else does.
    shard
        ``(i, n)``: count every n-th unit, from the i-th on, i from 1 to n.
    units
        Count these units alone.
    checkpoint
        File that the sums are kept in while they grow, and in the end. A run that was stopped goes
        on from it.
    every
        Tokens between two savings.
    resume
        Whether to go on from a checkpoint; else it is written over.
    progress
        Called with the tokens counted so far.

    Returns
    -------
    CorpusStatistics
        The same to the last bit however the corpus is cut into shards, in whatever order they are
        merged, and however often the run is stopped.

    Raises
    ------
    TracingError
        If the transcoder is not of the model, the corpus is empty, a token id does not exist, or an
        activation is not finite. What was counted before stays in the checkpoint.
    SettingError
        If a setting is out of range, a feature does not exist, the convention does not hold, or
        the checkpoint is of another run or another corpus.
    FormatError
        If a file cannot be read or written.

    References
    ----------
    .. [1] Spec, section 6.
    """
    check_fit(model, transcoder)
    counting = Counting.of(
        model, context=context, bos=bos, zero_first=zero_first, special=special, unit=unit
    )
    wanted = _wanted(shard, units)
    documents = Documents(corpus, model, counting, name)
    if batch < 1 or every < 1:
        raise SettingError(f"batch is {batch}, every is {every}", "Give whole numbers, 1 or more")
    kept = _norms(model, transcoder, norms)
    if features is None:
        if not documents.again:
            raise SettingError(
                "the corpus can be read only once, and choosing features takes a pass of its own",
                "Give features, or a corpus that is a file or a list",
            )
        counts = _count(model, transcoder, documents, batch, None)
        features = FeatureSelection.active(counts, _ACTIVE)
    chosen = features if isinstance(features, FeatureSelection) else FeatureSelection.of(features)
    check_features(chosen.features, transcoder)
    made = CorpusStatistics.empty(
        chosen.features,
        chosen.record,
        _identity(model, transcoder, counting),
        kept,
        transcoder.n_layers,
    )
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and resume and path.exists():
        made = _resumed(path, made, documents.source)
    run = _Run(model, transcoder, documents, chosen, batch, path, every, progress, made)
    run.take_all(wanted)
    return run.finished(shard is None and units is None)


def feature_counts(
    model: Model,
    transcoder: Transcoder,
    corpus: CorpusLike,
    *,
    context: int | None = None,
    bos: bool | int | None = None,
    zero_first: int | None = None,
    special: Sequence[int] | None = None,
    batch: int = 4096,
    progress: Progress | None = None,
) -> FeatureCounts:
    """Count on how many tokens each feature is active, to choose features by.

    Parameters
    ----------
    model, transcoder, corpus, context, bos, zero_first, special, batch, progress
        As in :func:`corpus_statistics`.

    Raises
    ------
    TracingError, SettingError, FormatError
        As :func:`corpus_statistics`.
    """
    check_fit(model, transcoder)
    counting = Counting.of(model, context=context, bos=bos, zero_first=zero_first, special=special)
    return _count(model, transcoder, Documents(corpus, model, counting), batch, progress)


@dataclass(frozen=True, eq=False)
class FeatureCounts:
    """On how many tokens each feature is active.

    Attributes
    ----------
    counts
        For each layer, shape (F,).
    tokens
        Tokens that were counted.
    corpus_id
        Digest of the corpus and how it was cut.
    """

    counts: list[Indices]
    tokens: int
    corpus_id: str


def folding_refusal(model: Model, transcoder: Transcoder) -> str:
    """Say why the ``folded`` convention does not hold for a transcoder; empty where it does."""
    if transcoder.has_skip:
        return "its affine skip is live: part of what reaches a target runs through it"
    if transcoder.write_hook == "mlp.hook_out" and model.has_post_norm:
        return (
            "what it writes passes the norm after the MLP, whose denominator is another at every "
            "layer written to"
        )
    return ""


# Details ------------------------------------------------------------------------------------------


def _wanted(shard: tuple[int, int] | None, units: Collection[int] | None) -> Callable[[int], bool]:
    if shard is None:
        return (lambda _: True) if units is None else set(units).__contains__
    if units is not None:
        raise SettingError("both shard and units are given", "Give one of them")
    part, of = shard
    if not 1 <= part <= of:
        raise SettingError(f"shard is {part}/{of}", "Give i/n with i from 1 to n")
    return lambda number: number % of == part - 1


def _norms(model: Model, transcoder: Transcoder, norms: Sequence[Norm] | None) -> tuple[Norm, ...]:
    """Conventions whose sums are kept."""
    refusal = folding_refusal(model, transcoder)
    for norm in norms or ():
        if norm not in NORMS:
            raise SettingError(f"norm {norm!r} is unknown", f"Known are {', '.join(NORMS)}")
    if refusal and norms is not None and "folded" in norms:
        raise SettingError(
            f"the folded convention does not hold for {transcoder.transcoder_id}: {refusal}",
            'Use norm="omitted", which leaves these denominators out',
        )
    if norms is not None and not norms:
        raise SettingError("no convention is given", f"Known are {', '.join(NORMS)}")
    if transcoder.read_hook == "hook_resid_mid" or (refusal and norms is None):
        return ("omitted",)  # stands for both where there is no norm to read through
    return NORMS if norms is None else tuple(norm for norm in NORMS if norm in norms)


def _identity(model: Model, transcoder: Transcoder, counting: Counting) -> dict[str, Any]:
    counted = asdict(counting)
    counted["special"] = list(counting.special)
    return {
        "model_id": model.model_id,
        "model_fingerprint": model.info.get("fingerprint"),
        "model_dtype": str(model.dtype).removeprefix("torch."),
        "transcoder_id": transcoder.transcoder_id,
        "transcoder_fingerprint": transcoder.fingerprint,
        "transcoder_dtype": str(transcoder.dtype).removeprefix("torch."),
        "read_hook": transcoder.read_hook,
        "write_hook": transcoder.write_hook,
        "counting": counted,
    }


def _resumed(path: Path, made: CorpusStatistics, source: str) -> CorpusStatistics:
    found = CorpusStatistics.load(path)
    difference = found.difference(made)
    if difference:
        raise SettingError(
            f"{path}: holds statistics of another run: {difference}",
            "Take the settings of that run, another file, or start over with resume=False "
            "(--fresh)",
        )
    # A corpus that has changed since would be counted twice, as two corpora.
    if found.units.sources and source not in found.units.sources:
        raise SettingError(
            f"{path}: holds statistics of another corpus, or of this one before it changed",
            "Start over with resume=False (--fresh); sums of another corpus take another file",
        )
    return found


class _Run:
    """One pass for chosen features."""

    def __init__(
        self,
        model: Model,
        transcoder: Transcoder,
        documents: Documents,
        chosen: FeatureSelection,
        batch: int,
        path: Path | None,
        every: int,
        progress: Progress | None,
        made: CorpusStatistics,
    ) -> None:
        self._documents, self._path, self._every = documents, path, every
        self._progress, self._made = progress, made
        self._unsaved, self._running = 0, 0
        dense = model.device.type == "cuda" and len(made) <= _MOST_DENSE
        self._device = model.device if dense else None
        self._record = Recorder(
            model,
            transcoder,
            chosen.by_layer(transcoder),
            documents.counting,
            batch=batch,
            folded="folded" in made.norms,
        )

    def take_all(self, wanted: Callable[[int], bool]) -> None:
        """Count the wanted units that have not been counted."""
        source, total = self._documents.source, 0
        known = self._made.units.numbers(source)
        if self._progress is not None:
            self._progress(self._made.tokens)
        for unit in self._documents.units():
            total = unit.number + 1
            if wanted(unit.number) and unit.number not in known:
                self._take(unit)
        if not total:
            raise TracingError("the corpus is empty", "Give a corpus with text in it")
        self._made.units.finish(source, total)

    def finished(self, whole: bool) -> CorpusStatistics:
        """Save, and hand out what was made."""
        if whole and not self._made.tokens:
            raise TracingError(
                "no token of the corpus is counted",
                "Give longer texts, or lower zero_first: first positions and special tokens are "
                "left out",
            )
        self._made.units = self._made.units.sorted()
        if self._path is not None:
            self._made.save(self._path)
        return self._made

    def _take(self, unit: Unit) -> None:
        made = self._made
        corpus = self._documents.sequences(unit)
        self._running = made.tokens
        encoded = self._record(corpus, self._tick)
        # Whole units only: an error above leaves the sums as they were.
        found = list(pairs(encoded, made.norms, self._device))
        additions = 1 + max((one.piece for one in found), default=0)
        if made.additions + additions > MOST_ADDITIONS:
            raise SettingError(
                f"more than {MOST_ADDITIONS:,} units would enter one sum", "Give larger units"
            )
        counts, numbers = moments(encoded)
        made.counts += counts
        made.moments.add(numbers)
        for one in found:
            made.pairs[one.layer].add(one.keys, one.counts, one.numbers)
        made.additions += additions
        made.units.add(
            self._documents.source,
            unit.number,
            unit.first,
            unit.documents,
            encoded.tokens,
            _digest(corpus),
        )
        self._unsaved += encoded.tokens
        if self._path is not None and self._unsaved >= self._every:
            made.save(self._path)
            self._unsaved = 0

    def _tick(self, tokens: int) -> None:
        self._running += tokens
        if self._progress is not None:
            self._progress(self._running)


def _digest(corpus: Corpus) -> int:
    """Digest of token ids and their boundaries, as a signed 64-bit number."""
    digest = hashlib.sha256(corpus.token_ids.astype("<i8").tobytes())
    digest.update(corpus.starts.astype("<i8").tobytes())
    return int.from_bytes(digest.digest()[:8], "little", signed=True)


def _count(
    model: Model,
    transcoder: Transcoder,
    documents: Documents,
    batch: int,
    progress: Progress | None,
) -> FeatureCounts:
    """Count all features, with those of each layer encoded together."""
    every = [np.arange(transcoder.features(layer)) for layer in range(transcoder.n_layers)]
    record = Recorder(model, transcoder, every, documents.counting, batch=batch, folded=False)
    counts = [np.zeros(len(mine), dtype=np.int64) for mine in every]
    tokens = 0

    for unit in documents.units():
        for found, _, n in record.passes(documents.sequences(unit)):
            for mine, part in zip(counts, found, strict=True):
                mine += np.bincount(part.columns[part.values > 0], minlength=len(mine))
            tokens += n
            if progress is not None:
                progress(tokens)
    if not tokens:
        raise TracingError("the corpus is empty, or no token of it is counted", "Give more text")
    return FeatureCounts(counts, tokens, documents.source)
