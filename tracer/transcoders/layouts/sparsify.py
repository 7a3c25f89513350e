"""EleutherAI's sparsify (per-layer) and clt-training (cross-layer): a folder a layer.

``layers.{i}.mlp/cfg.json`` (or ``{i}.mlp``, ``h.{i}.mlp``) and ``sae.safetensors``: encoder.weight
(F, d), encoder.bias, b_dec, and W_dec (F, d), perhaps W_skip (d, d), used as W_skip @ x. TopK over
max(h, 0), k in the configuration; ``groupmax`` takes the largest of each of k groups.

With ``n_targets`` > 0 there is one of each for every target, layer i + k: W_decs.{k}, b_decs.{k},
W_skips.{k}, post_encs.{k}, post_enc_scales.{k} (the first of a list may be stored under the name
without a number). An active feature writes ``(a + post_enc[k]) · post_enc_scale[k] · W_decs[k]``,
and the biases of all that write to a layer are summed. How decoders are tied is in the
configuration: ``per_source_tied`` (one W_dec for all targets), ``coalesce_topk: concat`` (the
target's W_dec for all sources) and ``per-layer`` (the target's W_dec has F rows for each source).
``normalize_io`` scales inputs by √d / in_norm and outputs by out_norm / √d.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tracer.errors import FormatError, TracingError
from tracer.tensors import StoredTensor, TensorFile, open_tensors
from tracer.transcoders.checkpoint import Activation, Checkpoint, LayerWeights, Vector
from tracer.transcoders.folder import Folder, numbered, read_json
from tracer.transcoders.vectors import Difference, Summed, Times
from tracer.transcoders.views import FeatureRows, Rows, Scaled, Stacked, Zeros

NAME: Final = "sparsify"
LOOKS_FOR: Final = "layers.0.mlp/cfg.json with layers.0.mlp/sae.safetensors, …"

_WEIGHTS: Final = "sae.safetensors"


def recognise(folder: Folder) -> bool:
    """Whether there are files of that name."""
    return bool(folder.under(_WEIGHTS))


def read(folder: Folder) -> Checkpoint:
    """Read the configurations and the lists of tensors."""
    paths = numbered(folder.under(_WEIGHTS), r"(\d+)[^/\d]*/sae\.safetensors$", folder.path)
    if not paths:
        raise folder.lacks(NAME, LOOKS_FOR)
    coders = [_coder(path) for path in paths]
    cross = any(coder.targets > 1 for coder in coders)
    if cross:
        for number, coder in enumerate(coders):
            if coder.targets > len(coders) - number:
                raise FormatError(
                    f"{coder.file.path}: writes to {coder.targets} layers from layer {number} of "
                    f"{len(coders)}",
                    "Complete the checkpoint: every layer of the model needs its transcoder",
                )
    kinds = {coder.config.get("activation", "topk") for coder in coders}
    if len(kinds) > 1 or not kinds <= {"topk", "groupmax"}:
        raise TracingError(
            f"{folder.path}: activation {', '.join(sorted(map(str, kinds)))} chooses features over "
            "a whole batch, which has no meaning for one prompt",
            "Convert it to a threshold or to TopK with the training library",
        )
    kind = "groupmax" if kinds == {"groupmax"} else "topk"
    read_hook, write_hook = _hooks(folder)
    return Checkpoint(
        layout=NAME,
        kind="clt" if cross else "plt",
        layers=[_layer(coders, number, cross=cross) for number in range(len(coders))],
        read_hook=read_hook,
        write_hook=write_hook,
        activation=Activation("groupmax" if kind == "groupmax" else "topk"),
        files=[coder.file for coder in coders],
        model_name=_model_name(folder),
    )


@dataclass(frozen=True)
class _Coder:
    """One layer's files.

    ``k``, ``targets``, ``features`` and ``width`` are numbers of its own configuration and tensors.
    """

    file: TensorFile
    config: dict[str, Any]
    features: int
    width: int
    targets: int

    def listed(self, name: str, plural: str, number: int, *shape: int) -> StoredTensor | None:
        """Tensor of one target: ``plural.number``, or ``name`` for the first."""
        for stored in (f"{plural}.{number}", *((name,) if number == 0 else ())):
            if stored in self.file:
                return self.file.at(stored, *shape)
        return None


def _coder(path: Path) -> _Coder:
    config_path = path.parent / "cfg.json"
    config = read_json(config_path)
    if not config.get("transcode", False):
        raise TracingError(
            f"{config_path}: transcode is not set: this is an autoencoder",
            "Autoencoders rebuild what they read; tracing needs transcoders",
        )
    for setting in ("topk_coalesced", "secondary_target_tied"):
        if config.get(setting, False):
            raise TracingError(
                f"{config_path}: {setting} is set: what a feature writes then depends on the "
                "features of other layers",
                "Such a transcoder has no graph of features; train it without",
            )
    k = config.get("k")
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise FormatError(f"{config_path}: k is missing", "Complete the configuration")
    file = open_tensors(path)
    features, width = file.at("encoder.weight", None, None).shape
    targets = config.get("n_targets", 0)
    return _Coder(file, config, features, width, max(1, targets if isinstance(targets, int) else 1))


def _layer(coders: list[_Coder], number: int, *, cross: bool) -> LayerWeights:
    own = coders[number]
    reached = range(number, number + own.targets)
    everything = range(number, len(coders)) if cross else [number]
    _refuse_cross_skips(own)
    views = [
        _decoder(coders, number, target)
        if target in reached
        else Zeros((own.features, own.width), torch.float32)
        for target in everything
    ]
    offsets = [own.listed("post_enc", "post_encs", k, own.features) for k in range(own.targets)]
    scale_in, scale_out = _norm(own, "in_norm"), _norm(own, "out_norm")
    root = math.sqrt(own.width)
    skip = own.listed("W_skip", "W_skips", 0, own.width, own.width)
    # The skip reads the scaled input too, and what it writes is scaled back.
    by = (scale_out or root) / root * (root / scale_in if scale_in else 1)
    return LayerWeights(
        encoder=Rows(own.file["encoder.weight"]),
        encoder_bias=own.file.at("encoder.bias", own.features).read,
        decoder=Stacked(views),
        decoder_bias=_bias(coders, number),
        skip=None if skip is None else (skip.read if by == 1 else Times(skip.read, by)),
        input_scale=None if scale_in is None else torch.tensor(root / scale_in, dtype=_WIDE),
        output_scale=None if scale_out is None else torch.tensor(scale_out / root, dtype=_WIDE),
        k=int(own.config["k"]),
        feature_offset=offsets[0].read if offsets[0] is not None else None,
        target_offsets=_differences(offsets, len(views)),
    )


_WIDE: Final = torch.float64


def _decoder(coders: list[_Coder], source: int, target: int) -> FeatureRows:
    """Find the decoder of one pair of layers, however decoders are tied, with its scales."""
    own, other, k = coders[source], coders[target], target - source
    tied = other.config.get("coalesce_topk", "none")
    view: FeatureRows
    if tied == "concat":
        view = Rows(other.file.at("W_dec", own.features, own.width))
    elif tied == "per-layer":
        stored = other.file.at("W_dec", None, own.width)
        sources = stored.shape[0] // own.features
        place = source - (target + 1 - sources)
        if place < 0 or sources * own.features != stored.shape[0]:
            raise FormatError(
                f'{other.file.path}: tensor "W_dec" has {stored.shape[0]} rows, which are not '
                f"{own.features} for each source",
                "Do the files belong to one checkpoint?",
            )
        view = Rows(stored.rows(place * own.features, (place + 1) * own.features))
    elif own.config.get("per_source_tied", False):
        view = Rows(own.file.at("W_dec", own.features, own.width))
    else:
        one = own.listed("W_dec", "W_decs", k, own.features, own.width)
        if one is None:
            raise FormatError(
                f'{own.file.path}: tensor "W_decs.{k}" is missing', "Complete the checkpoint"
            )
        view = Rows(one)
    scale = own.listed("post_enc_scale", "post_enc_scales", k, own.features)
    factor = _share(coders, source, target)
    if scale is None and factor == 1:
        return view
    return Scaled(view, factor, None if scale is None else scale.read)


def _share(coders: list[_Coder], source: int, target: int) -> float:
    """With ``divide_cross_layer``, earlier layers' writing is divided by their number."""
    other = coders[target]
    tied = other.config.get("coalesce_topk", "none") != "none"
    if source == target or tied or not other.config.get("divide_cross_layer", False):
        return 1.0
    return 1.0 / max(1, len(_sources(coders, target)) - 1)


def _sources(coders: list[_Coder], target: int) -> list[int]:
    """Layers that write to `target`, itself last."""
    return [one for one in range(target + 1) if one + coders[one].targets > target]


def _bias(coders: list[_Coder], target: int) -> Vector:
    """Total bias of a layer: its own, and what earlier layers hold for it."""
    own = coders[target]
    if own.config.get("coalesce_topk", "none") in ("concat", "per-layer"):
        return own.file.at("b_dec", own.width).read
    parts, factors = [], []
    for source in _sources(coders, target):
        stored = coders[source].listed("b_dec", "b_decs", target - source, own.width)
        if stored is not None:
            parts.append(stored.read)
            factors.append(_share(coders, source, target))
    if not parts:
        raise FormatError(f'{own.file.path}: tensor "b_dec" is missing', "Complete the checkpoint")
    return Summed(parts, factors)


def _differences(offsets: list[StoredTensor | None], count: int) -> list[Vector] | None:
    """Offsets of later targets beyond the first's, or None where there is nothing beyond."""
    first = offsets[0]
    if first is None or len(offsets) == 1:
        return None
    values = [None if one is None else one.read() for one in offsets]
    base = first.read()
    if all(value is not None and torch.equal(value, base) for value in values):
        return None
    vectors: list[Vector] = [
        Difference(first.read if one is None else one.read, first.read) for one in offsets
    ]
    same = Difference(first.read, first.read)
    return vectors + [same] * (count - len(vectors))


def _refuse_cross_skips(coder: _Coder) -> None:
    """Skips from one layer's input to a later layer's output are no part of the definition."""
    for k in range(1, coder.targets):
        name = f"W_skips.{k}"
        if name in coder.file and bool((coder.file[name].read() != 0).any()):
            raise TracingError(
                f'{coder.file.path}: tensor "{name}" carries a layer\'s input to a later layer, '
                "which is not supported",
                "Only skips within a layer can be traced",
            )


def _norm(coder: _Coder, name: str) -> float | None:
    if not coder.config.get("normalize_io", False):
        return None
    value: Tensor = coder.file.at(name, 1).read()
    return float(value[0])


def _hooks(folder: Folder) -> tuple[str, str]:
    """Take the MLP module's input and output, unless the run's settings say otherwise."""
    run = folder.path / "config.json"
    settings = read_json(run) if run.is_file() else {}
    inputs = settings.get("hookpoints_in")
    strange = isinstance(inputs, list) and any(not str(one).endswith("mlp") for one in inputs)
    if strange and "feature_input_hook" not in folder.config:
        raise FormatError(
            f"{run}: hookpoints_in names modules other than the MLP",
            "Say what is read in a config.yaml beside it: feature_input_hook: hook_resid_mid, for "
            "instance",
        )
    return folder.hooks("mlp.hook_in", "mlp.hook_out")


def _model_name(folder: Folder) -> str:
    run = folder.path / "config.json"
    name = read_json(run).get("model", "") if run.is_file() else ""
    return str(folder.config.get("model_name", name))
