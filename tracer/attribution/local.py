"""The local replacement model: a transcoder in place of a frozen model's MLPs, for one prompt.

Everything that writes into the residual stream is laid out here as vectors: active features at each
layer they write to, reconstruction errors, token embeddings, and the constants that are no node
(biases, position embeddings, whatever the MLPs write at zeroed positions).

Source: Circuit Tracing (2025), "The local replacement model"; spec, section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracer.errors import TracingError
from tracer.models.frozen import FrozenModel, FrozenNorm
from tracer.transcoders import Transcoder

__all__ = ["CONSTANTS", "LocalModel", "Writers", "check_fit"]

# The parts of a row's constant, in this order; columns of the node table are named after them.
CONSTANTS: Final = ("positions", "parameters", "zeroed")

Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Writers:
    """What features write into the stream at one layer, in walking order.

    Attributes
    ----------
    vectors
        Activation × decoder row, shape (m, d).
    starts
        Row of `vectors` where each position begins, shape (P + 1,).
    columns
        Walking number of each position's first feature here, shape (P,): those of one position
        that write at one layer are consecutive.
    """

    vectors: Tensor
    starts: Indices
    columns: Indices

    def at(self, position: int) -> tuple[Tensor, int]:
        """Vectors written at a position, and the walking number of the first of them."""
        return self.vectors[self.starts[position] : self.starts[position + 1]], int(
            self.columns[position]
        )


class LocalModel:
    """A frozen model with a transcoder in place of its MLPs.

    Features are numbered in *walking order*: by position, then layer, then index. All those of one
    position up to (or at) one layer then stand together, which makes each product below one of
    slices. :attr:`canonical` brings them into the order of graphs: layer, position, index.

    Parameters
    ----------
    frozen
        The model frozen to the prompt; its dtype and device are those of the computation.
    transcoder
        What replaces the MLPs.
    zero_first
        Number of first positions without features and errors (spec, section 3).

    Attributes
    ----------
    layers, positions, indices
        Where each feature is, shape (n,), on the CPU.
    activations, preactivations
        Shape (n,).
    errors
        What the transcoder leaves of each MLP output, shape (L, P, d).
    parameter_writes
        What decoder biases (and the shifts that a live skip reads) write, shape (L, P, d).
    zeroed_writes
        The whole MLP output, less a live skip, at zeroed positions, shape (L, P, d).

    Raises
    ------
    TracingError
        If the transcoder does not fit the model, or no feature is active.
    """

    def __init__(self, frozen: FrozenModel, transcoder: Transcoder, zero_first: int = 1) -> None:
        check_fit(frozen, transcoder)
        self.frozen = frozen
        self.transcoder = transcoder
        self.zero_first = min(zero_first, frozen.n_positions)
        self.reads = [_reading(norm, transcoder.read_hook) for norm in frozen.mlp_norms]
        skips = [transcoder.skip(layer) for layer in range(frozen.n_layers)]
        self.skips = [None if skip is None else self._cast(skip) for skip in skips]
        self._find_features()
        self._find_writes()

    @property
    def n_features(self) -> int:
        """Number of active features."""
        return len(self.layers)

    def _find_features(self) -> None:
        found, frozen = [], self.frozen
        for layer, read in enumerate(self.reads):
            inputs = read(frozen.streams[layer])[self.zero_first :]
            active = self.transcoder.active(layer, inputs)
            place = np.empty((len(active.indices), 3), dtype=np.int64)
            place[:, 0] = active.positions.cpu().numpy() + self.zero_first
            place[:, 1] = layer
            place[:, 2] = active.indices.cpu().numpy()
            found.append((place, active.activations, active.preactivations))
        places = np.concatenate([place for place, _, _ in found])
        order = np.lexsort((places[:, 2], places[:, 1], places[:, 0]))
        take = torch.from_numpy(order)
        self.positions, self.layers, self.indices = places[order].T.copy()
        self.activations = self._cast(torch.cat([a for _, a, _ in found]))[take]
        self.preactivations = self._cast(torch.cat([h for _, _, h in found]))[take]
        if not len(order):
            raise TracingError(
                f"no feature of {self.transcoder.transcoder_id} is active on this prompt of "
                f"{frozen.n_positions} tokens, of which the first {self.zero_first} are zeroed",
                "Give a longer prompt, or lower zero_first; is the transcoder trained on this "
                "model?",
            )
        # canonical[i]: walking number of the i-th feature in the order of graphs.
        self.canonical: Indices = np.lexsort((self.indices, self.positions, self.layers))
        # before[p, l]: features at position p in layers below l.
        n_layers, n_positions = frozen.n_layers, frozen.n_positions
        counts = np.zeros((n_positions, n_layers), dtype=np.int64)
        np.add.at(counts, (self.positions, self.layers), 1)
        self.before: Indices = np.zeros((n_positions, n_layers + 1), dtype=np.int64)
        np.cumsum(counts, axis=1, out=self.before[:, 1:])
        self.starts: Indices = np.zeros(n_positions + 1, dtype=np.int64)
        np.cumsum(counts.sum(axis=1), out=self.starts[1:])

    def _find_writes(self) -> None:
        frozen, transcoder = self.frozen, self.transcoder
        empty = torch.zeros_like(frozen.mlp_outputs)
        self.errors, self.parameter_writes = empty, torch.zeros_like(empty)
        self.zeroed_writes = torch.zeros_like(empty)
        self.writers = self._writers()
        live = slice(self.zero_first, None)
        for layer in range(frozen.n_layers):
            post = self.post_norm(layer)
            output = frozen.mlp_outputs[layer]
            left = output - self.skip(layer, frozen.streams[layer])
            constant = torch.zeros_like(output)
            if post is not None and post.shift is not None:
                constant = constant + post.shift
            skip, shift = self.skips[layer], self.reads[layer].shift
            if skip is not None and shift is not None:
                constant = constant + self._written(layer, (skip @ shift).expand_as(output))
            self.parameter_writes[layer] = constant
            left = left - constant
            self.zeroed_writes[layer, : self.zero_first] = left[: self.zero_first]
            bias = self._cast(transcoder.decoder_bias(layer)).expand_as(output)
            bias = self._written(layer, bias)
            self.parameter_writes[layer, live] += bias[live]
            written = torch.zeros_like(output)
            writers = self.writers[layer]
            at = torch.from_numpy(np.repeat(np.arange(len(output)), np.diff(writers.starts)))
            written.index_add_(0, at.to(output.device), writers.vectors)
            self.errors[layer, live] = (left - bias - written)[live]

    def _writers(self) -> list[Writers]:
        """Read the decoder rows of the active features and lay them out by layer written."""
        frozen, transcoder = self.frozen, self.transcoder
        n_layers = frozen.n_layers
        cross = transcoder.kind == "clt"
        chosen = [
            np.flatnonzero(self.layers <= m if cross else self.layers == m) for m in range(n_layers)
        ]
        vectors = [frozen.embeddings.new_empty(len(c), frozen.width) for c in chosen]
        for layer in range(n_layers):
            mine = np.flatnonzero(self.layers == layer)
            rows = self._cast(transcoder.decoder_rows(layer, torch.from_numpy(self.indices[mine])))
            rows = rows * self.activations[torch.from_numpy(mine)][:, None, None]
            positions = torch.from_numpy(self.positions[mine])
            for k, m in enumerate(transcoder.targets(layer)):
                written = rows[:, k]
                post = self.post_norm(m)
                if post is not None:
                    written = post.linear(written, positions)
                vectors[m][torch.from_numpy(np.searchsorted(chosen[m], mine))] = written
        made = []
        for m in range(n_layers):
            count = np.bincount(self.positions[chosen[m]], minlength=frozen.n_positions)
            starts = np.concatenate([[0], np.cumsum(count)]).astype(np.int64)
            first = self.starts[:-1] + (0 if cross else self.before[:, m])
            made.append(Writers(vectors[m], starts, first))
        return made

    # Maps of the stream, and their transposes ----------------------------------------------------

    def post_norm(self, layer: int) -> FrozenNorm | None:
        """Norm between the place that the transcoder writes to and the stream, where there is."""
        norms = self.frozen.post_norms
        return (
            None if norms is None or self.transcoder.write_hook != "mlp.hook_out" else norms[layer]
        )

    def _written(self, layer: int, x: Tensor) -> Tensor:
        post = self.post_norm(layer)
        return x if post is None else post.linear(x)

    def skip(self, layer: int, stream: Tensor, first: int = 0) -> Tensor:
        """Linear part of what the skip writes for streams (…, K, d) from position `first` on."""
        skip = self.skips[layer]
        if skip is None:
            return torch.zeros_like(stream)
        at = slice(first, first + stream.shape[-2])
        written = self.reads[layer].linear(stream, at) @ skip.T
        post = self.post_norm(layer)
        return written if post is None else post.linear(written, at)

    def skip_transpose(self, layer: int, gradient: Tensor, first: int = 0) -> Tensor:
        """Carry `gradient` (…, K, d), which reads the stream after, down through the skip."""
        skip = self.skips[layer]
        if skip is None:
            return torch.zeros_like(gradient)
        at = slice(first, first + gradient.shape[-2])
        post = self.post_norm(layer)
        gradient = gradient if post is None else post.transpose(gradient, at)
        return self.reads[layer].transpose(gradient @ skip, at)

    # Targets -------------------------------------------------------------------------------------

    def encoder_vectors(self, features: Indices) -> Tensor:
        """Make what features (by walking number) read of the stream, shape (n, d)."""
        made = self.frozen.embeddings.new_empty(len(features), self.frozen.width)
        for layer, mine in self._by_layer(features):
            wanted = features[mine]
            rows = self._cast(
                self.transcoder.encoder_rows(layer, torch.from_numpy(self.indices[wanted]))
            )
            at = torch.from_numpy(self.positions[wanted])
            made[torch.from_numpy(mine)] = self.reads[layer].transpose(rows, at)
        return made

    def encoder_constants(self, features: Indices) -> Tensor:
        """Sum encoder biases and what features read of the norm's shift, shape (n,)."""
        made = self.frozen.embeddings.new_empty(len(features))
        for layer, mine in self._by_layer(features):
            wanted = torch.from_numpy(self.indices[features[mine]])
            constant = self._cast(self.transcoder.encoder_biases(layer, wanted))
            shift = self.reads[layer].shift
            if shift is not None:
                constant = (
                    constant + self._cast(self.transcoder.encoder_rows(layer, wanted)) @ shift
                )
            made[torch.from_numpy(mine)] = constant
        return made

    def _by_layer(self, features: Indices) -> list[tuple[int, Indices]]:
        layers = self.layers[features]
        return [(int(layer), np.flatnonzero(layers == layer)) for layer in np.unique(layers)]

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.frozen.embeddings)


class _Shaped(Protocol):
    """A model, frozen or not."""

    @property
    def n_layers(self) -> int: ...

    @property
    def width(self) -> int: ...


def check_fit(model: _Shaped, transcoder: Transcoder) -> None:
    """Refuse a transcoder that is not of this model.

    Raises
    ------
    TracingError
        Naming the number that differs, or the hook that is unknown.
    """
    for what, mine, theirs in (
        ("layers", model.n_layers, transcoder.n_layers),
        ("d_model", model.width, transcoder.d_model),
    ):
        if mine != theirs:
            raise TracingError(
                f"the transcoder {transcoder.transcoder_id} has {what} {theirs}, the model {mine}",
                "Use a transcoder that was trained on this model",
            )
    for what, hook, known in (
        ("reads", transcoder.read_hook, _READ_HOOKS),
        ("writes", transcoder.write_hook, _WRITE_HOOKS),
    ):
        if hook not in known:
            raise TracingError(
                f"the transcoder {transcoder.transcoder_id} {what} {hook!r}",
                f"Known are {', '.join(known)}; correct the hook's name in its configuration",
            )


_READ_HOOKS: Final[Sequence[str]] = ("hook_resid_mid", "ln2.hook_normalized", "mlp.hook_in")
_WRITE_HOOKS: Final[Sequence[str]] = ("hook_mlp_out", "mlp.hook_out")


def _reading(norm: FrozenNorm, hook: str) -> FrozenNorm:
    """Keep the part of the norm before an MLP that lies before a hook (formats: hook names)."""
    if hook == "hook_resid_mid":
        return FrozenNorm()
    if hook == "ln2.hook_normalized":
        return FrozenNorm(centred=norm.centred, inverse=norm.inverse)
    return norm
