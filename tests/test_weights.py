"""Global weights: against local graphs, against brute force, in whatever pieces they are made."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

import tracer
from tracer import CorpusStatistics, FeatureSelection, GlobalWeights
from tracer.errors import SettingError
from tracer.weights.sums import ExactSums, PairSums

HERE = Path(__file__).parent
NAMES = ("qwen3_clt_mlp", "llama_plt_mlp", "gpt2_plt_ln2", "gpt2_clt_residmid", "gemma2_plt_ln2")
LENGTHS = (9, 12, 5, 14, 1, 2, 8, 11, 7, 13)


def load(name: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    golden = HERE / "data" / "golden"
    model = tracer.load_model(str(golden / "models" / name.split("_")[0]), dtype=dtype)
    return model, tracer.load_transcoder(golden / "transcoders" / name, dtype=dtype)


def documents(model: Any, lengths: tuple[int, ...] = LENGTHS) -> list[list[int]]:
    draw = np.random.default_rng(7)
    return [draw.integers(3, model.vocab_size, size=n).tolist() for n in lengths]


def every(transcoder: Any) -> list[tuple[int, int]]:
    return [(a, i) for a in range(transcoder.n_layers) for i in range(transcoder.features(a))]


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    return load("qwen3_clt_mlp")


@pytest.fixture(scope="module")
def statistics(pair: tuple[Any, Any]) -> CorpusStatistics:
    return tracer.corpus_statistics(*pair, documents(pair[0]), every(pair[1]), unit=20)


def same(a: CorpusStatistics, b: CorpusStatistics) -> bool:
    return a.fingerprint() == b.fingerprint() and a.units.sources == b.units.sources


# What the numbers are -----------------------------------------------------------------------------


def residual_means(
    model: Any, transcoder: Any, docs: list[list[int]], ids: list[tuple[int, int]]
) -> np.ndarray:
    """Mean over tokens of the residual-direct edges between features in local graphs."""
    place = {feature: row for row, feature in enumerate(ids)}
    total, tokens = np.zeros((len(ids), len(ids))), 0
    for doc in docs:
        tokens += len(doc) - 1
        if len(doc) < 2:
            continue
        graph = tracer.trace(model, transcoder, doc, parts=True, check=False, max_n_logits=1)
        found = graph.nodes[graph.is_feature]
        rows = [place.get(key, -1) for key in zip(found["layer"], found["index"], strict=True)]
        known = np.array(rows) >= 0
        at = np.array(rows)[known]
        edges = graph.residual[: len(found), : len(found)].toarray()[known][:, known]
        np.add.at(total, (at[:, None], at[None, :]), edges)
    return total / tokens


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        *[(name, torch.float64, 1e-9) for name in NAMES],
        # A sum of float32 numbers that nearly cancel is as exact as its largest term.
        *[(name, torch.float32, 1e-5) for name in NAMES[:3]],
    ],
)
def test_folded_era_is_the_mean_of_local_edges(
    name: str, dtype: torch.dtype, tolerance: float
) -> None:
    model, transcoder = load(name, dtype)
    docs, ids = documents(model), every(transcoder)
    statistics = tracer.corpus_statistics(model, transcoder, docs, ids, unit=30)
    weights = tracer.global_weights(model, transcoder, statistics, "folded", top_k=None)
    wanted = residual_means(model, transcoder, docs, ids)
    found = weights.era.toarray()
    assert ((found != 0) == (wanted != 0)).all()
    # Relative to what is summed: |V| E[1(a_t > 0) a_s] hides how V came about, norms do not.
    norms = [
        np.linalg.norm(transcoder.encoder_rows(a, torch.tensor([i])).double().numpy())
        for a, i in ids
    ]
    written = [
        np.linalg.norm(transcoder.decoder_rows(a, torch.tensor([i])).double().sum(1).numpy())
        for a, i in ids
    ]
    scale = weights.expected_source.toarray() * np.outer(norms, written)
    assert (np.abs(found - wanted) <= tolerance * np.maximum(np.abs(wanted), scale)).all()
    assert np.linalg.norm(found - wanted) <= tolerance * np.linalg.norm(wanted)
    if dtype == torch.float64:  # each number by itself
        np.testing.assert_allclose(found, wanted, rtol=1e-7)
    if transcoder.read_hook != "hook_resid_mid":
        omitted = tracer.global_weights(model, transcoder, statistics, "omitted", top_k=None)
        assert np.linalg.norm(omitted.era.toarray() - wanted) > 0.05 * np.linalg.norm(wanted)


def test_shipped_model_has_the_same_means() -> None:
    folder = Path(tracer.__file__).parent.parent / "circuitbase" / "shipped" / "data"
    if not (folder / "clt").is_dir():
        pytest.skip("the shipped model is not there")
    model = tracer.load_model(str(folder / "model"))
    transcoder = tracer.load_transcoder(folder / "clt", lazy=False)
    docs = documents(model, (9, 12, 7))
    counts = tracer.feature_counts(model, transcoder, docs)
    chosen = FeatureSelection.active(counts, 2)
    ids = list(zip(chosen.features["layer"], chosen.features["index"], strict=True))
    wanted = residual_means(model, transcoder, docs, ids)
    statistics = tracer.corpus_statistics(model, transcoder, docs, chosen)
    for norm in ("omitted", "folded"):  # the same, where features read the stream itself
        weights = tracer.global_weights(model, transcoder, statistics, norm, top_k=None)
        difference = weights.era.toarray() - wanted
        assert np.linalg.norm(difference) <= 1e-5 * np.linalg.norm(wanted)
        assert np.abs(difference).max() <= 1e-5 * np.abs(wanted).max()


def brute_force(
    model: Any, transcoder: Any, docs: list[list[int]], ids: list[tuple[int, int]], norm: str
) -> dict[str, np.ndarray]:
    """Every number of every pair by its definition, from dense float64 activations."""
    activations, inverse = [], []
    for doc in docs:
        if len(doc) < 2:
            continue
        frozen = model.freeze(doc, check=False)
        a, sigma = [], []
        for layer, mlp_norm in enumerate(frozen.mlp_norms):
            x = mlp_norm(frozen.streams[layer])  # every case here reads mlp.hook_in
            a.append(transcoder.encode(layer, x)[1:].numpy())
            sigma.append(mlp_norm.inverse[1:].numpy())
        activations.append(np.concatenate(a, axis=1))
        inverse.append(np.stack(sigma, axis=1))
    place = [64 * layer + index for layer, index in ids]
    a, over = np.concatenate(activations)[:, place], np.concatenate(inverse)
    layers, n, tokens = np.array([layer for layer, _ in ids]), len(ids), len(a)
    made = {
        key: np.zeros((n, n))
        for key in (
            *("weights", "era", "twera", "cofiring", "expected_source", "expected_product"),
            *("standard_error_era", "standard_error_twera"),
        )
    }
    parts = model.parts().layers
    for t, (layer_t, index_t) in enumerate(ids):
        row = transcoder.encoder_rows(layer_t, torch.tensor([index_t]))[0].numpy()
        row = row * parts[layer_t].mlp_norm.weight.double().numpy()
        for s, (layer_s, index_s) in enumerate(ids):
            if layers[s] >= layers[t]:
                continue
            columns = transcoder.decoder_rows(layer_s, torch.tensor([index_s]))[0].numpy()
            written = columns[: layer_t - layer_s].sum(0)
            v = float(written @ row)
            source = a[:, s] * (over[:, layer_t] if norm == "folded" else 1.0)
            x, y, z = (a[:, t] > 0) * source, a[:, t] * source, a[:, t]
            ratio = y.mean() / z.mean() if z.mean() > 0 else 0.0
            made["weights"][t, s] = v
            made["era"][t, s] = v * x.mean()
            made["twera"][t, s] = v * ratio
            made["cofiring"][t, s] = ((a[:, t] > 0) & (a[:, s] != 0)).sum()
            made["expected_source"][t, s] = x.mean()
            made["expected_product"][t, s] = y.mean()
            made["standard_error_era"][t, s] = abs(v) * x.std(ddof=1) / np.sqrt(tokens)
            if z.mean() > 0:
                spread = (y - ratio * z).std(ddof=1)
                made["standard_error_twera"][t, s] = abs(v) * spread / np.sqrt(tokens) / z.mean()
    return made


@pytest.mark.parametrize("norm", ["omitted", "folded"])
@pytest.mark.parametrize("name", ["qwen3_clt_mlp", "llama_plt_mlp"])
def test_every_number_equals_brute_force(name: str, norm: Any) -> None:
    model, transcoder = load(name)
    docs = documents(model)
    ids = [(layer, index) for layer, index in every(transcoder) if index % 4 == 1]
    statistics = tracer.corpus_statistics(model, transcoder, docs, ids, unit=20)
    weights = tracer.global_weights(model, transcoder, statistics, norm, top_k=None)
    wanted = brute_force(model, transcoder, docs, ids, norm)
    for key, numbers in wanted.items():
        found = getattr(weights, key).toarray()
        # Differences of second moments: what was dropped, 2⁻³⁷ of them, counts as its root.
        limit = 2e-5 * np.abs(numbers).max() if key.startswith("standard") else 0.0
        np.testing.assert_allclose(found, numbers, rtol=1e-8, atol=limit, err_msg=key)
    pairs = weights.to_pandas()
    assert len(pairs) == weights.cut["pairs"] == weights.cut["kept"]


def test_a_norm_that_does_not_hold_is_refused() -> None:
    for name, reason in (("llama_pltskip_mlp", "skip"), ("gemma2_plt_ln2", None)):
        model, transcoder = load(name)
        docs, ids = documents(model, (9, 8)), every(transcoder)
        if reason is None:
            transcoder.write_hook = "mlp.hook_out"
            reason = "norm after the MLP"
        with pytest.raises(SettingError, match=reason):
            tracer.corpus_statistics(model, transcoder, docs, ids, norms=["folded"])
        statistics = tracer.corpus_statistics(model, transcoder, docs, ids)
        assert statistics.norms == ("omitted",)
        with pytest.raises(SettingError, match=reason):
            tracer.global_weights(model, transcoder, statistics, "folded")
        weights = tracer.global_weights(model, transcoder, statistics)
        assert weights.conventions["left_out"]


def test_the_writing_norm_is_in_the_weights() -> None:
    """A transcoder that writes before Gemma's post-norm: D centres and scales."""
    model, transcoder = load("gemma2_plt_ln2")
    statistics = tracer.corpus_statistics(
        model, transcoder, documents(model, (9, 8)), every(transcoder)
    )
    plain = tracer.global_weights(model, transcoder, statistics, top_k=None)
    transcoder.write_hook = "mlp.hook_out"
    statistics.identity["write_hook"] = "mlp.hook_out"
    weights = tracer.global_weights(model, transcoder, statistics, top_k=None)
    norm = model.parts().layers[0].post_mlp_norm
    scale = (norm.weight.double() + norm.offset).numpy()
    rows = transcoder.decoder_rows(0, torch.arange(64))[:, 0].numpy()
    targets = transcoder.encoder_rows(1, torch.arange(64)).numpy()
    assert not model.parts().layers[1].mlp_norm.centred  # so that E is 1 at ln2
    wanted = targets @ (rows * scale).T
    np.testing.assert_allclose(weights.weights[64:128, :64].toarray(), wanted, rtol=1e-9)
    np.testing.assert_allclose(plain.weights[64:128, :64].toarray(), targets @ rows.T, rtol=1e-9)


# In pieces ----------------------------------------------------------------------------------------


def test_sums_are_exact_in_any_order() -> None:
    draw = np.random.default_rng(1)
    numbers = draw.lognormal(sigma=8, size=(2, 200)) * draw.choice([-1, 1], size=(2, 200))
    numbers[0, 3] = 0.0
    whole = None
    for _ in range(20):
        parts = [ExactSums.zeros((2,)) for _ in range(3)]
        for place in draw.permutation(200):
            parts[draw.integers(3)].add(numbers[:, place])
        for part in parts[1:]:
            parts[0].merge(part)
        made = (parts[0].high.tolist(), parts[0].low.tolist(), parts[0].bins.tolist())
        whole = whole or made
        assert made == whole
    exact = [sum(map(int, row * 2.0**60)) / 2.0**60 for row in numbers]
    assert np.abs(parts[0].value - exact).max() <= 200 * 2.0**-37 * np.abs(numbers).max()


def test_pairs_are_added_wherever_they_first_occur() -> None:
    draw = np.random.default_rng(2)
    dense, counts = np.zeros((2, 40)), np.zeros(40, dtype=int)
    pairs, other = PairSums.empty(2), PairSums.empty(2)
    for step in range(12):
        keys = np.sort(draw.choice(40, size=draw.integers(0, 12), replace=False))
        numbers = draw.integers(1, 9, size=(2, len(keys))).astype(float)
        (pairs if step % 2 else other).add(keys, np.full(len(keys), 2), numbers)
        dense[:, keys] += numbers
        counts[keys] += 2
    pairs.merge(other)
    assert pairs.keys.tolist() == np.flatnonzero(counts).tolist()
    np.testing.assert_array_equal(pairs.sums.value, dense[:, pairs.keys])
    np.testing.assert_array_equal(pairs.counts, counts[pairs.keys])


@pytest.mark.parametrize("seed", range(4))
def test_shards_merge_to_the_same_sums(
    seed: int, pair: tuple[Any, Any], statistics: CorpusStatistics, tmp_path: Path
) -> None:
    draw = np.random.default_rng(seed)
    n = int(draw.integers(2, 7))
    docs, ids = documents(pair[0]), every(pair[1])
    order = draw.permutation(n) + 1
    parts = [tracer.corpus_statistics(*pair, docs, ids, unit=20, shard=(int(i), n)) for i in order]
    files = [part.save(tmp_path / f"{i}.npz") for i, part in enumerate(parts)]
    merged = CorpusStatistics.merge(CorpusStatistics.load(file) for file in files)
    assert same(merged, statistics)
    assert merged.units.missing == 0
    assert merged.corpus_id == statistics.corpus_id
    half = CorpusStatistics.merge(parts[: n - 1])
    assert half.units.missing == len(parts[-1].units)


def test_batches_change_sums_by_rounding_alone(
    pair: tuple[Any, Any], statistics: CorpusStatistics
) -> None:
    docs, ids = documents(pair[0]), every(pair[1])
    for batch, unit in ((1, 20), (30, 20), (4096, 10**6), (16, 1)):
        other = tracer.corpus_statistics(*pair, docs, ids, unit=unit, batch=batch)
        for mine, theirs in zip(statistics.pairs, other.pairs, strict=True):
            np.testing.assert_array_equal(mine.keys, theirs.keys)
            np.testing.assert_array_equal(mine.counts, theirs.counts)
            # Of float64 models; and 2⁻³⁷ of the largest number that enters.
            np.testing.assert_allclose(mine.sums.value, theirs.sums.value, rtol=1e-8)


def test_a_product_in_blocks_gives_the_same(
    pair: tuple[Any, Any], statistics: CorpusStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tracer.weights.products._BLOCK", 64 * 24 * 8 * 5)
    again = tracer.corpus_statistics(*pair, documents(pair[0]), every(pair[1]), unit=20)
    assert same(again, statistics)
    monkeypatch.setattr("tracer.weights.products._ENTRIES", 300)
    again = tracer.corpus_statistics(*pair, documents(pair[0]), every(pair[1]), unit=20)
    np.testing.assert_allclose(again.pairs[1].sums.value, statistics.pairs[1].sums.value, rtol=1e-8)
    assert again.additions > statistics.additions


def test_dense_products_give_the_same(pair: tuple[Any, Any], monkeypatch: Any) -> None:
    """What a GPU does, here on the CPU."""
    docs, ids = documents(pair[0]), every(pair[1])
    plain = tracer.corpus_statistics(*pair, docs, ids, unit=40)
    real = tracer.weights.products.pairs
    monkeypatch.setattr(
        "tracer.weights.collecting.pairs",
        lambda unit, norms, _device: real(unit, norms, torch.device("cpu")),
    )
    for limit in (1 << 30, 192 * 8 * 10):
        monkeypatch.setattr("tracer.weights.products._DENSE", limit)
        dense = tracer.corpus_statistics(*pair, docs, ids, unit=40)
        for mine, theirs in zip(plain.pairs, dense.pairs, strict=True):
            np.testing.assert_array_equal(mine.keys, theirs.keys)
            np.testing.assert_array_equal(mine.counts, theirs.counts)
            np.testing.assert_allclose(mine.sums.value, theirs.sums.value, rtol=1e-8)
    assert dense.additions > plain.additions


class KilledError(Exception):
    pass


def test_a_run_that_is_stopped_goes_on(
    pair: tuple[Any, Any], statistics: CorpusStatistics, tmp_path: Path
) -> None:
    docs, ids, file = documents(pair[0]), every(pair[1]), tmp_path / "sums.npz"
    stops = iter((21, 45, 70))

    def run(limit: float) -> CorpusStatistics:
        def stop(tokens: int) -> None:
            if tokens > limit:
                raise KilledError

        return tracer.corpus_statistics(
            *pair, docs, ids, unit=20, batch=16, checkpoint=file, every=1, progress=stop
        )

    sizes = []
    for limit in stops:
        with pytest.raises(KilledError):
            run(limit)
        sizes.append(CorpusStatistics.load(file).tokens)
    assert 0 < sizes[0] < sizes[1] < sizes[2] < statistics.tokens
    assert CorpusStatistics.load(file).units.missing is None
    made = tracer.corpus_statistics(*pair, docs, ids, unit=20, checkpoint=file)
    whole = tracer.corpus_statistics(*pair, docs, ids, unit=20, batch=16)
    np.testing.assert_allclose(made.pairs[1].sums.value, statistics.pairs[1].sums.value, rtol=1e-8)
    for limit in (33, 10**9):  # and with one size of batches to the last bit
        file.unlink(missing_ok=limit > 33)
        try:
            made = run(limit)
        except KilledError:
            made = run(10**9)
        assert same(made, whole)
    assert same(CorpusStatistics.load(file), whole)
    with pytest.raises(SettingError, match="another run"):
        tracer.corpus_statistics(*pair, docs, ids[1:], unit=20, checkpoint=file)
    fresh = tracer.corpus_statistics(*pair, docs, ids[1:], unit=20, checkpoint=file, resume=False)
    assert len(fresh) == len(ids) - 1


def test_a_process_that_is_killed_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import json, os, signal, sys, torch, tracer
        torch.set_num_threads(1)
        golden, file, docs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
        model = tracer.load_model(golden + "/models/llama", dtype=torch.float64, check=False)
        transcoder = tracer.load_transcoder(
            golden + "/transcoders/llama_plt_mlp", dtype=torch.float64)
        ids = [(layer, i) for layer in range(3) for i in range(0, 64, 3)]
        def tick(tokens):
            if tokens > 50:
                os.kill(os.getpid(), signal.SIGKILL)
        tracer.corpus_statistics(
            model, transcoder, docs, ids, unit=20, checkpoint=file, every=1, progress=tick)
        """
    )
    model, transcoder = load("llama_plt_mlp")
    docs, file = documents(model), tmp_path / "sums.npz"
    killed = subprocess.run(
        [sys.executable, "-c", script, HERE / "data" / "golden", file, json.dumps(docs)],
        capture_output=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert 0 < CorpusStatistics.load(file).tokens <= 50
    ids = [(layer, i) for layer in range(3) for i in range(0, 64, 3)]
    resumed = tracer.corpus_statistics(model, transcoder, docs, ids, unit=20, checkpoint=file)
    whole = tracer.corpus_statistics(model, transcoder, docs, ids, unit=20)
    assert same(resumed, whole)


def test_ray_runs_shards_and_survives_a_death(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="the extra [ray] is not installed")
    golden = HERE / "data" / "golden"
    model, transcoder = load("llama_plt_mlp", torch.float32)
    docs, ids = documents(model), FeatureSelection.of(every(transcoder))
    whole = tracer.corpus_statistics(model, transcoder, docs, ids, unit=20)
    mark = tmp_path / "died"
    made = run_with_ray(golden, docs, mark)
    assert mark.exists()
    assert made == f"{whole.fingerprint()} {whole.tokens}"


def run_with_ray(golden: Path, docs: list[list[int]], mark: Path) -> str:
    """Run in a process of its own: Ray starts threads that a test run would have to end."""
    script = textwrap.dedent(
        """
        import json, os, sys, ray, tracer
        from tracer.weights import sharding
        golden, mark, docs = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
        ids = tracer.FeatureSelection.of([(l, i) for l in range(3) for i in range(64)])
        plain = sharding._shard
        def dies_once(how, shared, shard, file, settings):
            if shard[0] == 2 and not os.path.exists(mark):
                open(mark, "w").close()
                os._exit(1)
            return plain(how, shared, shard, file, settings)
        sharding._shard = dies_once
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        made = tracer.ray_statistics(
            golden + "/models/llama", golden + "/transcoders/llama_plt_mlp", docs, ids,
            shards=3, unit=20)
        print("sums", made.fingerprint(), made.tokens)
        ray.shutdown()
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(golden), str(mark), json.dumps(docs)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("sums ")]
    assert lines, done.stderr
    return lines[0].removeprefix("sums ")


# What is counted ----------------------------------------------------------------------------------


def test_first_positions_and_special_tokens_are_not_counted(pair: tuple[Any, Any]) -> None:
    model, transcoder = pair
    docs, ids = documents(model, (9, 12, 5)), every(transcoder)[:80]

    def count(**how: Any) -> CorpusStatistics:
        return tracer.corpus_statistics(model, transcoder, docs, ids, **how)

    assert count().tokens == 23
    assert count(zero_first=0).tokens == 26
    assert count(zero_first=2).tokens == 20
    assert count(special=[docs[0][4], docs[1][3]]).tokens <= 21
    with_bos = count(bos=2)
    assert with_bos.tokens == 26  # BOS came in front, and only it is left out
    assert with_bos.identity["counting"]["bos"] == 2
    assert count(context=4).tokens < 23


def test_corpora_of_every_kind_give_the_same_sums(
    pair: tuple[Any, Any], statistics: CorpusStatistics, tmp_path: Path
) -> None:
    docs, ids = documents(pair[0]), every(pair[1])
    lines = "".join(json.dumps({"token_ids": ids_, "more": 1}) + "\n" for ids_ in docs)
    (tmp_path / "c.jsonl").write_text(lines)
    kinds: list[Any] = [
        tmp_path / "c.jsonl",
        str(tmp_path / "c.jsonl"),
        [{"token_ids": one} for one in docs],
        [np.array(one) for one in docs],
        (one for one in docs),
        tracer.Corpus.of(docs),
    ]
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"token_ids": docs}), tmp_path / "c.parquet")
    kinds.append(tmp_path / "c.parquet")
    for corpus in kinds:
        made = tracer.corpus_statistics(*pair, corpus, ids, unit=20)
        assert made.fingerprint() == statistics.fingerprint(), corpus
        assert made.corpus_id == statistics.corpus_id


def test_texts_get_the_tokenizers_bos(tmp_path: Path) -> None:
    folder = Path(tracer.__file__).parent.parent / "circuitbase" / "shipped" / "data"
    if not (folder / "clt").is_dir():
        pytest.skip("the shipped model is not there")
    model = tracer.load_model(str(folder / "model"), check=False)
    transcoder = tracer.load_transcoder(folder / "clt")
    texts = ["the capital of the state", "of the"]
    (tmp_path / "c.txt").write_text("\n".join(texts) + "\n")
    by_text = tracer.corpus_statistics(model, transcoder, texts, [(0, 1), (1, 2)])
    by_ids = tracer.corpus_statistics(
        model, transcoder, [model.tokenize(text) for text in texts], [(0, 1), (1, 2)]
    )
    by_file = tracer.corpus_statistics(model, transcoder, tmp_path / "c.txt", [(0, 1), (1, 2)])
    assert by_text.fingerprint() == by_ids.fingerprint() == by_file.fingerprint()
    assert by_text.tokens == sum(
        int(token not in model.tokenizer.all_special_ids)
        for text in texts
        for token in model.tokenize(text)[1:]
    )


def test_features_can_be_chosen_in_many_ways(pair: tuple[Any, Any]) -> None:
    model, transcoder = pair
    docs = documents(model)
    counts = tracer.feature_counts(model, transcoder, docs)
    assert counts.tokens == sum(max(n - 1, 0) for n in LENGTHS)
    whole = tracer.corpus_statistics(model, transcoder, docs, every(transcoder))
    np.testing.assert_array_equal(np.concatenate(counts.counts), whole.counts)
    active = FeatureSelection.active(counts, 20)
    assert len(active) == int((whole.counts >= 20).sum())
    graph = tracer.trace(model, transcoder, docs[0], max_n_logits=1)
    of_graph = FeatureSelection.of_graphs([graph], "first")
    found = graph.nodes[graph.is_feature]
    assert set(zip(of_graph.features["layer"], of_graph.features["index"], strict=True)) == set(
        zip(found["layer"], found["index"], strict=True)
    )
    sample = FeatureSelection.sample(transcoder, 5, seed=3)
    assert sample.features.groupby("layer").size().tolist() == [5, 5, 5]
    assert sample.features.equals(FeatureSelection.sample(transcoder, 5, seed=3).features)
    among = FeatureSelection.sample(transcoder, 500, among=active)
    assert len(among) == len(active)
    both, either = active & of_graph, active | of_graph
    assert len(both) + len(either) == len(active) + len(of_graph)
    assert both.features["reason"].str.contains("; in first").all()
    chosen = tracer.corpus_statistics(model, transcoder, docs, either)
    assert chosen.selection == either.record
    weights = tracer.global_weights(model, transcoder, chosen)
    assert weights.features["reason"].tolist() == either.features["reason"].tolist()
    by_default = tracer.corpus_statistics(model, transcoder, docs)
    assert len(by_default) == int((whole.counts >= 10).sum())


def test_top_k_features_are_those_of_the_whole_layer(tmp_path: Path) -> None:
    """TopK depends on all features of a layer: the chosen ones cannot be encoded alone."""
    model, transcoder = load("llama_plt_mlp")
    topk = dataclasses.replace(transcoder.activation, kind="topk", k=6)
    transcoder.activation = topk
    assert transcoder.restricted([np.arange(3)] * 3) is None
    docs, ids = documents(model), every(transcoder)
    whole = tracer.corpus_statistics(model, transcoder, docs, ids, unit=20)
    some = [place for place in range(len(ids)) if place % 3]
    part = tracer.corpus_statistics(
        model, transcoder, docs, [ids[place] for place in some], unit=20
    )
    np.testing.assert_array_equal(part.counts, whole.counts[some])
    for layer in range(1, 3):
        rows = [place - 64 * layer for place in some if 64 * layer <= place < 64 * (layer + 1)]
        wanted = whole.moment("ts", "folded", layer).toarray()[rows][:, some]
        np.testing.assert_allclose(part.moment("ts", "folded", layer).toarray(), wanted, rtol=1e-8)


# What is kept -------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 10])
@pytest.mark.parametrize("by", [("weight",), ("era", "twera"), ("weight", "era", "twera")])
def test_the_largest_entries_stay(
    k: int, by: Any, pair: tuple[Any, Any], statistics: CorpusStatistics, monkeypatch: Any
) -> None:
    whole = tracer.global_weights(*pair, statistics, top_k=None)
    monkeypatch.setattr("tracer.weights.virtual._BLOCK", 1)
    small = 17 * 3 * 32 * 16  # bytes: some sources of a layer at a time
    monkeypatch.setattr(
        "tracer.weights.scores.tiles",
        lambda *a, **kw: __import__("tracer.weights.virtual", fromlist=["tiles"]).tiles(
            *a, memory=small, **kw
        ),
    )
    threshold = {"weight": 0.05, "twera": 0.01}
    weights = tracer.global_weights(*pair, statistics, top_k=k, threshold=threshold, by=by)
    stays = np.zeros((len(whole), len(whole)), dtype=bool)
    for name in by:
        size = np.abs(whole.matrix(name).toarray())
        size[size < threshold.get(name, 0)] = 0
        for matrix in (size, size.T):
            limit = np.sort(matrix, axis=1)[:, -k]
            keep = (matrix > 0) & (matrix >= limit[:, None])
            stays |= keep if matrix is size else keep.T
    np.testing.assert_array_equal(weights.weights.toarray() != 0, stays)
    for name in ("weights", "era", "twera", "cofiring", "standard_error_twera"):
        wanted = np.where(stays, getattr(whole, name).toarray(), 0)
        np.testing.assert_allclose(getattr(weights, name).toarray(), wanted, rtol=1e-12)
    cut = weights.cut
    assert cut["kept"] == stays.sum()
    assert cut["cofiring"] == statistics.n_pairs
    for name in ("weight", "era", "twera"):
        size = np.abs(whole.matrix(name).toarray())
        assert cut["share_kept"][name] == pytest.approx(size[stays].sum() / size.sum())
        assert cut["largest_cut"][name] == pytest.approx(size[~stays].max())


def test_weights_are_saved_and_read(
    pair: tuple[Any, Any], statistics: CorpusStatistics, tmp_path: Path
) -> None:
    weights = tracer.global_weights(*pair, statistics, top_k=5)
    weights = weights.with_influence(tracer.global_influence(weights, ["2/7", (2, 9)]))
    file = weights.save(tmp_path / "w.npz")
    again = GlobalWeights.load(file)
    assert again.weights_id == weights.weights_id
    assert again.feature_ids == weights.feature_ids
    assert again.targets == weights.targets == [weights.feature_ids[i] for i in (128 + 7, 128 + 9)]
    pd.testing.assert_frame_equal(again.to_pandas(), weights.to_pandas())
    pd.testing.assert_frame_equal(again.features, weights.features, check_dtype=False)
    for name in ("selection", "cut", "conventions", "tokens", "norm", "corpus_id"):
        assert getattr(again, name) == getattr(weights, name)
    np.testing.assert_array_equal(again.influence.influence, weights.influence.influence)
    network = weights.to_networkx()
    assert network.number_of_edges() == weights.weights.nnz
    row = weights.to_pandas().iloc[3]
    assert network.edges[row["source"], row["target"]]["twera"] == row["twera"]
    other = tracer.global_weights(*pair, statistics, "folded", top_k=5)
    assert other.weights_id != weights.weights_id


# Influence ----------------------------------------------------------------------------------------


def test_influence_is_that_of_all_paths(
    pair: tuple[Any, Any], statistics: CorpusStatistics
) -> None:
    weights = tracer.global_weights(*pair, statistics, "folded", top_k=None)
    for by, matrix in (("twera", weights.twera), ("weight", weights.weights)):
        size = np.abs(matrix.toarray())
        sums = size.sum(1, keepdims=True)
        share = np.divide(size, sums, out=np.zeros_like(size), where=sums > 0)
        w = np.zeros(len(weights))
        w[[130, 140]] = 0.5
        wanted = w @ (np.linalg.inv(np.eye(len(w)) - share) - np.eye(len(w)))
        found = tracer.global_influence(weights, [(2, 2), (2, 12)], by=by)
        np.testing.assert_allclose(found.influence, wanted, atol=1e-12)
        np.testing.assert_allclose(found.cut, 0, atol=1e-9)
    weighted = tracer.global_influence(weights, {"2/2": 0.25})
    assert weighted.target_weights[130] == 0.25
    assert tracer.global_influence(weights, weights.feature_ids[130]).target_weights[130] == 1


def test_what_lies_outside_is_the_rest_of_the_mean_input(pair: tuple[Any, Any]) -> None:
    """Against local graphs: what reaches an active feature beyond the chosen residual edges."""
    model, transcoder = pair
    docs = documents(model)
    ids = [place for place in every(transcoder) if place[1] % 2]
    statistics = tracer.corpus_statistics(model, transcoder, docs, ids)
    weights = tracer.global_weights(model, transcoder, statistics, "folded", top_k=4)
    found = tracer.global_influence(weights, [(2, 1)]).outside
    inside = residual_means(model, transcoder, docs, ids).sum(1)
    total = np.zeros(len(ids))
    place = {feature: row for row, feature in enumerate(ids)}
    for doc in docs:
        if len(doc) < 2:
            continue
        graph = tracer.trace(model, transcoder, doc, check=False, max_n_logits=1)
        # A row and the constants of the stream sum to a - what the encoder itself adds.
        own = {
            layer: tracer.weights.virtual.encoder_constants(
                model, transcoder, layer, np.arange(transcoder.features(layer))
            ).numpy()
            for layer in range(transcoder.n_layers)
        }
        nodes = graph.nodes[graph.is_feature]
        for layer, index, a in zip(
            nodes["layer"], nodes["index"], nodes["activation"], strict=True
        ):
            if (layer, index) in place and a > 0:
                total[place[layer, index]] += a - own[layer][index]
    total /= statistics.tokens
    live = total != 0
    np.testing.assert_allclose(found[live], 1 - inside[live] / total[live], rtol=1e-6)
    omitted = tracer.global_weights(model, transcoder, statistics, top_k=4)
    assert np.isnan(tracer.global_influence(omitted, [(2, 1)]).outside).all()


def test_interference_is_flagged(pair: tuple[Any, Any], statistics: CorpusStatistics) -> None:
    weights = tracer.global_weights(*pair, statistics, top_k=None)
    flagged = tracer.interference(weights, share=0.1)
    pairs = weights.to_pandas()
    size, used = pairs["weight"].abs(), pairs["twera"].abs()
    unused = flagged[flagged["flag"] == "unused"]
    assert (unused["cofiring"] == 0).all()
    assert len(unused) == ((size >= size.quantile(0.9)) & (pairs["cofiring"] == 0)).sum()
    tiny = flagged[flagged["flag"] == "tiny"]
    assert len(tiny)
    assert (tiny["weight"].abs() < size.median()).all()
    assert (tiny["twera"].abs() >= used[used > 0].quantile(0.89)).all()
    assert unused["weight"].abs().is_monotonic_decreasing
    with pytest.raises(SettingError, match="share"):
        tracer.interference(weights, share=0)
