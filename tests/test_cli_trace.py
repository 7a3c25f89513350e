"""`circuitbase trace`: prompts into a store of either engine, and on again after whatever."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import graphstore
import queries
import tracer
from circuitbase.cli import cli
from circuitbase.commands_trace import _RichBars
from tracer.prompts import Prompt

ROOT = Path(__file__).parent.parent
TEXTS = (
    "The capital of the state containing Dallas is",
    "The capital of the state",
    "Dallas is the capital",
    "Austin is the capital of the state",
    "The state containing Austin is the state",
    "The capital is Austin",
    "Dallas is the state containing the capital",
    "The state of the capital is Dallas",
)


@pytest.fixture(autouse=True)
def no_server_by_accident(monkeypatch, tmp_path):
    for name in ("NEO4J_URI", "NEO4J_USERNAME", "NEO4J_PASSWORD", "NEO4J_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("CIRCUITBASE_STORE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def names(data) -> list[str]:
    golden = data / "golden"
    model, transcoder = golden / "models/gpt2", golden / "transcoders/gpt2_clt_residmid"
    return ["-m", str(model), "-t", str(transcoder)]


@pytest.fixture(scope="module")
def pair(names):
    return tracer.load_model(names[1]), tracer.load_transcoder(names[3])


def run(*words, **how):
    """Run `trace` in this process; an exception that escapes it fails the test."""
    return CliRunner().invoke(cli, ["trace", *map(str, words)], catch_exceptions=False, **how)


def options_of(target: dict, monkeypatch) -> list[str]:
    """Options (and environment) that name a test store."""
    if "auth" not in target:
        return ["--store", str(target["target"])]
    monkeypatch.setenv("NEO4J_PASSWORD", target["auth"][1])
    return ["--uri", target["target"], "--user", target["auth"][0]]


def lines_of(done) -> list[tuple[str, str, str]]:
    """Id, slug and status of each line printed."""
    pattern = r"([0-9a-f]{16})  (\S+) +(?:[\d,]+ nodes +[\d,]+ edges  )?(\D+)"
    return [re.fullmatch(pattern, line).groups() for line in done.stdout.splitlines()]


def write_prompts(path: Path) -> list[str]:
    """A file of prompts, one of which cannot be traced; their names."""
    records = [
        {"prompt": TEXTS[0], "id": "dallas", "answer": " Austin", "template": "capital"},
        {"prompt": "", "id": "nothing"},
        {"token_ids": [1, 265, 294, 281, 292], "slug": "ids"},
        {"prompt": TEXTS[1]},
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return ["dallas", "ids", "the-capital-of-the-state"]


# The whole way -----------------------------------------------------------------------------------


def test_a_file_fills_the_store(any_target, names, pair, tmp_path, monkeypatch):
    slugs = write_prompts(tmp_path / "p.jsonl")
    where = options_of(any_target, monkeypatch)
    words = [*names, "--prompts", "p.jsonl", *where]
    done = run(*words, "--set", "try", "--out", "unpruned")
    assert done.exit_code == 1
    assert [(slug, status) for _, slug, status in lines_of(done)] == [
        (slug, "traced") for slug in slugs
    ]
    first, summary = done.stderr.splitlines()
    assert first == ("error: p.jsonl:2: the prompt is empty. Give a text or at least one token id.")
    assert re.fullmatch(r"3 traced, 1 failed; [\d.]+ s", summary)

    with graphstore.connect(**any_target) as store:
        assert store.verify().empty
        stored = {row["slug"]: row for row in store.graphs("try").to_dict("records")}
        assert set(stored) == set(slugs)
        scores = queries.scores(store).set_index("slug")
        given = (TEXTS[0], [1, 265, 294, 281, 292], TEXTS[1])
        for slug, prompt in zip(slugs, given, strict=True):
            full = tracer.trace(*pair, prompt)
            graph = store.read(stored[slug]["graph_id"])
            expected = tracer.prune(full)
            assert set(graph.differences(expected)) <= {"slug", "source", "created_at"}
            for name in ("completeness", "replacement", "mean_path_length"):
                wanted = getattr(tracer.scores(full), name)
                assert scores.loc[slug, f"{name}_full"] == pytest.approx(wanted, rel=1e-9)
            kept = graphstore.read_graph(tmp_path / f"unpruned/{slug}-{full.graph_id}.circuit")
            assert set(kept.differences(full)) <= {"slug", "source", "created_at"}
            assert kept.source == graph.source
        assert store.read(stored["dallas"]["graph_id"]).source == {
            "format": "traced",
            "prompt_id": "dallas",
            "metadata": {"answer": " Austin", "template": "capital"},
            "answer_tokens": [" Austin"],
        }

    again = run(*words, "--set", "other")
    assert again.exit_code == 1
    assert [status for _, _, status in lines_of(again)] == ["already stored"] * 3
    with graphstore.connect(**any_target) as store:
        assert len(store.graphs("other")) == len(store.graphs()) == 3
        assert store.verify().empty


@pytest.mark.slow
def test_killed_and_run_again_is_one_run(any_target, names, tmp_path, monkeypatch):
    """SIGKILL twice in the middle; then the store is that of one run, exactly."""
    own = {"target": tmp_path / "own.db"} if "auth" not in any_target else any_target
    (tmp_path / "p.txt").write_text("\n".join(TEXTS))
    words = [*names, "--prompts", "p.txt"]
    one = spawn(*words, "--no-store", "--out", "one")
    assert one.wait(timeout=300) == 0, one.stderr.read()
    one.communicate()
    graphs = [tracer.prune(graphstore.read_graph(p)) for p in Path("one").glob("*.circuit")]
    expected = {graph.graph_id: graph for graph in graphs}
    assert len(expected) == len(TEXTS)

    words += ["--set", "try", "--out", "kept", *options_of(own, monkeypatch)]
    reported: set[str] = set()
    for delay in (0.0, 0.15):
        process = spawn(*words)
        for line in process.stdout:
            if line.rstrip().endswith("traced"):
                reported.add(line[:16])
                break
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
        reported |= {line[:16] for line in rest.splitlines(keepends=True) if line.endswith("\n")}
    assert 2 <= len(reported) < len(TEXTS)
    last = spawn(*words)
    out, err = last.communicate(timeout=300)
    assert last.returncode == 0, err
    again = {line[:16] for line in out.splitlines() if line.endswith("traced")}
    assert not again & reported  # nothing is traced twice
    with graphstore.connect(**own) as store:
        assert set(store.graphs("try")["graph_id"]) == set(expected)
        assert len(store.graphs()) == len(TEXTS)
        for graph_id, graph in expected.items():
            assert set(store.read(graph_id).differences(graph)) <= {"created_at"}
        assert store.verify().empty
    kept = {p.name: graphstore.read_graph(p) for p in Path("kept").glob("*.circuit")}
    assert set(kept) == {p.name for p in Path("one").glob("*.circuit")}
    for name, graph in kept.items():
        assert set(graph.differences(graphstore.read_graph(Path("one") / name))) <= {"created_at"}


def spawn(*words) -> subprocess.Popen:
    """Start the real command in a process of its own."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
    return subprocess.Popen(
        [
            "env",
            "--default-signal=INT",
            sys.executable,
            "-m",
            "circuitbase",
            "trace",
            *map(str, words),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**kept, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"},
    )


@pytest.mark.slow
def test_interrupted(names, tmp_path):
    # Far more than can be done before the signal arrives, however the two processes take turns.
    words = ("Austin", "Dallas", "capital", "state")
    texts = [f"The {' '.join(some)}" for some in itertools.product(words, repeat=4)]
    (tmp_path / "p.txt").write_text("\n".join(texts))
    process = spawn(*names, "--prompts", "p.txt", "--store", "s.db")
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    rest, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert err.endswith("interrupted\n")
    assert "the same command goes on from there" in err
    assert "Traceback" not in err
    told = {line[:16] for line in [first, *rest.splitlines()]}
    with graphstore.connect(tmp_path / "s.db") as store:
        assert told <= set(store.graphs()["graph_id"])
        assert store.verify().empty


# What is there already ---------------------------------------------------------------------------


def test_files_and_store_complete_each_other(embedded_server, embedded_store, names, tmp_path):
    store, where = embedded_store, ["--store", embedded_server]
    one = run(*names, TEXTS[0], "--out", "kept", *where)
    assert (one.exit_code, one.stdout.split()[-1]) == (0, "traced")
    (file,) = Path("kept").iterdir()
    content = file.read_bytes()
    graph_id = store.graphs()["graph_id"][0]
    before = store.read(graph_id)

    # The store has lost it: taken from the file.
    store.delete(graph_id)
    two = run(*names, TEXTS[0], "--out", "kept", "--set", "a", *where)
    assert lines_of(two) == [(graph_id, "the-capital-of-the-state-containing", "read from file")]
    assert store.read(graph_id) == before
    assert list(store.graphs("a")["graph_id"]) == [graph_id]

    # The file has gone, or been renamed, or is damaged.
    file.unlink()
    assert lines_of(run(*names, TEXTS[0], "--out", "kept", *where))[0][2] == "traced"
    assert graphstore.read_graph(file).parent_id is None
    renamed = file.rename(file.with_name(f"mine-{file.name[-24:]}"))
    assert lines_of(run(*names, TEXTS[0], "--out", "kept", *where))[0][2] == "already stored"
    assert list(Path("kept").iterdir()) == [renamed]
    renamed.rename(file)
    file.write_bytes(content[:1000])
    store.delete(graph_id)
    three = run(*names, TEXTS[0], "--out", "kept", *where)
    assert lines_of(three)[0][2] == "traced"
    assert "traced again" in three.stderr
    assert graphstore.read_graph(file).graph_id == file.stem[-16:]


def test_other_settings_are_other_graphs(embedded_server, embedded_store, names):
    for more in (
        (),
        ("--max-features", 40),
        ("--max-n-logits", 3),
        ("--desired-logit-prob", 0.1),
        ("--zero-first", 2),
        ("--parts",),
        ("--node-threshold", 0.5),
        ("--edge-threshold", 0.5),
        ("--pruning-rule", "paper"),
        ("--no-prune",),
        ("--dtype", "float64"),
        ("--target", " Austin"),
        ("--target", "id=291", "--target", " Dallas"),
        ("--difference", " Austin", " Dallas"),
    ):
        done = run(*names, TEXTS[1], *more, "--store", embedded_server)
        assert (done.exit_code, lines_of(done)[0][2]) == (0, "traced"), (more, done.stderr)
        again = run(*names, TEXTS[1], *more, "--store", embedded_server)
        assert lines_of(again)[0][2] == "already stored", more
    # These change how, not what.
    for more in (("--memory", 0), ("--no-check",), ("--in-memory",), ("--device", "cpu")):
        done = run(*names, TEXTS[1], *more, "--store", embedded_server)
        assert lines_of(done)[0][2] == "already stored", more
    rows = embedded_store.graphs().set_index("graph_id")
    assert len(rows) == 14
    by_settings = {
        json.dumps(graph.settings["targets"]): graph
        for graph in map(embedded_store.read, rows.index)
    }
    assert set(by_settings) == {"null", "[291]", "[291, 292]", "[[291, 292]]"}
    difference = by_settings["[[291, 292]]"].nodes
    assert difference["label"].iloc[-1] == difference["token"].iloc[-1]
    parts = [g for g in map(embedded_store.read, rows.index) if g.residual is not None]
    assert len(parts) == 1


def test_features_as_targets(embedded_server, embedded_store, names, pair):
    graph = tracer.trace(*pair, TEXTS[1])
    rows = graph.nodes[graph.is_feature & (graph.nodes["layer"] == 2)]
    layer, index, position = rows.iloc[-1][["layer", "index", "position"]]
    key = f"{layer}/{index}/{position}"
    done = run(*names, TEXTS[1], "--feature", key, "--store", embedded_server)
    assert done.exit_code == 0, done.stderr
    stored = embedded_store.read(lines_of(done)[0][0])
    assert stored.settings["targets"] == [f"feature/{key}"]
    same = run(*names, TEXTS[1], "--feature", f"feature/{key}", "--store", embedded_server)
    assert lines_of(same)[0][2] == "already stored"


def test_records(embedded_server, embedded_store, names, tmp_path):
    write_prompts(tmp_path / "p.jsonl")
    words = [*names, "--prompts", "p.jsonl", "--store", embedded_server, "--format", "json"]
    done = run(*words, "--out", "kept")
    records = json.loads(done.stdout)
    assert done.exit_code == 1
    assert [record["status"] for record in records] == ["traced", "failed", "traced", "traced"]
    assert records[0]["prompt"] == TEXTS[0]
    assert records[0]["prompt_id"] == "dallas"
    assert records[2]["prompt"] == [1, 265, 294, 281, 292]
    assert records[1]["graph_id"] is None
    assert "empty" in records[1]["error"]
    for record in (records[0], *records[2:]):
        graph = embedded_store.read(record["graph_id"])
        assert (graph.n_nodes, graph.n_edges) == (record["nodes"], record["edges"])
        assert graphstore.read_graph(record["file"]).graph_id == graph.parent_id
    assert done.stderr.count("\n") == 2
    fewer = json.loads(run(*words, "--limit", 1).stdout)
    assert [record["status"] for record in fewer] == ["already stored"]
    assert fewer[0]["nodes"] == records[0]["nodes"]
    assert fewer[0]["slug"] == "dallas"


def test_prompts_from_standard_input(embedded_server, embedded_store, names):
    done = run(*names, "--prompts", "-", "--store", embedded_server, input="\n".join(TEXTS[1:3]))
    assert [slug for _, slug, _ in lines_of(done)] == [
        "the-capital-of-the-state",
        "dallas-is-the-capital",
    ]
    bad = run(*names, "--prompts", "-", "--store", embedded_server, input=b"\xff")
    assert bad.exit_code == 1
    assert bad.stderr.startswith("error: standard input:1: is not UTF-8")


@pytest.mark.slow
def test_two_processes(embedded_server, embedded_store, names, tmp_path):
    (tmp_path / "p.txt").write_text("\n".join(TEXTS[:4]))
    words = [*names, "--prompts", "p.txt", "--device", "cpu,cpu", "--out", "kept"]
    done = run(*words, "--set", "try", "--store", embedded_server)
    assert done.exit_code == 0, done.stderr
    assert [status for _, _, status in lines_of(done)] == ["traced"] * 4
    assert len(embedded_store.graphs("try")) == len(list(Path("kept").iterdir())) == 4
    assert embedded_store.verify().empty


# Errors ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "Missing option '-m' / '--model'"),
        (["-m", "a"], "Missing option '-t' / '--transcoder'"),
        (["-m", "a", "-t", "b"], "or --prompts FILE"),
        (["-m", "a", "-t", "b", "x", "--prompts", "f"], "or --prompts FILE"),
        (["-m", "a", "-t", "b", "x", "--limit", "3"], "--limit goes with --prompts"),
        (["-m", "a", "-t", "b", "x", "--no-store"], "--no-store needs --out"),
        (["-m", "a", "-t", "b", "x", "--no-store", "--out", "o", "--set", "s"], "--no-store"),
        (["-m", "a", "-t", "b", "x", "--target", "a", "--feature", "1/2/3"], "one kind"),
        (["-m", "a", "-t", "b", "x", "--max-features", "0"], "0 is not in the range"),
        (["-m", "a", "-t", "b", "x", "--dtype", "int8"], "'int8' is not one of"),
        (["-m", "a", "-t", "b", "x", "--store", "s", "--uri", "bolt://x"], "not both"),
    ],
)
def test_wrong_usage(words, says, tmp_path, data):
    if "-t" in words and "--uri" in words:  # the store's options are looked at last
        words = ["-m", data / "golden/models/gpt2", *words[2:]]
        words[3] = data / "golden/transcoders/gpt2_clt_residmid"
    done = run(*words)
    assert done.exit_code == 2
    assert says in " ".join(done.stderr.split())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"-m": "nowhere/at/all"}, "nowhere/at/all"),
        ({"-m": "."}, "holds no config.json"),
        ({"-t": "."}, "no transcoder layout fits"),
        ({"--prompts": "absent.txt"}, "absent.txt: cannot be read"),
        ({"--target": " nonsense"}, "target ' nonsense' is"),
        ({"--target": "id=9999"}, "target token 9999 is outside the vocabulary"),
        ({"--device": "abacus"}, "device 'abacus' is unknown"),
        ({"--device": "cpu,cuda:99"}, "device 'cuda:99' is not one of this machine's"),
        ({"--layout": "unheard"}, "unheard"),
        ({"--out": "file"}, "file"),
    ],
)
def test_errors_are_one_line_and_make_no_store(names, tmp_path, changed, says):
    (tmp_path / "file").write_text("x")
    (tmp_path / "p.txt").write_text(TEXTS[0])
    given = {"-m": names[1], "-t": names[3], "--prompts": "p.txt", **changed}
    done = run(*(word for pair in given.items() for word in pair))
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"error: .+[.?!]", line)
    assert says in line
    assert {path.name for path in tmp_path.iterdir()} == {"file", "p.txt"}


def test_what_only_prompts_show_is_said_of_each(names):
    done = run(*names, "Dallas", "zzz " * 80, TEXTS[0], "--feature", "0/1/63", "--store", "s.db")
    assert done.exit_code == 1
    assert done.stdout == ""
    errors = done.stderr.splitlines()
    assert len(errors) == 4
    assert all(re.fullmatch(r"error: prompt '.+': .+\.", line) for line in errors[:3])
    assert "reads at most 64" in errors[1]
    assert "is not active on this prompt" in errors[2]


def test_torch_that_is_missing_is_named():
    code = (
        "import sys; sys.modules['torch'] = None; from circuitbase.cli import cli;"
        "cli(['trace', '-m', 'a', '-t', 'b', 'text'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "error: tracing needs the package torch, which a plain install leaves out. "
        "Install it with: pip install 'circuitbase[trace]'.\n"
    )


# Progress ----------------------------------------------------------------------------------------


def test_rate_and_time_left_are_of_what_was_traced(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    shown: list[dict] = []

    class Bars:
        """Stands for rich's."""

        def add_task(self, description, **how):
            shown.append({"description": description, **how})
            return len(shown) - 1

        def update(self, task, **how):
            shown[task].update(how)

    bars = _RichBars(Bars(), 10)
    for _ in range(5):  # what was there took no time
        bars.next(traced=False)
    assert shown[0]["left"] == ""
    bars.rows(Prompt("The capital"), 3, 9)
    assert (shown[1]["description"], shown[1]["completed"], shown[1]["total"]) == (
        *("the-capital", 3, 9),
    )
    now[0] += 90
    bars.next(traced=True)
    assert (shown[0]["rate"], shown[0]["left"]) == ("90 s each", "0:06:00 left")
    now[0] += 1e-3
    bars.traced = 900
    bars.next(traced=True)
    assert shown[0]["rate"] == "10.0 a second"


@pytest.mark.slow
def test_a_bar_where_somebody_looks(names, tmp_path):
    (tmp_path / "p.txt").write_text("\n".join(TEXTS[:4]))
    words = [*names, "--prompts", "p.txt", "--no-store", "--out", "kept"]
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "circuitbase", "trace", *words],
        stdout=subprocess.PIPE,
        stderr=slave,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(slave)
    seen = b""
    with contextlib.suppress(OSError):  # how a terminal says that nobody is left
        while piece := os.read(master, 4096):
            seen += piece
    os.close(master)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())
    assert "prompts" in text
    assert "4/4" in text
    assert re.search(r"\d (a second|s each) +0:00:\d\d left", text)
    assert "4 traced" in text
    # Lines piped elsewhere arrive untouched.
    assert [line[-6:] for line in out.splitlines()] == ["traced"] * 4
    assert "\x1b" not in out
    assert np.unique([line[:16] for line in out.splitlines()]).size == 4
