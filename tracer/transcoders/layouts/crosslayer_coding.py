"""crosslayer-coding: ``cfg.json``, ``model.safetensors`` and perhaps ``norm_stats.json``.

encoder_module.encoders.{i}.weight (F, d) and .bias_param (F,);
decoder_module.decoders.{s->t}.weight (d, F), features last, and .bias_param (d,), all biases of one
target summed; theta_manager.log_threshold (L, F): JumpReLU with θ = exp of it. ``decoder_tying``
per_source or per_target has decoders.{i} instead, and perhaps feature_offset.{t} and
feature_scale.{t} (F,) by target: an active feature writes ``(a + offset) · scale`` times its
decoder.

Training saw (x − mean) / (std + 1e-6) of inputs and targets, from norm_stats.json ({layer: {inputs:
{mean, std}, targets: {mean, std}}}), or x · √d: both are folded.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from tracer.errors import FormatError, TracingError
from tracer.tensors import TensorFile, open_tensors
from tracer.transcoders.checkpoint import Activation, Checkpoint, LayerWeights, Vector
from tracer.transcoders.folder import Folder, read_json
from tracer.transcoders.vectors import Difference, Exponential, Summed
from tracer.transcoders.views import Columns, FeatureRows, Rows, Scaled, Stacked

NAME: Final = "crosslayer-coding"
LOOKS_FOR: Final = "cfg.json with model.safetensors"

_ENCODERS: Final = "encoder_module.encoders"
_DECODERS: Final = "decoder_module.decoders"
_THRESHOLD: Final = "theta_manager.log_threshold"
_TIED: Final = ("per_source", "per_target")
_EPSILON: Final = 1e-6  # what the library adds to each standard deviation
_METHODS: Final = {
    "auto": "mean_std",
    "estimated_mean_std": "mean_std",
    "auto_sqrt_d_model": "sqrt_d_model",
    "estimated_mean_std_sqrt_d_model": "sqrt_d_model",
}


def recognise(folder: Folder) -> bool:
    """Whether there are a configuration and a file with encoders of that name."""
    return folder.has("cfg.json") and _weights(folder) is not None


def read(folder: Folder) -> Checkpoint:
    """Read the configuration and the list of tensors."""
    path, file = folder.path / "cfg.json", _weights(folder)
    if file is None or not path.is_file():
        raise folder.lacks(NAME, f"{LOOKS_FOR}, which holds {_ENCODERS}.0.weight")
    config = read_json(path)
    activation = config.get("activation_fn", "jumprelu")
    if activation not in ("jumprelu", "relu"):
        raise TracingError(
            f'{path}: activation_fn "{activation}" chooses among the features of all layers at '
            "once",
            "Convert it to JumpReLU with the library's convert_batchtopk_to_jumprelu script",
        )
    count = sum(f"{_ENCODERS}.{i}.weight" in file for i in range(len(file)))
    if count != config.get("num_layers", count):
        raise FormatError(
            f"{file.path}: {count} encoders, but {path.name} says {config['num_layers']} layers",
            "Complete the checkpoint",
        )
    width = file.at(f"{_ENCODERS}.0.weight", None, None).shape[1]
    norms = _Norms(folder, config, count, width)
    layers = [_layer(file, config, i, count, norms) for i in range(count)]
    read_hook, write_hook = folder.hooks(
        config.get("mlp_input_template") or config.get("tl_input_template") or "mlp.hook_in",
        config.get("mlp_output_template") or config.get("tl_output_template") or "mlp.hook_out",
    )
    return Checkpoint(
        layout=NAME,
        kind="clt",
        layers=layers,
        read_hook=read_hook,
        write_hook=write_hook,
        activation=Activation("relu" if activation == "relu" else "jumprelu"),
        files=[file],
        model_name=str(config.get("model_name") or ""),
        extra={"normalisation": norms.method},
    )


def _weights(folder: Folder) -> TensorFile | None:
    """``model.safetensors``, or the one file of another name that holds encoders."""
    paths = folder.any("*.safetensors")
    for path in sorted(paths, key=lambda one: one.name != "model.safetensors"):
        file = open_tensors(path)
        if f"{_ENCODERS}.0.weight" in file:
            return file
    return None


def _layer(
    file: TensorFile, config: dict[str, Any], i: int, count: int, norms: _Norms
) -> LayerWeights:
    encoder = file.at(f"{_ENCODERS}.{i}.weight", None, None)
    features, width = encoder.shape
    tying = config.get("decoder_tying", "none")
    _refuse_skips(file)
    offsets = [_tied(file, tying, "feature_offset", target, features) for target in range(i, count)]
    bias = f"{_ENCODERS}.{i}.bias_param"
    threshold = file.at(_THRESHOLD, count, features)[i] if _THRESHOLD in file else None
    if threshold is None and config.get("activation_fn", "jumprelu") == "jumprelu":
        raise FormatError(f'{file.path}: tensor "{_THRESHOLD}" is missing', "Complete the file")
    return LayerWeights(
        encoder=Rows(encoder),
        encoder_bias=file.at(bias, features).read if bias in file else None,
        decoder=Stacked(
            [_decoder(file, tying, i, target, features, width) for target in range(i, count)]
        ),
        decoder_bias=_bias(file, tying, i, width),
        threshold=None if threshold is None else Exponential(threshold.read),
        input_shift=norms.shift("inputs", i),
        input_scale=norms.divisor("inputs", i, inverse=True),
        output_scale=norms.divisor("targets", i, inverse=False),
        output_shift=norms.shift("targets", i),
        feature_offset=offsets[0],
        target_offsets=_differences(offsets),
    )


def _name(tying: str, source: int, target: int) -> str:
    """Name of the decoder of a pair of layers."""
    if tying == "per_source":
        return f"{_DECODERS}.{source}"
    return f"{_DECODERS}.{target}" if tying == "per_target" else f"{_DECODERS}.{source}->{target}"


def _decoder(
    file: TensorFile, tying: str, source: int, target: int, features: int, width: int
) -> FeatureRows:
    view = Columns(file.at(f"{_name(tying, source, target)}.weight", width, features))
    scale = _tied(file, tying, "feature_scale", target, features)
    return view if scale is None else Scaled(view, each=scale)


def _tied(file: TensorFile, tying: str, what: str, target: int, features: int) -> Vector | None:
    name = f"decoder_module.{what}.{target}"
    return file.at(name, features).read if tying in _TIED and name in file else None


def _bias(file: TensorFile, tying: str, target: int, width: int) -> Vector | None:
    """Sum of the biases of all decoders that are used for one target."""
    sources = [target] if tying == "per_target" else range(target + 1)
    names = [f"{_name(tying, source, target)}.bias_param" for source in sources]
    parts = [file.at(name, width).read for name in names if name in file]
    return Summed(parts) if parts else None


def _differences(offsets: list[Vector | None]) -> list[Vector] | None:
    """Offsets of later targets beyond the own layer's, or None where there is nothing beyond."""
    first = offsets[0]
    if first is None:
        return None
    base = first()
    if all(one is not None and torch.equal(one(), base) for one in offsets):
        return None
    return [Difference(one or first, first) for one in offsets]


def _refuse_skips(file: TensorFile) -> None:
    for name in file:
        if name.startswith("decoder_module.skip_weights.") and bool((file[name].read() != 0).any()):
            raise TracingError(
                f'{file.path}: tensor "{name}" carries inputs to later layers, which is not '
                "supported",
                "Only skips within a layer can be traced",
            )


class _Norms:
    """What inputs and targets were shifted and divided by in training."""

    def __init__(self, folder: Folder, config: dict[str, Any], count: int, width: int) -> None:
        path = folder.path / "norm_stats.json"
        method = str(config.get("normalization_method") or "none")
        if config.get("sqrt_d_model_normalize", False):
            method = "sqrt_d_model"
        self.method = _METHODS.get(method, method)
        if self.method not in ("none", "mean_std", "sqrt_d_model"):
            raise FormatError(
                f'{folder.path / "cfg.json"}: normalization_method "{method}" is unknown',
                "Known are none, mean_std and sqrt_d_model",
            )
        self.width = width
        self.values: dict[tuple[str, int, str], Tensor] = {}
        if self.method == "mean_std":
            if not path.is_file():
                raise FormatError(
                    f"{path}: no such file, but the transcoder was trained on normalised inputs",
                    "Copy it from the folder of training activations",
                )
            self._read(path, count)

    def shift(self, side: str, layer: int) -> Tensor | None:
        """Mean of inputs or targets."""
        return self.values.get((side, layer, "mean"))

    def divisor(self, side: str, layer: int, *, inverse: bool) -> Tensor | None:
        """Return the standard deviation, or 1 over it."""
        value = self.values.get((side, layer, "std"))
        if self.method == "sqrt_d_model":
            value = torch.tensor(1 / math.sqrt(self.width), dtype=torch.float64)
        if value is None:
            return None
        return 1 / value if inverse else value

    def _read(self, path: Path, count: int) -> None:
        stats = read_json(path)
        for layer in range(count):
            for side in ("inputs", "targets"):
                for what in ("mean", "std"):
                    try:
                        numbers = stats[str(layer)][side][what]
                        value = torch.tensor(numbers, dtype=torch.float64)
                    except (KeyError, TypeError, ValueError):
                        raise FormatError(
                            f"{path}: {what} of the {side} of layer {layer} is missing",
                            "Copy it from the folder of training activations",
                        ) from None
                    if value.shape != (self.width,) or not bool(value.isfinite().all()):
                        raise FormatError(
                            f"{path}: {what} of the {side} of layer {layer} is not "
                            f"{self.width} numbers",
                            "Do the files belong to one checkpoint?",
                        )
                    self.values[side, layer, what] = value + _EPSILON * (what == "std")
