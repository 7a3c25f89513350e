"""What the shipped model knows, through what, and how much of it its transcoders keep.

Accuracies; the MLPs at the city taken away; and, for a transcoder, explained variance and what is
left of the answers when all MLPs are replaced by it. What the MLPs write at BOS stays in every
case, as in the local replacement model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from circuitbase.shipped.corpus import Corpus, Sentence
from tracer.transcoders import Transcoder

__all__ = [
    "accuracies",
    "answered",
    "capitals_without_city_mlps",
    "group_of",
    "reconstruction",
    "replacement",
    "token_classes",
    "unmirrored_sums",
]

CAPITALS: Final = ("city-state-capital", "city-country-capital")
FUNCTION, CONTENT, ANSWER = 0, 1, 2
_BATCH: Final = 512
Hook = Callable[[int, Tensor, Tensor], Tensor | None]


def group_of(sentence: Sentence) -> str:
    """Group that figures are given for: hops (or sums, induction), and whether held out."""
    kind = {0: sentence.family, 1: "one-hop", 2: "two-hop"}[sentence.hops]
    return f"{kind}, held out" if sentence.split == "held_out" else kind


def answered(module: Any, tokenizer: Any, sentences: Sequence[Sentence]) -> Tensor:
    """Whether the likeliest next word is the answer, for every sentence.

    Parameters
    ----------
    module, tokenizer
        Language model and tokenizer of transformers.
    sentences
        Their prompts are asked, with BOS in front.

    Returns
    -------
    Tensor
        Booleans, in the order of `sentences`.
    """
    right = torch.zeros(len(sentences), dtype=torch.bool)
    for rows, ids, last in batches(tokenizer, sentences):
        right[rows] = _final(module, ids, last).argmax(-1) == _answers(tokenizer, sentences, rows)
    return right


def accuracies(module: Any, tokenizer: Any, corpus: Corpus) -> pd.DataFrame:
    """Accuracy of every family and split.

    Returns
    -------
    DataFrame
        Columns ``group`` (as :func:`group_of`), ``family``, ``hops``, ``split``, ``sentences``,
        ``right``, ``accuracy``; trained families first.
    """
    sentences = corpus.sentences
    frame = pd.DataFrame(
        {
            "group": [group_of(sentence) for sentence in sentences],
            "family": [sentence.family for sentence in sentences],
            "hops": [sentence.hops for sentence in sentences],
            "split": [sentence.split for sentence in sentences],
            "right": answered(module, tokenizer, sentences).numpy(),
        }
    )
    grouped = frame.groupby(["group", "family", "hops", "split"], sort=False)["right"]
    table = grouped.agg(sentences="size", right="sum").reset_index()
    table["accuracy"] = table["right"] / table["sentences"]
    order = table.sort_values(["split", "hops"], kind="stable", ascending=[False, True])
    return order.reset_index(drop=True)


def unmirrored_sums(module: Any, tokenizer: Any, corpus: Corpus) -> float:
    """Accuracy on held-out sums i + j of which j + i was not trained on either."""
    trained = {_summands(sentence) for sentence in corpus.of("train", family="sum")}
    unseen = [
        sentence
        for sentence in corpus.of("held_out", family="sum")
        if _summands(sentence)[::-1] not in trained
    ]
    return float(answered(module, tokenizer, unseen).double().mean())


def capitals_without_city_mlps(
    module: Any, tokenizer: Any, corpus: Corpus, layers: Iterable[int] | None = None
) -> float:
    """Accuracy on trained two-hop capitals when the MLPs at the city write their mean there.

    The mean is over the city's position of all those prompts, for each kind of capital alone. If
    the first hop is computed by these MLPs, hardly any capital is left.

    Parameters
    ----------
    module, tokenizer
        Language model and tokenizer of transformers.
    corpus
        Its trained sentences that ask for the capital of a city's state or country are asked.
    layers
        Whose MLPs; None for all.
    """
    blocks = module.transformer.h
    chosen = set(range(len(blocks)) if layers is None else layers)
    hits = asked = 0
    for family in CAPITALS:
        sentences = corpus.of("train", family=family)
        city = torch.tensor([_position(tokenizer, sentence, "city") for sentence in sentences])
        means = torch.zeros(len(blocks), module.config.n_embd)
        for rows, ids, last in batches(tokenizer, sentences):
            at = (torch.arange(len(rows)), city[rows])

            def add(layer: int, _read: Tensor, output: Tensor, at: Any = at) -> None:
                means[layer] += output[at].sum(0) / len(sentences)  # noqa: B023

            with _hooked(module, add):
                _final(module, ids, last)
        for rows, ids, last in batches(tokenizer, sentences):
            at = (torch.arange(len(rows)), city[rows])

            def put(layer: int, _read: Tensor, output: Tensor, at: Any = at) -> Tensor | None:
                if layer not in chosen:
                    return None
                output = output.clone()
                output[at] = means[layer]  # noqa: B023
                return output

            with _hooked(module, put):
                logits = _final(module, ids, last)
            hits += int((logits.argmax(-1) == _answers(tokenizer, sentences, rows)).sum())
        asked += len(sentences)
    return hits / asked


def token_classes(
    tokenizer: Any, corpus: Corpus, sentence: Sentence
) -> tuple[list[int], list[int]]:
    """Token ids of a prompt, BOS first, and the class of each: function word, content, answer.

    The answer's class is that of the last token of the prompt, where the answer is made. BOS
    counts as a function word.
    """
    ids: list[int] = tokenizer(sentence.prompt)["input_ids"]
    words = tokenizer.convert_ids_to_tokens(ids)
    classes = [CONTENT if word in corpus.content else FUNCTION for word in words]
    classes[-1] = ANSWER
    return ids, classes


def reconstruction(
    module: Any,
    tokenizer: Any,
    transcoder: Transcoder,
    corpus: Corpus,
    sentences: Sequence[Sentence] | None = None,
) -> pd.DataFrame:
    """Explained variance, L0 and dead features of a transcoder, layer by layer.

    Parameters
    ----------
    module, tokenizer
        Language model and tokenizer of transformers.
    transcoder
        Its transcoder, which reads ``hook_resid_mid`` and writes ``hook_mlp_out``.
    corpus
        Says which words are content.
    sentences
        Whose prompts; None for all of the corpus. BOS is left out.

    Returns
    -------
    DataFrame
        Rows are layers. ``explained``: 1 − Σ‖y − ŷ‖² / Σ‖y − ȳ‖² over all positions;
        ``explained_content``: over content words and answers; ``explained_answers``: over answers;
        ``l0``, ``l0_content``: active features a position; ``dead``: share of features that are
        active nowhere.
    """
    sentences = corpus.sentences if sentences is None else sentences
    read, written, classes = _recorded(module, tokenizer, corpus, sentences)
    n_layers = len(read)
    active = [
        torch.cat([transcoder.encode(layer, x) for x in torch.split(read[layer], 4096)])
        for layer in range(n_layers)
    ]
    decoded = torch.stack(
        [transcoder.decoder_bias(layer).expand_as(written[layer]) for layer in range(n_layers)]
    ).clone()
    for layer, a in enumerate(active):
        rows = transcoder.decoder_rows(layer, torch.arange(a.shape[1]))
        for number, target in enumerate(transcoder.targets(layer)):
            decoded[target] += a @ rows[:, number]
    table = pd.DataFrame(index=pd.RangeIndex(n_layers, name="layer"))
    chosen = {
        "": classes >= FUNCTION,
        "_content": classes >= CONTENT,
        "_answers": classes == ANSWER,
    }
    for name, rows in chosen.items():
        y, error = written[:, rows], written[:, rows] - decoded[:, rows]
        spread = (y - y.mean(1, keepdim=True)).double().pow(2).sum((1, 2))
        table[f"explained{name}"] = (1 - error.double().pow(2).sum((1, 2)) / spread).numpy()
    for name in ("", "_content"):
        table[f"l0{name}"] = [float((a[chosen[name]] > 0).sum(1).double().mean()) for a in active]
    table["dead"] = [float((~(a > 0).any(0)).double().mean()) for a in active]
    return table


def replacement(
    module: Any, tokenizer: Any, transcoder: Transcoder, sentences: Sequence[Sentence]
) -> pd.DataFrame:
    """Compare the model's answers with those it gives when every MLP is replaced by the transcoder.

    Returns
    -------
    DataFrame
        One row a sentence, in order: ``group``, ``family``, ``trained`` (whether it is of the
        training split); ``kept``: whether the likeliest next word stays the same; ``kl``: KL
        divergence, in nats, of the replacement's next word from the model's.
    """
    n_layers = len(module.transformer.h)
    decoders = [
        transcoder.decoder_rows(layer, torch.arange(transcoder.features(layer)))
        for layer in range(n_layers)
    ]
    biases = [transcoder.decoder_bias(layer) for layer in range(n_layers)]
    kept = torch.zeros(len(sentences), dtype=torch.bool)
    kl = torch.zeros(len(sentences))
    for rows, ids, last in batches(tokenizer, sentences):
        true = _final(module, ids, last).log_softmax(-1)
        active: list[Tensor] = []

        def replace(layer: int, read: Tensor, output: Tensor, active: Any = active) -> Tensor:
            flat = transcoder.encode(layer, read.flatten(0, 1))
            active.append(flat)
            decoded = biases[layer].expand(len(flat), -1)
            for source, a in enumerate(active):
                if layer in transcoder.targets(source):
                    number = transcoder.targets(source).index(layer)
                    decoded = decoded + a @ decoders[source][:, number]
            decoded = decoded.reshape(output.shape).clone()
            decoded[:, 0] = output[:, 0]
            return decoded

        with _hooked(module, replace):
            replaced = _final(module, ids, last).log_softmax(-1)
        kept[rows] = replaced.argmax(-1) == true.argmax(-1)
        divergence = functional.kl_div(replaced, true, log_target=True, reduction="none")
        kl[rows] = divergence.sum(-1)
    return pd.DataFrame(
        {
            "group": [group_of(sentence) for sentence in sentences],
            "family": [sentence.family for sentence in sentences],
            "trained": [sentence.split == "train" for sentence in sentences],
            "kept": kept.numpy(),
            "kl": kl.numpy(),
        }
    )


def batches(
    tokenizer: Any, sentences: Sequence[Sentence]
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Prompts in padded batches: rows of `sentences`, ids (N, P), last position of each (N,)."""
    for begin in range(0, len(sentences), _BATCH):
        some = sentences[begin : begin + _BATCH]
        encoded = tokenizer([sentence.prompt for sentence in some])["input_ids"]
        last = torch.tensor([len(row) - 1 for row in encoded])
        ids = torch.full((len(some), int(last.max()) + 1), tokenizer.pad_token_id)
        for row, tokens in zip(ids, encoded, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        yield torch.arange(begin, begin + len(some)), ids, last


def _final(module: Any, ids: Tensor, last: Tensor) -> Tensor:
    """Logits at the last position of each prompt; what pads it comes after and is not seen."""
    with torch.no_grad():
        streams = module.transformer(ids).last_hidden_state
        logits: Tensor = module.lm_head(streams[torch.arange(len(ids)), last])
    return logits


def _answers(tokenizer: Any, sentences: Sequence[Sentence], rows: Tensor) -> Tensor:
    return torch.tensor(
        tokenizer.convert_tokens_to_ids([sentences[row].answer for row in rows.tolist()])
    )


def _summands(sentence: Sentence) -> tuple[str, str]:
    return sentence.roles["first"], sentence.roles["second"]


def _position(tokenizer: Any, sentence: Sentence, role: str) -> int:
    wanted = tokenizer.convert_tokens_to_ids(sentence.roles[role])
    return int(tokenizer(sentence.prompt)["input_ids"].index(wanted))


@contextmanager
def _hooked(module: Any, hook: Hook) -> Iterator[None]:
    """Call ``hook(layer, read, written)`` at every MLP; a tensor that it returns is written."""
    read: dict[int, Tensor] = {}
    handles = []
    for layer, block in enumerate(module.transformer.h):

        def remember(_norm: Any, inputs: Any, layer: int = layer) -> None:
            read[layer] = inputs[0]

        def call(_mlp: Any, _inputs: Any, output: Tensor, layer: int = layer) -> Tensor | None:
            with torch.no_grad():
                return hook(layer, read[layer], output)

        handles.append(block.ln_2.register_forward_pre_hook(remember))
        handles.append(block.mlp.register_forward_hook(call))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _recorded(
    module: Any, tokenizer: Any, corpus: Corpus, sentences: Sequence[Sentence]
) -> tuple[Tensor, Tensor, Tensor]:
    """Record what MLPs read and write (L, N, d), and the class (N,) of each token but BOS."""
    n_layers = len(module.transformer.h)
    read: list[list[Tensor]] = [[] for _ in range(n_layers)]
    written: list[list[Tensor]] = [[] for _ in range(n_layers)]
    classes: list[int] = []
    for rows, ids, last in batches(tokenizer, sentences):
        positions = torch.arange(ids.shape[1])
        inside = (positions > 0) & (positions <= last[:, None])

        def keep(layer: int, x: Tensor, y: Tensor, inside: Tensor = inside) -> None:
            read[layer].append(x[inside])
            written[layer].append(y[inside])

        with _hooked(module, keep):
            _final(module, ids, last)
        for row in rows.tolist():
            classes += token_classes(tokenizer, corpus, sentences[row])[1][1:]
    join = [torch.stack([torch.cat(layer) for layer in both]) for both in (read, written)]
    return join[0], join[1], torch.tensor(classes)
