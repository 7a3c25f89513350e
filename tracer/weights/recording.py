"""Activations of chosen features over sequences: one forward pass, and an encoding of what it read.

Beside each activation stands the denominator of the norm that its layer's features read through,
which the ``folded`` convention divides a source's activation by (spec, section 6).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from torch import Tensor

from tracer.attribution.local import check_fit
from tracer.corpora import Corpus
from tracer.errors import TracingError
from tracer.models import Model
from tracer.models.families.parts import Norm
from tracer.models.recording import full_precision
from tracer.training.activations import Padded, padded
from tracer.transcoders import Transcoder
from tracer.weights.documents import Counting

__all__ = ["Encoded", "Part", "Recorder"]

Indices = NDArray[np.int64]


class Encoded(NamedTuple):
    """Activations of chosen features on counted tokens.

    Attributes
    ----------
    activations
        Tokens × chosen features of each layer, float64, shape (N, F_l) each.
    tokens
        N.
    inverse
        1 / denominator of the norm that each layer reads through, shape (N, L); None where the
        transcoder reads the residual stream itself.
    """

    activations: list[csr_array]
    tokens: int
    inverse: NDArray[np.float64] | None


class Recorder:
    """Runs sequences through a model and encodes what chosen features read.

    Parameters
    ----------
    model, transcoder
        Must fit each other.
    features
        For each layer, in rising order.
    counting
        Which tokens count.
    batch
        Tokens of one forward pass, padding included.
    folded
        Whether denominators are wanted.

    Raises
    ------
    TracingError
        If the transcoder does not fit the model.
    """

    def __init__(
        self,
        model: Model,
        transcoder: Transcoder,
        features: Sequence[Indices],
        counting: Counting,
        *,
        batch: int,
        folded: bool,
    ) -> None:
        check_fit(model, transcoder)
        self._model, self._counting, self._batch = model, counting, batch
        self._starts = np.cumsum([0, *(len(chosen) for chosen in features)])
        self._encoder, self._places = _encoder(transcoder, features)
        self._reads = _Reads(model, transcoder.read_hook)
        self._folded = folded and transcoder.read_hook != "hook_resid_mid"

    def __call__(self, corpus: Corpus, tick: Callable[[int], None] | None = None) -> Encoded:
        """Encode all sequences of a corpus.

        Parameters
        ----------
        corpus
            Not more than memory holds the activations of.
        tick
            Called with the number of tokens of each pass that is done.

        Raises
        ------
        TracingError
            If a sequence is longer than the model reads, or an activation is not finite.
        """
        parts: list[list[Part]] = [[] for _ in range(len(self._starts) - 1)]
        inverse = []
        tokens = 0
        for found, denominators, n in self.passes(corpus):
            tokens += n
            for mine, part in zip(parts, found, strict=True):
                mine.append(part)
            if denominators is not None:
                inverse.append(denominators)
            if tick is not None:
                tick(n)
        widths = np.diff(self._starts)
        layers = [_joined(part, tokens, int(w)) for part, w in zip(parts, widths, strict=True)]
        return Encoded(layers, tokens, np.concatenate(inverse) if inverse else None)

    def passes(
        self, corpus: Corpus
    ) -> Iterator[tuple[list[Part], NDArray[np.float64] | None, int]]:
        """Run one forward pass after another.

        Yields
        ------
        Activations of each layer, denominators (N, L) or None, and the tokens counted.
        """
        everything = np.arange(len(corpus), dtype=np.int64)
        for one in padded(corpus, everything, self._batch, self._model.context):
            live = self._counting.live(one.token_ids.numpy(), one.places.numpy())
            if live.any():
                parts, found = zip(*self._pass(one, torch.from_numpy(live), corpus), strict=True)
                whole = [each for each in found if each is not None]
                inverse = np.stack(whole, axis=1) if whole else None
                yield list(parts), inverse, int(live.sum())

    def _pass(
        self, one: Padded, live: Tensor, corpus: Corpus
    ) -> Iterator[tuple[Part, NDArray[np.float64] | None]]:
        """Run one forward pass: activations of each layer, and 1 / denominator."""
        module, device = self._model.module, self._model.device
        with (
            torch.no_grad(),
            full_precision(module),
            self._reads.running(),
            contextlib.suppress(_AllRead),
        ):
            module(input_ids=one.token_ids.to(device), use_cache=False, logits_to_keep=1)
        for layer, (reads, inverse) in enumerate(self._reads.taken(live.to(device), self._folded)):
            # A sum is quicker than a look at each; it may overflow where nothing else does.
            if not (reads.sum().isfinite() or bool(torch.isfinite(reads).all())):
                raise _not_finite(layer, reads, one, live, corpus)
            if self._starts[layer] == self._starts[layer + 1]:
                nothing = np.empty(0, dtype=np.int64)
                part = Part(np.zeros(len(reads), np.int64), nothing, nothing.astype(np.float64))
            else:
                part = self._encoded(layer, reads)
            if not np.isfinite(part.values).all():
                raise _not_finite(layer, reads, one, live, corpus)
            yield part, None if inverse is None else inverse.double().cpu().numpy()

    def _encoded(self, layer: int, reads: Tensor) -> Part:
        with torch.no_grad():
            active = self._encoder.active(layer, reads)
        rows, columns = active.positions.cpu().numpy(), active.indices.cpu().numpy()
        values = active.activations.double().cpu().numpy()
        if self._places is not None:  # all features were encoded: keep the chosen ones
            columns = self._places[layer][columns]
            keep = columns >= 0
            rows, columns, values = rows[keep], columns[keep], values[keep]
        return Part(np.bincount(rows, minlength=len(reads)), columns, values)


class Part(NamedTuple):
    """One layer's activations in one pass: how many of each token, their columns and values."""

    counts: Indices
    columns: Indices
    values: NDArray[np.float64]


def _joined(parts: list[Part], tokens: int, width: int) -> csr_array:
    """Put passes below each other."""
    if not parts:
        return csr_array((tokens, width))
    counts, columns, values = (np.concatenate(each) for each in zip(*parts, strict=True))
    kind = np.int32 if max(len(columns), width) < 2**31 else np.int64
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(kind)
    made = csr_array((values, columns.astype(kind), indptr), shape=(tokens, width))
    made.has_canonical_format = True
    return made


def _encoder(
    transcoder: Transcoder, features: Sequence[Indices]
) -> tuple[Transcoder, list[Indices] | None]:
    """Make an encoder of the chosen features; or of all, with the place of each chosen one."""
    if all(len(mine) == transcoder.features(layer) for layer, mine in enumerate(features)):
        return transcoder, None
    chosen = transcoder.restricted(features)
    if chosen is not None:
        return chosen, None
    places = []
    for layer, mine in enumerate(features):
        place = np.full(transcoder.features(layer), -1, dtype=np.int64)
        place[mine] = np.arange(len(mine))
        places.append(place)
    return transcoder, places


_RESIDUAL: Final = "hook_resid_mid"


class _AllRead(Exception):  # noqa: N818 - no error: what comes after it need not be computed
    """The last layer's MLP norm has run: nothing above it is wanted."""


class _Reads:
    """Catches what each layer's MLP norm reads and gives."""

    def __init__(self, model: Model, hook: str) -> None:
        self._norms: list[Norm] = [layer.mlp_norm for layer in model.parts().layers]
        self._hook = hook
        self._streams: list[Tensor] = []
        self._outputs: list[Tensor] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Catch while the block runs; the hooks are gone after it, whatever happens."""
        self._streams, self._outputs = [], []
        handles = []
        try:
            for norm in self._norms:
                handles.append(norm.module.register_forward_hook(self._keep))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, _module: Any, args: tuple[Any, ...], output: Any) -> None:
        self._streams.append(args[0])
        if self._hook == "mlp.hook_in":
            self._outputs.append(output)
        if len(self._streams) == len(self._norms):
            raise _AllRead

    def taken(self, live: Tensor, folded: bool) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Give what each layer reads at live tokens, (n, d), and 1 / denominator, (n,)."""
        for layer, norm in enumerate(self._norms):
            stream = self._streams[layer][live]
            inverse = None
            if folded or self._hook == "ln2.hook_normalized":
                stream = stream.to(torch.promote_types(stream.dtype, torch.float32))
                if norm.centred:
                    stream = stream - stream.mean(-1, keepdim=True)
                inverse = (stream.square().mean(-1) + norm.eps).rsqrt()
            if self._hook == _RESIDUAL:
                yield stream, None
            elif self._hook == "mlp.hook_in":
                yield self._outputs[layer][live], inverse
            elif inverse is not None:
                yield stream * inverse.unsqueeze(-1), inverse if folded else None


def _not_finite(
    layer: int, reads: Tensor, one: Padded, live: Tensor, corpus: Corpus
) -> TracingError:
    """Say where an activation is not finite, as near as is known."""
    wrong = (~torch.isfinite(reads).all(dim=1)).nonzero().flatten()
    where = ""
    if len(wrong):
        sequence, position = (int(i) for i in live.nonzero()[int(wrong[0])])
        place = int(one.places[sequence, position])
        number = int(np.searchsorted(corpus.starts, place, side="right")) - 1
        where = f", sequence {number} at {corpus.name}, position {position}"
    return TracingError(
        f"layer {layer}: an activation is not finite{where}",
        "Load the model in a wider type (--dtype float32); no sum has taken it in",
    )
