"""Making of everything that ships, in small: files, figures, card, and going on after a stop."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import tracer
from circuitbase.shipped import making
from circuitbase.shipped.checks import group_of
from circuitbase.shipped.corpus import Corpus, make_corpus
from circuitbase.shipped.language_model import LanguageModelSettings, make_tokenizer

STEPS = 40
MODEL = LanguageModelSettings(n_layers=2, width=32, n_heads=2, steps=STEPS, batch=32)
CLT = making.CLT_SETTINGS.changed(features=64, k=4.0, steps=STEPS, batch=128)


@pytest.fixture(scope="module")
def small() -> Corpus:
    whole = make_corpus()
    return replace(whole, sentences=whole.sentences[::41])


@pytest.fixture(scope="module")
def made(
    small: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, dict[str, Any]]:
    out, work = tmp_path_factory.mktemp("out"), tmp_path_factory.mktemp("work")
    return out, work, _make(small, out, work)


def _make(corpus: Corpus, out: Path, work: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "make_corpus", lambda seed: corpus)
        patch.setattr(making, "GRAPHS", 1)
        return making.make(
            out,
            work,
            language_model=MODEL,
            clt=CLT,
            plt=CLT.changed(kind="plt"),
        )


def test_all_of_it_is_written(made: tuple[Path, Path, dict[str, Any]]) -> None:
    out, _, figures = made
    assert json.loads((out / "figures.json").read_text("utf-8")) == json.loads(json.dumps(figures))
    model = tracer.load_model(out / "model")
    for kind in ("clt", "plt"):
        assert tracer.load_transcoder(out / kind).kind == kind
        found = figures["transcoders"][kind]
        assert len(found["layers"]) == model.n_layers
        assert found["graphs"]["all"]["prompts"] == len(found["graphs"]) - 1
    card = (out / "MODEL_CARD.md").read_text("utf-8")
    for line in (
        f"{figures['parameters']:,} parameters",
        f"| two-hop, held out | {figures['sentences']['two-hop, held out']:,} |",
        f"{figures['without_city_mlps']:.3f} of the trained two-hop capitals",
        f"{STEPS:,} batches of {MODEL.batch} sentences",
    ):
        assert line in card


def test_a_finished_run_is_not_made_again(
    made: tuple[Path, Path, dict[str, Any]], small: Corpus, tmp_path: Path
) -> None:
    _, work, figures = made
    again = _make(small, tmp_path, work)
    for name in ("accuracy", "families", "without_city_mlps", "transcoders", "bytes"):
        assert again[name] == figures[name], name
    assert again["seconds"]["model"] >= figures["seconds"]["model"]


def test_graphs_are_of_every_group_alike(small: Corpus) -> None:
    whole = make_corpus()
    chosen = making.traced_prompts(whole)
    assert chosen == making.traced_prompts(whole)
    groups = [group_of(sentence) for sentence in chosen]
    assert {groups.count(group) for group in groups} == {making.GRAPHS}
    assert set(groups) == {group_of(sentence) for sentence in whole.sentences}


def test_every_token_but_the_first_has_a_class(small: Corpus) -> None:
    made = make_tokenizer(small)

    class Asked:
        tokenizer = made

    tokens = making.token_corpus(Asked(), small)  # type: ignore[arg-type]
    trained = small.of("train")
    assert len(tokens) == len(trained)
    assert set(tokens.class_names) == {"function", "content", "answer"}
    assert tokens.classes is not None
    for number, sentence in enumerate(trained):
        classes = tokens.classes[tokens.starts[number] : tokens.starts[number + 1]]
        assert len(classes) == len(made(sentence.prompt)["input_ids"])
        assert tokens.class_names[classes[-1]] == "answer"
        assert [tokens.class_names[c] for c in classes[1:]].count("answer") == 1
