"""What a graph is traced from: the likeliest tokens, chosen tokens, their difference, or features.

Source: Circuit Tracing (2025), "Constructing an attribution graph", output nodes; spec, sections 4
and 5 (custom targets and their weights).
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor

from tracer.attribution.local import Indices, LocalModel
from tracer.errors import SettingError, TracingError
from tracer.graph import JSON
from tracer.models import FrozenModel, Model

__all__ = ["Outputs", "Target", "describe_targets", "find_outputs"]

_BLOCK_ROWS: Final = 16_384

# A token (its text or id), a difference of two (first − second), or a feature's key
# "feature/{layer}/{index}/{position}".
Target = str | int | tuple[str | int, str | int]


@dataclass(frozen=True)
class Outputs:
    """The logit nodes of a graph.

    Attributes
    ----------
    layers, positions, token_ids
        Shape (k,); token id −1 where the target is no token.
    vectors
        What each reads of the stream at its layer (L: before the final norm), shape (k, d).
    constants
        Part of each one's value that no stream holds: norm shifts and biases, shape (k,).
    weights
        The w of each: its probability, 1 for a difference, equal shares for features, shape (k,).
    values
        What each row's sum and constants come to, shape (k,): the logit before any soft cap less
        the vocabulary's mean, their difference, or the feature's pre-activation.
    labels
        Text of each.
    """

    layers: Indices
    positions: Indices
    token_ids: Indices
    vectors: Tensor
    constants: Tensor
    weights: np.ndarray[tuple[int], np.dtype[np.float64]]
    values: Tensor
    labels: list[str]

    def __len__(self) -> int:
        return len(self.labels)


def describe_targets(targets: Sequence[Target] | None, model: Model) -> JSON:
    """Targets as they enter a graph's identity: ids in place of text.

    Raises
    ------
    SettingError
        If targets of different kinds are mixed, one is given twice, or there are none.
    TracingError
        If a text is not one token of the vocabulary.
    """
    if targets is None:
        return None
    if isinstance(targets, (str, int, tuple)):
        targets = [targets]
    described: list[JSON] = []
    for target in targets:
        if isinstance(target, (tuple, list)):
            if len(target) != 2:
                raise SettingError(
                    f"target {target!r} is no difference", "Give two tokens: (token, less)"
                )
            described.append([_token_id(model, token) for token in target])
        elif isinstance(target, str) and target.startswith("feature/"):
            described.append("feature/" + "/".join(map(str, _place(target))))
        else:
            described.append(_token_id(model, target))
    kinds = {type(target) for target in described}
    if len(kinds) != 1 or (list in kinds and len(described) > 1):
        raise SettingError(
            f"targets {list(targets)!r} cannot be one graph",
            "Give tokens, or one difference of two tokens, or features",
        )
    parts = described[0] if isinstance(described[0], list) else described
    if len({str(part) for part in parts}) < len(parts):
        raise SettingError(f"targets {list(targets)!r} name one twice", "Give each target once")
    return described


def _place(key: str) -> tuple[int, ...]:
    """Layer, index and position in ``feature/{layer}/{index}/{position}``."""
    parts = key.split("/")[1:]
    if len(parts) != 3 or not all(part.isascii() and part.isdigit() for part in parts):
        raise SettingError(
            f"target {key!r} is not a feature's key", "Write it as feature/LAYER/INDEX/POSITION"
        )
    return tuple(int(part) for part in parts)


def _token_id(model: Model, token: str | int) -> int:
    """Id of one token given as text or id."""
    if not isinstance(token, str):
        try:
            token = operator.index(token)
        except TypeError:
            raise SettingError(
                f"target {token!r} is no token", "Give a token's text, or its id as an integer"
            ) from None
        if not 0 <= token < model.vocab_size:
            raise TracingError(
                f"target token {token} is outside the vocabulary",
                f"Give an id from 0 to {model.vocab_size - 1}",
            )
        return token
    if model.tokenizer is None:
        raise TracingError(
            f"target {token!r} is text, and {model.model_id} has no tokenizer", "Give a token id"
        )
    ids = model.tokenizer.encode(token, add_special_tokens=False)
    if len(ids) != 1 or ids[0] == model.tokenizer.unk_token_id:
        pieces = ", ".join(repr(piece) for piece in model.tokens(ids))
        raise TracingError(
            f"target {token!r} is {len(ids)} tokens to {model.model_id}: {pieces or 'none'}",
            "Give one token, with the space that stands before it in the text, or its id",
        )
    return int(ids[0])


def find_outputs(
    local: LocalModel,
    described: JSON,
    model: Model,
    max_n_logits: int = 10,
    desired_logit_prob: float = 0.95,
) -> Outputs:
    """Make the logit nodes of a graph.

    Parameters
    ----------
    local
        The local replacement model.
    described
        From :func:`describe_targets`; None takes the smallest set of top tokens whose probability
        reaches `desired_logit_prob`, at most `max_n_logits`.
    model
        For the tokens' text.
    """
    if described is not None and isinstance(described[0], str):
        return _features(local, described)
    frozen = local.frozen
    probabilities = torch.softmax(frozen.logits.double(), dim=-1)
    if described is None:
        top, ids = torch.topk(probabilities, min(max_n_logits, len(probabilities)))
        enough = int((top.cumsum(0) < desired_logit_prob).sum()) + 1
        chosen = [[int(i)] for i in ids[:enough]]
    else:
        chosen = [target if isinstance(target, list) else [target] for target in described]
    singles, single_constants = _unembedding(local, [i for tokens in chosen for i in tokens])
    vectors, constants, start = [], [], 0
    for tokens in chosen:
        signs = singles.new_tensor([1.0] + [-1.0] * (len(tokens) - 1))
        vectors.append(signs @ singles[start : start + len(tokens)])
        constants.append(signs @ single_constants[start : start + len(tokens)])
        start += len(tokens)
    last = frozen.n_positions - 1
    read = torch.stack(vectors)
    stacked = frozen.final_norm.transpose(read, torch.full((len(read),), last))
    names = [model.tokens(tokens) for tokens in chosen]
    one = np.array([len(tokens) == 1 for tokens in chosen])
    ids_ = np.array([tokens[0] for tokens in chosen], dtype=np.int64)
    weights = np.where(one, probabilities.cpu().numpy()[ids_], 1.0)
    return Outputs(
        layers=np.full(len(chosen), frozen.n_layers),
        positions=np.full(len(chosen), last),
        token_ids=np.where(one, ids_, -1),
        vectors=stacked,
        constants=torch.stack(constants),
        weights=weights,
        values=_values(local, read, torch.stack(constants)),
        labels=[" − ".join(f'"{t}"' for t in name) if len(name) > 1 else name[0] for name in names],
    )


def _unembedding(local: LocalModel, tokens: list[int]) -> tuple[Tensor, Tensor]:
    """Take the vocabulary's mean row off tokens' rows, with the constants that go with them.

    Returns
    -------
    Tensor, Tensor
        Shapes (k, d) and (k,).
    """
    frozen = local.frozen
    # Cast first: in half precision the mean row would be lost in the rounding of each row.
    rows = frozen.unembedding[tokens].to(frozen.embeddings) - _mean_row(frozen)
    constants = rows.new_zeros(len(rows))
    if frozen.final_norm.shift is not None:
        constants = constants + rows @ frozen.final_norm.shift
    if frozen.unembedding_bias is not None:
        bias = frozen.unembedding_bias.to(frozen.embeddings)
        constants = constants + bias[tokens] - bias.mean()
    return rows, constants


def _mean_row(frozen: FrozenModel) -> Tensor:
    """Mean unembedding row over the whole vocabulary, cast a block at a time, shape (d,)."""
    total = frozen.embeddings.new_zeros(frozen.width)
    for start in range(0, len(frozen.unembedding), _BLOCK_ROWS):
        block = frozen.unembedding[start : start + _BLOCK_ROWS]
        total += block.to(frozen.embeddings).sum(0)
    return total / len(frozen.unembedding)


def _values(local: LocalModel, rows: Tensor, constants: Tensor) -> Tensor:
    """Logits of these rows from the recorded stream: what every row of the graph must come to."""
    frozen = local.frozen
    last = frozen.n_positions - 1
    normed = frozen.final_norm.linear(frozen.final_stream[-1], last)
    return rows @ normed + constants


def _features(local: LocalModel, keys: Sequence[str]) -> Outputs:
    numbers = np.array([_number(local, key) for key in keys], dtype=np.int64)
    order = torch.from_numpy(numbers)
    return Outputs(
        layers=local.layers[numbers],
        positions=local.positions[numbers],
        token_ids=np.full(len(numbers), -1),
        vectors=local.encoder_vectors(numbers),
        constants=local.encoder_constants(numbers),
        weights=np.full(len(numbers), 1 / len(numbers)),
        values=local.preactivations[order],
        labels=list(keys),
    )


def _number(local: LocalModel, key: str) -> int:
    """Find the walking number of the active feature ``feature/{layer}/{index}/{position}``."""
    layer, index, position = _place(key)
    found = np.flatnonzero(
        (local.layers == layer) & (local.indices == index) & (local.positions == position)
    )
    if not len(found):
        raise TracingError(
            f"target {key} is not active on this prompt",
            "Name a feature node of the prompt's own graph",
        )
    return int(found[0])
