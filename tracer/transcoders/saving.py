"""Write a transcoder in circuit-tracer's layout, and hold one in memory.

The files are those that :mod:`tracer.transcoders.layouts` reads: a CLT as ``W_enc_{i}.safetensors``
and ``W_dec_{i}.safetensors``, a PLT as ``layer_{i}.safetensors``, beside a ``config.yaml``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from tracer.errors import FormatError, SettingError
from tracer.transcoders.checkpoint import Activation, Checkpoint, Kind, LayerWeights
from tracer.transcoders.transcoder import Transcoder
from tracer.transcoders.views import Held

__all__ = ["PlainTranscoder", "save_transcoder", "write_tensors"]


@dataclass(frozen=True)
class PlainTranscoder:
    """All tensors of a transcoder, one of each a layer; nothing is folded.

    Attributes
    ----------
    kind
        ``clt`` or ``plt``.
    encoders, encoder_biases
        (F, d) and (F,).
    decoders
        (F, K, d), K = L − l targets of a CLT, 1 of a PLT.
    decoder_biases
        Of each layer as a target, (d,).
    thresholds
        θ of a JumpReLU, (F,), or None for ReLU.
    skips
        ``ŷ += W @ x``, (d, d), or None.
    read_hook, write_hook
        Canonical names.
    """

    kind: Kind
    encoders: Sequence[Tensor]
    encoder_biases: Sequence[Tensor]
    decoders: Sequence[Tensor]
    decoder_biases: Sequence[Tensor]
    thresholds: Sequence[Tensor] | None = None
    skips: Sequence[Tensor] | None = None
    read_hook: str = "hook_resid_mid"
    write_hook: str = "hook_mlp_out"

    def open(
        self,
        name: str = "training",
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Transcoder:
        """Transcoder of these tensors, in memory."""

        def read(listed: Sequence[Tensor] | None, layer: int) -> Callable[[], Tensor] | None:
            return None if listed is None else lambda: listed[layer]

        layers = [
            LayerWeights(
                encoder=Held(self.encoders[layer]),
                encoder_bias=read(self.encoder_biases, layer),
                decoder=Held(self.decoders[layer]),
                decoder_bias=read(self.decoder_biases, layer),
                threshold=read(self.thresholds, layer),
                skip=read(self.skips, layer),
            )
            for layer in range(len(self.encoders))
        ]
        checkpoint = Checkpoint(
            layout="memory",
            kind=self.kind,
            layers=layers,
            read_hook=self.read_hook,
            write_hook=self.write_hook,
            activation=Activation("relu" if self.thresholds is None else "jumprelu"),
            files=(),
        )
        return Transcoder(checkpoint, transcoder_id=name, lazy=False, device=device, dtype=dtype)

    def changed(self, dtype: torch.dtype) -> PlainTranscoder:
        """Copy in another type, as the files will have it."""

        def cast(listed: Sequence[Tensor] | None) -> list[Tensor] | None:
            return None if listed is None else [one.to(dtype) for one in listed]

        return PlainTranscoder(
            self.kind,
            [one.to(dtype) for one in self.encoders],
            [one.to(dtype) for one in self.encoder_biases],
            [one.to(dtype) for one in self.decoders],
            [one.to(dtype) for one in self.decoder_biases],
            cast(self.thresholds),
            cast(self.skips),
            self.read_hook,
            self.write_hook,
        )


def save_transcoder(
    folder: str | os.PathLike[str],
    transcoder: PlainTranscoder,
    *,
    model_name: str = "",
    name: str = "",
    dtype: torch.dtype = torch.float32,
    more: dict[str, Any] | None = None,
) -> Path:
    """Write a transcoder as circuit-tracer does, so that it opens here and in that tool.

    Parameters
    ----------
    folder
        Made if it is not there. Files are written beside their place and moved when all are
        whole, so that a full disk leaves what was there before.
    transcoder
        The tensors.
    model_name, name
        ``model_name`` and ``scan`` of ``config.yaml``; without `name` the folder's.
    dtype
        Of the weights in the files.
    more
        Further keys of ``config.yaml``, such as how it was trained.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    SettingError
        If it is a CLT with skips, which the layout cannot hold.
    FormatError
        If a weight is not finite in `dtype`, or the files cannot be written.
    """
    folder = Path(folder)
    if transcoder.skips is not None and transcoder.kind == "clt":
        raise SettingError(
            "a CLT with an affine skip cannot be saved in circuit-tracer's layout",
            "Train it without the skip",
        )
    cast = transcoder.changed(dtype)
    files = _clt_files(cast) if cast.kind == "clt" else _plt_files(cast)
    for file, tensors in files.items():
        for key, tensor in tensors.items():
            if not torch.isfinite(tensor).all():
                raise FormatError(
                    f"{folder / file}: tensor {key} is not finite in {dtype}",
                    "Save it in float32",
                )
    config: dict[str, Any] = {
        "model_name": model_name,
        "model_kind": "cross_layer_transcoder" if cast.kind == "clt" else "transcoder_set",
        "feature_input_hook": cast.read_hook,
        "feature_output_hook": cast.write_hook,
        "scan": name or folder.resolve().name,
        **(more or {}),
    }
    if cast.kind == "plt":
        config["transcoders"] = list(files)
    parts = folder.with_name(f".{folder.name}.part")
    try:
        shutil.rmtree(parts, ignore_errors=True)
        parts.mkdir(parents=True)
        for file, tensors in files.items():
            write_tensors(parts / file, tensors)
        (parts / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=True), "utf-8")
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(parts.iterdir()):
            path.replace(folder / path.name)
        parts.rmdir()
        for path in _of_layout(folder):
            if path.name not in files:  # of a transcoder that was there before
                path.unlink()
    except FormatError:
        shutil.rmtree(parts, ignore_errors=True)
        raise
    except OSError as error:
        shutil.rmtree(parts, ignore_errors=True)
        raise FormatError(
            f"{folder}: cannot be written ({error.strerror or error})",
            "Free space, or choose another folder",
        ) from error
    return folder


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file whole or not at all.

    Raises
    ------
    FormatError
        If it cannot be written, such as on a full disk; what was there before stays.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
        save_file(whole, part, metadata=dict(metadata) if metadata else None)
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise FormatError(
            f"{path}: cannot be written ({reason})", "Free space, or choose another folder"
        ) from error


def _of_layout(folder: Path) -> list[Path]:
    return [
        path
        for pattern in ("W_enc_*.safetensors", "W_dec_*.safetensors", "layer_*.safetensors")
        for path in folder.glob(pattern)
    ]


def _clt_files(transcoder: PlainTranscoder) -> dict[str, dict[str, Tensor]]:
    files: dict[str, dict[str, Tensor]] = {}
    for i, encoder in enumerate(transcoder.encoders):
        tensors = {
            f"W_enc_{i}": encoder,
            f"b_enc_{i}": transcoder.encoder_biases[i],
            f"b_dec_{i}": transcoder.decoder_biases[i],
        }
        if transcoder.thresholds is not None:
            tensors[f"threshold_{i}"] = transcoder.thresholds[i]
        files[f"W_enc_{i}.safetensors"] = tensors
        files[f"W_dec_{i}.safetensors"] = {f"W_dec_{i}": transcoder.decoders[i]}
    return files


def _plt_files(transcoder: PlainTranscoder) -> dict[str, dict[str, Tensor]]:
    files: dict[str, dict[str, Tensor]] = {}
    for i, encoder in enumerate(transcoder.encoders):
        decoder = transcoder.decoders[i]
        tensors = {
            "W_enc": encoder,
            "b_enc": transcoder.encoder_biases[i],
            "W_dec": decoder[:, 0] if decoder.ndim == 3 else decoder,
            "b_dec": transcoder.decoder_biases[i],
        }
        if transcoder.thresholds is not None:
            tensors["activation_function.threshold"] = transcoder.thresholds[i]
        if transcoder.skips is not None:
            tensors["W_skip"] = transcoder.skips[i]
        files[f"layer_{i}.safetensors"] = tensors
    return files
