"""CLT-Forge: ``clt_cfg.json`` and ``clt_weights.safetensors``, or shards of it by rank.

W_enc (L, d, F), b_enc (L, F), log_threshold (L, F): JumpReLU with θ = exp of it. W_dec
(L(L+1)/2, F, d) and b_dec (L(L+1)/2, d) hold a decoder for each pair of layers in the order of the
upper triangle, (0,0), (0,1), …, (1,1), …; the biases of all that write to a layer are summed.
Inputs were multiplied by estimated_norm_scaling_factor_in (L,), outputs by …_out (L,), before
training: both are folded. ``rank{r}_clt_weights.safetensors`` each hold a part of the features, and
the same b_dec. With cross_layer_decoders false W_dec is (L, F, d). Reads ``ln2.hook_normalized``.
"""

from __future__ import annotations

from typing import Final

from torch import Tensor

from tracer.errors import FormatError, TracingError
from tracer.tensors import TensorFile, open_tensors
from tracer.transcoders.checkpoint import Activation, Checkpoint, LayerWeights, Vector
from tracer.transcoders.folder import Folder, numbered, read_json
from tracer.transcoders.vectors import Concatenated, Exponential, Summed
from tracer.transcoders.views import Columns, FeatureRows, Joined, Rows, Stacked

NAME: Final = "clt-forge"
LOOKS_FOR: Final = "clt_cfg.json with clt_weights.safetensors or rank0_clt_weights.safetensors, …"

_WEIGHTS: Final = "clt_weights.safetensors"


def recognise(folder: Folder) -> bool:
    """Whether its configuration is there."""
    return folder.has("clt_cfg.json")


def read(folder: Folder) -> Checkpoint:
    """Read the configuration and the lists of tensors."""
    if not recognise(folder):
        raise folder.lacks(NAME, LOOKS_FOR)
    path = folder.path / "clt_cfg.json"
    config = read_json(path)
    activation = config.get("activation_fn", "jumprelu")
    if activation not in ("jumprelu", "relu"):
        raise TracingError(
            f'{path}: activation_fn "{activation}" is not supported in this layout',
            "Known are jumprelu and relu",
        )
    files = _files(folder)
    count, width, _ = files[0].at("W_enc", None, None, None).shape
    pairs = count * (count + 1) // 2
    cross = bool(config.get("cross_layer_decoders", True))
    decoders = pairs if cross else count
    for file in files:
        features = file.at("W_enc", count, width, None).shape[2]
        file.at("b_enc", count, features)
        file.at("W_dec", decoders, features, width)
    biases = files[0].at("b_dec", decoders, width)
    scale_in, scale_out = (
        _scale(files[0], f"estimated_norm_scaling_factor_{side}", count) for side in ("in", "out")
    )
    layers = []
    for i in range(count):
        own = [_pair(i, m, count) for m in range(i, count)] if cross else [i]
        writers = [_pair(source, i, count) for source in range(i + 1)] if cross else [i]
        layers.append(
            LayerWeights(
                encoder=_joined([Columns(file["W_enc"][i]) for file in files]),
                encoder_bias=Concatenated([file["b_enc"][i].read for file in files]),
                decoder=_joined([Stacked([Rows(file["W_dec"][k]) for k in own]) for file in files]),
                decoder_bias=Summed([biases[k].read for k in writers]),
                threshold=None if activation == "relu" else _threshold(files, i, count),
                input_scale=None if scale_in is None else scale_in[i],
                output_scale=None if scale_out is None else 1 / scale_out[i],
            )
        )
    read_hook, write_hook = folder.hooks("ln2.hook_normalized", "hook_mlp_out")
    return Checkpoint(
        layout=NAME,
        kind="clt" if cross else "plt",
        layers=layers,
        read_hook=read_hook,
        write_hook=write_hook,
        activation=Activation(activation),
        files=files,
        model_name=str(config.get("model_name", "")),
    )


def _files(folder: Folder) -> list[TensorFile]:
    if folder.has(_WEIGHTS):
        return [folder.open(_WEIGHTS)]
    shards = numbered(folder.any(f"rank*_{_WEIGHTS}"), r"rank(\d+)_", folder.path)
    if not shards:
        raise FormatError(
            f"{folder.path}: neither {_WEIGHTS} nor rank0_{_WEIGHTS}", "Complete the checkpoint"
        )
    files = [open_tensors(path) for path in shards]
    world = read_json(folder.path / "clt_cfg.json").get("world_size", len(files))
    latents = read_json(folder.path / "clt_cfg.json").get("d_latent")
    held = sum(file.at("W_enc", None, None, None).shape[2] for file in files)
    if len(files) != world or (isinstance(latents, int) and held != latents):
        raise FormatError(
            f"{folder.path}: the {len(files)} shards hold {held} features a layer, the "
            f"configuration says {latents}",
            "Complete the checkpoint",
        )
    return files


def _pair(source: int, target: int, count: int) -> int:
    """Place of (source, target) in the upper triangle, row by row."""
    return source * count - source * (source - 1) // 2 + target - source


def _joined(parts: list[Columns] | list[Stacked]) -> FeatureRows:
    return parts[0] if len(parts) == 1 else Joined(parts)


def _threshold(files: list[TensorFile], layer: int, count: int) -> Vector:
    return Exponential(
        Concatenated([file.at("log_threshold", count, None)[layer].read for file in files])
    )


def _scale(file: TensorFile, name: str, count: int) -> Tensor | None:
    return file.at(name, count).read() if name in file else None
