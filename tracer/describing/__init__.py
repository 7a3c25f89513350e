"""What features respond to and lead to on a corpus, and labels that follow from it."""

from __future__ import annotations

from tracer.describing.describing import describe_features
from tracer.describing.labels import Evidence, Label, label_of

__all__ = ["Evidence", "Label", "describe_features", "label_of"]
