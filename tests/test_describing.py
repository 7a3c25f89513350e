"""Describing features: figures against loops over dense arrays, labels against their rules."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

import tracer
from tracer.corpora import Corpus
from tracer.describing import Evidence, describe_features, label_of
from tracer.describing import sums as sums_module
from tracer.describing.labels import Share
from tracer.errors import SettingError, TracingError

# float32 in batches against float64 alone: rounding of a forward pass of three small layers.
CLOSE = {"rel": 2e-4, "abs": 1e-6}


def load(data, model: str, transcoder: str):
    return (
        tracer.load_model(data / "golden/models" / model, check=False),
        tracer.load_transcoder(data / "golden/transcoders" / transcoder),
    )


@pytest.fixture(scope="module")
def gpt2(data):
    return load(data, "gpt2", "gpt2_clt_residmid")


def made_up(model, count: int = 40, seed: int = 0) -> Corpus:
    """Random tokens of a few ids, so that tokens and beginnings of sequences come again."""
    draw = np.random.default_rng(seed)
    some = draw.choice(model.vocab_size, 12, replace=False)
    ids = [[1, *draw.choice(some, draw.integers(1, 9)).tolist()] for _ in range(count)]
    return Corpus.of([*ids, ids[0], [1]], name="made up")


def dense(model, transcoder, corpus, zero_first=1):
    """Activation of every feature at every live place, (places, L, F), each sequence alone.

    And the place of each, and what the model finds likeliest after it. The streams are those that
    the tracer records, its own way to run a model.
    """
    rows, places, likeliest = [], [], []
    for number, ids in enumerate(corpus):
        if len(ids) <= zero_first:
            continue
        frozen = model.freeze(ids.tolist(), check=False)
        encoded = [transcoder.encode(m, frozen.streams[m]) for m in range(model.n_layers)]
        rows.append(torch.stack(encoded, dim=1)[zero_first:].double().numpy())
        places += range(int(corpus.starts[number]) + zero_first, int(corpus.starts[number + 1]))
        likeliest += [-1] * (len(ids) - zero_first - 1) + [int(frozen.logits.argmax())]
    return np.concatenate(rows), np.array(places), np.array(likeliest)


@pytest.mark.parametrize("held", [1, 4_000_000])
def test_figures_and_examples(gpt2, held, monkeypatch):
    model, transcoder = gpt2
    monkeypatch.setattr(sums_module, "_HELD", held)
    monkeypatch.setattr(sums_module, "_PASS", 64)
    corpus = made_up(model)
    frame = describe_features(model, transcoder, corpus, examples=4, window=3)
    acts, places, likeliest = dense(model, transcoder, corpus)
    n = len(places)
    assert len(frame) == transcoder.n_layers * transcoder.n_features
    assert frame["feature_id"].iloc[70] == f"{transcoder.transcoder_id}/1/6"
    following = np.append(corpus.token_ids[1:], -1)[places]
    following = np.where(likeliest >= 0, likeliest, following)
    for row in frame.itertuples():
        a = acts[:, row.layer, row.index]
        live = a > 0
        assert row.density == live.sum() / n
        assert row.max_activation == pytest.approx(a.max(), **CLOSE)
        assert row.mean_activation == pytest.approx(a[live].mean() if live.any() else 0, **CLOSE)
        told = row.statistics
        assert (told["tokens"], told["active"]) == (n, live.sum())
        for name, tokens in (("at", corpus.token_ids[places]), ("next", following)):
            mass = Counter()
            for token, value in zip(tokens.tolist(), a.tolist(), strict=True):
                mass[model.tokens([token])[0].strip()] += value**2
            found = dict(told[name])
            if live.any():
                assert sum(found.values()) <= 1 + 1e-3
            for token, share in found.items():
                assert share == pytest.approx(mass[token] / (a**2).sum(), abs=2e-4)
        check_examples(row.examples, a, places, corpus, model, following)
    assert (frame["density"] > 0).any()
    assert json.loads(json.dumps(frame["statistics"].tolist())) is not None


def check_examples(examples, a, places, corpus, model, following):
    """The strongest places, those after the same beginning once."""
    best = {}
    for i in np.argsort(-a, kind="stable"):
        if a[i] > 0:
            sequence = int(np.searchsorted(corpus.starts, places[i], "right")) - 1
            beginning = tuple(corpus.token_ids[corpus.starts[sequence] : places[i] + 1].tolist())
            best.setdefault(beginning, (a[i], i))
    wanted = sorted((value for value, _ in best.values()), reverse=True)[:4]
    assert [one["activation"] for one in examples] == pytest.approx(wanted, **CLOSE)
    for one in examples:
        matching = [
            i
            for beginning, (value, i) in best.items()
            if value == pytest.approx(one["activation"], **CLOSE)
            and model.tokens(beginning[1:][-4:]) == one["tokens"][: one["at"] + 1]  # not BOS
        ]
        assert matching
        assert one["token"] == one["tokens"][one["at"]]
        assert one["next"] in {model.tokens([int(following[i])])[0] for i in matching}
        assert one["at"] <= 3
        assert len(one["tokens"]) <= one["at"] + 3


@pytest.mark.parametrize(
    ("family", "name", "hook"),
    [
        ("gpt2", "gpt2_clt_residmid", "hook_mlp_out"),
        ("gemma2", "gemma2_plt_ln2", "hook_mlp_out"),
        ("gemma2", "gemma2_plt_ln2", "mlp.hook_out"),
    ],
)
def test_promoted_tokens(data, family, name, hook):
    """Decoders, norms and unembedding from the files, in float64."""
    model, transcoder = load(data, family, name)
    transcoder.write_hook = hook
    frame = describe_features(model, transcoder, made_up(model), outputs=5)
    weights = {k: v.double() for k, v in model.module.state_dict().items()}
    folder = data / "golden/transcoders" / name
    if family == "gpt2":
        rows = weights["transformer.wte.weight"]
        scale, centred = weights["transformer.ln_f.weight"], True
    else:
        rows = weights["model.embed_tokens.weight"]
        scale, centred = 1 + weights["model.norm.weight"], False
    rows = rows - rows.mean(dim=0)
    for layer in range(3):
        if transcoder.kind == "clt":
            decoder = load_file(folder / f"W_dec_{layer}.safetensors")[f"W_dec_{layer}"].double()
            written = decoder.sum(dim=1)
        else:
            written = load_file(folder / f"layer_{layer}.safetensors")["W_dec"].double()
            if hook == "mlp.hook_out":
                key = f"model.layers.{layer}.post_feedforward_layernorm.weight"
                written = written * (1 + weights[key])
        if centred:
            written = written - written.mean(dim=1, keepdim=True)
        effects = (written * scale) @ rows.T
        part = frame[frame["layer"] == layer]
        for index, told in zip(part["index"], part["statistics"], strict=True):
            for key, largest in (("promoted", True), ("suppressed", False)):
                best = effects[index].topk(5, largest=largest)
                assert [v for _, v in told[key]] == pytest.approx(best.values.tolist(), abs=2e-5)
                assert [t for t, _ in told[key]] == model.tokens(best.indices.tolist())


def test_the_direct_effect_is_that_of_the_frozen_model(gpt2):
    """One unit of activation moves the frozen logits by the promoted values over σ."""
    model, transcoder = gpt2
    frame = describe_features(model, transcoder, made_up(model), [(1, 5)], outputs=3)
    frozen = model.freeze([1, 7, 9, 30], dtype=torch.float64)
    decoder = transcoder.decoder_rows(1, torch.tensor([5]))[0].double().sum(dim=0)
    last = frozen.n_positions - 1
    moved = frozen.final_norm.linear(decoder, last) @ frozen.unembedding.double().T
    moved = moved - moved.mean()
    stream = frozen.final_stream[-1]
    sigma = torch.sqrt((stream - stream.mean()).square().mean() + 1e-5)
    for token, value in frame["statistics"][0]["promoted"]:
        ids = [i for i in range(model.vocab_size) if model.tokens([i])[0] == token]
        assert min(abs(float(moved[i] * sigma) - value) for i in ids) < 2e-5


def test_the_choice_of_features_and_the_order(gpt2):
    model, transcoder = gpt2
    corpus = made_up(model)
    everything = describe_features(model, transcoder, corpus)
    name = transcoder.transcoder_id
    for given in (
        [f"{name}/2/9", f"{name}/0/3"],
        [(2, 9), (0, 3)],
        pd.DataFrame({"layer": [2, 0], "index": [9, 3]}),
        pd.DataFrame({"feature_id": [f"{name}/2/9", f"{name}/0/3"]}),
    ):
        some = describe_features(model, transcoder, corpus, given)
        wanted = everything[everything["feature_id"].isin(some["feature_id"])]
        pd.testing.assert_frame_equal(some, wanted.reset_index(drop=True))
        assert some["layer"].tolist() == [0, 2]
    empty = describe_features(model, transcoder, corpus, [])
    assert list(empty.columns) == list(everything.columns)
    assert empty.empty
    for wrong, says in (
        ([(0, 3), (0, 3)], "twice"),
        (["other/0/3"], "is not of"),
        (["0"], "is no feature"),
        ([3], "is no feature"),
        (pd.DataFrame({"x": [1]}), "neither"),
    ):
        with pytest.raises(SettingError, match=says):
            describe_features(model, transcoder, corpus, wrong)
    with pytest.raises(TracingError, match="has no feature 7/0"):
        describe_features(model, transcoder, corpus, [(7, 0)])
    with pytest.raises(SettingError, match="examples is -1"):
        describe_features(model, transcoder, corpus, examples=-1)
    with pytest.raises(TracingError, match="no sequence has more than 1"):
        describe_features(model, transcoder, Corpus.of([[1], [2]]))


def test_classes_are_counted_at_after_and_before(gpt2, monkeypatch):
    """Evidence of every feature against loops over the corpus."""
    model, transcoder = gpt2
    corpus = made_up(model, 60)
    words = sorted({model.tokens([int(t)])[0].strip() for t in corpus.token_ids})
    classes = {word: [("a", "b", "c")[i % 3], "all"] for i, word in enumerate(words[:-2])}
    seen: list[Evidence] = []

    def note(evidence):
        seen.append(evidence)
        return label_of(evidence)

    monkeypatch.setattr("tracer.describing.describing.label_of", note)
    frame = describe_features(model, transcoder, corpus, classes=classes)
    acts, places, likeliest = dense(model, transcoder, corpus)
    word = [model.tokens([int(t)])[0].strip() for t in corpus.token_ids]
    active = frame[frame["density"] > 0]
    assert len(seen) == len(active)
    of = {name: [] for name in ("at", "after", "before")}
    for place, next_token in zip(places, likeliest, strict=True):
        start = int(corpus.starts[np.searchsorted(corpus.starts, place, "right") - 1]) + 1
        follows = model.tokens([int(next_token)])[0].strip() if next_token >= 0 else word[place + 1]
        of["at"].append({word[place]})
        of["after"].append({follows})
        of["before"].append(set(word[start : place + 1]))
    for evidence, row in zip(seen, active.itertuples(), strict=True):
        a = acts[:, row.layer, row.index]
        for shares, sets in (
            (evidence.classes_at, of["at"]),
            (evidence.classes_after, of["after"]),
            (evidence.classes_before, of["before"]),
        ):
            assert sum(share.name == "all" for share in shares) <= 1
            for share in shares:
                has = np.array([any(share.name in classes.get(w, ()) for w in s) for s in sets])
                assert share.share == pytest.approx((a[has] ** 2).sum() / (a**2).sum(), rel=1e-3)
                assert share.base == has.mean()
                assert share.active == (a[has] > 0).mean()
                if shares is evidence.classes_at:
                    members = [w for w in words if share.name in classes.get(w, ())]
                    rates = {
                        w: np.mean([x > 0 for x, s in zip(a, sets, strict=True) if w in s])
                        for w in members
                        if any(w in s for s in sets)
                    }
                    assert share.members == len(rates)
                    assert share.covered == sum(rate >= 0.1 for rate in rates.values())


# Rules ----------------------------------------------------------------------------------------

TEXAS = {"Dallas": ["Texas cities", "cities"], "Houston": ["Texas cities", "cities"]}


@pytest.mark.parametrize(
    ("evidence", "text", "rule"),
    [
        (Evidence([Share("Dallas", 0.9, 0.9, 0.01)]), '"Dallas"', "token"),
        (Evidence([Share("\n", 0.9, 0.9, 0.01)]), '"↵"', "token"),
        (
            Evidence([Share("is", 0.9, 0.1, 0.2)], before=[Share("capital", 0.7, 0.3, 0.2)]),
            '"is" after "capital"',
            "token",
        ),
        (
            Evidence(
                [Share("is", 0.9, 0.1, 0.2)],
                before=[Share("capital", 0.7, 0.3, 0.2)],
                classes_before=[Share("Texas cities", 0.8, 0.3, 0.01)],
            ),
            '"is" after Texas cities',
            "token",
        ),
        (  # common everywhere: nothing to tell
            Evidence([Share("is", 0.9, 0.1, 0.2)], before=[Share("the", 0.9, 0.3, 0.8)]),
            '"is"',
            "token",
        ),
        (
            Evidence(
                [Share("is", 0.5, 0.1, 0.2)],
                after=[Share("Austin", 0.7, 0.9, 0.01)],
                promoted=["x", "Austin", "y"],
            ),
            "say Austin",
            "say",
        ),
        (  # it follows, but nothing promotes it
            Evidence(
                [Share("is", 0.8, 0.9, 0.2)],
                after=[Share("Austin", 0.7, 0.9, 0.01)],
                promoted=["x", "y", "z", "Austin"],
            ),
            '"is"',
            "token",
        ),
        (  # it follows everywhere
            Evidence(
                [Share("is", 0.8, 0.9, 0.2)],
                after=[Share("Austin", 0.7, 0.9, 0.3)],
                promoted=["Austin"],
            ),
            '"is"',
            "token",
        ),
        (
            Evidence(
                [Share("is", 0.3, 0.1, 0.2)],
                classes_after=[Share("Texas cities", 0.8, 0.5, 0.1, 0, 1)],
                promoted=["Dallas", "Houston", "Dallas", "x"],
                classes={**TEXAS, **dict.fromkeys("abcdefghij", ())},
            ),
            "say Texas cities",
            "say class",
        ),
        (
            Evidence(
                [Share("Dallas", 0.3, 0.5, 0.01), Share("Houston", 0.3, 0.5, 0.01)],
                classes_at=[
                    Share("cities", 0.8, 0.1, 0.1, 2, 20),
                    Share("Texas cities", 0.75, 0.8, 0.01, 2, 3),
                ],
                classes=TEXAS,
            ),
            "Texas cities",
            "class",
        ),
        (
            Evidence(
                [Share("Dallas", 0.3, 0.5, 0.01)],
                classes_at=[Share("cities", 0.8, 0.1, 0.1, 3, 20)],
            ),
            "some cities",
            "class",
        ),
        (
            Evidence(
                [Share("is", 0.3, 0.1, 0.2), Share("Dallas", 0.2, 0.5, 0.01)],
                classes_before=[Share("Texas cities", 0.7, 0.4, 0.03)],
            ),
            "about Texas cities",
            "about",
        ),
        (
            Evidence([Share("hot", 0.4, 0.5, 0.01), Share("cold", 0.3, 0.5, 0.01)]),
            '"hot" or "cold"',
            "tokens",
        ),
        (
            Evidence(
                [Share(x, 0.1, 0.5, 0.01) for x in "abcdefg"],
                before=[Share("opposite", 0.7, 0.4, 0.1)],
            ),
            'after "opposite"',
            "before",
        ),
        (
            Evidence(
                [Share(x, 0.1, 0.5, 0.01) for x in "abcdefg"],
                classes_before=[Share("Texas cities", 0.4, 0.4, 0.01)],
                promoted=["Houston"],
                classes=TEXAS,
            ),
            "partly about Texas cities",
            "partly",
        ),
        (
            Evidence([Share(x, 0.1, 0.5, 0.01) for x in "abcdefg"]),
            'mixed: "a", "b", "c", …',
            "mixed",
        ),
        (
            Evidence([Share("a", 0.5, 0.5, 0.01), *[Share(x, 0.04, 0.5, 0.01) for x in "bcd"]]),
            'mostly "a"',
            "mixed",
        ),
        (  # seven positions have much in common by chance
            Evidence(
                [Share("Dallas", 0.3, 0.5, 0.01), Share("Houston", 0.2, 0.5, 0.01)],
                classes_at=[Share("Texas cities", 0.9, 0.8, 0.01, 2, 3)],
                positions=7,
            ),
            'mixed: "Dallas", "Houston", …',
            "mixed",
        ),
    ],
)
def test_rules(evidence, text, rule):
    label = label_of(evidence)
    assert (label.text, label.rule) == (text, rule)
    assert "%" in label.reason
    assert ("active at 7 positions" in label.reason) == (evidence.positions == 7)
