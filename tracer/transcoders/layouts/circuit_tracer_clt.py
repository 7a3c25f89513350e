"""circuit-tracer's cross-layer transcoders.

``config.yaml`` with ``model_kind: cross_layer_transcoder``; for each layer i
``W_enc_{i}.safetensors`` with W_enc_{i} (F, d), b_enc_{i} (F,), b_dec_{i} (d,) and perhaps
threshold_{i} (F,), which makes it a JumpReLU, and ``W_dec_{i}.safetensors`` with W_dec_{i}
(F, L − i, d). Without a configuration the hooks are the library's own defaults.
"""

from __future__ import annotations

from typing import Final

from tracer.errors import FormatError
from tracer.transcoders.checkpoint import Activation, Checkpoint, LayerWeights
from tracer.transcoders.folder import Folder, numbered
from tracer.transcoders.views import Rows

NAME: Final = "circuit-tracer-clt"
LOOKS_FOR: Final = "W_enc_0.safetensors, W_dec_0.safetensors, …"


def recognise(folder: Folder) -> bool:
    """Whether there are files of encoders and decoders, one for each layer."""
    return bool(folder.any("W_enc_*.safetensors"))


def read(folder: Folder) -> Checkpoint:
    """Read the configuration and the lists of tensors."""
    if not recognise(folder):
        raise folder.lacks(NAME, LOOKS_FOR)
    config, config_path = folder.config, folder.path / "config.yaml"
    kind = config.get("model_kind", "cross_layer_transcoder")
    if kind != "cross_layer_transcoder":
        raise FormatError(
            f'{config_path}: model_kind is "{kind}", but the files beside it are a cross-layer '
            "transcoder's",
            "Set it to cross_layer_transcoder",
        )
    encoders = numbered(
        folder.any("W_enc_*.safetensors"), r"W_enc_(\d+)\.safetensors$", folder.path
    )
    count = len(encoders)
    files, layers, thresholds = [], [], 0
    for i, path in enumerate(encoders):
        encoder, decoder = folder.open(path.name), folder.open(f"W_dec_{i}.safetensors")
        features, width = encoder.at(f"W_enc_{i}", None, None).shape
        threshold = f"threshold_{i}" in encoder
        thresholds += threshold
        layers.append(
            LayerWeights(
                encoder=Rows(encoder[f"W_enc_{i}"]),
                encoder_bias=encoder.at(f"b_enc_{i}", features).read,
                decoder=Rows(decoder.at(f"W_dec_{i}", features, count - i, width)),
                decoder_bias=encoder.at(f"b_dec_{i}", width).read,
                threshold=encoder.at(f"threshold_{i}", features).read if threshold else None,
            )
        )
        files += [encoder, decoder]
    if thresholds not in (0, count):
        raise FormatError(
            f"{folder.path}: {thresholds} of {count} layers have a threshold",
            "Complete the checkpoint",
        )
    read_hook, write_hook = folder.hooks("hook_resid_mid", "hook_mlp_out")
    return Checkpoint(
        layout=NAME,
        kind="clt",
        layers=layers,
        read_hook=read_hook,
        write_hook=write_hook,
        activation=Activation("jumprelu" if thresholds else "relu", rectified=False),
        files=files,
        model_name=str(config.get("model_name", "")),
    )
