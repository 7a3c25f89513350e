"""Transcoders: encoders and decoders that stand in for a model's MLPs, in every public layout."""

from __future__ import annotations

from tracer.transcoders.loading import load_transcoder
from tracer.transcoders.transcoder import ActiveFeatures, Transcoder

__all__ = ["ActiveFeatures", "Transcoder", "load_transcoder"]
