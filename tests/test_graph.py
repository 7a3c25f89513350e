"""The graph object: its rules, what it shares and freezes, its identity, how it shows itself."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_array, csr_array

from tracer import AttributionGraph, Scores, Supernode
from tracer.errors import CircuitError, CircuitWarning, GraphError, nearest
from tracer.graph import NODE_COLUMNS, graph_identity

ERROR, EMBEDDING, FIRST, SECOND, LOGIT = range(5)


def table(**columns) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "kind": ["error", "embedding", "feature", "feature", "logit"],
            "layer": [0, -1, 0, 1, 2],
            "position": [0, 0, 0, 1, 1],
            "index": [-1, 5, 3, 4, 7],
            "probability": [None, None, None, None, 0.5],
            **columns,
        }
    )


def weights(**changes) -> np.ndarray:
    """Error and embedding feed the first feature, it the second, the second the logit."""
    matrix = np.zeros((5, 5))
    matrix[FIRST, [ERROR, EMBEDDING]] = [-1, 2]
    matrix[SECOND, FIRST] = 0.5
    matrix[LOGIT, SECOND] = 3
    return matrix


def made(matrix=None, nodes=None, **fields) -> AttributionGraph:
    matrix = weights() if matrix is None else matrix
    return AttributionGraph(
        table() if nodes is None else nodes, csr_array(matrix), tokens=("a", "b"), **fields
    )


def with_edge(target, source, weight=1.0) -> np.ndarray:
    matrix = weights()
    matrix[target, source] = weight
    return matrix


# What it holds ---------------------------------------------------------------------------------


def test_table_is_brought_into_its_one_form():
    graph = made(nodes=table(layer=[0.0, -1.0, 0.0, 1.0, 2.0], influence_full=np.nan))
    always = [name for name, column in NODE_COLUMNS.items() if column.always]
    assert list(graph.nodes) == always  # a column that says nothing is dropped
    assert graph.nodes["layer"].dtype == np.int64
    assert graph.nodes["activation"].dtype == np.float64
    assert graph.nodes["token"].tolist() == [None] * 5
    assert graph.bias is None
    with_bias = made(nodes=table(bias=[0, 0, 0.1, 0.2, 0.3]))
    assert with_bias.bias.tolist() == [0, 0, 0.1, 0.2, 0.3]


def test_masks_weights_and_counts():
    graph = made()
    assert graph.is_error.tolist() == [True, False, False, False, False]
    assert graph.is_embedding.tolist() == [False, True, False, False, False]
    assert graph.is_feature.tolist() == [False, False, True, True, False]
    assert graph.is_logit.tolist() == [False, False, False, False, True]
    assert graph.logit_weights.tolist() == [0, 0, 0, 0, 0.5]
    assert (graph.n_nodes, graph.n_edges) == (5, 4)


def test_keys_and_ids():
    graph = made(transcoder_id="owner/name@1")
    assert graph.keys == ("error/0/0", "embedding/0", "feature/0/3/0", "feature/1/4/1", "logit/7")
    assert graph.node_ids[2] == f"{graph.graph_id}/feature/0/3/0"
    assert graph.feature_ids == (None, None, "owner/name@1/0/3", "owner/name@1/1/4", None)


def test_custom_targets_have_keys_of_their_own():
    nodes = table(kind=["logit", "embedding", "feature", "feature", "logit"])
    nodes = nodes.assign(index=[-1, 5, 3, 4, -1], probability=[0.5, None, None, None, 0.5])
    matrix = weights()
    matrix[FIRST, ERROR] = 0
    graph = made(matrix, nodes)
    assert (graph.keys[0], graph.keys[4]) == ("logit/target-0", "logit/target-1")


def test_row_is_found_by_key_id_and_source_id():
    graph = made(
        nodes=table(
            source_id=["0_0_0", "E_5_0", "0_3_0", "1_4_1", "2_7_1"],
            source_js_id=["0_0", "E_5", "twice", "twice", "2_7_1"],
        )
    )
    assert graph.row("feature/1/4/1") == SECOND
    assert graph.row(graph.node_ids[SECOND]) == SECOND
    assert graph.row("1_4_1") == SECOND
    assert graph.row("2_7_1") == LOGIT  # both of its ids are the same
    with pytest.raises(GraphError, match=f"{graph.graph_id} has no node 'feature/1/4/2'"):
        graph.row("feature/1/4/2")
    with pytest.raises(GraphError, match="has 2 nodes 'twice'"):
        graph.row("twice")


# What it shares, and what nobody can change ----------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_canonical_matrix_is_shared(dtype):
    matrix = csr_array(weights().astype(dtype))
    graph = AttributionGraph(table(), matrix)
    for name in ("data", "indices", "indptr"):
        assert np.shares_memory(getattr(graph.adjacency, name), getattr(matrix, name))
    assert graph.adjacency.dtype == dtype
    # A copy of the graph shares it too.
    assert np.shares_memory(graph.replace(slug="x").adjacency.data, matrix.data)


def test_other_matrices_are_brought_into_canonical_form():
    rows, columns = [LOGIT, LOGIT, FIRST, SECOND], [SECOND, SECOND, EMBEDDING, FIRST]
    twice = csr_array(([1.0, 2.0, 4.0, 0.0], (rows, columns)), shape=(5, 5))
    unsorted = csr_array(
        (np.array([2, -1, 3]), np.array([1, 0, 3]), np.array([0, 0, 0, 2, 2, 3])), shape=(5, 5)
    )
    for matrix in (twice, unsorted, csc_array(weights()), csr_array(weights().astype(int))):
        before = matrix.toarray()
        graph = AttributionGraph(table(), matrix)
        assert graph.adjacency.has_canonical_format
        assert graph.adjacency.data.all()
        assert graph.adjacency.dtype == np.float64
        np.testing.assert_array_equal(graph.adjacency.toarray(), before)
        np.testing.assert_array_equal(matrix.toarray(), before)
    assert AttributionGraph(table(), twice).n_edges == 2  # summed, and without the zero


def test_matrices_are_frozen():
    part = csr_array(weights())
    nothing = csr_array((5, 5))
    graph = made(residual=part, attention=nothing)
    for matrix in (graph.adjacency, graph.residual, graph.attention):
        for name in ("data", "indices", "indptr"):
            assert not getattr(matrix, name).flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        graph.adjacency.data[0] = 1.0
    with pytest.raises(ValueError, match="read-only"):
        graph.adjacency *= 2


def test_callers_table_is_not_touched():
    nodes = table()
    before = nodes.copy()
    graph = made(nodes=nodes)
    nodes.loc[0, "layer"] = 9
    assert graph.nodes["layer"][0] == 0
    pd.testing.assert_frame_equal(before.drop(index=0), nodes.drop(index=0))


# Rules of the definition, each named -----------------------------------------------------------


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (with_edge(FIRST, EMBEDDING, np.nan), r"not finite, from node 1 to node 2"),
        (with_edge(SECOND, EMBEDDING, np.inf), r"not finite, from node 1 to node 3"),
        (with_edge(ERROR, EMBEDDING), r"node error/0/0 has 1 inputs"),
        (with_edge(EMBEDDING, FIRST), r"node embedding/0 has 1 inputs"),
        (weights().T, r"has 1 inputs.*Rows are targets"),
        (with_edge(SECOND, LOGIT), r"logit node logit/7 feeds feature/1/4/1"),
        (with_edge(FIRST, FIRST), r"node feature/0/3/0 feeds itself"),
        (with_edge(FIRST, SECOND), r"2 nodes form a cycle: feature/0/3/0, feature/1/4/1"),
        (np.zeros((4, 4)), r"adjacency has shape \(4, 4\), the node table has 5 rows"),
        (np.zeros((5, 4)), r"adjacency has shape \(5, 4\)"),
    ],
)
def test_edges_that_break_a_rule(matrix, message):
    with pytest.raises(GraphError, match=message):
        made(matrix)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (table().drop(columns="layer"), "lacks column 'layer'"),
        (table(colour="red"), "unknown columns colour"),
        (table(kind=["error", "embedding", "feature", "neuron", "logit"]), "kind 'neuron'"),
        (table(kind=["error", "embedding", "feature", None, "logit"]), "kind None"),
        (table(layer=[0, 0, 0, 1, 2]), r"node 1 \(embedding\) has layer 0"),
        (table(layer=[0, -1, -1, 1, 2]), r"node 2 \(feature\) has layer -1"),
        (table(layer=[0, -1, 0, 1, -1]), r"node 4 \(logit\) has layer -1"),
        (table(position=[0, 0, 2, 1, 1]), r"node 2 \(feature\) has position 2"),
        (table(position=[-1, 0, 0, 1, 1]), r"node 0 \(error\) has position -1"),
        (table(index=[-1, 5, 3, -1, 7]), r"node 3 \(feature\) has index -1"),
        (table(layer=[0, -1, 0.5, 1, 2]), "'layer' does not hold integer values"),
        (table(layer=[0, -1, None, 1, 2]), "'layer' does not hold integer values"),
        (table(index=[-1, 5, "x", 4, 7]), "'index' does not hold integer values"),
        (table(activation=["x"] * 5), "'activation' does not hold real values"),
        (table(activation=[np.nan, np.nan, np.inf, 1, np.nan]), "node 2 has an infinite activ"),
        (table(probability=None), "logit node 4 has probability nan"),
        (table(probability=[None] * 4 + [1.5]), "logit node 4 has probability 1.5"),
        (table(probability=[None] * 4 + [-0.5]), "logit node 4 has probability -0.5"),
        (table(probability=[None, None, 0.5, None, 0.5]), r"node 2 \(feature\) has a prob"),
        (table(layer=[0, -1, 0, 0, 2], position=[0, 0, 0, 0, 1], index=[-1, 5, 3, 3, 7]),
         "node 3 is feature/0/3/0 a second time"),
    ],
)  # fmt: skip
def test_nodes_that_break_a_rule(nodes, message):
    with pytest.raises(GraphError, match=message):
        made(nodes=nodes)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"token_ids": (1,)}, "1 token ids but 2 tokens"),
        ({"residual": weights()}, "parts come together"),
        ({"attention": weights()}, "parts come together"),
        ({"residual": weights(), "attention": weights()}, "differs from adjacency by"),
        ({"residual": weights(), "attention": np.zeros((4, 4))}, r"attention has shape \(4, 4\)"),
        ({"supernodes": [Supernode("far", (1, 5))]}, "supernode 'far' names node 5"),
        ({"pinned": (-1,)}, "pinned names node -1"),
        ({"graph_id": "ABC"}, "graph_id 'ABC' is not 16 lowercase hex digits"),
    ],
)
def test_fields_that_break_a_rule(fields, message):
    with pytest.raises(GraphError, match=message):
        made(**fields)


def test_longer_cycle_is_named():
    nodes = table(kind=["feature", "embedding", "feature", "feature", "logit"])
    nodes = nodes.assign(index=[8, 5, 3, 4, 7])
    matrix = weights()
    matrix[0, SECOND] = 1
    with pytest.raises(GraphError, match="3 nodes form a cycle: feature/0/8/0, feature/0/3/0"):
        made(matrix, nodes)


def test_parts_in_float32_may_differ_by_rounding():
    whole = weights().astype(np.float32)
    residual = (whole * np.float32(0.3)).astype(np.float32)
    graph = made(whole, residual=csr_array(residual), attention=csr_array(whole - residual))
    assert graph.residual is not None


def test_errors_say_what_and_what_next():
    with pytest.raises(CircuitError) as caught:
        made(with_edge(FIRST, FIRST))
    assert caught.value.what == "node feature/0/3/0 feeds itself"
    assert str(caught.value) == f"{caught.value.what}. {caught.value.remedy}."
    assert issubclass(CircuitWarning, UserWarning)
    assert nearest("anything", []) == ""


# Comparison and identity -----------------------------------------------------------------------


def test_equality_is_by_content():
    graph = made()
    assert graph == made()
    assert hash(graph) == hash(made())
    assert graph != made(slug="other")
    assert graph.differences(made(slug="other", prompt="p")) == ["prompt", "slug"]
    assert graph.differences(made(weights() * 2)) == ["adjacency", "graph_id"]
    assert graph.differences(made(weights().astype(np.float32))) == ["adjacency"]
    assert graph.differences(made(nodes=table(label="x"))) == ["nodes"]
    parts = made(residual=weights(), attention=np.zeros((5, 5)))
    assert graph.differences(parts) == ["residual", "attention"]
    assert graph != "a graph"


def test_scores_are_compared_with_nan_equal_to_nan():
    def scored(length):
        return made(scores={"full": Scores("full", 0.5, 0.5, length, 0.0)})

    assert scored(float("nan")) == scored(float("nan"))
    assert scored(float("nan")).differences(scored(2.0)) == ["scores"]


def test_digest_and_id_follow_from_nodes_and_edges():
    graph = made()
    assert graph.digest() == made(slug="other").digest()
    assert graph.graph_id == made(slug="other").graph_id
    assert graph.digest() == made(weights().astype(np.float32)).digest()
    for other in (
        made(weights() * 2),
        made(nodes=table(index=[-1, 5, 3, 5, 7])),
        made(nodes=table(activation=[np.nan, np.nan, 1.0, 2.0, np.nan])),
        made(nodes=table(probability=[None] * 4 + [0.25])),
    ):
        assert other.digest() != graph.digest()
        assert other.graph_id != graph.graph_id
    # One weight at another edge: the same values in the same order of rows.
    moved = weights()
    moved[SECOND, [FIRST, EMBEDDING]] = moved[SECOND, [EMBEDDING, FIRST]]
    assert made(moved).digest() != graph.digest()


def test_id_follows_from_model_transcoder_and_settings():
    ids = {
        made(**fields).graph_id
        for fields in (
            {},
            {"model_id": "m"},
            {"transcoder_id": "m"},
            {"settings": {"zero_first": 0}},
            {"token_ids": (1, 2)},
            {"parent_id": "0" * 16},
        )
    }
    assert len(ids) == 6
    assert made(graph_id="0123456789abcdef").graph_id == "0123456789abcdef"
    assert made().replace(slug="x", graph_id=None).graph_id == made().graph_id


def test_graph_identity_is_stable():
    """Stores hold these ids: a change here is a change of the schema."""
    arguments = {
        "model_id": "m",
        "transcoder_id": "t",
        "tokens": [1, 2],
        "targets": [7],
        "settings": {"b": 1, "a": 2},
    }
    found = graph_identity(**arguments)
    # printf '["m","t",[1,2],[7],{"a":2,"b":1},null]' | sha256sum
    assert found == "911f3813495fbf2f"
    assert found == graph_identity(**{**arguments, "settings": {"a": 2, "b": 1}})
    assert found != graph_identity(**arguments, content="x")


def test_replace_keeps_the_rest():
    graph = made(slug="a", pinned=(1,), supernodes=[Supernode("s", (3, 2, 3))])
    other = graph.replace(slug="b")
    assert (other.slug, other.pinned, other.graph_id) == ("b", (1,), graph.graph_id)
    assert other.supernodes == (Supernode("s", (2, 3)),)


# Showing itself --------------------------------------------------------------------------------


def test_text_form_counts():
    graph = made(slug="a'b")
    assert repr(graph) == (
        f'<AttributionGraph {graph.graph_id} "a\'b": '
        "5 nodes (2 feature, 1 error, 1 embedding, 1 logit), 4 edges>"
    )


def test_notebook_form_escapes_what_others_wrote():
    hostile = "<script>alert(1)</script>"
    graph = made(
        nodes=table(token=[None, None, None, None, hostile]),
        prompt=hostile,
        slug=hostile,
        model_id=hostile,
        transcoder_id=hostile,
    )
    shown = graph._repr_html_()
    assert "<script" not in shown
    assert shown.count("&lt;script&gt;") == 5
    assert "0.500" in shown


# Importing -------------------------------------------------------------------------------------

IMPORT = """
import sys
import {packages}
heavy = {{"torch", "transformers", "networkx", "matplotlib", "numpy", "pandas", "scipy"}}
print(",".join(heavy & set(sys.modules)))
"""


def imported(packages: str, tmp_path) -> set[str]:
    """Which heavy packages a fresh interpreter has loaded after an import.

    A torch that is not installed cannot be imported: one that does nothing lies in the way.
    """
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "transformers.py").write_text("")
    result = subprocess.run(
        [sys.executable, "-c", IMPORT.format(packages=packages)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=True,
    )
    return set(filter(None, result.stdout.strip().split(",")))


def test_import_loads_no_torch(tmp_path):
    assert imported("torch", tmp_path) == {"torch"}  # the test would notice
    found = imported("tracer, graphstore, queries", tmp_path)
    assert not found & {"torch", "transformers"}


def test_import_of_the_tracer_loads_what_it_needs_only(tmp_path):
    files = "tracer.graph, tracer.influence, tracer.pruning, tracer.scores, tracer.convert"
    assert imported(files, tmp_path) == {"numpy", "pandas", "scipy"}
    assert imported("tracer", tmp_path) == set()


def test_public_names_are_functions_whatever_was_imported_first():
    """``tracer.influence`` is a function and a file: the function must win in any order."""
    program = (
        "import tracer.influence, tracer.scores, tracer, importlib\n"
        "from tracer.influence import Flow\n"
        "from tracer import influence, scores\n"
        "assert callable(tracer.influence) and callable(tracer.scores)\n"
        "assert influence is tracer.influence and scores is tracer.scores\n"
        "assert importlib.import_module('tracer.scores').scores is scores\n"
        "assert all(getattr(tracer, name) is not None for name in tracer.__all__)\n"
        "assert set(tracer.__all__) <= set(dir(tracer))\n"
        "assert not hasattr(tracer, 'nothing')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
