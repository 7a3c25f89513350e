"""Conversions to NetworkX and pandas, and back without loss."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

import tracer
from tracer import AttributionGraph, Scores, Supernode
from tracer.errors import GraphError
from tracer.graph import NODE_COLUMNS


@pytest.fixture(params=[np.float64, np.float32])
def full(request):
    """Graph in which every field and every column holds something."""
    nodes = pd.DataFrame(
        {
            "kind": ["logit", "feature", "feature", "error", "embedding", "logit"],
            "layer": [2, 0, 1, 0, -1, 2],
            "position": [1, 0, 1, 0, 0, 1],
            "index": [9, 3, 4, -1, 5, -1],
            "token": [" Austin", "a", "b", "a", "a", None],
            "activation": [np.nan, 1.5, 0.1, np.nan, np.nan, np.nan],
            "probability": [0.3, np.nan, np.nan, np.nan, np.nan, 0.0],
            "label": ["say Austin", None, "two", None, None, "difference"],
            "source_id": ["27_9_1", "0_3_0", "1_4_1", "0_0_0", "E_5_0", "x"],
            "source_js_id": ["L_9", "0_3", "1_4", "0_0", "E_5", None],
            "influence_full": [0.0, 0.3, 0.2, 0.1, 0.4, 0.0],
            "error_fraction_full": [0.0, 0.1, 0.2, 0.0, 0.0, np.nan],
            "input_full": [1.0, 2.0, 3.0, 0.0, 0.0, 0.0],
            "bias": [0.5, 0.25, np.nan, 0.0, 0.0, 0.0],
            "bias_positions": [0.5, 0.0, 0.0, 0.0, 0.0, 0.0],
            "bias_parameters": [0.0, 0.25, 0.0, 0.0, 0.0, 0.0],
            "bias_zeroed": [0.0, 0.0, 0.0, 0.0, 0.0, 1.0],
        }
    )
    assert set(nodes) == set(NODE_COLUMNS)
    residual = np.zeros((6, 6), request.param)
    residual[0, [1, 2]] = [0.1, -0.75]
    residual[2, [1, 3]] = [0.3, 2.0]
    attention = np.zeros((6, 6), request.param)
    attention[0, [2, 4]] = [0.25, 1.5]
    attention[1, 4] = -1 / 3
    return AttributionGraph(
        nodes,
        csr_array(residual + attention),
        prompt="a b",
        tokens=("a", "b"),
        token_ids=(5, 6),
        model_id="gemma",
        transcoder_id="owner/name@1",
        model_info={"n_layers": 2},
        transcoder_info={"kind": "clt"},
        slug="austin",
        settings={"zero_first": 1},
        scores={"full": Scores("full", 0.5, 0.4, float("nan"), 0.0)},
        unpruned=False,
        residual=csr_array(residual),
        attention=csr_array(attention),
        supernodes=[Supernode("two", (1, 2), "me"), Supernode("say", (0,))],
        pinned=(0, 3),
        source={"format": "made", "metadata": {"a": [1, None]}},
        created_at="2026-01-01T00:00:00Z",
        parent_id="0123456789abcdef",
    )


# NetworkX --------------------------------------------------------------------------------------


def test_networkx_round_trip_loses_nothing(full):
    back = tracer.from_networkx(tracer.to_networkx(full))
    assert back.differences(full) == []
    assert back.adjacency.dtype == full.adjacency.dtype


def test_networkx_round_trip_of_golden_files(golden_pair):
    graph, _ = golden_pair
    small = tracer.prune(graph)
    assert tracer.from_networkx(small.to_networkx()).differences(small) == []


def test_networkx_edges_run_from_source_to_target(full):
    network = full.to_networkx()
    assert isinstance(network, nx.DiGraph)
    assert tuple(network) == full.keys
    assert network.number_of_edges() == full.n_edges
    for t, s in zip(*full.adjacency.nonzero(), strict=True):
        found = network.edges[full.keys[s], full.keys[t]]
        assert found["weight"] == full.adjacency[t, s]
        assert found["residual"] == full.residual[t, s]
        assert found["attention"] == full.attention[t, s]
        assert isinstance(found["weight"], float)
    assert set(network.successors("embedding/0")) == {"feature/0/3/0", "logit/9"}


def test_networkx_nodes_hold_what_is_known(full):
    nodes = full.to_networkx().nodes
    assert nodes["feature/1/4/1"]["label"] == "two"
    assert "label" not in nodes["error/0/0"]
    assert "activation" not in nodes["logit/9"]
    assert all(isinstance(values["layer"], int) for values in nodes.values())


def test_part_of_a_network_is_a_graph_of_its_own(full):
    network = full.to_networkx()
    network.remove_node("feature/1/4/1")
    part = tracer.from_networkx(network)
    assert part.n_nodes == 5
    assert part.graph_id != full.graph_id == part.parent_id
    assert part.scores == {}
    assert part.supernodes == (Supernode("two", (1,), "me"), Supernode("say", (0,)))
    assert part.pinned == (0, 2)  # the error moved up
    network.remove_node("feature/0/3/0")
    assert tracer.from_networkx(network).supernodes == (Supernode("say", (0,)),)


def test_unpruned_network_that_was_changed_is_not_unpruned(full):
    network = full.replace(unpruned=True).to_networkx()
    assert tracer.from_networkx(network).unpruned
    network.remove_edge("embedding/0", "logit/9")
    assert not tracer.from_networkx(network).unpruned
    assert tracer.from_networkx(network, unpruned=True).unpruned


def test_foreign_network_becomes_a_graph():
    network = nx.DiGraph(name="mine")
    network.add_node(3, kind="embedding", layer=-1, position=0, index=5)
    network.add_node("x", kind="logit", layer=1, position=0, index=7, probability=0.5)
    network.add_edge(3, "x", weight=2)
    graph = tracer.from_networkx(network, prompt="a", tokens=("a",))
    assert graph.keys == ("embedding/0", "logit/7")
    assert graph.adjacency.toarray().tolist() == [[0, 0], [2, 0]]
    assert (graph.prompt, graph.parent_id) == ("a", None)
    assert tracer.from_networkx(network, graph_id="f" * 16).graph_id == "f" * 16


def test_networks_that_are_no_attribution_graph_are_refused(full):
    network = full.to_networkx()
    with pytest.raises(GraphError, match=r"network is a Graph. Give a networkx\.DiGraph"):
        tracer.from_networkx(network.to_undirected())
    with pytest.raises(GraphError, match="network is a MultiDiGraph"):
        tracer.from_networkx(nx.MultiDiGraph(network))
    del network.edges["embedding/0", "logit/9"]["weight"]
    with pytest.raises(GraphError, match=r"edge embedding/0 → logit/9 has no weight"):
        tracer.from_networkx(network)
    with pytest.raises(GraphError, match="lacks column 'kind'"):
        tracer.from_networkx(nx.DiGraph([(1, 2, {"weight": 1.0})]))


# pandas ----------------------------------------------------------------------------------------


def test_pandas_round_trip_loses_nothing(full):
    fields = {
        name: getattr(full, name)
        for name in (
            *("prompt", "tokens", "token_ids", "model_id", "transcoder_id", "model_info"),
            *("transcoder_info", "slug", "settings", "scores", "supernodes", "pinned", "source"),
            *("created_at", "parent_id"),
        )
    }
    back = tracer.from_pandas(full.nodes, full.to_pandas(), **fields)
    assert back.differences(full) == []  # the id too: it follows from the rest


def test_pandas_edge_list_runs_from_source_to_target(full):
    edges = tracer.to_pandas(full)
    assert list(edges) == ["source", "target", "weight", "residual", "attention"]
    assert edges["weight"].dtype == full.adjacency.dtype
    found = {(e.source, e.target): e.weight for e in edges.itertuples()}
    assert found == {
        (full.keys[s], full.keys[t]): full.adjacency[t, s]
        for t, s in zip(*full.adjacency.nonzero(), strict=True)
    }
    assert ("embedding/0", "logit/9") in found
    row = edges[(edges["source"] == "feature/1/4/1") & (edges["target"] == "logit/9")]
    assert row[["weight", "residual", "attention"]].to_numpy().tolist() == [[-0.5, -0.75, 0.25]]
    bare = full.replace(residual=None, attention=None)
    assert list(bare.to_pandas()) == ["source", "target", "weight"]


def test_pandas_edges_in_any_order(full):
    edges = full.to_pandas().sample(frac=1, random_state=1)
    back = tracer.from_pandas(full.nodes, edges)
    assert (back.adjacency != full.adjacency).nnz == 0
    assert (back.attention != full.attention).nnz == 0


def test_parts_that_cancel_are_no_edge(full):
    """They are not held; the parts of the edges beside them are in their places."""
    residual, attention = (part.toarray() for part in (full.residual, full.attention))
    residual[1, 3], attention[1, 3] = 1, -1
    residual[0, 3], attention[0, 3] = 2, -2
    graph = full.replace(residual=csr_array(residual), attention=csr_array(attention))
    assert graph.residual.nnz == full.residual.nnz + 2
    assert tracer.to_pandas(graph).equals(tracer.to_pandas(full))
    assert tracer.from_networkx(graph.to_networkx()).differences(full) == []


def test_pandas_without_edges(full):
    bare = full.replace(adjacency=csr_array((6, 6)), residual=None, attention=None)
    edges = bare.to_pandas()
    assert edges.empty
    assert tracer.from_pandas(full.nodes, edges).n_edges == 0


def test_edge_lists_that_do_not_fit_are_refused(full):
    edges = full.to_pandas()
    with pytest.raises(GraphError, match="edge list lacks column 'target'"):
        tracer.from_pandas(full.nodes, edges.drop(columns="target"))
    wrong = edges.assign(source=edges["source"].replace("feature/1/4/1", "feature/1/40/1"))
    with pytest.raises(
        GraphError, match=r'source \'feature/1/40/1\', which is no node. .*"feature/1/4/1"'
    ):
        tracer.from_pandas(full.nodes, wrong)
    twice = pd.concat([edges, edges[2:3]])
    name = f"edge {edges['source'][2]} → {edges['target'][2]} is listed twice"
    with pytest.raises(GraphError, match=name):
        tracer.from_pandas(full.nodes, twice)
    backwards = edges.rename(columns={"source": "target", "target": "source"})
    with pytest.raises(GraphError, match="Rows are targets"):
        tracer.from_pandas(full.nodes, backwards)
    with pytest.raises(GraphError, match="not finite"):
        tracer.from_pandas(full.nodes, edges.assign(weight=np.nan))


def test_numbers_of_links_and_weights_survive_for_golden_files(golden_pair):
    graph, arrays = golden_pair
    edges = graph.to_pandas()
    row = {key: i for i, key in enumerate(graph.keys)}
    again = np.zeros_like(arrays["adjacency"])
    again[edges["target"].map(row), edges["source"].map(row)] = edges["weight"]
    np.testing.assert_array_equal(again, arrays["adjacency"])
