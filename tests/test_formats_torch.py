"""circuit-tracer's saved graphs: read exactly, and never run.

The files under ``tests/data/files`` were written by circuit-tracer 0.5.0 and PyTorch 2.15
(``benchmarks/circuit_tracer_schema.py save`` and ``save-variants``).
"""

from __future__ import annotations

import io
import os
import pickle
import re
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from graphstore.files import Limits, read_graph, write_graph
from graphstore.formats.pickles import Tensor, read_pickle
from tracer.errors import FormatError
from tracer.scores import scores


@pytest.fixture
def saved(data) -> Path:
    """Forty features of the golden graph llama_plt_mlp, saved by circuit-tracer."""
    return data / "files/llama.pt"


def parts(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path, contents):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return path


# What is read ----------------------------------------------------------------------------------


def test_saved_graph_against_the_golden_arrays(saved, golden):
    """Oracle: the arrays that went into Graph.to_pt, chosen again by the same seed."""
    whole, arrays = golden("llama_plt_mlp")
    graph = read_graph(saved)
    n_features = len(arrays["active_features"])
    selected = np.sort(np.random.default_rng(0).choice(n_features, 40, replace=False))
    rows = np.concatenate([selected, np.arange(n_features, whole.n_nodes)])
    np.testing.assert_array_equal(
        graph.adjacency.toarray(), arrays["adjacency"][np.ix_(rows, rows)]
    )
    assert graph.adjacency.dtype == np.float32
    assert graph.keys == tuple(whole.keys[row] for row in rows)
    for column in ("kind", "layer", "position", "index", "activation", "probability"):
        expected = whole.nodes[column].iloc[rows].reset_index(drop=True)
        assert graph.nodes[column].equals(expected), column
    assert graph.prompt == str(arrays["prompt"])
    assert graph.token_ids == tuple(arrays["input_tokens"])
    assert (graph.model_id, graph.transcoder_id) == ("llama", "llama_plt_mlp")
    assert graph.model_info == {
        "family": "Llama", "n_layers": 3, "d_model": 32, "vocab_size": 296,
    }  # fmt: skip
    assert graph.unpruned
    assert graph.nodes.loc[graph.is_logit, "token"].iat[0] == f"<{arrays['logit_tokens'][0]}>"
    assert scores(graph, "full").replacement > 0


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_and_older_fields(data, precision):
    """Columns-first storage, targets as a tensor, TransformerLens's own configuration."""
    graph = read_graph(data / f"files/tiny-{precision}.pt")
    expected = np.zeros((6, 6))
    expected[0, 4], expected[5, 0], expected[5, 2], expected[5, 3] = 1.5, -2.0, 0.25, 3.0
    np.testing.assert_array_equal(graph.adjacency.toarray(), expected)
    assert graph.keys == (
        "feature/0/7/1", "error/0/0", "error/0/1", "embedding/0", "embedding/1", "logit/9",
    )  # fmt: skip
    assert graph.nodes["activation"].iat[0] == 1.25
    assert graph.nodes["probability"].iat[5] == 0.75
    assert graph.model_id == "tiny"
    assert graph.transcoder_info == {"transcoders": ["owner/one", "owner/two"]}
    assert str(graph.transcoder_id).startswith("custom-")


def test_ids_given_by_the_caller(saved, tmp_path):
    graph = read_graph(saved, transcoder="owner/set", model="owner/model")
    assert (graph.model_id, graph.transcoder_id) == ("owner/model", "owner/set")
    assert graph.source["transcoder_from"] == "argument"
    write_graph(graph, tmp_path / "one.circuit")
    assert graph.differences(read_graph(tmp_path / "one.circuit")) == []


def test_needs_no_torch(saved):
    """In a process of its own: PyTorch is not even imported."""
    code = (
        "import sys; from graphstore.files import read_graph; "
        f"print(read_graph({str(saved)!r}).n_nodes, 'torch' in sys.modules, 'pickle' in sys.argv)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert done.stdout.split() == ["74", "False", "False"]


def test_big_endian(saved, tmp_path):
    """The same numbers with their bytes turned round."""
    contents = parts(saved)
    fields = read_pickle(contents["llama/data.pkl"], "llama.pt", 10_000)
    for storage in (field.storage for field in fields.values() if isinstance(field, Tensor)):
        member, size = f"llama/data/{storage.key}", storage.dtype[1]
        turned = np.frombuffer(contents[member], f"<u{size}").astype(f">u{size}")
        contents[member] = turned.tobytes()
    contents["llama/byteorder"] = b"big"
    back = read_graph(pack(tmp_path / "big.pt", contents))
    assert read_graph(saved).differences(back) == []


# What is refused -------------------------------------------------------------------------------


class Call:
    """Pickles to a call of anything."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def hand_made(program: bytes) -> bytes:
    return b"\x80\x02" + program + b"."


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


SENTINEL = "ran-me"
SHELL = f"touch {SENTINEL}"

ATTACKS = {
    "os.system": lambda: pickle.dumps(Call(os.system, SHELL), 2),
    "os.system, protocol 0": lambda: pickle.dumps(Call(os.system, SHELL), 0),
    "os.system, protocol 5": lambda: pickle.dumps(Call(os.system, SHELL), 5),
    "eval": lambda: pickle.dumps(Call(eval, f"open('{SENTINEL}', 'w')"), 2),
    "exec": lambda: pickle.dumps(Call(exec, f"open('{SENTINEL}', 'w')"), 4),
    "open": lambda: pickle.dumps(Call(open, SENTINEL, "w"), 2),
    "subprocess": lambda: pickle.dumps(Call(subprocess.check_call, ["touch", SENTINEL]), 2),
    "getattr": lambda: pickle.dumps(Call(getattr, 1, "real"), 2),
    "nested in a graph's field": lambda: pickle.dumps(
        {"adjacency_matrix": [{"deep": (1, [Call(os.system, SHELL)])}]}, 2
    ),
    "as a dictionary's key": lambda: pickle.dumps({Call(os.system, SHELL): 1}, 2),
    "INST": lambda: hand_made(b"(" + text(SHELL) + b"ios\nsystem\n"),
    "OBJ": lambda: hand_made(b"(cos\nsystem\n" + text(SHELL) + b"o"),
    "NEWOBJ": lambda: hand_made(b"cos\nsystem\n" + text(SHELL) + b"\x85\x81"),
    "NEWOBJ_EX": lambda: hand_made(b"cos\nsystem\n" + text(SHELL) + b"\x85}\x92"),
    "STACK_GLOBAL": lambda: hand_made(
        text("os") + text("system") + b"\x93" + text(SHELL) + b"\x85R"
    ),
    "STACK_GLOBAL of a joined name": lambda: hand_made(
        text("torch._utils _rebuild_tensor_v2\nos") + text("system") + b"\x93)R"
    ),
    "dotted name under an allowed module": lambda: hand_made(
        text("collections") + text("OrderedDict.__init__.__globals__") + b"\x93)R"
    ),
    "extension registry": lambda: hand_made(b"\x82\x01"),
    "persistent id, protocol 0": lambda: hand_made(b"Pos.system\n"),
    "persistent id that is a call": lambda: hand_made(text("storage") + b"Q"),
    "BUILD on a global": lambda: hand_made(
        b"ctorch._utils\n_rebuild_tensor_v2\n}" + text("__code__") + text("x") + b"sb"
    ),
    "BUILD with __setstate__": lambda: hand_made(
        b"ccircuit_tracer.utils.tl_nnsight_mapping\nUnifiedConfig\n)\x81"
        b"}" + text("__setstate__") + b"cos\nsystem\nsb" + text(SHELL) + b"b"
    ),
    "call of a record": lambda: hand_made(
        b"ccircuit_tracer.utils.tl_nnsight_mapping\nUnifiedConfig\n)R"
    ),
    "call of data": lambda: hand_made(text("os.system") + text(SHELL) + b"\x85R"),
    "new object of an allowed function": lambda: hand_made(b"ccollections\nOrderedDict\n)\x81"),
    "torch.load": lambda: hand_made(b"ctorch\nload\n" + text("x") + b"\x85R"),
    "torch.hub": lambda: hand_made(b"ctorch.hub\nload\n" + text("x") + b"\x85R"),
    "lookalike module": lambda: hand_made(
        b"ctransformers.models.x.configuration_x.os\nConfig\n)\x81"
    ),
    "numpy object scalar": lambda: hand_made(
        b"cnumpy\ndtype\n" + text("O8") + b"\x85Rcnumpy._core.multiarray\nscalar\n"
    ),
    "codecs with a callable codec": lambda: hand_made(
        b"c_codecs\nencode\n" + text("x") + text("rot13") + b"\x86R"
    ),
    "copyreg": lambda: hand_made(b"ccopyreg\n_reconstructor\n)R"),
    "functools.partial": lambda: hand_made(b"cfunctools\npartial\n)R"),
    "operator.attrgetter": lambda: hand_made(b"coperator\nattrgetter\n" + text("x") + b"\x85R"),
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("as_graph", [False, True])
def test_nothing_runs(attack, as_graph, saved, tmp_path, monkeypatch):
    """The file is refused, and what it wanted to run has not run."""
    monkeypatch.chdir(tmp_path)
    program = ATTACKS[attack]()
    if as_graph:  # inside an otherwise good file
        good = parts(saved)["llama/data.pkl"]
        body = program[2:-1] if program[:1] == b"\x80" else program[:-1]
        program = good[:-1] + body + good[-1:]
    path = pack(tmp_path / "bad.pt", parts(saved) | {"llama/data.pkl": program})
    with pytest.raises(FormatError, match=rf"^{re.escape(str(tmp_path))}/bad\.pt: ") as caught:
        read_graph(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.pt"], attack
    assert "Traceback" not in str(caught.value)


def test_the_attacks_are_real(tmp_path, monkeypatch):
    """Opened with code execution allowed, they do run: the test above proves something."""
    monkeypatch.chdir(tmp_path)
    ran = 0
    for name in ("os.system", "eval", "open", "INST", "OBJ", "STACK_GLOBAL", "subprocess"):
        result = pickle.loads(ATTACKS[name]())
        if isinstance(result, io.IOBase):
            result.close()
        ran += Path(SENTINEL).exists()
        Path(SENTINEL).unlink(missing_ok=True)
    assert ran == 7


def test_the_message_says_what_was_asked_for(saved, tmp_path):
    path = pack(tmp_path / "bad.pt", parts(saved) | {"llama/data.pkl": ATTACKS["eval"]()})
    with pytest.raises(FormatError) as caught:
        read_graph(path)
    assert "its pickle asks for __builtin__.eval" in str(caught.value)
    assert "has run nothing of it" in str(caught.value)


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"\x80\x02",
        b"\x80\x02}",
        hand_made(b"R"),
        hand_made(b"t"),
        hand_made(b"\x87"),
        hand_made(b"h\x05"),
        hand_made(b"e"),
        hand_made(b"(K\x01K\x02e"),
        hand_made(b"]K\x01K\x02s"),
        hand_made(b"}(K\x01u"),
        hand_made(b"}]K\x01s"),
        hand_made(b"r\xff\xff\xff\x7f"),
        hand_made(b"\x8b\xff\xff\xff\x7f"),
        hand_made(b"X\xff\xff\xff\xffabc"),
        hand_made(b"L" + b"9" * 5000 + b"L\n"),
        hand_made(b"N"),
        hand_made(b"]"),
        hand_made(b"}"),
        b"\x80\x09.",
        b"\xff\xfe\xfd",
    ],
)
def test_damaged_programs(program, saved, tmp_path):
    path = pack(tmp_path / "bad.pt", parts(saved) | {"llama/data.pkl": program})
    with pytest.raises(FormatError, match=rf"^{re.escape(str(tmp_path))}/bad\.pt: "):
        read_graph(path)


def test_any_byte_of_the_program_changed(saved, tmp_path):
    """No other error than FormatError, and no file made, whatever the program has become."""
    contents = parts(saved)
    good = contents["llama/data.pkl"]
    random = np.random.default_rng(0)
    for _ in range(600):
        program = bytearray(good)
        for place in random.choice(len(good), random.integers(1, 4), replace=False):
            program[place] = random.integers(256)
        pack(tmp_path / "bad.pt", contents | {"llama/data.pkl": bytes(program)})
        try:
            read_graph(tmp_path / "bad.pt")
        except FormatError as error:
            assert str(error).startswith(f"{tmp_path}/bad.pt: ")  # noqa: PT017


def test_limits(saved, tmp_path):
    with pytest.raises(FormatError, match="too many instructions"):
        read_graph(saved, limits=Limits(opcodes=50))
    with pytest.raises(FormatError, match="more than the limit of 1,000"):
        read_graph(saved, limits=Limits(file_bytes=1000))
    with pytest.raises(FormatError, match="inflates to"):
        read_graph(saved, limits=Limits(content_bytes=1000))


def tensor(key: str, numel: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> bytes:
    """Program that makes a float tensor."""

    def numbers(values):
        return b"(" + b"".join(b"J" + struct.pack("<i", v) for v in values) + b"t"

    return (
        b"ctorch._utils\n_rebuild_tensor_v2\n((" + text("storage") + b"ctorch\nFloatStorage\n"
        + text(key) + text("cpu") + b"J" + struct.pack("<i", numel) + b"tQK\x00"
        + numbers(shape) + numbers(strides) + b"\x89NtR"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (tensor("0", 4, (2, 3), (3, 1)), "past its storage"),
        (tensor("0", 4, (2,), (-1,)), "unknown kind"),
        (tensor("0", 5476, (1 << 20, 1 << 20, 1 << 20), (0, 0, 0)), "its storage 5,476"),
        (tensor("0", 4, (2, 2), (1,)), "shape and strides"),
        (tensor("../../header", 4, (2, 2), (2, 1)), "strange name"),
        (tensor("99", 4, (2, 2), (2, 1)), "lacks its part"),
        (tensor("0", 1 << 20, (2, 2), (2, 1)), "bytes, not"),
    ],
)
def test_tensors_that_lie(made, says, saved, tmp_path):
    """Memory outside the storage is never touched, and none is made on a claim alone."""
    program = parts(saved)["llama/data.pkl"]
    # A later item of the same key replaces the true one.
    body = program[:-1] + text("selected_features") + made + b"s."
    path = pack(tmp_path / "bad.pt", parts(saved) | {"llama/data.pkl": body})
    with pytest.raises(FormatError, match=rf"^{re.escape(str(tmp_path))}/bad\.pt: ") as caught:
        read_graph(path)
    assert says in str(caught.value)


FIELD_FAULTS = {
    "null": b"N",
    "text": text("x"),
    "number": b"K\x05",
    "empty list": b"]",
    "empty object": b"}",
    "matrix": tensor("0", 5476, (74, 74), (74, 1)),
    "long vector": tensor("0", 5476, (5476,), (1,)),
    "scalar": tensor("0", 5476, (), ()),
    "negative": b"J\xff\xff\xff\xff",
}


@pytest.mark.parametrize("fault", FIELD_FAULTS)
def test_fields_of_wrong_kinds(fault, saved, tmp_path):
    contents = parts(saved)
    fields = (
        "adjacency_matrix", "cfg", "active_features", "logit_targets", "logit_probabilities",
        "input_tokens", "selected_features", "activation_values",
    )  # fmt: skip
    for field in fields:
        if (fault, field) == ("matrix", "adjacency_matrix"):
            continue
        program = contents["llama/data.pkl"][:-1] + text(field) + FIELD_FAULTS[fault] + b"s."
        path = pack(tmp_path / "bad.pt", contents | {"llama/data.pkl": program})
        with pytest.raises(FormatError, match=rf"^{re.escape(str(tmp_path))}/bad\.pt: "):
            read_graph(path)


def test_other_torch_files(tmp_path, saved):
    weights = hand_made(b"}" + text("layer.weight") + tensor("0", 4, (2, 2), (2, 1)) + b"s")
    path = pack(tmp_path / "weights.pt", {"w/data.pkl": weights, "w/data/0": bytes(16)})
    with pytest.raises(FormatError, match="not a graph saved by circuit-tracer"):
        read_graph(path)
    (tmp_path / "old.pt").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(FormatError, match="bare pickle"):
        read_graph(tmp_path / "old.pt")
    contents = parts(saved)
    contents["llama/byteorder"] = b"middle"
    with pytest.raises(FormatError, match="byte order"):
        read_graph(pack(tmp_path / "order.pt", contents))


def test_cut_off_anywhere(saved, tmp_path):
    data = saved.read_bytes()
    for length in range(1, len(data), 997):
        (tmp_path / "cut.pt").write_bytes(data[:length])
        with pytest.raises(FormatError, match=rf"^{re.escape(str(tmp_path))}/cut\.pt: "):
            read_graph(tmp_path / "cut.pt")
