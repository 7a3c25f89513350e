"""A language model that can be frozen: tokenizer, transformers module and family adapter together.

One prompt at a time and without padding, so that nothing but the prompt enters a graph.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import Any, Final

import torch

from tracer.errors import CircuitWarning, SettingError, TracingError
from tracer.models.families import Parts, family_of
from tracer.models.freezing import freeze
from tracer.models.frozen import FrozenModel
from tracer.models.proof import Proof, prove
from tracer.models.recording import Recording, record

__all__ = ["Model"]

_INSTRUCT: Final = re.compile(r"(?:^|[-_.])it(?:[-_.]|$)", re.IGNORECASE)
_BASE: Final = re.compile(r"(?:^|[-_.])pt(?:[-_.]|$)", re.IGNORECASE)
_MADE_UP: Final = 8  # positions of the prompt that a check makes up


class Model:
    """A transformers causal language model and what its family says of it.

    :func:`~tracer.models.load_model` makes one from a folder or a hub id; a module that is already
    in memory can be given here.

    Graphs' ids tell models apart by `model_id` and by ``info["fingerprint"]``, which
    :func:`~tracer.models.load_model` takes of the weights' files and the configuration. A module in
    memory has no fingerprint unless `info` gives one, so that two such modules of one `model_id`
    are the same to graphs' ids; and weights that are changed in place keep the fingerprint of the
    files. Give a `model_id` or a fingerprint of their own to either.

    Parameters
    ----------
    module
        Causal language model of transformers, with ``attn_implementation="eager"``; put in
        evaluation mode and without gradients.
    tokenizer
        Its tokenizer; None where prompts are given as token ids.
    model_id
        Hub id or folder name that results will carry.
    info
        What is known of where it came from (source, revision, commit, fingerprint); JSON-able.

    Attributes
    ----------
    model_id : str
    family : str
        ``gpt2``, ``gpt_neox``, ``llama``, ``mistral``, ``qwen2``, ``qwen3``, ``gemma2`` or
        ``gemma3``.
    n_layers, width, vocab_size, context : int
        Layers L, residual width d, vocabulary V, and the most positions a prompt may have.
    has_post_norm : bool
        Whether a norm follows the MLP, so that ``mlp.hook_out`` is not ``hook_mlp_out``.
    tokenizer, module, dtype, device
    info : dict

    Raises
    ------
    TracingError
        If no family reads the module, or its attention does not give its pattern.
    """

    def __init__(
        self,
        module: Any,
        tokenizer: Any | None = None,
        *,
        model_id: str = "model",
        info: dict[str, Any] | None = None,
    ) -> None:
        self._family = family_of(module.config, model_id)
        config = module.config.get_text_config()
        if config._attn_implementation != "eager":
            raise TracingError(
                f'{model_id}: its attention is "{config._attn_implementation}", which keeps no '
                "pattern",
                'Load the model with attn_implementation="eager"',
            )
        self.module = module.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.model_id = model_id
        self.family = self._family.name
        parts = self.parts()
        self.n_layers = len(parts.layers)
        self.vocab_size, self.width = (int(size) for size in parts.unembedding.shape)
        self.context = int(config.max_position_embeddings)
        self.has_post_norm = any(layer.post_mlp_norm is not None for layer in parts.layers)
        self.info: dict[str, Any] = {
            "model_id": model_id,
            "family": self.family,
            "architecture": type(module).__name__,
            "n_layers": self.n_layers,
            "width": self.width,
            "vocab_size": self.vocab_size,
            "context": self.context,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            **(info or {}),
        }
        self._said_no_bos = False

    def __repr__(self) -> str:
        return (
            f"Model({self.model_id!r}, family={self.family!r}, n_layers={self.n_layers}, "
            f"width={self.width}, dtype={self.info['dtype']})"
        )

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model's weights."""
        dtype: torch.dtype = self.module.dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """Device of the model's weights."""
        device: torch.device = self.module.device
        return device

    @property
    def bos_id(self) -> int | None:
        """Token that a text prompt gets in front, or None."""
        found = getattr(self.tokenizer, "bos_token_id", None)
        return None if found is None else int(found)

    @property
    def default_zero_first(self) -> int:
        """Positions whose features and errors are zero by default: 4 for Gemma 3 instruct, else 1.

        Instruct models are told by ``-it`` in their name; a name with neither that nor ``-pt``, by
        whether their tokenizer has a chat template.
        """
        if self.family != "gemma3":
            return 1
        name = self.model_id.rsplit("/", 1)[-1]
        if _INSTRUCT.search(name):
            return 4
        chats = getattr(self.tokenizer, "chat_template", None) is not None
        return 4 if chats and not _BASE.search(name) else 1

    def parts(self) -> Parts:
        """Describe the module as its family does; views of its weights as they are now."""
        return self._family.parts(self.module)

    def tokenize(self, prompt: str | Sequence[int]) -> list[int]:
        """Token ids of a prompt.

        Parameters
        ----------
        prompt
            A text, which gets the tokenizer's BOS in front if there is one and the text does not
            begin with it; or token ids, taken as they are.

        Returns
        -------
        list of int

        Raises
        ------
        TracingError
            If the prompt is empty, longer than the model reads, or holds an id that the model does
            not have; if it is a text and there is no tokenizer.

        Warns
        -----
        CircuitWarning
            Once, if a text's first token will stand where BOS is left out of graphs.
        """
        ids = self._encode(prompt) if isinstance(prompt, str) else _as_ids(prompt)
        if not ids:
            raise TracingError("the prompt is empty", "Give a text or at least one token id")
        if len(ids) > self.context:
            raise TracingError(
                f"the prompt has {len(ids):,} tokens, and {self.model_id} reads at most "
                f"{self.context:,}",
                "Shorten it",
            )
        for position, token in enumerate(ids):
            if not 0 <= token < self.vocab_size:
                raise TracingError(
                    f"token id {token} at position {position} is not one of the "
                    f"{self.vocab_size:,} of {self.model_id}",
                    "Tokenize the prompt with this model's own tokenizer",
                )
        return ids

    def tokens(self, token_ids: Sequence[int]) -> list[str]:
        """Readable string of each token id; ``<id>`` for one that the tokenizer does not know."""
        return [self._token(int(token)) for token in token_ids]

    def record(self, token_ids: Sequence[int]) -> Recording:
        """Run a prompt once and record what a freeze needs.

        Raises
        ------
        TracingError
            As :meth:`tokenize`; if a module that the family names did not run.
        """
        return record(self.module, self.parts(), self.tokenize(token_ids))

    def freeze(
        self, token_ids: Sequence[int], dtype: torch.dtype | None = None, *, check: bool = True
    ) -> FrozenModel:
        """Linear model that one prompt leaves when patterns and denominators are frozen.

        Parameters
        ----------
        token_ids
            The prompt, as :meth:`tokenize` gives it.
        dtype
            Of the result, float32 or float64; None: the model's, but at least float32.
        check
            Prove that the freeze holds (:mod:`tracer.models.proof`); costs less than the forward
            pass.

        Returns
        -------
        FrozenModel
            Its unembedding is the model's own tensor, in the model's dtype.

        Raises
        ------
        TracingError
            If a frozen piece does not give back what was recorded; as :meth:`record`.
        SettingError
            If `dtype` is neither float32 nor float64.
        """
        recording, parts = self.record(token_ids), self.parts()
        with torch.no_grad():
            frozen = freeze(parts, recording, self._frozen_dtype(dtype))
            if check:
                prove(frozen, recording, parts, family=self.family)
        return frozen

    def prove(self, prompt: str | Sequence[int], dtype: torch.dtype | None = None) -> Proof:
        """Errors of every frozen piece on one prompt.

        Raises
        ------
        TracingError
            If one does not hold; as :meth:`record`.
        SettingError
            If `dtype` is neither float32 nor float64.
        """
        recording, parts = self.record(self.tokenize(prompt)), self.parts()
        with torch.no_grad():
            frozen = freeze(parts, recording, self._frozen_dtype(dtype))
            return prove(frozen, recording, parts, family=self.family)

    def made_up_prompt(self) -> list[int]:
        """Make up token ids spread over the vocabulary, BOS first, to try a freeze on."""
        length = min(_MADE_UP, self.context)
        ids = [(position * self.vocab_size) // (length + 1) for position in range(1, length + 1)]
        if self.bos_id is not None and self.bos_id < self.vocab_size:
            ids[0] = self.bos_id
        return ids

    def _frozen_dtype(self, dtype: torch.dtype | None) -> torch.dtype:
        if dtype is None:
            return torch.float64 if self.dtype == torch.float64 else torch.float32
        if dtype not in (torch.float32, torch.float64):
            raise SettingError(
                f"a freeze in {dtype} was asked for", "Give torch.float32 or torch.float64"
            )
        return dtype

    def _encode(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise TracingError(
                f"{self.model_id} came without a tokenizer, so a text cannot be read",
                "Give token ids, or put the tokenizer's files beside the model's",
            )
        if not text:
            return []
        # verbose: transformers would print a note of its own where a text is long.
        found = self.tokenizer.encode(text, add_special_tokens=False, verbose=False)
        ids = [int(token) for token in found]
        if self.bos_id is None:
            if ids and not self._said_no_bos:
                self._said_no_bos = True
                warnings.warn(
                    f"the tokenizer of {self.model_id} has no BOS: features at the first word of a "
                    "prompt are left out of its graph, as those at BOS would be. Give token ids "
                    "that begin with a filler, or zero_first=0.",
                    CircuitWarning,
                    stacklevel=3,
                )
            return ids
        return ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def _token(self, token: int) -> str:
        if self.tokenizer is None:
            return f"<{token}>"
        piece = self.tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return f"<{token}>"
        if "▁" in piece:  # sentencepiece: decoding one token alone would lose its space
            return str(piece.replace("▁", " "))
        text = self.tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return str(piece if not text or "�" in text else text)


def _as_ids(prompt: Sequence[int]) -> list[int]:
    """Token ids as plain integers, from a list, array or tensor of one dimension."""
    listed: Any = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    ids: list[int] = []
    for position, token in enumerate(listed if isinstance(listed, list) else list(listed)):
        try:
            if isinstance(token, bool | str):
                raise TypeError
            ids.append(int(token.__index__()))
        except (AttributeError, TypeError):
            raise TracingError(
                f"token id {token!r} at position {position} is not an integer",
                "Give one prompt as a text or a flat sequence of token ids",
            ) from None
    return ids
