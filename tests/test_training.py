"""Training transcoders: data, resuming, saving, errors; figures against plain loops."""

from __future__ import annotations

import csv
import errno
import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file

import tracer
from tracer.corpora import Corpus, read_corpus
from tracer.errors import FormatError, SettingError, TracingError
from tracer.models import Model, load_model
from tracer.training import TrainSettings, evaluate, measure, save_transcoder, train
from tracer.training import loop as training_loop
from tracer.training.activations import Buffer, MlpHooks, Recorder, make_source
from tracer.training.normalising import normalisation_of
from tracer.training.weights import folded, initial_weights
from tracer.transcoders import load_transcoder, saving

SMALL = TrainSettings(
    features=48,
    k=5,
    steps=30,
    batch=64,
    learning_rate=5e-3,
    dead_after=400,
    log_every=7,
    evaluate_every=0,
    checkpoint_every=10,
    held_out_tokens=200,
)


@pytest.fixture(autouse=True)
def two_threads():
    """Tests share the machine: more threads than free cores wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(data) -> Model:
    return load_model(data / "golden/models/gpt2", check=False)


@pytest.fixture(scope="module")
def corpus(model) -> Corpus:
    """Random tokens; the last of each sequence is of class "last", the others alternate."""
    draw = np.random.default_rng(0)
    ids = [draw.integers(0, model.vocab_size, size=draw.integers(4, 16)) for _ in range(160)]
    classes = [["", *("odd" if i % 2 else "even" for i in range(len(x) - 2)), "last"] for x in ids]
    return Corpus.of([x.tolist() for x in ids], classes, name="made up")


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return {
        f"{path.name}:{name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def assert_identical(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


# Corpora -----------------------------------------------------------------------------------------


def test_read_corpus(model, tmp_path) -> None:
    text = tmp_path / "c.txt"
    text.write_text("Dallas is in\n\n" + "Texas " * 30 + "\n", "utf-8")
    found = read_corpus(text, model, context=8)
    assert int(found.lengths.max()) == 8
    assert found.classes is None
    first = model.tokenize("Dallas is in")
    assert found[0].tolist() == first[:8]
    bos = model.bos_id
    if bos is not None:
        assert all(sequence[0] == bos for sequence in found)
    lines = tmp_path / "c.jsonl"
    lines.write_text(
        '{"token_ids": [1, 2, 3], "classes": ["", "a", "b"], "other": 1}\n{"text": "Dallas is"}\n'
    )
    found = read_corpus(lines, model)
    assert found.class_names == ("a", "b")
    assert found.classes.tolist()[:3] == [-1, 0, 1]
    assert set(found.classes.tolist()[3:]) == {-1}


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("e.txt", b"", "no sequence of two tokens"),
        ("b.txt", b"ok ok\n\xff\xfe", "b.txt:2: is not UTF-8"),
        ("j.jsonl", b'{"text": "x"', "j.jsonl:1: is not JSON"),
        ("l.jsonl", b"[1]", "l.jsonl:1: is no JSON object"),
        ("n.jsonl", b'{"words": 1}', "has neither of text and token_ids"),
        ("t.jsonl", b'{"text": 4}', "text is not a string"),
        ("i.jsonl", b'{"token_ids": [1, "2"]}', "not a list of whole numbers"),
        ("c.jsonl", b'{"token_ids": [1, 2], "classes": ["a"]}', "not a list of 2 names"),
        ("x.jsonl", b'{"token_ids": [1, 99999]}', "token id 99999 at position 1"),
    ],
)
def test_bad_corpora(model, tmp_path, name, content, says) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises((FormatError, TracingError), match=says) as caught:
        read_corpus(tmp_path / name, model)
    assert caught.value.remedy


def test_missing_corpus(model, tmp_path) -> None:
    with pytest.raises(FormatError, match="No such file"):
        read_corpus(tmp_path / "none.txt", model)
    with pytest.raises(SettingError, match="context is 1"):
        read_corpus(tmp_path / "none.txt", model, context=1)


# Activations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "llama", "qwen3"])
@pytest.mark.parametrize(
    "hooks", [("hook_resid_mid", "hook_mlp_out"), ("mlp.hook_in", "mlp.hook_out")]
)
def test_recorded_side_by_side_is_recorded_alone(data, family, hooks) -> None:
    """Sequences in padded batches give what the tracer's recording of each alone gives."""
    model = load_model(data / "golden/models" / family, check=False)
    draw = np.random.default_rng(1)
    corpus = Corpus.of([draw.integers(0, model.vocab_size, size=n).tolist() for n in (9, 3, 6)])
    found = Recorder(model, *hooks, zero_first=1)(corpus, np.arange(3))
    assert len(found.places) == 8 + 2 + 5
    for number, ids in enumerate(corpus):
        recording = model.record(ids.tolist())
        places = range(int(corpus.starts[number]) + 1, int(corpus.starts[number + 1]))
        rows = [found.places.tolist().index(place) for place in places]
        for layer, one in enumerate(recording.layers):
            read = one.mlp_stream if hooks[0] == "hook_resid_mid" else one.mlp_normed
            write = one.mlp_write if hooks[1] == "hook_mlp_out" else one.mlp
            # float32; batches change the order of sums.
            torch.testing.assert_close(found.reads[rows, layer], read[1:], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.writes[rows, layer], write[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_normalised_hook(data, family) -> None:
    model = load_model(data / "golden/models" / family, check=False)
    corpus = Corpus.of([[3, 5, 7, 9, 11]])
    found = Recorder(model, "ln2.hook_normalized", "hook_mlp_out", 0)(corpus, np.arange(1))
    for layer, norm in enumerate(model.freeze([3, 5, 7, 9, 11]).mlp_norms):
        stream = model.record([3, 5, 7, 9, 11]).layers[layer].mlp_stream
        plain = replace(norm, scale=None, shift=None)
        torch.testing.assert_close(found.reads[:, layer], plain(stream), rtol=1e-4, atol=1e-5)


def test_hooks_are_taken_off(model) -> None:
    hooks = MlpHooks(model, "hook_resid_mid", "hook_mlp_out")
    with pytest.raises(RuntimeError), hooks.running():
        raise RuntimeError
    assert not any(module._forward_hooks for module in model.module.modules())


def batches(model, corpus, count, tmp=None, tokens=300, position=None, weights=None):
    recorder = Recorder(model, "hook_resid_mid", "hook_mlp_out", 1)
    source = make_source(recorder, corpus, block_tokens=100, seed=3, cache=tmp)
    buffer = Buffer(source, batch=50, tokens=tokens, seed=3, weights=weights)
    if position is not None:
        buffer.position = position
    made = []
    for _ in range(count):
        made.append((buffer.position, *next(buffer)))
    return made, source


@pytest.mark.parametrize("tokens", [300, 10_000])
def test_batches_go_on_anywhere(model, corpus, tokens, tmp_path) -> None:
    """Position after position, from the cache and without, the same batches bit for bit."""
    made, _ = batches(model, corpus, 70, tokens=tokens)
    assert made[-1][0][0] >= 2, "less than two passes: the test tells nothing"
    cached, _ = batches(model, corpus, 70, tokens=tokens, tmp=tmp_path / "cache")
    again, _ = batches(model, corpus, 70, tokens=tokens, tmp=tmp_path / "cache")
    assert len(list((tmp_path / "cache").glob("*.safetensors"))) > 3
    for start in (0, 13, 50):
        later, _ = batches(model, corpus, 3, tokens=tokens, position=made[start][0])
        for here, there in zip(later, made[start:], strict=False):
            assert here[0] == there[0]
            assert torch.equal(here[1], there[1])
            assert torch.equal(here[2], there[2])
    for others in (cached, again):
        for here, there in zip(others, made, strict=True):
            assert torch.equal(here[1], there[1])
            assert torch.equal(here[2], there[2])


def test_a_pass_has_each_token_once(model, corpus) -> None:
    made, source = batches(model, corpus, 60, tokens=10_000)
    total = int(source.sizes.sum())
    assert total == corpus.usable(1)
    first = torch.cat([reads for position, reads, _ in made if position[0] == 0])
    assert len(first) == total // 50 * 50
    assert len(torch.unique(first[:, 2], dim=0)) == len(first)
    orders = [torch.cat([r for p, r, _ in made if p[0] == turn]) for turn in (0, 1)]
    assert not torch.equal(orders[0][:100], orders[1][:100])


def test_a_cache_of_something_else_is_refused(model, corpus, tmp_path) -> None:
    batches(model, corpus, 1, tmp=tmp_path)
    with pytest.raises(SettingError, match="another model, corpus or seed"):
        batches(model, corpus.select(range(90)), 1, tmp=tmp_path)


def test_mix_draws_classes_as_asked(model, corpus) -> None:
    settings = SMALL.changed(mix={"last": 0.6, "odd": 0.4})
    weights = training_loop._drawing(corpus, settings, 1)
    recorder = Recorder(model, "hook_resid_mid", "hook_mlp_out", 1)
    source = make_source(recorder, corpus, block_tokens=100, seed=0)
    buffer = Buffer(source, batch=50, tokens=10_000, seed=0, weights=weights)
    held = {}
    for block in range(len(source.sizes)):
        one = source.read(block)
        for place, read in zip(one.places.tolist(), one.reads[:, 1], strict=True):
            held[read.numpy().tobytes()] = corpus.class_names[corpus.classes[place]]
    drawn = [held[r.numpy().tobytes()] for _ in range(100) for r in next(buffer)[0][:, 1]]
    share = drawn.count("last") / len(drawn)
    # 5,000 draws: a standard deviation is 0.007.
    assert share == pytest.approx(0.6, abs=0.03)
    assert drawn.count("even") == 0


# Training ----------------------------------------------------------------------------------------

KINDS = [
    {"activation": "batchtopk"},
    {"activation": "topk", "kind": "plt", "skip": True},
    {"activation": "jumprelu", "sparsity": 1.0},
    {"activation": "batchtopk", "mix": {"last": 0.5, "odd": 0.5}, "buffer": 3e-4, "features": 200},
]


class Stopped(Exception):  # noqa: N818
    """As if the process had been killed."""


@pytest.mark.parametrize("changes", KINDS, ids=["batch", "top-skip", "jump", "mix"])
def test_stopped_and_resumed_is_one_run(model, corpus, changes, tmp_path) -> None:
    """Weights, thresholds and metrics are equal bit for bit, wherever it was stopped."""
    settings = SMALL.changed(**changes)
    train(model, corpus, settings, tmp_path / "one")

    def stop_at(*steps):
        def progress(step, row):
            if step in steps:
                raise Stopped

        return progress

    for stop in (4, 17, 26):  # before the first checkpoint; after one; after another
        with pytest.raises(Stopped):
            train(model, corpus, settings, tmp_path / "two", progress=stop_at(stop))
    seen: list[int] = []
    train(model, corpus, settings, tmp_path / "two", progress=lambda step, row: seen.append(step))
    assert seen[0] == 21
    assert_identical(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "two"))
    metrics = [rows_of(tmp_path / name / "training/metrics.csv") for name in ("one", "two")]
    assert metrics[0] == metrics[1]
    assert [row["step"] for row in metrics[0]] == ["7", "14", "21", "28", "30"]


def test_a_finished_run_is_not_run_again(model, corpus, tmp_path) -> None:
    first = train(model, corpus, SMALL, tmp_path)
    again = train(model, corpus, SMALL, tmp_path, progress=lambda *_: pytest.fail("a step"))
    assert again.fingerprint == first.fingerprint
    steps: list[int] = []
    train(model, corpus, SMALL, tmp_path, resume=False, progress=lambda s, _: steps.append(s))
    assert len(steps) == SMALL.steps


def test_checkpoints_of_other_settings_are_refused(model, corpus, tmp_path) -> None:
    def stop(step, row):
        if step == 12:
            raise Stopped

    with pytest.raises(Stopped):
        train(model, corpus, SMALL, tmp_path, progress=stop)
    with pytest.raises(SettingError, match="features was 48 and is 50"):
        train(model, corpus, SMALL, tmp_path, features=50)
    with pytest.raises(SettingError, match="fingerprint was"):
        train(model, corpus.select(range(100)), SMALL, tmp_path)
    train(model, corpus, SMALL, tmp_path, log_every=3)  # changes nothing that is trained
    state = json.loads((tmp_path / "training/state.json").read_text())
    assert state["finished"]


def test_damaged_checkpoints(model, corpus, tmp_path) -> None:
    def stop(step, row):
        if step == 12:
            raise Stopped

    with pytest.raises(Stopped):
        train(model, corpus, SMALL, tmp_path, progress=stop)
    state = next((tmp_path / "training").glob("state_*.safetensors"))
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FormatError, match="cannot be read"):
        train(model, corpus, SMALL, tmp_path)
    (tmp_path / "training/state.json").write_text("{")
    with pytest.raises(FormatError, match="is no checkpoint"):
        train(model, corpus, SMALL, tmp_path)
    train(model, corpus, SMALL, tmp_path, resume=False)


def test_a_loss_that_is_not_finite_stops_the_run(model, corpus, tmp_path, monkeypatch) -> None:
    """The last good checkpoint stays, and the message says what to change."""
    honest, calls = training_loop.objective, []

    def spoiled(*arguments, **options):
        calls.append(1)
        parts = honest(*arguments, **options)
        return (
            parts._replace(reconstruction=parts.reconstruction * math.nan)
            if (len(calls) == 15)
            else parts
        )

    monkeypatch.setattr(training_loop, "objective", spoiled)
    with pytest.raises(TracingError, match=r"step 15: the loss is not finite") as caught:
        train(model, corpus, SMALL, tmp_path)
    assert "checkpoint of step 10" in caught.value.remedy
    assert "learning_rate (0.005)" in caught.value.remedy
    kept = tensors_of(tmp_path / "training")
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    monkeypatch.setattr(training_loop, "objective", honest)
    seen: list[int] = []
    train(model, corpus, SMALL, tmp_path, progress=lambda step, _: seen.append(step))
    assert seen[0] == 11


def test_a_learning_rate_that_explodes(model, corpus, tmp_path) -> None:
    with pytest.raises(TracingError, match="is not finite") as caught:
        train(
            model, corpus, SMALL, tmp_path, learning_rate=1e38, warm_up=0.0, activation="jumprelu"
        )
    assert "There was no checkpoint yet" in caught.value.remedy


def test_small_corpora(model, corpus, tmp_path) -> None:
    few = corpus.select(range(5))
    with pytest.raises(TracingError, match=r"tokens are left to train on, and one batch has 64"):
        train(model, few, SMALL, tmp_path)
    with pytest.raises(TracingError, match="0 tokens are left"):
        train(model, Corpus.of([]), SMALL, tmp_path)
    alike = Corpus.of([[5, 5]] * 200)
    with pytest.raises(TracingError, match="the same at every token"):
        train(model, alike, SMALL, tmp_path)


def test_a_corpus_of_one_batch_is_enough(model, corpus, tmp_path) -> None:
    found = train(model, corpus.select(range(12)), SMALL, tmp_path, batch=70, held_out_share=0.0)
    assert found.n_features == 48
    assert rows_of(tmp_path / "training/metrics.csv")[-1]["held_out_top1"] == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"feature": 4}, 'Did you mean "features"'),
        ({"kind": "ctl"}, 'Did you mean "clt"'),
        ({"activation": "gelu"}, 'Did you mean "jumprelu"'),
        ({"features": 0}, "features is 0"),
        ({"k": 99}, "k is 99 of 48 features"),
        ({"activation": "topk", "k": 2.5}, "whole number"),
        ({"skip": True}, "a CLT with an affine skip"),
        ({"warm_up": 0.7, "decay": 0.7}, "more than the whole run"),
        ({"mix": {"last": 0.0}}, "positive shares"),
        ({"learning_rate": math.nan}, "learning_rate is nan"),
    ],
)
def test_bad_settings(changes, says) -> None:
    with pytest.raises(SettingError, match=says):
        SMALL.changed(**changes)


def test_mix_needs_classes(model, corpus, tmp_path) -> None:
    with pytest.raises(SettingError, match='Did you mean "last"'):
        train(model, corpus, SMALL, tmp_path, mix={"lasst": 1.0})
    plain = Corpus.of([ids.tolist() for ids in corpus])
    with pytest.raises(SettingError, match="its tokens have no classes"):
        train(model, plain, SMALL, tmp_path, mix={"last": 1.0})


def test_settings_have_a_line_of_doc_each() -> None:
    documented = TrainSettings.__doc__
    for field in fields(TrainSettings):
        assert field.name in documented, field.name


def test_schedules() -> None:
    settings = TrainSettings(steps=100, learning_rate=1.0, warm_up=0.1, decay=0.2, sparsity=3.0)
    rates = [settings.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:81] == pytest.approx([1.0] * 72)
    assert rates[99] == pytest.approx(0.05)
    ramp = [settings.sparsity_at(step) for step in range(100)]
    np.testing.assert_allclose(ramp, np.linspace(0, 3, 100))


def test_training_learns_and_revives(model, corpus, tmp_path) -> None:
    """Explained variance rises, L0 is what was asked for, and the auxiliary loss revives."""
    longer = SMALL.changed(steps=150, features=256, k=4, auxiliary=1.0)
    found = train(model, corpus, longer, tmp_path / "with")
    train(model, corpus, longer, tmp_path / "without", auxiliary=0.0)
    ends = [rows_of(tmp_path / name / "training/metrics.csv") for name in ("with", "without")]
    assert float(ends[0][-1]["explained"]) > float(ends[0][0]["explained"]) + 0.3
    assert float(ends[0][-1]["dead"]) < float(ends[1][-1]["dead"]) - 0.04
    assert measure(model, found, corpus).l0 == pytest.approx(4, rel=0.2)


# Saving ------------------------------------------------------------------------------------------


def normalised(model, corpus):
    found = Recorder(model, "hook_resid_mid", "hook_mlp_out", 1)(corpus, np.arange(40))
    return found, normalisation_of(found.reads, found.writes)


@pytest.mark.parametrize(
    ("kind", "skip", "activation"),
    [("clt", False, "jumprelu"), ("plt", False, "batchtopk"), ("plt", True, "jumprelu")],
)
def test_folding(model, corpus, kind, skip, activation, tmp_path) -> None:
    """What is saved computes on the model's numbers what was trained on normalised ones."""
    settings = SMALL.changed(kind=kind, skip=skip, activation=activation)
    generator = torch.Generator().manual_seed(2)
    weights = initial_weights(settings, model.n_layers, model.width, generator)
    with torch.no_grad():
        for _, tensor in weights.named():
            tensor += 0.2 * torch.randn(tensor.shape, generator=generator)
    held, normalisation = normalised(model, corpus)
    x = normalisation.reads(held.reads)
    assert x.mean(dim=0).abs().max() < 1e-4
    assert x.square().mean(dim=(0, 2)) == pytest.approx(1, abs=1e-4)
    theta = torch.rand(model.n_layers, 48, generator=generator)
    save_transcoder(tmp_path, folded(weights, normalisation, settings, theta), model_name="gpt2")
    found = load_transcoder(tmp_path, dtype=torch.float64)
    assert (found.kind, found.has_skip) == (kind, skip)
    assert found.info["layout"] == f"circuit-tracer-{kind}"
    assert found.info["model_name"] == "gpt2"
    made = np.zeros((model.n_layers, len(x), model.width))
    for layer in range(model.n_layers):
        h = x[:, layer] @ weights.encoder[layer].T + weights.encoder_bias[layer]
        # Folded and unfolded differ by float32 rounding of the weights.
        torch.testing.assert_close(
            found.preactivations(layer, held.reads[:, layer]).float(), h, rtol=1e-4, atol=1e-4
        )
        a = np.where(h.detach() > theta[layer], h.detach(), 0)
        blocks = weights.decoders[layer].detach().numpy().reshape(48, -1, model.width)
        for place in range(blocks.shape[1]):
            made[layer + place] += a @ blocks[:, place]
        made[layer] += weights.decoder_bias[layer].detach().numpy()
        if skip:
            made[layer] += x[:, layer].numpy() @ weights.skip[layer].detach().numpy().T
    scale = normalisation.write_scale.numpy()[:, None, None]
    made = made * scale + normalisation.write_mean.numpy()[:, None]
    wanted = found.reconstruct(held.reads.transpose(0, 1)).numpy()
    # A feature within float32 of its threshold may be on in one and off in the other.
    off = np.abs(made - wanted).max(axis=2) > 1e-3 * np.abs(wanted).max()
    assert off.mean() < 0.01


def test_the_files_are_circuit_tracers(model, corpus, tmp_path) -> None:
    """Names, shapes and configuration as its own library writes and reads them."""
    train(model, corpus, SMALL, tmp_path / "clt", name="mine")
    train(model, corpus, SMALL, tmp_path / "plt", kind="plt", skip=True, dtype=torch.float16)
    layers, width = model.n_layers, model.width
    clt, plt = (tensors_of(tmp_path / kind) for kind in ("clt", "plt"))
    shapes = {name: tuple(tensor.shape) for name, tensor in {**clt, **plt}.items()}
    for i in range(layers):
        enc = f"W_enc_{i}.safetensors"
        assert shapes[f"{enc}:W_enc_{i}"] == (48, width)
        assert shapes[f"{enc}:b_enc_{i}"] == shapes[f"{enc}:threshold_{i}"] == (48,)
        assert shapes[f"{enc}:b_dec_{i}"] == (width,)
        assert shapes[f"W_dec_{i}.safetensors:W_dec_{i}"] == (48, layers - i, width)
        one = f"layer_{i}.safetensors"
        assert shapes[f"{one}:W_enc"] == shapes[f"{one}:W_dec"] == (48, width)
        assert shapes[f"{one}:W_skip"] == (width, width)
        assert shapes[f"{one}:activation_function.threshold"] == (48,)
    assert {tensor.dtype for tensor in plt.values()} == {torch.float16}
    config = (tmp_path / "clt/config.yaml").read_text()
    for line in (
        "model_kind: cross_layer_transcoder",
        "feature_input_hook: hook_resid_mid",
        "feature_output_hook: hook_mlp_out",
        "scan: mine",
        "model_name: gpt2",
    ):
        assert line in config.splitlines()
    graph = tracer.trace(model, load_transcoder(tmp_path / "clt"), corpus[0].tolist())
    assert graph.is_feature.any()


def test_another_transcoder_in_the_same_folder(model, corpus, tmp_path) -> None:
    train(model, corpus, SMALL, tmp_path)
    found = train(model, corpus, SMALL, tmp_path, resume=False, kind="plt")
    assert found.kind == "plt"
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == [
        f"layer_{i}.safetensors" for i in range(model.n_layers)
    ]


def test_a_full_disk_leaves_what_was_there(model, corpus, tmp_path, monkeypatch) -> None:
    train(model, corpus, SMALL, tmp_path)
    before = tensors_of(tmp_path)
    honest, calls = saving.save_file, []

    def full(tensors, path, **options):
        calls.append(path)
        if len(calls) == 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(tensors, path, **options)

    monkeypatch.setattr(saving, "save_file", full)
    with pytest.raises(FormatError, match="No space left on device"):
        train(model, corpus, SMALL, tmp_path, resume=False, seed=5)
    assert_identical(before, tensors_of(tmp_path))
    assert not list(tmp_path.rglob("*.part"))
    assert not list(tmp_path.parent.glob(".*.part"))


def test_weights_that_float16_cannot_hold(model, corpus, tmp_path) -> None:
    settings = SMALL
    weights = initial_weights(settings, model.n_layers, model.width, torch.Generator())
    with torch.no_grad():
        weights.encoder[1, 2] = 1e9
    _, normalisation = normalised(model, corpus)
    plain = folded(weights, normalisation, settings, None)
    with pytest.raises(FormatError, match=r"W_enc_1 is not finite in torch.float16"):
        save_transcoder(tmp_path / "x", plain, dtype=torch.float16)
    save_transcoder(tmp_path / "x", plain)
    assert load_transcoder(tmp_path / "x").activation.kind == "relu"


# Evaluating --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(model, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return {
        kind: train(model, corpus, SMALL, folder / kind, kind=kind, skip=kind == "plt")
        for kind in ("clt", "plt")
    }


def replaced_logits(model, transcoder, ids):
    """GPT-2 written out, one prompt, every MLP behind position 0 replaced; and the originals."""
    body = model.module.transformer
    results = []
    for replace_ in (False, True):
        x = body.wte.weight[ids] + body.wpe.weight[: len(ids)]
        reads, pairs, pending = [], [], torch.zeros(model.n_layers, len(ids), model.width)
        for layer, block in enumerate(body.h):
            mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)[None, None]
            x = x + block.attn(block.ln_1(x)[None], attention_mask=mask)[0][0]
            y = block.mlp(block.ln_2(x))
            reads.append(x)
            a = transcoder.encode(layer, x)
            rows = transcoder.decoder_rows(layer, torch.arange(transcoder.n_features))
            for place, target in enumerate(transcoder.targets(layer)):
                pending[target] += a @ rows[:, place]
            made = pending[layer] + transcoder.decoder_bias(layer)
            if transcoder.skip(layer) is not None:
                made = made + x @ transcoder.skip(layer).T
            pairs.append((y, made, (a != 0).sum(dim=1)))
            x = x + (torch.cat([y[:1], made[1:]]) if replace_ else y)
        results.append((body.ln_f(x) @ model.module.lm_head.weight.T, pairs))
    return results


@pytest.mark.parametrize("kind", ["clt", "plt"])
def test_figures_against_a_plain_loop(model, corpus, trained, kind) -> None:
    """Explained variance, L0, dead share, top-1 and KL, for all tokens and for a class."""
    some = corpus.select(range(25))
    found = measure(model, trained[kind], some)
    ys, errors, actives, kept, kls, lasts, classes = [], [], [], [], [], [], []
    with torch.no_grad():
        for number, ids in enumerate(some):
            (base, pairs), (other, _) = replaced_logits(
                model, trained[kind], torch.from_numpy(ids).long()
            )
            ys.append(torch.stack([y[1:] for y, _, _ in pairs]))
            errors.append(torch.stack([(made - y)[1:] for y, made, _ in pairs]))
            actives.append(torch.stack([count[1:] for _, _, count in pairs]))
            logs, others = (logits[1:].log_softmax(dim=1) for logits in (base, other))
            kept += (logs.argmax(dim=1) == others.argmax(dim=1)).tolist()
            kls += (logs.exp() * (logs - others)).sum(dim=1).tolist()
            lasts += [*[False] * (len(ids) - 2), True]
            start = int(some.starts[number])
            classes += some.classes[start + 1 : start + len(ids)].tolist()
    y, error, active = (torch.cat(parts, dim=1).double() for parts in (ys, errors, actives))
    lasts, classes = np.array(lasts), np.array(classes)
    assert found.tokens == len(kept)
    for name in ("", *some.class_names):
        which = torch.from_numpy(
            np.ones(len(kept), bool) if not name else classes == some.class_names.index(name)
        )
        end = f"_{name}" if name else ""
        spread = (y[:, which] - y[:, which].mean(dim=1, keepdim=True)).square().sum(dim=(1, 2))
        explained = 1 - error[:, which].square().sum(dim=(1, 2)) / spread
        # float32 forward passes in batches of another shape.
        np.testing.assert_allclose(found.layers[f"explained{end}"], explained, atol=1e-4)
        np.testing.assert_allclose(
            found.layers[f"l0{end}"], active[:, which].mean(dim=1), rtol=2e-3
        )
    assert found.top1 == pytest.approx(np.mean(kept), abs=0.01)
    assert found.kl == pytest.approx(np.mean(kls), rel=1e-3)
    assert found.top1_last == pytest.approx(np.mean(np.array(kept)[lasts]), abs=0.04)
    assert found.kl_last == pytest.approx(np.mean(np.array(kls)[lasts]), rel=1e-3)
    row = found.classes.set_index("class").loc["last"]
    which = classes == some.class_names.index("last")
    assert row["tokens"] == which.sum()
    assert row["kl"] == pytest.approx(np.mean(np.array(kls)[which]), rel=1e-3)


def test_dead_share(model, corpus, trained) -> None:
    found = measure(model, trained["clt"], corpus)
    recorded = Recorder(model, "hook_resid_mid", "hook_mlp_out", 1)(corpus, np.arange(len(corpus)))
    for layer in range(model.n_layers):
        a = trained["clt"].encode(layer, recorded.reads[:, layer])
        wanted = float((a == 0).all(dim=0).float().mean())
        assert found.layers["dead"][layer] == pytest.approx(wanted, abs=0.03)


def test_graph_figures(model, corpus, trained) -> None:
    """Means over traced prompts are those of tracing each by hand."""
    prompts = [corpus[3].tolist(), corpus[8].tolist()]
    found = evaluate(model, trained["clt"], corpus, tokens=200, prompts=prompts)
    wanted = [tracer.scores(tracer.trace(model, trained["clt"], p), "full") for p in prompts]
    for name in ("completeness", "replacement", "mean_path_length"):
        assert found.totals[name] == pytest.approx(np.mean([getattr(s, name) for s in wanted]))
    assert evaluate(model, trained["clt"], corpus, tokens=200, prompts=3).totals["graphs"] == 3
    assert math.isnan(evaluate(model, trained["clt"], corpus, tokens=200).totals["replacement"])


def test_prompts_that_cannot_be_traced_are_told(model, corpus, trained) -> None:
    found = evaluate(model, trained["plt"], corpus, tokens=200, prompts=[[5], [5, 9, 2, 8]])
    assert (len(found.graphs), len(found.failures)) == (1, 1)


def test_published_transcoders_can_be_measured(data) -> None:
    """Any layout, hook and family; the golden files hold random ones."""
    for family, name in (("gemma2", "gemma2_plt_ln2"), ("llama", "llama_pltskip_mlp")):
        model = load_model(data / "golden/models" / family, check=False)
        transcoder = load_transcoder(data / "golden/transcoders" / name)
        corpus = Corpus.of([[2, 5, 9, 14, 3], [2, 8, 1, 1]])
        found = evaluate(model, transcoder, corpus, prompts=1)
        assert found.figures.tokens == 7
        assert np.isfinite(found.layers["explained"]).all()
        assert 0 <= found.totals["completeness"] <= 1


def test_a_transcoder_of_another_model(model, corpus, trained) -> None:
    config = transformers.GPT2Config(
        n_layer=2, n_embd=32, n_head=2, vocab_size=model.vocab_size, attn_implementation="eager"
    )
    other = Model(transformers.GPT2LMHeadModel(config))
    with pytest.raises(TracingError, match="Use the model that the transcoder was trained for"):
        measure(other, trained["clt"], corpus)
