"""Everything of a graph that is neither a node column nor a matrix, as one JSON object.

``.circuit`` and GraphML carry the same header, with an encoding type and a version: a file of a
version that this circuitbase does not know is refused with what to do, never half read.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import pandas as pd

from graphstore.formats.common import Limits, check_depth, field, shown
from tracer.errors import FormatError, GraphError
from tracer.graph import PLAIN_FIELDS, RULES, AttributionGraph, Scores, Supernode

__all__ = ["ENCODING", "VERSION", "build", "dump_header", "graph_header", "load_header"]

ENCODING: Final = "circuitbase/attribution-graph"
VERSION: Final = 1

_PLAIN: Final = (*PLAIN_FIELDS, "pinned")
_NUMBERS: Final = ("completeness", "replacement", "mean_path_length", "lost")


def graph_header(graph: AttributionGraph) -> dict[str, Any]:
    """Lay out a graph's header: every constructor argument but nodes and matrices."""
    return {
        "encoding": ENCODING,
        "version": VERSION,
        **{name: getattr(graph, name) for name in _PLAIN},
        "scores": {
            rule: {
                name: None if (value := getattr(scores, name)) != value else float(value)
                for name in _NUMBERS
            }
            for rule, scores in graph.scores.items()
        },
        "supernodes": [
            {"name": s.name, "members": list(s.members), "author": s.author}
            for s in graph.supernodes
        ],
    }


def dump_header(header: Mapping[str, Any], name: str) -> str:
    """Write a header as ASCII JSON, so that any text (half surrogate pairs too) survives."""
    try:
        return json.dumps(header, ensure_ascii=True, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise FormatError(
            f"{name}: settings or source hold what JSON cannot ({error})",
            "Keep texts, numbers, lists and dictionaries in them",
        ) from error


def load_header(text: bytes, name: str, limits: Limits) -> dict[str, Any]:
    """Read a header and check that its encoding and version are known.

    Raises
    ------
    FormatError
        If it is no such header, or of another version.
    """
    check_depth(text, name, limits)
    try:
        header = json.loads(text)
    except ValueError as error:
        raise FormatError(f"{name}: its header is not JSON ({error})", "Export it again") from error
    if not isinstance(header, dict) or header.get("encoding") != ENCODING:
        raise FormatError(f"{name}: its header is not one of circuitbase", "Export it again")
    version = header.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        raise FormatError(
            f"{name}: is of version {shown(version)}; this circuitbase reads version {VERSION}",
            "Upgrade circuitbase" if newer else "Export the graph again",
        )
    return header


def build(
    header: Mapping[str, Any], nodes: pd.DataFrame, matrices: Mapping[str, Any], name: str
) -> AttributionGraph:
    """Make the graph of a header, a node table and its matrices, checking every field's type."""
    where = f"{name}: header"
    scores = {}
    for rule, record in field(header, "scores", "object", where).items():
        if rule not in RULES or not isinstance(record, dict):
            raise FormatError(f"{where}.scores has {shown(rule)}", f"Known are {', '.join(RULES)}")
        numbers = [
            float(field(record, key, "number", f"{where}.scores.{rule}", float("nan")))
            for key in _NUMBERS
        ]
        scores[rule] = Scores(rule, *numbers)
    supernodes = []
    for place, record in enumerate(field(header, "supernodes", "list", where)):
        at = f"{where}.supernodes[{place}]"
        if not isinstance(record, dict):
            raise FormatError(f"{at} is {shown(record)}, not an object", "Export it again")
        members = _whole(field(record, "members", "list", at), f"{at}.members")
        supernodes.append(
            Supernode(
                field(record, "name", "text", at), tuple(members), _optional(record, "author", at)
            )
        )
    tokens = field(header, "tokens", "list", where)
    for place, token in enumerate(tokens):
        if not isinstance(token, str):
            raise FormatError(f"{where}.tokens[{place}] is {shown(token)}, not a text", "")
    ids = field(header, "token_ids", "list", where, [])
    if not isinstance(header.get("unpruned"), bool):
        raise FormatError(f"{where}.unpruned is not true or false", "Export the graph again")
    try:
        return AttributionGraph(
            nodes,
            **matrices,
            prompt=field(header, "prompt", "text", where),
            tokens=tokens,
            token_ids=(
                None if header.get("token_ids") is None else _whole(ids, f"{where}.token_ids")
            ),
            model_info=field(header, "model_info", "object", where),
            transcoder_info=field(header, "transcoder_info", "object", where),
            slug=field(header, "slug", "text", where),
            settings=field(header, "settings", "object", where),
            scores=scores,
            unpruned=header["unpruned"],
            supernodes=supernodes,
            pinned=_whole(field(header, "pinned", "list", where), f"{where}.pinned"),
            source=field(header, "source", "object", where),
            graph_id=field(header, "graph_id", "text", where),
            **{
                key: _optional(header, key, where)
                for key in ("model_id", "transcoder_id", "created_at", "parent_id")
            },
        )
    except GraphError as error:
        raise FormatError(f"{name}: {error.what}", error.remedy) from error


def _optional(header: Mapping[str, Any], key: str, where: str) -> str | None:
    return None if header.get(key) is None else field(header, key, "text", where)


def _whole(values: list[Any], where: str) -> list[int]:
    for place, value in enumerate(values):
        if type(value) is not int:
            raise FormatError(f"{where}[{place}] is {shown(value)}, not a whole number", "")
    return values
