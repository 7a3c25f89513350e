"""Training of the shipped model: its optimiser, its batches, runs that are stopped and go on."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from circuitbase.shipped import language_model
from circuitbase.shipped.corpus import Corpus, make_corpus
from circuitbase.shipped.language_model import (
    LanguageModelSettings,
    Muon,
    make_tokenizer,
    train_language_model,
)

SMALL = LanguageModelSettings(
    n_layers=2, width=32, n_heads=2, steps=6, batch=16, checkpoint_every=3
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    whole = make_corpus()
    return replace(whole, sentences=whole.sentences[::40])


def test_muon_moves_by_the_orthogonal_factor() -> None:
    """First step from momentum 0: the gradient's own polar factor, nearly, for each part."""
    chance = torch.Generator().manual_seed(1)
    matrix = torch.nn.Parameter(torch.zeros(8, 24))
    known = torch.diag(torch.linspace(0.2, 1, 8))  # none too small for five steps
    parts = [_orthogonal(chance) @ known @ _orthogonal(chance) for _ in range(3)]
    gradient = torch.cat([size * part for size, part in zip((1, 5, 25), parts, strict=True)], 1)
    matrix.grad = gradient.clone()
    Muon([{"params": [matrix], "parts": 3}], lr=0.1).step()
    for moved, part in zip(matrix.detach().chunk(3, 1), parts, strict=True):
        left, _, right = torch.linalg.svd(part.double())
        step = left.T @ (-moved.double() / 0.1) @ right.T
        # The published quintic brings singular values to 0.7 … 1.2, not to 1.
        assert step.diagonal().min() > 0.6
        assert step.diagonal().max() < 1.3
        off = step - torch.diag(step.diagonal())
        assert off.abs().max() < 1e-3


def _orthogonal(chance: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(8, 8, generator=chance))[0]


@pytest.mark.parametrize(("shape", "scale"), [((8, 32), 2.0), ((32, 8), 1.0)])
def test_muon_moves_wide_outputs_further(shape: tuple[int, int], scale: float) -> None:
    """As published: times √(outputs / inputs) where there are more outputs."""
    chance = torch.Generator().manual_seed(2)
    matrix = torch.nn.Parameter(torch.zeros(shape))
    matrix.grad = torch.randn(shape, generator=chance)
    Muon([{"params": [matrix]}], lr=1.0).step()
    values = torch.linalg.svdvals(matrix.detach())
    assert values.mean() == pytest.approx(scale, rel=0.2)


def test_muon_decays_and_remembers() -> None:
    matrix = torch.nn.Parameter(torch.eye(4))
    optimiser = Muon([{"params": [matrix]}], lr=0.1, momentum=0.9, weight_decay=0.5)
    matrix.grad = torch.zeros(4, 4)
    optimiser.step()
    torch.testing.assert_close(matrix.detach(), 0.95 * torch.eye(4))
    first, second = torch.diag(torch.tensor([1.0, 2, 3, 4])), torch.ones(4, 4)
    momentum = torch.zeros(4, 4)
    for gradient in (first, second):
        matrix.grad = gradient.clone()
        before = matrix.detach().clone()
        momentum = 0.9 * momentum + 0.1 * gradient
        optimiser.step()
        nesterov = 0.1 * gradient + 0.9 * momentum
        moved = before * 0.95 - matrix.detach()
        # The step is a function of the momentum's singular vectors alone, so they commute.
        product = moved.T @ nesterov
        torch.testing.assert_close(product, product.T, atol=1e-4, rtol=1e-3)


def test_a_run_that_was_stopped_ends_as_one_run(corpus: Corpus, tmp_path: Path) -> None:
    one = train_language_model(corpus, SMALL, tmp_path / "one.safetensors").state_dict()
    _stopped(corpus, tmp_path / "two.safetensors", after=1)
    two = train_language_model(corpus, SMALL, tmp_path / "two.safetensors").state_dict()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


def _stopped(corpus: Corpus, path: Path, after: int) -> None:
    """Begin a run that is cut off when it has written so many checkpoints."""
    written = 0
    real = language_model._checkpoint

    def checkpoint(*arguments: Any) -> None:
        nonlocal written
        real(*arguments)
        written += 1
        if written == after:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language_model, "_checkpoint", checkpoint)
        with pytest.raises(KeyboardInterrupt):
            train_language_model(corpus, SMALL, path)


def test_a_checkpoint_of_another_run_is_not_gone_on_from(corpus: Corpus, tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    train_language_model(corpus, SMALL, path)
    other = replace(SMALL, muon_rate=0.01)
    again = train_language_model(corpus, other, path).state_dict()
    fresh = train_language_model(corpus, other, tmp_path / "fresh.safetensors").state_dict()
    for name, value in fresh.items():
        assert torch.equal(value, again[name]), name


def test_embeddings_stay_as_they_were_drawn(corpus: Corpus, tmp_path: Path) -> None:
    model = train_language_model(corpus, SMALL, tmp_path / "state.safetensors")
    untrained = language_model.new_model(len(make_tokenizer(corpus)), SMALL)
    drawn = untrained.transformer.wte.weight
    assert torch.equal(model.transformer.wte.weight, drawn)
    assert torch.equal(drawn.half().float(), drawn)
    assert float(drawn.std()) == pytest.approx(1 / math.sqrt(SMALL.width), rel=0.05)
    trained, before = model.transformer.h[0].mlp.c_fc.weight, untrained.transformer.h[0].mlp
    assert not torch.equal(trained, before.c_fc.weight)


def test_the_loss_agrees_with_one_summed_up_word_by_word(corpus: Corpus) -> None:
    tokenizer = make_tokenizer(corpus)
    model = language_model.new_model(len(tokenizer), SMALL).double()
    batch = language_model._Batches(corpus, tokenizer, SMALL).draw(0)
    batch = batch._replace(weights=batch.weights.double())
    settings = replace(SMALL, early=0.5, early_layers=1)
    with torch.no_grad():
        found = float(language_model._loss(model, batch, settings))
        final = model(batch.ids).logits
        body = model.transformer
        x = body.wte(batch.ids) + body.wpe(torch.arange(batch.ids.shape[1]))
        early = body.ln_f(body.h[0](x)) @ model.lm_head.weight.T
    next_word = weights = containers = cities = 0.0
    for row in range(batch.ids.shape[0]):
        for at in range(batch.ids.shape[1]):
            weight, known = float(batch.weights[row, at]), int(batch.containers[row, at])
            logs = final[row, at] - final[row, at].logsumexp(0)
            next_word -= weight * float(logs[batch.targets[row, at]])
            weights += weight
            if known:
                logs = early[row, at] - early[row, at].logsumexp(0)
                containers -= float(logs[known])
                cities += 1
    assert cities
    assert found == pytest.approx(next_word / weights + 0.5 * containers / cities, rel=1e-9)


def test_nothing_held_out_is_in_a_batch(corpus: Corpus) -> None:
    tokenizer = make_tokenizer(corpus)
    batches = language_model._Batches(corpus, tokenizer, SMALL)
    held_out = {sentence.text for sentence in corpus.of("held_out")}
    trained = {sentence.text: sentence for sentence in corpus.of("train")}
    seen = set()
    for step in range(30):
        ids, targets, weights, containers = batches.draw(step)
        assert ids.shape == targets.shape == weights.shape == containers.shape
        assert torch.equal(ids[:, 1:], targets[:, :-1])
        for row, target, weight, known in zip(ids, targets, weights, containers, strict=True):
            whole = [*row.tolist(), int(target[-1])]
            words = [word for word in whole if word != tokenizer.pad_token_id]
            text = tokenizer.decode(words[1:])
            seen.add(text)
            sentence = trained[text]
            if "city" in sentence.roles:
                at = words.index(tokenizer.convert_tokens_to_ids(sentence.roles["city"]))
                container = sentence.bridge or sentence.answer
                assert tokenizer.convert_ids_to_tokens(int(known[at])) == container
                assert weight[at] == (at == len(words) - 2)  # what else could follow is not asked
                known[at] = 0
            assert not known.any()
            assert weight[len(words) - 2] == 1
            assert weight[len(words) - 1 :].sum() == 0
    assert seen
    assert not seen & held_out
