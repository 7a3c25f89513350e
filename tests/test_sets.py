"""Prompt sets: nested by name; filled by metadata, query or hand; combined; in every copy."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import graphstore
import queries
from circuitbase.cli import cli
from graphstore.admin import export
from graphstore.backup import dump, restore
from tests.made_graphs import identifier, made_graph
from tracer.errors import NotFoundError, QueryError, StoreError

ROOT = Path(__file__).parent.parent
PROMPTS = {
    "dallas": {"family": "capital", "hops": 2, "answer": "yes", "template": "of", "kind": "a"},
    "austin": {"family": "capital", "hops": "1", "answer": "yes", "template": "in", "kind": "b"},
    "big": {"family": "opposite", "hops": 1, "answer": "no", "language": "en", "split": "train"},
    "grand": {"family": "opposite", "hops": 1, "answer": "yes", "language": "fr", "n": 4},
    "plain": {},
}


@pytest.fixture
def store(any_store):
    """Five graphs, of which one says nothing about itself."""
    for number, (slug, metadata) in enumerate(PROMPTS.items()):
        roles = {"city": [1, 2]} if slug == "dallas" else None
        graph = made_graph([(0, number, 1)], {}, slug=slug, metadata=metadata, roles=roles)
        any_store.write(graph)
    return any_store


def slugs(store, ids):
    by_id = dict(store.graphs()[["graph_id", "slug"]].itertuples(index=False))
    return [by_id[graph_id] for graph_id in ids]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"hops": 2}, ["dallas"]),
        ({"hops": "1"}, ["austin", "big", "grand"]),
        ({"hops": 1, "right": True}, ["austin", "grand"]),
        ({"right": False}, ["big"]),
        ({"right": None}, ["plain"]),
        ({"family": ["capital", "opposite"], "template": "of"}, ["dallas"]),
        ({"kind": ["a", "b"]}, ["dallas", "austin"]),
        ({"n": "4"}, ["grand"]),
        ({"language": "fr", "split": "train"}, []),
        ({"slug": "plain"}, ["plain"]),
        ({"transcoder_id": "made/up@1", "model_id": "made/model"}, list(PROMPTS)),
    ],
)
def test_sets_by_metadata(embedded_store, where, expected):
    for number, (slug, metadata) in enumerate(PROMPTS.items()):
        embedded_store.write(made_graph([(0, number, 1)], {}, slug=slug, metadata=metadata))
    found = embedded_store.fill_set("found", where)
    assert slugs(embedded_store, found) == expected
    assert embedded_store.graphs("found")["slug"].tolist() == expected
    assert embedded_store.fill_set("again", **where, within="found") == found


def test_sets_are_filled_nested_combined_and_emptied(store):
    store.fill_set("capitals/two", hops=2)
    store.fill_set("capitals/one", family="capital", hops=1)
    store.fill_set("right", right=True)
    store.fill_set("by hand", graphs=["plain", "big"])
    text = "MATCH (g:Graph) WHERE g.hops >= $n AND g.complete = true RETURN g.graph_id AS graph_id"
    asked = store.fill_set("asked", cypher=text, parameters={"n": 1}, within="right")
    assert slugs(store, asked) == ["dallas", "austin", "grand"]
    listed = dict(store.sets()[["name", "graphs"]].itertuples(index=False))
    assert listed == {
        **{"asked": 3, "by hand": 2, "capitals": 2, "capitals/one": 1, "capitals/two": 1},
        "right": 3,
    }
    # A set above others stands for theirs, everywhere.
    assert store.graphs("capitals")["slug"].tolist() == ["dallas", "austin"]
    assert queries.graphs(store, "capitals")["slug"].tolist() == ["dallas", "austin"]
    found = queries.recurring_features(store, "capitals", min_graphs=1)
    assert found["index"].tolist() == [0, 1] or found["index"].tolist() == [1, 0]
    apart = queries.features_only_in(store, "capitals", "right")
    assert apart.empty
    assert queries.features_only_in(store, "capitals", ["dallas"])["index"].tolist() == [1]
    # Every query takes graphs in the place of a set.
    assert queries.graphs(store, ["grand", "dallas"])["slug"].tolist() == ["grand", "dallas"]
    assert queries.recurring_features(store, ["grand"], min_graphs=1)["index"].tolist() == [3]
    assert len(queries.scores(store, prompt_set=["big", "big"])) == 1

    union = store.combine_sets("union", ["by hand", "capitals"])
    assert slugs(store, union) == ["big", "plain", "dallas", "austin"]
    both = store.combine_sets("intersection", ["right", "capitals", ["austin"]], into="both")
    assert slugs(store, both) == ["austin"]
    rest = store.combine_sets("difference", ["right", "capitals"], into="rest/of right")
    assert slugs(store, rest) == ["grand"]
    assert store.graphs("rest")["slug"].tolist() == ["grand"]
    store.exclude("plain", "by hand")
    assert store.graphs("by hand")["slug"].tolist() == ["big"]
    store.drop_set("by hand")
    assert "by hand" not in store.sets()["name"].tolist()
    assert len(store.graphs()) == 5
    assert store.verify().empty


@pytest.mark.parametrize(
    ("ask", "error", "says"),
    [
        (lambda s: s.fill_set("a", hop=2), NotFoundError, 'Did you mean "hops"?'),
        (lambda s: s.fill_set("a"), StoreError, "nothing says which graphs"),
        (lambda s: s.fill_set("a//b", hops=2), StoreError, "names no prompt set"),
        (lambda s: s.fill_set(" ", hops=2), StoreError, "names no prompt set"),
        (lambda s: s.fill_set("a", graphs=["dalas"]), NotFoundError, '"dallas"'),
        (lambda s: s.fill_set("a", hops=2, within="onee"), NotFoundError, '"one"'),
        (lambda s: s.fill_set("a", cypher="RETURN 1 AS x"), StoreError, "no graph id"),
        (lambda s: s.fill_set("a", cypher="CREATE (x:Y)"), QueryError, "change the store"),
        (lambda s: s.combine_sets("minus", ["one"]), StoreError, "Known are union"),
        (lambda s: s.combine_sets("union", []), StoreError, "no sets are given"),
        (lambda s: s.combine_sets("union", "one"), StoreError, "Give a list"),
        (lambda s: s.combine_sets("union", ["one", "tow"]), NotFoundError, '"two"'),
        (lambda s: s.exclude("dallas", "onne"), NotFoundError, '"one"'),
        (lambda s: s.drop_set("oone"), NotFoundError, '"one"'),
        (lambda s: s.drop_set("above"), NotFoundError, "no graphs of its own, only those of sets"),
        (lambda s: s.drop_set("abve"), NotFoundError, '"above"'),
        (lambda s: s.graphs("abve"), NotFoundError, '"above"'),
        (lambda s: queries.motifs(s, "abve"), NotFoundError, '"above"'),
        (lambda s: s.graphs("on"), NotFoundError, '"one"'),
        (lambda s: s.annotate("dallas", {"hops": "two"}), StoreError, "whole number"),
        (lambda s: s.annotate("dallas", {"x": {1}}), StoreError, "no JSON"),
        (lambda s: s.annotate("dallas", {"roles": {}}), StoreError, "when a prompt is traced"),
        (lambda s: queries.recurring_edges(s, []), QueryError, "Give a set by name"),
        (lambda s: queries.recurring_edges(s, ["dalas"]), NotFoundError, '"dallas"'),
        (lambda s: queries.motifs(s, "empty"), QueryError, "set 'empty' holds no graph"),
        (lambda s: queries.recurring_paths(s, "empty"), QueryError, "holds no graph"),
        (lambda s: queries.position_roles(s, prompt_set="empty"), QueryError, "no graph"),
    ],
)
def test_what_is_wrong_is_named(embedded_store, ask, error, says):
    embedded_store.write(made_graph([(0, 1, 1)], {}, slug="dallas"), "one")
    embedded_store.add_set("two")
    embedded_store.add_set("empty")
    embedded_store.add_set("above/below")
    with pytest.raises(error) as caught:
        ask(embedded_store)
    assert says in str(caught.value)


def test_metadata_is_added_by_hand_and_never_replaced(store):
    before = store.read("plain")
    assert store.annotate("plain", {"family": "capital", "answer": " no", "x": [1]}) == []
    assert store.annotate("plain", {"family": "other", "hops": 3}) == ["family"]
    after = store.read("plain")
    assert before.differences(after) == ["source"]
    assert after.source["metadata"] == {"family": "capital", "answer": " no", "x": [1], "hops": 3}
    assert slugs(store, store.fill_set("f", family="capital", right=False, x=[[1]])) == ["plain"]
    assert store.verify().empty


def test_verify_mends_what_an_older_version_did_not_store(store):
    store.change("MATCH (g:Graph {slug: 'dallas'}) REMOVE g.family, g.role_names, g.role_positions")
    found = store.verify()
    assert set(found["problem"]) == {
        *(f"property {n} differs from the edges' {n}" for n in ("family", "role_names")),
        "property role_positions differs from the edges' role_positions",
    }
    assert store.verify(repair=True).empty
    (row,) = store.rows("MATCH (g:Graph {slug: 'dallas'}) RETURN g.role_names AS names")
    assert row["names"] == ["city", "city", "last"]


def test_strengths_of_an_older_version_are_unknown_until_mended(any_store):
    a, b, c = (0, 1, 1), (1, 2, 1), (2, 3, 1)
    for slug, weight in (("one", 2.0), ("two", 3.0), ("three", -1.0)):
        any_store.write(made_graph([a, b, c], {(a, b): weight, (b, c): 1.0}, slug=slug), "set")
    name = f"{identifier(a)} -> {identifier(b)}"
    text = (
        "MATCH (x:FeatureEdge {edge_id: $id}) "
        "REMOVE x.influences, x.sum_influence, x.n_positive RETURN x.edge_id AS id"
    )
    before = queries.recurring_edges(any_store, "set")
    assert before["sign_agreement"].tolist() in ([1.0, 2 / 3], [2 / 3, 1.0])
    assert any_store.change(text, id=name)
    for prompt_set in (None, "set"):
        found = queries.recurring_edges(any_store, prompt_set)
        row = found[found["source"] + " -> " + found["target"] == name].iloc[0]
        assert np.isnan(row["mean_influence"])
        assert row["mean_share"] > 0
    # A graph that comes, and one that goes, leave it so.
    any_store.write(made_graph([a, b, c], {(a, b): 4.0, (b, c): 1.0}, slug="four"))
    any_store.delete(any_store.find("four"))
    found = queries.recurring_edges(any_store, "set")
    assert found["mean_influence"].isna().sum() == 1
    assert name in any_store.verify()["id"].tolist()
    assert any_store.verify(repair=True).empty
    pd.testing.assert_frame_equal(queries.recurring_edges(any_store, "set"), before)
    # Removing a graph takes its part out of every sum.
    any_store.delete(any_store.find("three"))
    assert queries.recurring_edges(any_store)["sign_agreement"].tolist() == [1.0, 1.0]
    assert any_store.verify().empty


def test_copies_keep_metadata_roles_and_nested_sets(store, tmp_path):
    store.fill_set("capitals/two", hops=2)
    assert dump(store, tmp_path / "all") == 5
    with graphstore.connect(tmp_path / "copy.db") as copy:
        assert restore(copy, tmp_path / "all") == 5
        assert copy.graphs("capitals")["slug"].tolist() == ["dallas"]
        assert copy.read("dallas") == store.read("dallas")
        assert copy.verify().empty
        kept = "MATCH (g:Graph {slug: 'dallas'}) RETURN g.role_positions AS p, g.metadata AS m"
        assert copy.rows(kept) == store.rows(kept)
    export(store, tmp_path / "bulk")
    (header,) = csv.reader(io.StringIO((tmp_path / "bulk/Graph_header.csv").read_text()))
    assert {"hops:long", "right:boolean", "role_positions:long[]", "metadata:string"} <= set(header)
    rows = list(csv.reader(io.StringIO((tmp_path / "bulk/Graph.csv").read_text())))
    place = [name.partition(":")[0] for name in header].index("hops")
    assert [row[place] for row in rows] == ["2", "1", "1", "1", ""]


def test_sets_on_the_command_line(store, any_target, tmp_path, monkeypatch):
    if "auth" in any_target:
        pytest.skip("the command line is the same")
    monkeypatch.delenv("NEO4J_URI", raising=False)
    where = ["--store", str(any_target["target"])]

    def run(*words):
        return CliRunner().invoke(cli, [*words, *where], catch_exceptions=False)

    assert run("sets", "make", "caps/two", "family=capital", "hops=2").exit_code == 0
    done = run("sets", "add", "caps/hand", "plain", "austin")
    assert (done.exit_code, done.stderr) == (0, "caps/hand: 2 graphs added\n")
    assert run("sets", "make", "right", "right=true").stderr == "right: 3 graphs found and added\n"
    both = run("sets", "intersection", "both", "caps", "right")
    assert both.stderr == "both: 2 graphs found and added\n"
    assert run("sets", "difference", "rest", "caps", "right").stderr.startswith("rest: 1 graph ")
    assert run("sets", "union", "all", "caps", "right").stderr.startswith("all: 4 graphs")
    assert run("sets", "remove", "caps/hand", "plain").exit_code == 0
    text = "MATCH (g:Graph) WHERE g.slug = 'big' RETURN g.graph_id AS graph_id"
    assert (
        run("sets", "make", "asked", "--cypher", text).stderr == "asked: 1 graph found and added\n"
    )
    assert run("sets", "drop", "asked").exit_code == 0
    listed = json.loads(run("sets", "--format", "json").stdout)
    assert {row["name"]: row["graphs"] for row in listed} == {
        **{"all": 4, "both": 2, "caps": 2, "caps/hand": 1, "caps/two": 1, "rest": 1, "right": 3}
    }
    # Shared options may stand before the word, too.
    before = CliRunner().invoke(cli, ["sets", *where, "drop", "all"], catch_exceptions=False)
    assert before.exit_code == 0
    wrong = run("sets", "make", "x", "hop=2")
    assert wrong.exit_code == 1
    assert 'Did you mean "hops"?' in wrong.stderr
    assert run("sets", "make", "x").exit_code == 2
    words = ["recurring_features", 'prompt_set=["dallas", "austin"]', "min_graphs=1"]
    found = run("query", *words, "--format", "json")
    assert {row["index"] for row in json.loads(found.stdout)} == {0, 1}


def test_the_pages_code_runs(embedded_store):
    a, b, c = (0, 1, 1), (1, 2, 1), (2, 3, 2)
    for number, slug in enumerate(("dallas", "austin", "boston", "salem")):
        graph = made_graph(
            [a, b, c, (3, number, 1)],
            {(a, b): 1.0 + number, (b, c): 2.0, (a, c): 1.0},
            slug=slug,
            metadata={"family": "capital", "hops": 2, "answer": "yes"},
            roles={"city": [1]},
        )
        embedded_store.write(graph, f"capitals/{('found', 'other')[number % 2]}")
    embedded_store.write(made_graph([(0, 7, 1)], {}, slug="hot"), "opposites")
    for page in ("prompt-sets", "mining"):
        text = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8")
        names = {"store": embedded_store, "graph": graph}
        for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
            exec(compile(code, page, "exec"), names)
    assert embedded_store.graphs("capitals/two-hop")["slug"].tolist() == [
        *("dallas", "austin", "boston", "salem")
    ]
    assert embedded_store.circuits()["name"].tolist() == ["capitals"]
