"""Qwen 3: Llama's shape; its norms of queries and keys are inside the frozen pattern."""

from __future__ import annotations

from typing import Final

from tracer.models.families.llama import llama_parts
from tracer.models.families.parts import Family

__all__ = ["QWEN3"]

QWEN3: Final = Family("qwen3", ("qwen3",), llama_parts)
