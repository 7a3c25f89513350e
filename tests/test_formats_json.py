"""Attribution-graph JSON: what each trap of the format means, and what a round trip keeps."""

from __future__ import annotations

import json
import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from graphstore.files import read_graph, write_graph
from graphstore.formats.identity import cantor, looks_like_model, uncantor
from graphstore.formats.influence_field import cumulative_share, influence_meaning
from tracer import AttributionGraph, CircuitWarning, Supernode
from tracer.errors import FormatError
from tracer.influence import influence
from tracer.pruning import prune
from tracer.scores import scores

FEATURE, ERROR = "cross layer transcoder", "mlp reconstruction error"


@pytest.fixture
def minimal(data):
    """A small file in circuit-tracer's dialect, parsed."""
    return json.loads((data / "files/minimal.json").read_text())


@pytest.fixture
def anthropic(data):
    """A small file in Anthropic's dialect, parsed."""
    return json.loads((data / "files/anthropic.json").read_text())


@pytest.fixture
def read(tmp_path):
    """Write parsed JSON to a file and read it as a graph."""

    def read(content, **options) -> AttributionGraph:
        path = tmp_path / "night.json"
        path.write_text(json.dumps(content))
        return read_graph(path, **options)

    return read


@pytest.fixture
def again(tmp_path):
    """Write a graph as JSON and read it again."""

    def again(graph: AttributionGraph) -> AttributionGraph:
        write_graph(graph, tmp_path / "again.json")
        return read_graph(tmp_path / "again.json")

    return again


def node(content, node_id):
    """The record of one node."""
    return next(record for record in content["nodes"] if record["node_id"] == node_id)


def error_text(caught) -> str:
    return str(caught.value)


# What is read, against the file itself ---------------------------------------------------------


def test_real_files_are_read_link_by_link(real_graphs):
    """Oracle: the file's own records, by dictionary."""
    for path in real_graphs:
        content, graph = json.loads(path.read_text()), read_graph(path)
        links = {(x["source"], x["target"]): x["weight"] for x in content["links"] if x["weight"]}
        ids = graph.nodes["source_id"].tolist()
        entries = graph.adjacency.tocoo()
        found = {
            (ids[s], ids[t]): weight
            for t, s, weight in zip(entries.row, entries.col, entries.data, strict=True)
        }
        assert found == links, path.name
        assert ids == [record["node_id"] for record in content["nodes"]]
        assert graph.tokens == tuple(content["metadata"]["prompt_tokens"])
        assert graph.prompt == content["metadata"]["prompt"]
        assert graph.slug == content["metadata"]["slug"]
        assert not graph.unpruned
        for record, row in zip(content["nodes"], graph.nodes.itertuples(), strict=True):
            assert row.position == record["ctx_idx"]
            if row.kind == "feature":
                assert (str(row.layer), record["node_id"]) == (
                    record["layer"],
                    f"{row.layer}_{row.index}_{row.position}",
                )
                if "activation" in record:
                    assert row.activation == record["activation"]


def test_tokens_and_token_ids(read, minimal, real_graphs):
    graph = read(minimal)
    assert graph.token_ids == (2, 7)
    assert graph.nodes["token"].tolist() == [" pets"] * 4 + ["<bos>", " pets", " cat", " dog"]
    night = read_graph(next(path for path in real_graphs if "night" in path.name))
    assert night.token_ids is not None
    assert night.token_ids[0] == 2  # Gemma's <bos>
    assert night.nodes.loc[night.is_logit, "token"].tolist() == [" night", " the", " month"]
    haiku = read_graph(next(path for path in real_graphs if "haiku" in path.name))
    assert haiku.token_ids is None  # its ids are scrambled, and position 0 has none


def test_token_ids_need_every_position(read, minimal):
    minimal["nodes"] = [x for x in minimal["nodes"] if x["node_id"] != "E_2_0"]
    minimal["links"] = [x for x in minimal["links"] if x["source"] != "E_2_0"]
    assert read(minimal).token_ids is None


# 1. influence ----------------------------------------------------------------------------------


def test_meaning_of_influence_in_real_files(real_graphs):
    expected = {"gemma2-clt": "cumulative", "gemma2-plt--dallas-": "cumulative", "haiku": "absent"}
    for path in real_graphs:
        meaning = next((v for k, v in expected.items() if path.name.startswith(k)), "raw")
        assert read_graph(path).source["influence"] == meaning, path.name


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("meaning", ["cumulative", "raw"])
def test_meaning_of_influence_of_the_unpruned_graph(golden_pair, meaning, threshold):
    """The numbers are the reference tool's own, of the graph before it was pruned."""
    whole, arrays = golden_pair
    numbers = arrays["node_influence"].astype(float)
    if meaning == "cumulative":
        order = np.argsort(-numbers)
        shares = np.cumsum(numbers[order]) / numbers.sum()
        numbers[order] = shares
    small = prune(whole, threshold, 0.9)
    rows = [whole.keys.index(key) for key in small.keys]
    stored = np.where(small.is_logit, np.nan, numbers[rows])
    assert influence_meaning(small, stored) == meaning


def test_meaning_of_few_or_senseless_numbers(read, minimal):
    graph = read(minimal)
    truth = influence(graph)
    nothing = np.full(graph.n_nodes, np.nan)
    assert influence_meaning(graph, nothing) == "absent"
    for row in np.flatnonzero(truth > 0):  # one number alone: nearest value decides
        one = nothing.copy()
        one[row] = truth[row]
        assert influence_meaning(graph, one) == "raw"
    one = nothing.copy()
    one[5] = cumulative_share(truth)[5]
    assert influence_meaning(graph, one) == "cumulative"
    assert influence_meaning(graph, np.zeros(graph.n_nodes)) == "unknown"
    assert influence_meaning(graph, -truth) == "unknown"
    assert influence_meaning(graph, 5 - 4 * truth) == "unknown"  # falls, but is no share


def test_influence_is_never_taken_from_the_file(read, minimal):
    before = influence(read(minimal))
    for record in minimal["nodes"]:
        record["influence"] = 0.123
    np.testing.assert_array_equal(influence(read(minimal)), before)


# 2. feature ids --------------------------------------------------------------------------------


def test_cantor_pairing():
    for layer in range(30):
        for index in (0, 1, 2, 4711, 98303, 2**31):
            assert uncantor(cantor(layer, index)) == (layer, index)
    assert [uncantor(number) for number in range(4)] == [(0, 0), (1, 0), (0, 1), (2, 0)]


def test_index_comes_from_node_id(read, minimal, anthropic):
    graph = read(minimal)
    assert graph.nodes.loc[graph.is_feature, ["layer", "index"]].values.tolist() == [[0, 5], [1, 3]]
    assert graph.source["format"] == "circuit-tracer"
    graph = read(anthropic)
    assert graph.nodes.loc[graph.is_feature, "index"].tolist() == [52340, 77120, 77120]
    assert graph.source["format"] == "anthropic"


@pytest.mark.parametrize(
    ("node_id", "feature", "says"),
    [
        ("1_3_1", 99, "node_id says 3, feature 99"),
        ("1_4_1", cantor(1, 3), "node_id says 4"),
        ("2_3_1", cantor(1, 3), "contradicts layer 1"),
        ("1_3_0", cantor(1, 3), "contradicts layer 1, ctx_idx 1"),
        ("n17", cantor(1, 3), "cannot be recovered"),
        ("1_-3_1", cantor(1, 3), "cannot be recovered"),
        ("1_3", cantor(1, 3), "cannot be recovered"),
        ("1_3_1", None, "not a whole number"),
    ],
)
def test_index_is_never_guessed(read, minimal, node_id, feature, says):
    record = node(minimal, "1_3_1")
    for link in minimal["links"]:
        for end in ("source", "target"):
            link[end] = node_id if link[end] == "1_3_1" else link[end]
    record["node_id"], record["feature"] = node_id, feature
    with pytest.raises(FormatError, match=r"night\.json: nodes\[1\]") as caught:
        read(minimal)
    assert says in error_text(caught)


def test_pairing_in_node_ids_is_refused(read, minimal):
    """Raw ids that all unpair to their own layer are pairings: the index is not what they say."""
    names = {}
    for record in minimal["nodes"]:
        if record["feature_type"] == FEATURE:
            layer, _, position = record["node_id"].split("_")
            names[record["node_id"]] = f"{layer}_{record['feature']}_{position}"
            record["node_id"] = names[record["node_id"]]
    for link in minimal["links"]:
        link |= {end: names.get(link[end], link[end]) for end in ("source", "target")}
    with pytest.raises(FormatError, match="cannot be recovered"):
        read(minimal)


# 3. error nodes --------------------------------------------------------------------------------


def test_old_and_new_error_ids(read, minimal):
    old = read(minimal)
    text = json.dumps(minimal).replace('"0_0_1"', '"0_-1_1"').replace('"0_1_1"', '"1_-1_1"')
    new = read(json.loads(text))
    assert old.differences(new) == ["nodes"]
    assert old.keys == new.keys
    assert old.keys[2:4] == ("error/0/1", "error/1/1")


def test_written_error_ids_do_not_collide(read, minimal, again):
    """A traced graph gets the new ids; an imported one keeps those of its file."""
    graph = read(minimal)
    assert again(graph).nodes["source_id"].tolist()[2:4] == ["0_0_1", "0_1_1"]
    fresh = graph.replace(nodes=graph.nodes.drop(columns=["source_id", "source_js_id"]), source={})
    assert again(fresh).nodes["source_id"].tolist()[2:4] == ["0_-1_1", "1_-1_1"]


def collided(minimal):
    """The same file with its feature 5 of layer 0 renamed to 1: the id of layer 1's error."""
    record = node(minimal, "0_5_1")
    record |= {"node_id": "0_1_1", "feature": cantor(0, 1)}
    for link in minimal["links"]:
        link |= {e: "0_1_1" for e in ("source", "target") if link[e] == "0_5_1"}
    return minimal


def test_collision_is_resolved_by_order(read, minimal, again):
    """Both nodes feed the first logit; circuit-tracer lists the feature's link first."""
    expected = read(minimal).adjacency
    made = collided(minimal)
    # In the reference's order: by target, then by source, both in the order of the nodes.
    place = {"0_1_1": 0, "1_3_1": 1, "0_0_1": 2, "E_2_0": 4, "E_7_1": 5, "3_11_1": 6, "3_12_1": 7}
    keys = [(place[x["target"]], place[x["source"]]) for x in made["links"]]
    keys[7] = (6, 3)  # the error's link, last of the first logit's
    made["links"] = [
        x for _, x in sorted(zip(keys, made["links"], strict=True), key=lambda p: p[0])
    ]
    graph = read(made)
    assert graph.keys[0] == "feature/0/1/1"
    np.testing.assert_array_equal(graph.adjacency.toarray(), expected.toarray())
    ids = graph.nodes["source_id"].tolist()
    assert ids[0] == ids[3] == "0_1_1"
    back = again(graph)  # written, the ids no longer collide
    assert back.nodes["source_id"].is_unique
    np.testing.assert_array_equal(back.adjacency.toarray(), expected.toarray())


def test_collision_is_resolved_by_layer(read, minimal):
    """An error of layer 1 does not feed layer 1, so the source is the feature, in any order."""
    made = collided(minimal)
    made["links"] = [x for x in made["links"] if x["target"] != "3_11_1"][::-1]
    graph = read(made)
    assert graph.adjacency[1, 0] == 2.0
    assert graph.adjacency[:, [3]].nnz == 0


def test_collision_that_cannot_be_resolved_is_refused(read, minimal):
    made = collided(minimal)
    made["links"] = made["links"][::-1]
    with pytest.raises(
        FormatError, match=r'node id "0_1_1" is a feature\'s and an error'
    ) as caught:
        read(made)
    assert "{layer}_-1_{position}" in error_text(caught)


# 4. layers -------------------------------------------------------------------------------------


def test_logit_layer_in_real_files(real_graphs):
    for path in real_graphs:
        graph = read_graph(path)
        layers = set(graph.nodes.loc[graph.is_logit, "layer"])
        haiku = "haiku" in path.name
        assert graph.source["logit_layer"] == ("L" if haiku else "L+1")
        assert layers == {18 if haiku else 26}
        assert set(graph.nodes.loc[graph.is_embedding, "layer"]) == {-1}


def test_logit_layer_is_settled(read, minimal):
    assert read(minimal).nodes["layer"].iat[6] == 2
    text = json.dumps(minimal).replace('"3_1', '"2_1').replace('"layer": "3"', '"layer": "2"')
    graph = read(json.loads(text))
    assert graph.nodes["layer"].iat[6] == 2
    assert graph.source["logit_layer"] == "L"


def test_logit_layer_of_a_known_model(read, minimal):
    """Nodes end two layers below: only the model's depth tells that 26 is L, not L+1."""
    minimal["metadata"]["scan"] = "gemma-2-2b"
    minimal["metadata"]["info"] = {"transcoder_set": "owner/set"}
    text = json.dumps(minimal).replace('"3_1', '"26_1').replace('"layer": "3"', '"layer": "26"')
    assert read(json.loads(text)).nodes["layer"].iat[6] == 26
    text = json.dumps(minimal).replace('"3_1', '"27_1').replace('"layer": "3"', '"layer": "27"')
    assert read(json.loads(text)).nodes["layer"].iat[6] == 26


def test_logits_below_features_are_refused(read, minimal):
    text = json.dumps(minimal).replace('"3_1', '"1_1').replace('"layer": "3"', '"layer": "1"')
    with pytest.raises(FormatError, match="not above its deepest node"):
        read(json.loads(text))


# 5. pinned nodes and supernodes ----------------------------------------------------------------


def test_references_by_node_id_and_by_js_id(read, minimal, again):
    node(minimal, "1_3_1")["jsNodeId"] = "0_5-0"  # one jsNodeId, two nodes: both are meant
    for ids, by, rows in (
        (["0_5_1"], "node_id", (0,)),
        (["0_5-0"], "jsNodeId", (0, 1)),
        (["E_2_0", "0_5-0"], "mixed", (0, 1, 4)),
        ([], None, ()),
    ):
        minimal["qParams"] |= {"pinnedIds": ids, "supernodes": [["one", *ids], ["one", *ids]]}
        if not ids:
            minimal["qParams"]["supernodes"] = []
        graph = read(minimal)
        assert graph.pinned == rows
        assert graph.source["references"] == by
        assert [s.members for s in graph.supernodes] == ([rows, rows] if ids else [])
        assert graph.differences(again(graph)) == []


def test_real_references(real_graphs, tmp_path):
    path = next(path for path in real_graphs if "haiku" in path.name)
    content, graph = json.loads(path.read_text()), read_graph(path)
    assert graph.source["references"] == "jsNodeId"
    assert len(graph.pinned) == len(content["qParams"]["pinnedIds"])
    assert [s.name for s in graph.supernodes] == [g[0] for g in content["qParams"]["supernodes"]]
    assert graph.nodes["source_js_id"].iloc[list(graph.supernodes[0].members)].tolist() == sorted(
        content["qParams"]["supernodes"][0][1:],
        key=graph.nodes["source_js_id"].tolist().index,
    )
    write_graph(graph, tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert set(written["qParams"]["pinnedIds"]) == set(content["qParams"]["pinnedIds"])
    assert written["qParams"]["sg_pos"] == content["qParams"]["sg_pos"]


def test_unresolved_references_are_kept(read, minimal, tmp_path):
    minimal["qParams"] |= {
        "pinnedIds": ["0_5_1", "gone_1"],
        "supernodes": [["all here", "0_5_1"], ["some", "1_3_1", "gone_2"], ["none", "gone_3"]],
    }
    with pytest.warns(CircuitWarning, match="3 pinned or grouped ids name no node"):
        graph = read(minimal)
    assert graph.source["unresolved"] == {
        "pinnedIds": ["gone_1"],
        "supernodes": [["some", "gone_2"], ["none", "gone_3"]],
    }
    write_graph(graph, tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())["qParams"]
    assert written["pinnedIds"] == minimal["qParams"]["pinnedIds"]
    assert written["supernodes"] == minimal["qParams"]["supernodes"]
    with pytest.warns(CircuitWarning, match="name no node"):
        back = read_graph(tmp_path / "out.json")
    assert graph.differences(back) == []


def test_supernode_of_some_nodes_of_a_js_id(read, anthropic, again):
    """A group made by hand need not hold every node of a jsNodeId: then it is named by node_id."""
    graph = read(anthropic)
    nodes = graph.nodes.copy()
    nodes["source_js_id"] = nodes["source_js_id"].replace("3_77120_-1", "3_77120_-0")
    graph = graph.replace(nodes=nodes, supernodes=[Supernode("mine", (2,))], pinned=(2, 3))
    back = again(graph)
    assert back.supernodes == (Supernode("mine", (2,)),)
    assert back.pinned == (2, 3)


# 6 and 7. probabilities, missing errors, signs, zeros ------------------------------------------


def test_probabilities_are_not_rescaled(real_graphs):
    sums = [read_graph(path).logit_weights.sum() for path in real_graphs]
    assert min(sums) > 0.39
    assert max(sums) < 1


def test_error_nodes_may_be_missing(real_graphs):
    graph = read_graph(next(path for path in real_graphs if "node05" in path.name))
    assert not graph.is_error.any()


def test_signs_are_kept(real_graphs):
    for path in real_graphs:
        graph = read_graph(path)
        assert 0.2 < (graph.adjacency.data < 0).mean() < 0.5, path.name


def test_zero_weight_links_are_no_edges(real_graphs):
    path = next(path for path in real_graphs if "dallas_ea" in path.name)
    assert sum(x["weight"] == 0 for x in json.loads(path.read_text())["links"]) == 124
    assert read_graph(path).n_edges == 4564 - 124


# 8. the oracle in the files --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dallas_ea", "ngsa_ea"])
def test_completeness_held_in_node_threshold(real_graphs, name):
    graph = read_graph(next(path for path in real_graphs if name in path.name))
    stated = graph.source["metadata"]["node_threshold"]
    # The files' figure was computed in float32.
    assert scores(graph, "as_stored").completeness == pytest.approx(stated, abs=1e-6)
    assert "pruning" not in graph.settings  # it is no threshold


# 9. which transcoder ---------------------------------------------------------------------------


def test_transcoders_of_real_files(real_graphs):
    expected = {
        "gemma2-clt": ("mntss/clt-gemma-2-2b-2.5M", "info.transcoder_set", "gemma-2-2b"),
        "gemma2-plt": ("mntss/gemma-scope-transcoders", "scan", None),
        "haiku35-cl": ("jackl-circuits-runs-1-4-sofa-v3_0", "scan", None),
    }
    for path in real_graphs:
        graph = read_graph(path)
        found = (graph.transcoder_id, graph.source["transcoder_from"], graph.model_id)
        assert found == expected[path.name[:10]]


def test_transcoder_in_order_of_trust(read, minimal, again):
    metadata = minimal["metadata"]
    assert read(minimal).transcoder_id == "owner/set"
    metadata["feature_details"] = {"neuronpedia_source_set": "clt-hp"}
    assert read(minimal).transcoder_id == "owner/set/clt-hp"
    metadata["transcoder_list"] = ["owner/a", "owner/b"]
    listed = read(minimal)
    assert listed.source["transcoder_from"] == "transcoder_list"
    assert str(listed.transcoder_id).startswith("custom-")
    assert listed.transcoder_info == {"transcoders": ["owner/a", "owner/b"]}
    assert listed.differences(again(listed)) == []
    metadata["info"] = {"transcoder_set": "owner/named"}
    assert read(minimal).transcoder_id == "owner/named"
    mine = read(minimal, transcoder="owner/mine", model="mine-1b")
    assert (mine.transcoder_id, mine.model_id) == ("owner/mine", "mine-1b")
    assert mine.source["transcoder_from"] == "argument"
    assert mine.differences(again(mine)) == []


def test_scan_that_is_a_models_name_warns(read, minimal):
    minimal["metadata"]["scan"] = "gemma-2-2b"
    with pytest.warns(CircuitWarning, match=r"may be a model's name.*--transcoder"):
        graph = read(minimal)
    assert graph.transcoder_id == graph.model_id == "gemma-2-2b"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(minimal, transcoder="owner/set").model_id == "gemma-2-2b"


def test_file_without_a_transcoder_warns(read, minimal):
    del minimal["metadata"]["scan"]
    with pytest.warns(CircuitWarning, match="names no transcoder"):
        assert read(minimal).transcoder_id is None


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gemma-2-2b", True),
        ("google/gemma-2-2b", True),
        ("meta-llama/Llama-3.2-1B", True),
        ("Qwen/Qwen3-4B", True),
        ("gpt2", True),
        ("mntss/gemma-scope-transcoders", False),
        ("mntss/clt-gemma-2-2b-2.5M", False),
        ("gemma", True),
        ("gemma-plt", False),
        ("jackl-circuits-runs-1-4-sofa-v3_0", False),
        ("owner/set", False),
        ("optimal-run", False),
    ],
)
def test_names_of_models(name, expected):
    assert looks_like_model(name) is expected


# 10. writing -----------------------------------------------------------------------------------


def test_round_trip_of_real_files(real_graphs, tmp_path):
    for path in real_graphs:
        graph = read_graph(path)
        write_graph(graph, tmp_path / "one.json")
        back = read_graph(tmp_path / "one.json")
        assert graph.differences(back) == [], path.name
        assert graph.graph_id == back.graph_id
        write_graph(back, tmp_path / "two.json")
        assert (tmp_path / "one.json").read_bytes() == (tmp_path / "two.json").read_bytes()


def test_written_file_keeps_the_fields_of_its_source(real_graphs, tmp_path):
    """Field by field against the first file: what differs is what the reader settled, no more."""
    for path in real_graphs:
        before = json.loads(path.read_text())
        write_graph(read_graph(path), tmp_path / "out.json")
        after = json.loads((tmp_path / "out.json").read_text())
        for key, value in before["metadata"].items():
            assert after["metadata"][key] == value, (path.name, key)
        for was, now in zip(before["nodes"], after["nodes"], strict=True):
            for key in set(was) - {"influence"}:
                assert now[key] == was[key], (path.name, was["node_id"], key)


def test_written_influence_is_cumulative(real_graphs, tmp_path):
    """Whatever the source held; oracle: the dense float64 series, term by term."""
    for path in real_graphs:
        graph = read_graph(path)
        write_graph(graph, tmp_path / "out.json")
        nodes = json.loads((tmp_path / "out.json").read_text())["nodes"]
        A = np.abs(graph.adjacency.toarray())
        sums = A.sum(axis=1, keepdims=True)
        A = np.divide(A, sums, out=np.zeros_like(A), where=sums > 0)
        weights = graph.logit_weights
        term, truth = weights @ A, np.zeros(len(A))
        while term.any():
            truth += term
            term = term @ A
        order = np.argsort(-truth, kind="stable")
        shares = np.cumsum(truth[order]) / truth.sum()
        written = np.array([np.nan if x["influence"] is None else x["influence"] for x in nodes])
        assert np.isnan(written[graph.is_logit]).all()
        found = written[order][~graph.is_logit[order]]
        expected = shares[~graph.is_logit[order]]
        # Sums of the same float64 terms in another order.
        np.testing.assert_allclose(np.sort(found), np.sort(expected), atol=1e-12)
        assert influence_meaning(graph, written) == "cumulative"


def test_written_file_fits_the_published_schemas(real_graphs, golden, tmp_path):
    """Required fields and types of circuit-tracer 0.5's models and of Neuronpedia's JSON schema."""
    graphs = [read_graph(path) for path in real_graphs] + [golden("gpt2_clt_residmid")[0]]
    types = {
        "node_id": str, "feature": int, "layer": str, "ctx_idx": int, "feature_type": str,
        "token_prob": float, "is_target_logit": bool, "run_idx": int, "reverse_ctx_idx": int,
        "jsNodeId": str, "clerp": str,
    }  # fmt: skip
    for graph in graphs:
        write_graph(graph, tmp_path / "out.json")
        content = json.loads((tmp_path / "out.json").read_text())
        metadata, parameters = content["metadata"], content["qParams"]
        assert all(type(metadata[key]) is str for key in ("slug", "scan", "prompt"))
        assert all(type(metadata[key]) is list for key in ("prompt_tokens", "transcoder_list"))
        assert type(metadata.get("node_threshold", 0.8)) is float
        assert all(type(parameters[key]) is str for key in ("linkType", "clickedId", "sg_pos"))
        assert all(type(parameters[key]) is list for key in ("pinnedIds", "supernodes"))
        for record in content["nodes"]:
            assert {key: type(record[key]) for key in types} == types
            assert type(record["influence"]) in (float, type(None))
            assert type(record["activation"]) in (float, type(None))
        ids = [record["node_id"] for record in content["nodes"]]
        assert len(set(ids)) == len(ids)
        for link in content["links"]:
            assert set(link) == {"source", "target", "weight"}
            assert {link["source"], link["target"]} <= set(ids)
            assert type(link["weight"]) is float
        assert sum(record["is_target_logit"] for record in content["nodes"]) == 1


def test_what_json_does_not_hold(golden, again):
    """A traced graph comes back without what the format has no place for, and nothing wrong."""
    graph, _ = golden("llama_plt_mlp")
    nodes = graph.nodes.assign(bias=1.0)
    half = graph.adjacency * np.float32(0.5)
    graph = graph.replace(
        nodes=nodes, residual=half, attention=half, settings={"zero_first": 1}, parent_id="p",
        created_at="2026-03-01T12:00:00.250+00:00", model_info={"family": "llama"},
        supernodes=[Supernode("mine", (0, 1), author="me")], pinned=(3,), model_id="my-model",
    )  # fmt: skip
    back = again(graph)
    assert set(graph.differences(back)) == {
        "nodes", "adjacency", "model_info", "settings", "unpruned", "residual", "attention",
        "supernodes", "source", "parent_id", "graph_id",
    }  # fmt: skip
    assert graph.keys == back.keys
    np.testing.assert_array_equal(graph.adjacency.toarray(), back.adjacency.toarray())
    for column in ("kind", "layer", "position", "index", "activation", "probability"):
        pd.testing.assert_series_equal(graph.nodes[column], back.nodes[column])
    assert back.supernodes == (Supernode("mine", (0, 1)),)
    assert back.pinned == (3,)
    assert back.created_at == graph.created_at
    third = again(back)
    assert back.differences(third) == []


def test_thresholds_of_pruned_graphs(golden, again, tmp_path):
    small = prune(golden("gpt2_clt_residmid")[0], 0.6, 0.7)
    write_graph(small, tmp_path / "out.json")
    metadata = json.loads((tmp_path / "out.json").read_text())["metadata"]
    assert metadata["node_threshold"] == 0.6
    assert metadata["pruning_settings"] == {"node_threshold": 0.6, "edge_threshold": 0.7}
    back = again(small)
    assert back.settings["pruning"] == {"node_threshold": 0.6, "edge_threshold": 0.7}
    assert back.differences(again(back)) == []


def test_pruning_an_import_renews_its_thresholds(read, minimal, tmp_path):
    minimal["metadata"]["pruning_settings"] = {"node_threshold": 0.9, "edge_threshold": 0.99}
    write_graph(prune(read(minimal), 0.5, 0.6), tmp_path / "out.json")
    metadata = json.loads((tmp_path / "out.json").read_text())["metadata"]
    assert metadata["node_threshold"] == 0.5
    assert metadata["pruning_settings"] == {"node_threshold": 0.5, "edge_threshold": 0.6}


def test_custom_targets(again, tmp_path):
    """Targets that are no token get numbers past the vocabulary, as in circuit-tracer."""
    graph = AttributionGraph(
        pd.DataFrame(
            {
                "kind": ["embedding", "feature", "logit", "logit"],
                "layer": [-1, 0, 1, 1],
                "position": 0,
                "index": [5, 7, -1, -1],
                "probability": [math.nan, math.nan, 1.0, 0.5],
                "label": [None, None, "a − b", "c − d"],
            }
        ),
        csr_array(([1.0, 2.0, 3.0], ([1, 2, 3], [0, 1, 1])), shape=(4, 4)),
        tokens=["x"],
        token_ids=[5],
        transcoder_id="owner/set",
        model_info={"vocab_size": 100},
    )
    write_graph(graph, tmp_path / "out.json")
    nodes = json.loads((tmp_path / "out.json").read_text())["nodes"]
    assert [record["feature"] for record in nodes[2:]] == [100, 101]
    back = again(graph)
    assert back.nodes["index"].tolist() == [5, 7, -1, -1]
    assert back.nodes["label"].tolist()[2:] == ["a − b", "c − d"]
    assert back.keys == graph.keys


def test_changed_transcoder_is_written(read, minimal, tmp_path):
    """Other tools must not take the features for those of the old set."""
    graph = read(minimal).replace(transcoder_id="owner/new")
    write_graph(graph, tmp_path / "out.json")
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["metadata"]["info"]["transcoder_set"] == "owner/new"
    del content["metadata"]["circuitbase"]
    assert read(content).transcoder_id == "owner/new"


def test_detection_stands_without_our_own_record(real_graphs, read, tmp_path):
    """What circuitbase writes is read alike by the rules for other people's files."""
    for path in real_graphs:
        graph = read_graph(path)
        write_graph(graph, tmp_path / "out.json")
        content = json.loads((tmp_path / "out.json").read_text())
        del content["metadata"]["circuitbase"]
        back = read(content)
        assert set(graph.differences(back)) <= {"source"}, path.name
        assert back.source["influence"] == "cumulative"


def test_links_to_unlisted_nodes(read, minimal):
    minimal["links"].insert(2, {"source": "0_5_1", "target": "0_12_3", "weight": 1.0})
    with pytest.raises(
        FormatError, match=r'link 2 ends at node "0_12_3", which the file'
    ) as caught:
        read(minimal)
    assert "--drop-dangling" in error_text(caught)
    with pytest.warns(CircuitWarning, match="dropped 1 of 11 links"):
        graph = read(minimal, drop_dangling=True)
    assert graph.n_edges == 10


def test_created_at(read, minimal):
    minimal["metadata"]["info"] = {"create_time_ms": 1_750_000_000_123}
    assert read(minimal).created_at == "2025-06-15T15:06:40.123+00:00"
    minimal["metadata"]["info"] = {"create_time_ms": "yesterday"}
    assert read(minimal).created_at is None


def test_labels(read, minimal, again):
    graph = read(minimal)
    assert graph.nodes["label"].tolist()[:2] == ["animals", None]
    assert again(graph).nodes["label"].tolist() == graph.nodes["label"].tolist()


def test_byte_order_mark_and_other_name(data, tmp_path):
    path = Path(tmp_path / "graph.txt")
    path.write_bytes(b"\xef\xbb\xbf  \n" + (data / "files/minimal.json").read_bytes())
    assert read_graph(path).n_nodes == 8
