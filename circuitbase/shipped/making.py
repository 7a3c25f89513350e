"""Making everything that ships: ``python -m circuitbase.shipped.making``, or ``make model``.

The corpus, the language model, a cross-layer transcoder and a per-layer one of the same size and
sparsity, all figures, and the model card that quotes them. Everything follows from the seed. What
is finished is kept in a folder for the work, so that a run which was stopped goes on.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

import click
import torch

import tracer
from circuitbase.shipped import DATA
from circuitbase.shipped.card import model_card
from circuitbase.shipped.checks import (
    accuracies,
    capitals_without_city_mlps,
    group_of,
    reconstruction,
    replacement,
    token_classes,
    unmirrored_sums,
)
from circuitbase.shipped.corpus import Corpus, Sentence, make_corpus
from circuitbase.shipped.language_model import (
    LanguageModelSettings,
    make_tokenizer,
    train_language_model,
)
from tracer.corpora import Corpus as TokenCorpus
from tracer.models import Model
from tracer.training import TrainSettings, evaluate, train
from tracer.transcoders import Transcoder

__all__ = ["CLT_SETTINGS", "PLT_SETTINGS", "main", "make", "token_corpus", "traced_prompts"]

CLASSES: Final = ("function", "content", "answer")  # by number, as token_classes gives them
CLT_SETTINGS: Final = TrainSettings(
    kind="clt",
    features=1024,
    activation="batchtopk",
    k=15.0,
    across_layers=True,
    steps=2000,
    batch=1024,
    learning_rate=2e-3,
    auxiliary=0.3,
    mix={"answer": 0.45, "content": 0.35, "function": 0.20},
)
PLT_SETTINGS: Final = CLT_SETTINGS.changed(kind="plt")
GRAPHS: Final = 9  # traced prompts of each group
Say = Callable[[str], None]


def make(
    out: Path,
    work: Path,
    *,
    seed: int = 0,
    language_model: LanguageModelSettings | None = None,
    clt: TrainSettings = CLT_SETTINGS,
    plt: TrainSettings = PLT_SETTINGS,
    say: Say = lambda _: None,
) -> dict[str, Any]:
    """Make model, transcoders, figures and card.

    Parameters
    ----------
    out
        Folder that gets ``model``, ``clt``, ``plt``, ``figures.json`` and ``MODEL_CARD.md``.
    work
        Folder for checkpoints; a run that was stopped goes on from there.
    seed
        Of the corpus, the model and the transcoders.
    language_model, clt, plt
        Settings; their seeds are replaced.
    say
        Called with lines on how it goes.

    Returns
    -------
    dict
        The figures, as in ``figures.json``.
    """
    for folder in (out, work):
        folder.mkdir(parents=True, exist_ok=True)
    settings = replace(language_model or LanguageModelSettings(), seed=seed)
    kinds = {"clt": clt.changed(seed=seed), "plt": plt.changed(seed=seed)}
    watch = _Stopwatch(work / "seconds.json", say)
    corpus = make_corpus(seed)
    with watch("model"):
        _make_language_model(corpus, settings, out / "model", work, say)
    model = tracer.load_model(out / "model")
    tokens = token_corpus(model, corpus)
    for kind, chosen in kinds.items():
        with watch(kind):
            _make_transcoder(model, tokens, chosen, out / kind, work / kind, say)
    with watch("figures"):
        figures = _figures(model, corpus, tokens, out)
    figures |= {
        "seed": seed,
        "seconds": watch.seconds,
        "bytes": {
            name: sum(path.stat().st_size for path in (out / name).rglob("*") if path.is_file())
            for name in ("model", *kinds)
        },
        "settings": {
            "model": asdict(settings),
            **{kind: asdict(chosen) for kind, chosen in kinds.items()},
        },
    }
    (out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    (out / "MODEL_CARD.md").write_text(model_card(figures, corpus), "utf-8")
    return figures


class _Stopwatch:
    """Seconds that each part took, carried over from runs that were stopped."""

    def __init__(self, path: Path, say: Say) -> None:
        self.path, self.say = path, say
        self.seconds: dict[str, float] = {}
        if path.exists():
            self.seconds = json.loads(path.read_text("utf-8"))

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.monotonic()
        try:
            yield
        finally:
            taken = time.monotonic() - begin
            self.seconds[name] = self.seconds.get(name, 0.0) + taken
            self.path.write_text(json.dumps(self.seconds), "utf-8")
            self.say(f"{name}: {taken:.0f} s")


def token_corpus(model: Model, corpus: Corpus) -> TokenCorpus:
    """Prompts of the training split as tokens, each with its class, for the transcoders."""
    ids, classes = [], []
    for sentence in corpus.of("train"):
        tokens, numbers = token_classes(model.tokenizer, corpus, sentence)
        ids.append(tokens)
        classes.append(["", *(CLASSES[number] for number in numbers[1:])])  # BOS has none
    return TokenCorpus.of(ids, classes, name="the shipped corpus")


def _make_language_model(
    corpus: Corpus, settings: LanguageModelSettings, out: Path, work: Path, say: Say
) -> None:
    def progress(step: int, steps: int, figures: Mapping[str, float]) -> None:
        if step % 200 == 0:
            say(f"model: step {step:,} of {steps:,}, loss {figures['loss']:.3f}")

    module = train_language_model(corpus, settings, work / "model.safetensors", progress)
    module.half().save_pretrained(out)
    make_tokenizer(corpus).save_pretrained(out)


def _make_transcoder(
    model: Model, tokens: TokenCorpus, settings: TrainSettings, out: Path, work: Path, say: Say
) -> None:
    def progress(step: int, row: Mapping[str, float] | None) -> None:
        if row is not None and step % 250 == 0:
            say(
                f"{settings.kind}: step {step:,} of {settings.steps:,}, "
                f"explained {row['explained']:.3f}, L0 {row['l0']:.1f}, dead {row['dead']:.2f}"
            )

    train(
        model,
        tokens,
        settings,
        out,
        progress=progress,
        dtype=torch.float16,
        name=settings.kind,
        work=work,
    )


def _figures(model: Model, corpus: Corpus, tokens: TokenCorpus, out: Path) -> dict[str, Any]:
    """Everything measured, on the files as they were saved."""
    module, tokenizer = model.module, model.tokenizer
    table = accuracies(module, tokenizer, corpus)
    groups = table.groupby("group")[["right", "sentences"]].sum()
    found: dict[str, Any] = {
        "parameters": sum(p.numel() for p in module.parameters()),
        "vocabulary": model.vocab_size,
        "sentences": groups["sentences"].to_dict(),
        "accuracy": (groups["right"] / groups["sentences"]).to_dict(),
        "families": table.drop(columns="right").to_dict("records"),
        "without_city_mlps": capitals_without_city_mlps(module, tokenizer, corpus),
        "unmirrored_sums": unmirrored_sums(module, tokenizer, corpus),
        "transcoders": {},
    }
    traced = traced_prompts(corpus)
    for kind in ("clt", "plt"):
        transcoder = tracer.load_transcoder(out / kind)
        quality = reconstruction(module, tokenizer, transcoder, corpus)
        kept = replacement(module, tokenizer, transcoder, corpus.sentences)
        found["transcoders"][kind] = {
            "layers": quality.reset_index().to_dict("records"),
            "kept": kept.groupby("group")["kept"].mean().to_dict(),
            "kl": kept.groupby("group")["kl"].mean().to_dict(),
            "kept_families": kept[kept["trained"]].groupby("family")["kept"].mean().to_dict(),
            "graphs": _graphs(model, transcoder, tokens, traced),
        }
    return found


def traced_prompts(corpus: Corpus) -> list[Sentence]:
    """Sentences whose graphs the two transcoders are compared by: as many of each group."""
    chance = random.Random(corpus.seed)  # noqa: S311 - reproducible, not secret
    groups: dict[str, list[Sentence]] = {}
    for sentence in corpus.sentences:
        groups.setdefault(group_of(sentence), []).append(sentence)
    return [s for group in groups.values() for s in chance.sample(group, min(GRAPHS, len(group)))]


def _graphs(
    model: Model, transcoder: Transcoder, tokens: TokenCorpus, sentences: list[Sentence]
) -> dict[str, dict[str, float]]:
    """Mean figures of the unpruned graphs: of all these prompts, and of each group."""
    prompts = [sentence.prompt for sentence in sentences]
    graphs = evaluate(model, transcoder, tokens, tokens=1024, prompts=prompts).graphs
    columns = ["mean_path_length", "completeness", "replacement", "features"]
    graphs["group"] = graphs["prompt"].map({s.prompt: group_of(s) for s in sentences})
    parts = {"all": graphs, **{str(group): some for group, some in graphs.groupby("group")}}
    return {
        name: {"prompts": len(some), **{c: float(some[c].mean()) for c in columns}}
        for name, some in parts.items()
    }


@click.command()
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=DATA,
    help="Folder of the results; without it, where they ship.",
)
@click.option(
    "--work",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(".cache/shipped"),
    show_default=True,
    help="Folder of checkpoints, from which a run that was stopped goes on.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=2, show_default=True)
def main(out: Path, work: Path, seed: int, threads: int) -> None:
    """Make the shipped model, its transcoders, all figures and the model card."""
    torch.set_num_threads(threads)
    figures = make(out, work, seed=seed, say=click.echo)
    for group, accuracy in figures["accuracy"].items():
        click.echo(f"{group}: {accuracy:.3f}")
    click.echo(f"made in {out}; the figures are in {out / 'MODEL_CARD.md'}")


if __name__ == "__main__":
    main()
