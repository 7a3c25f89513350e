"""Plans on Neo4j: no query may look at all nodes, nor pair what nothing connects."""

from __future__ import annotations

import re

import pytest
from neo4j import Query

import graphstore
import queries
import tracer
from queries import asking, walking
from tracer.graph import Supernode

# What would be read in full, or multiplied; whatever a plan reads must come from a key, an index,
# or a label with a record a graph, set or pair of features.
FORBIDDEN = (
    "AllNodesScan",
    "CartesianProduct",
    "DirectedAllRelationshipsScan",
    "UndirectedAllRelationshipsScan",
    "DirectedRelationshipTypeScan",
    "UndirectedRelationshipTypeScan",
    "SubtractionNodeByLabelsScan",
)
# Labels that a query means to go through in full.
SCANS = {
    # Every pair of features is looked at: its list of graphs says whether it counts.
    "recurring_edges": {"FeatureEdge"},
    "edges_by_graph": {"FeatureEdge"},
    "recurring_paths": {"FeatureEdge"},
    "motifs": {"FeatureEdge"},
    "family_minus_common": {"FeatureEdge"},
    # Without a set, every feature that somebody has described.
    "features": {"Feature"},
    "all graphs": {"Graph"},
    "all sets": {"PromptSet"},
    "graphs of a set": {"PromptSet"},
}

SAMPLE = {
    "graph_ids": ["0" * 16, "1" * 16],
    "flags": [True, False],
    "other_flags": [False, True],
    "feature_ids": ["clt/1/2"],
    "below": "gpt2/",
    "least": 2,
    "values": [0.5, 0.5],
    "nodes": ["0" * 16 + "/logit/1"],
    "ids": ["0" * 16 + "/logit/1"],
    "node_id": "0" * 16 + "/logit/1",
    "graph_id": "0" * 16,
    "prompt_set": "gpt2",
    "name": "gpt2",
    "other": "llama",
    "feature_id": "clt/1/2",
    "kind": "feature",
    "by": "layer",
    "min_share": 0.1,
    "limit": 10,
    "label": "austin",
    "layer": 1,
    "weights_id": "0" * 16,
    "direction": "in",
    "min_graphs": 1,
    "rows": [["clt/1/2", [0, 1]]],
}

STATEMENTS = [
    pytest.param(name, text, id=f"{name}-{statement}")
    for name in queries.names()
    for statement, text in queries.describe(name).statements.items()
] + [
    # Those that resolve names.
    pytest.param("all graphs", asking._ALL, id="all graphs"),
    pytest.param("graphs of a set", asking._SET, id="graphs of a set"),
    pytest.param("graphs of a list", asking._NAMED, id="graphs of a list"),
    pytest.param("all sets", asking._SETS, id="all sets"),
    pytest.param("node", asking._NODE, id="node"),
    pytest.param("nodes", asking._NODES, id="nodes"),
    pytest.param("feature", walking._FEATURE, id="feature"),
]


@pytest.fixture(scope="module", params=["neo4j-lts", "neo4j-calendar"])
def server(request, golden, made):
    """A Neo4j store with some graphs: the planner looks at the counts."""
    given = request.getfixturevalue("servers").environment(request.param)
    auth = (given["NEO4J_USERNAME"], given["NEO4J_PASSWORD"])
    with graphstore.connect(given["NEO4J_URI"], auth=auth) as store:
        empty(store)
        for name, prompt_set in (("gpt2_clt_residmid", "gpt2"), ("llama_clt_residmid", "llama")):
            graph, _ = golden(name)
            for threshold in (0.8, 0.7, 0.6):
                pruned = tracer.prune(graph, threshold)
                store.write(pruned.replace(supernodes=[Supernode("a", (0, 1))]), prompt_set)
        features = [(layer, index) for layer in range(4) for index in range(20)]
        for seed in range(2):
            store.write_weights(made.made_weights(features, seed))
        store.change("CALL db.awaitIndexes(60)")
        yield store
        empty(store)


def empty(store):
    text = (
        "MATCH (n) WHERE NOT n:Vault WITH n LIMIT 20000 WITH collect(n) AS ns UNWIND ns AS n "
        "DETACH DELETE n RETURN count(*) AS n"
    )
    while store.change(text)[0]["n"]:
        pass


@pytest.mark.neo4j
@pytest.mark.parametrize(("name", "text"), STATEMENTS)
def test_plan_starts_at_a_key(server, name, text):
    used = {key: SAMPLE[key] for key in re.findall(r"\$(\w+)", text)}
    for step in steps(plan(server, text, used)):
        operator = step["operatorType"].split("@")[0]
        assert operator not in FORBIDDEN, step["args"].get("Details")
        if operator.endswith("NodeByLabelScan"):
            label = re.search(r":(\w+)", step["args"]["Details"])[1]
            assert label in SCANS.get(name, ()), f"{operator} of {label}"


@pytest.mark.neo4j
def test_a_bad_plan_is_noticed(server):
    for text, operator in (
        ("MATCH (n) RETURN n", "AllNodesScan"),
        ("MATCH (a:Graph), (b:Feature) RETURN a, b", "CartesianProduct"),
        ("MATCH (n:Node {kind: 'error'}) RETURN n", "NodeByLabelScan"),
        ("MATCH (a)-[r:CONTRIBUTES]->(b) RETURN r", "DirectedRelationshipTypeScan"),
    ):
        found = [step["operatorType"].split("@")[0] for step in steps(plan(server, text, {}))]
        assert any(step.endswith(operator) for step in found), (text, found)


def plan(store, text, parameters):
    with store.driver.session(database=store.database) as session:
        return session.run(Query("EXPLAIN " + text), parameters).consume().plan


def steps(plan):
    yield plan
    for child in plan.get("children", ()):
        yield from steps(child)
