"""Global weights in the store, on every engine: what goes in comes out, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from click.testing import CliRunner

import graphstore
from circuitbase.cli import cli
from graphstore import admin, backup, weights, weights_deleting
from graphstore.claims import Claim, WeightsClaim
from graphstore.connection import open_connection
from tracer import prune
from tracer.errors import FormatError, NotFoundError, StoreError
from tracer.weights import GlobalWeights

HERE = Path(__file__).parent
SCRIPT = HERE.parent / "docker" / "neo4j.sh"
FEATURES = [(layer, index) for layer in range(4) for index in range(3, 15, 2)]
COUNTS = """
MATCH (n) WHERE NOT n:Vault
WITH labels(n)[0] AS what, count(*) AS n RETURN what, n ORDER BY what
"""


@pytest.fixture
def small(made):
    """Weights of some features, with influence; of another corpus; and of other features."""
    first = made.attached(made.made_weights(FEATURES, 1))
    other = made.made_weights(FEATURES, 2, norm="folded")
    wide = made.made_weights([*FEATURES, (7, 10**12)], 1, transcoder_id="an/other@2", cut={})
    return [first, other, wide]


@pytest.fixture
def in_parts(monkeypatch):
    """Small batches and pages, so that even small weights take several."""
    for name in ("_FEATURE_ROWS", "_PAIR_ROWS", "_PAGE_PAIRS"):
        monkeypatch.setattr(weights, name, 7)
    for name in ("_AT_A_TIME", "_PAIRS"):
        monkeypatch.setattr(weights_deleting, name, 7)


def counts(store) -> dict[str, int]:
    return {row["what"]: row["n"] for row in store.rows(COUNTS)}


def virtual(store) -> int:
    return store.rows("MATCH (:Feature)-[r:VIRTUAL]->(:Feature) RETURN count(r) AS n")[0]["n"]


def test_reads_back_what_was_written(any_store, small, made):
    for each in small:
        assert any_store.write_weights(each)
    for each in small:
        assert made.differences(any_store.read_weights(each.weights_id), each) == []
        assert not any_store.write_weights(each)
    assert any_store.verify().empty
    listed = any_store.weights()
    assert listed["weights_id"].tolist() == sorted(
        listed["weights_id"], key=[each.weights_id for each in small].index
    ) or set(listed["weights_id"]) == {each.weights_id for each in small}
    row = listed.set_index("weights_id").loc[small[0].weights_id]
    assert (row["features"], row["pairs"]) == (len(FEATURES), small[0].weights.nnz)
    assert (row["corpus_id"], row["norm"], row["tokens"]) == ("corpus-1", "omitted", 12_345)
    assert row["influence_by"] == "twera"
    # Features are shared, pairs are not.
    assert counts(any_store)["Feature"] == 2 * len(FEATURES) + 1
    assert virtual(any_store) == sum(each.weights.nnz for each in small)


def test_small_batches_and_pages_change_nothing(any_store, small, made, in_parts):
    assert any_store.write_weights(small[0])
    assert made.differences(any_store.read_weights(), small[0]) == []
    any_store.delete_weights(small[0].weights_id)
    assert counts(any_store).keys() == {"Corpus", "Transcoder"}


def test_weights_without_a_pair_or_a_feature(any_store, made):
    for each in (made.made_weights(FEATURES[:3]), made.made_weights([])):
        assert any_store.write_weights(each)
        assert made.differences(any_store.read_weights(each.weights_id), each) == []
    assert any_store.verify().empty
    for weights_id in any_store.weights()["weights_id"]:
        any_store.delete_weights(weights_id)
    assert any_store.weights().empty


def test_properties_are_those_of_the_design(any_store, small):
    """Read with Cypher of one's own, against the matrices."""
    each = small[0]
    any_store.write_weights(each)
    found = any_store.cypher(
        "MATCH (w:GlobalWeights {weights_id: $w, complete: true})-[c:COVERS]->(t:Feature) "
        "MATCH (t)<-[r:VIRTUAL {weights_id: $w}]-(s:Feature) "
        "RETURN s.feature_id AS source, t.feature_id AS target, r.weight AS weight, r.era AS era, "
        "r.twera AS twera, r.cofiring AS cofiring, r.standard_error_era AS standard_error_era, "
        "r.standard_error_twera AS standard_error_twera, c.influence AS influence, "
        "c.reason AS reason, c.mean_activation AS mean",
        w=each.weights_id,
    ).sort_values(["target", "source"], ignore_index=True)
    expected = each.to_pandas().sort_values(["target", "source"], ignore_index=True)
    for name in found.columns.drop(["influence", "reason", "mean"]):
        assert found[name].tolist() == expected[name].tolist()
    row = {name: place for place, name in enumerate(each.feature_ids)}
    at = [row[name] for name in found["target"]]
    assert found["influence"].tolist() == each.influence.influence[at].tolist()
    assert found["reason"].tolist() == each.features["reason"].iloc[at].tolist()
    record = any_store.cypher(
        "MATCH (c:Corpus)<-[:COUNTED_IN]-(w:GlobalWeights)-[:USES]->(t:Transcoder) "
        "RETURN w.norm AS norm, w.corpus_id AS corpus, c.corpus_id AS id, c.tokens AS tokens, "
        "t.transcoder_id AS transcoder, w.complete AS complete"
    )
    assert record.to_dict("records") == [
        {
            "norm": "omitted",
            "corpus": "corpus-1",
            "id": "corpus-1",
            "tokens": 12_345,
            "transcoder": "made/up@1",
            "complete": True,
        }
    ]


def test_influence_is_added_once(any_store, small, made):
    bare = replace(small[0], influence=None)
    assert any_store.write_weights(bare)
    assert not any_store.write_weights(small[0])
    assert made.differences(any_store.read_weights(), small[0]) == []
    # What is there is not replaced.
    again = made.attached(bare, seed=5)
    assert not any_store.write_weights(again)
    assert made.differences(any_store.read_weights(), small[0]) == []
    assert any_store.verify().empty


def test_deleting_takes_what_only_they_used(any_store, small, golden):
    first, other, wide = small
    for each in small:
        any_store.write_weights(each)
    any_store.label(pd.DataFrame({"feature_id": [wide.feature_ids[0]], "label": ["kept"]}), "test")
    with pytest.raises(NotFoundError, match=f"Name them as {first.weights_id}"):
        any_store.delete_weights(first.weights_id[:8])
    any_store.delete_weights(first.weights_id)
    assert set(any_store.weights()["weights_id"]) == {other.weights_id, wide.weights_id}
    assert counts(any_store)["Feature"] == 2 * len(FEATURES) + 1  # the others use them
    any_store.delete_weights(wide.weights_id)
    assert counts(any_store)["Feature"] == len(FEATURES) + 1  # one has a label
    assert virtual(any_store) == other.weights.nnz
    assert any_store.verify().empty
    with pytest.raises(NotFoundError, match="no global weights"):
        any_store.delete_weights(first.weights_id)


def test_graphs_and_weights_keep_each_others_features(any_store, golden, made):
    graph = prune(golden("gpt2_plt_ln2")[0], 0.9)
    shared = sorted({(n.layer, n.index) for n in graph.nodes[graph.is_feature].itertuples()})
    each = made.made_weights([*shared[:5], (9, 0)], transcoder_id=graph.transcoder_id)
    any_store.write(graph)
    any_store.write_weights(each)
    any_store.delete_weights(each.weights_id)
    assert any_store.read(graph.graph_id).differences(graph) == []
    assert counts(any_store)["Feature"] == len(shared)
    any_store.write_weights(each)
    any_store.delete(graph.graph_id)
    assert made.differences(any_store.read_weights(), each) == []
    assert counts(any_store)["Feature"] == len(each)
    assert any_store.verify().empty


def test_finding_names_what_is_there(any_store, small):
    with pytest.raises(NotFoundError, match="no global weights are stored"):
        any_store.read_weights()
    for each in small[:2]:
        any_store.write_weights(each)
    ids = [each.weights_id for each in small[:2]]
    assert any_store.find_weights(ids[1][:7]) == ids[1]
    with pytest.raises(NotFoundError, match=f"2 global weights are stored: .*{ids[0]}"):
        any_store.find_weights()
    with pytest.raises(NotFoundError, match=f'Did you mean "{ids[0]}"'):
        any_store.find_weights(f"{ids[0][:-1]}x")
    any_store.delete_weights(ids[0])
    assert any_store.find_weights() == ids[1]


def test_a_column_with_a_name_of_the_store_is_refused(any_store, made):
    each = made.made_weights(FEATURES)
    each.features["n_inputs"] = 1
    with pytest.raises(StoreError, match="'n_inputs' of features has the name of a property"):
        any_store.write_weights(each)
    assert any_store.weights().empty


# Interrupted -----------------------------------------------------------------------------------


@pytest.mark.parametrize("after", [1, 9, 200])
def test_an_interrupted_writer_leaves_nothing_to_see(any_store, small, made, in_parts, after):
    """Whatever step it dies in; written again, it is whole."""
    run, calls = Claim.run, 0

    def dying(claim, work):
        nonlocal calls
        calls += 1
        if calls > after:
            raise KeyboardInterrupt
        return run(claim, work)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WeightsClaim, "run", dying)
        with contextlib.suppress(KeyboardInterrupt):
            any_store.write_weights(small[0])
    if calls > after:  # else it came to its end before
        assert any_store.weights().empty
        with pytest.raises(NotFoundError):
            any_store.read_weights(small[0].weights_id)
        assert set(any_store.verify()["check"]) == {"incomplete"}
        any_store.verify(repair=True)
        assert set(any_store.verify()["check"]) == {"incomplete"}  # it may be at work yet
    assert any_store.write_weights(small[0]) == (calls > after)
    assert made.differences(any_store.read_weights(), small[0]) == []
    assert any_store.verify().empty


def test_repair_removes_what_was_silent_for_long(any_store, small, made, in_parts):
    any_store.write_weights(small[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "_publish", fail)
        with pytest.raises(StoreError, match="the disk is full"):
            any_store.write_weights(small[0])
    assert virtual(any_store) == small[0].weights.nnz + small[1].weights.nnz
    any_store.change("MATCH (w:GlobalWeights) WHERE w.complete = false SET w.heartbeat = 0")
    assert any_store.verify(repair=True).empty
    assert virtual(any_store) == small[1].weights.nnz
    assert made.differences(any_store.read_weights(), small[1]) == []


def fail(*_: object, **__: object) -> None:
    raise StoreError("the disk is full", "Free space")


def test_an_interrupted_delete_is_brought_to_its_end(any_store, small, in_parts):
    any_store.write_weights(small[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights_deleting, "_reset", fail)
        with pytest.raises(StoreError, match="the disk is full"):
            any_store.delete_weights(small[0].weights_id)
    assert any_store.weights().empty
    any_store.change("MATCH (w:GlobalWeights) SET w.heartbeat = 0")
    assert any_store.verify(repair=True).empty
    assert counts(any_store).keys() == {"Corpus", "Transcoder"}


WRITER = """
import sys, importlib.util
import graphstore
from graphstore import weights
spec = importlib.util.spec_from_file_location("made", sys.argv[1])
made = importlib.util.module_from_spec(spec)
spec.loader.exec_module(made)
weights._PAIR_ROWS = weights._FEATURE_ROWS = 5
features = [(layer, index) for layer in range(4) for index in range(3, 15, 2)]
each = made.made_weights(features, 1)
run, count = weights.WeightsClaim.run, 0
def slow(claim, work):
    global count
    count += 1
    if count == int(sys.argv[2]):
        print("now", flush=True)
        sys.stdin.readline()
    return run(claim, work)
weights.WeightsClaim.run = slow
auth = tuple(sys.argv[4:6]) or None
with graphstore.connect(sys.argv[3], auth=auth) as store:
    store.write_weights(each)
"""


def test_a_killed_writer(any_target, made, tmp_path):
    """SIGKILL in the middle: readers see nothing, opening or repairing cleans up."""
    embedded = isinstance(any_target["target"], Path)
    # An engine of its own, which dies with the writer; else the server.
    target = {"target": tmp_path / "killed.db"} if embedded else any_target
    arguments = [str(target["target"]), *target.get("auth", ())]
    command = [sys.executable, "-c", textwrap.dedent(WRITER), str(HERE / "made_weights.py")]
    with subprocess.Popen(
        [*command, "12", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "now\n"
        os.kill(process.pid, signal.SIGKILL)
    connection = open_connection(**target)
    try:  # before anybody cleans up
        text = "MATCH (w:GlobalWeights) RETURN collect(w.complete) AS complete"
        found = connection.driver.execute_query(text, database_=connection.database).records
        assert found[0]["complete"] == [False]
    finally:
        connection.close()
    each = made.made_weights(FEATURES, 1)
    with graphstore.connect(**target) as store:
        assert store.weights().empty
        if embedded:  # cleaned up by opening
            assert counts(store) == {}
            assert store.verify().empty
        else:
            assert set(store.verify()["check"]) == {"incomplete"}
        assert store.write_weights(each)  # its writer is known to be dead
        assert made.differences(store.read_weights(), each) == []
        assert store.verify().empty


def test_two_writers_of_the_same_weights(any_store, small, made, in_parts):
    with ThreadPoolExecutor(2) as pool:
        new = list(pool.map(any_store.write_weights, [small[0]] * 2))
    assert sorted(new) == [False, True]
    assert made.differences(any_store.read_weights(), small[0]) == []
    assert any_store.verify().empty


# Checking --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "problem", "mended"),
    [
        ("MATCH ()-[r:VIRTUAL]->() WITH r LIMIT 1 SET r.era = r.era + 1", "era is not", False),
        ("MATCH ()-[r:VIRTUAL]->() WITH r LIMIT 1 SET r.twera = r.twera + 1", "twera is", False),
        (
            "MATCH ()-[r:VIRTUAL]->() WHERE r.twera <> 0 WITH r LIMIT 1 SET r.cofiring = 0",
            "never fire together",
            False,
        ),
        ("MATCH ()-[r:VIRTUAL]->() WITH r LIMIT 1 SET r.cofiring = 99999", "more often", False),
        ("MATCH ()-[r:VIRTUAL]->() WITH r LIMIT 1 DELETE r", "their record says", False),
        (
            "MATCH ()-[r:VIRTUAL]->() WHERE r.source > 2 WITH r LIMIT 1 SET r.source = r.target",
            "lower layer",
            False,
        ),
        (
            "MATCH ()-[c:COVERS]->() WITH c ORDER BY c.ord DESC LIMIT 1 SET c.largest_twera = 1e9",
            "COVERS.largest_twera differs",
            True,
        ),
        ("MATCH (w:GlobalWeights) SET w.small_weight = 7.0", "small_weight", True),
        ("MATCH (w:GlobalWeights) SET w.tokens = 7", "its id is not that", False),
        ("MATCH (:GlobalWeights)-[r:USES]->() DELETE r", "corpus and transcoder", False),
        (
            "MATCH (s:Feature), (t:Feature) WHERE s.layer = 0 AND t.layer = 3 WITH s, t LIMIT 1 "
            "CREATE (s)-[:VIRTUAL {weights_id: 'gone', weight: 1.0}]->(t)",
            "of no global weights",
            True,
        ),
    ],
)
def test_verify_finds_damage(embedded_store, small, damage, problem, mended):
    store = embedded_store
    store.write_weights(small[0])
    store.change(damage)
    found = store.verify()
    assert any(problem in text for text in found["problem"]), found.to_dict("records")
    assert store.verify(repair=True).empty == mended


# Folders and files -----------------------------------------------------------------------------


def test_export_and_import_take_them_along(any_store, small, made, tmp_path, golden):
    graph = prune(golden("gpt2_plt_ln2")[0], 0.9)
    any_store.write(graph)
    for each in small[:2]:
        any_store.write_weights(each)
    assert backup.dump(any_store, tmp_path / "out") == 1
    with graphstore.connect(tmp_path / "copy.db") as copy:
        assert backup.restore(copy, tmp_path / "out") == 1
        for each in small[:2]:
            assert made.differences(copy.read_weights(each.weights_id), each) == []
        assert copy.verify().empty
        assert counts(copy) == counts(any_store)


def test_a_damaged_member_is_named(embedded_store, small, tmp_path):
    for each in small[:2]:
        embedded_store.write_weights(each)
    backup.dump(embedded_store, tmp_path / "out")
    path = tmp_path / "out" / "weights" / f"{small[0].weights_id}.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with graphstore.connect(tmp_path / "copy.db") as copy:
        with pytest.raises(FormatError, match=path.name):
            backup.restore(copy, tmp_path / "out")
        failed = []
        backup.restore(copy, tmp_path / "out", failed=lambda *given: failed.append(given))
        assert [given[0] for given in failed] == [path]
        assert copy.weights()["weights_id"].tolist() == [small[1].weights_id]
        shutil.copy(path.with_name(f"{small[1].weights_id}.npz"), path)
        with pytest.raises(FormatError, match=f"holds global weights {small[1].weights_id}"):
            backup.restore(copy, tmp_path / "out")


@pytest.mark.neo4j
@pytest.mark.slow
def test_neo4j_admin_import_takes_them_along(
    servers, embedded_store, small, made, tmp_path, golden
):
    graph = prune(golden("gpt2_plt_ln2")[0], 0.9)
    embedded_store.write(graph)
    for each in small:
        embedded_store.write_weights(each)
    assert admin.export(embedded_store, tmp_path / "admin") == 1
    home = tmp_path / "neo4j"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NEO4J_")}
    environment = {
        **kept,
        "NEO4J_HOME": str(home),
        "NEO4J_VERSION": "5.26.30",
        "NEO4J_HEAP": "512m",
        "HEAP_SIZE": "512m",
    }

    def script(*words: str, cwd: Path | None = None) -> str:
        done = subprocess.run(
            [SCRIPT, *words], env=environment, cwd=cwd, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    script("admin", "database", "import", "full", "@import.args", cwd=tmp_path / "admin")
    try:
        lines = script("start").splitlines()
        given = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        auth = (given["NEO4J_USERNAME"].strip("'"), given["NEO4J_PASSWORD"].strip("'"))
        with graphstore.connect(given["NEO4J_URI"].strip("'"), auth=auth) as store:
            for each in small:
                assert made.differences(store.read_weights(each.weights_id), each) == []
            assert store.verify().empty
    finally:
        script("stop")


# The command line ------------------------------------------------------------------------------


def run(*words: object, store: Path, fails: bool = False) -> tuple[str, str]:
    done = CliRunner().invoke(cli, [*map(str, words), "--store", str(store)])
    assert (done.exit_code != 0) == fails, done.output
    return done.stdout, done.stderr


def test_the_command_line_lists_takes_writes_and_deletes(small, made, tmp_path):
    store, first, other = tmp_path / "cli.db", *small[:2]
    assert "circuitbase weights" in "".join(run("global-weights", store=store))
    files = [each.save(tmp_path / f"{each.weights_id}.npz") for each in (first, other)]
    told, _ = run("import", *files, store=store)
    assert [line.split()[0] for line in told.splitlines()] == [first.weights_id, other.weights_id]
    assert told.count("stored") == 2
    assert "already stored" in run("import", files[0], store=store)[0]
    records = json.loads(run("import", files[0], "--format", "json", store=store)[0])
    assert records[0]["weights_id"] == first.weights_id
    listed = json.loads(run("global-weights", "--format", "json", store=store)[0])
    assert {row["weights_id"] for row in listed} == {first.weights_id, other.weights_id}
    found = run(
        *("query", "hubs", f"weights_id={first.weights_id[:8]}", "limit=3", "--format", "json"),
        store=store,
    )[0]
    assert len(json.loads(found)) == 3
    error = run("query", "hubs", store=store, fails=True)[1]
    assert error.startswith("error: 2 global weights are stored: ")
    run("export", first.weights_id[:6], tmp_path / "{id}.out.npz", store=store)
    back = GlobalWeights.load(tmp_path / f"{first.weights_id}.out.npz")
    assert made.differences(back, first) == []
    assert "{id}" in run("export", "a", "b", tmp_path / "c.npz", store=store, fails=True)[1]
    told = run("export", "--all", tmp_path / "out", store=store)[1]
    copy = tmp_path / "copy.db"
    assert "2 global weights now in the store" in run("import", tmp_path / "out", store=copy)[0]
    assert "deleted" in run("delete", first.weights_id, "--yes", store=store)[1]
    assert "no graph" in run("delete", first.weights_id, "--yes", store=store, fails=True)[1]
    whole = files[0].read_bytes()
    damaged = tmp_path / "damaged.npz"
    damaged.write_bytes(whole[: len(whole) // 2] + b"x" + whole[len(whole) // 2 + 1 :])
    assert "damaged.npz" in run("import", damaged, store=store, fails=True)[1]
