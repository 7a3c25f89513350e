"""How good a transcoder is on a corpus: layer by layer, in the model's place, and in graphs.

Source: Circuit Tracing (2025), "Evaluating the replacement model" and "Evaluating attribution
graphs"; spec, sections 2 and 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from tracer.corpora import Corpus
from tracer.errors import CircuitError, TracingError
from tracer.models import Model
from tracer.training.activations import MlpHooks, Padded, padded
from tracer.transcoders import ActiveFeatures, Transcoder

__all__ = ["Evaluation", "Figures", "evaluate", "measure"]

Progress = Callable[[str, int, int], None]

_PASS: Final = 4096  # tokens of one forward pass
_LOGITS: Final = 1 << 27  # numbers of the logits of one forward pass, at most


@dataclass(frozen=True)
class Figures:
    """Figures over tokens of a corpus.

    Attributes
    ----------
    layers
        One row a layer: ``layer``, ``explained`` (1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖²), ``l0`` (active
        features a token), ``dead`` (share of features active at no token), and
        ``explained_<class>``, ``l0_<class>`` for every token class, each against its own mean.
    tokens
        How many tokens it was.
    top1, kl
        With every MLP replaced: share of positions whose likeliest next token stays, and mean
        KL(model ‖ replacement) in nats.
    top1_last, kl_last
        The same at the last position of each sequence alone.
    classes
        One row a class of the token at the position: ``class``, ``tokens``, ``explained``, ``l0``
        (means over layers), ``top1``, ``kl``.
    """

    layers: pd.DataFrame
    tokens: int
    top1: float
    kl: float
    top1_last: float
    kl_last: float
    classes: pd.DataFrame

    @property
    def explained(self) -> float:
        """Mean explained variance over layers."""
        return float(self.layers["explained"].mean())

    @property
    def l0(self) -> float:
        """Mean L0 over layers."""
        return float(self.layers["l0"].mean())

    @property
    def dead(self) -> float:
        """Mean dead share over layers."""
        return float(self.layers["dead"].mean())


@dataclass(frozen=True)
class Evaluation:
    """Figures of a transcoder, and of graphs made with it.

    Attributes
    ----------
    transcoder_id
        Which.
    kind
        ``clt`` or ``plt``.
    figures
        Over tokens.
    graphs
        One row a traced prompt: ``prompt``, ``features``, ``completeness``, ``replacement``,
        ``mean_path_length``, ``lost`` (unpruned); empty where none was asked for.
    failures
        Prompts that could not be traced, and why.
    """

    transcoder_id: str
    kind: str
    figures: Figures
    graphs: pd.DataFrame
    failures: list[str] = field(default_factory=list)

    @property
    def layers(self) -> pd.DataFrame:
        """One row a layer."""
        return self.figures.layers

    @property
    def totals(self) -> dict[str, Any]:
        """One number for each figure; those of graphs are means, nan without graphs."""
        found = self.figures
        means: dict[Any, float] = {}
        if len(self.graphs):
            means = self.graphs.mean(numeric_only=True).to_dict()
        return {
            "transcoder": self.transcoder_id,
            "kind": self.kind,
            "tokens": found.tokens,
            "explained": found.explained,
            "explained_least": float(found.layers["explained"].min()),
            "l0": found.l0,
            "dead": found.dead,
            "dead_most": float(found.layers["dead"].max()),
            "top1": found.top1,
            "kl": found.kl,
            "top1_last": found.top1_last,
            "kl_last": found.kl_last,
            "graphs": len(self.graphs),
            **{
                name: float(means.get(name, math.nan))
                for name in ("mean_path_length", "completeness", "replacement", "features")
            },
        }


def evaluate(
    model: Model,
    transcoder: Transcoder,
    corpus: Corpus,
    *,
    tokens: int | None = 65_536,
    prompts: int | Sequence[str | Sequence[int]] = 0,
    max_features: int | None = None,
    zero_first: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure a transcoder on a corpus.

    Parameters
    ----------
    model, transcoder
        From :func:`tracer.load_model` and :func:`tracer.load_transcoder`.
    corpus
        Text that neither was trained on.
    tokens
        The most tokens; whole sequences are sampled. None for all.
    prompts
        How many sequences of the corpus are traced, sampled too; or the prompts themselves.
    max_features
        Of these graphs; None for all active ones.
    zero_first
        First positions that are left out and keep their MLPs; None for what the model asks for.
    seed
        Of sampling.
    progress
        ``progress(what, done, total)``.

    Returns
    -------
    Evaluation

    Raises
    ------
    TracingError
        If the transcoder does not fit the model, or no token is left.
    """
    found = measure(
        model,
        transcoder,
        corpus,
        zero_first=zero_first,
        tokens=tokens,
        seed=seed,
        progress=progress,
    )
    chosen: Sequence[str | Sequence[int]]
    if isinstance(prompts, int):
        order = np.random.default_rng([seed, 5]).permutation(len(corpus))
        first = model.default_zero_first if zero_first is None else zero_first
        long = [int(i) for i in order if len(corpus[int(i)]) > first + 1]
        chosen = [corpus[i].tolist() for i in long[:prompts]]
    else:
        chosen = prompts
    graphs, failures = _graphs(model, transcoder, chosen, max_features, zero_first, progress)
    return Evaluation(transcoder.transcoder_id, transcoder.kind, found, graphs, failures)


def _graphs(
    model: Model,
    transcoder: Transcoder,
    prompts: Sequence[str | Sequence[int]],
    max_features: int | None,
    zero_first: int | None,
    progress: Progress | None,
) -> tuple[pd.DataFrame, list[str]]:
    """Scores of the unpruned graph of each prompt."""
    from tracer.attribution.tracing import trace
    from tracer.scores import scores

    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    for done, prompt in enumerate(prompts, 1):
        text = prompt if isinstance(prompt, str) else "".join(model.tokens(list(prompt)))
        try:
            graph = trace(
                model, transcoder, prompt, max_features=max_features, zero_first=zero_first
            )
            found = scores(graph, "full")
        except CircuitError as error:
            failures.append(f"{text}: {error}")
        else:
            rows.append(
                {
                    "prompt": text,
                    "features": int(graph.is_feature.sum()),
                    "completeness": found.completeness,
                    "replacement": found.replacement,
                    "mean_path_length": found.mean_path_length,
                    "lost": found.lost,
                }
            )
        if progress is not None:
            progress("prompts", done, len(prompts))
    columns = ["prompt", "features", "completeness", "replacement", "mean_path_length", "lost"]
    return pd.DataFrame(rows, columns=columns), failures


def measure(
    model: Model,
    transcoder: Transcoder,
    corpus: Corpus,
    *,
    zero_first: int | None = None,
    tokens: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Figures:
    """Figures of a transcoder over tokens of a corpus; arguments as in :func:`evaluate`.

    Two forward passes each: one as the model is, whose MLPs the transcoder is compared with, and
    one with every MLP replaced, in which the transcoder reads what its own writes have led to.
    """
    _check(model, transcoder)
    first = model.default_zero_first if zero_first is None else zero_first
    sequences = _sample(corpus, tokens, first, seed)
    tally = _Tally(transcoder, corpus)
    hooks = MlpHooks(model, transcoder.read_hook, transcoder.write_hook)
    size = max(64, min(_PASS, _LOGITS // model.vocab_size))
    done = 0
    for batch in padded(corpus, sequences, size, model.context):
        live = batch.live(first)
        if not live.any():
            continue
        with torch.no_grad():
            base = _run(model, hooks, batch)
            mask = live.to(model.device)
            reads = torch.stack([read[mask] for read in hooks.reads])
            writes = torch.stack([write[mask] for write in hooks.writes])
            active = [
                transcoder.active(layer, reads[layer]) for layer in range(transcoder.n_layers)
            ]
            made = transcoder.reconstruct(reads, active, offsets=True)
            replaced = _run(model, hooks, batch, _Replacement(transcoder, mask))
            tally.add(batch, live, writes.to(made), made, active, base[mask], replaced[mask])
        done += int(batch.places.ge(0).any(dim=1).sum())
        if progress is not None:
            progress("sequences", done, len(sequences))
    return tally.figures()


def _check(model: Model, transcoder: Transcoder) -> None:
    if (transcoder.n_layers, transcoder.d_model) != (model.n_layers, model.width):
        raise TracingError(
            f"{transcoder.transcoder_id} has {transcoder.n_layers} layers of width "
            f"{transcoder.d_model}, {model.model_id} {model.n_layers} of {model.width}",
            "Use the model that the transcoder was trained for",
        )


def _sample(corpus: Corpus, tokens: int | None, zero_first: int, seed: int) -> NDArray[np.int64]:
    """Sequences with about so many tokens, at random, in order."""
    usable = np.maximum(corpus.lengths - zero_first, 0)
    if not usable.any():
        raise TracingError(
            f"{corpus.name}: no sequence has more than {zero_first} tokens",
            "Give longer texts, or zero_first=0",
        )
    order = np.random.default_rng([seed, 4]).permutation(len(corpus))
    if tokens is not None:
        order = order[: int(np.searchsorted(np.cumsum(usable[order]), tokens)) + 1]
    return np.sort(order)


def _run(model: Model, hooks: MlpHooks, batch: Padded, replace: Any = None) -> Tensor:
    """Logits at all positions, float32."""
    with hooks.running(replace):
        found = model.module(input_ids=batch.token_ids.to(model.device), use_cache=False)
    logits: Tensor = found.logits.float()
    return logits


class _Replacement:
    """What a transcoder writes instead of each MLP, given what it reads in this very pass.

    Positions outside the mask keep what the MLP wrote.
    """

    def __init__(self, transcoder: Transcoder, mask: Tensor) -> None:
        self._transcoder, self._mask = transcoder, mask
        self._pending: Tensor | None = None

    def __call__(self, layer: int, read: Tensor, written: Tensor) -> Tensor:
        transcoder = self._transcoder
        x = read[self._mask].to(transcoder.device, transcoder.dtype)
        if self._pending is None:
            self._pending = x.new_zeros((transcoder.n_layers, *x.shape))
        found = transcoder.active(layer, x)
        transcoder._decode(layer, found, self._pending, offsets=True)
        made = self._pending[layer] + transcoder.decoder_bias(layer)
        skip = transcoder.skip(layer)
        if skip is not None:
            made = made + x @ skip.T
        result = written.clone()
        result[self._mask] = made.to(written)
        return result


class _Tally:
    """Sums over tokens, for all of them and for each class."""

    def __init__(self, transcoder: Transcoder, corpus: Corpus) -> None:
        self._corpus = corpus
        self._features = [transcoder.features(layer) for layer in range(transcoder.n_layers)]
        self._alive = [np.zeros(count, dtype=bool) for count in self._features]
        layers, width = transcoder.n_layers, transcoder.d_model
        groups = 1 + len(corpus.class_names)
        self._count = np.zeros(groups)
        self._errors = np.zeros((groups, layers))
        self._squares = np.zeros((groups, layers))
        self._sums = np.zeros((groups, layers, width))
        self._active = np.zeros((groups, layers))
        self._kept = np.zeros(groups + 1)  # the last: last positions of sequences
        self._kl = np.zeros(groups + 1)
        self._last = 0

    def add(
        self,
        batch: Padded,
        live: Tensor,
        writes: Tensor,
        made: Tensor,
        active: Sequence[ActiveFeatures],
        base: Tensor,
        replaced: Tensor,
    ) -> None:
        """Add the live tokens of a batch."""
        places = batch.places[live].numpy()
        last = np.isin(places, self._corpus.starts[1:] - 1)
        errors = (made - writes).double().square().sum(dim=2).cpu().numpy()  # (L, n)
        squares = writes.double().square().sum(dim=2).cpu().numpy()
        counts = np.stack(
            [np.bincount(found.positions.cpu().numpy(), minlength=len(places)) for found in active]
        )
        logs, others = base.log_softmax(dim=1), replaced.log_softmax(dim=1)
        kl = (logs.exp() * (logs - others)).sum(dim=1).double().cpu().numpy()
        kept = (base.argmax(dim=1) == replaced.argmax(dim=1)).cpu().numpy()
        for alive, found in zip(self._alive, active, strict=True):
            alive[found.indices.cpu().numpy()] = True
        numbers = None if self._corpus.classes is None else self._corpus.classes[places]
        wide = writes.double().cpu().numpy()
        for group in range(len(self._count)):
            which = np.ones(len(places), dtype=bool) if group == 0 else numbers == group - 1
            self._count[group] += np.sum(which)
            self._errors[group] += errors[:, which].sum(axis=1)
            self._squares[group] += squares[:, which].sum(axis=1)
            self._sums[group] += wide[:, which].sum(axis=1)
            self._active[group] += counts[:, which].sum(axis=1)
            self._kept[group] += kept[which].sum()
            self._kl[group] += kl[which].sum()
        self._last += int(last.sum())
        self._kept[-1] += kept[last].sum()
        self._kl[-1] += kl[last].sum()

    def figures(self) -> Figures:
        """Figures of what was added."""
        count = np.maximum(self._count, 1)
        deviations = self._squares - np.square(self._sums).sum(axis=2) / count[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            explained = 1 - self._errors / deviations
            kept, kl = self._kept[:-1] / self._count, self._kl[:-1] / self._count
        l0 = self._active / count[:, None]
        names = self._corpus.class_names
        layers = pd.DataFrame(
            {
                "layer": np.arange(len(self._features)),
                "explained": explained[0],
                "l0": l0[0],
                "dead": [1 - float(alive.mean()) for alive in self._alive],
                **{f"explained_{name}": explained[i] for i, name in enumerate(names, 1)},
                **{f"l0_{name}": l0[i] for i, name in enumerate(names, 1)},
            }
        )
        classes = pd.DataFrame(
            {
                "class": list(names),
                "tokens": self._count[1:].astype(np.int64),
                "explained": explained[1:].mean(axis=1),
                "l0": l0[1:].mean(axis=1),
                "top1": kept[1:],
                "kl": kl[1:],
            }
        )
        last = max(self._last, 1)
        return Figures(
            layers=layers,
            tokens=int(self._count[0]),
            top1=float(kept[0]),
            kl=float(kl[0]),
            top1_last=float(self._kept[-1] / last) if self._last else math.nan,
            kl_last=float(self._kl[-1] / last) if self._last else math.nan,
            classes=classes,
        )
