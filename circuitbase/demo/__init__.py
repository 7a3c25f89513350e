"""The demonstration: prompts of the shipped model traced, stored, asked, and told as a story.

``prompts`` chooses them, ``filling`` traces, stores and labels, ``chapters`` ask and tell, and
``telling`` puts what they tell on the terminal and on a page. A further chapter is one more
function in ``CHAPTERS``.
"""

from __future__ import annotations

from circuitbase.demo.chapters import CHAPTERS
from circuitbase.demo.filling import fill
from circuitbase.demo.prompts import choose_prompts
from circuitbase.demo.story import Story
from circuitbase.demo.telling import Telling

__all__ = ["CHAPTERS", "Story", "Telling", "choose_prompts", "fill"]
