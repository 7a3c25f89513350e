"""Roles: what words of a prompt stand for, and the tokens that they are.

A prompt's metadata may hold ``roles``, from names to words of the prompt (``{"city": "Dallas"}``).
When the prompt is tokenized they become positions: of the tokens that the words run over, by the
tokenizer's offsets where it gives any, else by the texts of the tokens. The role ``last`` is the
last token of every prompt.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from tracer.errors import TracingError, nearest
from tracer.graph import JSON

if TYPE_CHECKING:
    from tracer.models import Model

__all__ = ["LAST", "answer_tokens", "prompt_facts", "resolve_roles"]

LAST: Final = "last"
Span = tuple[int, int]  # first character, and the one behind the last


def prompt_facts(
    model: Model, text: str | Sequence[int], ids: Sequence[int], metadata: Mapping[str, JSON]
) -> dict[str, JSON]:
    """Tell what a prompt's metadata says of its tokens, for the ``source`` of its graph.

    Parameters
    ----------
    model
        For its tokenizer.
    text
        The prompt as it was given.
    ids
        Its token ids.
    metadata
        The prompt's metadata; its ``roles`` and its ``answer`` are looked at.

    Returns
    -------
    dict
        Where the metadata has them: ``roles`` (:func:`resolve_roles`), and of its answer
        ``answer_tokens`` (:func:`answer_tokens`).

    Raises
    ------
    TracingError
        If a role is malformed, not in the prompt, or there more than once.
    """
    facts: dict[str, JSON] = {}
    if metadata.get("roles"):
        facts["roles"] = resolve_roles(model, text, ids, metadata["roles"])
    if found := answer_tokens(model, metadata.get("answer")):
        facts["answer_tokens"] = found
    return facts


def resolve_roles(
    model: Model, text: str | Sequence[int], ids: Sequence[int], roles: JSON = None
) -> dict[str, list[int]]:
    """Token positions of each role of a prompt.

    Parameters
    ----------
    model
        For its tokenizer.
    text
        The prompt as it was given: a text, or token ids.
    ids
        Its token ids, with BOS where that was put in front.
    roles
        From each name to one of, or a list of: words of the prompt, which stand there once; a
        mapping of ``text`` and ``nth`` (which one of several, from 1; −1 is the last); a position,
        from 0. Words stand where nothing else joins on to them; only words found nowhere so may
        be parts of others. Or the same as a list of mappings that also hold ``role``.

    Returns
    -------
    dict of list of int
        Positions of all tokens that the words run over, ascending; ``last`` is always there.

    Raises
    ------
    TracingError
        If a role is malformed, not in the prompt, or there more than once; it names the role and
        says how to mend it.
    """
    last = len(ids) - 1
    found: dict[str, list[int]] = {}
    spans: list[Span] | None = None
    joined = text if isinstance(text, str) else "".join(model.tokens(ids))
    for name, wanted in _pairs(roles):
        positions = set(found.get(name, ()))
        for item in wanted if isinstance(wanted, list) else [wanted]:
            if type(item) is int or (isinstance(item, Mapping) and "position" in item):
                positions.add(_position(name, item, last))
                continue
            if spans is None:
                spans = _token_spans(model, text, joined, ids)
            start, stop = _find(name, item, joined)
            positions.update(p for p, (a, b) in enumerate(spans) if a < stop and b > start)
        if not positions:
            raise TracingError(f"role {name!r} names no token", "Give words of the prompt")
        found[name] = sorted(positions)
    if found.setdefault(LAST, [last]) != [last]:
        raise TracingError(
            f"role {LAST!r} is the last token of every prompt", "Give this role another name"
        )
    return found


def answer_tokens(model: Model, answer: JSON) -> list[str]:
    """Tokens that an answer may begin with, as :meth:`Model.tokens` writes them.

    Parameters
    ----------
    model
        For its tokenizer.
    answer
        The answer, or a list of answers that are all right. One without a space in front counts
        with and without it, because prompts end before the space.

    Returns
    -------
    list of str
        Empty where nothing is known: no answer, or no tokenizer.
    """
    answers = answer if isinstance(answer, list) else [answer]
    tokenizer = model.tokenizer
    found: dict[str, None] = {}
    for each in answers:
        if tokenizer is None or isinstance(each, bool) or not isinstance(each, str | int | float):
            continue
        text = str(each)
        for form in (text, f" {text}") if not text.startswith(" ") else (text,):
            ids = tokenizer.encode(form, add_special_tokens=False, verbose=False)
            tokens = model.tokens([int(i) for i in ids[:1]])
            if tokens and tokens[0].strip() and text.strip().startswith(tokens[0].strip()):
                found[tokens[0]] = None
    return list(found)


# How it is done ----------------------------------------------------------------------------------

_FORM: Final = 'Write "roles": {"city": "Dallas"}, with words of the prompt'


def _pairs(roles: JSON) -> list[tuple[str, Any]]:
    """Names with what they stand for, whichever way they are written."""
    if isinstance(roles, str):  # a cell of a CSV file
        try:
            roles = json.loads(roles)
        except ValueError as error:
            raise TracingError(f"roles is {roles!r}, not JSON ({error})", _FORM) from error
    if roles is None or roles == {} or roles == []:
        return []
    if isinstance(roles, list):
        pairs = []
        for item in roles:
            if not isinstance(item, Mapping) or not isinstance(item.get("role"), str):
                raise TracingError(f"roles holds {item!r}, not a role", _FORM)
            pairs.append((item["role"], {k: v for k, v in item.items() if k != "role"}))
    elif isinstance(roles, Mapping):
        pairs = list(roles.items())
    else:
        raise TracingError(f"roles is {roles!r}, not a mapping", _FORM)
    for name, _ in pairs:
        if not isinstance(name, str) or not name.strip() or re.search(r"[+\-−]\d+$", name):
            raise TracingError(
                f"role {name!r} is no name", "Give one that is not empty and ends in no offset"
            )
    return pairs


def _position(name: str, item: Any, last: int) -> int:
    position = item if type(item) is int else item["position"]
    if type(position) is not int or not 0 <= position <= last:
        raise TracingError(
            f"role {name!r} is at position {position!r}, the prompt's tokens are 0 to {last}",
            "Give a position of the prompt, counted with BOS, or words of it",
        )
    return position


def _find(name: str, item: Any, text: str) -> Span:
    """Where the words of a role stand in a text."""
    words, nth = item, None
    if isinstance(item, Mapping):
        words, nth = item.get("text"), item.get("nth")
        if unknown := sorted(set(item) - {"text", "nth"}):
            raise TracingError(
                f"role {name!r} has {unknown[0]!r}",
                nearest(str(unknown[0]), ("text", "nth", "position")) or "Give text and nth",
            )
    if not isinstance(words, str) or not words.strip():
        raise TracingError(f"role {name!r} is {words!r}, not words of the prompt", _FORM)
    words = words.strip()
    spans = [match.span() for match in re.finditer(rf"(?<!\w){re.escape(words)}(?!\w)", text)]
    spans = spans or [match.span() for match in re.finditer(re.escape(words), text)]
    if not spans:
        raise TracingError(
            f"role {name!r} ({words!r}) is not in the prompt",
            nearest(words, re.findall(r"\w+", text)) or "Give words as they stand in it",
        )
    if nth is None:
        if len(spans) > 1:
            raise TracingError(
                f"role {name!r} ({words!r}) is {len(spans)} times in the prompt",
                f'Say which: {{"text": "{words}", "nth": 1}}; or give more of the words around it',
            )
        return spans[0]
    if type(nth) is not int or nth == 0 or abs(nth) > len(spans):
        raise TracingError(
            f"role {name!r}: nth is {nth!r}, and {words!r} is {len(spans)} times in the prompt",
            f"Give 1 to {len(spans)}, or −1 for the last",
        )
    return spans[nth - 1 if nth > 0 else nth]


def _token_spans(
    model: Model, text: str | Sequence[int], joined: str, ids: Sequence[int]
) -> list[Span]:
    """Characters of the prompt that each token stands for; none for BOS put in front."""
    if isinstance(text, str) and (spans := _offsets(model, text, ids)) is not None:
        return spans
    return _by_pieces(model, text, joined, ids)


def _offsets(model: Model, text: str, ids: Sequence[int]) -> list[Span] | None:
    """Offsets that the tokenizer tells, without the spaces around a token; None where it cannot."""
    tokenizer: Any = model.tokenizer
    if tokenizer is None or not getattr(tokenizer, "is_fast", False):
        return None
    given = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    found = [int(i) for i in given["input_ids"]]
    front = len(ids) - len(found)
    if front not in (0, 1) or found != list(ids)[front:]:
        return None
    spans: list[Span] = [(0, 0)] * front
    for start, stop in given["offset_mapping"]:
        piece = text[start:stop]
        spans.append(
            (start + len(piece) - len(piece.lstrip()), stop - len(piece) + len(piece.rstrip()))
        )
    return spans


def _by_pieces(
    model: Model, text: str | Sequence[int], joined: str, ids: Sequence[int]
) -> list[Span]:
    """Spans of the tokens' texts laid end to end, whatever spaces stand between them."""
    pieces = ["".join(piece.split()) for piece in model.tokens(ids)]
    letters = [place for place, letter in enumerate(joined) if not letter.isspace()]
    letters_alone = "".join(joined[place] for place in letters)
    if isinstance(text, str) and ids[0] == model.bos_id and "".join(pieces) != letters_alone:
        pieces[0] = ""  # BOS, which the text does not hold
    if "".join(pieces) != letters_alone:
        raise TracingError(
            "the tokens of the prompt do not add up to its text, so words cannot be found in them",
            'Give roles by position, such as {"city": 5}',
        )
    spans, at = [], 0
    for piece in pieces:
        if piece:
            spans.append((letters[at], letters[at + len(piece) - 1] + 1))
        else:
            spans.append((0, 0))
        at += len(piece)
    return spans
