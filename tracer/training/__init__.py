"""Training transcoders, and measuring them: ours or published ones."""

from __future__ import annotations

from tracer.training.evaluating import Evaluation, Figures, evaluate, measure
from tracer.training.loop import train
from tracer.training.settings import TrainSettings
from tracer.transcoders.saving import PlainTranscoder, save_transcoder

__all__ = [
    "Evaluation",
    "Figures",
    "PlainTranscoder",
    "TrainSettings",
    "evaluate",
    "measure",
    "save_transcoder",
    "train",
]
