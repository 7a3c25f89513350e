"""The command line as people and scripts meet it: what it prints, where, and with which status."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import graphstore
import queries
from circuitbase._session import parameters
from circuitbase.cli import cli
from circuitbase.output import plain, print_frame
from tracer import AttributionGraph, Supernode
from tracer.influence import influence
from tracer.pruning import prune
from tracer.scores import all_scores

ROOT = Path(__file__).parent.parent
COMMANDS = sorted(cli.commands)


class Result:
    """Status and outputs of one command."""

    def __init__(self, status: int, out: str, err: str) -> None:
        self.status, self.out, self.err = status, out, err

    @property
    def records(self) -> list[dict]:
        assert self.status == 0, self.err
        return json.loads(self.out)


def run(*words, store=None, **how) -> Result:
    """Run a command in this process; an exception that escapes it fails the test."""
    where = [] if store is None else ["--store", str(store)]
    done = CliRunner().invoke(cli, [*map(str, words), *where], catch_exceptions=False, **how)
    assert "Traceback" not in done.stderr
    return Result(done.exit_code, done.stdout, done.stderr)


def spawn(*words, before=(), **how) -> subprocess.Popen:
    """Start the real command in a process of its own, behind the words of another."""
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("NEO4J", "COV"))
    }
    return subprocess.Popen(
        [*before, sys.executable, "-m", "circuitbase", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment, "PYTHONPATH": str(ROOT)},
        **how,
    )


def error_of(result: Result) -> str:
    """Return the one line that a known error is."""
    assert result.status == 1, (result.status, result.out, result.err)
    assert result.out == ""
    lines = result.err.strip().splitlines()
    assert len(lines) == 1, result.err
    assert re.fullmatch(r"error: .+[.?!]", lines[0]), lines[0]
    assert not lines[0].endswith(("?.", ".."))
    return lines[0]


@pytest.fixture(autouse=True)
def no_server_by_accident(monkeypatch, tmp_path):
    for name in ("NEO4J_URI", "NEO4J_USERNAME", "NEO4J_PASSWORD", "NEO4J_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("CIRCUITBASE_STORE", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def graphs(golden) -> dict[str, AttributionGraph]:
    """Three small graphs: two prompts of one transcoder, and one of another."""
    first = prune(golden("gpt2_clt_residmid")[0]).replace(slug="alpha")
    second = prune(golden("gpt2_clt_residmid")[0], 0.6, 0.7).replace(slug="beta")
    third = prune(golden("llama_plt_mlp")[0]).replace(
        slug="gamma", supernodes=(Supernode("pair", (0, 1)),)
    )
    return {graph.slug: graph for graph in (first, second, third)}


@pytest.fixture(scope="module")
def files(graphs, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("files")
    for slug, graph in graphs.items():
        graphstore.write_graph(graph, folder / f"{slug}.circuit")
    return {slug: folder / f"{slug}.circuit" for slug in graphs}


@pytest.fixture(scope="module")
def full(files, tmp_path_factory) -> Path:
    """A store that holds the three graphs; tests that change a store take `copy`."""
    store = tmp_path_factory.mktemp("store") / "full.db"
    assert run("import", *files.values(), "--set", "golden", store=store).status == 0
    return store


@pytest.fixture
def copy(full, tmp_path) -> Path:
    return Path(shutil.copytree(full, tmp_path / "copy.db"))


# Help and usage --------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command):
    done = run(command, "--help")
    assert done.status == 0
    assert "For example:\n    circuitbase " in done.out
    assert "--store PATH" in done.out
    # Whatever an example names exists.
    for word in re.findall(r"^    circuitbase (\S+)", done.out, re.MULTILINE):
        assert word in COMMANDS
    for option in re.findall(r"(?<=\s)--[a-z-]+", done.out):
        known = {name for c in cli.commands.values() for p in c.params for name in p.opts}
        assert option in known | {"--help"}


def test_help_of_the_group_names_every_command():
    done = run("--help")
    assert done.status == 0
    assert re.findall(r"^  ([a-z][a-z-]*)  ", done.out, re.MULTILINE) == list(cli.commands)
    assert "..." not in done.out.partition("Commands:")[2]


def test_every_command_is_documented():
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        assert f"`{command}" in text, command


def test_nothing_heavy_is_imported_before_a_command_runs():
    code = (
        "import sys; from circuitbase.cli import cli; cli(['--help'], standalone_mode=False);"
        "heavy = {'pandas', 'numpy', 'scipy', 'neo4j', 'matplotlib', 'rich', 'tracer', 'jpype'};"
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["imprt"], "Did you mean 'import'?"),
        (["zzzzz"], "See circuitbase --help"),
        (["import"], "Missing argument 'FILE…'"),
        (["show"], "Missing argument 'GRAPH'"),
        (["graphs", "--format", "xml"], "'xml' is not one of 'table', 'csv', 'json'"),
        (["scores", "--rule", "best"], "'best' is not one of"),
        (["show", "x", "--edges", "-3"], "-3 is not in the range"),
        (["import", "x", "--node-threshold", "2"], "2.0 is not in the range"),
        (["graphs", "--stroe", "x"], "--store"),
        (["graphs", "--store", "a", "--uri", "bolt://b"], "--store or --uri, not both"),
        (["graphs", "--store", "bolt://b"], "Use --uri bolt://b"),
        (["graphs", "--uri", "localhost"], "bolt://localhost:7687"),
        (["graphs", "--user", "neo4j"], "give its --uri"),
        (["query", "scores", "rule"], "key=value, not 'rule'"),
        (["query", "scores", "a=1", "a=2"], "'a' is given twice"),
        (["cypher", "RETURN $a", "a=[1,"], "looks like JSON but is not"),
        (["cypher", "  "], "The query is empty"),
        (["export"], "Give GRAPH… FILE"),
        (["export", "night.json"], "export GRAPH night.json"),
        (["export", "a", "b.json", "--all", "c"], "Give GRAPH… FILE"),
    ],
)
def test_wrong_usage(words, says):
    done = run(*words)
    assert done.status == 2
    assert done.out == ""
    assert says in " ".join(done.err.split())


@pytest.mark.parametrize("command", ["graphs", "scores", "sets"])
def test_shared_options_stand_before_the_command_too(full, command):
    after = run(command, "--format", "json", store=full)
    assert after.records
    before = run("--store", full, "--format", "json", command)
    assert (before.status, before.out) == (0, after.out)
    # What stands after the command wins.
    both = run("--format", "csv", "--store", "nowhere.db", command, "--format", "json", store=full)
    assert both.out == after.out
    assert not Path("nowhere.db").exists()
    assert "--store or --uri, not both" in run("--store", "a", command, "--uri", "bolt://b").err
    assert "bolt://127.0.0.1:1" in error_of(run("--uri", "bolt://127.0.0.1:1", command))


def test_password_is_never_an_option_and_must_come_from_somewhere(monkeypatch):
    done = run("graphs", "--uri", "bolt://127.0.0.1:1", "--user", "ada")
    assert done.status == 2
    assert "NEO4J_PASSWORD" in done.err
    assert run("graphs", "--password", "x").status == 2
    monkeypatch.setenv("NEO4J_PASSWORD", "secret-word")
    done = run("graphs", "--uri", "bolt://127.0.0.1:1", "--user", "ada")
    assert "127.0.0.1:1" in error_of(done)
    assert "secret-word" not in done.err


# Importing -------------------------------------------------------------------------------------


def test_import_prints_a_line_a_graph_and_again_changes_nothing(files, graphs, tmp_path):
    store = tmp_path / "new.db"
    first = run("import", *files.values(), "--set", "one", store=store)
    assert first.status == 0
    assert first.err == ""
    assert [line.split()[0] for line in first.out.splitlines()] == [
        graph.graph_id for graph in graphs.values()
    ]
    assert all(line.endswith("  stored") for line in first.out.splitlines())
    again = run("import", *files.values(), "--set", "two", "--format", "json", store=store)
    assert [record["status"] for record in again.records] == ["already stored"] * 3
    listed = run("graphs", "--format", "json", store=store).records
    assert [graph["prompt_sets"] for graph in listed] == [["one", "two"]] * 3
    assert run("graphs", "--set", "two", "--format", "json", store=store).records == listed


def test_bad_files_are_named_and_skipped(files, tmp_path):
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "truncated.json").write_text('{"metadata": {')
    (tmp_path / "loop\n.json").write_text("[1]")
    bad = [tmp_path / name for name in ("empty.json", "truncated.json", "loop\n.json", "none.json")]
    words = [bad[0], files["alpha"], bad[1], bad[2], bad[3], tmp_path, files["beta"]]
    done = run("import", *words, store=tmp_path / "new.db")
    assert done.status == 1
    assert len(done.out.splitlines()) == 2
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 5, done.err
    for name, line in zip(
        ["empty", "truncated", "loop", "none", tmp_path.name], errors, strict=True
    ):
        assert name in line
    assert "5 of 7 not imported" in done.err
    as_json = run("import", *words, "--format", "json", store=tmp_path / "new.db")
    assert as_json.status == 1
    records = json.loads(as_json.out)
    assert [record["status"] for record in records].count("failed") == 5
    assert all(record["error"] for record in records if record["status"] == "failed")
    assert len(run("graphs", "--format", "json", store=tmp_path / "new.db").records) == 2


def test_errors_name_the_path_as_it_was_given(files, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "night.json").write_text("{}")
    (tmp_path / "two" / "graph.circuit").write_bytes(files["alpha"].read_bytes()[:900])
    words = ["one/night.json", tmp_path / "two" / "night.json", "two/graph.circuit", "two/no.pt"]
    done = run("import", *words, store=tmp_path / "new.db")
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    for word, line in zip(words, errors, strict=True):
        assert line.startswith(f"error: {word}: ")
        assert line.count(str(word)) == 1
    assert 'has no "metadata" and no "nodes" and no "links"' in errors[0]
    store = tmp_path / "filled.db"
    assert run("import", files["alpha"], store=store).status == 0
    there = error_of(run("export", "alpha", "none/a.json", store=store))
    assert there.startswith("error: none/a.json: ")


def test_import_prunes(golden, tmp_path):
    graph = golden("qwen3_clt_mlp")[0]
    graphstore.write_graph(graph, tmp_path / "big.circuit")
    store = tmp_path / "new.db"
    assert run("import", tmp_path / "big.circuit", "--prune", store=store).status == 0
    expected = prune(graph)
    assert [g["nodes"] for g in run("graphs", "--format", "json", store=store).records] == [
        expected.n_nodes
    ]
    words = ["--prune", "--node-threshold", "0.5", "--edge-threshold", "0.5"]
    assert run("import", tmp_path / "big.circuit", *words, store=store).status == 0
    found = {g["graph_id"] for g in run("graphs", "--format", "json", store=store).records}
    assert found == {expected.graph_id, prune(graph, 0.5, 0.5).graph_id}


def test_import_overrides(golden, tmp_path):
    graphstore.write_graph(prune(golden("llama_plt_mlp")[0]), tmp_path / "a.json")
    store = tmp_path / "new.db"
    words = ["--transcoder", "owner/name@main", "--model", "owner/model"]
    assert run("import", tmp_path / "a.json", *words, store=store).status == 0
    (found,) = run("graphs", "--format", "json", store=store).records
    assert (found["transcoder_id"], found["model_id"]) == ("owner/name@main", "owner/model")


# Looking ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["graphs"], ["sets"], ["scores"], ["queries"]])
def test_three_formats_hold_the_same_rows(full, words):
    records = run(*words, "--format", "json", store=full).records
    assert records
    rows = list(csv.reader(io.StringIO(run(*words, "--format", "csv", store=full).out)))
    assert rows[0] == list(records[0])
    assert len(rows) == len(records) + 1
    table = run(*words, store=full)
    assert table.status == 0
    assert len(table.out.splitlines()) >= len(records) + 1
    for record in records:
        assert str(next(iter(record.values()))) in table.out


def test_empty_store(tmp_path):
    store = tmp_path / "empty.db"
    done = run("graphs", store=store)
    assert (done.status, done.out) == (0, "")
    assert "circuitbase import" in done.err
    assert run("graphs", "--format", "json", store=store).out == "[]\n"
    assert run("sets", "--format", "json", store=store).records == []
    assert run("scores", "--format", "json", store=store).records == []
    assert run("graphs", "--format", "csv", store=store).out.startswith("graph_id,")


def test_show_in_the_terminal(full, graphs):
    graph = graphs["alpha"]
    for name in ("alpha", graph.graph_id, graph.graph_id[:6]):
        done = run("show", name, store=full)
        assert done.status == 0
        assert graph.graph_id in done.out
        assert f"{graph.n_edges:,} edges" in done.out
    full_score = all_scores(graph)["full"]
    assert f"{full_score.replacement:.3f}" in done.out
    one = run("show", "alpha", "--nodes", "1", "--edges", "0", store=full).out
    assert "strongest edges" not in one
    assert "strongest nodes, all kinds" in one


def test_show_as_records(full, graphs):
    graph = graphs["alpha"]
    records = run("show", "alpha", "--format", "json", store=full).records
    assert len(records) == graph.n_nodes
    by_id = dict(zip(graph.node_ids, influence(graph), strict=True))
    # The store holds float64 on both sides of the comparison.
    assert [r["influence"] for r in records] == pytest.approx(
        [by_id[r["node_id"]] for r in records]
    )
    assert records[0]["influence"] == max(by_id.values())
    assert len(run("show", "alpha", "--nodes", "3", "--format", "json", store=full).records) == 3


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_show_writes_figures(full, tmp_path, ending):
    done = run("show", "gamma", "--out", tmp_path / f"a.{ending}", store=full)
    assert done.status == 0
    assert (tmp_path / f"a.{ending}").stat().st_size > 10_000
    assert f"a.{ending}" in done.err


def test_show_with_bad_names(full, tmp_path):
    assert 'Did you mean "alpha"?' in error_of(run("show", "alhpa", store=full))
    assert "circuitbase graphs" in error_of(run("show", "zzz", store=full))
    assert ".svg" in error_of(run("show", "alpha", "--out", "a.pdf", store=full))
    assert "nowhere" in error_of(run("show", "alpha", "--out", "nowhere/a.svg", store=full))
    assert 'Did you mean "golden"?' in error_of(run("graphs", "--set", "goldn", store=full))


# Asking ----------------------------------------------------------------------------------------


def test_scores_agree_with_the_tracer(full, graphs):
    for rule in ("full", "merge", "masked", "as_stored"):
        words = ["--rule", rule, "--format", "json"]
        found = {r["graph_id"]: r for r in run("scores", *words, store=full).records}
        assert len(found) == 3
        for graph in graphs.values():
            expected = all_scores(graph)[rule]
            for name in ("completeness", "replacement", "mean_path_length"):
                # As-stored scores are summed by the database, in another order.
                assert found[graph.graph_id][name] == pytest.approx(
                    getattr(expected, name), rel=1e-9
                )
    one = run("scores", "beta", "--format", "json", store=full).records
    assert [record["slug"] for record in one] == ["beta"]
    assert "Did you mean" in error_of(run("scores", "beat", store=full))


def test_queries_are_listed_and_explained(full):
    listed = run("queries", "--format", "json", store=full).records
    assert [record["name"] for record in listed] == list(queries.names())
    done = run("queries", "recurring_features")
    for word in ("purpose", "parameters", "columns", "cost", "MATCH", "min_graphs"):
        assert word in done.out
    (record,) = run("queries", "recurring_features", "--format", "json").records
    assert "MATCH" in record["text"]
    assert 'Did you mean "recurring_features"?' in error_of(run("queries", "recuring_features"))
    lines = run("queries").out.splitlines()
    assert max(map(len, lines)) <= 100  # purposes are prose, and fold in a pipe too
    assert [line.split()[0] for line in lines[1:] if line[0] != " "] == list(queries.names())


def test_query_takes_names_of_graphs(full, graphs):
    words = ["query", "similar_graphs", "--format", "json"]
    (record,) = run(*words, "graph_id=alpha", store=full).records
    assert record["graph_id"] == graphs["alpha"].graph_id
    assert record["other"] == graphs["beta"].graph_id
    assert run(*words, f"graph_id={graphs['alpha'].graph_id}", store=full).records == [record]


def test_query_runs_with_typed_parameters(full):
    words = ["recurring_features", "prompt_set=golden", "min_graphs=2"]
    records = run("query", *words, "--format", "json", store=full).records
    assert records
    assert all(record["graphs"] == 2 for record in records)
    with graphstore.connect(full) as store:
        expected = queries.run(store, "recurring_features", prompt_set="golden", min_graphs=2)
    assert [r["feature_id"] for r in records] == expected["feature_id"].tolist()
    table = run("query", *words, "--limit", "2", store=full)
    lines = table.out.splitlines()
    assert len(lines) == 4
    assert lines[-1].startswith(f"… {len(records) - 2:,} more rows")  # beside its table
    assert table.err == ""


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["recuring_edges"], 'Did you mean "recurring_edges"?'),
        (["recurring_features", "prompt_sett=a"], "prompt_set"),
        (["recurring_features", "min_graphs=many"], "min_graphs"),
        (["recurring_features", "store=x"], "store"),
        (["recurring_features", "name=x"], "name"),
        (["recurring_features", "prompt_set=goldn"], "goldn"),
        (["neighbourhood"], "graph_id"),
        (["similar_graphs", "graph_id=0000000000000000"], "0000000000000000"),
        (["similar_graphs", "graph_id=alhpa"], 'Did you mean "alpha"?'),
    ],
)
def test_query_with_bad_parameters(full, words, says):
    assert says in error_of(run("query", *words, store=full))


def test_cypher(full):
    text = "MATCH (g:Graph {slug: $slug}) RETURN g.slug AS slug, $x AS x, 0.0 / 0.0 AS nothing"
    records = run(
        "cypher", text, "slug=beta", "x=[1, null]", "--format", "json", store=full
    ).records
    assert records == [{"slug": "beta", "x": [1, None], "nothing": None}]
    piped = run("cypher", "-", "a=1", "--format", "csv", store=full, input="RETURN $a AS a")
    assert piped.out == "a\n1\n"
    for name in ("write", "self", "text", "name"):  # parameters may have any name
        words = [f"RETURN ${name} AS x", f"{name}=5", "--format", "json"]
        assert run("cypher", *words, store=full).records == [{"x": 5}]
    nodes = run("cypher", "MATCH (g:Graph) RETURN g", "--format", "json", store=full).records
    assert {record["g"]["slug"] for record in nodes} == {"alpha", "beta", "gamma"}
    none = run("cypher", "MATCH (x:Graph {slug: 'no'}) RETURN x", store=full)
    assert (none.status, none.out, none.err) == (0, "", "The query returned no rows.\n")


def test_cypher_reads_only_unless_told(copy):
    text = "MATCH (g:Graph {slug: 'beta'}) SET g.note = $note RETURN g.slug AS slug"
    assert "--write" in error_of(run("cypher", text, "note=x", store=copy))
    check = ["cypher", "MATCH (g:Graph {note: 'x'}) RETURN g.slug AS slug", "--format", "json"]
    assert run(*check, store=copy).records == []
    assert run("cypher", text, "note=x", "--write", store=copy).status == 0
    assert run(*check, store=copy).records == [{"slug": "beta"}]


def test_cypher_errors(full):
    assert "RETRUN" in error_of(run("cypher", "MATCH (n)\nRETRUN n", store=full))
    assert "a" in error_of(run("cypher", "RETURN $a AS a", store=full))


# Changing --------------------------------------------------------------------------------------


def test_group(copy, graphs):
    graph = graphs["alpha"]
    keys = [graph.keys[row] for row in np.flatnonzero(graph.is_feature)[:2]]
    assert run("group", "alpha", "say it", *keys, "--author", "Ada", store=copy).status == 0
    assert run("export", "alpha", "a.circuit", store=copy).status == 0
    (supernode,) = graphstore.read_graph("a.circuit").supernodes
    assert (supernode.name, supernode.author) == ("say it", "Ada")
    assert [graph.keys[row] for row in supernode.members] == keys
    assert "feature/9/9/9" in error_of(run("group", "alpha", "b", "feature/9/9/9", store=copy))


def test_label(copy, graphs, tmp_path):
    graph = graphs["alpha"]
    feature = next(name for name in graph.feature_ids if name)
    (tmp_path / "labels.csv").write_text(f'feature_id,label\n{feature},"one, two"\n')
    assert run("label", "labels.csv", "--source", "Ada", store=copy).status == 0
    text = "MATCH (f:Feature {feature_id: $id}) RETURN f.label AS label, f.label_source AS source"
    found = run("cypher", text, f"id={feature}", "--format", "json", store=copy).records
    assert found == [{"label": "one, two", "source": "Ada"}]
    assert "one, two" in run("show", "alpha", "--nodes", "999", store=copy).out


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "labels.csv"),
        ("", "not a CSV table"),
        ("id,label\na,b\n", "no column 'feature_id'"),
        ("feature_id,label\na/0/1,b\n,c\n", "line 3"),
        ("feature_id,label\nno-feature-id,b\n", "no-feature-id"),
    ],
)
def test_label_with_bad_files(full, tmp_path, content, says):
    if content is not None:
        (tmp_path / "labels.csv").write_text(content)
    assert says in error_of(run("label", "labels.csv", store=full))


def test_delete_takes_whole_ids_and_all_or_nothing(copy, graphs):
    alpha, beta = graphs["alpha"].graph_id, graphs["beta"].graph_id
    assert 'Did you mean "beta"?' in error_of(run("delete", alpha, "btea", "--yes", store=copy))
    for name in ("beta", beta[:8]):
        said = error_of(run("delete", alpha, name, "--yes", store=copy))
        assert f"Name it as {beta}." in said
    unasked = run("delete", alpha, store=copy)
    assert (unasked.status, unasked.out) == (2, "")
    assert "Add --yes" in unasked.err
    assert len(run("graphs", "--format", "json", store=copy).records) == 3
    assert run("delete", alpha, beta, alpha, "--yes", store=copy).status == 0
    left = run("graphs", "--format", "json", store=copy).records
    assert [graph["slug"] for graph in left] == ["gamma"]
    assert run("verify", store=copy).status == 0


@pytest.mark.parametrize(
    "damage",
    [
        "CREATE (f:Feature {feature_id: 'x/0/1', layer: 0, index: 1}) RETURN 1 AS x",
        "MATCH (:Graph {slug: 'beta'})-[r:HAS_FEATURE]->() WITH r LIMIT 1 DELETE r RETURN 1 AS x",
    ],
    ids=["stray feature", "broken summary"],
)
def test_verify(copy, damage):
    assert run("verify", "--format", "json", store=copy).records == []
    assert run("verify", store=copy).err == "The store is sound.\n"
    assert run("cypher", damage, "--write", store=copy).status == 0
    broken = run("verify", "--format", "json", store=copy)
    assert broken.status == 1
    assert len(json.loads(broken.out)) == 1
    assert "--repair" in broken.err
    mended = run("verify", "--repair", store=copy)
    assert mended.status == 0, mended.out
    assert "mended 1" in mended.err
    assert run("verify", store=copy).status == 0


# Exporting -------------------------------------------------------------------------------------


def test_export_and_import_again(full, graphs, tmp_path):
    for ending in ("json", "graphml", "circuit"):
        assert run("export", "gamma", f"a.{ending}", store=full).status == 0
        found = graphstore.read_graph(f"a.{ending}", transcoder=graphs["gamma"].transcoder_id)
        assert found.n_edges == graphs["gamma"].n_edges
    assert graphstore.read_graph("a.circuit").differences(graphs["gamma"]) == []


def test_export_several(full, graphs, tmp_path):
    done = run("export", "alpha", "beta", "{slug}.circuit", store=full)
    assert done.status == 0
    assert sorted(path.name for path in tmp_path.glob("*.circuit")) == [
        "alpha.circuit",
        "beta.circuit",
    ]
    usage = run("export", "alpha", "beta", "c.circuit", store=full)
    assert usage.status == 2
    assert "{slug}" in usage.err
    assert "xml" in error_of(run("export", "alpha", "a.xml", store=full))
    assert not (tmp_path / "a.xml").exists()


def test_export_all_is_taken_back(full, graphs, tmp_path):
    assert run("export", "--all", "backup", store=full).status == 0
    other = tmp_path / "other.db"
    done = run("import", "backup", store=other)
    assert done.status == 0, done.err
    before = run("graphs", "--format", "json", store=full).records
    after = run("graphs", "--format", "json", store=other).records
    for graph in (*before, *after):
        graph.pop("stored_at")
    assert after == before
    assert run("verify", store=other).status == 0
    with graphstore.connect(other) as store:
        for graph in graphs.values():
            assert store.read(graph.graph_id).differences(graph) == []


def test_export_for_neo4j_admin(full, tmp_path):
    assert run("export", "--admin", "bulk", store=full).status == 0
    assert any((tmp_path / "bulk").iterdir())


# The demonstration -----------------------------------------------------------------------------


def test_demo_of_graph_files(files, tmp_path):
    words = ["demo", "--graphs", files["alpha"].parent / "*.circuit"]
    done = run(*words, store=tmp_path / "demo.db")
    assert done.status == 0, done.err
    for word in ("completeness", "mean_path_length", "feature_id", "jaccard"):
        assert word in done.out
    again = run(*words, "--format", "json", store=tmp_path / "demo.db").records
    assert len({record["question"] for record in again}) == 4
    assert "nowhere" in error_of(run("demo", "--graphs", "nowhere/*.json", store=tmp_path / "x.db"))


# No server, no store, interruptions ------------------------------------------------------------


def test_no_server():
    assert "bolt://127.0.0.1:1" in error_of(run("graphs", "--uri", "bolt://127.0.0.1:1"))
    assert "ftp://x" in error_of(run("graphs", "--uri", "ftp://x"))


def test_environment_chooses_the_store(full, monkeypatch):
    monkeypatch.setenv("CIRCUITBASE_STORE", str(full))
    assert len(run("graphs", "--format", "json").records) == 3
    monkeypatch.setenv("NEO4J_URI", "bolt://127.0.0.1:1")
    assert "127.0.0.1:1" in error_of(run("graphs"))
    assert len(run("graphs", "--format", "json", store=full).records) == 3


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_text("x")
    assert "file" in error_of(run("graphs", store=tmp_path / "file"))


def test_a_process_of_its_own_prints_results_and_nothing_else(copy):
    process = spawn("graphs", "--format", "json", "--store", copy)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, "")
    assert len(json.loads(out)) == 3
    process = spawn("show", "nothing", "--store", copy)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert out == ""
    assert re.fullmatch(r"error: .+\n", err)


def test_a_reader_that_leaves_early_is_no_error(copy):
    process = spawn(
        "cypher", "UNWIND range(1, 30000) AS i RETURN i", "--format", "csv", "--store", copy
    )
    assert process.stdout.readline() == "i\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    process.wait(timeout=60)


def test_interrupted(files, copy, tmp_path):
    many = [shutil.copy(files["alpha"], tmp_path / f"{k}.circuit") for k in range(200)]
    # A test run in the background ignores SIGINT, and its children would with it.
    before = ("env", "--default-signal=INT")
    process = spawn("import", *many, "--store", copy, before=before)
    process.stdout.readline()
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
    assert run("verify", store=copy).status == 0


def test_terminated(files, copy, tmp_path):
    """SIGTERM ends an import in an orderly way: nothing crashes, and the store is whole."""
    many = [shutil.copy(files["alpha"], tmp_path / f"{k}.circuit") for k in range(200)]
    before = ("env", "--default-signal=TERM")
    for delay in (0.0, 0.15, 0.4):
        process = spawn("import", *many, "--store", copy, before=before)
        process.stdout.readline()
        time.sleep(delay)
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGTERM)  # as timeout(1) does
        _, err = process.communicate(timeout=60)
        assert process.returncode == 143, err
        assert "Traceback" not in err
        assert not (copy / "server.json").exists()  # the engine was stopped, not cut off
    assert list(tmp_path.rglob("hs_err*")) == []
    assert run("verify", store=copy).status == 0


# Values ----------------------------------------------------------------------------------------


def test_parameters_are_typed():
    given = (
        "a=1",
        "b=-2.5e3",
        "c=true",
        "d=null",
        'e=["x", 1]',
        "f=Infinity",
        "g=007",
        "h=a=b",
        "i=12e4567890123456",
    )
    assert parameters(given) == {
        "a": 1,
        "b": -2500.0,
        "c": True,
        "d": None,
        "e": ["x", 1],
        "f": "Infinity",
        "g": "007",
        "h": "a=b",
        "i": "12e4567890123456",
    }
    strings = ("id=1234567890123456", 'list=["a"]', "one=5", "none=null")
    types = {"id": "string", "list": "strings", "one": "strings", "none": "string"}
    assert parameters(strings, types) == {
        "id": "1234567890123456",
        "list": ["a"],
        "one": "5",
        "none": None,
    }
    with pytest.raises(click.UsageError, match="key=value"):
        parameters(("=1",))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (float("inf"), None),
        (np.float32("nan"), None),
        (np.float64(1.5), 1.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([1.0, np.nan]), [1.0, None]),
        (pd.NA, None),
        (pd.NaT, None),
        (pd.Timestamp("2026-01-02"), "2026-01-02T00:00:00"),
        ({"a": (1, float("nan"))}, {"a": [1, None]}),
        ("x", "x"),
        (None, None),
    ],
)
def test_values_become_json(value, expected):
    assert plain(value) == expected
    assert type(plain(value)) is type(expected)


def test_printed_json_is_strict_json(capfd):
    frame = pd.DataFrame({"x": [1.0, float("nan")], "y": ["日本", 'a"\n'], "z": [[1], None]})
    print_frame(frame, "json")
    out = capfd.readouterr().out
    assert "NaN" not in out
    assert json.loads(out) == [
        {"x": 1.0, "y": "日本", "z": [1]},
        {"x": None, "y": 'a"\n', "z": None},
    ]


def test_real_graphs(real_graphs, tmp_path):
    """Scores of the real files agree with what the files carry."""
    store = tmp_path / "real.db"
    done = run("import", *real_graphs, "--set", "real", store=store)
    assert done.status == 0, done.err
    assert len(done.out.splitlines()) == len(real_graphs)
    found = {r["slug"]: r for r in run("scores", "--format", "json", store=store).records}
    for path in real_graphs:
        metadata = json.loads(path.read_text(encoding="utf-8"))["metadata"]
        if path.stem.endswith("_ea"):  # these hold the completeness score there, in float32
            score = found[metadata["slug"]]["completeness"]
            assert score == pytest.approx(metadata["node_threshold"], abs=1e-6)
    assert run("show", "ngsa_ea", "--out", tmp_path / "a.svg", store=store).status == 0
