"""Bad files and bad disks: always a FormatError that names the file, the place and the remedy."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from graphstore.files import FORMATS, Limits, read_graph, write_graph
from graphstore.formats.common import check_depth
from tracer import CircuitWarning
from tracer.errors import FormatError

ENDINGS = ("json", "graphml", "circuit")


@pytest.fixture
def minimal(data):
    """A small good file, parsed."""
    return json.loads((data / "files/minimal.json").read_text())


@pytest.fixture
def refused(tmp_path):
    """Write a file, read it, and give back the message of its refusal."""

    def refused(content, **options) -> str:
        path = tmp_path / "night.json"
        if not isinstance(content, bytes):
            content = (content if isinstance(content, str) else json.dumps(content)).encode()
        path.write_bytes(content)
        with pytest.raises(FormatError) as caught:
            read_graph(path, **options)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert message.endswith(".")
        assert ".." not in message.replace("…", "")
        return message

    return refused


def change(content, place, value):
    """Copy with one value changed; `place` as nodes.1.layer."""
    made = copy.deepcopy(content)
    target = made
    *steps, last = [int(s) if s.isdecimal() else s for s in place.split(".")]
    for step in steps:
        target = target[step]
    if value is KeyError:
        del target[last]
    else:
        target[last] = value
    return made


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("nodes.3.ctx_idx", "x", 'nodes[3].ctx_idx is "x", not a whole number'),
        ("nodes.3.ctx_idx", 1.0, "nodes[3].ctx_idx is 1.0, not a whole number"),
        ("nodes.3.ctx_idx", True, "nodes[3].ctx_idx is true, not a whole number"),
        ("nodes.3.ctx_idx", KeyError, "nodes[3].ctx_idx is missing"),
        ("nodes.3.ctx_idx", 9, "has position 9"),
        ("nodes.4.ctx_idx", -1, "has position -1"),
        ("nodes.1.node_id", KeyError, "nodes[1].node_id is missing"),
        ("nodes.1.node_id", 7, "nodes[1].node_id is 7, not a text"),
        ("nodes.1.feature", KeyError, "nodes[1].feature is missing"),
        ("nodes.1.layer", "x", 'nodes[1].layer is "x", not a layer'),
        ("nodes.1.layer", -1, "nodes[1].layer is -1, not a layer"),
        ("nodes.1.layer", KeyError, "nodes[1].layer is missing"),
        ("nodes.1.feature_type", "lorsa", 'feature_type is "lorsa", an unknown kind of node'),
        ("nodes.1.feature_type", KeyError, "feature_type is missing"),
        ("nodes.1.activation", "high", 'nodes[1].activation is "high", not a number'),
        ("nodes.1.influence", [], "nodes[1].influence is a list, not a number"),
        ("nodes.1.clerp", 5, "nodes[1].clerp is 5, not a text"),
        ("nodes.6.token_prob", KeyError, "nodes[6].token_prob is missing"),
        ("nodes.6.token_prob", None, "nodes[6].token_prob is null, not a number"),
        ("nodes.6.token_prob", 1.5, "probability 1.5"),
        ("nodes.6.node_id", "logit", "its token cannot be told"),
        ("nodes.6.layer", "4", "logits at layers 3 and 4"),
        ("nodes.2", "node", 'nodes[2] is "node", not an object'),
        ("nodes", {}, "nodes is an object, not a list"),
        ("nodes", [], "has no logit node"),
        ("nodes", KeyError, 'has no "nodes"'),
        ("links", KeyError, 'has no "links"'),
        ("links.0", [], "links[0] is a list, not an object"),
        ("links.0.source", KeyError, "links[0].source is missing"),
        ("links.0.target", 5, "links[0].target is 5, not a text"),
        ("links.0.weight", None, "links[0].weight is null, not a number"),
        ("links.0.weight", "1", 'links[0].weight is "1", not a number'),
        ("links.0.target", "nobody", 'link 0 ends at node "nobody"'),
        ("links.0.source", "nobody", 'link 0 starts at node "nobody"'),
        ("links.0.source", "E_7_1", "links[1] repeats links[0]"),
        ("links.0.target", "0_0_1", "has 1 inputs"),
        ("links.0.target", "E_7_1", "has 1 inputs"),
        ("links.5.source", "3_12_1", "logit node logit/12 feeds logit/11"),
        ("links.2.target", "0_5_1", "feeds itself"),
        ("metadata", KeyError, 'has no "metadata"'),
        ("metadata", 3, "metadata is 3, not an object"),
        ("metadata.prompt_tokens", KeyError, "metadata.prompt_tokens is missing"),
        ("metadata.prompt_tokens", "ab", 'metadata.prompt_tokens is "ab", not a list'),
        ("metadata.prompt_tokens.1", 5, "metadata.prompt_tokens[1] is 5, not a text"),
        ("metadata.prompt", 5, "metadata.prompt is 5, not a text"),
        ("metadata.slug", [], "metadata.slug is a list, not a text"),
        ("qParams", [], "qParams is a list, not an object"),
        ("qParams.pinnedIds", "x", 'qParams.pinnedIds is "x", not a list'),
        ("qParams.pinnedIds", [5], "names 5, not an id"),
        ("qParams.supernodes", [[]], "supernodes[0] is a list, not [name, id, …]"),
        ("qParams.supernodes", [["a", 5]], "qParams.supernodes[0] names 5, not an id"),
    ],
)
def test_wrong_schema(minimal, refused, place, value, says):
    assert says in refused(change(minimal, place, value))


FAULTS = (
    None,
    "x",
    "",
    -1,
    0,
    1.5,
    True,
    [],
    {},
    [None],
    ["x"],
    [["x"]],
    {"x": 1},
    2**70,
    "9" * 50,
)


def places(content, prefix=""):
    """Every place of a JSON value; of lists, the first, the second and the last."""
    items = list(content.items() if isinstance(content, dict) else enumerate(content))
    for key, value in items if isinstance(content, dict) else [*items[:2], *items[2:][-1:]]:
        yield f"{prefix}{key}"
        if isinstance(value, dict | list):
            yield from places(value, f"{prefix}{key}.")


@pytest.mark.filterwarnings("ignore::tracer.errors.CircuitWarning")
@pytest.mark.parametrize("name", ["minimal", "anthropic", "written"])
def test_any_value_anywhere(data, tmp_path, name, monkeypatch):
    """No other error than FormatError, whatever stands wherever."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # thousands of files, none worth waiting for
    if name == "written":
        write_graph(read_graph(data / "files/anthropic.json"), tmp_path / "written.json")
    path = (tmp_path if name == "written" else data / "files") / f"{name}.json"
    content = json.loads(path.read_text())
    accepted = 0
    for place in places(content):
        for fault in (KeyError, *FAULTS):
            bad = tmp_path / "bad.json"
            bad.write_text(json.dumps(change(content, place, fault)))
            try:
                graph = read_graph(bad)
                write_graph(graph, tmp_path / "back.json")
                accepted += 1
            except FormatError as error:
                named = str(error).startswith((f"{tmp_path}/bad.json: ", f"{tmp_path}/back.json: "))
                assert named, error  # noqa: PT017
    assert accepted > 50  # labels and such may be anything of their type


def test_cycle(minimal, refused):
    minimal["nodes"][1] |= {"layer": "1"}
    minimal["links"].append({"source": "1_3_1", "target": "0_5_1", "weight": 1.0})
    message = refused(minimal)
    assert "2 nodes form a cycle: feature/0/5/1, feature/1/3/1" in message
    assert "remove the links" in message


def test_duplicate_node(minimal, refused):
    minimal["nodes"].append(dict(minimal["nodes"][1]))
    assert 'node "1_3_1" is listed twice, as nodes[1] and nodes[8]' in refused(minimal)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "file is empty"),
        (b"   ", "no graph file of a known format"),
        (b"hello", "no graph file of a known format"),
        (b"\x00" * 100, "no graph file of a known format"),
        (b"[1, 2]", "a JSON list"),
        (b"\x1f\x8b\x08\x00", "compressed by gzip"),
        (b"PK\x03\x04 and no more", "archive is damaged"),
        (b"{", "line 1, column 2: the file ends too early"),
        (b'{"nodes": [1,', "the file ends too early"),
        (b'{"a": nope}', "line 1, column 7: not JSON"),
        (b'{"a": NaN}', "line 1, column 7: NaN or infinity is no number"),
        (b'{"a": Infinity}', "NaN or infinity is no number"),
        (b'{"a":\n -Infinity}', "line 2, column 3: NaN or infinity is no number"),
        (b'{"a": 1e999}', "too large for a float"),
        (b'{"a": "\xff"}', "its text is not UTF-8"),
        (b'{"a": 1} {"b": 2}', "not JSON"),
        (b"{}", 'has no "metadata" and no "nodes" and no "links"'),
        ('{"a": 1}'.encode("utf-16"), "no graph file of a known format"),
    ],
)
def test_what_is_no_json(refused, text, says):
    assert says in refused(text)


def test_cut_off_anywhere(data, tmp_path):
    whole = (data / "files/minimal.json").read_bytes().rstrip()
    for length in range(1, len(whole), 23):
        (tmp_path / "cut.json").write_bytes(whole[:length])
        with pytest.raises(FormatError, match=rf"^{re.escape(str(tmp_path))}/cut\.json: "):
            read_graph(tmp_path / "cut.json")


# Limits ----------------------------------------------------------------------------------------


def test_size(data):
    path = data / "files/minimal.json"
    size = path.stat().st_size
    assert read_graph(path, limits=Limits(file_bytes=size)).n_nodes == 8
    with pytest.raises(FormatError, match=rf"{size:,} bytes, more than the limit of {size - 1:,}"):
        read_graph(path, limits=Limits(file_bytes=size - 1))


def test_depth(data, refused):
    path = data / "files/minimal.json"
    assert read_graph(path, limits=Limits(depth=3)).n_nodes == 8
    with pytest.raises(FormatError, match="nested deeper than 2 levels"):
        read_graph(path, limits=Limits(depth=2))
    for length in (100, 1_000, 1_000_000):
        assert "nested deeper than 64 levels" in refused(b'{"a":' * length)
        assert "nested deeper than 64 levels" in refused(b'{"a":' + b"[" * length)


def nesting(data: bytes) -> int:
    """Oracle: one character after the other."""
    depth = deepest = 0
    inside = escaped = False
    for byte in data:
        if inside:
            inside = escaped or byte != ord('"')
            escaped = byte == ord("\\") and not escaped
        elif byte == ord('"'):
            inside = True
        elif byte in b"[{":
            depth += 1
            deepest = max(deepest, depth)
        elif byte in b"]}":
            depth -= 1
    return deepest


@pytest.mark.parametrize("block", [1, 2, 3, 7, 1 << 22])
def test_depth_against_counting(monkeypatch, block):
    """Quotes, escapes and brackets in any order, and blocks cut anywhere."""
    monkeypatch.setattr("graphstore.formats.common._BLOCK", block)
    random = np.random.default_rng(0)
    cases = [rb'["\\"[["]', rb'["\"[["[]]', rb'"\\\"[["[', rb'[["\\\\"[', b"[" * 9]
    alphabet = [b"[", b"]", b"{", b"}", b'"', b"\\", b"a"]
    for _ in range(300):
        made = b"".join(random.choice(alphabet, 12).tolist())
        # Outside of strings a backslash is no JSON; its effect there does not matter.
        cases.append(
            b'["' + made.replace(b'"', rb"\"").replace(rb"\\" + b'"', b"") + b'x"]' + made[:3]
        )
    for case in cases:
        try:
            json.loads(case)
        except ValueError:
            continue
        deepest = nesting(case)
        check_depth(case, "x", Limits(depth=deepest))
        with pytest.raises(FormatError):
            check_depth(case, "x", Limits(depth=deepest - 1))


# The disk --------------------------------------------------------------------------------------


def test_unreadable(data, tmp_path, monkeypatch):
    with pytest.raises(FormatError, match=r"none\.json: cannot be read \(no such file.*Check the"):
        read_graph(tmp_path / "none.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(FormatError, match=r"folder\.json: cannot be read \(it is a folder.*Name"):
        read_graph(tmp_path / "folder.json")
    with pytest.raises(FormatError, match="cannot be read"):
        read_graph(data / "files/minimal.json/inside.json")

    def denied(*_args, **_options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(FormatError, match=r"cannot be read \(permission denied\)\. Ask its owner"):
        read_graph(data / "files/minimal.json")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_permissions(data, tmp_path):
    path = tmp_path / "closed.json"
    path.write_bytes((data / "files/minimal.json").read_bytes())
    path.chmod(0)
    with pytest.raises(FormatError, match="permission"):
        read_graph(path)
    graph = read_graph(data / "files/minimal.json")
    tmp_path.chmod(0o500)
    with pytest.raises(FormatError, match="permission"):
        write_graph(graph, tmp_path / "new.json")


@pytest.mark.parametrize("ending", ENDINGS)
def test_writing_where_one_cannot(data, tmp_path, ending):
    graph = read_graph(data / "files/minimal.json")
    with pytest.raises(FormatError, match=r"no such file.*Make the folder first"):
        write_graph(graph, tmp_path / "none" / f"one.{ending}")
    (tmp_path / f"folder.{ending}").mkdir()
    with pytest.raises(FormatError, match=r"cannot be written"):
        write_graph(graph, tmp_path / f"folder.{ending}")
    assert [path.name for path in tmp_path.iterdir()] == [f"folder.{ending}"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(
    ("code", "remedy"),
    [(errno.ENOSPC, "Free some space"), (errno.EROFS, "disk that can be written to")],
)
def test_full_or_read_only_disk(data, tmp_path, monkeypatch, ending, code, remedy):
    """What stood there stays, whole; nothing else is left."""
    graph = read_graph(data / "files/minimal.json")
    path = tmp_path / f"one.{ending}"
    write_graph(graph, path)
    before = path.read_bytes()

    def fail(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(
        FormatError,
        match=rf"^{re.escape(str(tmp_path))}/one\.{ending}: cannot be written .*{remedy}",
    ):
        write_graph(graph.replace(slug="other"), path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("ending", ENDINGS)
def test_limit_of_the_operating_system(data, tmp_path, ending):
    """A real write that fails half-way: the kernel refuses more than 2,000 bytes a file."""
    code = (
        "import resource, sys; from graphstore.files import read_graph, write_graph\n"
        "from tracer.errors import FormatError\n"
        "graph = read_graph(sys.argv[1])\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (2000, {resource.RLIM_INFINITY}))\n"
        "try: write_graph(graph, sys.argv[2])\n"
        "except FormatError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, data / "files/minimal.json", tmp_path / f"x.{ending}"],
        capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert f"x.{ending}: cannot be written (file too large)" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_interrupted_write_leaves_nothing(data, tmp_path, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    graph = read_graph(data / "files/minimal.json")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_graph(graph, tmp_path / "one.json")
    assert list(tmp_path.iterdir()) == []


def test_unknown_ending(data, tmp_path):
    graph = read_graph(data / "files/minimal.json")
    with pytest.raises(FormatError, match=r'Did you mean "\.json"\? Use one of'):
        write_graph(graph, tmp_path / "one.jsn")
    with pytest.raises(FormatError, match="no format is written"):
        write_graph(graph, tmp_path / "one")
    assert list(tmp_path.iterdir()) == []


def test_texts_that_json_cannot_hold(data, tmp_path):
    graph = read_graph(data / "files/minimal.json").replace(slug="\ud800")
    with pytest.raises(FormatError, match=r"Write it as \.circuit"):
        write_graph(graph, tmp_path / "one.json")


# Formats ---------------------------------------------------------------------------------------


def test_format_is_found_from_the_content(data, tmp_path):
    graph = read_graph(data / "files/minimal.json")
    for ending in ENDINGS:
        write_graph(graph, tmp_path / f"one.{ending}")
        (tmp_path / f"one.{ending}").rename(tmp_path / "nameless")
        assert read_graph(tmp_path / "nameless").keys == graph.keys


def test_every_format_is_documented():
    text = (Path(__file__).parent.parent / "docs/files.md").read_text()
    for format_ in FORMATS:
        assert format_.name in text
        assert all(f"`{ending}`" in text for ending in format_.endings)


def test_warnings_are_of_our_kind(minimal, tmp_path):
    minimal["qParams"]["pinnedIds"] = ["gone"]
    (tmp_path / "one.json").write_text(json.dumps(minimal))
    with pytest.warns(CircuitWarning) as caught:
        read_graph(tmp_path / "one.json")
    assert len(caught) == 1
