"""`circuitbase label` with a corpus: computed labels in the store, and what is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

import graphstore
import tracer
from circuitbase.cli import cli


@pytest.fixture(scope="module")
def names(data, tmp_path_factory):
    """Options that name the model, the transcoder and a corpus of token ids."""
    model, transcoder = data / "golden/models/gpt2", data / "golden/transcoders/gpt2_clt_residmid"
    draw, path = np.random.default_rng(0), tmp_path_factory.mktemp("corpus") / "c.jsonl"
    ids = [[1, *draw.integers(2, 30, draw.integers(2, 9)).tolist()] for _ in range(60)]
    path.write_text("\n".join(json.dumps({"token_ids": one}) for one in ids))
    return ["-m", str(model), "-t", str(transcoder), "--corpus", str(path)]


@pytest.fixture(scope="module")
def store(names, tmp_path_factory):
    """A store with one graph of that transcoder."""
    folder = tmp_path_factory.mktemp("label") / "s.db"
    model = tracer.load_model(names[1], check=False)
    graph = tracer.trace(model, tracer.load_transcoder(names[3]), [1, 5, 9, 12])
    with graphstore.connect(folder) as opened:
        opened.write(tracer.prune(graph))
    return str(folder)


def run(*words):
    done = CliRunner().invoke(cli, list(words), catch_exceptions=False)
    assert "Traceback" not in done.stderr
    return done


def described(store):
    with graphstore.connect(store) as opened:
        rows = opened.rows("MATCH (f:Feature) RETURN properties(f) AS p")
        assert opened.verify().empty
    return {row["p"]["feature_id"]: row["p"] for row in rows}


def test_labels_are_computed_for_what_is_stored_or_for_all(names, store, tmp_path):
    (tmp_path / "classes.json").write_text(json.dumps({"<7>": ["sevens"]}))
    before = described(store)
    done = run("label", *names, "--classes", str(tmp_path / "classes.json"), "--store", store)
    assert done.exit_code == 0, done.stderr
    after = described(store)
    assert after.keys() == before.keys()
    assert f"described {len(after)} features" in done.stderr
    for row in after.values():
        assert (row["density"] > 0) == ("label" in row)
        assert row.get("label_source", "computed: ").startswith("computed: ")
        assert json.loads(row["statistics"])["corpus_name"] == "c.jsonl"
    again = run("label", *names, "--all", "--examples", "1", "--format", "json", "--store", store)
    records = json.loads(again.stdout)
    assert len(records) == 3 * 64 == len(described(store))
    assert max(len(json.loads(row["examples"])) for row in described(store).values()) == 1
    found = run("query", "features", "limit=3", "--format", "json", "--store", store)
    assert len(json.loads(found.stdout)) == 3


@pytest.mark.parametrize(
    ("words", "status", "says"),
    [
        ((), 2, "Give FILE.csv, or -m, -t and --corpus"),
        (("x.csv", "-m", "gpt2"), 2, "Give FILE.csv, or -m, -t and --corpus"),
        (("-m", "gpt2"), 2, "takes -m MODEL, -t TRANSCODER and --corpus FILE"),
    ],
)
def test_wrong_usage(words, status, says, tmp_path):
    done = run("label", *words, "--store", str(tmp_path / "none.db"))
    assert done.exit_code == status
    assert says in done.stderr
    assert not (tmp_path / "none.db").exists()


def test_known_errors(names, tmp_path):
    empty = ["--store", str(tmp_path / "empty.db")]
    done = run("label", *names, *empty)
    assert done.exit_code == 1
    assert "has no feature of gpt2_clt_residmid-" in done.stderr
    for content, says in (("{", "is not JSON"), ('{"a": "b"}', "gives words no lists")):
        (tmp_path / "classes.json").write_text(content)
        done = run("label", *names, "--classes", str(tmp_path / "classes.json"), *empty)
        assert done.exit_code == 1
        assert says in done.stderr
    done = run("label", *names[:5], str(tmp_path / "none.txt"), *empty)
    assert done.exit_code == 1
    assert "none.txt" in done.stderr
    done = run("label", *names, "--source", "me", *empty)
    assert done.exit_code == 2
