"""The weights of a transcoder in training, and what becomes of them when they are saved.

They live in normalised units (:mod:`tracer.training.normalising`). Folded, they read and write what
the model has; thresholds take the place of TopK and BatchTopK.

Source: Circuit Tracing (2025), "Building an interpretable replacement model"; spec, section 2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tracer.training.normalising import Normalisation
from tracer.training.settings import TrainSettings
from tracer.transcoders.saving import PlainTranscoder

__all__ = ["Weights", "folded", "initial_weights"]


@dataclass
class Weights:
    """Trained tensors, each a leaf with gradient.

    Attributes
    ----------
    encoder, encoder_bias
        Shapes (L, F, d) and (L, F).
    decoders
        Of each layer, for its K targets beside each other, shape (F, K·d).
    decoder_bias
        Of each layer as a target, shape (L, d).
    log_threshold
        log θ (JumpReLU), shape (L, F), or None.
    skip
        Shape (L, d, d), ``ŷ += skip @ x``, or None.
    """

    encoder: Tensor
    encoder_bias: Tensor
    decoders: list[Tensor]
    decoder_bias: Tensor
    log_threshold: Tensor | None = None
    skip: Tensor | None = None

    def named(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors by name, in a fixed order."""
        yield "encoder", self.encoder
        yield "encoder_bias", self.encoder_bias
        for layer, decoder in enumerate(self.decoders):
            yield f"decoder_{layer}", decoder
        yield "decoder_bias", self.decoder_bias
        if self.log_threshold is not None:
            yield "log_threshold", self.log_threshold
        if self.skip is not None:
            yield "skip", self.skip

    @property
    def n_layers(self) -> int:
        """Number of layers L."""
        return int(self.encoder.shape[0])

    @property
    def width(self) -> int:
        """Width d of what is read and written."""
        return int(self.encoder.shape[2])

    def norms(self) -> Tensor:
        """``‖W_dec,i^l‖`` over all targets of a feature, shape (L, F)."""
        return torch.stack([decoder.norm(dim=1) for decoder in self.decoders])


def initial_weights(
    settings: TrainSettings,
    n_layers: int,
    width: int,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
) -> Weights:
    """Draw encoders U(±1/√F), decoders U(±1/√(L·d)), biases 0, the thresholds set.

    The numbers are drawn on the CPU, so that they are the same on every device.
    """
    features = settings.features

    def uniform(limit: float, *shape: int) -> Tensor:
        drawn = torch.rand(shape, generator=generator).mul_(2 * limit).sub_(limit)
        return drawn.to(device).requires_grad_()

    def full(value: float, *shape: int) -> Tensor:
        return torch.full(shape, value, device=device, requires_grad=True)

    write = 1 / math.sqrt(n_layers * width)
    targets = [n_layers - layer if settings.kind == "clt" else 1 for layer in range(n_layers)]
    jump = settings.activation == "jumprelu"
    return Weights(
        encoder=uniform(1 / math.sqrt(features), n_layers, features, width),
        encoder_bias=full(0.0, n_layers, features),
        decoders=[uniform(write, features, k * width) for k in targets],
        decoder_bias=full(0.0, n_layers, width),
        log_threshold=full(math.log(settings.threshold), n_layers, features) if jump else None,
        skip=full(0.0, n_layers, width, width) if settings.skip else None,
    )


def folded(
    weights: Weights,
    normalisation: Normalisation,
    settings: TrainSettings,
    thresholds: Tensor | None,
) -> PlainTranscoder:
    """Weights that read and write what the model has, in float32.

    With ``x̂ = (x − μ_x)/s_x`` and ``y = μ_y + s_y ŷ``: ``W_enc/s_x``, ``b_enc − W_enc μ_x/s_x``,
    ``s_y^m W_dec^{l→m}``, ``(s_y/s_x) W_skip``, ``μ_y + s_y b_dec − (s_y/s_x) W_skip μ_x``. The
    pre-activations, and so the thresholds, stay as they are.

    Parameters
    ----------
    weights, normalisation, settings
        Of the run.
    thresholds
        θ of every feature, shape (L, F).
    """
    with torch.no_grad():
        read_scale = normalisation.read_scale.double().cpu()
        read_mean = normalisation.read_mean.double().cpu()
        write_scale = normalisation.write_scale.double().cpu()
        write_mean = normalisation.write_mean.double().cpu()
        encoder = weights.encoder.double().cpu() / read_scale[:, None, None]
        bias = weights.encoder_bias.double().cpu() - torch.einsum("lfd,ld->lf", encoder, read_mean)
        decoders = []
        for layer, decoder in enumerate(weights.decoders):
            rows = decoder.double().cpu().view(settings.features, -1, weights.width)
            scale = write_scale[layer : layer + rows.shape[1]]
            decoders.append((rows * scale[None, :, None]).float())
        decoder_bias = write_mean + write_scale[:, None] * weights.decoder_bias.double().cpu()
        skip = None
        if weights.skip is not None:
            skip = weights.skip.double().cpu() * (write_scale / read_scale)[:, None, None]
            decoder_bias = decoder_bias - torch.einsum("lde,le->ld", skip, read_mean)
        return PlainTranscoder(
            kind=settings.kind,
            encoders=list(encoder.float()),
            encoder_biases=list(bias.float()),
            decoders=decoders,
            decoder_biases=list(decoder_bias.float()),
            thresholds=None if thresholds is None else list(thresholds.float().cpu()),
            skips=None if skip is None else list(skip.float()),
            read_hook=settings.read_hook,
            write_hook=settings.write_hook,
        )
