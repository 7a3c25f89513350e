"""Every checkpoint layout, written here as its library writes it.

The oracle of each is the layout's own definition in NumPy float64 on the arrays that were saved
(dense encoders and decoders, no sparse step), so the loader's transposing, slicing, summing and
folding are on one side only. Tolerance 1e-12: both sides are float64, sums of a few dozen terms.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file

from tracer.errors import FormatError, TracingError
from tracer.transcoders import Transcoder, load_transcoder, transcoder

Array = np.ndarray[Any, np.dtype[np.float64]]
L, F, D, N = 3, 20, 6, 9
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(g: np.random.Generator, *shape: int) -> Array:
    return np.asarray(g.normal(size=shape))


INPUTS = normal(rng(99), L, N, D)


def relu(h: Array) -> Array:
    return np.maximum(h, 0)


def jump(h: Array, theta: Array) -> Array:
    return h * (h > theta)


def topk(h: Array, k: int) -> Array:
    out = np.zeros_like(h)
    for row, values in enumerate(h):
        best = np.argsort(values)[-k:]
        out[row, best] = np.maximum(values[best], 0)
    return out


def check(folder: Path | str, acts: list[Array], outputs: Array, **kwargs: Any) -> Transcoder:
    """Lazy and eager agree with the oracle, and so does every part of the interface."""
    for lazy in (True, False):
        t = load_transcoder(folder, dtype=torch.float64, lazy=lazy, **kwargs)
        x = torch.from_numpy(INPUTS)
        found = [t.active(layer, x[layer]) for layer in range(t.n_layers)]
        np.testing.assert_allclose(t.reconstruct(x, found, offsets=True).numpy(), outputs, **CLOSE)
        np.testing.assert_allclose(t.reconstruct(x, offsets=True).numpy(), outputs, **CLOSE)
        for layer in range(t.n_layers):
            np.testing.assert_allclose(t.encode(layer, x[layer]).numpy(), acts[layer], **CLOSE)
            one = found[layer]
            assert len(one.indices) == np.count_nonzero(acts[layer]) > 0
            order = one.positions * F + one.indices
            assert torch.equal(order, order.sort().values)
            h = t.preactivations(layer, x[layer])
            torch.testing.assert_close(
                one.preactivations, h[one.positions, one.indices], rtol=1e-12, atol=1e-12
            )
            rows, biases = (part(layer, one.indices) for part in (t.encoder_rows, t.encoder_biases))
            mine = (rows * x[layer][one.positions]).sum(1) + biases
            torch.testing.assert_close(mine, one.preactivations, rtol=1e-11, atol=1e-11)
            assert rows.dtype is torch.float64
            written = t.decoder_rows(layer, one.indices)
            assert written.shape == (len(one.indices), len(t.targets(layer)), D)
        if not t.has_target_offsets:
            np.testing.assert_allclose(by_rows(t, x).numpy(), outputs, rtol=1e-11, atol=1e-11)
    return load_transcoder(folder, dtype=torch.float64)


def by_rows(t: Transcoder, x: torch.Tensor) -> torch.Tensor:
    """ŷ from activations, decoder rows, biases and skips, one feature after the other."""
    out = torch.stack([t.decoder_bias(layer).expand(N, D).clone() for layer in range(t.n_layers)])
    for layer in range(t.n_layers):
        skip = t.skip(layer)
        if skip is not None:
            out[layer] += torch.stack([skip @ row for row in x[layer]])
        one = t.active(layer, x[layer])
        rows = t.decoder_rows(layer, one.indices)
        for place, target in enumerate(t.targets(layer)):
            for n in range(len(one.indices)):
                out[target, one.positions[n]] += one.activations[n] * rows[n, place]
    return out


def write_yaml(folder: Path, **settings: Any) -> None:
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))


def write_json(path: Path, **settings: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(settings))


def clt_outputs(
    acts: list[Array], decoder: Callable[[int, int], Array], bias: Callable[[int], Array]
) -> Array:
    """b_dec^m + Σ_{l ≤ m} a^l W^{l→m}."""
    return np.stack(
        [bias(m) + sum(acts[s] @ decoder(s, m) for s in range(m + 1)) for m in range(L)]
    )


# circuit-tracer


def circuit_tracer_clt(folder: Path, *, threshold: bool = True) -> tuple[list[Array], Array]:
    g, acts, decoders, biases = rng(1), [], [], []
    for i in range(L):
        enc, b_enc, b_dec = normal(g, F, D), normal(g, F), normal(g, D)
        theta, dec = normal(g, F), normal(g, F, L - i, D)  # of either sign: h stays, not max(h, 0)
        tensors = {f"W_enc_{i}": enc, f"b_enc_{i}": b_enc, f"b_dec_{i}": b_dec}
        if threshold:
            tensors[f"threshold_{i}"] = theta
        save_numpy(tensors, folder / f"W_enc_{i}.safetensors")
        save_numpy({f"W_dec_{i}": dec}, folder / f"W_dec_{i}.safetensors")
        h = INPUTS[i] @ enc.T + b_enc
        acts.append(jump(h, theta) if threshold else relu(h))
        decoders.append(dec)
        biases.append(b_dec)
    return acts, clt_outputs(acts, lambda s, m: decoders[s][:, m - s], biases.__getitem__)


@pytest.mark.parametrize("threshold", [True, False])
def test_circuit_tracer_clt(tmp_path: Path, threshold: bool) -> None:
    expected = circuit_tracer_clt(tmp_path, threshold=threshold)
    write_yaml(tmp_path, model_kind="cross_layer_transcoder", model_name="tiny")
    t = check(tmp_path, *expected)
    assert (t.kind, t.read_hook, t.write_hook) == ("clt", "hook_resid_mid", "hook_mlp_out")
    assert (t.n_layers, t.n_features, t.d_model) == (L, F, D)
    assert t.activation.kind == ("jumprelu" if threshold else "relu")
    assert t.info["layout"] == "circuit-tracer-clt"
    assert json.loads(json.dumps(t.info)) == t.info


def test_circuit_tracer_clt_without_configuration(tmp_path: Path) -> None:
    check(tmp_path, *circuit_tracer_clt(tmp_path))


def circuit_tracer_plt(folder: Path, activation: str) -> tuple[list[Array], Array]:
    g, acts, outputs = rng(2), [], []
    for i in range(L):
        enc, dec, b_enc, b_dec = normal(g, F, D), normal(g, F, D), normal(g, F), normal(g, D)
        skip, theta = normal(g, D, D), normal(g, F)  # thresholds of either sign
        tensors = {"W_enc": enc, "W_dec": dec, "b_enc": b_enc, "b_dec": b_dec, "W_skip": skip}
        h = INPUTS[i] @ enc.T + b_enc
        a = relu(h)
        if activation == "jumprelu":
            tensors["activation_function.threshold"] = theta
            a = jump(h, theta)
        if activation == "topk":
            tensors["k"] = np.array(15)
            a = np.zeros_like(h)
            best = np.argsort(h, axis=1)[:, -15:]  # the library keeps negative ones too
            np.put_along_axis(a, best, np.take_along_axis(h, best, 1), 1)
        save_numpy(tensors, folder / f"layer_{i}.safetensors")
        acts.append(a)
        outputs.append(a @ dec + b_dec + INPUTS[i] @ skip.T)
    return acts, np.stack(outputs)


HOOKS = {"feature_input_hook": "mlp.hook_in", "feature_output_hook": "hook_mlp_out"}


@pytest.mark.parametrize("activation", ["relu", "jumprelu", "topk"])
def test_circuit_tracer_plt(tmp_path: Path, activation: str) -> None:
    expected = circuit_tracer_plt(tmp_path, activation)
    write_yaml(tmp_path, model_kind="transcoder_set", **HOOKS)
    t = check(tmp_path, *expected)
    assert (t.kind, t.has_skip, t.activation.kind) == ("plt", True, activation)


def test_circuit_tracer_plt_lists_its_files(tmp_path: Path) -> None:
    acts, outputs = circuit_tracer_plt(tmp_path, "relu")
    (tmp_path / "deep").mkdir()
    for i in range(L):
        (tmp_path / f"layer_{i}.safetensors").rename(tmp_path / "deep" / f"x{L - i}.safetensors")
    listed = [f"deep/x{L - i}.safetensors" for i in range(L)]
    write_yaml(tmp_path, model_kind="transcoder_set", transcoders=listed, **HOOKS)
    check(tmp_path, acts, outputs)


@pytest.mark.parametrize("name", ["feature_input_hook", "feature_output_hook"])
def test_plt_without_hooks_is_refused(tmp_path: Path, name: str) -> None:
    circuit_tracer_plt(tmp_path, "relu")
    write_yaml(
        tmp_path, model_kind="transcoder_set", **{k: v for k, v in HOOKS.items() if k != name}
    )
    with pytest.raises(FormatError, match=name):
        load_transcoder(tmp_path)


def test_unknown_hook_suggests_the_nearest(tmp_path: Path) -> None:
    circuit_tracer_plt(tmp_path, "relu")
    settings = {**HOOKS, "feature_input_hook": "hook_resid_mod"}
    write_yaml(tmp_path, model_kind="transcoder_set", **settings)
    with pytest.raises(FormatError, match='Did you mean "hook_resid_mid"'):
        load_transcoder(tmp_path)


# Gemma Scope


def gemma_scope_arrays(seed: int = 3) -> tuple[list[dict[str, Array]], list[Array], Array]:
    g, params, acts, outputs = rng(seed), [], [], []
    for i in range(L):
        p = {
            "W_enc": normal(g, D, F),
            "W_dec": normal(g, F, D),
            "b_enc": normal(g, F),
            "b_dec": normal(g, D),
            "threshold": normal(g, F),
        }
        h = INPUTS[i] @ p["W_enc"] + p["b_enc"]
        a = (h > p["threshold"]) * relu(h)
        params.append(p)
        acts.append(a)
        outputs.append(a @ p["W_dec"] + p["b_dec"])
    return params, acts, np.stack(outputs)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_gemma_scope(tmp_path: Path, save: Callable[..., None]) -> None:
    params, *expected = gemma_scope_arrays()
    for i, p in enumerate(params):
        place = tmp_path / f"layer_{i}" / "width_20" / f"average_l0_{i + 3}"
        place.mkdir(parents=True)
        save(place / "params.npz", **p)
    t = check(tmp_path, *expected)
    assert (t.read_hook, t.write_hook) == ("ln2.hook_normalized", "hook_mlp_out")
    assert t.info["layout"] == "gemma-scope"


def test_gemma_scope_columns_in_fortran_order(tmp_path: Path) -> None:
    params, *expected = gemma_scope_arrays()
    for i, p in enumerate(params):
        (tmp_path / f"layer_{i}").mkdir()
        np.savez(
            tmp_path / f"layer_{i}" / "params.npz",
            **{k: np.asfortranarray(v) for k, v in p.items()},
        )
    check(tmp_path, *expected)


def test_gemma_scope_files_in_a_list(tmp_path: Path) -> None:
    """The set that circuit-tracer publishes for Gemma 2 lists npz files of another repository."""
    params, *expected = gemma_scope_arrays()
    for i, p in enumerate(params):
        np.savez(tmp_path / f"p{i}.npz", **p)
    listed = [f"p{i}.npz" for i in range(L)]
    hooks = {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}
    write_yaml(tmp_path, model_kind="transcoder_set", transcoders=listed, **hooks)
    t = check(tmp_path, *expected)
    assert t.info["layout"] == "circuit-tracer-plt"


def test_gemma_scope_never_unpickles(tmp_path: Path) -> None:
    (tmp_path / "layer_0").mkdir()
    objects = np.array([{"a": 1}], dtype=object)
    np.savez(tmp_path / "layer_0" / "params.npz", W_enc=objects)
    with pytest.raises(FormatError, match=r'"W_enc" has type'):
        load_transcoder(tmp_path)


@pytest.mark.parametrize("skip", [False, True])
def test_gemma_scope_2_per_layer(tmp_path: Path, skip: bool) -> None:
    params, acts, outputs = gemma_scope_arrays(4)
    g = rng(5)
    for i, p in enumerate(params):
        place = tmp_path / f"layer_{i}_width_20_l0_small_affine"
        tensors = {name.lower(): value for name, value in p.items()}
        if skip:
            tensors["affine_skip_connection"] = normal(g, D, D)
            outputs[i] += INPUTS[i] @ tensors["affine_skip_connection"]
        write_json(
            place / "config.json",
            hf_hook_point_in=f"model.layers.{i}.pre_feedforward_layernorm.output",
            hf_hook_point_out=f"model.layers.{i}.post_feedforward_layernorm.output",
            model_name="google/gemma-3-1b-pt",
            l0=17,
        )
        save_numpy(tensors, place / "params.safetensors")
    t = check(tmp_path, acts, outputs)
    assert (t.kind, t.read_hook, t.write_hook) == ("plt", "mlp.hook_in", "hook_mlp_out")
    assert (t.has_skip, t.info["l0"]) == (skip, 17)


def test_several_sets_in_a_folder_need_a_pattern(tmp_path: Path) -> None:
    params, acts, outputs = gemma_scope_arrays(4)
    for size in ("small", "big"):
        for i, p in enumerate(params):
            place = tmp_path / "transcoder_all" / f"layer_{i}_width_20_l0_{size}"
            place.mkdir(parents=True)
            tensors = {name.lower(): value + (size == "big") for name, value in p.items()}
            save_numpy(tensors, place / "params.safetensors")
    with pytest.raises(FormatError, match=r"several transcoders for layer 0.*l0_big.*l0_small"):
        load_transcoder(tmp_path)
    check(f"{tmp_path}/transcoder_all/layer_*_l0_small", acts, outputs)


@pytest.mark.parametrize("form", ["stacked", "full", "upper"])
def test_gemma_scope_2_clt(tmp_path: Path, form: str) -> None:
    g = rng(6)
    w_enc, w_dec, b_enc = normal(g, L, D, F), normal(g, L, F, L, D), normal(g, L, F)
    b_dec, theta, skip = normal(g, L, D), np.abs(normal(g, L, F)), normal(g, L, D, D)
    whole = {"w_enc": w_enc, "w_dec": w_dec, "b_enc": b_enc, "b_dec": b_dec, "threshold": theta}
    whole["affine_skip_connection"] = skip
    if form == "stacked":
        save_numpy(whole, tmp_path / "params.safetensors")
    for i in range(L if form != "stacked" else 0):
        one = {name: np.ascontiguousarray(value[i]) for name, value in whole.items()}
        if form == "upper":
            one["w_dec"] = np.ascontiguousarray(w_dec[i, :, i:])
        save_numpy(one, tmp_path / f"params_layer_{i}.safetensors")
    acts = [jump(INPUTS[i] @ w_enc[i] + b_enc[i], theta[i]) for i in range(L)]
    outputs = clt_outputs(acts, lambda s, m: w_dec[s, :, m], lambda m: b_dec[m])
    outputs += np.stack([INPUTS[i] @ skip[i] for i in range(L)])
    t = check(tmp_path, acts, outputs)
    assert (t.kind, t.has_skip, t.read_hook) == ("clt", True, "mlp.hook_in")


# sparsify, clt-training


def sparsify_layer(folder: Path, name: str, tensors: dict[str, Array], **config: Any) -> None:
    settings = {"activation": "topk", "k": 4, "transcode": True, "d_in": D, "n_targets": 0}
    write_json(folder / name / "cfg.json", **{**settings, **config})
    save_file(
        {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in tensors.items()},
        folder / name / "sae.safetensors",
    )


@pytest.mark.parametrize("name", ["layers.{}.mlp", "{}.mlp", "h.{}.mlp"])
def test_sparsify(tmp_path: Path, name: str) -> None:
    g, acts, outputs = rng(7), [], []
    for i in range(L):
        enc, dec, b, c = normal(g, F, D), normal(g, F, D), normal(g, F), normal(g, D)
        skip = normal(g, D, D)
        tensors = {
            "encoder.weight": enc,
            "encoder.bias": b,
            "W_dec": dec,
            "b_dec": c,
            "W_skip": skip,
        }
        sparsify_layer(tmp_path, name.format(i), tensors, k=4 + i)
        a = topk(INPUTS[i] @ enc.T + b, 4 + i)
        acts.append(a)
        outputs.append(a @ dec + c + INPUTS[i] @ skip.T)
    t = check(tmp_path, acts, np.stack(outputs))
    assert (t.kind, t.activation.kind, t.info["k"]) == ("plt", "topk", [4, 5, 6])
    assert (t.read_hook, t.write_hook) == ("mlp.hook_in", "mlp.hook_out")


@pytest.mark.parametrize("block", [6 * N * 8, 1 << 20])
def test_sparsify_groupmax(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """Blocks of six features must not cut groups of four."""
    monkeypatch.setattr(transcoder, "_BLOCK", block)
    g, acts, outputs = rng(8), [], []
    for i in range(L):
        enc, dec, b, c = normal(g, F, D), normal(g, F, D), normal(g, F), normal(g, D)
        tensors = {"encoder.weight": enc, "encoder.bias": b, "W_dec": dec, "b_dec": c}
        sparsify_layer(tmp_path, f"layers.{i}.mlp", tensors, activation="groupmax", k=5)
        h = relu(INPUTS[i] @ enc.T + b)
        a = np.zeros_like(h)
        for n in range(N):
            for group in range(5):
                best = group * 4 + int(np.argmax(h[n, group * 4 : group * 4 + 4]))
                a[n, best] = h[n, best]
        acts.append(a)
        outputs.append(a @ dec + c)
    check(tmp_path, acts, np.stack(outputs))


@pytest.mark.parametrize(
    ("activation", "k", "says"),
    [
        ("groupmax", 3, "20 features cannot be cut into k = 3"),
        ("groupmax", 21, "k is 21, but there are 20 features"),
        ("topk", 21, "k is 21, but there are 20 features"),
    ],
)
def test_k_that_cannot_be(tmp_path: Path, activation: str, k: int, says: str) -> None:
    sparsify_set(tmp_path, activation=activation, k=k)
    with pytest.raises(FormatError, match=f"layer 0: {says}"):
        load_transcoder(tmp_path)


@pytest.mark.parametrize("activation", ["groupmax", "topk"])
def test_no_positions(tmp_path: Path, activation: str) -> None:
    sparsify_set(tmp_path, activation=activation, k=5)
    found = load_transcoder(tmp_path).active(0, torch.zeros(0, D))
    assert [tuple(part.shape) for part in found] == [(0,)] * 4


def sparsify_set(folder: Path, **config: Any) -> None:
    g = rng(8)
    for i in range(L):
        tensors = {"encoder.weight": normal(g, F, D), "encoder.bias": normal(g, F)}
        tensors |= {"W_dec": normal(g, F, D), "b_dec": normal(g, D)}
        tensors |= {"in_norm": np.array([3.0]), "out_norm": np.array([5.0])}
        sparsify_layer(folder, f"layers.{i}.mlp", tensors, **config)


def test_sparsify_configuration_is_in_the_fingerprint(tmp_path: Path) -> None:
    seen = set()
    for number, config in enumerate(
        [
            {"k": 4},
            {"k": 5},
            {"k": 5, "activation": "groupmax"},
            {"k": 5, "normalize_io": True},
        ]
    ):
        sparsify_set(tmp_path / str(number), **config)
        seen.add(load_transcoder(tmp_path / str(number)).fingerprint)
    assert len(seen) == 4


@pytest.mark.parametrize("option", ["divide_cross_layer", "statistics", "method"])
def test_folded_scales_are_in_the_fingerprint(tmp_path: Path, option: str) -> None:
    if option == "divide_cross_layer":
        clt_training(tmp_path, "none")
        paths = sorted(tmp_path.glob("*/cfg.json"))
        edit: Callable[[Any], Any] = lambda c: c | {"divide_cross_layer": True}  # noqa: E731
    else:
        crosslayer(tmp_path, "none", "mean_std")
        paths = [tmp_path / ("norm_stats.json" if option == "statistics" else "cfg.json")]
        edit = _first_deviation if option == "statistics" else _without_normalisation
    before = load_transcoder(tmp_path).fingerprint
    for path in paths:
        path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    assert load_transcoder(tmp_path).fingerprint != before


def _first_deviation(stats: Any) -> Any:
    stats["0"]["targets"]["std"][0] += 1e-9
    return stats


def _without_normalisation(config: Any) -> Any:
    return config | {"normalization_method": "none"}


def test_sparsify_post_encoder_and_normalised_io(tmp_path: Path) -> None:
    """A per-layer offset moves the activation, so the pre-activation too; √d / in_norm folds."""
    g, acts, outputs = rng(9), [], []
    for i in range(L):
        enc, dec, b, c = normal(g, F, D), normal(g, F, D), normal(g, F), normal(g, D)
        p, s, skip = normal(g, F), normal(g, F), normal(g, D, D)
        tensors = {"encoder.weight": enc, "encoder.bias": b, "W_dec": dec, "b_dec": c}
        tensors |= {"post_enc": p, "post_enc_scale": s, "W_skip": skip}
        tensors |= {"in_norm": np.array([3.0]), "out_norm": np.array([5.0])}
        options = {"normalize_io": True, "post_encoder_scale": True}
        sparsify_layer(tmp_path, f"layers.{i}.mlp", tensors, **options)
        x = INPUTS[i] * (D**0.5 / 3)
        a = topk(x @ enc.T + b, 4)
        a = a + p * (a > 0)
        acts.append(a)
        outputs.append(((a * s) @ dec + c + x @ skip.T) * (5 / D**0.5))
    check(tmp_path, acts, np.stack(outputs))


def clt_training(
    folder: Path, tied: str, *, divide: bool = False, same_offsets: bool = False
) -> tuple[list[Array], Array]:
    """Written as its runner writes outputs: every earlier layer's coder decodes for a target."""
    g, coders = rng(10), []
    for i in range(L):
        count = L - i
        coder = {
            "enc": normal(g, F, D),
            "b": normal(g, F),
            "W": normal(g, count, F, D),
            "c": normal(g, count, D),
            "p": normal(g, count, F) * 0.1,
            "s": normal(g, count, F),
            "W_sources": normal(g, (i + 1) * F, D),
        }
        if same_offsets:
            coder["p"][:] = coder["p"][0]
        coders.append(coder)
        tensors = {"encoder.weight": coder["enc"], "encoder.bias": coder["b"]}
        if tied in ("concat", "per-layer"):
            tensors["W_dec"] = coder["W"][0] if tied == "concat" else coder["W_sources"]
            tensors["b_dec"] = coder["c"][0]
        else:
            tensors["W_dec"] = coder["W"][0]  # the first of the list under its short name
            tensors["b_dec"] = coder["c"][0]
            for k in range(1, count):
                tensors[f"b_decs.{k}"] = coder["c"][k]
                if tied == "none":
                    tensors[f"W_decs.{k}"] = coder["W"][k]
        for k in range(count):
            tensors[f"post_encs.{k}"] = coder["p"][k]
            tensors[f"post_enc_scales.{k}"] = coder["s"][k]
        sparsify_layer(
            folder,
            f"layers.{i}.mlp",
            tensors,
            n_targets=count,
            n_sources=i,
            post_encoder_scale=True,
            per_source_tied=tied == "per_source",
            coalesce_topk=tied if tied in ("concat", "per-layer") else "none",
            divide_cross_layer=divide,
        )
    raw = [topk(INPUTS[i] @ c["enc"].T + c["b"], 4) for i, c in enumerate(coders)]
    outputs = []
    for m in range(L):
        own, earlier = np.zeros((N, D)), np.zeros((N, D))
        for i in range(m + 1):
            k = m - i
            a = (raw[i] + coders[i]["p"][k] * (raw[i] > 0)) * coders[i]["s"][k]
            if tied == "concat":
                written = a @ coders[m]["W"][0] + (coders[m]["c"][0] if i == m else 0)
            elif tied == "per-layer":
                rows = coders[m]["W_sources"][i * F : (i + 1) * F]
                written = a @ rows + (coders[m]["c"][0] if i == m else 0)
            else:
                written = a @ coders[i]["W"][0 if tied == "per_source" else k] + coders[i]["c"][k]
            if i == m:
                own = written
            else:
                earlier = earlier + written
        outputs.append(own + earlier / (max(1, m) if divide else 1))
    acts = [a + coders[i]["p"][0] * (a > 0) for i, a in enumerate(raw)]
    return acts, np.stack(outputs)


@pytest.mark.parametrize("tied", ["none", "per_source", "concat", "per-layer"])
def test_clt_training(tmp_path: Path, tied: str) -> None:
    t = check(tmp_path, *clt_training(tmp_path, tied))
    assert (t.kind, t.has_target_offsets) == ("clt", True)


def test_clt_training_with_equal_offsets_and_divided_outputs(tmp_path: Path) -> None:
    t = check(tmp_path, *clt_training(tmp_path, "none", divide=True, same_offsets=True))
    assert not t.has_target_offsets


def test_offsets_are_left_out_unless_asked_for(tmp_path: Path) -> None:
    clt_training(tmp_path, "none")
    t = load_transcoder(tmp_path, dtype=torch.float64)
    x = torch.from_numpy(INPUTS)
    torch.testing.assert_close(t.reconstruct(x), by_rows(t, x), rtol=1e-11, atol=1e-11)
    assert (t.reconstruct(x) - t.reconstruct(x, offsets=True)).abs().max() > 0.01


def test_clt_training_that_reaches_two_layers_only(tmp_path: Path) -> None:
    g, coders = rng(11), []
    for i in range(L):
        count = min(2, L - i)
        coder = (normal(g, F, D), normal(g, F), normal(g, count, F, D), normal(g, count, D))
        tensors = {"encoder.weight": coder[0], "encoder.bias": coder[1]}
        tensors |= {f"W_decs.{k}": coder[2][k] for k in range(count)}
        tensors |= {f"b_decs.{k}": coder[3][k] for k in range(count)}
        sparsify_layer(tmp_path, f"layers.{i}.mlp", tensors, n_targets=count)
        coders.append(coder)
    acts = [topk(INPUTS[i] @ c[0].T + c[1], 4) for i, c in enumerate(coders)]
    outputs = np.stack(
        [
            sum(
                acts[s] @ coders[s][2][m - s] + coders[s][3][m - s]
                for s in range(max(0, m - 1), m + 1)
            )
            for m in range(L)
        ]
    )
    check(tmp_path, acts, outputs)


def test_clt_training_per_layer_with_two_sources(tmp_path: Path) -> None:
    """A target's rows are those of the sources that reach it, the earliest first."""
    g, coders = rng(16), []
    for i in range(L):
        sources = min(2, i + 1)
        coder = (normal(g, F, D), normal(g, F), normal(g, sources, F, D), normal(g, D))
        tensors = {"encoder.weight": coder[0], "encoder.bias": coder[1]}
        tensors |= {"W_dec": coder[2].reshape(sources * F, D), "b_dec": coder[3]}
        settings = {"n_targets": min(2, L - i), "n_sources": sources}
        sparsify_layer(tmp_path, f"{i}.mlp", tensors, coalesce_topk="per-layer", **settings)
        coders.append(coder)
    acts = [topk(INPUTS[i] @ c[0].T + c[1], 4) for i, c in enumerate(coders)]
    outputs = [acts[0] @ coders[0][2][0] + coders[0][3]]
    for m in range(1, L):
        own, earlier = acts[m] @ coders[m][2][1], acts[m - 1] @ coders[m][2][0]
        outputs.append(own + earlier + coders[m][3])
    check(tmp_path, acts, np.stack(outputs))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"transcode": False}, "autoencoder"),
        ({"activation": "batchtopk"}, "whole batch"),
        ({"topk_coalesced": True}, "topk_coalesced"),
        ({"secondary_target_tied": True}, "secondary_target_tied"),
    ],
)
def test_sparsify_that_cannot_be_traced(tmp_path: Path, config: Any, message: str) -> None:
    tensors = {"encoder.weight": np.ones((F, D)), "encoder.bias": np.ones(F)}
    tensors |= {"W_dec": np.ones((F, D)), "b_dec": np.ones(D)}
    sparsify_layer(tmp_path, "layers.0.mlp", tensors, **config)
    with pytest.raises(TracingError, match=message):
        load_transcoder(tmp_path)


# crosslayer-coding


def crosslayer(folder: Path, tying: str, method: str) -> tuple[list[Array], Array]:
    g, tensors = rng(12), {}
    enc, b = normal(g, L, F, D), normal(g, L, F)
    dec, c = normal(g, L, L, D, F), normal(g, L, L, D)
    log_theta = normal(g, L, F)
    offset, scale = normal(g, L, F) * 0.1, normal(g, L, F)
    for i in range(L):
        tensors[f"encoder_module.encoders.{i}.weight"] = enc[i]
        tensors[f"encoder_module.encoders.{i}.bias_param"] = b[i]
        for m in range(i, L):
            if tying == "none":
                tensors[f"decoder_module.decoders.{i}->{m}.weight"] = dec[i, m]
                tensors[f"decoder_module.decoders.{i}->{m}.bias_param"] = c[i, m]
        if tying != "none":
            tensors[f"decoder_module.decoders.{i}.weight"] = dec[i, i]
            tensors[f"decoder_module.decoders.{i}.bias_param"] = c[i, i]
            tensors[f"decoder_module.feature_offset.{i}"] = offset[i]
            tensors[f"decoder_module.feature_scale.{i}"] = scale[i]
    tensors["theta_manager.log_threshold"] = log_theta
    save_numpy(tensors, folder / "model.safetensors")
    write_json(
        folder / "cfg.json",
        num_features=F,
        num_layers=L,
        d_model=D,
        activation_fn="jumprelu",
        normalization_method=method,
        decoder_tying=tying,
        mlp_input_template="transformer.h.{}.mlp.input",
        mlp_output_template="transformer.h.{}.mlp.output",
    )
    mean, std = normal(g, 2, L, D), np.abs(normal(g, 2, L, D)) + 0.5
    stats = {
        str(i): {
            side: {"mean": mean[j, i].tolist(), "std": std[j, i].tolist()}
            for j, side in enumerate(("inputs", "targets"))
        }
        for i in range(L)
    }
    if method in ("mean_std", "auto"):
        write_json(folder / "norm_stats.json", **stats)
        std = std + 1e-6
    else:
        mean, std = np.zeros_like(mean), np.full_like(std, 1.0 if method == "none" else D**-0.5)
    raw = [
        jump(((INPUTS[i] - mean[0, i]) / std[0, i]) @ enc[i].T + b[i], np.exp(log_theta[i]))
        for i in range(L)
    ]
    outputs = []
    for m in range(L):
        y = np.zeros((N, D))
        for s in range(m + 1):
            a = raw[s]
            if tying != "none":
                a = (a + offset[m] * (a != 0)) * scale[m]
            pair = {"none": (s, m), "per_source": (s, s), "per_target": (m, m)}[tying]
            y = y + a @ dec[pair].T
            if tying != "per_target" or s == m:
                y = y + c[pair]
        outputs.append(y * std[1, m] + mean[1, m])
    acts = [a + offset[i] * (a != 0) * (tying != "none") for i, a in enumerate(raw)]
    return acts, np.stack(outputs)


@pytest.mark.parametrize("method", ["none", "mean_std", "auto", "sqrt_d_model"])
@pytest.mark.parametrize("tying", ["none", "per_source", "per_target"])
def test_crosslayer_coding(tmp_path: Path, tying: str, method: str) -> None:
    t = check(tmp_path, *crosslayer(tmp_path, tying, method))
    assert (t.kind, t.read_hook, t.write_hook) == ("clt", "mlp.hook_in", "mlp.hook_out")
    assert t.info["layout"] == "crosslayer-coding"


def test_crosslayer_coding_needs_its_statistics(tmp_path: Path) -> None:
    crosslayer(tmp_path, "none", "mean_std")
    (tmp_path / "norm_stats.json").unlink()
    with pytest.raises(FormatError, match=r"norm_stats\.json: no such file"):
        load_transcoder(tmp_path)


@pytest.mark.parametrize("activation", ["topk", "batchtopk"])
def test_crosslayer_coding_over_all_layers_is_refused(tmp_path: Path, activation: str) -> None:
    crosslayer(tmp_path, "none", "none")
    config = json.loads((tmp_path / "cfg.json").read_text())
    write_json(tmp_path / "cfg.json", **{**config, "activation_fn": activation})
    with pytest.raises(TracingError, match=r"all layers at once.*JumpReLU"):
        load_transcoder(tmp_path)


# CLT-Forge


@pytest.mark.parametrize("cross", [True, False])
@pytest.mark.parametrize("shards", [0, 2])
def test_clt_forge(tmp_path: Path, shards: int, cross: bool) -> None:
    g = rng(13)
    pairs = [(s, m) for s in range(L) for m in range(s, L)] if cross else [(s, s) for s in range(L)]
    whole = {
        "W_enc": normal(g, L, D, F),
        "b_enc": normal(g, L, F),
        "W_dec": normal(g, len(pairs), F, D),
        "b_dec": normal(g, len(pairs), D),
        "log_threshold": normal(g, L, F),
        "estimated_norm_scaling_factor_in": np.abs(normal(g, L)) + 0.5,
        "estimated_norm_scaling_factor_out": np.abs(normal(g, L)) + 0.5,
    }
    along = {"W_enc": 2, "b_enc": 1, "W_dec": 1, "log_threshold": 1}
    for rank in range(max(1, shards)):
        part = {
            name: np.ascontiguousarray(np.split(value, shards, axis=along[name])[rank])
            if shards and name in along
            else value
            for name, value in whole.items()
        }
        prefix = f"rank{rank}_" if shards else ""
        save_numpy(part, tmp_path / f"{prefix}clt_weights.safetensors")
    write_json(tmp_path / "clt_cfg.json", d_latent=F, n_layers=L, cross_layer_decoders=cross)
    into, out = (whole[f"estimated_norm_scaling_factor_{side}"] for side in ("in", "out"))
    acts = [
        jump(
            (INPUTS[i] * into[i]) @ whole["W_enc"][i] + whole["b_enc"][i],
            np.exp(whole["log_threshold"][i]),
        )
        for i in range(L)
    ]
    outputs = np.zeros((L, N, D))
    for k, (s, m) in enumerate(pairs):
        outputs[m] += acts[s] @ whole["W_dec"][k] + whole["b_dec"][k]
    outputs /= out[:, None, None]
    t = check(tmp_path, acts, outputs)
    assert (t.kind, t.read_hook) == ("clt" if cross else "plt", "ln2.hook_normalized")


def test_clt_forge_misses_a_shard(tmp_path: Path) -> None:
    write_json(tmp_path / "clt_cfg.json", d_latent=2 * F, n_layers=1)
    tensors = {"W_enc": np.ones((1, D, F)), "b_enc": np.ones((1, F))}
    save_numpy(tensors, tmp_path / "rank0_clt_weights.safetensors")
    with pytest.raises(FormatError, match="hold 20 features a layer, the configuration says 40"):
        load_transcoder(tmp_path)


# SAELens


@pytest.mark.parametrize("architecture", ["transcoder", "jumprelu_skip_transcoder"])
def test_saelens(tmp_path: Path, architecture: str) -> None:
    params, acts, outputs = gemma_scope_arrays(14)
    g = rng(15)
    for i, p in enumerate(params):
        place = tmp_path / f"set_{L - i}"  # the hook tells the layer, not the folder
        metadata = {
            "hook_name": f"blocks.{i}.ln2.hook_normalized",
            "hook_name_out": f"blocks.{i}.hook_mlp_out",
            "model_name": "gpt2",
        }
        write_json(place / "cfg.json", architecture=architecture, metadata=metadata)
        if architecture == "transcoder":
            del p["threshold"]
            acts[i] = relu(INPUTS[i] @ p["W_enc"] + p["b_enc"])
            outputs[i] = acts[i] @ p["W_dec"] + p["b_dec"]
        else:
            p["W_skip"] = normal(g, D, D)
            outputs[i] += INPUTS[i] @ p["W_skip"].T
        save_numpy(p, place / "sae_weights.safetensors")
    t = check(tmp_path, acts, outputs)
    assert (t.read_hook, t.write_hook) == ("ln2.hook_normalized", "hook_mlp_out")
    assert t.info["model_name"] == "gpt2"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "standard"}, "not a transcoder"),
        ({"normalize_activations": "expected_average_only_in"}, "normalised at run time"),
    ],
)
def test_saelens_that_cannot_be_traced(tmp_path: Path, config: Any, message: str) -> None:
    hooks = {"hook_name": "blocks.0.hook_resid_mid", "hook_name_out": "blocks.0.hook_mlp_out"}
    write_json(tmp_path / "cfg.json", **hooks, **config)
    save_numpy({"W_enc": np.ones((D, F))}, tmp_path / "sae_weights.safetensors")
    with pytest.raises(TracingError, match=message):
        load_transcoder(tmp_path)


def test_config_yaml_overrides_the_hooks_of_any_layout(tmp_path: Path) -> None:
    params, *_ = gemma_scope_arrays()
    for i, p in enumerate(params):
        (tmp_path / f"layer_{i}").mkdir()
        np.savez(tmp_path / f"layer_{i}" / "params.npz", **p)
    write_yaml(tmp_path, feature_input_hook="hook_resid_mid", feature_output_hook="mlp.hook_out")
    t = load_transcoder(tmp_path)
    assert (t.read_hook, t.write_hook) == ("hook_resid_mid", "mlp.hook_out")
