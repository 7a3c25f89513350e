"""A transcoder whose weights are read when they are needed.

``a^l = act(W_enc^l x^l + b_enc^l)``,
``ŷ^m = b_dec^m + Σ_{l ≤ m} W_dec^{l→m}ᵀ a^l (+ W_skip^m x^m)``:
a cross-layer transcoder (CLT) writes to its own and all later layers, a per-layer one (PLT) to its
own alone. Encoders are streamed in blocks of features, decoders are read for the active features
only, so that memory follows what a prompt uses and not what the checkpoint holds.

Source: Circuit Tracing (2025), "Building an interpretable replacement model"; spec, section 2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import replace
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracer.errors import FormatError, SettingError, TracingError
from tracer.transcoders.checkpoint import Activation, Checkpoint, Kind, LayerWeights, Vector
from tracer.transcoders.views import Chosen, FeatureRows, Held

__all__ = ["ActiveFeatures", "Transcoder"]

# What one step of streaming may hold, in bytes: large enough that a step is one long read and one
# matrix product, small beside the memory of any machine that runs the model.
_BLOCK: Final = 256 << 20


class ActiveFeatures(NamedTuple):
    """Features that are active, sorted by position, then index.

    Attributes
    ----------
    positions, indices
        int64, shape (n,).
    activations, preactivations
        Shape (n,).
    """

    positions: Tensor
    indices: Tensor
    activations: Tensor
    preactivations: Tensor


class Transcoder:
    """Encoders and decoders of every layer of a model; see the module's text for the formula.

    Made by :func:`~tracer.transcoders.load_transcoder`. All numbers are as the layout defines them,
    with the normalisation it was trained in folded in: inputs are what the model has at
    `read_hook`, outputs what it has at `write_hook`.

    Parameters
    ----------
    checkpoint
        Where the weights are.
    transcoder_id, fingerprint, source, revision
        What it is called, and where it is from.
    dtype, device
        Of everything that is returned.
    lazy
        Whether encoders and decoders stay on disk.

    Attributes
    ----------
    kind
        ``clt`` or ``plt``.
    n_layers, n_features, d_model
        Layers; features of a layer (of the largest one); width of what is read and written.
    read_hook
        ``hook_resid_mid``, ``ln2.hook_normalized`` or ``mlp.hook_in``.
    write_hook
        ``hook_mlp_out`` (what is added to the residual stream) or ``mlp.hook_out`` (before a norm
        that follows the MLP; the same where there is none).
    has_skip
        Whether ``W_skip x`` is added.
    has_target_offsets
        Whether active features write something to later layers that is not their activation times
        their decoder (EleutherAI's post-encoder biases, where they differ between targets). It is
        no edge: in a graph it belongs to the errors, and :meth:`reconstruct` leaves it out unless
        told otherwise.
    transcoder_id, fingerprint
        Hub name and revision, or folder name and fingerprint; digest of the tensors and of what
        the configuration makes of them: hooks, activation, normalisation.
    activation
        :class:`~tracer.transcoders.checkpoint.Activation`.
    info
        All of this for people and files, JSON-able.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        transcoder_id: str,
        fingerprint: str = "",
        source: str = "",
        revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        lazy: bool = True,
    ) -> None:
        if not dtype.is_floating_point:
            raise SettingError(f"dtype is {dtype}", "Give a floating-point type")
        self.dtype = dtype
        self.device = torch.device(device)
        self.lazy = lazy
        self.kind: Kind = checkpoint.kind
        self.n_layers = len(checkpoint.layers)
        self.n_features = max(layer.encoder.shape[0] for layer in checkpoint.layers)
        self.d_model = int(checkpoint.layers[0].encoder.shape[1])
        self.read_hook = checkpoint.read_hook
        self.write_hook = checkpoint.write_hook
        self.activation: Activation = checkpoint.activation
        self.has_skip = any(layer.skip is not None for layer in checkpoint.layers)
        self.has_target_offsets = any(layer.target_offsets for layer in checkpoint.layers)
        self.transcoder_id = transcoder_id
        self.fingerprint = fingerprint
        self.info: dict[str, Any] = {
            "transcoder_id": transcoder_id,
            "fingerprint": fingerprint,
            "layout": checkpoint.layout,
            "source": source,
            "revision": revision,
            "kind": self.kind,
            "n_layers": self.n_layers,
            "n_features": self.n_features,
            "d_model": self.d_model,
            "read_hook": self.read_hook,
            "write_hook": self.write_hook,
            "has_skip": self.has_skip,
            "activation": self.activation.kind,
            "k": [layer.k or self.activation.k for layer in checkpoint.layers]
            if self.activation.kind in ("topk", "groupmax")
            else None,
            "model_name": checkpoint.model_name,
            "dtype": str(dtype).removeprefix("torch."),
            **checkpoint.extra,
        }
        _check_shapes(checkpoint)
        self._layers: list[LayerWeights] = list(checkpoint.layers)
        self._small: dict[tuple[str, int], Tensor | None] = {}
        if not lazy:
            self._layers = [self._held(layer) for layer in self._layers]

    def __repr__(self) -> str:
        return (
            f"Transcoder({self.transcoder_id!r}, {self.kind}, {self.n_layers} layers × "
            f"{self.n_features} features, {self.read_hook} → {self.write_hook})"
        )

    def targets(self, layer: int) -> range:
        """Layers that features of `layer` write to."""
        self._check_layer(layer)
        return range(layer, self.n_layers if self.kind == "clt" else layer + 1)

    def features(self, layer: int) -> int:
        """Return the number of features of one layer."""
        return int(self._layer(layer).encoder.shape[0])

    def preactivations(self, layer: int, x: Tensor) -> Tensor:
        """``h = W_enc x + b_enc`` (with a feature's offset, where the layout has one).

        Parameters
        ----------
        layer
            From 0.
        x
            What the model has at `read_hook`, shape (N, d).

        Returns
        -------
        Tensor, shape (N, F)

        Raises
        ------
        FormatError
            If a weight is NaN or infinite, or its file ends early.
        """
        result = torch.empty(
            (x.shape[0], self.features(layer)), dtype=self.dtype, device=self.device
        )
        for start, block in self._blocks(layer, x):
            result[:, start : start + block.shape[1]] = block
        offset = self._vector("feature_offset", layer)
        return result if offset is None else result + offset

    def encode(self, layer: int, x: Tensor) -> Tensor:
        """Activations of all features, (N, d) → (N, F)."""
        result = torch.zeros(
            (x.shape[0], self.features(layer)), dtype=self.dtype, device=self.device
        )
        active = self.active(layer, x)
        result[active.positions, active.indices] = active.activations
        return result

    def active(self, layer: int, x: Tensor) -> ActiveFeatures:
        """Features with an activation that is not zero.

        Parameters
        ----------
        layer
            From 0.
        x
            What the model has at `read_hook`, shape (N, d). No array larger than a block of
            features is held at any time.

        Raises
        ------
        FormatError
            If a weight is NaN or infinite, or its file ends early.
        """
        if self.activation.kind == "topk":
            return self._largest(layer, x)
        if self.activation.kind == "groupmax":
            return self._largest_of_groups(layer, x)
        threshold = self._threshold(layer)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for start, h in self._blocks(layer, x):
            limit: Tensor | float = 0.0
            if threshold is not None:
                limit = threshold if threshold.ndim == 0 else threshold[start : start + h.shape[1]]
            live = (h > limit) & ((h > 0) if self.activation.rectified else (h != 0))
            positions, indices = live.nonzero(as_tuple=True)
            found.append((positions, indices + start, h[positions, indices]))
        return self._sorted(layer, *(torch.cat(part) for part in zip(*found, strict=True)))

    def restricted(self, features: Sequence[NDArray[np.int64]]) -> Transcoder | None:
        """Make a transcoder of some features of each layer, their encoders held in memory.

        Parameters
        ----------
        features
            For each layer, in rising order. They are numbered anew: the i-th of them is i.

        Returns
        -------
        Transcoder or None
            None where whether a feature is active depends on the others (``topk``, ``groupmax``).

        Raises
        ------
        FormatError
            As :meth:`active`.
        """
        if self.activation.kind in ("topk", "groupmax"):
            return None
        made = copy(self)
        made._small = {}
        made._layers = []
        for layer, chosen in enumerate(features):
            weights, at = self._layer(layer), torch.from_numpy(chosen)
            rows = Held(self._take(weights.encoder, at).contiguous())
            made._layers.append(
                replace(
                    weights,
                    encoder=rows,
                    decoder=Chosen(weights.decoder, chosen),
                    encoder_bias=_chosen(weights.encoder_bias, at),
                    threshold=_chosen(weights.threshold, at),
                    feature_offset=_chosen(weights.feature_offset, at),
                    target_offsets=None,
                )
            )
        made.has_target_offsets = False
        made.n_features = max(len(chosen) for chosen in features)
        return made

    def encoder_rows(self, layer: int, indices: Tensor) -> Tensor:
        """Return encoder vectors of features, (n,) → (n, d)."""
        weights = self._layer(layer)
        rows = self._take(weights.encoder, indices)
        scale = self._folded("input_scale", layer)
        return rows if scale is None else rows * scale

    def encoder_biases(self, layer: int, indices: Tensor) -> Tensor:
        """``h`` of features where the model has 0 at `read_hook`, (n,) → (n,)."""
        weights, indices = self._layer(layer), indices.to(self.device)
        bias = self._vector("encoder_bias", layer)
        biases = (
            torch.zeros(len(indices), dtype=self.dtype, device=self.device)
            if bias is None
            else bias[indices]
        )
        offset = self._vector("feature_offset", layer)
        if offset is not None:
            biases = biases + offset[indices]
        shift = self._folded("input_shift", layer)
        if shift is None:
            return biases
        scale = self._folded("input_scale", layer)
        moved = shift if scale is None else shift * scale
        rows = self._take(weights.encoder, indices)
        return biases - rows @ moved.expand(self.d_model)

    def decoder_rows(self, layer: int, indices: Tensor) -> Tensor:
        """Return decoder vectors of features, (n,) → (n, K, d), one for each of ``targets(layer)``.

        Indices may repeat and come in any order; each row is read once.
        """
        rows = self._take(self._layer(layer).decoder, indices)
        if rows.ndim == 2:
            rows = rows.unsqueeze(1)
        for target, place in zip(self.targets(layer), range(rows.shape[1]), strict=True):
            scale = self._folded("output_scale", target)
            if scale is not None:
                rows[:, place] *= scale
        return rows

    def decoder_bias(self, layer: int) -> Tensor:
        """All that is added to ``ŷ`` of a layer whatever the input is, shape (d,)."""
        self._check_layer(layer)
        key = ("decoder_bias_total", layer)
        total = self._small.get(key)
        if total is None:
            total = self._vector("decoder_bias", layer)
            if total is None:
                total = torch.zeros(self.d_model, dtype=self.dtype, device=self.device)
            scale, shift = self._folded("output_scale", layer), self._folded("output_shift", layer)
            if scale is not None:
                total = total * scale
            if shift is not None:
                total = total + shift
            self._small[key] = total
        return total

    def skip(self, layer: int) -> Tensor | None:
        """``W_skip``, shape (d, d), of ``ŷ += W_skip @ x``; None where there is none."""
        self._check_layer(layer)
        return self._vector("skip", layer)

    def reconstruct(
        self,
        layer_inputs: Tensor,
        active: Sequence[ActiveFeatures] | None = None,
        *,
        offsets: bool = False,
    ) -> Tensor:
        """``ŷ`` of every layer.

        Parameters
        ----------
        layer_inputs
            What the model has at `read_hook` of each layer, shape (L, N, d).
        active
            Active features of each layer, where they are known already (or were changed).
        offsets
            Whether to add what :attr:`has_target_offsets` speaks of.

        Returns
        -------
        Tensor, shape (L, N, d)
        """
        if layer_inputs.shape[0] != self.n_layers or layer_inputs.shape[-1] != self.d_model:
            raise TracingError(
                f"inputs of shape {list(layer_inputs.shape)} do not fit a transcoder of "
                f"{self.n_layers} layers and width {self.d_model}",
                "Use the model that the transcoder was trained for",
            )
        inputs = layer_inputs.to(self.device, self.dtype)
        result = torch.empty_like(inputs)
        for layer in range(self.n_layers):
            result[layer] = self.decoder_bias(layer)
            skip = self.skip(layer)
            if skip is not None:
                result[layer] += inputs[layer] @ skip.T
        for layer in range(self.n_layers):
            found = self.active(layer, inputs[layer]) if active is None else active[layer]
            self._decode(layer, found, result, offsets=offsets)
        return result

    def _decode(self, layer: int, found: ActiveFeatures, result: Tensor, *, offsets: bool) -> None:
        """Add what active features of `layer` write to `result`, (L, N, d), some rows at a time."""
        extra = self._layer(layer).target_offsets if offsets else None
        if extra is not None:
            for target, vector in zip(self.targets(layer), extra, strict=True):
                more = vector().to(self.device, self.dtype)[found.indices]
                rows = self.decoder_rows(layer, found.indices)[:, target - layer]
                result[target].index_add_(0, found.positions, rows * more.unsqueeze(1))
        targets = self.targets(layer)
        unique, which = torch.unique(found.indices, return_inverse=True)
        bytes_each = len(targets) * self.d_model * self.dtype.itemsize
        step = max(1, _BLOCK // bytes_each)
        for start in range(0, len(unique), step):
            rows = self.decoder_rows(layer, unique[start : start + step])
            here = (which >= start) & (which < start + step)
            weights = torch.zeros(
                (result.shape[1], rows.shape[0]), dtype=self.dtype, device=self.device
            )
            weights[found.positions[here], which[here] - start] = found.activations[here].to(
                self.dtype
            )
            written = weights @ rows.reshape(rows.shape[0], -1)
            result[targets.start : targets.stop] += written.reshape(
                result.shape[1], len(targets), self.d_model
            ).transpose(0, 1)

    def _blocks(self, layer: int, x: Tensor, multiple: int = 1) -> Iterator[tuple[int, Tensor]]:
        """Pre-activations of a layer, (N, ≤ block) at a time, with the first feature of each.

        Without a feature's offset, which comes after the choice. Blocks end at a `multiple`.
        """
        weights = self._layer(layer)
        if x.ndim != 2 or x.shape[1] != self.d_model:
            raise TracingError(
                f"inputs of shape {list(x.shape)} do not fit a transcoder of width {self.d_model}",
                "Use the model that the transcoder was trained for",
            )
        x = x.to(self.device, self.dtype)
        shift, scale = self._folded("input_shift", layer), self._folded("input_scale", layer)
        if shift is not None:
            x = x - shift
        if scale is not None:
            x = x * scale
        bias = self._vector("encoder_bias", layer)
        count = weights.encoder.shape[0]
        step = max(1, _BLOCK // (max(self.d_model, x.shape[0]) * self.dtype.itemsize))
        step = max(1, step // multiple) * multiple
        for start in range(0, count, step):
            stop = min(count, start + step)
            rows = weights.encoder.block(start, stop).to(self.device, self.dtype)
            h = x @ rows.T if bias is None else torch.addmm(bias[start:stop], x, rows.T)
            del rows  # before the next ones are read
            yield start, h

    def _largest(self, layer: int, x: Tensor) -> ActiveFeatures:
        """TopK: the k features of each position with the largest pre-activations."""
        k = self._layer(layer).k or self.activation.k
        values = torch.empty((x.shape[0], 0), dtype=self.dtype, device=self.device)
        indices = torch.empty((x.shape[0], 0), dtype=torch.int64, device=self.device)
        for start, h in self._blocks(layer, x):
            best = h.topk(min(k, h.shape[1]), dim=1)
            values = torch.cat([values, best.values], dim=1)
            indices = torch.cat([indices, best.indices + start], dim=1)
            if values.shape[1] > k:
                best = values.topk(k, dim=1)
                values, indices = best.values, indices.gather(1, best.indices)
        live = values > 0 if self.activation.rectified else values != 0
        positions = torch.arange(x.shape[0], device=self.device).unsqueeze(1).expand_as(live)
        return self._sorted(layer, positions[live], indices[live], values[live])

    def _largest_of_groups(self, layer: int, x: Tensor) -> ActiveFeatures:
        """GroupMax: the feature with the largest pre-activation in each of k equal groups."""
        size = self.features(layer) // (self._layer(layer).k or self.activation.k)
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        for start, h in self._blocks(layer, x, multiple=size):
            best = h.reshape(h.shape[0], h.shape[1] // size, size).max(dim=2)
            first = torch.arange(start, start + h.shape[1], size, device=self.device)
            positions, groups = (best.values > 0).nonzero(as_tuple=True)
            indices = (first + best.indices)[positions, groups]
            found.append((positions, indices, best.values[positions, groups]))
        return self._sorted(layer, *(torch.cat(part) for part in zip(*found, strict=True)))

    def _sorted(
        self, layer: int, positions: Tensor, indices: Tensor, values: Tensor
    ) -> ActiveFeatures:
        order = torch.argsort(positions * self.features(layer) + indices)
        positions, indices, values = positions[order], indices[order], values[order]
        offset = self._vector("feature_offset", layer)
        if offset is not None:
            values = values + offset[indices]
        # In all these functions an active feature's activation is its pre-activation.
        return ActiveFeatures(positions, indices, values, values.clone())

    def _take(self, view: FeatureRows, indices: Tensor) -> Tensor:
        """Rows of a view in the order of `indices`, each read once, in the transcoder's type."""
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < view.shape[0]:
            raise SettingError(
                f"feature {int(indices.max() if indices.min() >= 0 else indices.min())} does not "
                f"exist",
                f"Features go from 0 to {view.shape[0] - 1}",
            )
        unique, which = np.unique(indices.cpu().numpy(), return_inverse=True)
        rows = view.take(unique.astype(np.int64, copy=False)).to(self.device, self.dtype)
        if len(unique) == len(which) and np.array_equal(which, np.arange(len(which))):
            return rows
        return rows[torch.from_numpy(which).to(self.device)]

    def _threshold(self, layer: int) -> Tensor | None:
        if self.activation.kind == "relu":
            return None
        return self._vector("threshold", layer)

    def _vector(self, what: str, layer: int) -> Tensor | None:
        """Read a small tensor of a layer, once."""
        key = (what, layer)
        if key not in self._small:
            read = getattr(self._layer(layer), what)
            self._small[key] = None if read is None else read().to(self.device, self.dtype)
        return self._small[key]

    def _folded(self, what: str, layer: int) -> Tensor | None:
        """Return a scale or shift of a layer."""
        key = (what, layer)
        if key not in self._small:
            value: Tensor | None = getattr(self._layer(layer), what)
            self._small[key] = None if value is None else value.to(self.device, self.dtype)
        return self._small[key]

    def _layer(self, layer: int) -> LayerWeights:
        self._check_layer(layer)
        return self._layers[layer]

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.n_layers:
            raise SettingError(
                f"layer {layer} does not exist", f"Layers go from 0 to {self.n_layers - 1}"
            )

    def _held(self, layer: LayerWeights) -> LayerWeights:
        """Put a layer's matrices into memory, in the wanted type."""

        def hold(view: FeatureRows) -> Held:
            return Held(view.block(0, view.shape[0]).to(self.device, self.dtype).contiguous())

        return replace(layer, encoder=hold(layer.encoder), decoder=hold(layer.decoder))


def _chosen(vector: Vector | None, at: Tensor) -> Vector | None:
    """Pick entries of a vector; a single number stays what it is."""
    if vector is None:
        return None
    whole = vector()
    picked = whole if whole.ndim == 0 else whole[at.to(whole.device)]
    return lambda: picked


def _check_shapes(checkpoint: Checkpoint) -> None:
    """Whether the parts belong together; layouts have checked each file for itself."""
    count, width = len(checkpoint.layers), checkpoint.layers[0].encoder.shape[1]
    for number, layer in enumerate(checkpoint.layers):
        features = layer.encoder.shape[0]
        outputs = count - number if checkpoint.kind == "clt" else 1
        wanted: list[tuple[int, ...]] = [(features, outputs, width)]
        if outputs == 1:
            wanted.append((features, width))
        if layer.encoder.shape[1] != width or layer.decoder.shape not in wanted:
            raise FormatError(
                f"layer {number}: encoder {list(layer.encoder.shape)} and decoder "
                f"{list(layer.decoder.shape)} do not fit {checkpoint.kind.upper()} of {count} "
                f"layers and width {width}",
                "Do the files belong to one checkpoint?",
            )
        if features < 1 or width < 1:
            raise FormatError(
                f"layer {number}: the encoder is empty, {[features, width]}",
                "Complete the checkpoint",
            )
        _check_k(number, layer.k or checkpoint.activation.k, features, checkpoint.activation.kind)


def _check_k(layer: int, k: int, features: int, kind: str) -> None:
    if kind not in ("topk", "groupmax"):
        return
    if not 1 <= k <= features:
        raise FormatError(
            f"layer {layer}: k is {k}, but there are {features} features",
            "Correct k in the configuration",
        )
    if kind == "groupmax" and features % k:
        raise FormatError(
            f"layer {layer}: {features} features cannot be cut into k = {k} equal groups",
            "Correct k in the configuration",
        )
