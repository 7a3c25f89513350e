"""Edges of attribution graphs, for every family, against oracles that share none of their code.

The dense oracle carries each source alone up the frozen model (`FrozenModel.run`, which
`test_models.py` proves against the real, patched transformers model) and reads it with every
target; edges.py does the opposite and everything at once. Float64: 1e-9 of the largest entry.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

import tracer
from tracer.attribution import tracing
from tracer.attribution.edges import Targets, boundary, residual_rows, rows
from tracer.attribution.local import LocalModel
from tracer.attribution.selecting import feature_targets
from tracer.attribution.targets import find_outputs
from tracer.attribution.tracing import local_model
from tracer.errors import GraphError, SettingError, TracingError
from tracer.models import Model

L, D, F, VOCAB = 4, 24, 30, 53
IDS = [1, 17, 4, 50, 17, 33, 8]
COMMON = {
    "hidden_size": D,
    "intermediate_size": 32,
    "num_hidden_layers": L,
    "num_attention_heads": 4,
    "vocab_size": VOCAB,
    "max_position_embeddings": 40,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED = {**COMMON, "num_key_value_heads": 2, "head_dim": 10}
GEMMA = {
    **GROUPED,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"] * (L // 2),
    "query_pre_attn_scalar": 7,
}


def gpt2() -> transformers.PretrainedConfig:
    return transformers.GPT2Config(
        n_embd=D, n_layer=L, n_head=4, n_positions=40, vocab_size=VOCAB, bos_token_id=1
    )


CONFIGS = {
    "gpt2": gpt2,
    "gpt_neox": lambda: transformers.GPTNeoXConfig(**COMMON, use_parallel_residual=True),
    "gpt_neox sequential": lambda: transformers.GPTNeoXConfig(
        **COMMON, use_parallel_residual=False
    ),
    "llama": lambda: transformers.LlamaConfig(**GROUPED, attention_bias=True),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=4),
    "qwen2": lambda: transformers.Qwen2Config(**COMMON, num_key_value_heads=1),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED),
    "gemma2": lambda: transformers.Gemma2Config(**GEMMA),
    "gemma3": lambda: transformers.Gemma3TextConfig(**GEMMA, final_logit_softcapping=5.0),
}
# Every family; every hook; cross-layer, per-layer and skip; a write before a post-norm.
CASES = [
    ("gpt2", "clt", "hook_resid_mid", "hook_mlp_out"),
    ("gpt2", "pltskip", "mlp.hook_in", "hook_mlp_out"),
    ("gpt_neox", "clt", "hook_resid_mid", "hook_mlp_out"),
    ("gpt_neox", "pltskip", "ln2.hook_normalized", "hook_mlp_out"),
    ("gpt_neox sequential", "clt", "mlp.hook_in", "hook_mlp_out"),
    ("llama", "pltskip", "mlp.hook_in", "hook_mlp_out"),
    ("mistral", "clt", "ln2.hook_normalized", "hook_mlp_out"),
    ("qwen2", "plt", "hook_resid_mid", "hook_mlp_out"),
    ("qwen3", "clt", "mlp.hook_in", "hook_mlp_out"),
    ("gemma2", "clt", "hook_resid_mid", "mlp.hook_out"),
    ("gemma2", "pltskip", "mlp.hook_in", "mlp.hook_out"),
    ("gemma3", "plt", "ln2.hook_normalized", "hook_mlp_out"),
]


def make_model(family: str, dtype: torch.dtype = torch.float64) -> Model:
    """A random model of a family, far from its trivial initial values."""
    config = CONFIGS[family]()
    config._attn_implementation = "eager"
    torch.manual_seed(7)
    module = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, dtype=torch.float64) + 0.05)
    return Model(module, model_id=family.replace(" ", "-"))


def make_transcoder(
    folder: Path, kind: str, read: str, write: str, dtype: torch.dtype = torch.float64
) -> Any:
    """A random transcoder in the circuit-tracer layout, about a third of it active."""
    torch.manual_seed(11)
    config = {"model_name": "m", "feature_input_hook": read, "feature_output_hook": write}

    def random(*shape: int, scale: float = 0.3) -> torch.Tensor:
        return scale * torch.randn(*shape, dtype=torch.float64)

    for i in range(L):
        if kind == "clt":
            save_file({f"W_dec_{i}": random(F, L - i, D)}, folder / f"W_dec_{i}.safetensors")
            encoder = {
                f"W_enc_{i}": random(F, D),
                f"b_enc_{i}": random(F),
                f"b_dec_{i}": random(D),
                f"threshold_{i}": random(F).abs(),
            }
            save_file(encoder, folder / f"W_enc_{i}.safetensors")
        else:
            layer = {
                "W_enc": random(F, D),
                "W_dec": random(F, D),
                "b_enc": random(F),
                "b_dec": random(D),
                "activation_function.threshold": random(F).abs(),
            }
            if kind == "pltskip":
                layer["W_skip"] = random(D, D, scale=0.2)
            save_file(layer, folder / f"layer_{i}.safetensors")
    if kind == "clt":
        config["model_kind"] = "cross_layer_transcoder"
    else:
        config |= {
            "model_kind": "transcoder_set",
            "transcoders": [f"layer_{i}.safetensors" for i in range(L)],
        }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return tracer.load_transcoder(str(folder), dtype=dtype)


@pytest.fixture(params=CASES, ids=lambda case: " ".join(case))
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Model, Any]:
    family, *how = request.param
    return make_model(family), make_transcoder(tmp_path, *how)


@pytest.fixture
def small(tmp_path: Path) -> tuple[Model, Any]:
    return make_model("gpt2"), make_transcoder(tmp_path, "clt", "hook_resid_mid", "hook_mlp_out")


def dense_rows(local: LocalModel, targets: Targets, *, attend: bool = True) -> np.ndarray:
    """Carry one source at a time up the frozen model and read it with every target."""
    frozen = local.frozen
    if not attend:
        silent = [
            dataclasses.replace(a, pattern=torch.zeros_like(a.pattern)) for a in frozen.attentions
        ]
        frozen = dataclasses.replace(frozen, attentions=silent)
    n, n_positions = local.n_features, frozen.n_positions
    n_sources = n + L * n_positions + n_positions
    start = frozen.embeddings.new_zeros(n_sources, n_positions, D)
    writes = frozen.embeddings.new_zeros(L, n_sources, n_positions, D)
    for column, number in enumerate(local.canonical):
        position, layer = int(local.positions[number]), int(local.layers[number])
        index = torch.tensor([int(local.indices[number])])
        decoder = local.transcoder.decoder_rows(layer, index)[0] * local.activations[number]
        for m, vector in zip(local.transcoder.targets(layer), decoder, strict=True):
            post = local.post_norm(m)
            written = vector if post is None else post.linear(vector[None], [position])[0]
            writes[m, column, position] = written
    for layer in range(L):
        for position in range(n_positions):
            column = n + layer * n_positions + position
            writes[layer, column, position] = local.errors[layer, position]
    for position in range(n_positions):
        start[n + L * n_positions + position, position] = frozen.embeddings[position]

    def write(layer: int, read: torch.Tensor) -> torch.Tensor:
        return writes[layer] + local.skip(layer, read)

    read, final = frozen.run(start, write, constants=False)
    streams = torch.stack([*read, final])  # (L + 1, sources, P, d)
    inverse = np.argsort(targets.order)
    layers, positions = targets.layers[inverse], targets.positions[inverse]
    at = streams[torch.from_numpy(layers), :, torch.from_numpy(positions)]
    return torch.einsum("tsd,td->ts", at, targets.vectors[torch.from_numpy(inverse)]).numpy()


def everything(model: Model, transcoder: Any, zero_first: int = 1) -> tuple[LocalModel, Targets]:
    local = local_model(model, transcoder, IDS, zero_first)
    outputs = find_outputs(local, None, model)
    return local, feature_targets(local, np.arange(local.n_features), outputs)


def close(a: Any, b: np.ndarray, tolerance: float = 1e-9) -> bool:
    dense = a.toarray() if hasattr(a, "toarray") else a
    return bool(np.abs(dense - b).max() <= tolerance * np.abs(b).max())


# Every family -----------------------------------------------------------------------------------


def test_edges_equal_one_source_at_a_time(pair):
    local, targets = everything(*pair)
    assert close(rows(local, targets).weights, dense_rows(local, targets))


def test_every_boundary_gives_the_same_rows(pair):
    local, targets = everything(*pair)
    whole = rows(local, targets, meet=0)
    for meet in range(1, L + 1):
        other = rows(local, targets, meet=meet)
        assert close(other.weights, whole.weights.toarray(), 1e-12)
        np.testing.assert_allclose(other.constants, whole.constants, rtol=1e-12)


def test_residual_part_is_what_stays_without_attention(pair):
    local, targets = everything(*pair)
    assert close(residual_rows(local, targets), dense_rows(local, targets, attend=False))


@pytest.mark.parametrize("zero_first", [0, 1, 3])
def test_rows_are_whole_accounts(pair, zero_first):
    model, transcoder = pair
    graph = tracer.trace(model, transcoder, IDS, zero_first=zero_first, check=False)
    local = local_model(model, transcoder, IDS, zero_first)
    wanted = local.preactivations.numpy()[local.canonical]
    got = np.asarray(graph.adjacency.sum(axis=1)).ravel() + graph.bias
    assert close(got[graph.is_feature], wanted)
    parts = graph.nodes[[f"bias_{part}" for part in ("positions", "parameters", "zeroed")]]
    np.testing.assert_allclose(parts.sum(axis=1)[graph.is_feature], graph.bias[graph.is_feature])
    # The model's own logits, before a soft cap and less their mean.
    logits = local.frozen.logits.clone()
    if local.frozen.soft_cap:
        logits = local.frozen.soft_cap * torch.atanh(logits / local.frozen.soft_cap)
    ids = torch.tensor(graph.nodes["index"][graph.is_logit].tolist())
    assert close(got[graph.is_logit], (logits - logits.mean())[ids].numpy())


def test_zeroed_positions_hold_nothing(pair):
    graph = tracer.trace(*pair, IDS, zero_first=2)
    early = (graph.nodes["position"] < 2).to_numpy()
    assert not (graph.is_feature & early).any()
    assert not graph.adjacency[:, np.flatnonzero(graph.is_error & early)].nnz
    embeddings = graph.adjacency[:, np.flatnonzero(graph.is_embedding & early)]
    assert embeddings.nnz


# Golden graphs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_golden_adjacency(golden_pair, data, dtype):
    # The issue asks for 1e-4 and 1e-3; the reference computed in float32, which is 1e-6 here.
    graph, arrays = golden_pair
    name = graph.slug
    model = tracer.load_model(str(data / "golden/models" / name.split("_")[0]), dtype=dtype)
    folder = data / "golden/transcoders" / name
    mine = tracer.trace(
        model, tracer.load_transcoder(str(folder), dtype=dtype), arrays["input_tokens"].tolist()
    )
    nodes = mine.nodes
    places = nodes.loc[mine.is_feature, ["layer", "position", "index"]].to_numpy()
    np.testing.assert_array_equal(places, arrays["active_features"])
    np.testing.assert_array_equal(nodes["index"][mine.is_logit], arrays["logit_tokens"])
    np.testing.assert_allclose(
        nodes["probability"][mine.is_logit], arrays["logit_probabilities"], rtol=1e-5
    )
    np.testing.assert_allclose(
        nodes["activation"][mine.is_feature], arrays["activations"], rtol=1e-4, atol=1e-5
    )
    difference = mine.adjacency.toarray() - arrays["adjacency"]
    assert np.linalg.norm(difference) <= 5e-6 * np.linalg.norm(arrays["adjacency"])
    assert np.abs(difference).max() <= 1e-5 * np.abs(arrays["adjacency"]).max()
    scores = tracer.scores(mine)
    assert scores.replacement == pytest.approx(float(arrays["replacement_score"]), abs=1e-5)
    assert scores.completeness == pytest.approx(float(arrays["completeness_score"]), abs=1e-5)


# Parts and heads ----------------------------------------------------------------------------------


def test_parts_sum_to_the_edges(pair):
    graph = tracer.trace(*pair, IDS, parts=True)
    whole = graph.residual.toarray() + graph.attention.toarray()
    assert close(whole, graph.adjacency.toarray(), 1e-12)
    # Between positions everything is attention.
    target, source = graph.residual.nonzero()
    position = graph.nodes["position"].to_numpy()
    assert (position[target] == position[source]).all()


def one_head(local: LocalModel, targets: Targets, layer: int, head: int) -> np.ndarray:
    """Rows of a model in which all attention but one head is silent."""
    attentions = []
    for i, attention in enumerate(local.frozen.attentions):
        pattern = torch.zeros_like(attention.pattern)
        if i == layer:
            pattern[head] = attention.pattern[head]
        attentions.append(dataclasses.replace(attention, pattern=pattern))
    kept = local.frozen
    local.frozen = dataclasses.replace(kept, attentions=attentions)
    try:
        return dense_rows(local, targets)
    finally:
        local.frozen = kept


def test_head_loadings_equal_models_with_one_head(pair):
    model, transcoder = pair
    graph = tracer.trace(model, transcoder, IDS, parts=True)
    local, targets = everything(model, transcoder)
    silent = dense_rows(local, targets, attend=False)
    rng = np.random.default_rng(3)
    entries = np.stack(graph.adjacency.nonzero(), axis=1)
    heaviest = np.argsort(-np.abs(graph.adjacency.data))[:10]
    chosen = np.concatenate([rng.choice(len(entries), 20, replace=False), heaviest])
    edges = [(graph.keys[s], graph.keys[t]) for t, s in entries[chosen]]
    found = tracer.head_loadings(graph, edges, model=model, transcoder=transcoder)
    scale = np.abs(graph.adjacency).max()
    n_features = int(graph.is_feature.sum())
    offset = graph.n_nodes - len(targets)  # rows of logits follow errors and embeddings
    loads = {
        (layer, head): one_head(local, targets, layer, head) - silent
        for layer in range(L)
        for head in range(4)
    }
    for key, table in found.groupby(["source", "target"]):
        s, t = graph.row(key[0]), graph.row(key[1])
        row = t if t < n_features else t - offset
        assert table["loading"].sum() == pytest.approx(graph.adjacency[t, s], abs=1e-12 * scale)
        for (layer, head), load in loads.items():
            mine = table[(table.layer == layer) & (table["head"] == head)]["loading"].sum()
            assert mine == pytest.approx(load[row, s], abs=1e-9 * scale)
        residual = table.loc[table.part == "residual", "loading"].sum()
        assert residual == pytest.approx(graph.residual[t, s], abs=1e-9 * scale)


def test_head_loadings_refuse_what_is_not_there(small, tmp_path):
    model, transcoder = small
    graph = tracer.trace(model, transcoder, IDS)
    with pytest.raises(GraphError, match="no edge from"):
        tracer.head_loadings(
            graph, [("embedding/6", "embedding/1")], model=model, transcoder=transcoder
        )
    with pytest.raises(TracingError, match="was traced with 'gpt2', not 'llama'"):
        tracer.head_loadings(graph, [], model=make_model("llama"), transcoder=transcoder)
    other = graph.replace(transcoder_id="another")
    with pytest.raises(TracingError, match="'another'"):
        tracer.head_loadings(other, [], model=model, transcoder=transcoder)


# Fewer features -----------------------------------------------------------------------------------


def test_merged_features_keep_rows_whole(small):
    full = tracer.trace(*small, IDS)
    few = tracer.trace(*small, IDS, max_features=30)
    assert int(few.is_feature.sum()) == 30
    assert few.source["merged"]["features"] == int(full.is_feature.sum()) - 30
    assert 0 < few.source["merged"]["influence"] < 1
    kept = [full.row(key) for key in few.keys]
    np.testing.assert_allclose(few.bias, full.bias[kept], rtol=1e-9)
    sums = np.asarray(few.adjacency.sum(axis=1)).ravel()
    np.testing.assert_allclose(
        sums, np.asarray(full.adjacency.sum(axis=1)).ravel()[kept], atol=1e-9
    )
    # Merging by hand: every removed column goes to the error of its own layer and position.
    dense = full.adjacency.toarray()
    for row in set(np.flatnonzero(full.is_feature)) - set(kept):
        node = full.nodes.iloc[row]
        dense[:, full.row(f"error/{node['layer']}/{node['position']}")] += dense[:, row]
    assert close(few.adjacency, dense[np.ix_(kept, kept)])
    assert few.graph_id != full.graph_id


def test_the_most_influential_features_are_chosen(small):
    full = tracer.trace(*small, IDS)
    few = tracer.trace(*small, IDS, max_features=60)
    influence = tracer.influence(full)[full.is_feature]
    keys = np.array(full.keys, dtype=object)[full.is_feature]
    best = set(keys[np.argsort(-influence)[:60]])
    # Chosen while rows are computed, so not exactly the best sixty, but nearly.
    assert len(best & set(few.keys)) >= 50


def test_all_features_chosen_is_the_whole_graph(small):
    full = tracer.trace(*small, IDS)
    n = int(full.is_feature.sum())
    assert tracer.trace(*small, IDS, max_features=n + 5).n_edges == full.n_edges


# Targets ------------------------------------------------------------------------------------------


def test_a_difference_is_the_difference_of_rows(small):
    both = tracer.trace(*small, IDS, targets=[5, 9])
    difference = tracer.trace(*small, IDS, targets=[(5, 9)])
    a, b = (both.adjacency[[i]].toarray()[0, :-2] for i in np.flatnonzero(both.is_logit))
    mine = difference.adjacency[[-1]].toarray()[0, :-1]
    np.testing.assert_allclose(mine, a - b, atol=1e-10)
    logit = difference.nodes.iloc[-1]
    assert (logit["index"], logit["probability"]) == (-1, 1.0)
    assert " − " in logit["token"]


def test_features_as_targets_have_their_own_rows(small):
    full = tracer.trace(*small, IDS)
    rows_ = np.flatnonzero(full.is_feature & (full.nodes["layer"] == 2).to_numpy())[-2:]
    keys = [full.keys[row] for row in rows_]
    below = tracer.trace(*small, IDS, targets=keys)
    assert list(below.nodes["token"][below.is_logit]) == keys
    np.testing.assert_allclose(below.logit_weights[below.is_logit], 0.5)
    kept = [full.row(key) for key in below.keys if not key.startswith("logit")]
    mine = below.adjacency[np.flatnonzero(below.is_logit)].toarray()[:, : len(kept)]
    np.testing.assert_allclose(mine, full.adjacency[rows_].toarray()[:, kept], atol=1e-10)
    assert (below.nodes["layer"][below.is_feature] < 2).all()


@pytest.mark.parametrize(
    ("targets", "error", "match"),
    [
        ([5, (5, 6)], SettingError, "cannot be one graph"),
        ([], SettingError, "cannot be one graph"),
        ([5, 5], SettingError, "name one twice"),
        ([VOCAB], TracingError, "outside the vocabulary"),
        ([" Austin"], TracingError, "has no tokenizer"),
        ([(5, 5)], SettingError, "name one twice"),
        ([(5, 6, 7)], SettingError, "is no difference"),
        ([5.0], SettingError, "is no token"),
        (["feature/0/1"], SettingError, "not a feature's key"),
        (["feature/3/9999/2"], TracingError, "not active"),
    ],
)
def test_bad_targets(small, targets, error, match):
    with pytest.raises(error, match=match):
        tracer.trace(*small, IDS, targets=targets)


# Identity, settings, bad input --------------------------------------------------------------------


def test_identity_is_known_before_tracing(small):
    model, transcoder = small
    settings = tracer.TraceSettings(max_n_logits=3)
    graph = tracer.trace(model, transcoder, IDS, settings=settings)
    assert tracer.trace_identity(model, transcoder, IDS, settings) == graph.graph_id
    same = settings.changed(memory=1, check=False)
    assert tracer.trace_identity(model, transcoder, IDS, same) == graph.graph_id
    for change in ({"max_n_logits": 4}, {"zero_first": 0}, {"parts": True}, {"targets": [3]}):
        other = settings.changed(**change)
        assert tracer.trace_identity(model, transcoder, IDS, other) != graph.graph_id
    # Where targets and sources meet changes the order of sums, and nothing else.
    again = tracer.trace(model, transcoder, IDS, settings=same)
    assert again.graph_id == graph.graph_id
    assert close(again.adjacency, graph.adjacency.toarray(), 1e-12)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"max_n_logits": 0}, "max_n_logits is 0. Give a whole number, 1 or more"),
        ({"desired_logit_prob": 1.5}, "Give 0 to 1"),
        ({"desired_logit_prob": float("nan")}, "Give 0 to 1"),
        ({"max_n_logits": 2.5}, "Give a whole number, 1 or more"),
        ({"max_feature": 3}, 'Did you mean "max_features"'),
    ],
)
def test_bad_settings(small, change, match):
    with pytest.raises(SettingError, match=match):
        tracer.trace(*small, IDS, **change)


def test_a_freeze_that_does_not_hold_is_refused(small, monkeypatch):
    model, transcoder = small

    def tampered(self: Model, ids: Any, **kwargs: Any) -> Any:
        frozen = freeze(self, ids, **kwargs)
        wrong = dataclasses.replace(
            frozen.attentions[1], pattern=frozen.attentions[1].pattern * 1.001
        )
        attentions = [*frozen.attentions]
        attentions[1] = wrong
        return dataclasses.replace(frozen, attentions=attentions)

    freeze = Model.freeze
    monkeypatch.setattr(Model, "freeze", tampered)
    with pytest.raises(TracingError, match="is not explained by its inputs"):
        tracer.trace(model, transcoder, IDS)
    tracer.trace(model, transcoder, IDS, check=False)


def test_a_transcoder_of_another_model_is_refused(tmp_path, data):
    transcoder = make_transcoder(tmp_path, "clt", "hook_resid_mid", "hook_mlp_out")
    model = tracer.load_model(str(data / "golden/models/gpt2"))
    with pytest.raises(TracingError, match="has layers 4, the model 3"):
        tracer.trace(model, transcoder, [1, 5, 6])


def test_one_token_has_no_features(small):
    with pytest.raises(TracingError, match=r"no feature of .* is active"):
        tracer.trace(*small, [1])


def test_memory_decides_where_targets_and_sources_meet(small):
    local, targets = everything(*small)
    assert boundary(local, targets, memory=0) == 0
    assert boundary(local, targets) > 0


def test_running_out_of_memory_says_what_to_lower(small, monkeypatch):
    def out(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(tracing, "rows", out)
    with pytest.raises(TracingError, match=r"memory ran out on a prompt of 7 tokens. Lower"):
        tracer.trace(*small, IDS)


def test_blocks_of_any_size_give_the_same_rows(small, monkeypatch):
    local, targets = everything(*small)
    whole = rows(local, targets)
    monkeypatch.setattr("tracer.attribution.edges._BLOCK_BYTES", 1)
    for meet in (0, 2, L):
        assert close(rows(local, targets, meet=meet).weights, whole.weights.toarray(), 1e-12)


def test_float32_is_close_to_float64(tmp_path):
    exact = tracer.trace(
        make_model("gemma2"),
        make_transcoder(tmp_path, "clt", "hook_resid_mid", "hook_mlp_out"),
        IDS,
    )
    single = tracer.trace(
        make_model("gemma2", torch.float32),
        tracer.load_transcoder(str(tmp_path)),
        IDS,
    )
    assert single.adjacency.dtype == np.float32
    # 24 terms a product and a dozen products a path: 1e-5 of the largest edge is ten times that.
    assert close(single.adjacency, exact.adjacency.toarray(), 1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_gives_the_same_edges(small, tmp_path):
    model, _ = small
    exact = tracer.trace(*small, IDS)
    model.module.to("cuda")
    transcoder = tracer.load_transcoder(str(tmp_path), dtype=torch.float64, device="cuda")
    assert close(tracer.trace(model, transcoder, IDS).adjacency, exact.adjacency.toarray())


def test_other_weights_under_the_same_name_make_another_graph(data, tmp_path):
    # Two steps of one training run have one name; a resumed run must not take one for the other.
    there = tmp_path / "gpt2"
    shutil.copytree(data / "golden/models/gpt2", there)
    weights = load_file(there / "model.safetensors")
    name = next(name for name in weights if name.endswith("wte.weight"))
    weights[name] = weights[name] * 1.01
    save_file(weights, there / "model.safetensors", {"format": "pt"})
    transcoder = tracer.load_transcoder(str(data / "golden/transcoders/gpt2_clt_residmid"))
    ids = {
        tracer.trace_identity(tracer.load_model(folder), transcoder, [1, 5], tracer.TraceSettings())
        for folder in (data / "golden/models/gpt2", there)
    }
    assert len(ids) == 2


def test_what_is_told_of_a_prompt_stays_with_its_graph(small):
    plain = tracer.trace(*small, IDS)
    told = tracer.trace(*small, IDS, source={"metadata": {"family": "capitals"}})
    assert told.source == {"format": "traced", "metadata": {"family": "capitals"}}
    assert told.graph_id == plain.graph_id


def test_ids_do_not_depend_on_how_a_target_is_written(small):
    model, transcoder = small
    one = tracer.trace_identity(
        model, transcoder, IDS, tracer.TraceSettings(targets=["feature/0/5/3"])
    )
    other = tracer.trace_identity(
        model, transcoder, IDS, tracer.TraceSettings(targets=["feature/00/5/3"])
    )
    assert one == other
    settings = [tracer.TraceSettings(desired_logit_prob=value) for value in (1, 1.0)]
    assert len({tracer.trace_identity(model, transcoder, IDS, s) for s in settings}) == 1
    numpy = tracer.TraceSettings(targets=[np.int64(5)])
    plain = tracer.TraceSettings(targets=[5])
    assert tracer.trace_identity(model, transcoder, IDS, numpy) == tracer.trace_identity(
        model, transcoder, IDS, plain
    )


def test_half_precision_keeps_the_mean_of_the_vocabulary(data):
    # Rows and mean are cast first: rounding the difference cost 1e-3 of a logit's vector.
    exact = tracer.load_model(str(data / "golden/models/gpt2"), check=False)
    transcoder = tracer.load_transcoder(str(data / "golden/transcoders/gpt2_clt_residmid"))
    module = exact.module
    rows_ = module.lm_head.weight.to(torch.bfloat16)
    half = tracer.load_model(str(data / "golden/models/gpt2"), dtype=torch.bfloat16, check=False)
    local = local_model(half, transcoder, [1, 265, 294, 281])
    outputs = find_outputs(local, [5], half)
    wanted = (rows_[5].double() - rows_.double().mean(0)).float()
    norm = local.frozen.final_norm
    expected = norm.transpose(wanted[None], torch.tensor([3]))[0]
    assert torch.linalg.norm(outputs.vectors[0] - expected) <= 1e-6 * torch.linalg.norm(expected)


def test_a_half_precision_transcoder_can_be_used(data):
    model = tracer.load_model(str(data / "golden/models/gpt2"))
    folder = data / "golden/transcoders/gpt2_clt_residmid"
    half = tracer.load_transcoder(str(folder), dtype=torch.bfloat16)
    single = tracer.load_transcoder(str(folder))
    graph = tracer.trace(model, half, [1, 265, 294, 281, 283, 293])
    other = tracer.trace(model, single, [1, 265, 294, 281, 283, 293])
    assert graph.graph_id != other.graph_id
    assert tracer.scores(graph).replacement == pytest.approx(
        tracer.scores(other).replacement, abs=0.02
    )


def test_finished_rows_have_small_indices(small):
    graph = tracer.trace(*small, IDS)
    assert graph.adjacency.indices.dtype == np.int32


def test_heads_of_merged_errors_are_refused(small):
    model, transcoder = small
    graph = tracer.trace(model, transcoder, IDS, max_features=30)
    t, s = (int(i) for i in np.argwhere(graph.adjacency.toarray() * graph.is_error)[0])
    with pytest.raises(GraphError, match="max_features merged"):
        tracer.head_loadings(
            graph, [(graph.keys[s], graph.keys[t])], model=model, transcoder=transcoder
        )


def test_a_custom_target_has_a_label(small):
    graph = tracer.trace(*small, IDS, targets=[(5, 9)])
    assert graph.nodes["label"].iloc[-1] == graph.nodes["token"].iloc[-1]
