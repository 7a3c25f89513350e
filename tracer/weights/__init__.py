"""Global weights: virtual weights between features, and how a corpus uses them.

Source: spec, section 6.
"""

from __future__ import annotations

from tracer.weights.weights import GlobalInfluence, GlobalWeights

__all__ = ["GlobalInfluence", "GlobalWeights"]
