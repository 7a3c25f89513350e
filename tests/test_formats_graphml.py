"""GraphML: equal after a round trip, useful to others, safe to open."""

from __future__ import annotations

import re

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

from graphstore.files import Limits, read_graph, write_graph
from tracer import AttributionGraph, Scores, Supernode
from tracer.errors import FormatError
from tracer.pruning import prune

HEAD = """<?xml version="1.0" encoding="utf-8"?>
<graphml xmlns="http://graphml.graphdrawing.org/xmlns">
<key id="kind" for="node" attr.name="kind" attr.type="string"/>
<key id="layer" for="node" attr.name="layer" attr.type="int"/>
<key id="position" for="node" attr.name="position" attr.type="int"/>
<key id="index" for="node" attr.name="index" attr.type="int"/>
<key id="probability" for="node" attr.name="probability" attr.type="double"/>
<key id="weight" for="edge" attr.name="weight" attr.type="double"/>
"""
A = """<node id="a"><data key="kind">embedding</data><data key="layer">-1</data>
<data key="position">0</data><data key="index">5</data></node>
"""
B = """<node id="b"><data key="kind">logit</data><data key="layer">1</data>
<data key="position">0</data><data key="index">7</data><data key="probability">0.5</data></node>
"""
EDGE = '<edge source="a" target="b"><data key="weight">2.5</data></edge>\n'
FOREIGN = f'{HEAD}<graph edgedefault="directed">\n{A}{B}{EDGE}</graph></graphml>'


@pytest.fixture
def read(tmp_path):
    """Read a text as a GraphML file."""

    def read(text, **options):
        path = tmp_path / "one.graphml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_graph(path, **options)

    return read


def test_round_trip_of_real_files(real_graphs, tmp_path):
    for path in real_graphs:
        graph = read_graph(path)
        write_graph(graph, tmp_path / "one.graphml")
        assert graph.differences(read_graph(tmp_path / "one.graphml")) == [], path.name


def test_round_trip_of_golden_graphs(golden_pair, tmp_path):
    whole, _ = golden_pair
    for graph in (whole, prune(whole)):
        write_graph(graph, tmp_path / "one.graphml")
        assert graph.differences(read_graph(tmp_path / "one.graphml")) == []


def test_hard_texts_and_parts(tmp_path):
    """What XML cannot hold, empty texts, and parts that cancel each other."""
    graph = AttributionGraph(
        pd.DataFrame(
            {
                "kind": ["embedding", "feature", "logit"],
                "layer": [-1, 0, 1],
                "position": [0, 0, 0],
                "index": [1, 2**40, 3],
                "token": [" a\x00\r\n", "", "\ud800"],
                "label": [None, " <&> \t", None],
                "activation": [None, 0.1 + 0.2, None],
                "probability": [None, None, 0.25],
                "bias": [0.0, -1e-300, 5.0],
            },
            dtype=object,  # pyarrow's strings hold no lone surrogates
        ),
        csr_array(np.array([[0, 0, 0], [0.5, 0, 0], [0, 1 / 3, 0]], dtype=np.float32)),
        tokens=[" a\x00\r\n"],
        prompt="\x01 <prompt> ",
        residual=csr_array(np.array([[0, 0, 0], [0.5, 0, 0], [2.0, 0, 0]], dtype=np.float32)),
        attention=csr_array(np.array([[0, 0, 0], [0, 0, 0], [-2.0, 1 / 3, 0]], dtype=np.float32)),
        scores={"full": Scores("full", 0.5, float("nan"), 1.0, 0.0)},
        supernodes=[Supernode("x", (1,), "me")],
        settings={"k": [1, {"a": None}]},
        unpruned=True,
    )
    write_graph(graph, tmp_path / "one.graphml")
    assert graph.differences(read_graph(tmp_path / "one.graphml")) == []


def test_other_programs_can_use_it(golden, tmp_path):
    """NetworkX sees typed attributes under their names."""
    graph, arrays = golden("llama_plt_mlp")
    write_graph(graph, tmp_path / "one.graphml")
    found = nx.read_graphml(tmp_path / "one.graphml")
    assert list(found.nodes) == list(graph.keys)
    assert found.number_of_edges() == np.count_nonzero(arrays["adjacency"])
    source, target, attributes = next(iter(found.edges(data=True)))
    t, s = graph.keys.index(target), graph.keys.index(source)
    assert attributes["weight"] == float(arrays["adjacency"][t, s])
    node = found.nodes[graph.keys[0]]
    assert (type(node["layer"]), type(node["activation"])) == (int, float)
    assert found.graph["prompt"] == graph.prompt


def test_file_of_another_program(read):
    graph = read(FOREIGN)
    assert graph.keys == ("embedding/0", "logit/7")
    assert graph.adjacency.toarray().tolist() == [[0, 0], [2.5, 0]]
    assert graph.source == {"format": "graphml"}


BOMB = """<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;">]>
<graphml><graph edgedefault="directed"><node id="&b;"/></graph></graphml>"""
OUTSIDE = """<?xml version="1.0"?><!DOCTYPE g [<!ENTITY a SYSTEM "file:///etc/passwd">]>
<graphml><graph edgedefault="directed"><node id="&a;"/></graph></graphml>"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "document type"),
        (OUTSIDE, "document type"),
        (BOMB.encode("utf-16"), "known format"),
        (BOMB.replace("<?xml", " <?xml"), "is not XML"),
        (FOREIGN.replace('encoding="utf-8"', 'encoding="utf-7"'), "is not XML"),
        (FOREIGN[:-20], "is not XML"),
        ("<a/>", "holds 0 graphs"),
        (FOREIGN.replace("</graphml>", "<graph/></graphml>"), "holds 2 graphs"),
        ("<a>" * 99 + "</a>" * 99, "nested deeper"),
        (FOREIGN.replace(B, B + B), "node b is listed twice"),
        (FOREIGN.replace(EDGE, EDGE + EDGE), "edge a → b is listed twice"),
        (FOREIGN.replace('target="b"', 'target="c"'), 'names node "c"'),
        (FOREIGN.replace('"directed"', '"undirected"'), "not directed"),
        (FOREIGN.replace('<data key="index">7</data>', ""), 'node "b" has no index'),
        (FOREIGN.replace('<data key="weight">2.5</data>', ""), "has no number weight"),
        (FOREIGN.replace("2.5", "inf"), "not finite"),
        (FOREIGN.replace("2.5", "nan"), "not finite"),
        (FOREIGN.replace("2.5", "many"), "is not GraphML"),
        (FOREIGN.replace(">logit<", ">neuron<"), "'neuron' is unknown"),
        (FOREIGN.replace('source="a" target="b"', 'source="b" target="a"'), "has 1 inputs"),
        (FOREIGN.replace('key="weight">', 'key="nothing">'), "is not GraphML"),
    ],
)
def test_bad_files(read, text, says, tmp_path):
    with pytest.raises(FormatError, match=rf"^{re.escape(str(tmp_path))}/one\.graphml: ") as caught:
        read(text)
    assert says in str(caught.value)


def test_header_of_another_version(golden, tmp_path, read):
    write_graph(golden("llama_plt_mlp")[0], tmp_path / "one.graphml")
    text = (tmp_path / "one.graphml").read_text()
    for old, new, says in (
        ('"version":1', '"version":7', "Upgrade circuitbase"),
        ('"dtypes":{"adjacency"', '"dtypes":{"neither"', "header.dtypes has"),
        ('"dtypes":{"adjacency":"float32"}', '"dtypes":{}', "lacks adjacency"),
        ('"texts":{}', '"texts":{"kind":[]}', "header.texts has"),
        ('"unpruned":true', '"unpruned":1', "not true or false"),
    ):
        assert old in text
        with pytest.raises(FormatError) as caught:
            read(text.replace(old, new))
        assert says in str(caught.value)


def test_limits(read):
    with pytest.raises(FormatError, match="more than the limit of 100"):
        read(FOREIGN, limits=Limits(file_bytes=100))
    with pytest.raises(FormatError, match="nested deeper than 3 levels"):
        read(FOREIGN, limits=Limits(depth=3))
