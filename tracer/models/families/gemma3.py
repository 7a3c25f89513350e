"""Gemma 3, text only: by itself, or as the language model of the one that also sees.

Gemma 2's layers; norms of queries and keys are inside the frozen pattern.
"""

from __future__ import annotations

from typing import Any, Final

from tracer.errors import TracingError
from tracer.models.families.gemma2 import gemma_parts
from tracer.models.families.parts import Family, Parts

__all__ = ["GEMMA3"]


def _parts(module: Any) -> Parts:
    config = module.config.get_text_config()
    if getattr(config, "use_bidirectional_attention", False):
        raise TracingError(
            "this Gemma 3 attends in both directions, so no token is the next one",
            "Trace a causal language model",
        )
    seeing = hasattr(module.model, "language_model")
    # The model that sees leaves the cap out, whatever its text configuration says.
    cap = None if seeing else config.final_logit_softcapping
    body = module.model.language_model if seeing else module.model
    return gemma_parts(body, module.lm_head, cap)


GEMMA3: Final = Family("gemma3", ("gemma3", "gemma3_text"), _parts)
