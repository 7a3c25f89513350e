"""Mistral: Llama's shape; its sliding window is inside the frozen pattern."""

from __future__ import annotations

from typing import Final

from tracer.models.families.llama import llama_parts
from tracer.models.families.parts import Family

__all__ = ["MISTRAL"]

MISTRAL: Final = Family("mistral", ("mistral",), llama_parts)
