"""Registry of model families: which adapter reads which ``model_type``.

A family is one file here, and one line in this registry; ``docs/models.md`` says how to add one.
"""

from __future__ import annotations

from typing import Any, Final

from tracer.errors import TracingError
from tracer.models.families.gemma2 import GEMMA2
from tracer.models.families.gemma3 import GEMMA3
from tracer.models.families.gpt2 import GPT2
from tracer.models.families.gpt_neox import GPT_NEOX
from tracer.models.families.llama import LLAMA
from tracer.models.families.mistral import MISTRAL
from tracer.models.families.parts import Family, LayerParts, Norm, Parts
from tracer.models.families.qwen2 import QWEN2
from tracer.models.families.qwen3 import QWEN3

__all__ = ["FAMILIES", "Family", "LayerParts", "Norm", "Parts", "family_of"]

FAMILIES: Final[tuple[Family, ...]] = (
    GPT2,
    GPT_NEOX,
    LLAMA,
    MISTRAL,
    QWEN2,
    QWEN3,
    GEMMA2,
    GEMMA3,
)
_BY_TYPE: Final = {kind: family for family in FAMILIES for kind in family.model_types}


def family_of(config: Any, source: str) -> Family:
    """Adapter for a transformers configuration.

    Parameters
    ----------
    config
        The configuration; its ``model_type`` decides.
    source
        Name of the model, for the error.

    Raises
    ------
    TracingError
        If no family reads that ``model_type``.
    """
    kind = str(getattr(config, "model_type", "") or "")
    if kind not in _BY_TYPE:
        architectures = ", ".join(getattr(config, "architectures", None) or []) or "unnamed"
        file = kind.replace("-", "_") or "<model_type>"
        raise TracingError(
            f'{source}: no family describes model_type "{kind}" (architecture {architectures}); '
            f"known are {', '.join(family.name for family in FAMILIES)}",
            f"Add tracer/models/families/{file}.py, as docs/models.md says, or trace another model",
        )
    return _BY_TYPE[kind]
