"""Describing features: one pass over a corpus gives figures, examples, output tokens and a label.

Source: Circuit Tracing (2025), "Understanding and labeling features": a feature is read from the
contexts that it is most active in, and from the output tokens that its decoder promotes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from tracer.corpora import Corpus
from tracer.describing.chosen import Chosen, choose
from tracer.describing.labels import Evidence, Label, Share, label_of
from tracer.describing.outputs import CONVENTION, OutputTokens, output_tokens
from tracer.describing.sums import Context, Counts, Sums, gather
from tracer.errors import SettingError, TracingError
from tracer.models import Model
from tracer.transcoders import Transcoder

__all__ = ["COLUMNS", "describe_features"]

COLUMNS: Final = (
    "feature_id",
    "layer",
    "index",
    "label",
    "label_source",
    "density",
    "mean_activation",
    "max_activation",
    "statistics",
    "examples",
)
_VERSION: Final = 1
_LISTED: Final = 5  # tokens at, and after, that the statistics list
_SHARES: Final = 40  # tokens, or names, that the evidence for a label holds
_HIT: Final = 0.1  # of a word's occurrences, for a feature to cover it

Progress = Callable[[int, int], None]


def describe_features(
    model: Model,
    transcoder: Transcoder,
    corpus: Corpus,
    features: Iterable[str | tuple[int, int]] | pd.DataFrame | None = None,
    *,
    examples: int = 10,
    outputs: int = 10,
    window: int = 12,
    classes: Mapping[str, Sequence[str]] | None = None,
    zero_first: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Describe features of a transcoder by what they do on a corpus.

    Parameters
    ----------
    model, transcoder
        From :func:`tracer.load_model` and :func:`tracer.load_transcoder`.
    corpus
        Text like that which the graphs are of. It is read once.
    features
        Which: ids ``{transcoder_id}/{layer}/{index}``, pairs (layer, index), or a table with one of
        these as columns; None for all.
    examples
        How many of the most activating contexts to keep, at most. Contexts with the same tokens up
        to the position count once: a causal model cannot tell them apart.
    outputs
        How many of the most promoted and of the most suppressed tokens to keep.
    window
        Tokens before the position that an example shows; two follow it.
    classes
        Names of the classes that a word is in, by word (without the space before it):
        ``{"Dallas": ["Texas cities", "cities"]}``. Labels may name them, where they fit.
    zero_first
        First positions of each sequence that are left out; None for what the model asks for
        (BOS, where it has one).
    progress
        ``progress(sequences done, sequences)``.

    Returns
    -------
    DataFrame
        One row a feature, sorted by layer and index: ``feature_id``, ``layer``, ``index``;
        ``label`` and ``label_source`` (``computed: …`` and the evidence; both None for a feature
        that is never active); ``density`` (share of the tokens on which it is active);
        ``mean_activation`` (over these) and ``max_activation``; ``statistics``, a dictionary of the
        corpus, the token counts, the tokens promoted and suppressed, the tokens at and after active
        positions with their shares of the activation, and the rule that gave the label;
        ``examples``, dictionaries with ``tokens``, ``at`` (place of the position among them),
        ``token``, ``next``, ``activation``, strongest first. ``next`` is the token that follows,
        and at the end of a sequence the one that the model finds likeliest.

    Raises
    ------
    SettingError
        If a setting is out of range, or a feature is given twice or in none of these forms.
    TracingError
        If the transcoder does not fit the model or has not such a feature, or no token is left.

    Notes
    -----
    Promoted tokens: a feature's decoders, summed over the layers they write to, through the norm
    after the MLP where there is one and the final norm (of both, the linear part alone: centring
    and learned scale, no denominators), times the unembedding less its mean row. It is the direct
    effect of one unit of activation, before division by the final norm's denominator; what
    attention and later MLPs make of it is left out.

    Examples
    --------
    >>> from tracer.describing.describing import COLUMNS
    >>> "density" in COLUMNS and "examples" in COLUMNS
    True
    """
    _check(model, transcoder, examples, outputs, window)
    chosen = choose(transcoder, features)
    first = model.default_zero_first if zero_first is None else zero_first
    context = Context.of(model, corpus, first, classes)
    sums = gather(model, transcoder, corpus, chosen, context, examples, progress)
    found = output_tokens(model, transcoder, chosen, outputs)
    table = _Table(model, transcoder, corpus, context, sums, found, window)
    rows = [table.row(row) for row in range(len(chosen))]
    frame = pd.DataFrame(rows, columns=list(COLUMNS[3:]))
    for place, name in enumerate(("feature_id", "layer", "index")):
        frame.insert(place, name, _identity(chosen, transcoder)[name])
    for name in ("label", "label_source"):
        frame[name] = frame[name].astype(object).where(frame[name].notna(), None)
    return frame


def _check(model: Model, transcoder: Transcoder, examples: int, outputs: int, window: int) -> None:
    for name, value in (("examples", examples), ("outputs", outputs), ("window", window)):
        if value < 0:
            raise SettingError(f"{name} is {value}", "Give 0 or more")
    if (transcoder.n_layers, transcoder.d_model) != (model.n_layers, model.width):
        raise TracingError(
            f"{transcoder.transcoder_id} has {transcoder.n_layers} layers of width "
            f"{transcoder.d_model}, {model.model_id} {model.n_layers} of {model.width}",
            "Use the model that the transcoder was trained for",
        )


def _identity(chosen: Chosen, transcoder: Transcoder) -> dict[str, Any]:
    pairs = list(zip(chosen.layers.tolist(), chosen.indices.tolist(), strict=True))
    return {
        "feature_id": [f"{transcoder.transcoder_id}/{layer}/{index}" for layer, index in pairs],
        "layer": chosen.layers,
        "index": chosen.indices,
    }


class _Table:
    """Rows of the result, from sums over the corpus."""

    def __init__(
        self,
        model: Model,
        transcoder: Transcoder,
        corpus: Corpus,
        context: Context,
        sums: Sums,
        outputs: OutputTokens,
        window: int,
    ) -> None:
        self.corpus, self.context, self.sums, self.outputs = corpus, context, sums, outputs
        self.window = window
        self.words = _Words(model)
        self.bos = model.bos_id
        self.corpus_id = corpus.fingerprint()
        self.coverage = sums.at.coverage(context.class_of, _HIT)

    def row(self, row: int) -> dict[str, Any]:
        """Everything but the identity of one feature."""
        sums = self.sums
        active, mass = int(sums.active[row]), float(sums.mass[row])
        promoted = self._outputs(self.outputs.promoted, self.outputs.promotion, row)
        suppressed = self._outputs(self.outputs.suppressed, self.outputs.suppression, row)
        at, after = self._shares(sums.at, row, _LISTED), self._shares(sums.after, row, _LISTED)
        label = self._label(row, [token for token, _ in promoted]) if active else None
        statistics = {
            "version": _VERSION,
            "corpus": self.corpus_id,
            "corpus_name": self.corpus.name,
            "tokens": sums.tokens,
            "active": active,
            "promoted": promoted,
            "suppressed": suppressed,
            "outputs": CONVENTION,
            "at": [[share.name, round(share.share, 4)] for share in at],
            "next": [[share.name, round(share.share, 4)] for share in after],
            "rule": label.rule if label else None,
        }
        return {
            "label": label.text if label else None,
            "label_source": f"computed: {label.reason}" if label else None,
            "density": active / sums.tokens,
            "mean_activation": mass / active if active else 0.0,
            "max_activation": float(sums.peak[row]),
            "statistics": statistics,
            "examples": [self._example(*found) for found in sums.examples(row)],
        }

    def _label(self, row: int, promoted: list[str]) -> Label:
        sums, context = self.sums, self.context
        return label_of(
            Evidence(
                at=self._shares(sums.at, row),
                after=self._shares(sums.after, row),
                before=self._shares(sums.before, row),
                classes_at=self._classes(sums.classes_at, row),
                classes_after=self._classes(sums.classes_after, row),
                classes_before=self._classes(sums.classes_before, row),
                promoted=[word.strip() for word in promoted],
                classes=context.classes,
                positions=int(sums.active[row]),
            )
        )

    def _classes(self, counts: Counts, row: int) -> list[Share]:
        names, (table, members) = self.context.class_names, self.coverage
        start, end = table.indptr[row], table.indptr[row + 1]
        covered = dict(zip(table.indices[start:end], table.data[start:end], strict=True))
        return [
            Share(names[c], share, active, base, int(covered.get(c, 0)), int(members[c]))
            for c, share, active, base in counts.row(row, _SHARES)
        ]

    def _shares(self, counts: Counts, row: int, limit: int = _SHARES) -> list[Share]:
        return [
            Share(self.words.word(token), share, active, base)
            for token, share, active, base in counts.row(row, limit)
        ]

    def _outputs(self, tokens: Any, values: Any, row: int) -> list[tuple[str, float]]:
        words = self.words
        return [
            (words.token(int(token)), round(float(value), 5))
            for token, value in zip(tokens[row], values[row], strict=True)
        ]

    def _example(self, place: int, activation: float) -> dict[str, Any]:
        corpus = self.corpus
        sequence = int(np.searchsorted(corpus.starts, place, "right")) - 1
        first, end = int(corpus.starts[sequence]), int(corpus.starts[sequence + 1])
        begin = first + (int(corpus.token_ids[first]) == self.bos)  # it tells nothing
        low, high = max(begin, place - self.window), min(end, place + 3)
        following = int(self.context.after[place])
        return {
            "tokens": [self.words.token(int(token)) for token in corpus.token_ids[low:high]],
            "at": place - low,
            "token": self.words.token(int(corpus.token_ids[place])),
            "next": self.words.token(following) if following >= 0 else None,
            "activation": round(activation, 6),
        }


class _Words:
    """Texts of tokens, each looked up once."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._known: dict[int, str] = {}

    def token(self, token: int) -> str:
        """Token as the model has it, with its space."""
        if token not in self._known:
            self._known[token] = self._model.tokens([token])[0]
        return self._known[token]

    def word(self, token: int) -> str:
        """Token without the space around it."""
        return self.token(token).strip() or self.token(token)
