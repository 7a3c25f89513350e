"""The edges of an attribution graph: every target's inputs, as products of matrices.

An edge is ``a_s · Σ_m (W_dec,s^m)ᵀ J▼ W_enc,t`` (spec, section 4). No gradient is taken: the frozen
model is a chain of linear maps, so vectors are carried through it.

*Down*: what a target reads is carried down the layers by the transposed maps; at every (layer,
position) on its way, its product with whatever writes there is an edge. *Up*: what a source writes
is carried up, and read by every target that it meets. Either alone is enough. Walking targets down
to a boundary layer and sources up to the same boundary, and multiplying where they meet, takes
about half the products through attention, which are nearly all the work; :func:`boundary` chooses
the layer by counting them.

Two more products are never done. Positions after a target's or before a source's are outside its
causal cone. And a vector that has not yet met an attention layer sits at one position only: on its
first one, its value and output products are done for that position alone, and spread over the
others by the pattern afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, vstack
from torch import Tensor

from tracer.attribution.local import CONSTANTS, Indices, LocalModel
from tracer.models.frozen import FrozenAttention

__all__ = ["Progress", "Rows", "Targets", "boundary", "residual_rows", "rows"]

Progress = Callable[[int, int], None]
Values = NDArray[np.float32] | NDArray[np.float64]

# Rows of a block of targets: wide enough for a full-speed product, few enough to stay in memory.
_BLOCK_BYTES: Final = 192 * 2**20


class Targets:
    """What edges lead to: vectors that read the stream of a layer at a position.

    Parameters
    ----------
    layers, positions
        Where each target reads, shape (t,); layer L is the stream before the final norm.
    vectors
        What each reads of the stream, shape (t, d).

    Attributes
    ----------
    order
        ``order[i]`` is the target that stands at place i when sorted by position, then layer.
    """

    def __init__(
        self, layers: Indices, positions: Indices, vectors: Tensor, n_layers: int, n_positions: int
    ) -> None:
        self.order: Indices = np.lexsort((layers, positions))
        self.layers, self.positions = layers[self.order], positions[self.order]
        self.vectors = vectors[torch.from_numpy(self.order)]
        counts = np.zeros((n_positions, n_layers + 1), dtype=np.int64)
        np.add.at(counts, (positions, layers), 1)
        self.counts: Indices = counts
        ends = np.cumsum(counts.ravel()).reshape(counts.shape)
        self.first: Indices = ends - counts  # place of the first target of each (position, layer)

    def __len__(self) -> int:
        return len(self.layers)

    def at(self, position: int, layer: int) -> slice:
        """Places of the targets that read at a (position, layer)."""
        first = int(self.first[position, layer])
        return slice(first, first + int(self.counts[position, layer]))


@dataclass(frozen=True)
class Rows:
    """Inputs of targets.

    Attributes
    ----------
    weights
        Shape (t, n + L·P + P): features in the order of graphs, errors layer-major, embeddings.
    constants
        Constant part of each row, shape (t, 3), columns as :data:`CONSTANTS`; the target's own
        constant (an encoder's bias) is not in it.
    """

    weights: csr_array
    constants: NDArray[np.float64]


def rows(
    local: LocalModel,
    targets: Targets,
    *,
    meet: int | None = None,
    memory: int = 2 * 2**30,
    progress: Progress | None = None,
) -> Rows:
    """Compute every edge into the targets.

    Parameters
    ----------
    local
        The local replacement model.
    targets
        What the edges lead to.
    meet
        Boundary layer at which targets and sources meet; 0 walks targets all the way down. None
        chooses the cheapest that fits in `memory`.
    memory
        Bytes that what is carried up may take.
    progress
        Called with (targets done, targets in all).

    Returns
    -------
    Rows
        In the order in which the targets were given.
    """
    meet = boundary(local, targets, memory) if meet is None else meet
    layout = _Layout(local, meet)
    fixed = _fixed_streams(local)
    early = local.zero_first
    weights: list[csr_array] = []
    places: list[Indices] = []
    done = 0

    def keep(block: Tensor, at: Indices) -> None:
        nonlocal done
        block[:, layout.n_features + layout.n_errors :][:, :early] = _read_fixed(
            fixed, targets, at, slice(len(CONSTANTS), None)
        )
        weights.append(csr_array(block.cpu().numpy()))
        places.append(at)
        done += len(at)
        if progress is not None:
            progress(done, len(targets))

    bottom, carried = _carry_up(local, targets, layout)
    for at, inner, crossing in _carry_down(local, targets, meet, carried, layout):
        keep(layout.joined(inner, crossing), at)
    del carried
    low = np.flatnonzero(targets.layers < meet)
    for start in range(0, len(low), step := max(1, _BLOCK_BYTES // (4 * layout.n_columns))):
        some = low[start : start + step]
        keep(layout.joined(None, bottom[start : start + step]), some)

    constants = np.empty((len(targets), len(CONSTANTS)))
    everything = np.arange(len(targets))
    constants[targets.order] = (
        _read_fixed(fixed, targets, everything, slice(len(CONSTANTS))).double().cpu().numpy()
    )
    place = targets.order[np.concatenate(places)] if places else np.empty(0, dtype=np.int64)
    stacked = csr_array(vstack(weights, format="csr"))
    return Rows(stacked[np.argsort(place)], constants)


def boundary(local: LocalModel, targets: Targets, memory: int = 2 * 2**30) -> int:
    """Boundary layer with the fewest multiply-adds among those that fit in `memory` bytes."""
    frozen, early = local.frozen, local.zero_first
    n_layers, n_positions, width = frozen.n_layers, frozen.n_positions, frozen.width
    item = frozen.embeddings.element_size()
    below = np.maximum(np.arange(n_positions) - early + 1, 0)  # positions that a target walks
    above = n_positions - np.arange(n_positions)  # positions that a source reaches
    layer = np.arange(n_layers + 1)
    sources = np.concatenate([[np.zeros(n_positions)], np.diff(local.before, axis=1).T + 1])
    best, chosen = np.inf, 0
    for meet in range(n_layers + 1):
        # Steps through attention; the first of them costs as much as one position.
        down = np.maximum(layer - meet + (not frozen.parallel), 0) * (layer >= meet)
        up = np.maximum(meet - 1 - layer, 0) * (layer < meet)
        low = sources[1 : meet + 1].sum(axis=0) + (meet > 0)
        cost = (
            2
            * width**2
            * (
                (targets.counts * (below[:, None] * np.maximum(down - 1, 0) + (down > 0))).sum()
                + (
                    sources[1:].T * (above[:, None] * np.maximum(up[:-1] - 1, 0) + (up[:-1] > 0))
                ).sum()
                + (n_positions * max(meet - 1, 0) * above.mean() if meet else 0)
            )
        )
        high = targets.counts[:, meet:].sum(axis=1)
        for position in np.flatnonzero(high):
            reach = position + 1 - np.arange(position + 1)
            cost += width * high[position] * float((low[: position + 1] * reach).sum())
        size = item * (
            width * float((low * above).sum()) + float(targets.counts[:, :meet].sum() * low.sum())
        )
        if cost < best and (size <= memory or meet == 0):
            best, chosen = cost, meet
    return chosen


# Where things stand -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """What is carried up together: everything that starts at one position, or a part of it."""

    position: int
    first: int  # walking number of the first feature
    layers: Indices  # layer of each of the features, ascending
    errors: Indices  # layers of the error nodes
    embedding: bool

    def __len__(self) -> int:
        return int(self.embedding) + len(self.errors) + len(self.layers)


class _Layout:
    """Which column is what: of a graph's rows, and of what is carried up to the boundary."""

    def __init__(self, local: LocalModel, meet: int) -> None:
        frozen = local.frozen
        self.local, self.meet = local, meet
        self.n_features = local.n_features
        self.n_errors = frozen.n_layers * frozen.n_positions
        self.n_columns = self.n_features + self.n_errors + frozen.n_positions
        self.sources: list[_Source] = []
        self.starts: list[int] = [0]
        columns = []
        rank = np.empty(self.n_features, dtype=np.int64)
        rank[local.canonical] = np.arange(self.n_features)
        self.rank = rank  # column of a feature by its walking number
        row_bytes = frozen.embeddings.element_size() * frozen.width
        for position in range(local.zero_first, frozen.n_positions) if meet else ():
            count = int(local.before[position, meet])
            step = max(16, _BLOCK_BYTES // (row_bytes * (frozen.n_positions - position)))
            for start in range(0, max(count, 1), step):
                first = int(local.starts[position]) + start
                layers = local.layers[first : first + min(step, count - start)]
                lead = start == 0
                errors = np.arange(meet if lead else 0)
                source = _Source(position, first, layers, errors, lead)
                self.sources.append(source)
                self.starts.append(self.starts[-1] + len(source))
                ends = self.n_features + self.n_errors
                columns += [
                    np.full(int(lead), ends + position),
                    self.n_features + errors * frozen.n_positions + position,
                    rank[first : first + len(layers)],
                ]
        self.crossing: Indices = (
            np.concatenate(columns) if columns else np.empty(0, dtype=np.int64)
        ).astype(np.int64)

    def joined(self, inner: Tensor | None, crossing: Tensor) -> Tensor:
        """Rows of a graph, from edges met on the way down (walking order) and at the boundary."""
        made = crossing.new_zeros(len(crossing), self.n_columns)
        if inner is not None:
            made[:, self._inner] = inner
        made[:, self._crossing] += crossing
        return made

    @cached_property
    def _inner(self) -> Tensor:
        rest = np.arange(self.n_features, self.n_columns)
        return self._on_device(np.concatenate([self.rank, rest]))

    @cached_property
    def _crossing(self) -> Tensor:
        return self._on_device(self.crossing)

    def _on_device(self, columns: Indices) -> Tensor:
        return torch.from_numpy(columns).to(self.local.frozen.embeddings.device)


# Constants, and embeddings of zeroed positions ----------------------------------------------------


def _fixed_streams(local: LocalModel) -> list[Tensor]:
    """Carry up what few vectors hold: constants by part, and embeddings of zeroed positions.

    Returns
    -------
    list of Tensor
        L + 1 of shape (3 + zeroed, P, d): what is read at each layer, and before the final norm.
    """
    frozen, early = local.frozen, local.zero_first
    parts = len(CONSTANTS)
    stream = frozen.embeddings.new_zeros(parts + early, frozen.n_positions, frozen.width)
    if frozen.position_embeddings is not None:
        stream[0] = frozen.position_embeddings
    for position in range(early):
        stream[parts + position, position] = frozen.embeddings[position]
    read = []
    for layer, attention in enumerate(frozen.attentions):
        before, stream = stream, stream + attention.linear(stream)
        stream[1] += attention.constant
        read.append((before if frozen.parallel else stream).clone())
        if local.skips[layer] is not None:
            stream = stream + local.skip(layer, read[-1])
        stream[1] += local.parameter_writes[layer]
        stream[2] += local.zeroed_writes[layer]
    return [*read, stream]


def _read_fixed(fixed: list[Tensor], targets: Targets, at: Indices, which: slice) -> Tensor:
    """Read the fixed streams with the targets at some places, shape (len(at), …)."""
    made = targets.vectors.new_empty(len(at), len(fixed[0][which]))
    for layer in np.unique(targets.layers[at]):
        mine = np.flatnonzero(targets.layers[at] == layer)
        stream = fixed[layer][which][:, torch.from_numpy(targets.positions[at[mine]])]
        vectors = targets.vectors[torch.from_numpy(at[mine])]
        made[torch.from_numpy(mine)] = torch.einsum("snd,nd->ns", stream, vectors)
    return made


# Up: sources below the boundary -------------------------------------------------------------------


def _carry_up(local: LocalModel, targets: Targets, layout: _Layout) -> tuple[Tensor, list[Tensor]]:
    """Carry every source below the boundary up to it.

    Returns
    -------
    Tensor
        Edges into the targets below the boundary, shape (targets, sources).
    list of Tensor
        What each source has become at the boundary, shape (sources, P − position, d).
    """
    frozen, meet = local.frozen, layout.meet
    low = np.flatnonzero(targets.layers < meet)
    place_of = np.full(len(targets), -1)
    place_of[low] = np.arange(len(low))
    bottom = frozen.embeddings.new_zeros(len(low), layout.starts[-1])
    carried = []
    for source, column in zip(layout.sources, layout.starts, strict=False):
        p, lead = source.position, int(source.embedding)
        x = frozen.embeddings.new_zeros(len(source), frozen.n_positions - p, frozen.width)
        if source.embedding:
            x[0, 0] = frozen.embeddings[p]
        rows_of = lead + len(source.errors)  # features follow the embedding and the errors
        spread = 0  # features that have met an attention layer already
        present = 0
        for layer in range(meet):
            attention = frozen.attentions[layer]
            head = slice(0, lead + (layer if lead else 0))  # embedding and errors so far
            body = slice(rows_of, rows_of + present)
            read = x
            if frozen.parallel:
                read = x if local.skips[layer] is None else x.clone()
                _read_up(x, bottom, targets, place_of, source, column, layer, head, body)
            _attend(attention, x, head, p, layer == 0)
            _attend(attention, x, slice(rows_of, rows_of + spread), p, False)
            _attend(attention, x, slice(rows_of + spread, rows_of + present), p, True)
            spread = present
            if not frozen.parallel:
                _read_up(x, bottom, targets, place_of, source, column, layer, head, body)
            if local.skips[layer] is not None:
                x += local.skip(layer, read, p)
            if lead:
                x[lead + layer, 0] += local.errors[layer, p]
            present = int(np.searchsorted(source.layers, layer, side="right"))
            vectors, number = local.writers[layer].at(p)
            begin = max(number, source.first)
            end = min(number + len(vectors), source.first + present)
            if end > begin:
                some = slice(rows_of + begin - source.first, rows_of + end - source.first)
                x[some, 0] += vectors[begin - number : end - number]
        carried.append(x)
    return bottom, carried


def _attend(attention: FrozenAttention, x: Tensor, some: slice, first: int, fresh: bool) -> None:
    """Add what an attention layer makes of the streams x[some], positions `first` on, in place.

    Fresh streams are zero but for their first position, so the value and output products are done
    there alone, one head at a time, and the pattern spreads the results.
    """
    y = x[some]
    n, length, width = y.shape
    if not n:
        return
    heads, _, head_width = attention.output.shape
    groups = attention.groups
    pattern = attention.pattern[:, first:, first:]
    if fresh:
        value = torch.einsum("gwd,nd->gnw", attention.value, y[:, 0])
        value = value.repeat_interleave(groups, dim=0)
        written = torch.matmul(value, attention.output.transpose(1, 2))  # (H, n, d)
        y += torch.matmul(pattern[:, :, 0].T, written.transpose(0, 1))
        return
    value = y.reshape(n * length, width) @ attention.value.reshape(-1, width).T
    value = value.view(n, length, heads // groups, head_width)
    if groups > 1:
        value = value.repeat_interleave(groups, dim=2)
    mixed = torch.einsum("hqk,nkhw->nqhw", pattern, value)
    flat = attention.output.permute(1, 0, 2).reshape(width, heads * head_width)
    y.view(n * length, width).addmm_(mixed.reshape(n * length, -1), flat.T)


def _read_up(
    x: Tensor,
    bottom: Tensor,
    targets: Targets,
    place_of: Indices,
    source: _Source,
    column: int,
    layer: int,
    head: slice,
    body: slice,
) -> None:
    """Edges from streams on their way up into the targets that read at a layer."""
    for position in range(source.position, targets.counts.shape[0]):
        at = targets.at(position, layer)
        if at.start == at.stop:
            continue
        vectors = targets.vectors[at]
        lines = slice(int(place_of[at.start]), int(place_of[at.start]) + len(vectors))
        for some in (head, body):
            if some.stop > some.start:
                bottom[lines, column + some.start : column + some.stop] = (
                    vectors @ x[some, position - source.position].T
                )


# Down: targets above the boundary -----------------------------------------------------------------


def _carry_down(
    local: LocalModel, targets: Targets, meet: int, carried: list[Tensor], layout: _Layout
) -> Iterator[tuple[Indices, Tensor, Tensor]]:
    """Carry targets down to the boundary, a block of one position at a time.

    Yields
    ------
    places of the targets, shape (t,); edges met on the way down, shape (t, n + L·P + P), features
    in walking order; edges at the boundary, shape (t, sources)
    """
    frozen, early = local.frozen, local.zero_first
    row_bytes = frozen.embeddings.element_size() * frozen.width
    for position in range(frozen.n_positions):
        stop = int(targets.first[position, -1] + targets.counts[position, -1])
        places = np.arange(int(targets.first[position, meet]), stop)[::-1]  # from the top layer
        length = max(position - early + 1, 1)
        size = layout.n_columns * frozen.embeddings.element_size() + 4 * row_bytes * length
        step = max(16, _BLOCK_BYTES // size)
        for start in range(0, len(places), step):
            at = places[start : start + step].copy()
            yield (at, *_walk_down(local, targets, at, meet, carried, layout))


def _walk_down(
    local: LocalModel,
    targets: Targets,
    at: Indices,
    meet: int,
    carried: list[Tensor],
    layout: _Layout,
) -> tuple[Tensor, Tensor]:
    frozen = local.frozen
    position = int(targets.positions[at[0]])
    first = min(local.zero_first, position)  # nothing but embeddings stands before it
    layers, vectors = targets.layers[at], targets.vectors[torch.from_numpy(at)]
    n, length, width = len(at), position - first + 1, frozen.width
    g = vectors.new_zeros(n, length, width)
    edges = vectors.new_zeros(n, layout.n_columns)
    present = int((layers == frozen.n_layers).sum())
    g[:present, -1] = vectors[:present]
    spread = 0
    for layer in range(frozen.n_layers - 1, meet - 1, -1):
        attention = frozen.attentions[layer]
        if present:
            _read_down(local, g[:present], edges[:present], layer, first, layout)
        through_skip = None
        if local.skips[layer] is not None:
            through_skip = local.skip_transpose(layer, g[:present], first)
        met = present
        if not frozen.parallel:
            if through_skip is not None:
                g[:present] += through_skip
            met = int((layers >= layer).sum())
            g[present:met, -1] = vectors[present:met]
        _attend_transpose(attention, g, slice(0, spread), first, False)
        _attend_transpose(attention, g, slice(spread, met), first, True)
        spread = met
        if frozen.parallel:
            if through_skip is not None:
                g[:present] += through_skip
            met = int((layers >= layer).sum())
            g[present:met, -1] = vectors[present:met]
        present = met
    crossing = vectors.new_zeros(n, len(layout.crossing))
    if not meet:
        embeddings = slice(layout.n_columns - frozen.n_positions + first, None)
        edges[:, embeddings][:, :length] = torch.einsum(
            "tkd,kd->tk", g, frozen.embeddings[first : position + 1]
        )
    flat = g.view(n, length * width)
    for source, column, x in zip(layout.sources, layout.starts, carried, strict=False):
        p = source.position
        if p > position:
            break
        shared = (position - p + 1) * width
        crossing[:, column : column + len(source)] = (
            flat[:, (p - first) * width :] @ x.view(len(source), -1)[:, :shared].T
        )
    return edges, crossing


def _read_down(
    local: LocalModel, g: Tensor, edges: Tensor, layer: int, first: int, layout: _Layout
) -> None:
    """Edges from whatever writes at a layer, into targets on their way down."""
    writers = local.writers[layer]
    n_positions = local.frozen.n_positions
    for k in range(g.shape[1]):
        vectors, number = writers.at(first + k)
        if len(vectors):
            edges[:, number : number + len(vectors)].addmm_(g[:, k], vectors.T)
    start = layout.n_features + layer * n_positions + first
    edges[:, start : start + g.shape[1]] = torch.einsum(
        "tkd,kd->tk", g, local.errors[layer, first : first + g.shape[1]]
    )


def _attend_transpose(
    attention: FrozenAttention, g: Tensor, some: slice, first: int, fresh: bool
) -> None:
    """Add what gradients g[some] read through an attention layer, in place; see `_attend`.

    Fresh gradients are zero but for their last position.
    """
    y = g[some]
    n, length, width = y.shape
    if not n:
        return
    heads, _, head_width = attention.output.shape
    groups = attention.groups
    pattern = attention.pattern[:, first : first + length, first : first + length]
    if fresh:
        read = torch.einsum("hdw,nd->hnw", attention.output, y[:, -1])
        value = attention.value.repeat_interleave(groups, dim=0) if groups > 1 else attention.value
        through = torch.matmul(read, value)  # (H, n, d)
        y += torch.matmul(pattern[:, -1].T, through.transpose(0, 1))
        return
    flat = attention.output.permute(1, 0, 2).reshape(width, heads * head_width)
    read = (y.reshape(n * length, width) @ flat).view(n, length, heads, head_width)
    mixed = torch.einsum("hqk,nqhw->nkhw", pattern, read)
    if groups > 1:
        mixed = mixed.reshape(n, length, heads // groups, groups, head_width).sum(3)
    y.view(n * length, width).addmm_(
        mixed.reshape(n * length, -1), attention.value.reshape(-1, width)
    )


# Residual-direct part -----------------------------------------------------------------------------


def residual_rows(local: LocalModel, targets: Targets) -> csr_array:
    """Compute the part of each edge whose paths take no attention step (:attr:`Rows.weights`).

    Such paths stay at one position: the residual stream itself, and a live skip.
    """
    frozen = local.frozen
    layout = _Layout(local, 0)
    blocks, places = [], []
    for position in range(frozen.n_positions):
        stop = int(targets.first[position, -1] + targets.counts[position, -1])
        at = np.arange(int(targets.first[position, 0]), stop)[::-1].copy()
        if not len(at):
            continue
        layers, vectors = targets.layers[at], targets.vectors[torch.from_numpy(at)]
        r = torch.zeros_like(vectors)
        edges = vectors.new_zeros(len(at), layout.n_columns)
        present = 0
        for layer in range(frozen.n_layers, -1, -1):
            if layer < frozen.n_layers:
                write, number = local.writers[layer].at(position)
                some = slice(0, present)
                if len(write):
                    edges[some, number : number + len(write)] += r[some] @ write.T
                column = layout.n_features + layer * frozen.n_positions + position
                edges[some, column] = r[some] @ local.errors[layer, position]
                r[some] += local.skip_transpose(layer, r[some, None], position)[:, 0]
            now = int((layers >= layer).sum())
            r[present:now] = vectors[present:now]
            present = now
        edges[:, layout.n_columns - frozen.n_positions + position] = r @ frozen.embeddings[position]
        blocks.append(csr_array(layout.joined(edges, edges[:, :0]).cpu().numpy()))
        places.append(at)
    return csr_array(vstack(blocks, format="csr"))[
        np.argsort(targets.order[np.concatenate(places)])
    ]
