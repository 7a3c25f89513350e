"""Qwen 2 and 2.5: Llama's shape, with biases on query, key and value."""

from __future__ import annotations

from typing import Final

from tracer.models.families.llama import llama_parts
from tracer.models.families.parts import Family

__all__ = ["QWEN2"]

QWEN2: Final = Family("qwen2", ("qwen2",), llama_parts)
