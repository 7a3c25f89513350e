"""Which model and which transcoder an attribution-graph JSON means, and what its numbers mean.

A feature is a pair (layer, index) *of one transcoder set*: two sets traced from one model share no
features, so the set's name matters as much as the index. Files name it in five places.
"""

from __future__ import annotations

import hashlib
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tracer.errors import CircuitWarning

__all__ = ["DEPTHS", "Identity", "cantor", "custom_set", "identify", "looks_like_model", "uncantor"]

DEPTHS: Final[Mapping[str, int]] = {
    # Number of layers of the models that published graphs are traced from.
    "gpt2": 12,
    "gemma-2-2b": 26,
    "gemma-2-2b-it": 26,
    "gemma-2-9b": 42,
    "gemma-3-270m": 18,
    "gemma-3-1b": 26,
    "gemma-3-4b": 34,
    "gemma-3-12b": 48,
    "gemma-3-27b": 62,
    "llama-3.2-1b": 16,
    "llama-3.1-8b": 32,
    "qwen3-0.6b": 28,
    "qwen3-1.7b": 28,
    "qwen3-4b": 36,
    "qwen3-8b": 36,
    "qwen3-14b": 40,
}

_FAMILY: Final = re.compile(
    r"(?:[\w.-]+/)?(?:gpt-?2|gpt-?j|gpt-?neo|gpt-?oss|gemma|llama|qwen|pythia|mistral|mixtral|phi|"
    r"olmo|opt|bloom|falcon|deepseek|smollm|claude|haiku)(?![a-z])",
    re.IGNORECASE,
)
_TRANSCODER: Final = re.compile(
    r"transcoder|crosscoder|scope|(?:^|[^a-z])(?:clt|plt|sae|skip|lorsa)s?(?![a-z])", re.IGNORECASE
)


@dataclass(frozen=True)
class Identity:
    """Model and transcoder of a file, and where it says so."""

    model_id: str | None
    transcoder_id: str | None
    transcoder_from: str | None
    transcoder_info: dict[str, Any]


def identify(
    metadata: Mapping[str, Any],
    name: str = "",
    *,
    transcoder: str | None = None,
    model: str | None = None,
    warn: bool = True,
) -> Identity:
    """Find out which model and transcoder set a file means.

    In this order: the argument; what circuitbase wrote itself; ``info.transcoder_set``;
    ``transcoder_list``; Neuronpedia's source set; ``scan``. A ``scan`` that only names a model is
    used too, with a warning, because two transcoder sets of that model would then be taken for one.

    Parameters
    ----------
    metadata
        The file's ``metadata`` object.
    name
        The file, for the warning.
    transcoder, model
        What the caller knows better.
    warn
        Whether to warn.

    Returns
    -------
    Identity
        With ``None`` where the file does not tell.
    """
    scan = metadata.get("scan")
    scan = scan if isinstance(scan, str) and scan else None
    info, details = metadata.get("info"), metadata.get("feature_details")
    named = info.get("transcoder_set") if isinstance(info, dict) else None
    source_set = details.get("neuronpedia_source_set") if isinstance(details, dict) else None
    listed = metadata.get("transcoder_list")
    if not isinstance(listed, list) or not all(isinstance(part, str) for part in listed):
        listed = []
    own = metadata.get("circuitbase")
    own = own if isinstance(own, dict) else {}
    own = {key: value for key, value in own.items() if value is None or isinstance(value, str)}

    found: str | None = None
    origin: str | None = None
    extra: dict[str, Any] = {}
    if transcoder is not None:
        found, origin = transcoder, "argument"
    elif "transcoder_id" in own:
        found, origin = own["transcoder_id"], "circuitbase"
        if listed and custom_set(listed) == found:
            extra = {"transcoders": listed}
    elif isinstance(named, str) and named:
        found, origin = named, "info.transcoder_set"
    elif listed:
        found, origin, extra = custom_set(listed), "transcoder_list", {"transcoders": listed}
    elif isinstance(source_set, str) and source_set:
        found = f"{scan}/{source_set}" if scan else source_set
        origin = "feature_details.neuronpedia_source_set"
    elif scan is not None:
        found, origin = scan, "scan"

    if model is None and "model_id" in own:
        model = own["model_id"]
    elif model is None and scan is not None and looks_like_model(scan):
        model = scan
    if warn and found is None:
        warnings.warn(
            f"{name}: names no transcoder; its features cannot be matched with other graphs'. "
            "Say which it is with transcoder= (--transcoder).",
            CircuitWarning,
            stacklevel=2,
        )
    elif warn and origin == "scan" and looks_like_model(str(found)):
        warnings.warn(
            f'{name}: names its transcoder only by scan "{found}", which may be a model\'s name; '
            "graphs of other transcoders of that model would seem to share its features. "
            "Say which it is with transcoder= (--transcoder).",
            CircuitWarning,
            stacklevel=2,
        )
    return Identity(model, found, origin, extra)


def looks_like_model(name: str) -> bool:
    """Whether a name reads like a language model's, not like a transcoder set's.

    Examples
    --------
    >>> looks_like_model("gemma-2-2b"), looks_like_model("mntss/gemma-scope-transcoders")
    (True, False)
    """
    return bool(_FAMILY.match(name)) and not _TRANSCODER.search(name)


def custom_set(parts: list[str]) -> str:
    """Name a transcoder set that is only known as a list, one name a layer.

    Examples
    --------
    >>> custom_set(["owner/one"]), custom_set(["owner/one", "owner/two"])
    ('owner/one', 'custom-d49d6d044bedf94b')
    """
    if len(set(parts)) == 1:
        return parts[0]
    return f"custom-{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:16]}"


def cantor(layer: int, index: int) -> int:
    """Pair (layer, index) into one number, as circuit-tracer's ``feature`` does.

    Examples
    --------
    >>> cantor(18, 5495)
    15204836
    """
    return (layer + index) * (layer + index + 1) // 2 + index


def uncantor(number: int) -> tuple[int, int]:
    """Undo :func:`cantor`.

    Examples
    --------
    >>> uncantor(15204836)
    (18, 5495)
    """
    diagonal = (math.isqrt(8 * number + 1) - 1) // 2
    index = number - diagonal * (diagonal + 1) // 2
    return diagonal - index, index
