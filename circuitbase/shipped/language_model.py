"""Training the shipped model: a GPT-2 of four layers, with embeddings that stay random.

Where embeddings are learned, they absorb the first hop (the vector of "Dallas" comes to hold
"Texas"), and the features of the city have nothing to do. So the embeddings are drawn once, tied to
the unembedding, and frozen: what a city means has to be computed by the layers above it.

That alone leaves another shortcut: late MLPs that know "capital, Dallas" by heart. So a second loss
asks, at the city of every sentence, for the state or country, read off the stream after two layers
as if these were all: what stands there is then the same for all cities of a state, and the same as
what the word "Texas" brings with it.

Matrices are trained by Muon [1]_ and everything else by AdamW. Every batch is drawn from the seed
and the number of its step, so a run that was interrupted goes on where its checkpoint stands and
ends as it would have.

References
----------
.. [1] K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024):
   orthogonalised Nesterov momentum, by five Newton-Schulz steps of a quintic.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers import models as token_models
from torch import Tensor
from torch.nn import functional

from circuitbase.shipped.corpus import Corpus, Sentence

__all__ = ["LanguageModelSettings", "Muon", "make_tokenizer", "train_language_model"]

SPECIAL: Final = {"pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>"}
Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass(frozen=True)
class LanguageModelSettings:
    """How the model is made."""

    seed: int = 0
    """Of the initial weights and of every batch."""
    n_layers: int = 4
    """Transformer blocks."""
    width: int = 128
    """Of the residual stream."""
    n_heads: int = 4
    """Attention heads of each layer."""
    context: int = 32
    """Positions that the model reads at most."""
    steps: int = 2000
    """Batches to train on."""
    batch: int = 128
    """Sentences of one batch."""
    warmup: int = 50
    """Steps over which both learning rates rise; then they fall along a cosine, to zero."""
    muon_rate: float = 0.015
    """Learning rate of the matrices."""
    muon_decay: float = 0.5
    """Weight decay of the matrices, times the learning rate."""
    adam_rate: float = 3e-3
    """Learning rate of biases, norms and positions."""
    other_words: float = 0.1
    """Weight of the loss on words that are no answers."""
    early: float = 0.5
    """Weight of the loss on a city's state or country, read off its stream after `early_layers`."""
    early_layers: int = 2
    """Layers after which the state or country should be known."""
    one_hop: float = 0.15
    """Share of one-hop sentences about places in a batch."""
    two_hop: float = 0.25
    """Share of two-hop sentences about places."""
    opposites: float = 0.1
    """Share of opposites and translations, of one hop or two."""
    sums: float = 0.35
    """Share of sums; what is left are induction sentences."""
    checkpoint_every: int = 400
    """Steps between checkpoints."""


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: every matrix moves by a step whose singular values are near 1.

    Parameters
    ----------
    params
        Matrices (in, out), as GPT-2 stores them; one that is `parts` matrices side by side is
        treated as so many.
    lr, momentum, weight_decay
        Learning rate, of Nesterov momentum, and decoupled decay (times the learning rate).
    """

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": 1}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Move every matrix once."""
        moved: dict[torch.Size, list[tuple[Tensor, Tensor, float]]] = {}
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(matrix)
                momentum, beta = state["momentum"], group["momentum"]
                momentum.lerp_(matrix.grad, 1 - beta)
                update = matrix.grad.lerp(momentum, beta)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                parts = group["parts"]
                for part, step in zip(matrix.chunk(parts, 1), update.chunk(parts, 1), strict=True):
                    moved.setdefault(part.shape, []).append((part, step, group["lr"]))
        for (rows, columns), parts_ in moved.items():
            steps = orthogonalised(torch.stack([step for _, step, _ in parts_]))
            scale = math.sqrt(max(1.0, columns / rows))
            for (part, _, rate), step in zip(parts_, steps, strict=True):
                part.sub_(step, alpha=rate * scale)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Bring the singular values of every matrix (N, R, C) near 1, by five Newton-Schulz steps."""
    a, b, c = 3.4445, -4.7750, 2.0315
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * (square @ square)) @ x
    result: Tensor = x if wide else x.mT
    return result


def make_tokenizer(corpus: Corpus) -> Any:
    """Make the tokenizer: one token for each word or name of the corpus ("New York" is one).

    Returns
    -------
    transformers.PreTrainedTokenizerFast
        It puts ``<bos>`` in front. Words that it does not know become ``<unk>``; a sentence may
        begin with a capital "The".
    """
    answers = {sentence.answer for sentence in corpus.sentences}
    known = corpus.content | answers
    names = sorted((name for name in known if not name.isalnum()), key=lambda n: (-len(n), n))
    splitter = pre_tokenizers.Split(
        Regex("|".join([*(f"{_escaped(name)}(?!\\w)" for name in names), r"\w+", r"[^\w\s]"])),
        behavior="removed",
        invert=True,
    )
    words: dict[str, None] = {}
    for sentence in corpus.sentences:
        words.update((word, None) for word, _ in splitter.pre_tokenize_str(sentence.text))
    function = sorted(set(words) - known)
    vocabulary = [*SPECIAL.values(), *function, *sorted(known, key=_name_order)]
    tokenizer = Tokenizer(
        token_models.WordLevel(
            {word: number for number, word in enumerate(vocabulary)}, SPECIAL["unk_token"]
        )
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC()]
        + [normalizers.Replace(Regex(f"^{word}\\b"), word.lower()) for word in ("The", "Le", "In")]
    )
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens(list(SPECIAL.values()))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary.index("<bos>"))]
    )
    make: Any = transformers.PreTrainedTokenizerFast
    return make(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        **SPECIAL,
    )


def _escaped(name: str) -> str:
    return "".join(
        letter if letter.isalnum() or letter == " " else f"\\{letter}" for letter in name
    )


def _name_order(name: str) -> tuple[bool, int, str]:
    """Numbers by value, then names by the alphabet."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def new_model(vocabulary: int, settings: LanguageModelSettings) -> Any:
    """Make the untrained GPT-2; its embeddings are final."""
    torch.manual_seed(settings.seed)
    config = transformers.GPT2Config(
        vocab_size=vocabulary,
        n_positions=settings.context,
        n_embd=settings.width,
        n_layer=settings.n_layers,
        n_head=settings.n_heads,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=1,
        eos_token_id=1,
        use_cache=False,
        tie_word_embeddings=True,
    )
    model = transformers.GPT2LMHeadModel(config)
    embedding = model.transformer.wte.weight
    with torch.no_grad():
        # float16 from the start, so that rounding on saving leaves them as they were trained with.
        embedding.normal_(std=settings.width**-0.5)
        embedding.copy_(embedding.half().float())
    embedding.requires_grad_(False)
    return model


def train_language_model(
    corpus: Corpus,
    settings: LanguageModelSettings,
    checkpoint: Path,
    progress: Progress | None = None,
) -> Any:
    """Train the model on the sentences of the training split.

    Parameters
    ----------
    corpus
        Its sentences of the split ``train`` are the data.
    settings
        How.
    checkpoint
        Safetensors file to keep the state of training in. A run of the same settings and corpus
        goes on from it; another is begun anew.
    progress
        Called now and then with the step, all steps, and the loss and speed since the last call.

    Returns
    -------
    transformers.GPT2LMHeadModel
    """
    tokenizer = make_tokenizer(corpus)
    batches = _Batches(corpus, tokenizer, settings)
    model = new_model(len(tokenizer), settings)
    split = [block.attn.c_attn.weight for block in model.transformer.h]
    whole = [
        matrix
        for block in model.transformer.h
        for matrix in (block.attn.c_proj.weight, block.mlp.c_fc.weight, block.mlp.c_proj.weight)
    ]
    matrices = {id(matrix) for matrix in (*split, *whole)}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in matrices]
    muon = Muon(
        [{"params": split, "parts": 3}, {"params": whole}],
        lr=settings.muon_rate,
        weight_decay=settings.muon_decay,
    )
    adam = torch.optim.AdamW(rest, lr=settings.adam_rate, betas=(0.9, 0.95), weight_decay=0.0)
    optimisers = {"muon": muon, "adam": adam}
    identity = _identity(settings, corpus)
    begin = _resume(checkpoint, model, optimisers, identity)
    model.train()
    total = torch.zeros(())
    for step in range(begin, settings.steps):
        rate = _rate(step, settings)
        for optimiser in optimisers.values():
            for group in optimiser.param_groups:
                base = settings.muon_rate if optimiser is muon else settings.adam_rate
                group["lr"] = base * rate
        loss = _loss(model, batches.draw(step), settings)
        for optimiser in optimisers.values():
            optimiser.zero_grad()
        torch.autograd.backward(loss)
        for optimiser in optimisers.values():
            optimiser.step()
        total += loss.detach()
        done = step + 1
        if done % 50 == 0:
            if progress is not None:
                progress(done, settings.steps, {"loss": float(total) / 50})
            total = torch.zeros(())
        if done % settings.checkpoint_every == 0 or done == settings.steps:
            _checkpoint(checkpoint, model, optimisers, identity, done)
    return model.eval()


def _loss(model: Any, batch: _Batch, settings: LanguageModelSettings) -> Tensor:
    """Cross-entropy of what comes next, and of the states and countries of cities early on."""
    streams = model.transformer(batch.ids, output_hidden_states=True).hidden_states
    unembedding = model.lm_head.weight.T
    asked = batch.weights > 0
    each = functional.cross_entropy(
        streams[-1][asked] @ unembedding, batch.targets[asked], reduction="none"
    )
    weights = batch.weights[asked]
    loss = (each * weights).sum() / weights.sum()
    city = batch.containers > 0
    if settings.early and city.any():
        stream = model.transformer.ln_f(streams[settings.early_layers][city])
        loss = loss + settings.early * functional.cross_entropy(
            stream @ unembedding, batch.containers[city]
        )
    return loss


class _Batch(NamedTuple):
    """Padded sentences, each (batch, length): all but `weights` are token ids."""

    ids: Tensor  # what is read
    targets: Tensor  # what comes next
    weights: Tensor  # of the loss on what comes next
    containers: Tensor  # at a city: its state or country; elsewhere 0


class _Batches:
    """The sentences of each group, padded, and how many of each a batch gets."""

    def __init__(self, corpus: Corpus, tokenizer: Any, settings: LanguageModelSettings) -> None:
        self.settings = settings
        share = {
            "one_hop": settings.one_hop,
            "two_hop": settings.two_hop,
            "opposites": settings.opposites,
            "sums": settings.sums,
        }
        share["induction"] = 1 - sum(share.values())
        self.shares = list(share.values())
        groups: dict[str, list[Sentence]] = {name: [] for name in share}
        for sentence in corpus.of("train"):
            groups[_group(sentence)].append(sentence)
        containers = {
            sentence.roles["city"]: sentence.bridge or sentence.answer
            for sentence in corpus.of("train")
            if "city" in sentence.roles
        }
        self.groups = [_padded(group, containers, tokenizer, settings) for group in groups.values()]

    def draw(self, step: int) -> _Batch:
        """Draw the batch of one step."""
        chance = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + step)
        rows = []
        left = self.settings.batch
        for number, (share, group) in enumerate(zip(self.shares, self.groups, strict=True)):
            last = number == len(self.groups) - 1
            count = left if last else round(share * self.settings.batch)
            left -= count
            rows.append(group[:, torch.randint(group.shape[1], (count,), generator=chance)])
        ids, weights, containers = torch.cat(rows, 1)
        length = int((ids != 0).sum(1).max())
        return _Batch(
            ids[:, : length - 1].long(),
            ids[:, 1:length].long(),
            weights[:, 1:length],
            containers[:, : length - 1].long(),
        )


def _group(sentence: Sentence) -> str:
    if sentence.family == "sum":
        return "sums"
    if sentence.family == "induction":
        return "induction"
    if "word" in sentence.roles:
        return "opposites"
    return "one_hop" if sentence.hops == 1 else "two_hop"


def _padded(
    sentences: Sequence[Sentence],
    containers: Mapping[str, str],
    tokenizer: Any,
    settings: LanguageModelSettings,
) -> Tensor:
    """Ids, weights and containers of sentences, stacked: (3, N, context), padded with zeros."""
    stacked = torch.zeros(3, len(sentences), settings.context)
    if not sentences:
        return stacked
    ids, weights, known = stacked
    rows = tokenizer([sentence.text for sentence in sentences])["input_ids"]
    for number, (sentence, row) in enumerate(zip(sentences, rows, strict=True)):
        ids[number, : len(row)] = torch.tensor(row)
        # Of a random pattern only what repeats can be known; the rest would be noise.
        begin = int(sentence.template) + 2 if sentence.family == "induction" else 1
        weights[number, begin : len(row)] = 1.0 if begin > 1 else settings.other_words
        if "city" in sentence.roles:
            name = sentence.roles["city"]
            city = row.index(tokenizer.convert_tokens_to_ids(name))
            known[number, city] = tokenizer.convert_tokens_to_ids(containers[name])
            # What else could follow a city is not asked for: the container is the only answer
            # there, in whatever sentence the city stands.
            weights[number, city + 1] = 0.0
        weights[number, len(row) - 1] = 1.0
    return stacked


def _rate(step: int, settings: LanguageModelSettings) -> float:
    """Learning rate of a step, as a share of the highest."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    through = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * through))


def _checkpoint(
    path: Path,
    model: Any,
    optimisers: Mapping[str, torch.optim.Optimizer],
    identity: str,
    step: int,
) -> None:
    """Write weights and moments; the file is whole or is not there."""
    tensors = {f"model.{name}": value for name, value in model.named_parameters()}
    for name, optimiser in optimisers.items():
        for number, state in optimiser.state_dict()["state"].items():
            for key, value in state.items():
                tensors[f"{name}.{number}.{key}"] = value
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    contents = {name: value.detach().clone().contiguous() for name, value in tensors.items()}
    save_file(contents, beside, metadata={"step": str(step), "identity": identity})
    beside.replace(path)


def _resume(
    path: Path,
    model: Any,
    optimisers: Mapping[str, torch.optim.Optimizer],
    identity: str,
) -> int:
    """Step to go on from: that of the checkpoint, if it is of the same run, else 0."""
    if not path.exists():
        return 0
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        if metadata.get("identity") != identity:
            return 0
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"model.{name}"])
    for name, optimiser in optimisers.items():
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, _, rest = key.partition(".")
            if kind == name:
                number, _, field = rest.partition(".")
                state.setdefault(int(number), {})[field] = value
        optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return int(metadata["step"])


def _identity(settings: LanguageModelSettings, corpus: Corpus) -> str:
    """Digest of everything that the next step depends on, but the state itself."""
    told = "\n".join(f"{sentence.split} {sentence.text}" for sentence in corpus.sentences)
    whole = f"{sorted(asdict(settings).items())}\n{told}"
    return hashlib.sha256(whole.encode()).hexdigest()
