"""Transcoders: the interface, weights of every type, damaged files, memory, ids and the hub."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from tracer.errors import FormatError, SettingError, TracingError
from tracer.tensors import open_tensors
from tracer.transcoders import hub, load_transcoder, transcoder
from tracer.transcoders.layouts import LAYOUTS

GOLDEN = Path(__file__).parent / "data" / "golden" / "transcoders"
SETS = sorted(path.name for path in GOLDEN.iterdir())
L, F, D, N = 3, 20, 6, 9


def write_clt(folder: Path, dtype: torch.dtype = torch.float32, seed: int = 0) -> Path:
    g = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(L):
        encoder = {
            f"W_enc_{i}": torch.randn(F, D, generator=g),
            f"b_enc_{i}": torch.randn(F, generator=g),
            f"b_dec_{i}": torch.randn(D, generator=g),
            f"threshold_{i}": torch.rand(F, generator=g),
        }
        decoder = {f"W_dec_{i}": torch.randn(F, L - i, D, generator=g)}
        save_file({k: v.to(dtype) for k, v in encoder.items()}, folder / f"W_enc_{i}.safetensors")
        save_file({k: v.to(dtype) for k, v in decoder.items()}, folder / f"W_dec_{i}.safetensors")
    (folder / "config.yaml").write_text("model_kind: cross_layer_transcoder\n")
    return folder


def change(path: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(path)
    del tensors[name]
    if tensor is not None:
        tensors[name] = tensor
    save_file(tensors, path)


INPUTS = torch.randn(L, N, D, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


# The golden transcoders, against the formula on their tensors


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("lazy", [True, False])
def test_golden(name: str, lazy: bool) -> None:
    folder = GOLDEN / name
    config = yaml.safe_load((folder / "config.yaml").read_text())
    t = load_transcoder(folder, dtype=torch.float64, lazy=lazy)
    assert (t.n_layers, t.n_features, t.d_model) == (3, 64, 32)
    assert t.kind == ("clt" if "_clt_" in name else "plt")
    assert (t.read_hook, t.write_hook) == (
        config["feature_input_hook"],
        config["feature_output_hook"],
    )
    assert t.has_skip == ("pltskip" in name)
    assert t.transcoder_id == f"{name}-{t.fingerprint}"
    x = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    expected = torch.zeros_like(x)
    for i in range(3):
        if t.kind == "clt":
            p = load_file(folder / f"W_enc_{i}.safetensors")
            p |= load_file(folder / f"W_dec_{i}.safetensors")
            p = {key.removesuffix(f"_{i}"): value.double() for key, value in p.items()}
        else:
            p = load_file(folder / f"layer_{i}.safetensors")
            p = {key.removeprefix("activation_function."): v.double() for key, v in p.items()}
        h = x[i] @ p["W_enc"].T + p["b_enc"]
        a = torch.where(h > p["threshold"], h, 0.0)
        torch.testing.assert_close(t.encode(i, x[i]), a, rtol=1e-12, atol=1e-12)
        decoder = p["W_dec"].reshape(64, -1, 32)
        for place, m in enumerate(t.targets(i)):
            expected[m] += a @ decoder[:, place]
        expected[i] += p["b_dec"]
        if "W_skip" in p:
            expected[i] += x[i] @ p["W_skip"].T
    torch.testing.assert_close(t.reconstruct(x), expected, rtol=1e-12, atol=1e-12)


# The interface


@pytest.mark.parametrize("stored", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lazy", [True, False])
def test_stored_types(tmp_path: Path, stored: torch.dtype, lazy: bool) -> None:
    """Widening is exact, so each must equal float64 copies of what was stored."""
    write_clt(tmp_path, stored)
    wide = tmp_path / "wide"
    wide.mkdir()
    for path in tmp_path.glob("*.safetensors"):
        save_file({k: v.double() for k, v in load_file(path).items()}, wide / path.name)
    t = load_transcoder(tmp_path, dtype=torch.float64, lazy=lazy)
    expected = load_transcoder(wide, dtype=torch.float64)
    assert torch.equal(t.reconstruct(INPUTS), expected.reconstruct(INPUTS))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_everything_comes_in_the_wanted_type(tmp_path: Path, dtype: torch.dtype) -> None:
    t = load_transcoder(write_clt(tmp_path), dtype=dtype)
    indices = torch.tensor([3, 1, 3])
    found = t.active(0, INPUTS[0])
    for tensor in (
        t.encode(0, INPUTS[0]),
        t.preactivations(0, INPUTS[0]),
        found.activations,
        found.preactivations,
        t.encoder_rows(0, indices),
        t.encoder_biases(0, indices),
        t.decoder_rows(0, indices),
        t.decoder_bias(0),
        t.reconstruct(INPUTS),
    ):
        assert tensor.dtype is dtype
    assert found.positions.dtype is found.indices.dtype is torch.int64


@pytest.mark.parametrize("lazy", [True, False])
def test_rows_come_in_the_order_asked_for(tmp_path: Path, lazy: bool) -> None:
    t = load_transcoder(write_clt(tmp_path), lazy=lazy)
    decoder = load_file(tmp_path / "W_dec_1.safetensors")["W_dec_1"]
    encoder = load_file(tmp_path / "W_enc_1.safetensors")["W_enc_1"]
    for asked in ([7, 2, 7, 19, 0, 8], [], [4], list(range(F)), [5, 6, 7, 11, 12]):
        indices = torch.tensor(asked, dtype=torch.int64)
        assert torch.equal(t.decoder_rows(1, indices), decoder[indices])
        assert torch.equal(t.encoder_rows(1, indices), encoder[indices])
    t.decoder_rows(1, torch.tensor([4])).zero_()  # what is given belongs to the caller
    assert torch.equal(t.decoder_rows(1, torch.tensor([4])), decoder[[4]])


def test_blocks_of_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of three features at a time gives what one block of all gives."""
    t = load_transcoder(write_clt(tmp_path), dtype=torch.float64)
    whole = [t.active(layer, INPUTS[layer]) for layer in range(L)]
    expected = t.reconstruct(INPUTS)
    monkeypatch.setattr(transcoder, "_BLOCK", 3 * N * 8)
    for layer in range(L):
        for mine, other in zip(t.active(layer, INPUTS[layer]), whole[layer], strict=True):
            torch.testing.assert_close(mine, other, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(t.reconstruct(INPUTS), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [3 * N * 8, 1 << 20])
def test_topk_over_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(transcoder, "_BLOCK", block)
    g = torch.Generator().manual_seed(3)
    p = {"W_enc": torch.randn(F, D, generator=g), "W_dec": torch.randn(F, D, generator=g)}
    p |= {"b_enc": torch.randn(F, generator=g), "b_dec": torch.zeros(D)}
    save_file(p, tmp_path / "layer_0.safetensors")
    hooks = "feature_input_hook: mlp.hook_in\nfeature_output_hook: hook_mlp_out\n"
    (tmp_path / "config.yaml").write_text(
        f"model_kind: transcoder_set\nactivation: topk\nk: 5\n{hooks}"
    )
    t = load_transcoder(tmp_path, dtype=torch.float64)
    h = INPUTS[0] @ p["W_enc"].double().T + p["b_enc"].double()
    kept = h >= h.sort(dim=1, descending=True).values[:, 4:5]
    torch.testing.assert_close(t.encode(0, INPUTS[0]), h * kept, rtol=1e-12, atol=1e-12)
    assert t.activation.k == 5


def test_no_active_feature(tmp_path: Path) -> None:
    t = load_transcoder(write_clt(tmp_path))
    for layer in range(L):
        change(tmp_path / f"W_enc_{layer}.safetensors", f"b_enc_{layer}", torch.full((F,), -1e3))
    found = t.active(0, INPUTS[0])
    assert [len(part) for part in found] == [0, 0, 0, 0]
    out = load_transcoder(tmp_path).reconstruct(INPUTS)
    for layer in range(L):
        torch.testing.assert_close(out[layer], t.decoder_bias(layer).expand(N, D))


def test_changed_activations_are_decoded(tmp_path: Path) -> None:
    t = load_transcoder(write_clt(tmp_path), dtype=torch.float64)
    found = [t.active(layer, INPUTS[layer]) for layer in range(L)]
    twice = [one._replace(activations=one.activations * 2) for one in found]
    biases = torch.stack([t.decoder_bias(layer) for layer in range(L)]).unsqueeze(1)
    torch.testing.assert_close(
        t.reconstruct(INPUTS, twice) - biases, 2 * (t.reconstruct(INPUTS, found) - biases)
    )


def test_can_be_sent_to_another_process(tmp_path: Path) -> None:
    t = load_transcoder(write_clt(tmp_path))
    again = pickle.loads(pickle.dumps(t))
    assert torch.equal(again.reconstruct(INPUTS), t.reconstruct(INPUTS))


def test_wrong_arguments(tmp_path: Path) -> None:
    t = load_transcoder(write_clt(tmp_path))
    with pytest.raises(SettingError, match="layer 3 does not exist"):
        t.active(3, INPUTS[0])
    with pytest.raises(SettingError, match=r"feature 20 does not exist.*0 to 19"):
        t.decoder_rows(0, torch.tensor([0, 20]))
    with pytest.raises(SettingError, match="feature -1 does not exist"):
        t.encoder_rows(0, torch.tensor([-1, 3]))
    with pytest.raises(TracingError, match="width 6"):
        t.encode(0, torch.zeros(2, 5))
    with pytest.raises(TracingError, match="3 layers"):
        t.reconstruct(INPUTS[:2])
    with pytest.raises(SettingError, match="dtype"):
        load_transcoder(tmp_path, dtype=torch.int64)
    with pytest.raises(SettingError, match='Did you mean "circuit-tracer-clt"'):
        load_transcoder(tmp_path, layout="circuit-tracer-cl")


# Ids


def test_fingerprint_follows_the_tensors_alone(tmp_path: Path) -> None:
    one = load_transcoder(write_clt(tmp_path / "one"))
    moved = load_transcoder(shutil.copytree(tmp_path / "one", tmp_path / "a name/with spaces"))
    assert moved.fingerprint == one.fingerprint
    assert moved.transcoder_id == f"with-spaces-{one.fingerprint}"
    other = load_transcoder(write_clt(tmp_path / "other", seed=1))
    assert other.fingerprint != one.fingerprint
    assert load_transcoder(tmp_path / "one", fingerprint=False).transcoder_id == "one"
    tensor = load_file(tmp_path / "one" / "W_dec_2.safetensors")["W_dec_2"]
    tensor[19, 0, 5] += 1e-6
    change(tmp_path / "one" / "W_dec_2.safetensors", "W_dec_2", tensor)
    assert load_transcoder(tmp_path / "one").fingerprint != one.fingerprint


def test_fingerprint_follows_what_the_configuration_means(tmp_path: Path) -> None:
    """Settings that change a number change it; names, spellings and defaults do not."""
    folder = shutil.copytree(GOLDEN / "gemma2_plt_ln2", tmp_path / "one")
    path = folder / "config.yaml"
    settings = yaml.safe_load(path.read_text())

    def fingerprint(**changes: Any) -> str:
        path.write_text(yaml.safe_dump(settings | changes))
        opened = load_transcoder(folder)
        assert opened.info["fingerprint"] == opened.fingerprint
        assert opened.transcoder_id == f"one-{opened.fingerprint}"
        return opened.fingerprint

    plain = fingerprint()
    assert fingerprint(model_name="another", note="x") == plain
    assert fingerprint(feature_input_hook="blocks.0.ln2.hook_normalized") == plain
    others = {
        fingerprint(feature_input_hook="hook_resid_mid"),
        fingerprint(feature_output_hook="mlp.hook_out"),
        fingerprint(activation="relu"),
        fingerprint(activation="topk", k=3),
        fingerprint(activation="topk", k=4),
    }
    assert len(others | {plain}) == 6
    renamed = [f"sub/{i}.safetensors" for i in range(3)]
    (folder / "sub").mkdir()
    for i, name in enumerate(renamed):
        (folder / f"layer_{i}.safetensors").rename(folder / name)
    assert fingerprint(transcoders=renamed) == plain
    assert fingerprint(transcoders=renamed[::-1]) != plain


def test_header_of_a_file_is_not_in_the_fingerprint(tmp_path: Path) -> None:
    plain = load_transcoder(write_clt(tmp_path / "one")).fingerprint
    for path in (tmp_path / "one").glob("*.safetensors"):
        save_file(load_file(path), path, {"saved": "again, with a longer header" * 9})
    assert load_transcoder(tmp_path / "one").fingerprint == plain


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"revision v1 is given, but .* is on disk"):
        load_transcoder(write_clt(tmp_path / "one"), revision="v1")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["", "gpt2_clt_residmid", "gpt2_plt_ln2"])
def test_named_layout_that_the_folder_is_not_of(tmp_path: Path, layout: str, name: str) -> None:
    folder = GOLDEN / name if name else tmp_path
    if load_layout(folder) == layout:
        assert load_transcoder(folder, layout=layout).info["layout"] == layout
        return
    with pytest.raises(FormatError, match=re.escape(str(folder))) as caught:
        load_transcoder(folder, layout=layout)
    assert LAYOUTS[layout].LOOKS_FOR in str(caught.value)


def load_layout(folder: Path) -> str:
    return load_transcoder(folder).info["layout"] if any(folder.iterdir()) else ""


def test_fingerprint_of_large_tensors_reads_both_ends(tmp_path: Path) -> None:
    seen = set()
    for place in (0, 500_000, 999_999):
        tensor = torch.zeros(1000, 1000)
        tensor.view(-1)[place] = 1
        write_clt(tmp_path)
        wide = {"W_enc_0": tensor, "b_enc_0": torch.zeros(1000), "b_dec_0": torch.zeros(1000)}
        for path in tmp_path.glob("W_*"):
            path.unlink()
        save_file(wide, tmp_path / "W_enc_0.safetensors")
        save_file({"W_dec_0": torch.zeros(1000, 1, 1000)}, tmp_path / "W_dec_0.safetensors")
        seen.add(load_transcoder(tmp_path).fingerprint)
    assert len(seen) >= 2


# Damaged and strange files


def test_nan_is_refused_by_name(tmp_path: Path) -> None:
    write_clt(tmp_path)
    for file, name, use in (
        ("W_enc_1", "W_enc_1", lambda t: t.active(1, INPUTS[1])),
        ("W_enc_1", "b_enc_1", lambda t: t.active(1, INPUTS[1])),
        ("W_enc_1", "threshold_1", lambda t: t.active(1, INPUTS[1])),
        ("W_enc_1", "b_dec_1", lambda t: t.decoder_bias(1)),
        ("W_dec_1", "W_dec_1", lambda t: t.decoder_rows(1, torch.arange(F))),
    ):
        path = tmp_path / f"{file}.safetensors"
        tensor = load_file(path)[name]
        for bad in (float("nan"), float("inf"), -float("inf")):
            broken = tensor.clone()
            broken.view(-1)[-1] = bad
            change(path, name, broken)
            with pytest.raises(FormatError, match=rf'{file}\.safetensors: tensor "{name}" .*NaN'):
                use(load_transcoder(tmp_path))
        change(path, name, tensor)
    decoder = load_file(tmp_path / "W_dec_0.safetensors")["W_dec_0"]
    decoder[3] = float("nan")
    change(tmp_path / "W_dec_0.safetensors", "W_dec_0", decoder)
    with pytest.raises(FormatError, match='"W_dec_0" holds NaN'):
        load_transcoder(tmp_path, lazy=False)


@pytest.mark.parametrize("keep", [0, 4, 8, 60, 500, -1])
def test_truncated_file(tmp_path: Path, keep: int) -> None:
    path = write_clt(tmp_path) / "W_dec_1.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    with pytest.raises(FormatError, match=r"W_dec_1\.safetensors: (cut short|not a safetensors)"):
        load_transcoder(tmp_path)


def test_file_that_shrinks_after_opening(tmp_path: Path) -> None:
    t = load_transcoder(write_clt(tmp_path))
    path = tmp_path / "W_dec_1.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(FormatError, match='ends inside tensor "W_dec_1"'):
        t.decoder_rows(1, torch.arange(F))
    path.unlink()
    with pytest.raises(FormatError, match=r"W_dec_1\.safetensors: No such file"):
        t.decoder_rows(1, torch.arange(F))


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{",
        b'{"W_dec_1": {"dtype": "F32"}}',
        b'{"W_dec_1": {"dtype": "F32", "shape": [-1], "data_offsets": [0, -4]}}',
        b'{"W_dec_1": {"dtype": "F32", "shape": [4], "data_offsets": [0, 8]}}',
        b'{"W_dec_1": {"dtype": "Q4", "shape": [4], "data_offsets": [0, 8]}}',
        b'{"W_dec_1": {"dtype": ["F32"], "shape": [4], "data_offsets": [0, 16]}}',
        b'{"W_dec_1": 3}',
        b"[" * 100_000,
    ],
)
def test_hostile_headers(tmp_path: Path, header: bytes) -> None:
    path = write_clt(tmp_path) / "W_dec_1.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    with pytest.raises(FormatError, match=r"W_dec_1\.safetensors"):
        load_transcoder(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    write_clt(tmp_path)
    (tmp_path / "W_dec_1.safetensors").rename(tmp_path / "kept")
    with pytest.raises(FormatError, match=r"W_dec_1\.safetensors: no such file"):
        load_transcoder(tmp_path)
    (tmp_path / "kept").rename(tmp_path / "W_dec_1.safetensors")
    (tmp_path / "W_enc_1.safetensors").unlink()
    with pytest.raises(FormatError, match="files for layer 1 are missing"):
        load_transcoder(tmp_path)


def test_missing_tensor_and_wrong_shapes(tmp_path: Path) -> None:
    for file, name, tensor, message in (
        ("W_enc_0", "b_enc_0", None, r'"b_enc_0" is missing \(the file holds W_enc_0, b_dec_0'),
        ("W_enc_0", "b_enc_0", torch.zeros(F + 1), r'"b_enc_0" has shape \[21\].* needs \[20\]'),
        ("W_dec_0", "W_dec_0", torch.zeros(F, 2, D), r'"W_dec_0" has shape \[20, 2, 6\]'),
        ("W_enc_2", "threshold_2", None, "2 of 3 layers have a threshold"),
    ):
        write_clt(tmp_path)
        change(tmp_path / f"{file}.safetensors", name, tensor)
        with pytest.raises(FormatError, match=message):
            load_transcoder(tmp_path)


def test_layers_of_different_widths(tmp_path: Path) -> None:
    write_clt(tmp_path)
    wide = {"W_enc_1": torch.zeros(F, 7), "b_enc_1": torch.zeros(F), "b_dec_1": torch.zeros(7)}
    save_file(wide | {"threshold_1": torch.zeros(F)}, tmp_path / "W_enc_1.safetensors")
    save_file({"W_dec_1": torch.zeros(F, 2, 7)}, tmp_path / "W_dec_1.safetensors")
    with pytest.raises(FormatError, match=r"layer 1: .*width 6"):
        load_transcoder(tmp_path)


def test_unknown_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(FormatError) as caught:
        load_transcoder(tmp_path)
    for name in ("W_enc_0.safetensors", "clt_cfg.json", "params.npz", "sae_weights.safetensors"):
        assert name in str(caught.value)


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "!!python/object/apply:os.system ['true']"])
def test_yaml_is_plain_values(tmp_path: Path, text: str) -> None:
    (write_clt(tmp_path) / "config.yaml").write_text(text)
    with pytest.raises(FormatError, match=r"config\.yaml"):
        load_transcoder(tmp_path)


def test_wrong_kind_beside_the_files(tmp_path: Path) -> None:
    (write_clt(tmp_path) / "config.yaml").write_text("model_kind: cross_layer\n")
    with pytest.raises(FormatError, match='model_kind is "cross_layer"'):
        load_transcoder(tmp_path)


def test_damaged_npz(tmp_path: Path) -> None:
    folder = tmp_path / "layer_0"
    folder.mkdir()
    np.savez(folder / "params.npz", W_enc=np.zeros((4, 5)))
    data = (folder / "params.npz").read_bytes()
    for keep in (0, 10, len(data) // 2):
        (folder / "params.npz").write_bytes(data[:keep])
        with pytest.raises(FormatError, match=r"params\.npz: not an npz file, or cut short"):
            load_transcoder(tmp_path)


# Memory


_MEASURE = """
import json, resource, sys
import torch
torch.set_num_threads(2)
from tracer.transcoders import load_transcoder
torch.zeros(64, 64) @ torch.zeros(64, 64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
t = load_transcoder(sys.argv[1])
x = torch.zeros(2, 8, t.d_model)
found = [t.active(layer, x[layer]) for layer in range(2)]
rows = t.decoder_rows(0, found[0].indices)
out = t.reconstruct(x, found)
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"used": (after - before) << 10, "active": len(found[0].indices),
                  "sum": float(out.double().sum()), "shape": list(rows.shape)}))
"""


def sparse_clt(folder: Path, features: int, width: int, live: int) -> int:
    """Two layers of zeros in files with holes, but for `live` features; their apparent size."""
    total = 0
    for i in range(2):
        shapes = {f"W_enc_{i}": (features, width), f"b_enc_{i}": (features,)}
        shapes[f"b_dec_{i}"] = (width,)
        decoder = {f"W_dec_{i}": (features, 2 - i, width)}
        for path, parts in ((f"W_enc_{i}", shapes), (f"W_dec_{i}", decoder)):
            header, offset = {}, 0
            for name, shape in parts.items():
                size = int(np.prod(shape)) * 4
                header[name] = {
                    "dtype": "F32",
                    "shape": shape,
                    "data_offsets": [offset, offset + size],
                }
                offset += size
            text = json.dumps(header).encode()
            with (folder / f"{path}.safetensors").open("wb") as file:
                file.write(struct.pack("<Q", len(text)) + text)
                file.truncate(8 + len(text) + offset)
                ones = np.ones(1, np.float32).tobytes()
                for n in range(live):
                    feature = n * (features // live)
                    if path.startswith("W_enc"):
                        file.seek(
                            8 + len(text) + header[f"b_enc_{i}"]["data_offsets"][0] + feature * 4
                        )
                    else:
                        file.seek(8 + len(text) + feature * (2 - i) * width * 4)
                    file.write(ones)
            total += offset
    return total


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read as Linux gives it")
def test_memory_follows_the_active_rows(tmp_path: Path) -> None:
    """5 GiB of weights, 50 active features a layer: a block of the encoder (256 MiB) is the peak.

    The bound leaves twice as much room; holding one encoder would take 1 GiB.
    """
    size = sparse_clt(tmp_path, features=1 << 18, width=1 << 10, live=50)
    assert size > 5 << 30
    command = [sys.executable, "-c", _MEASURE, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["active"] == 50 * 8
    assert found["shape"] == [400, 2, 1024]
    assert found["sum"] == pytest.approx(50 * 8 * 2)
    assert found["used"] < 768 << 20


def test_only_wanted_rows_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = open_tensors(write_clt(tmp_path) / "W_dec_0.safetensors")["W_dec_0"]
    read: list[tuple[int, int]] = []
    kind = type(tensor)
    original = kind._read_runs
    monkeypatch.setattr(
        kind, "_read_runs", lambda self, runs: (read.extend(runs), original(self, runs))[1]
    )
    t = load_transcoder(tmp_path)
    t.decoder_rows(0, torch.tensor([9, 4, 5, 9]))
    assert read == [(4, 6), (9, 10)]


# The hub, from a cache folder made here


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache: Path, repo: str, ref: str = "main") -> Path:
    base = cache / f"models--{repo.replace('/', '--')}"
    (base / "refs").mkdir(parents=True, exist_ok=True)
    (base / "refs" / ref).write_text(COMMIT)
    snapshot = base / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    return snapshot


def test_hub_repository(cache: Path, tmp_path: Path) -> None:
    write_clt(cached(cache, "owner/name"))
    t = load_transcoder("owner/name")
    assert t.transcoder_id == f"owner/name@{COMMIT}"
    assert (t.info["source"], t.info["revision"]) == ("owner/name", COMMIT)
    assert t.fingerprint == load_transcoder(write_clt(tmp_path / "copy")).fingerprint


def test_hub_revision_and_folder(cache: Path) -> None:
    write_clt(cached(cache, "owner/name", "v1") / "sub" / "folder")
    for t in (
        load_transcoder("owner/name/sub/folder@v1"),
        load_transcoder("owner/name/sub/folder", revision="v1"),
    ):
        assert t.transcoder_id == "owner/name/sub/folder@v1"
        assert t.info["revision"] == COMMIT


def test_hub_set_that_lists_files_of_another_repository(cache: Path) -> None:
    g = np.random.default_rng(0)
    there = cached(cache, "google/weights")
    names = []
    for i in range(2):
        name = f"layer_{i}/width_20/average_l0_{i}/params.npz"
        (there / name).parent.mkdir(parents=True)
        np.savez(
            there / name,
            W_enc=g.normal(size=(D, F)),
            W_dec=g.normal(size=(F, D)),
            b_enc=g.normal(size=F),
            b_dec=g.normal(size=D),
            threshold=np.abs(g.normal(size=F)),
        )
        names.append(f"hf://google/weights/{name}" + ("?revision=main" if i else ""))
    hooks = {"feature_input_hook": "ln2.hook_normalized", "feature_output_hook": "hook_mlp_out"}
    settings = {"model_kind": "transcoder_set", "transcoders": names, **hooks}
    (cached(cache, "owner/set") / "config.yaml").write_text(yaml.safe_dump(settings))
    t = load_transcoder("owner/set")
    assert (t.n_layers, t.transcoder_id) == (2, f"owner/set@{COMMIT}")
    assert len(t.active(1, INPUTS[1]).indices) > 0
    (cached(cache, "google/weights") / "layer_1/width_20/average_l0_1/params.npz").unlink()
    with pytest.raises(TracingError, match=r"average_l0_1/params\.npz.*cannot be reached"):
        load_transcoder("owner/set")


def test_hub_without_network(cache: Path) -> None:
    with pytest.raises(TracingError, match=r"owner/name: .*cannot be reached.*local folder"):
        load_transcoder("owner/name")


def test_a_local_folder_comes_first(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_clt(cached(cache, "owner/name"))
    write_clt(tmp_path / "owner" / "name", seed=4)
    monkeypatch.chdir(tmp_path)
    assert load_transcoder("owner/name").transcoder_id.startswith("name-")


@pytest.mark.parametrize("text", ["nowhere", "/no/such/folder", "a/../b", "owner/", ""])
def test_neither_folder_nor_repository(text: str) -> None:
    with pytest.raises(TracingError, match=r"no such folder|cannot be reached"):
        load_transcoder(text or "./none/at all")


def test_two_revisions() -> None:
    with pytest.raises(TracingError, match="revision v2 is asked for too"):
        load_transcoder("owner/name@v1", revision="v2")


def test_repository_with_several_sets_is_refused_before_fetching(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub

    files = [f"transcoder_all/layer_{i}_l0_{s}/params.safetensors" for i in (0, 1) for s in "ab"]
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda *a, **k: files)
    monkeypatch.setattr(hub, "_config", lambda *a: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: 1 / 0)
    with pytest.raises(TracingError, match=r"several transcoders for a layer: .*l0_a.*l0_b"):
        load_transcoder("google/gemma-scope-2-1b-pt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("GatedRepoError", "consent.*hf auth login"),
        ("RepositoryNotFoundError", "no such public repository"),
        ("RevisionNotFoundError", "no such revision"),
        ("HfHubHTTPError", "the hub refuses it"),
        ("OfflineModeIsEnabled", "cannot be reached"),
        ("LocalEntryNotFoundError", "cannot be reached"),
        ("HTTPError", "cannot be reached"),
    ],
)
def test_errors_of_the_hub(monkeypatch: pytest.MonkeyPatch, name: str, message: str) -> None:
    import huggingface_hub
    from huggingface_hub import errors

    kind = getattr(errors, name)
    error = kind.__new__(kind)
    error.args = ("said the hub",)

    def fail(*_: Any, **__: Any) -> str:
        raise error

    monkeypatch.setattr(hub, "_config", lambda *a: None)
    monkeypatch.setattr(hub, "_refuse_many", lambda *a: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(TracingError, match=message):
        load_transcoder("owner/name")


def test_importing_the_package_reads_nothing_from_the_hub() -> None:
    code = "import sys, tracer.transcoders; print('huggingface_hub' in sys.modules)"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert result.stdout.strip() == "False"
