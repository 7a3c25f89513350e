"""The demonstration: run once on few prompts, and what it tells checked on numbers."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import graphstore
import queries
import tracer
from circuitbase.cli import cli
from circuitbase.demo import CHAPTERS, Story, Telling, choose_prompts, fill, filling
from circuitbase.demo.prompts import prompts_of
from circuitbase.page import Page
from circuitbase.shipped import CLT, MODEL, PLT
from circuitbase.shipped.classes import word_classes
from tracer.corpora import Corpus

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (MODEL / "config.json").exists(), reason="the model is not made yet"),
]

LIMIT = 3
# Stored and recomputed values are float64 sums over float32 edges, in another order.
CLOSE = 1e-6


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A story told once, and the graphs it should be of, traced anew."""
    patch = pytest.MonkeyPatch()
    patch.setattr(filling, "text_corpus", some_sentences)
    folder = tmp_path_factory.mktemp("demo")
    model, transcoder = tracer.load_model(MODEL), tracer.load_transcoder(CLT, lazy=False)
    sets = choose_prompts(LIMIT)
    page = Page("t")
    with graphstore.connect(folder / "demo.db") as store:
        seen: list[tuple[int, int]] = []
        ids = fill(store, model, transcoder, sets, lambda *done: seen.append(done))
        described = filling.describe(store, model, transcoder)
        story = Story(store, model, transcoder, sets, Telling(page, terminal=False), ids)
        story.tell_all(CHAPTERS)
        full = {
            prompt.id: tracer.trace(model, transcoder, prompt.prompt, parts=True)
            for prompts in sets.values()
            for prompt in prompts
        }
        yield SimpleNamespace(
            story=story,
            store=store,
            page=page,
            folder=folder,
            seen=seen,
            described=described,
            full=full,
            graphs={name: filling.pruned(graph) for name, graph in full.items()},
        )
    patch.undo()


def some_sentences(model) -> Corpus:
    """Every sixth sentence, and all about Texas: enough for labels that one can read."""
    from circuitbase.shipped.corpus import make_corpus

    sentences = make_corpus().sentences
    chosen = [s for i, s in enumerate(sentences) if i % 6 == 0 or "Texas" in (s.answer, s.bridge)]
    return Corpus.of([model.tokenize(s.prompt) for s in chosen], name="some of it")


def of(told, name):
    """Graphs of a set, in the order of its prompts."""
    return [told.graphs[p.id] for p in prompts_of(told.story.sets, name)]


def features(graph) -> set[str]:
    return {name for name in graph.feature_ids if name is not None}


def test_the_prompts_cover_the_families():
    sets = choose_prompts()
    assert 55 <= sum(map(len, sets.values())) <= 75
    assert {"two-hop/of", "one-hop/city", "one-hop/capital", "opposites", "sums"} <= set(sets)
    for name, prompts in sets.items():
        assert len(prompts) >= 4, name
        assert len({p.id for p in prompts}) == len(prompts)
        assert all(p.metadata["answer"] for p in prompts)


def test_everything_is_stored_in_its_set(told):
    total = sum(map(len, told.story.sets.values()))
    assert told.seen[-1] == (total, total)
    assert len(told.store.graphs()) == total
    for name, prompts in told.story.sets.items():
        assert set(told.store.graphs(name)["graph_id"]) == {told.story.ids[p.id] for p in prompts}
    assert told.described == len(set().union(*map(features, told.graphs.values())))
    assert told.store.verify().empty


def test_a_second_run_does_nothing_twice(told, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("it is there already")

    monkeypatch.setattr("tracer.many.trace", refuse)
    monkeypatch.setattr(filling, "describe_features", refuse)
    story = told.story
    assert fill(told.store, story.model, story.transcoder, story.sets) == dict(story.ids)
    assert filling.describe(told.store, story.model, story.transcoder) == 0


def test_another_graph_of_the_same_slug_does_not_stop_the_story(told):
    story = told.story
    assert story.hero_name == story.hero.name
    told.store.write(told.store.read(story.hero_id).replace(graph_id="0" * 16))
    try:
        again = Story(told.store, story.model, story.transcoder, story.sets, story.tell, story.ids)
        assert again.hero_name == story.hero_id
    finally:
        told.store.delete("0" * 16)


def test_the_overview_counts(told):
    for name, row in told.story.findings["sets"].items():
        prompts = told.story.sets[name]
        full = [told.full[p.id] for p in prompts]
        right = [
            str(g.nodes["token"].iloc[int(np.argmax(g.logit_weights))]).strip()
            == p.metadata["answer"]
            for g, p in zip(full, prompts, strict=True)
        ]
        assert (row["prompts"], row["answered"]) == (len(prompts), sum(right))
        expected = [tracer.scores(g, "full") for g in full]
        assert row["replacement"] == pytest.approx(
            np.mean([s.replacement for s in expected]), abs=CLOSE
        )
        assert row["path_length"] == pytest.approx(
            np.mean([s.mean_path_length for s in expected]), abs=CLOSE
        )


def test_the_answer_is_austin_and_two_hops_are_longer(told):
    found = told.story.findings
    assert found["answer"] == "Austin"
    assert found["probability"] > 0.5
    for name in ("two-hop", "one-hop/capital"):
        lengths = [
            tracer.mean_path_length(told.full[p.id]) for p in prompts_of(told.story.sets, name)
        ]
        assert found["path_lengths"][name] == pytest.approx(np.mean(lengths), abs=CLOSE)
    assert found["path_lengths"]["two-hop"] > found["path_lengths"]["one-hop/capital"] + 0.1


def test_the_path_read_aloud(told):
    found = told.story.findings
    graph = told.graphs[told.story.hero.id]
    shares = tracer.normalised(graph)
    path = found["path"]
    rows = [graph.node_ids.index(node) for node in path["nodes"]]
    product = np.prod([shares[t, s] for s, t in pairwise(rows)])
    assert path["strength"] == pytest.approx(product, rel=1e-5)
    assert graph.is_embedding[rows[0]]
    assert graph.tokens[graph.nodes["position"].iloc[rows[0]]] == "Dallas"
    assert graph.is_logit[rows[-1]]
    assert len(rows) >= 4
    labels = queries.features(told.store, [graph.graph_id], limit=10_000)
    by_id = dict(zip(labels["feature_id"], labels["label"], strict=True))
    told_labels = [f"[{by_id[graph.feature_ids[row]]}]" for row in rows[1:-1]]
    assert path["labels"] == told_labels
    assert any("Texas" in label for label in told_labels)
    # No path of the list is stronger than the best way by dynamic programming.
    best = max_product(shares, rows[0], rows[-1])
    assert max(p["strength"] for p in found["paths"]) == pytest.approx(best, rel=1e-5)


def max_product(shares, source, target):
    """The largest product over all paths, by relaxation."""
    value = np.zeros(shares.shape[0])
    value[source] = 1.0
    dense = shares.toarray()
    for _ in range(dense.shape[0]):
        reached = np.maximum(value, (dense * value).max(axis=1))
        if np.array_equal(reached, value):
            break
        value = reached
    return value[target]


def test_the_groups(told):
    found, graph = told.story.findings["groups"], told.graphs[told.story.hero.id]
    shares = tracer.normalised(graph).toarray()
    stored = told.store.read(graph.graph_id).supernodes
    members = {node.name: list(node.members) for node in stored}
    assert {name: len(rows) for name, rows in members.items()} == found["sizes"]
    for (source, target), share in found["edges"].items():
        inside = members[target]
        outside = shares[inside].sum(axis=1) - shares[np.ix_(inside, inside)].sum(axis=1)
        from_source = shares[np.ix_(inside, members[source])].sum(axis=1)
        expected = (outside * from_source).sum() / outside.sum()
        assert share == pytest.approx(expected, rel=1e-5)
    city, texas, *_ = found["sizes"]
    assert found["edges"][city, texas] > 0.1
    # What is called Texas speaks of Texas.
    rows = queries.features(told.store, [graph.graph_id], limit=10_000).set_index("feature_id")
    for row in members[texas]:
        known = rows.loc[graph.feature_ids[row]]
        assert "Texas" in known["label"] or "Texas" in known["promoted"]


def test_what_two_hop_prompts_share(told):
    found = told.story.findings
    common = set.intersection(*map(features, of(told, "two-hop/of")))
    lacking = common - set().union(*map(features, of(told, "one-hop")))
    assert {row["feature_id"] for row in found["shared"]} == lacking
    assert lacking


def test_two_hops_are_made_of_single_hops(told):
    found = told.story.findings["halves"]
    two = dict(
        zip(
            (p.metadata["bridge"] for p in told.story.sets["two-hop/of"]),
            of(told, "two-hop/of"),
            strict=True,
        )
    )
    halves = {
        "one-hop/city": lambda p: p.metadata["answer"],
        "one-hop/capital": lambda p: next(iter(p.metadata["roles"].values())),
    }
    for name, place in halves.items():
        one = {place(p): told.graphs[p.id] for p in told.story.sets[name]}
        values = {"its own": [], "another": []}
        for a in two:
            for b in one:
                if a in one and b in two:
                    f, g = features(two[a]), features(one[b])
                    kind = "its own" if a == b else "another"
                    values[kind].append(len(f & g) / len(f | g))
        for kind, jaccards in values.items():
            assert found[name, kind] == pytest.approx(np.mean(jaccards))
        assert found[name, "its own"] > 1.5 * found[name, "another"]


@pytest.mark.skipif(not (PLT / "config.yaml").exists(), reason="there is no PLT")
def test_the_per_layer_transcoder_is_measured_on_the_same_prompts(told):
    rows = told.story.findings["clt_and_plt"]
    prompts = [
        p
        for name in ("two-hop", "one-hop/capital", "sums")
        for p in prompts_of(told.story.sets, name)[:3]
    ]
    for name, folder in (("cross-layer (CLT)", CLT), ("per-layer (PLT)", PLT)):
        transcoder = tracer.load_transcoder(folder)
        found = [
            tracer.scores(tracer.trace(told.story.model, transcoder, p.prompt), "full")
            for p in prompts
        ]
        for figure in ("mean_path_length", "replacement", "completeness"):
            expected = np.mean([getattr(s, figure) for s in found])
            assert rows[name][figure] == pytest.approx(expected, abs=CLOSE)


def test_the_page_is_whole(told):
    text = told.page.html()
    assert text.count("<svg") == 3
    assert text.count("<section") == len(CHAPTERS) == text.count("</section>")
    assert "https://" not in text.replace("http://www.w3.org", "")


def test_the_command_tells_it_again(told, monkeypatch, tmp_path):
    """On the store that is filled; on the terminal, and for programs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(filling, "text_corpus", some_sentences)
    words = ["demo", "--prompts", str(LIMIT), "--store", str(told.folder / "demo.db")]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert "MATCH (p:PromptSet)" in done.stdout
    assert "circuitbase query strongest_paths" in done.stdout
    assert done.stdout.rstrip().endswith("circuitbase queries")
    assert "demo/report.html" in done.stderr
    assert (tmp_path / "demo/report.html").read_text("utf-8").startswith("<!DOCTYPE html>")
    done = CliRunner().invoke(cli, [*words, "--format", "json"], catch_exceptions=False)
    records = json.loads(done.stdout)
    assert {"chapter", "strength"} <= set(records[0])
    # What it says to type next works.
    more = ["query", "features", "label=Texas", "--store", str(told.folder / "demo.db")]
    done = CliRunner().invoke(cli, [*more, "--format", "json"], catch_exceptions=False)
    assert json.loads(done.stdout)


def test_classes_follow_from_the_facts():
    classes = word_classes()
    assert set(classes["Dallas"]) >= {"cities", "Texas", "Texas cities"}
    assert set(classes["Austin"]) >= {"state capitals", "Texas cities"}
    assert "state capitals" not in classes["Dallas"]
    assert set(classes["27"]) >= {"numbers", "numbers ending in 7", "numbers 20 to 29"}
    assert "the" not in classes
    assert pd.Series([len(names) for names in classes.values()]).min() >= 1


def test_the_whole_corpus(told):
    found = told.story.findings["global"]
    weights = told.store.read_weights(found["weights_id"])
    # The features of the two-hop graphs, and what the sums over the same sentences say of them.
    assert set(weights.feature_ids) == set().union(*map(features, of(told, "two-hop")))
    model, transcoder = told.story.model, told.story.transcoder
    selection = tracer.FeatureSelection.of_graphs(of(told, "two-hop"))
    sums = tracer.corpus_statistics(model, transcoder, some_sentences(model), selection)
    again = tracer.global_weights(model, transcoder, sums, top_k=None)
    row = again.feature_ids.index(found["feature"])
    inputs = again.twera[[row], :].toarray()[0]
    for told_row in found["inputs"]:
        source = again.feature_ids.index(told_row["feature_id"])
        assert told_row["twera"] == pytest.approx(inputs[source], abs=CLOSE)
    strongest = np.sort(np.abs(inputs))[::-1][: len(found["inputs"])]
    assert np.abs([r["twera"] for r in found["inputs"]]) == pytest.approx(strongest, abs=CLOSE)
    assert found["kinds"]["typical"] > 0


def test_a_report_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "taken").write_text("a file")
    for place in (tmp_path, tmp_path / "taken" / "report.html"):
        words = ["demo", "--report", str(place), "--store", str(tmp_path / "d.db")]
        done = CliRunner().invoke(cli, words)
        assert done.exit_code == 1
        assert "cannot be written" in done.stderr
        assert "--report" in done.stderr
        assert not (tmp_path / "d.db").exists()
