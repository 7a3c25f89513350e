"""Descriptions of features in the store: kept, replaced, shown, exported, checked."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

import graphstore
import queries
import tracer
from graphstore import backup
from graphstore.describing import all_descriptions
from tracer.errors import FormatError, NotFoundError, StoreError

COMPUTED = "computed: 97 % of the activation is at “Dallas”"


@pytest.fixture(scope="session")
def graphs(golden):
    """Two graphs; the first has a label of its own."""
    full, _ = golden("qwen3_clt_mlp")
    first = tracer.prune(full, 0.97, 0.98)
    nodes = first.nodes.copy()
    nodes.loc[np.flatnonzero(first.is_feature)[0], "label"] = "a label of the file"
    return [first.replace(nodes=nodes), tracer.prune(full, 0.95, 0.9)]


def fill(store, graphs) -> None:
    """Put graphs and labels of both origins into a store."""
    for graph in graphs:
        store.write(graph)
    feature = next(i for i in graphs[1].feature_ids if i)
    table = pd.DataFrame({"feature_id": [feature, "other/t/0/7"], "label": ["by hand", "unseen"]})
    store.label(table, "labels.csv")


def described(ids, **changes) -> pd.DataFrame:
    """A table as tracer.describe_features gives it."""
    n = len(ids)
    table = pd.DataFrame(
        {
            "feature_id": ids,
            "layer": 0,
            "index": range(n),
            "label": pd.Series([f"cities {i}" for i in range(n)], dtype=object),
            "label_source": pd.Series([COMPUTED] * n, dtype=object),
            "density": np.linspace(0, 1, n),
            "mean_activation": np.linspace(0.5, 2, n),
            "max_activation": 2.5,
            "statistics": [
                {"corpus": "ab" * 8, "promoted": [[f"t{k}", 1.0 - k] for k in range(7)], "n": i}
                for i in range(n)
            ],
            "examples": [
                [
                    {
                        "tokens": ["the", "state", "containing", "Dallas", "is"],
                        "at": 3,
                        "token": "Dallas",
                        "next": "is",
                        "activation": 2.5,
                    },
                    {
                        "tokens": [" a", ' "quoted",', " line\n"],
                        "at": 1,
                        "token": ' "quoted",',
                        "next": None,
                        "activation": 1.5,
                    },
                ]
            ]
            * n,
        }
    )
    return table.assign(**changes)


def stored(store) -> dict[str, dict]:
    rows = store.rows("MATCH (f:Feature) RETURN properties(f) AS p")
    return {row["p"]["feature_id"]: row["p"] for row in rows}


def test_descriptions_are_kept_and_replaced(any_store, graphs, monkeypatch):
    monkeypatch.setattr(graphstore.describing, "_BATCH", 3)
    fill(any_store, graphs)
    by_hand = next(i for i in graphs[1].feature_ids if i)
    in_file = next(i for i, p in stored(any_store).items() if str(p.get("label")).startswith("a "))
    free = [i for i, p in stored(any_store).items() if "label" not in p][:4]
    ids = [by_hand, in_file, *free, "other/t/0/8"]
    before = stored(any_store)
    seen = []
    told = any_store.describe_features(described(ids), lambda done, total: seen.append(done))
    assert told == 7
    assert seen == [3, 6, 7]
    found = stored(any_store)
    for place, feature_id in enumerate(ids):
        row = found[feature_id]
        assert row["density"] == pytest.approx(place / 6)
        assert row["max_activation"] == 2.5
        assert json.loads(row["statistics"])["n"] == place
        assert json.loads(row["examples"])[1]["tokens"][1] == ' "quoted",'
        if feature_id in (by_hand, in_file):  # labels of people and files stay
            assert row["label"] == before[feature_id]["label"]
            assert row["label_source"] == before[feature_id]["label_source"]
        else:
            assert (row["label"], row["label_source"]) == (f"cities {place}", COMPUTED)
    assert (found["other/t/0/8"]["layer"], found["other/t/0/8"]["index"]) == (0, 8)
    # The same again changes nothing; a later corpus replaces, and takes its label along.
    any_store.describe_features(described(ids))
    assert stored(any_store) == found
    later = described(ids, density=0.5, label=None, label_source=None)
    any_store.describe_features(later)
    after = stored(any_store)
    assert all(after[i]["density"] == 0.5 for i in ids)
    assert all("label" not in after[i] and "label_source" not in after[i] for i in free)
    assert after[by_hand]["label"] == before[by_hand]["label"]
    # A person's word replaces the computed one, for good.
    any_store.describe_features(described(ids))
    any_store.label(pd.DataFrame({"feature_id": free[:1], "label": ["mine"]}), "me")
    any_store.describe_features(described(ids))
    assert stored(any_store)[free[0]]["label"] == "mine"
    assert any_store.verify().empty
    # Features that somebody has described outlive their graphs.
    for graph in graphs:
        any_store.delete(graph.graph_id)
    assert set(ids) <= set(stored(any_store))
    assert any_store.verify().empty


def test_what_is_not_a_description_is_refused(any_store):
    good = described(["t/0/1", "t/0/2"])
    for changes, says in (
        ({"feature_id": ["t/0/1", "t/0"]}, "is no feature id"),
        ({"density": [0.5, 1.5]}, "density is 1.5, not a share"),
        ({"density": [0.5, np.nan]}, "density is nan"),
        ({"mean_activation": [0.5, 3.0]}, "above its maximum"),
        ({"max_activation": [np.inf, 3.0]}, "max_activation is inf"),
        ({"statistics": ["{}", "[]"]}, "statistics is no JSON object"),
        ({"statistics": ["{}", "{"]}, "statistics is not JSON"),
        ({"examples": ["[]", None]}, "has no examples"),
        ({"label_source": "by hand"}, "Store.label"),
    ):
        with pytest.raises(StoreError, match=says):
            any_store.describe_features(good.assign(**changes))
    with pytest.raises(StoreError, match="lacks column 'density'"):
        any_store.describe_features(good.drop(columns="density"))
    assert not stored(any_store)
    assert any_store.describe_features(good.iloc[:0]) == 0


def test_verify_finds_what_is_wrong(any_store):
    any_store.describe_features(described(["t/0/1", "t/0/2", "t/0/3", "t/0/4"]))
    assert any_store.verify().empty
    for number, text in enumerate(
        ("f.density = 1.5", "f.statistics = '{'", "f.mean_activation = null", "f.label = 'x'"), 1
    ):
        any_store.change(f"MATCH (f:Feature {{feature_id: 't/0/{number}'}}) SET {text}")
    found = any_store.verify()
    assert found["check"].unique().tolist() == ["feature"]
    assert found["id"].tolist() == ["t/0/1", "t/0/2", "t/0/3"]
    assert found["problem"].tolist() == [
        "its description density is 1.5, not a share",
        "its description statistics is not JSON",
        "its description has no mean_activation",
    ]


def test_export_and_import(any_store, graphs, tmp_path, monkeypatch):
    monkeypatch.setattr(backup, "_DESCRIPTIONS", 2)
    fill(any_store, graphs)
    ids = [next(i for i in graphs[0].feature_ids if i), *(f"other/t/1/{k}" for k in range(4))]
    any_store.describe_features(described(ids))
    backup.dump(any_store, tmp_path / "out")
    assert len((tmp_path / "out/features.jsonl").read_text().splitlines()) == 5
    with graphstore.connect(tmp_path / "copy.db") as copy:
        backup.restore(copy, tmp_path / "out")
        assert stored(copy) == stored(any_store)
        assert copy.verify().empty
    with graphstore.connect(tmp_path / "other.db") as other:
        other.describe_features(described(ids[:1], density=0.75))  # what is there stays
        backup.restore(other, tmp_path / "out")
        rows = {row["feature_id"]: row for row in all_descriptions(other)}
        assert rows[ids[0]]["density"] == 0.75
        assert rows[ids[4]]["density"] == 1.0
    # A folder that was damaged is refused, with the line.
    path = tmp_path / "out/features.jsonl"
    lines = path.read_text().splitlines()
    for text, says in (
        ("\n".join(lines[:-1]) + "\n", "has 4 lines"),
        ("\n".join(["{", *lines[1:]]) + "\n", "features.jsonl:1: is not JSON"),
        ("\n".join(["{}", *lines[1:]]) + "\n", "features.jsonl:1: describes no feature"),
    ):
        path.write_text(text)
        with (
            graphstore.connect(tmp_path / "bad.db") as bad,
            pytest.raises(FormatError, match=says),
        ):
            backup.restore(bad, tmp_path / "out")
    path.unlink()
    with (
        graphstore.connect(tmp_path / "bad.db") as bad,
        pytest.raises(FormatError, match="cannot be read"),
    ):
        backup.restore(bad, tmp_path / "out")


def test_export_for_neo4j_admin_holds_descriptions(embedded_store, graphs, tmp_path):
    from graphstore import admin

    fill(embedded_store, graphs)
    embedded_store.describe_features(described(["other/t/1/5"]))
    admin.export(embedded_store, tmp_path / "out")
    header = (tmp_path / "out/Feature_header.csv").read_text()
    assert "density:double" in header
    assert "examples:string" in header
    (line,) = [
        line
        for line in (tmp_path / "out/Feature.csv").read_text().splitlines()
        if line.startswith('"other/t/1/5"')
    ]
    assert '""Dallas""' in line


# Queries ---------------------------------------------------------------------------------------


def test_the_queries_show_them(any_store, golden):
    full, _ = golden("gpt2_clt_residmid")
    one, other = tracer.prune(full, 0.9), tracer.prune(full, 0.6).replace(slug="small")
    any_store.write(one, "all")
    any_store.write(other, "small")
    name = full.transcoder_id
    many = sorted({i for i in other.feature_ids if i})[:2]
    lone = sorted({i for i in one.feature_ids if i} - {i for i in other.feature_ids if i})[0]
    any_store.describe_features(described([*many, lone, f"{name}/0/900"]))
    any_store.label(pd.DataFrame({"feature_id": [lone], "label": ["Say AUSTIN"]}), "me")
    found = queries.features(any_store)
    counts = dict(zip(found["feature_id"], found["graphs"], strict=True))
    assert counts == {many[0]: 2, many[1]: 2, lone: 1, f"{name}/0/900": 0}
    assert found["graphs"].tolist() == [2, 2, 1, 0]
    assert found["promoted"].iloc[0] == ["t0", "t1", "t2", "t3", "t4"]
    row = found.set_index("feature_id").loc[many[1]]
    assert row["density"] == pytest.approx(1 / 3)
    assert (row["label"], row["label_source"]) == ("cities 1", COMPUTED)
    assert queries.features(any_store, label="say austin")["feature_id"].tolist() == [lone]
    layer = int(many[0].split("/")[-2])
    assert set(queries.features(any_store, layer=layer)["layer"]) == {layer}
    assert len(queries.features(any_store, limit=1)) == 1
    # Of a set: all of its features, described or not.
    in_set = queries.features(any_store, "small", limit=1000)
    assert set(in_set["feature_id"]) == {i for i in other.feature_ids if i}
    assert (in_set["graphs"] == 1).all()
    assert in_set.loc[in_set["label"].isna(), "promoted"].isna().all()
    both = queries.features(any_store, [one.graph_id, other.graph_id], limit=1000)
    assert dict(zip(both["feature_id"], both["graphs"], strict=True)).items() >= {
        (many[0], 2),
        (lone, 1),
    }
    examples = queries.feature_examples(any_store, many[0])
    assert examples["rank"].tolist() == [1, 2]
    assert examples["context"].tolist() == [
        "the state containing [Dallas] is",
        'a ["quoted",] line',
    ]
    assert examples["next"].tolist() == ["is", None]
    assert len(queries.feature_examples(any_store, many[0], limit=1)) == 1
    undescribed = next(i for i in one.feature_ids if i and i not in (*many, lone))
    assert queries.feature_examples(any_store, undescribed).empty
    with pytest.raises(NotFoundError, match="no feature"):
        queries.feature_examples(any_store, f"{name}/0/901")
    with pytest.raises(NotFoundError, match="no prompt set"):
        queries.features(any_store, "smal")
