"""A store as a folder and back, on every engine, and as files for neo4j-admin."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import graphstore
from graphstore import admin, backup
from tracer import AttributionGraph, Supernode, prune
from tracer.errors import FormatError

SCRIPT = Path(__file__).parent.parent / "docker" / "neo4j.sh"


@pytest.fixture(scope="session")
def graphs(golden):
    """Graphs with everything that a store can hold: parts, labels, supernodes, odd texts."""
    full, _ = golden("qwen3_clt_mlp")
    first = prune(full, 0.97, 0.98)
    part = first.adjacency.copy()
    part.data = part.data / 2
    nodes = first.nodes.copy()
    rows = np.flatnonzero(first.is_feature)
    nodes.loc[rows[0], "label"] = 'a "quoted", label\nof two; lines'
    nodes.loc[:, "token"] = "\t\"odd', token;\\"
    first = first.replace(
        nodes=nodes,
        residual=part,
        attention=first.adjacency - part,
        supernodes=[Supernode("pair", tuple(rows[:2].tolist()), "ada")],
        pinned=rows[:1].tolist(),
        source={"format": "made", "metadata": {"text": "a;b,c\n"}},
        model_info={"family": "qwen3", "n_layers": 3, "scale": 0.5, "tied": True},
        slug="",
    )
    return [first, prune(full, 0.95, 0.9).replace(slug='second "one"')]


def graphs_by_id(graphs) -> dict[str, AttributionGraph]:
    """Graphs by their id."""
    return {graph.graph_id: graph for graph in graphs}


def fill(store: graphstore.Store, graphs) -> None:
    """Put graphs, sets (one of them empty) and labels of both origins into a store."""
    store.write(graphs[0], "odd; name")
    store.write(graphs[0], "both")
    store.write(graphs[1], "both")
    store.add_set("empty", "described, but empty")
    feature = next(i for i in graphs[1].feature_ids if i)
    table = pd.DataFrame(
        {"feature_id": [feature, "other/t/0/7"], "label": ["by hand", "not seen yet"]}
    )
    store.label(table, "labels.csv")


def contents(store: graphstore.Store) -> dict[str, object]:
    """Everything a store holds, but for numbers and times that a writer gives."""
    ignored = {"gno", "stored_at", "supernodes_made"}
    nodes = store.cypher("MATCH (n) WHERE NOT n:Vault RETURN labels(n)[0] AS l, properties(n) AS p")
    links = store.cypher(
        "MATCH (a)-[r]->(b) RETURN type(r) AS t, properties(r) AS p, properties(a) AS a, "
        "properties(b) AS b"
    )
    # A node may hold other nodes' keys as properties; its own comes first here.
    keys = ("node_id", "supernode_id", "edge_id", "feature_id", "graph_id")
    keys += ("transcoder_id", "model_id", "name")

    def key(properties: dict[str, object]) -> str:
        return next(str(properties[k]) for k in keys if k in properties)

    gno = {p["gno"]: p["graph_id"] for p in nodes["p"] if "gno" in p}

    def plain(properties: dict[str, object]) -> dict[str, object]:
        kept = {k: v for k, v in properties.items() if k not in ignored}
        if "graphs" in kept:  # a pair's lists are in the order of writing
            lists = zip(kept["graphs"], kept.pop("shares"), kept.pop("weights"), strict=True)
            kept["graphs"] = sorted((gno[g], s, w) for g, s, w in lists)
            kept["sum_share"] = round(kept["sum_share"], 9)
            kept["sum_weight"] = round(kept["sum_weight"], 9)
        return kept

    return {
        "nodes": sorted(
            json.dumps([label, plain(p)], sort_keys=True)
            for label, p in zip(nodes["l"], nodes["p"], strict=True)
        ),
        "links": sorted(
            json.dumps([t, key(a), key(b), p], sort_keys=True)
            for t, p, a, b in links[["t", "p", "a", "b"]].itertuples(index=False)
        ),
    }


def test_export_and_import_make_an_equal_store(any_store, embedded_server, graphs, tmp_path):
    fill(any_store, graphs)
    assert backup.dump(any_store, tmp_path / "out") == 2
    with graphstore.connect(tmp_path / "copy.db") as copy:
        assert backup.restore(copy, tmp_path / "out") == 2
        assert contents(copy) == contents(any_store)
        assert copy.verify().empty
        # Again: nothing is new, nothing changes.
        assert backup.restore(copy, tmp_path / "out") == 0
        assert contents(copy) == contents(any_store)


def test_a_folder_goes_into_every_engine(any_store, graphs, tmp_path):
    with graphstore.connect(tmp_path / "origin.db") as origin:
        fill(origin, graphs)
        backup.dump(origin, tmp_path / "out")
        wanted = contents(origin)
    backup.restore(any_store, tmp_path / "out")
    assert contents(any_store) == wanted


def test_restoring_overwrites_no_label(embedded_store, graphs, tmp_path):
    fill(embedded_store, graphs)
    backup.dump(embedded_store, tmp_path / "out")
    feature = next(i for i in graphs[1].feature_ids if i)
    embedded_store.label(pd.DataFrame({"feature_id": [feature], "label": ["newer"]}), "me")
    backup.restore(embedded_store, tmp_path / "out")
    found = embedded_store.cypher(
        "MATCH (f:Feature {feature_id: $id}) RETURN f.label AS label", id=feature
    )
    assert found["label"].tolist() == ["newer"]


def test_an_interrupted_export_is_made_again_and_not_imported(embedded_store, graphs, tmp_path):
    fill(embedded_store, graphs)
    backup.dump(embedded_store, tmp_path / "out")
    (tmp_path / "out" / "circuitbase.json").unlink()
    first, _ = sorted((tmp_path / "out" / "graphs").iterdir())
    (first.parent / f"{'f' * 16}.circuit").write_bytes(first.read_bytes())  # deleted since
    embedded_store.group(first.stem, "made since", [graphs_by_id(graphs)[first.stem].keys[0]])
    with pytest.raises(FormatError, match="was interrupted; export to the same folder again"):
        backup.restore(embedded_store, tmp_path / "out")
    assert backup.dump(embedded_store, tmp_path / "out") == 2
    assert len(list(first.parent.iterdir())) == 2
    assert graphstore.read_graph(first).supernodes[-1].name == "made since"
    with pytest.raises(FormatError, match="holds an export already"):
        backup.dump(embedded_store, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=9), "has version 9"),
        (lambda m: m.update(format="x"), "is no circuitbase export"),
        (lambda m: m.update(graphs={}), "graphs is not a list"),
        (lambda m: m["graphs"][0].update(graph_id="../../x"), "is no graph id"),
        (lambda m: m["sets"][0].pop("name"), r"sets\[0\].name is not a str"),
        (lambda m: m["labels"][0].update(feature_id="x"), "'x' is no feature id"),
        (lambda m: m["graphs"].reverse() or m["graphs"][0].update(graph_id="0" * 16), "0{16}"),
    ],
)
def test_a_damaged_manifest_is_named(embedded_store, graphs, tmp_path, change, message):
    fill(embedded_store, graphs)
    backup.dump(embedded_store, tmp_path / "out")
    path = tmp_path / "out" / "circuitbase.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(FormatError, match=message):
        backup.restore(embedded_store, tmp_path / "out")


def test_export_does_not_write_into_a_folder_of_other_files(embedded_store, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(FormatError, match="holds other files"):
        backup.dump(embedded_store, tmp_path)
    with pytest.raises(FormatError, match="is not empty"):
        admin.export(embedded_store, tmp_path)
    with pytest.raises(FormatError, match="cannot be written"):
        backup.dump(embedded_store, "/proc/nowhere")


@pytest.mark.neo4j
@pytest.mark.slow
@pytest.mark.parametrize("engine", ["neo4j-lts", "neo4j-calendar"])
def test_neo4j_admin_import_makes_an_equal_store(engine, servers, embedded_store, graphs, tmp_path):
    servers.environment(engine)  # skips where its Java is absent
    fill(embedded_store, graphs)
    first = [name for name in graphs[0].feature_ids if name is not None][:2]
    figures = {"graphs": 2, "share": 1.0, "mean_influence": 0.25}
    embedded_store.keep_circuit(
        {
            "name": "it",
            "min_share": 0.5,
            "graph_ids": [graph.graph_id for graph in graphs],
            "transcoder_id": graphs[0].transcoder_id,
            "features": [{"feature_id": name, "place": "last", **figures} for name in first],
            "edges": [{"source": first[0], "target": first[1], "mean_weight": -0.5, **figures}],
        }
    )
    out = tmp_path / "admin"
    assert admin.export(embedded_store, out) == 2
    environment = {**servers._of(engine), "NEO4J_HOME": str(tmp_path / "home")}
    environment = {**os.environ, **environment}
    environment.pop("NEO4J_URI", None)

    def script(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [SCRIPT, *arguments], env=environment, capture_output=True, text=True, cwd=out
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done

    try:
        script("admin", "database", "import", "full", "@import.args")
        lines = script("start").stdout.splitlines()
        found = dict(line.removeprefix("export ").split("=", 1) for line in lines)
        auth = ("neo4j", found["NEO4J_PASSWORD"].strip("'"))
        with graphstore.connect(found["NEO4J_URI"].strip("'"), auth=auth) as store:
            assert store.verify().empty
            assert repr(store.circuit("it")) == repr(embedded_store.circuit("it"))
            for kind, wanted in contents(embedded_store).items():
                assert set(contents(store)[kind]) ^ set(wanted) == set()
            for graph in graphs:
                assert store.read(graph.graph_id).differences(graph) == []
            assert not store.write(graphs[0])
    finally:
        script("stop")
        shutil.rmtree(tmp_path / "home", ignore_errors=True)
