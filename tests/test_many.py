"""Files of prompts, tracing many of them, and how well a transcoder reconstructs one."""

from __future__ import annotations

import csv
import functools
import gc
import json
import re
import shutil
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
import yaml
from safetensors.numpy import load_file

import graphstore
import tracer
from tracer import many
from tracer.attribution import tracing
from tracer.errors import FormatError, SettingError, TracingError
from tracer.many import Loading, find_devices, trace_many
from tracer.prompts import Prompt, as_prompt, parse_prompts, read_prompts

TEXTS = ("The capital of the state", "Dallas is", "The state of Austin is the capital")


@pytest.fixture(scope="module")
def names(data) -> tuple[str, str]:
    golden = data / "golden"
    return str(golden / "models/gpt2"), str(golden / "transcoders/gpt2_clt_residmid")


@pytest.fixture(scope="module")
def pair(names):
    """The small model and its transcoder, loaded."""
    return tracer.load_model(names[0]), tracer.load_transcoder(names[1])


# Files of prompts --------------------------------------------------------------------------------


def test_text_is_one_prompt_a_line_as_it_is(tmp_path):
    path = tmp_path / "night.txt"
    path.write_bytes("\ufefffirst\r\n\n  second \x0b still\u2028 second\n \t \nthird".encode())
    found = read_prompts(path)
    assert [p.prompt for p in found] == ["first", "  second \x0b still\u2028 second", "third"]
    assert [p.where for p in found] == [f"{path}:{n}" for n in (1, 3, 5)]


@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".json", ".JSONL"])
def test_json_lines(tmp_path, ending):
    path = tmp_path / f"p{ending}"
    roles = [{"role": "country", "position": 3}]
    records = [
        {"prompt": "2 + 2 =", "id": "sum", "answer": " 4", "roles": roles, "family": None},
        {"token_ids": [1, 5, 9], "id": 7, "slug": "seven"},
        {"prompt": ""},
    ]
    path.write_text("\n\n".join(map(json.dumps, records)))
    first, second, third = read_prompts(path)
    assert first == Prompt(
        "2 + 2 =",
        "sum",
        metadata={"answer": " 4", "roles": roles, "family": None},
        where=f"{path}:1",
    )
    assert (second.prompt, second.id, second.slug, second.metadata) == ((1, 5, 9), "7", "seven", {})
    assert third.prompt == ""  # a matter of tracing, not of the file


@pytest.mark.parametrize(("ending", "delimiter"), [(".csv", ","), (".tsv", "\t")])
def test_csv(tmp_path, ending, delimiter):
    path = tmp_path / f"p{ending}"
    rows = [
        ["id", "prompt", "answer", "token_ids"],
        ["007", 'He said "a,\tb"\nand left', " yes", ""],
        ["", "", "", ""],
        ["b", "", "", "1 5 9"],
        ["c", "end", "", ""],
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    first, second, third = read_prompts(path)
    assert (first.prompt, first.id) == ('He said "a,\tb"\nand left', "007")
    assert first.metadata == {"answer": " yes"}
    assert (second.prompt, second.metadata) == ((1, 5, 9), {})
    # A quoted text may hold line ends: lines are those of the file.
    assert [p.where.rpartition(":")[2] for p in (first, second, third)] == ["2", "5", "6"]


@pytest.mark.parametrize(
    ("ending", "content", "line", "says"),
    [
        ("txt", b"", None, "holds no prompt"),
        ("txt", b" \n\t\n", None, "holds no prompt"),
        ("txt", b"good\nb\xffd", 2, "not UTF-8"),
        ("jsonl", b'{"prompt": "a"}\n{"prompt": ', 2, "not JSON"),
        ("jsonl", b'\n{"prompt": NaN}', 2, "NaN"),
        ("jsonl", b'{"prompt": "\\ud800"}', 1, "surrogates"),
        ("jsonl", b"[" * 100_000, 1, "JSON list"),
        ("jsonl", b'{"a":' * 100_000, 1, "not JSON"),
        ("jsonl", b"1" * 5000, 1, "not JSON"),
        ("json", b'[{"prompt": "a"}]', 1, "one JSON object a line"),
        ("jsonl", b'"The capital"', 1, "no JSON object"),
        ("jsonl", b'{"text": "a"}', 1, "neither prompt nor token_ids"),
        ("jsonl", b'{"prompt": "a", "token_ids": [1]}', 1, "both prompt and token_ids"),
        ("jsonl", b'{"prompt": ["a"]}', 1, "not a text"),
        ("jsonl", b'{"prompt": null}', 1, "prompt is null"),
        ("jsonl", b'{"token_ids": [1, 2.0]}', 1, "not a list of whole numbers"),
        ("jsonl", b'{"token_ids": [true]}', 1, "not a list of whole numbers"),
        ("jsonl", b'{"token_ids": "1 2"}', 1, "not a list of whole numbers"),
        ("jsonl", b'{"prompt": "a", "id": {}}', 1, "id is {}"),
        ("jsonl", b'{"prompt": "a", "slug": true}', 1, "slug is true"),
        ("jsonl", b'{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}', 2, "id 'x' of"),
        ("csv", b"text,id\na,b\n", 1, "no column prompt, but text, id"),
        ("csv", b"prompt,id,id\na,b,c\n", 1, "two columns 'id'"),
        ("csv", b"prompt\nThe state, Texas\n", 2, "has 2 cells, the header 1"),
        ("csv", b'id,prompt\na,"b\n', 2, "not CSV"),
        ("csv", b"id,token_ids\na,1 x\n", 2, "token_ids holds '1 x'"),
        ("csv", b"prompt\n", None, "holds no prompt"),
        ("csv", b"id,token_ids\na,\n", 2, "neither prompt nor token_ids"),
    ],
)
def test_bad_files_are_refused_by_line(tmp_path, ending, content, line, says):
    path = tmp_path / f"bad.{ending}"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=re.escape(says)) as caught:
        read_prompts(path)
    assert str(caught.value).startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert caught.value.remedy
    assert len(str(caught.value)) < 400


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FormatError, match=r"nowhere\.txt: cannot be read"):
        read_prompts(tmp_path / "nowhere.txt")


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        (Prompt("The capital of  the state!"), "the-capital-of-the-state"),
        (Prompt("word " * 30), "word-word-word-word-word-word-word-word"),
        (Prompt("x" * 99), "x" * 40),
        (Prompt("a b", id="Mine"), "Mine"),
        (Prompt("a b", id="Mine", slug="yours"), "yours"),
        (Prompt((1, 2)), ""),
        (Prompt("…"), ""),
    ],
)
def test_names_of_graphs(prompt, name):
    assert prompt.name == name


def test_prompts_are_made_of_what_people_have():
    assert as_prompt(torch.tensor([1, 2])) == Prompt((1, 2))
    assert as_prompt(np.array([1, 2])) == Prompt((1, 2))
    assert str(Prompt("The capital of the state containing Dallas is")).endswith("…'")
    assert str(parse_prompts("a", "text", "f")[0]) == "f:1"


# Many prompts ------------------------------------------------------------------------------------


def test_every_prompt_has_one_result_equal_to_its_trace(pair):
    prompts = [
        Prompt(TEXTS[0], "one", metadata={"note": "x", "other": [1]}),
        TEXTS[1],
        "",
        [1, 265, 294],
        TEXTS[0],
        [1, 99999],
    ]
    rows = []
    found = list(trace_many(*pair, prompts, progress=lambda p, *n: rows.append((p.name, *n))))
    assert [result.place for result in found] == list(range(6))
    assert [result.status for result in found] == [
        *("traced", "traced", "failed", "traced", "skipped", "failed")
    ]
    for result, prompt in ((found[0], TEXTS[0]), (found[1], TEXTS[1]), (found[3], prompts[3])):
        alone = tracer.trace(*pair, prompt)
        assert set(result.graph.differences(alone)) <= {"slug", "source", "created_at"}
        assert result.graph_id == result.graph.graph_id == alone.graph_id
    assert found[0].graph.slug == "one"
    assert found[0].graph.source == {
        "format": "traced",
        "prompt_id": "one",
        "metadata": {"note": "x", "other": [1]},
    }
    assert found[1].graph.source == {"format": "traced"}
    assert found[4].graph_id == found[0].graph_id
    assert "empty" in str(found[2].error)
    assert "99999" in str(found[5].error)
    assert {name for name, _, _ in rows} == {"one", "dallas-is", ""}
    assert all(0 < done <= total for _, done, total in rows)


def test_skipped_by_id_before_anything_is_loaded(names, monkeypatch):
    ids = {r.graph_id for r in trace_many(*names, TEXTS[:2])}
    monkeypatch.setattr(many, "load_model", None)  # whoever calls it fails
    asked = []
    found = list(trace_many(*names, TEXTS[:2], skip=ids))
    assert [result.status for result in found] == ["skipped"] * 2
    list(trace_many(*names, TEXTS[:2], skip=lambda graph_id: not asked.append(graph_id)))
    assert set(asked) == ids
    with pytest.raises(TypeError):
        list(trace_many(*names, TEXTS[2:], skip=ids))
    # Other settings are other graphs.
    with pytest.raises(TypeError):
        list(trace_many(*names, TEXTS[:2], skip=ids, max_features=50))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name", ["gpt2_clt_residmid", "llama_plt_mlp", "gemma2_plt_ln2", "qwen3_clt_mlp"]
)
def test_ids_are_known_without_weights(data, name, dtype):
    """The id of a model that is only described is that of the loaded one."""
    where = data / "golden/models" / name.split("_")[0], data / "golden/transcoders" / name
    seen = []
    how = Loading(dtype=dtype)
    list(trace_many(*where, [TEXTS[0]], loading=how, skip=lambda i: not seen.append(i)))
    model = tracer.load_model(where[0], dtype=dtype)
    transcoder = tracer.load_transcoder(where[1])
    ids = model.tokenize(TEXTS[0])
    assert seen == [tracer.trace_identity(model, transcoder, ids, tracer.TraceSettings())]


@pytest.mark.parametrize(
    "how", [(), (0.5, 0.7), (1, 1.0), (0.8, 0.98, "paper")], ids=["default", "low", "all", "paper"]
)
def test_ids_of_pruned_traces_are_known_before(pair, how):
    graph = tracer.trace(*pair, TEXTS[1])
    small = tracer.prune(graph, *how)
    assert small.graph_id == tracer.pruned_identity(graph.graph_id, *how) != graph.graph_id
    again = tracer.prune(small, *how)
    assert again.graph_id == tracer.pruned_identity(small.graph_id, *how)


def test_ids_of_pruned_traces_differ_by_all_that_makes_them(pair):
    ids = [
        tracer.pruned_identity(graph_id, *how)
        for graph_id in ("0" * 16, "1" * 16)
        for how in ((), (0.5,), (0.8, 0.5), (0.8, 0.98, "paper"))
    ]
    assert len(set(ids)) == len(ids)
    with pytest.raises(SettingError):
        tracer.pruned_identity("0" * 16, 2)


@pytest.mark.slow
def test_side_by_side_is_the_same(names):
    """Two processes give what one does, exactly but for threads' order of summation: 1e-5."""
    prompts = [
        *(Prompt(text, f"p{i}", metadata={"i": i}) for i, text in enumerate(TEXTS)),
        Prompt(TEXTS[0], "twin"),
        Prompt("", "none"),
    ]
    finish = functools.partial(tracer.prune, node_threshold=0.9)
    here = {r.prompt.id: r for r in trace_many(*names, prompts, devices="cpu", finish=finish)}
    rows = []
    there = {}
    for result in trace_many(
        *names,
        prompts,
        devices=["cpu", "cpu"],
        finish=finish,
        progress=lambda p, *n: rows.append((p.id, *n)),
    ):
        there[result.prompt.id] = result
        if result.prompt.id == "twin":  # what it equals has been handed over before
            assert "p0" in there
    assert there.keys() == here.keys()
    for key, one in here.items():
        other = there[key]
        assert (one.status, one.graph_id, one.place) == (other.status, other.graph_id, other.place)
        assert str(one.error) == str(other.error)
        if one.graph is not None:
            assert one.graph.source == other.graph.source
            assert one.graph.graph_id == other.graph.graph_id
            assert one.graph.keys == other.graph.keys
            difference = abs(one.graph.adjacency - other.graph.adjacency).max()
            assert difference <= 1e-5 * abs(one.graph.adjacency).max()
    assert {key for key, _, _ in rows} <= {"p0", "p1", "p2"}


@pytest.mark.slow
def test_a_process_that_is_killed_costs_its_prompt_only(names, tmp_path, monkeypatch):
    (tmp_path / "circuitbase_deadly.py").write_text(
        "import os, signal\n"
        "def finish(graph):\n"
        "    if graph.slug == 'bad':\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return graph\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import circuitbase_deadly

    prompts = [Prompt(text, name) for text, name in zip(TEXTS, ("bad", "b", "c"), strict=True)]
    found = {
        r.prompt.id: r
        for r in trace_many(*names, prompts, devices="cpu,cpu", finish=circuitbase_deadly.finish)
    }
    assert {name: r.status for name, r in found.items()} == {
        "bad": "failed",
        "b": "traced",
        "c": "traced",
    }
    assert "SIGKILL" in str(found["bad"].error)
    assert "max_features" in str(found["bad"].error)
    sys.modules.pop("circuitbase_deadly")


@pytest.mark.slow
def test_what_cannot_be_loaded_is_said_once(names, tmp_path):
    broken = tmp_path / "gpt2"
    broken.mkdir()
    for path in Path(names[0]).iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    (broken / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    for devices in ("cpu", "cpu,cpu"):
        with pytest.raises((FormatError, TracingError), match="gpt2"):
            list(trace_many(broken, names[1], TEXTS, devices=devices))


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
        TracingError("memory ran out on a prompt of 6 tokens", "Lower max_features"),
    ],
    ids=["host", "cuda", "torch", "told"],
)
def test_memory_that_runs_out_costs_a_prompt(pair, monkeypatch, error):
    held = []

    class Large:
        """Stands for what filled the memory."""

    whole = tracing._trace

    def trace(*arguments):
        if "bad" in arguments:
            large = Large()
            held.append(weakref.ref(large))
            raise error
        return whole(*arguments)

    monkeypatch.setattr(tracing, "_trace", trace)
    prompts = [Prompt(TEXTS[0], "bad"), Prompt(TEXTS[1], "good")]
    results = trace_many(*pair, prompts)
    bad = next(results)
    assert bad.status == "failed"
    assert re.search("memory ran out on a prompt of .* Lower max_features", str(bad.error))
    if error is not bad.error:
        error.__traceback__ = None  # the test's own hold on it
    gc.collect()
    assert held[0]() is None
    assert next(results).status == "traced"


def test_a_defect_is_not_hidden(pair, monkeypatch):
    def trace(*_, **__):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(many, "trace", trace)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(trace_many(*pair, TEXTS))


def test_settings_that_cannot_be(names, pair):
    for arguments, how, says in (
        (pair, {"devices": "cpu"}, "given by name"),
        (pair, {"loading": Loading()}, "given by name"),
        ((pair[0], names[1]), {}, "one is loaded"),
        ((names[0], pair[1]), {}, "one is loaded"),
        (names, {"devices": "abacus"}, "device 'abacus' is unknown"),
        (names, {"devices": []}, "empty list"),
        (names, {"devices": "meta"}, "device 'meta' is unknown"),
        (names, {"devices": "cpu:0"}, "device 'cpu:0' is unknown"),
        (names, {"devices": "cpu,"}, "device '' is unknown"),
        (names, {"devices": "cuda:-1"}, "device 'cuda:-1' is unknown"),
        (names, {"loading": Loading(revision="v1")}, "revision v1 is given, but"),
        (names, {"loading": Loading(transcoder_revision="v2")}, "revision v2 is given, but"),
        (names, {"targets": ["feature/1/x/2"]}, "not a feature's key"),
        (pair, {"targets": ["feature/1"]}, "not a feature's key"),
        (names, {"devices": "cuda:99"}, "not one of this machine's"),
        (names, {"max_feature": 3}, "max_features"),
        (names, {"targets": [3, (1, 2)]}, "cannot be one graph"),
        (pair, {"max_features": 0}, "max_features is 0"),
    ):
        with pytest.raises(SettingError, match=re.escape(says)):
            trace_many(*arguments, TEXTS, **how)  # at once, before the first result is asked for


def test_a_transcoder_of_another_model_is_one_error(names, pair, data, tmp_path):
    """Said when the run is asked for, from the outline: no prompt is tried, no weight is read."""
    asked = []

    def prompts():
        asked.append(1)
        yield TEXTS[0]

    misfit = tmp_path / "two-layers"
    shutil.copytree(data / "golden/transcoders/gpt2_plt_ln2", misfit)
    (misfit / "layer_2.safetensors").unlink()
    config = yaml.safe_load((misfit / "config.yaml").read_text())
    config["transcoders"] = ["layer_0.safetensors", "layer_1.safetensors"]
    (misfit / "config.yaml").write_text(yaml.safe_dump(config))
    for arguments in ((names[0], misfit), (pair[0], tracer.load_transcoder(misfit))):
        with pytest.raises(TracingError, match="has layers 2, the model 3"):
            trace_many(*arguments, prompts())
    assert not asked


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_memory_that_runs_out_while_a_graph_is_finished_costs_a_prompt(pair, error):
    def finish(graph):
        if graph.slug == "bad":
            raise error
        return graph

    prompts = [Prompt(TEXTS[0], "bad"), Prompt(TEXTS[1], "good")]
    bad, good = trace_many(*pair, prompts, finish=finish)
    assert bad.status == "failed"
    assert "memory ran out while the graph" in str(bad.error)
    assert good.status == "traced"


def test_a_defect_of_finish_is_not_hidden(pair):
    def finish(graph):
        raise RuntimeError("no such thing")

    with pytest.raises(RuntimeError, match="no such thing"):
        list(trace_many(*pair, TEXTS, finish=finish))


def test_devices():
    assert find_devices("cpu") == ["cpu"]
    assert find_devices(["cpu", " cpu"]) == find_devices("cpu, cpu") == ["cpu", "cpu"]
    assert find_devices("auto") == find_devices()
    if not torch.cuda.is_available():
        assert find_devices() == ["cpu"]


# Reconstruction ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "name"), [("gpt2", "gpt2_clt_residmid"), ("llama", "llama_pltskip_mlp")]
)
def test_reconstruction_is_that_of_the_definition(data, family, name):
    """Against forward hooks on the transformers model, and the checkpoint's arrays in float64."""
    folder = data / "golden/models" / family
    weights = data / "golden/transcoders" / name
    model, transcoder = tracer.load_model(folder), tracer.load_transcoder(weights)
    ids = model.tokenize(TEXTS[2])
    found = tracer.reconstruction(model, transcoder, TEXTS[2])

    module = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    inputs, outputs = [], []
    layers = module.transformer.h if family == "gpt2" else module.model.layers
    for layer in layers:
        if family == "gpt2":  # the stream after attention is what the norm before the MLP reads
            layer.ln_2.register_forward_hook(lambda m, x, y: inputs.append(x[0][0]))
        else:
            layer.mlp.register_forward_hook(lambda m, x, y: inputs.append(x[0][0]))
        layer.mlp.register_forward_hook(lambda m, x, y: outputs.append(y[0]))
    with torch.no_grad():
        module(torch.tensor([ids]))
    y = np.stack([out.double().numpy() for out in outputs])
    made, active = np.zeros_like(y), []
    for layer, stream in enumerate(inputs):
        x = stream.double().numpy()
        if family == "gpt2":
            file = load_file(weights / f"W_enc_{layer}.safetensors")
            encoder, bias, threshold, out = (
                file[f"{key}_{layer}"] for key in ("W_enc", "b_enc", "threshold", "b_dec")
            )
            decoder = load_file(weights / f"W_dec_{layer}.safetensors")[f"W_dec_{layer}"]
        else:
            file = load_file(weights / f"layer_{layer}.safetensors")
            encoder, bias, decoder, out, skip = (
                file[key] for key in ("W_enc", "b_enc", "W_dec", "b_dec", "W_skip")
            )
            threshold = file["activation_function.threshold"]
            decoder = decoder[:, None]
            made[layer] += x @ skip.T
        h = x @ encoder.T + bias
        a = np.where(h > threshold, h, 0)
        active.append((a != 0).sum(1))
        made[layer] += out
        for k in range(decoder.shape[1]):
            made[layer + k] += a @ decoder[:, k]

    first = slice(1, None)  # BOS is left out
    shape = (len(layers), len(ids) - 1)
    assert list(found["layer"].to_numpy().reshape(shape)[:, 0]) == list(range(len(layers)))
    assert list(found["position"].to_numpy().reshape(shape)[0]) == list(range(1, len(ids)))
    assert list(found["token"][: shape[1]]) == model.tokens(ids)[1:]
    assert np.array_equal(found["active"].to_numpy().reshape(shape), np.stack(active)[:, first])
    norm = np.linalg.norm(y, axis=2)[:, first]
    error = np.linalg.norm(y - made, axis=2)[:, first]
    mean = y[:, first].mean(axis=1, keepdims=True)
    # float32 forward passes on both sides: 1e-4 relative.
    for column, wanted in (
        ("output_norm", norm),
        ("error_norm", error),
        ("deviation_norm", np.linalg.norm(y[:, first] - mean, axis=2)),
        ("explained", 1 - error**2 / norm**2),
    ):
        assert np.allclose(found[column].to_numpy().reshape(shape), wanted, rtol=1e-4, atol=1e-4)
    whole = tracer.reconstruction(model, transcoder, TEXTS[2], zero_first=0)
    assert len(whole) == len(layers) * len(ids)
    assert set(whole["position"]) == set(range(len(ids)))


def test_reconstruction_says_what_does_not_fit(pair):
    with pytest.raises(TracingError, match="empty"):
        tracer.reconstruction(*pair, "")
    with pytest.raises(TracingError, match="no feature"):
        tracer.reconstruction(*pair, [1])  # the only position is zeroed


# The page ----------------------------------------------------------------------------------------


def test_the_pages_examples_run(names, tmp_path, monkeypatch, capsys):
    text = (Path(__file__).parent.parent / "docs/tracing.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (prompts,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIRCUITBASE_STORE", str(tmp_path / "page.db"))
    monkeypatch.delenv("NEO4J_URI", raising=False)
    # The small model knows fewer tokens.
    Path("capitals.jsonl").write_text(re.sub(r"(464|3139)", "265", prompts) + '{"prompt": ""}\n')
    code = "\n".join(examples).replace('"gpt2"', repr(names[0]))
    space = {"__name__": "__main__"}
    for _ in range(2):  # the second time nothing is traced
        exec(code.replace('"owner/clt"', repr(names[1])), space)
    assert capsys.readouterr().out.count("capitals.jsonl:3: the prompt is empty") == 2
    with graphstore.connect() as store:
        assert set(store.graphs("capitals")["slug"]) == {"dallas", "by-ids"}
    assert space["result"].status == "failed"
    assert len(space["table"]) == 27 - 3
