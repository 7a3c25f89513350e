"""What features read and MLPs write, over a corpus: recorded, cached on disk, shuffled.

A corpus is cut once into blocks of whole sequences, in an order that the seed gives. Each pass over
it takes the blocks in a new order; as many as fit into the buffer are held together, and their
tokens are drawn from it. All of that follows from the seed, the pass and the place in it, so a run
that is resumed sees the same batches. Where a corpus fits into the buffer as a whole, its
activations are made once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from tracer.corpora import Corpus
from tracer.errors import FormatError, SettingError, TracingError
from tracer.models import Model
from tracer.models.families.parts import LayerParts
from tracer.transcoders.saving import write_tensors

__all__ = ["Activations", "Buffer", "MlpHooks", "Recorder", "Source", "make_source", "padded"]

_PASS: Final = 4096  # tokens of one forward pass, padding included
_CACHE_VERSION: Final = 1


class Activations(NamedTuple):
    """Activations of tokens.

    Attributes
    ----------
    reads, writes
        What the model has at the two hooks, float32, shape (n, L, d).
    places
        Places of these tokens in the corpus' `token_ids`, int64, shape (n,).
    """

    reads: Tensor
    writes: Tensor
    places: Tensor


class MlpHooks:
    """Reads what a transcoder's features read, and reads or replaces what it is to write.

    Parameters
    ----------
    model
        The model.
    read_hook, write_hook
        Canonical names.
    """

    def __init__(self, model: Model, read_hook: str, write_hook: str) -> None:
        self._layers: Sequence[LayerParts] = model.parts().layers
        self._read_hook, self._write_hook = read_hook, write_hook
        self.reads: list[Tensor] = []
        self.writes: list[Tensor] = []

    @contextmanager
    def running(self, replace: Any = None) -> Iterator[None]:
        """Record while the block runs; the hooks are gone after it, whatever happens.

        Parameters
        ----------
        replace
            ``replace(layer, read, written)`` gives what is written instead.
        """
        self.reads, self.writes = [], []
        handles = []
        try:
            for index, layer in enumerate(self._layers):
                handles.append(layer.mlp_norm.module.register_forward_hook(self._reader(layer)))
                writer = layer.mlp
                if self._write_hook == "hook_mlp_out" and layer.post_mlp_norm is not None:
                    writer = layer.post_mlp_norm.module
                handles.append(writer.register_forward_hook(self._writer(index, replace)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _reader(self, layer: LayerParts) -> Any:
        norm = layer.mlp_norm

        def read(_module: Any, args: tuple[Any, ...], output: Any) -> None:
            if self._read_hook == "mlp.hook_in":
                self.reads.append(output)
            elif self._read_hook == "hook_resid_mid":
                self.reads.append(args[0])
            else:
                x = args[0].float()
                x = x - x.mean(-1, keepdim=True) if norm.centred else x
                self.reads.append(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + norm.eps))

        return read

    def _writer(self, index: int, replace: Any) -> Any:
        def write(_module: Any, _args: tuple[Any, ...], output: Any) -> Any:
            tensor = output[0] if isinstance(output, tuple) else output
            if replace is None:
                self.writes.append(tensor)
                return None
            changed = replace(index, self.reads[index], tensor)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return write


class Recorder:
    """Runs sequences through the model and keeps what is read and written.

    Parameters
    ----------
    model
        The model.
    read_hook, write_hook
        Canonical names.
    zero_first
        Positions at the start of each sequence that are left out.
    """

    def __init__(self, model: Model, read_hook: str, write_hook: str, zero_first: int) -> None:
        self.model, self.zero_first = model, zero_first
        self._hooks = MlpHooks(model, read_hook, write_hook)

    def __call__(self, corpus: Corpus, sequences: NDArray[np.int64]) -> Activations:
        """Activations of some sequences of a corpus, float32 on the CPU.

        Raises
        ------
        TracingError
            If a sequence is longer than the model reads.
        """
        reads, writes, places = [], [], []
        for batch in padded(corpus, sequences, _PASS, self.model.context):
            with torch.no_grad(), self._hooks.running():
                self.model.module(
                    input_ids=batch.token_ids.to(self.model.device),
                    use_cache=False,
                    logits_to_keep=1,
                )
            live = batch.live(self.zero_first)
            on_device = live.to(self.model.device)
            reads.append(_stacked(self._hooks.reads, on_device))
            writes.append(_stacked(self._hooks.writes, on_device))
            places.append(batch.places[live])
        if not reads:
            raise TracingError("there is no sequence to record", "Give a larger corpus")
        return Activations(torch.cat(reads), torch.cat(writes), torch.cat(places))


class Padded(NamedTuple):
    """Sequences side by side, filled up at the end: causal models do not see the filling.

    Attributes
    ----------
    token_ids
        Shape (S, P).
    places
        Place of each token in the corpus, −1 for filling, shape (S, P).
    """

    token_ids: Tensor
    places: Tensor

    def live(self, zero_first: int) -> Tensor:
        """Which tokens are not filling and not among the first, shape (S, P)."""
        live = self.places >= 0
        live[:, :zero_first] = False
        return live


def padded(
    corpus: Corpus, sequences: NDArray[np.int64], tokens: int, context: int
) -> Iterator[Padded]:
    """Sequences in batches of about so many tokens, those of similar length together."""
    lengths = corpus.lengths[sequences]
    if len(lengths) and lengths.max() > context:
        raise TracingError(
            f"{corpus.name}: a sequence has {lengths.max():,} tokens, and the model reads at most "
            f"{context:,}",
            "Cut it into pieces",
        )
    order = sequences[np.argsort(-lengths, kind="stable")]
    start = 0
    while start < len(order):
        longest = int(corpus.lengths[order[start]])
        stop = start + max(1, tokens // max(longest, 1))
        chosen = order[start:stop]
        ids = np.zeros((len(chosen), max(longest, 1)), dtype=np.int64)
        places = np.full_like(ids, -1)
        for row, sequence in enumerate(chosen):
            first, last = corpus.starts[sequence], corpus.starts[sequence + 1]
            ids[row, : last - first] = corpus.token_ids[first:last]
            places[row, : last - first] = np.arange(first, last)
        yield Padded(torch.from_numpy(ids), torch.from_numpy(places))
        start = stop


def _stacked(layers: Sequence[Tensor], live: Tensor) -> Tensor:
    return torch.stack([layer[live].float().cpu() for layer in layers], dim=1)


# Blocks -------------------------------------------------------------------------------------------


class Source(Protocol):
    """Activations of a corpus in numbered blocks."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Tokens of each block."""

    def read(self, block: int) -> Activations:
        """Activations of a block; the same each time."""


@dataclass(frozen=True)
class _Recorded:
    """Blocks that are recorded whenever they are asked for."""

    recorder: Recorder
    corpus: Corpus
    blocks: list[NDArray[np.int64]]
    sizes: NDArray[np.int64]

    def read(self, block: int) -> Activations:
        return self.recorder(self.corpus, self.blocks[block])


@dataclass(frozen=True)
class _Cached:
    """Blocks that are kept as safetensors shards once they have been recorded."""

    inner: _Recorded
    folder: Path

    @property
    def sizes(self) -> NDArray[np.int64]:
        return self.inner.sizes

    def read(self, block: int) -> Activations:
        path = self.folder / f"block_{block:06}.safetensors"
        if not path.exists():
            made = self.inner.read(block)
            write_tensors(path, made._asdict())
            return made
        try:
            found = Activations(**load_file(path))
        except (OSError, SafetensorError, TypeError) as error:
            raise FormatError(
                f"{path}: cannot be read ({error})", "Remove it: it is made again"
            ) from error
        if len(found.places) != self.sizes[block]:
            raise FormatError(f"{path}: is of another corpus", "Remove it: it is made again")
        return found


def make_source(
    recorder: Recorder,
    corpus: Corpus,
    *,
    block_tokens: int,
    seed: int,
    cache: Path | None = None,
    identity: str = "",
) -> Source:
    """Cut a corpus into blocks, in an order that the seed gives.

    Parameters
    ----------
    recorder
        Makes activations.
    corpus
        The corpus.
    block_tokens
        Tokens of a block, at least.
    seed
        Of the order.
    cache
        Folder for shards, or None.
    identity
        Of model and hooks; a cache of another is refused.

    Raises
    ------
    SettingError
        If the cache holds activations of something else.
    """
    order = np.random.default_rng([seed, 0]).permutation(len(corpus))
    usable = np.maximum(corpus.lengths[order] - recorder.zero_first, 0)
    order, usable = order[usable > 0], usable[usable > 0]
    ends = np.cumsum(usable)
    total = int(ends[-1]) if len(ends) else 0
    number = max(1, total // block_tokens)
    bounds = np.searchsorted(ends, np.arange(1, number) * total / number)
    blocks = [part for part in np.split(order, bounds) if len(part)]
    sizes = np.array(
        [np.maximum(corpus.lengths[part] - recorder.zero_first, 0).sum() for part in blocks],
        dtype=np.int64,
    )
    recorded = _Recorded(recorder, corpus, blocks, sizes)
    if cache is None:
        return recorded
    cache.mkdir(parents=True, exist_ok=True)
    wanted = {
        "version": _CACHE_VERSION,
        "what": identity,
        "corpus": corpus.fingerprint(),
        "zero_first": recorder.zero_first,
        "blocks": hashlib.sha256(
            b"".join(np.ascontiguousarray(part).tobytes() + b"|" for part in blocks)
        ).hexdigest()[:16],
    }
    index = cache / "index.json"
    if index.exists():
        try:
            found = json.loads(index.read_text("utf-8"))
        except ValueError as error:
            raise FormatError(f"{index}: is not JSON", "Remove the folder") from error
        if found != wanted:
            raise SettingError(
                f"{cache}: holds activations of another model, corpus or seed",
                "Give another cache folder, or remove this one",
            )
    else:
        index.write_text(json.dumps(wanted, indent=1), "utf-8")
    return _Cached(recorded, cache)


# Batches ------------------------------------------------------------------------------------------


class Buffer:
    """Batches of tokens drawn from as many blocks as fit into memory.

    Parameters
    ----------
    source
        Blocks.
    batch
        Tokens of a batch.
    tokens
        Tokens that are held together, about.
    seed
        Of order and drawing.
    weights
        How often each token of the corpus is drawn, in proportion; None draws each once a pass.

    Attributes
    ----------
    position
        (pass, filling, batch): the batch that comes next. Setting it goes there.
    """

    def __init__(
        self,
        source: Source,
        *,
        batch: int,
        tokens: int,
        seed: int,
        weights: NDArray[np.float64] | None = None,
    ) -> None:
        self._source, self._batch, self._seed, self._weights = source, batch, seed, weights
        total = int(source.sizes.sum())
        self._fillings = min(max(1, -(-total // max(tokens, batch))), len(source.sizes))
        self.position: tuple[int, int, int] = (0, 0, 0)
        self._held: Activations | None = None
        self._held_key: tuple[int, ...] | None = None
        self._order: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self._order_key: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self

    def __next__(self) -> tuple[Tensor, Tensor]:
        """Return reads and writes of the next batch, shape (batch, L, d) each."""
        turn, filling, number = self.position
        self._fill(turn, filling)
        if self._held is None:
            raise ValueError("nothing is held")
        chosen = torch.from_numpy(self._order[number * self._batch : (number + 1) * self._batch])
        result = (self._held.reads[chosen], self._held.writes[chosen])
        number += 1
        if (number + 1) * self._batch > len(self._order):
            filling, number = filling + 1, 0
        if filling == self._fillings:
            turn, filling = turn + 1, 0
        self.position = (turn, filling, number)
        return result

    def sample(
        self, limit: int, position: tuple[int, int, int] = (0, 0, 0)
    ) -> tuple[Tensor, Tensor]:
        """Return tokens as they are drawn from the filling at a position, from its first on."""
        self._fill(*position[:2])
        if self._held is None:
            raise ValueError("nothing is held")
        chosen = torch.from_numpy(self._order[:limit])
        return self._held.reads[chosen], self._held.writes[chosen]

    def _fill(self, turn: int, filling: int) -> None:
        """Hold the blocks of a filling, and draw the order of its tokens."""
        if self._order_key == (turn, filling):
            return
        shuffled = np.random.default_rng([self._seed, 1, turn]).permutation(len(self._source.sizes))
        blocks = tuple(sorted(np.array_split(shuffled, self._fillings)[filling].tolist()))
        if self._held_key != blocks:
            self._held = None  # before the next ones are made
            parts = [self._source.read(block) for block in blocks]
            self._held = parts[0] if len(parts) == 1 else _joined(parts)
            self._held_key = blocks
        if self._held is None:
            raise ValueError("nothing is held")
        n = len(self._held.places)
        draw = np.random.default_rng([self._seed, 2, turn, filling])
        if self._weights is None:
            order = draw.permutation(n)
        else:
            weight = self._weights[self._held.places.numpy()]
            sums = np.cumsum(weight)
            if not sums[-1] > 0:
                raise TracingError(
                    "no token of a class that is drawn is in the buffer",
                    "Name other classes in mix, or give a larger buffer",
                )
            order = np.searchsorted(sums, draw.random(max(n, self._batch)) * sums[-1], "right")
            order = np.minimum(order, n - 1)
        if len(order) < self._batch:  # the last, small filling of a small corpus
            order = np.resize(order, self._batch)
        self._order, self._order_key = order.astype(np.int64), (turn, filling)


def _joined(parts: Sequence[Activations]) -> Activations:
    return Activations(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
