"""Models that can be frozen: loading, family adapters, the frozen model and its proof.

:func:`load_model` reads a transformers checkpoint; :meth:`Model.freeze` turns one prompt into the
linear model that :mod:`tracer.attribution` walks. ``docs/models.md`` describes the families.
"""

from __future__ import annotations

from tracer.models.frozen import FrozenAttention, FrozenModel, FrozenNorm
from tracer.models.loading import load_model, outline_model
from tracer.models.model import Model

__all__ = [
    "FrozenAttention",
    "FrozenModel",
    "FrozenNorm",
    "Model",
    "load_model",
    "outline_model",
]
