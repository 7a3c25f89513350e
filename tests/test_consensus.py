"""Consensus circuits: what recurs as a graph, what it explains of prompts, kept under a name."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import graphstore
import queries
import tracer
from circuitbase.cli import cli
from circuitbase.picture import draw_figure, draw_terminal
from graphstore.admin import export
from graphstore.backup import dump, restore
from queries.consensus import explained
from tests.made_graphs import TRANSCODER, identifier, made_graph
from tracer.errors import FormatError, NotFoundError, QueryError, StoreError

A, B, C, D = (0, 1), (1, 2), (2, 3), (3, 4)


def prompt(number, transcoder=TRANSCODER):
    """One of six prompts: A at the city feeds B, and B feeds C at the end; D is there in some."""
    n_tokens, city = 5 + number % 2, 1 + number % 2
    a, b, c, d = (*A, city), (*B, city), (*C, n_tokens - 1), (*D, n_tokens - 1)
    own = (1, 100 + number, city)
    edges = {(a, b): 2.0 + number, (b, c): -1.5, (own, c): 0.7}
    features = [a, b, c, own]
    if number % 3 == 0:
        features.append(d)
        edges[c, d] = 1.0
    if number == 5:  # one without the middle, and against the sign
        edges = {(a, c): 1.0}
        features = [a, c, own]
    return made_graph(
        features,
        edges,
        slug=f"prompt-{number}",
        n_tokens=n_tokens,
        roles={"city": [city]},
        transcoder=transcoder,
    )


@pytest.fixture
def store(any_store):
    for number in range(6):
        any_store.write(prompt(number), "all/found" if number < 4 else "all/other")
    return any_store


def test_what_recurs_is_a_graph_with_the_rest_as_error(store):
    circuit = queries.consensus_circuit(store, "all/found", 0.75)
    assert circuit.feature_ids == {identifier(f) for f in (A, B, C)}
    assert circuit.pairs == {(identifier(A), identifier(B)), (identifier(B), identifier(C))}
    places = circuit.features.set_index("feature_id")["place"]
    assert places.to_dict() == {identifier(A): "city", identifier(B): "city", identifier(C): "last"}
    recurring = queries.recurring_edges(store, "all/found", min_share=0.75)
    pd.testing.assert_frame_equal(circuit.edges, recurring[list(circuit.edges.columns)])
    graph = circuit.graph
    # Every row is a whole account: |weights| of inputs sum to 1, with error for the rest.
    sums = abs(graph.adjacency).sum(axis=1)[graph.is_feature | graph.is_logit]
    assert np.allclose(sums, 1, rtol=0, atol=1e-12)
    graphs = [prompt(number) for number in range(4)]
    for source, target in circuit.pairs:
        shares = []
        for each in graphs:
            share = tracer.normalised(each).toarray()
            t = [row for row, name in enumerate(each.feature_ids) if name == target]
            s = [row for row, name in enumerate(each.feature_ids) if name == source]
            shares.append(share[np.ix_(t, s)].sum() / len(t))
        weight = graph.adjacency[row_of(graph, target), row_of(graph, source)]
        assert abs(weight) == pytest.approx(np.mean(shares), abs=1e-12)
        assert (weight < 0) == (target == identifier(C))
    # The logits of a prompt count by their probabilities, together.
    wanted = [
        (flow := tracer.Flow(each)).weights @ flow.normalised.toarray()[:, rows(each, C)].sum(1)
        for each in graphs
    ]
    logit = int(np.flatnonzero(graph.is_logit)[0])
    weight = graph.adjacency[logit, row_of(graph, identifier(C))]
    assert weight == pytest.approx(np.mean(wanted) / 0.9, abs=1e-12)
    assert graph.nodes["probability"].iloc[logit] == pytest.approx(0.9)
    assert set(graph.tokens) == {"city", "last"}
    own = tracer.scores(graph)
    assert 0 < own.replacement < 1
    assert own.lost == pytest.approx(0, abs=1e-12)
    draw_terminal(graph, 100)


def row_of(graph, name):
    return graph.feature_ids.index(name)


def rows(graph, feature):
    return [row for row, name in enumerate(graph.feature_ids) if name == identifier(feature)]


def merged_by_hand(graph, kept):
    """Completeness and replacement when all other features are error: dense, by definition."""
    dense = graph.adjacency.toarray()
    inside = [row for row, name in enumerate(graph.feature_ids) if name is None or name in kept]
    removed = [row for row in range(graph.n_nodes) if row not in inside]
    nodes = graph.nodes
    # An error node for each place: what it gives is the signed sum of its own and what is removed.
    outside = defaultdict(lambda: np.zeros(graph.n_nodes))
    for row in [*np.flatnonzero(graph.is_error), *removed]:
        outside[nodes["layer"].iloc[row], nodes["position"].iloc[row]] += dense[:, row]
    sources = [row for row in inside if not graph.is_error[row]]
    matrix = np.column_stack([dense[:, sources], *outside.values()])[sources]
    total = abs(matrix).sum(axis=1, keepdims=True)
    share = np.divide(abs(matrix), total, out=np.zeros_like(matrix), where=total > 0)
    n = len(sources)
    within, error = share[:, :n], share[:, n:]
    weights = graph.logit_weights[sources]
    influence = weights @ (np.linalg.inv(np.eye(n) - within) - np.eye(n))
    through = influence + weights
    from_errors = through @ error
    from_embeddings = influence[graph.is_embedding[sources]].sum()
    unexplained = (error.sum(axis=1) * through).sum()
    everything = through.sum() + from_errors.sum()
    return 1 - unexplained / everything, from_embeddings / (from_embeddings + from_errors.sum())


def test_what_it_explains_of_each_prompt(store):
    circuit = queries.consensus_circuit(store, "all/found", 0.75)
    assert circuit.prompts["used"].all()
    found = queries.coverage(store, circuit, "all", random=7)
    assert found["used"].tolist() == [True] * 4 + [False] * 2
    pd.testing.assert_frame_equal(found.loc[:3, circuit.prompts.columns], circuit.prompts)
    for number, row in enumerate(found.itertuples()):
        graph = prompt(number)
        flow = tracer.Flow(graph)
        acting = [name for name in graph.feature_ids if name is not None]
        mine = [name in circuit.feature_ids for name in acting]
        influence = flow.influence[graph.is_feature]
        assert row.influence_share == pytest.approx(influence[mine].sum() / influence.sum())
        assert row.expected_share == sum(mine) / len(mine)
        assert row.features == sum(mine)
        scores = flow.edge_scores.toarray()
        between = {
            (graph.feature_ids[s], graph.feature_ids[t]): scores[t, s]
            for t, s in zip(*np.nonzero(scores), strict=True)
            if graph.is_feature[s] and graph.is_feature[t]
        }
        held = sum(value for pair, value in between.items() if pair in circuit.pairs)
        assert row.edge_share == pytest.approx(held / sum(between.values()))
        expected = merged_by_hand(graph, circuit.feature_ids)
        assert (row.completeness, row.replacement) == pytest.approx(expected, abs=1e-12)
        stored = tracer.scores(graph, "as_stored")
        assert (row.completeness_stored, row.replacement_stored) == pytest.approx(
            (stored.completeness, stored.replacement)
        )
        assert 0 <= row.random_influence_share <= 1
        assert row.p in [k / 8 for k in range(1, 9)]
    again = queries.coverage(store, circuit, "all", random=7)
    pd.testing.assert_frame_equal(found, again)
    assert queries.coverage(store, circuit, ["prompt-5"], random=0)["p"].isna().all()
    # Where no feature acts there is no share to compare: p is unknown, not as small as can be.
    store.write(made_graph([], {}, slug="bare"), "all/bare")
    bare = queries.coverage(store, circuit, "all/bare", random=7)
    assert bare[["influence_share", "p"]].isna().all(axis=None)
    # With every feature kept, nothing changes.
    graph = prompt(0)
    names = {name for name in graph.feature_ids if name is not None}
    whole = explained(graph, names, set())
    assert whole["replacement"] == pytest.approx(whole["replacement_stored"])
    assert whole["influence_share"] == pytest.approx(1)


def test_circuits_are_kept_copied_and_deleted(store, tmp_path):
    circuit = queries.consensus_circuit(store, "all/found", 0.75)
    kept = queries.keep_circuit(store, circuit, "it")
    found = queries.read_circuit(store, "it")
    same(found, kept)
    assert store.circuits().drop(columns="created_at").to_dict("records") == [
        {
            **{"name": "it", "features": 3, "edges": 2, "min_share": 0.75, "graphs": 4},
            "transcoder_id": TRANSCODER,
        }
    ]
    assert "3 features and 2 edges in 75% of 4 graphs" in repr(found)
    assert "it" in found._repr_html_()
    with pytest.raises(StoreError, match="'it' is stored already"):
        queries.keep_circuit(store, circuit, "it")
    with pytest.raises(NotFoundError, match='Did you mean "it"'):
        queries.coverage(store, "itt", "all")
    pd.testing.assert_frame_equal(
        queries.coverage(store, "it", "all/other"), queries.coverage(store, circuit, "all/other")
    )
    in_cypher = store.cypher(
        "MATCH (c:Circuit)-[r:INVOLVES]->(f:Feature) WHERE r.place = $place "
        "RETURN c.name AS name, f.feature_id AS feature_id ORDER BY feature_id",
        place="city",
    )
    assert in_cypher["feature_id"].tolist() == [identifier(A), identifier(B)]
    # Its features stay when the graphs go, and go with it.
    for graph_id in store.graphs()["graph_id"]:
        store.delete(graph_id)
    assert store.verify().empty
    assert store.verify(repair=True).empty
    same(queries.read_circuit(store, "it"), kept)
    dump(store, tmp_path / "all")
    with graphstore.connect(tmp_path / "copy.db") as copy:
        restore(copy, tmp_path / "all")
        restore(copy, tmp_path / "all")
        same(queries.read_circuit(copy, "it"), kept)
        assert copy.verify().empty
    export(store, tmp_path / "bulk")
    assert len((tmp_path / "bulk/INVOLVES.csv").read_text().splitlines()) == 3
    assert '"it"' in (tmp_path / "bulk/Circuit.csv").read_text()
    store.delete_circuit("it")
    assert store.circuits().empty
    assert not store.rows("MATCH (f:Feature) RETURN f")
    assert store.verify().empty


def same(mine, theirs):
    for each in dataclasses.fields(mine):
        a, b = getattr(mine, each.name), getattr(theirs, each.name)
        if isinstance(a, pd.DataFrame):
            pd.testing.assert_frame_equal(a, b)
        else:
            assert a == b, each.name


def test_a_damaged_circuit_is_named(embedded_store, tmp_path):
    store = embedded_store
    for number in range(3):
        store.write(prompt(number), "all")
    queries.keep_circuit(store, queries.consensus_circuit(store, "all"), "it")
    dump(store, tmp_path / "all")
    manifest = tmp_path / "all/circuitbase.json"
    content = json.loads(manifest.read_text())
    for change, says in (
        (lambda c: c["features"][0].update(feature_id="x"), "is no feature id"),
        (lambda c: c["features"].pop(), "no feature of it"),
        (lambda c: c["edges"][0].update(graphs="many"), "graphs is 'many'"),
        (lambda c: c.update(name=" "), "names no circuit"),
        (lambda c: c.update(edges=7), "is not a list"),
    ):
        broken = json.loads(json.dumps(content))
        change(broken["circuits"][0])
        manifest.write_text(json.dumps(broken))
        with (
            graphstore.connect(tmp_path / f"{says}.db") as copy,
            pytest.raises(FormatError) as caught,
        ):
            restore(copy, tmp_path / "all")
        assert says in str(caught.value)
    store.change("MATCH (c:Circuit) SET c.n_edges = 7, c.picture = '{}'")
    assert store.verify()["problem"].tolist() == ["has 2 edges, its record says 7"]
    with pytest.raises(StoreError, match="circuit 'it' is damaged"):
        queries.read_circuit(store, "it")


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda s: queries.consensus_circuit(s, "empty"), "set 'empty' holds no graph"),
        (lambda s: queries.consensus_circuit(s, "one"), "one graph alone"),
        (lambda s: queries.consensus_circuit(s, "mixed"), "not comparable"),
        (lambda s: queries.consensus_circuit(s, "all", 1.5), "from 0 to 1"),
        (lambda s: queries.consensus_circuit(s, ["prompt-0", "odd"], 1.0), "Lower min_share"),
        (lambda s: queries.coverage(s, "it", "other"), "they are not comparable"),
        (lambda s: queries.coverage(s, "it", "empty"), "holds no graph"),
        (lambda s: queries.coverage(s, "it", "all", random=-1), "from 0"),
    ],
)
def test_what_is_wrong_is_named(embedded_store, ask, says):
    store = embedded_store
    for number in range(3):
        store.write(prompt(number), "all")
    store.write(prompt(0), "one")
    store.write(made_graph([(7, 7, 1)], {}, slug="odd"))
    store.write(prompt(1, "an/other@2"), "other")
    store.combine_sets("union", ["one", "other"], "mixed")
    store.add_set("empty")
    queries.keep_circuit(store, queries.consensus_circuit(store, "all"), "it")
    with pytest.raises(QueryError) as caught:
        ask(store)
    assert says in str(caught.value)


def test_circuits_on_the_command_line(embedded_store, embedded_server, tmp_path, monkeypatch):
    monkeypatch.delenv("NEO4J_URI", raising=False)
    for number in range(6):
        embedded_store.write(prompt(number), "found" if number < 4 else "other")
    where = ["--store", str(embedded_server)]

    def run(*words):
        return CliRunner().invoke(cli, ["circuits", *words, *where], catch_exceptions=False)

    wrong = run("find", "it", "found", "--out", str(tmp_path / "it.txt"))
    assert (wrong.exit_code, "Use .svg or .png" in wrong.stderr) == (1, True)
    picture = tmp_path / "it.svg"
    done = run("find", "it", "found", "--min-share", "0.75", "--out", str(picture))
    assert done.exit_code == 0, done.stderr
    assert "it: 3 features, 2 edges" in done.stderr
    assert picture.read_text().startswith("<?xml")
    assert json.loads(run("--format", "json").stdout)[0]["features"] == 3
    rows = json.loads(run("test", "it", "other", "--random", "5", "--format", "json").stdout)
    assert [row["used"] for row in rows] == [False, False]
    assert len(json.loads(run("show", "it", "--format", "json").stdout)) == 2
    assert run("show", "it").exit_code == 0
    wrong = run("show", "itt")
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert 'Did you mean "it"?' in wrong.stderr
    assert run("drop", "it").exit_code == 0
    assert run().stderr.startswith("No circuits.")


# The shipped model -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    """Graphs of the two-hop prompts of three states, by the shipped model."""
    import torch

    from circuitbase.shipped import CLT, MODEL
    from circuitbase.shipped.corpus import make_corpus

    if not (MODEL / "model.safetensors").exists():
        pytest.skip("the shipped model has not been made: make model")
    by_state = defaultdict(list)
    for sentence in make_corpus().sentences:
        if sentence.family == "city-state-capital" and sentence.split == "train":
            by_state[sentence.bridge].append(sentence.record())
    states = sorted(by_state, key=lambda state: (-len(by_state[state]), state))[:3]
    records = [record for state in states for record in by_state[state]]
    prompts = [
        tracer.Prompt(record.pop("prompt"), id=record.pop("id"), metadata=record)
        for record in records
    ]
    torch.set_num_threads(1)
    model, clt = tracer.load_model(MODEL), tracer.load_transcoder(CLT)
    results = list(tracer.trace_many(model, clt, prompts, finish=tracer.prune))
    assert not [result.error for result in results if result.error]
    return [result.graph for result in results]


def test_half_of_the_two_hop_prompts_cover_the_other_half(shipped, embedded_store, tmp_path):
    # In turns, so that states and cities are in both halves.
    for number, graph in enumerate(shipped):
        embedded_store.write(graph, "two-hop/found" if number % 2 else "two-hop/other")
    # What the prompts' file says of each: all are two-hop, most are right.
    assert len(embedded_store.fill_set("hops", hops=2)) == len(shipped)
    assert len(embedded_store.fill_set("right", right=True, hops=2)) >= 0.8 * len(shipped)
    circuit = queries.consensus_circuit(embedded_store, "two-hop/found", 0.25)
    found = queries.coverage(embedded_store, circuit, "two-hop/other", random=50)
    assert not found["used"].any()
    mean = found.mean(numeric_only=True)
    # More than random circuits of equal size, than as many of the features that act there, and
    # more of the way from the prompt to the answer.
    assert mean["influence_share"] > 1.3 * mean["random_influence_share"]
    assert mean["influence_share"] > mean["expected_share"]
    assert mean["replacement"] > mean["random_replacement"] + 0.05
    assert (found["p"] <= 0.1).mean() > 0.5
    # Every city's own features act at the city, and the answer's at the end.
    places = queries.position_roles(embedded_store, prompt_set="two-hop", min_share=0.15)
    by_share = places.sort_values("share").groupby("feature_id").tail(1)
    assert by_share["place"].isin(["city", "last"]).mean() > 0.5
    draw_figure(circuit.graph, tmp_path / "it.svg")
