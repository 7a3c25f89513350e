"""The .circuit file: exact in every field, the same bytes for the same graph, safe to open."""

from __future__ import annotations

import io
import json
import pickle
import re
import zipfile

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array, random_array

from graphstore.files import Limits, read_graph, write_graph
from tracer import AttributionGraph, Scores, Supernode
from tracer.errors import FormatError
from tracer.graph import NODE_COLUMNS
from tracer.pruning import prune


def full_graph(n_features: int = 6, dtype=np.float32, seed: int = 0) -> AttributionGraph:
    """A graph that uses every field, with values that are hard to carry."""
    random = np.random.default_rng(seed)
    kinds = ["embedding"] * 2 + ["error"] + ["feature"] * n_features + ["logit"] * 2
    n = len(kinds)
    adjacency = random_array((n, n), density=0.6, rng=random).toarray() - 0.4
    adjacency = np.tril(adjacency, -1)
    adjacency[:3] = 0
    adjacency[:, -2:] = 0
    adjacency = adjacency.astype(dtype)
    residual = np.where(random.random((n, n)) < 0.5, adjacency, 0).astype(dtype)
    features = list(range(n_features))
    nan, nans = np.nan, [np.nan] * n_features
    columns = {
        "kind": kinds,
        "layer": [-1, -1, 0, *features, n_features, n_features],
        "position": [0, 1, 1, *[1] * n_features, 1, 1],
        "index": [5, 2**40, -1, *[2**33 + i for i in features], 7, -1],
        "token": ["<bos>", " a\x00\r\n\ud800é", None, *[""] * n_features, "\t", "</data>]]>"],
        "activation": [nan, nan, nan, *(random.random(n_features) * 1e-300), nan, nan],
        "probability": [nan, nan, nan, *nans, 0.1, 1.0],
        "label": [None, "", "x", *[None] * n_features, "Output", "a − b"],
        "source_id": [f"id {row}" for row in range(n)],
        "bias": random.normal(size=n),
        "bias_zeroed": [nan, -0.0, 5e-324, *nans, 1.7976931348623157e308, 0.1],
        "influence_full": random.random(n),
    }
    return AttributionGraph(
        pd.DataFrame(columns, dtype=object),  # pyarrow's strings hold no lone surrogates
        csr_array(adjacency),
        prompt="\ufeff a\x00\u2028b\U0001f600",
        tokens=["<bos>", " a\x00\r\n\ud800é"],
        token_ids=[5, 2**40],
        model_id="owner/model",
        transcoder_id="owner/set@main",
        model_info={"family": "llama", "n_layers": 3, "rope": [1.5, None, {"deep": True}]},
        transcoder_info={"kind": "clt"},
        slug="slug",
        settings={"zero_first": 1, "targets": [["a", 0.1]], "tiny": 5e-324},
        scores={
            "full": Scores("full", 0.1, 0.2, float("nan"), 1e-17),
            "masked": Scores("masked", 0.1 + 0.2, 0.0, 1.0, 0.0),
        },
        unpruned=True,
        residual=csr_array(residual),
        attention=csr_array(adjacency - residual),
        supernodes=[
            Supernode("one", (0, 3)),
            Supernode("one", (), ""),
            Supernode("two", (1,), "me"),
        ],
        pinned=[4, 1],
        source={"format": "neuronpedia", "metadata": {"info": {"k": [1, 2.5, "x", None]}}},
        created_at="2026-01-02T03:04:05+00:00",
        parent_id="0123456789abcdef",
        graph_id="fedcba9876543210",
    )


def parts(path):
    """Contents of an archive, in order."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path, contents):
    """Write an archive of the given contents."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)


def npy(values) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


@pytest.fixture
def path(tmp_path):
    """A file that holds the full graph."""
    write_graph(full_graph(), tmp_path / "one.circuit")
    return tmp_path / "one.circuit"


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(5))
def test_exact_in_every_field(tmp_path, dtype, seed):
    graph = full_graph(dtype=dtype, seed=seed)
    write_graph(graph, tmp_path / "one.circuit")
    back = read_graph(tmp_path / "one.circuit")
    assert graph.differences(back) == []
    assert back.adjacency.dtype == dtype
    assert list(back.nodes.columns) == list(graph.nodes.columns)
    assert dict(back.nodes.dtypes) == dict(graph.nodes.dtypes)
    assert str(back.settings) == str(graph.settings)
    assert np.signbit(back.nodes["bias_zeroed"].iat[1])  # −0.0, which equals 0.0
    assert repr(back.scores) == repr(graph.scores)


def test_every_column_is_carried(tmp_path):
    graph = full_graph()
    extra = {name: 1.5 for name, c in NODE_COLUMNS.items() if c.type == "real" and not c.always}
    graph = graph.replace(nodes=graph.nodes.assign(**extra, source_js_id="x"))
    assert set(graph.nodes.columns) == set(NODE_COLUMNS)
    write_graph(graph, tmp_path / "one.circuit")
    assert graph.differences(read_graph(tmp_path / "one.circuit")) == []


def test_real_and_golden_graphs(real_graphs, golden_pair, tmp_path):
    whole, _ = golden_pair
    for graph in [whole, prune(whole), *(read_graph(path) for path in real_graphs[:1])]:
        write_graph(graph, tmp_path / "one.circuit")
        assert graph.differences(read_graph(tmp_path / "one.circuit")) == []


def test_every_real_graph(real_graphs, tmp_path):
    for source in real_graphs:
        graph = read_graph(source)
        write_graph(graph, tmp_path / "one.circuit")
        assert graph.differences(read_graph(tmp_path / "one.circuit")) == []
        assert (tmp_path / "one.circuit").stat().st_size < source.stat().st_size / 5


def test_smallest_graph(tmp_path):
    nodes = pd.DataFrame({"kind": [], "layer": [], "position": [], "index": []})
    graph = AttributionGraph(nodes, csr_array((0, 0)))
    write_graph(graph, tmp_path / "none.circuit")
    assert graph.differences(read_graph(tmp_path / "none.circuit")) == []


TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.just("\udc80"), max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(TEXT, JSON, max_size=3), TEXT, st.lists(TEXT, min_size=2, max_size=2))
def test_any_texts_and_settings(tmp_path_factory, anything, prompt, tokens):
    """Oracle: the object itself."""
    graph = full_graph().replace(settings=anything, source=anything, prompt=prompt, tokens=tokens)
    path = tmp_path_factory.mktemp("any") / "one.circuit"
    write_graph(graph, path)
    assert graph.differences(read_graph(path)) == []


def test_same_graph_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_graph(full_graph(), tmp_path / f"{name}.circuit")
    assert (tmp_path / "one.circuit").read_bytes() == (tmp_path / "two.circuit").read_bytes()


def test_readable_without_circuitbase(path):
    """The layout that the documentation promises: zipfile, json and numpy are enough."""
    contents = parts(path)
    header = json.loads(contents["header.json"])
    assert (header["encoding"], header["version"]) == ("circuitbase/attribution-graph", 1)
    weights = np.load(io.BytesIO(contents["adjacency/data.npy"]), allow_pickle=False)
    np.testing.assert_array_equal(weights, full_graph().adjacency.data)
    assert json.loads(contents["nodes/kind.json"])[2] == "error"


# Damaged and hostile files ---------------------------------------------------------------------


def test_cut_off_anywhere(path, tmp_path):
    data = path.read_bytes()
    for length in range(0, len(data), 37):
        (tmp_path / "cut.circuit").write_bytes(data[:length])
        with pytest.raises(FormatError, match=rf"^{re.escape(str(tmp_path))}/cut\.circuit: "):
            read_graph(tmp_path / "cut.circuit")


def test_any_byte_changed(path, tmp_path):
    """Either the change is found, or it was in what no field depends on (a zip's time stamps)."""
    data, graph = path.read_bytes(), read_graph(path)
    random = np.random.default_rng(0)
    refused = 0
    for place in random.choice(len(data), 400, replace=False):
        changed = bytearray(data)
        changed[place] ^= int(random.integers(1, 256))
        (tmp_path / "bad.circuit").write_bytes(changed)
        try:
            back = read_graph(tmp_path / "bad.circuit")
        except FormatError:
            refused += 1
        else:
            assert graph.differences(back) == []
    assert refused > 250


@pytest.mark.parametrize(
    ("version", "remedy"), [(2, "Upgrade circuitbase"), (0, "Export"), ("one", "Export")]
)
def test_unknown_version(path, tmp_path, version, remedy):
    contents = parts(path)
    header = json.loads(contents["header.json"])
    contents["header.json"] = json.dumps(header | {"version": version}).encode()
    pack(tmp_path / "new.circuit", contents)
    with pytest.raises(
        FormatError, match=rf"^{re.escape(str(tmp_path))}/new\.circuit: is of version .*{remedy}"
    ):
        read_graph(tmp_path / "new.circuit")


def test_foreign_encoding(path, tmp_path):
    contents = parts(path) | {"header.json": b'{"encoding": "other", "version": 1}'}
    pack(tmp_path / "bad.circuit", contents)
    with pytest.raises(FormatError, match="header is not one of circuitbase"):
        read_graph(tmp_path / "bad.circuit")


HEADER_FAULTS = (None, "x", -1, 2.5, True, [], {}, [None], ["x"], {"x": 1}, [[]], 10**30)


def test_every_header_field_of_every_wrong_type(path, tmp_path):
    """No other error than FormatError, whatever stands in the header."""
    contents = parts(path)
    header = json.loads(contents["header.json"])
    for key in header:
        for fault in HEADER_FAULTS:
            pack(
                tmp_path / "bad.circuit",
                contents | {"header.json": json.dumps(header | {key: fault}).encode()},
            )
            try:
                read_graph(tmp_path / "bad.circuit")
            except FormatError as error:
                assert str(error).startswith(f"{tmp_path}/bad.circuit: ")  # noqa: PT017
        pack(
            tmp_path / "bad.circuit",
            contents
            | {"header.json": json.dumps({k: v for k, v in header.items() if k != key}).encode()},
        )
        if key not in ("token_ids", "model_id", "transcoder_id", "created_at", "parent_id"):
            with pytest.raises(FormatError):
                read_graph(tmp_path / "bad.circuit")


@pytest.mark.parametrize(
    ("member", "content", "says"),
    [
        ("adjacency/indptr.npy", npy(np.arange(5)), "do not fit a matrix"),
        ("adjacency/indices.npy", npy(np.array([10**6], dtype=np.int32)), "do not fit a matrix"),
        ("adjacency/data.npy", npy(np.array([1, 2])), "not what the graph needs"),
        ("adjacency/data.npy", npy(np.ones((2, 2))), "not what the graph needs"),
        ("adjacency/data.npy", b"not numpy", "is no array"),
        ("adjacency/data.npy", npy(np.ones(3))[:-1], "not what the graph needs"),
        ("nodes/layer.npy", npy(np.zeros(3, dtype=np.int64)), "not what the graph needs"),
        ("nodes/layer.npy", npy(np.zeros(11)), "not what the graph needs"),
        ("nodes/kind.json", b"[1]", "does not list"),
        ("nodes/kind.json", b"[" + b"1," * 10 + b"1]", "not a text"),
        ("nodes/kind.json", b"[", "is not JSON"),
        ("nodes/kind.json", b"[" * 99, "nested deeper"),
        ("header.json", b"[" * 99, "nested deeper"),
        ("nodes/kind.json", None, "lacks its part"),
        ("adjacency/data.npy", None, "lacks its part"),
    ],
)
def test_wrong_parts(path, tmp_path, member, content, says):
    contents = parts(path)
    contents[member] = content
    pack(tmp_path / "bad.circuit", {k: v for k, v in contents.items() if v is not None})
    with pytest.raises(FormatError, match=rf"^{re.escape(str(tmp_path))}/bad\.circuit: ") as caught:
        read_graph(tmp_path / "bad.circuit")
    assert says in str(caught.value)


def test_array_of_objects_is_not_unpickled(path, tmp_path):
    """An object array is a pickle; NumPy would run it if asked to."""

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    payload = pickle.dumps(np.array([Bomb()], dtype=object))
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "|O", "fortran_order": False, "shape": (1,)}
    )
    contents = parts(path) | {"adjacency/data.npy": head.getvalue() + payload}
    pack(tmp_path / "bad.circuit", contents)
    with pytest.raises(FormatError, match="not what the graph needs"):
        read_graph(tmp_path / "bad.circuit")
    assert not (tmp_path / "ran").exists()


def test_array_that_claims_to_be_huge(path, tmp_path):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (1 << 60,)}
    )
    pack(tmp_path / "bad.circuit", parts(path) | {"adjacency/data.npy": head.getvalue()})
    with pytest.raises(FormatError, match="not what the graph needs"):
        read_graph(tmp_path / "bad.circuit")


def test_zip_bomb(path, tmp_path):
    """Refused by what the archive's index says, before anything is inflated."""
    pack(tmp_path / "bomb.circuit", parts(path) | {"zeros": bytes(50_000_000)})
    assert (tmp_path / "bomb.circuit").stat().st_size < 100_000
    with pytest.raises(FormatError, match=r"inflates to 50,\d+,\d+ bytes, more than the limit"):
        read_graph(tmp_path / "bomb.circuit", limits=Limits(content_bytes=1_000_000))


def test_zip_bomb_that_lies_about_its_size(path, tmp_path):
    """The index says 100 bytes: no more are inflated, and the checksum betrays it."""
    contents = parts(path) | {"adjacency/data.npy": bytes(20_000_000)}
    pack(tmp_path / "bomb.circuit", contents)
    data = bytearray((tmp_path / "bomb.circuit").read_bytes())
    size = (20_000_000).to_bytes(4, "little")
    assert data.count(size) >= 1
    (tmp_path / "bomb.circuit").write_bytes(data.replace(size, (100).to_bytes(4, "little")))
    with pytest.raises(
        FormatError, match=rf"^{re.escape(str(tmp_path))}/bomb\.circuit: the archive is damaged"
    ):
        read_graph(tmp_path / "bomb.circuit")


def test_member_twice_and_encrypted(path, tmp_path):
    with zipfile.ZipFile(tmp_path / "twice.circuit", "w") as archive:
        archive.writestr("header.json", b"{}")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("header.json", b"{}")
    with pytest.raises(FormatError, match="twice"):
        read_graph(tmp_path / "twice.circuit")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    (tmp_path / "locked.circuit").write_bytes(data)
    with pytest.raises(FormatError, match="encrypted"):
        read_graph(tmp_path / "locked.circuit")


def test_graph_that_breaks_a_rule(path, tmp_path):
    contents = parts(path)
    kinds = json.loads(contents["nodes/kind.json"])
    kinds[3] = "neuron"
    pack(tmp_path / "bad.circuit", contents | {"nodes/kind.json": json.dumps(kinds).encode()})
    with pytest.raises(
        FormatError,
        match=rf"^{re.escape(str(tmp_path))}/bad\.circuit: node kind 'neuron' is unknown",
    ):
        read_graph(tmp_path / "bad.circuit")


def test_settings_that_json_cannot_hold(tmp_path):
    graph = full_graph().replace(settings={"when": object()})
    for ending in ("circuit", "graphml"):
        with pytest.raises(FormatError, match="hold what JSON cannot"):
            write_graph(graph, tmp_path / f"one.{ending}")
    assert list(tmp_path.iterdir()) == []


def test_ids_given_by_the_caller(path):
    graph = read_graph(path)
    assert read_graph(path, transcoder="owner/set@main").differences(graph) == []
    other = read_graph(path, transcoder="owner/other", model="m")
    assert (other.transcoder_id, other.model_id) == ("owner/other", "m")
    assert other.graph_id != graph.graph_id
