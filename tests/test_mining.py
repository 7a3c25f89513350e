"""What recurs over a set: counts, strengths, places, motifs, on every engine.

The oracles go over the nodes and edges of the graphs one by one (or over the published files'
own JSON), count with dictionaries, and enumerate subgraphs; tolerance 1e-9, because sums run in
another order in each engine.
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import networkx as nx
import numpy as np
import pandas as pd
import pytest

import graphstore
import queries
import tracer
from queries.motifs import Pairs, grow_paths, grow_subgraphs
from queries.roles import places
from tests.made_graphs import TRANSCODER, identifier, made_graph
from tracer.errors import NotFoundError, QueryError

CLOSE = 1e-9
ENGINES = ("embedded", "neo4j-lts", "neo4j-calendar")
# Planted: a triangle in five of eight graphs, a chain of four features in four, a fork in three.
TRIANGLE = [((0, 1), (1, 2)), ((1, 2), (2, 3)), ((0, 1), (2, 3))]
CHAIN = [((0, 11), (1, 12)), ((1, 12), (2, 13)), ((2, 13), (3, 14))]
FORK = [((0, 21), (1, 22)), ((0, 21), (2, 23))]
PLANTED = {0: TRIANGLE, 1: CHAIN, 2: FORK}
HAVE = {0: (0, 1, 2, 3, 4), 1: (1, 3, 5, 7), 2: (2, 4, 6)}


def planted(number):
    """One of eight graphs: planted edges, noise of features that no other graph has, roles."""
    random = np.random.default_rng(number)
    n_tokens = 6 + number % 3
    city = 1 + number % 2
    features, edges = [], {}

    def place(feature):
        # A role's place for some features, a position that moves for others.
        return city if feature[1] < 10 else (feature[1] + number) % n_tokens

    for motif, pairs in PLANTED.items():
        if number in HAVE[motif]:
            for source, target in pairs:
                ends = tuple((*f, place(f)) for f in (source, target))
                features += ends
                edges[ends] = float(random.normal()) + (2.0 if motif else 0.0)
                if source == (0, 1):  # a second node of a feature
                    twin = (*source, city + 1)
                    features.append(twin)
                    edges[twin, ends[1]] = 0.4
    noise = [(layer, 1000 + 10 * number + k, k) for layer in range(4) for k in range(3)]
    for source, target in itertools.combinations(noise, 2):
        if source[0] < target[0] and random.random() < 0.4:
            edges[source, target] = float(random.normal())
    # Noise meets what is planted, too, but never twice in the same way.
    for feature in features[::2]:
        late = (5, 2000 + number, 1)
        noise.append(late)
        edges[feature, late] = 1.0
    return made_graph(
        features + noise,
        edges,
        slug=f"planted-{number}",
        n_tokens=n_tokens,
        roles={"city": [city, city + 1]},
    )


@dataclass
class Filled:
    store: graphstore.Store
    graphs: dict[str, tracer.AttributionGraph] = field(default_factory=dict)
    planted: list[str] = field(default_factory=list)
    common: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)


@pytest.fixture(
    scope="module",
    params=[pytest.param(e, marks=[pytest.mark.neo4j] * (e != "embedded")) for e in ENGINES],
)
def filled(request):
    if request.param == "embedded":
        target = {"target": request.getfixturevalue("embedded_server")}
    else:
        given = request.getfixturevalue("servers").environment(request.param)
        auth = (given["NEO4J_USERNAME"], given["NEO4J_PASSWORD"])
        target = {"target": given["NEO4J_URI"], "auth": auth}
    try:
        files = request.getfixturevalue("real_graphs")
    except pytest.skip.Exception:
        files = []
    with graphstore.connect(**target) as store:
        empty(store)
        made = Filled(store, files=[file for file in files if "clt-hp" in file.name])
        for number in range(8):
            graph = planted(number)
            store.write(graph, "made/planted")
            made.graphs[graph.graph_id] = graph
            made.planted.append(graph.graph_id)
        for number in (2, 6):  # unrelated prompts, which share features of the fork alone
            fork = [(*f, 1) for pair in FORK for f in pair]
            ends = dict.fromkeys([(fork[0], fork[1]), (fork[2], fork[3])], 1.0)
            graph = made_graph(
                [*fork, (4, 1, 2)], ends, slug=f"common-{number}", n_tokens=number + 4
            )
            store.write(graph, "made/common")
            made.graphs[graph.graph_id] = graph
            made.common.append(graph.graph_id)
        for file in made.files:
            graph = graphstore.read_graph(file)
            store.write(graph, "real")
            made.graphs[graph.graph_id] = graph
        other = made_graph([(0, 1, 2)], {}, slug="other", transcoder="an/other@2")
        store.write(other, "mixed")
        store.include(made.planted[0], "mixed")
        store.include(made.planted[0], "single")
        store.add_set("empty")
        yield made
        empty(store)


def empty(store):
    text = (
        "MATCH (n) WHERE NOT n:Vault WITH n LIMIT 20000 WITH collect(n) AS ns UNWIND ns AS n "
        "DETACH DELETE n RETURN count(*) AS n"
    )
    while store.change(text)[0]["n"]:
        pass


# The published graphs ----------------------------------------------------------------------------


def counts_of_files(files):
    """In how many files each feature, and each pair of features with an edge, is: from the JSON."""
    nodes, pairs = [], []
    for number, file in enumerate(files):
        content = json.loads(file.read_text())
        table = pd.DataFrame(content["nodes"])
        table = table[table["feature_type"] == "cross layer transcoder"]
        parts = table["node_id"].str.split("_")
        table["feature"] = parts.str[0] + "/" + parts.str[1]
        names = table.set_index("node_id")["feature"]
        links = pd.DataFrame(content["links"])
        links = links[links["weight"] != 0]
        links["s"], links["t"] = links["source"].map(names), links["target"].map(names)
        links = links.dropna(subset=["s", "t"])
        nodes.append(table[["feature"]].drop_duplicates().assign(file=number))
        pairs.append(links[["s", "t"]].drop_duplicates().assign(file=number))
    features = pd.concat(nodes).groupby("feature").size()
    edges = pd.concat(pairs).groupby(["s", "t"]).size()
    return features, edges


@pytest.mark.parametrize("least", ["1", "2", "all"])
def test_published_graphs_are_counted_as_their_files_say(filled, least):
    if not filled.files:
        pytest.skip("no published graphs")
    k = len(filled.files) if least == "all" else int(least)
    features, edges = counts_of_files(filled.files)
    found = queries.recurring_features(filled.store, "real", min_graphs=k)
    names = found["layer"].astype(str) + "/" + found["index"].astype(str)
    assert dict(zip(names, found["graphs"], strict=True)) == features[features >= k].to_dict()
    assert len(found) > 20
    found = queries.recurring_edges(filled.store, "real", min_graphs=k)
    short = [found[end].str.split("/").str[-2:].str.join("/") for end in ("source", "target")]
    mine = dict(zip(zip(*short, strict=True), found["graphs"], strict=True))
    assert mine == edges[edges >= k].to_dict()
    assert mine


# Strengths and places ----------------------------------------------------------------------------


def pairs_of(graph, align):
    """Weight, share and influence of each pair of features at each two places."""
    flow = tracer.Flow(graph)
    share, score = flow.normalised.toarray(), flow.edge_scores.toarray()
    roles = graph.source.get("roles", {})
    prompt = {
        "n_tokens": len(graph.tokens),
        "role_names": [name for name, held in roles.items() for _ in held],
        "role_positions": [p for held in roles.values() for p in held],
    }
    spots = [str(place) for place in places(prompt)]

    def at(row):
        position = int(graph.nodes["position"].iloc[row])
        return {"none": None, "position": str(position), "role": spots[position]}[align]

    nodes = defaultdict(set)
    for row, name in enumerate(graph.feature_ids):
        if name is not None:
            nodes[name, at(row)].add(row)
    found = {}
    for (s, s_at), sources in nodes.items():
        for (t, t_at), targets in nodes.items():
            block = np.ix_(sorted(targets), sorted(sources))
            weights = graph.adjacency.toarray()[block]
            if weights.any():
                found[s, t, s_at, t_at] = (
                    weights.sum(),
                    share[block].sum() / len(targets),
                    score[block].sum(),
                )
    influences = {key: flow.influence[sorted(rows)].sum() for key, rows in nodes.items()}
    return found, influences


@pytest.mark.parametrize("align", ["none", "position", "role"])
@pytest.mark.parametrize("prompt_set", ["made/planted", "made"])
def test_strengths_at_every_place(filled, align, prompt_set):
    ids = filled.planted + (filled.common if prompt_set == "made" else [])
    edges, features = defaultdict(list), defaultdict(list)
    for graph_id in ids:
        pairs, influences = pairs_of(filled.graphs[graph_id], align)
        for key, values in pairs.items():
            edges[key].append(values)
        for key, value in influences.items():
            features[key].append(value)
    for least in (2, 4):
        found = queries.recurring_edges(filled.store, prompt_set, least, align=align)
        wanted = {key for key, values in edges.items() if len(values) >= least}
        columns = ["source", "target", "source_place", "target_place"]
        assert {tuple(row) for row in found[columns].to_numpy()} == wanted
        assert len(found) == len(wanted)
        assert len(wanted) > 2 or least > 2
        for row in found.itertuples():
            key = (row.source, row.target, row.source_place, row.target_place)
            values = np.array(edges[key])
            assert (row.graphs, row.share) == (len(values), len(values) / len(ids))
            mean = values.mean(axis=0)
            got = (row.mean_weight, row.mean_share, row.mean_influence)
            assert got == pytest.approx(mean, abs=CLOSE)
            signs = np.sign(values[:, 0])
            agree = max((signs > 0).mean(), (signs <= 0).mean())
            assert row.sign_agreement == pytest.approx(agree)
        found = queries.recurring_features(filled.store, prompt_set, least, align=align)
        wanted = {key: v for key, v in features.items() if len(v) >= least}
        assert {(r.feature_id, r.place): r.graphs for r in found.itertuples()} == {
            key: len(values) for key, values in wanted.items()
        }
        for row in found.itertuples():
            mean = np.mean(wanted[row.feature_id, row.place])
            assert row.mean_influence == pytest.approx(mean, abs=CLOSE)
    assert (queries.recurring_edges(filled.store, prompt_set, align="none")["graphs"] > 1).all()


def test_the_sums_of_the_store_are_those_of_a_set_of_all(filled):
    everything = filled.store.graphs()["graph_id"].tolist()
    mine = queries.recurring_edges(filled.store, min_graphs=3)
    listed = queries.recurring_edges(filled.store, everything, min_graphs=3)
    pd.testing.assert_frame_equal(mine, listed, check_exact=False, rtol=1e-9)
    assert len(mine) > 3


def test_position_roles(filled):
    found = queries.position_roles(filled.store, identifier((0, 1)), "made/planted")
    rows = defaultdict(list)
    for number in HAVE[0]:
        graph = filled.graphs[filled.planted[number]]
        flow = tracer.Flow(graph)
        for row, name in enumerate(graph.feature_ids):
            if name == identifier((0, 1)):
                rows["city"].append(flow.influence[row])
    assert found["place"].tolist() == ["city"]
    row = found.iloc[0]
    assert (row["role"], row["offset"], row["graphs"], row["share"], row["nodes"]) == (
        *("city", 0, 5, 1.0),
        10,
    )
    assert row["mean_influence"] == pytest.approx(np.mean(rows["city"]), abs=CLOSE)
    assert np.isnan(row["mean_activation"])
    everywhere = queries.position_roles(filled.store, prompt_set="made/planted", min_share=0.5)
    assert set(everywhere["feature_id"]) == {
        identifier(f) for pair in [*TRIANGLE, *CHAIN] for f in pair
    }
    by_feature = everywhere.groupby("feature_id")
    assert (by_feature["share"].sum() >= 1 - CLOSE).all()
    # A chain's feature moves with the graph's number, so its places are many.
    assert by_feature.size()[identifier((2, 13))] > 1
    with pytest.raises(NotFoundError, match="no feature"):
        queries.position_roles(filled.store, "clt/0/0", "made/planted")
    assert queries.position_roles(filled.store, f"{TRANSCODER}/4/1", "made/planted").empty


@pytest.mark.parametrize("what", ["features", "edges"])
@pytest.mark.parametrize("others", ["made/common", None])
def test_family_minus_common(filled, what, others):
    def of(graph_ids):
        counted = defaultdict(list)
        for graph_id in graph_ids:
            pairs, influences = pairs_of(filled.graphs[graph_id], "none")
            if what == "edges":
                for (s, t, _, _), (_, _, influence) in pairs.items():
                    counted[s, t].append(influence)
            else:
                for (name, _), influence in influences.items():
                    counted[name].append(influence)
        return counted

    mine, theirs = of(filled.planted), of(filled.common)
    for least, most in ((0.3, 0.0), (0.3, 1.0), (0.5, 0.4)):
        wanted = {
            key: values
            for key, values in mine.items()
            if len(values) / 8 >= least and len(theirs.get(key, ())) / 2 <= most
        }
        found = queries.family_minus_common(filled.store, "made/planted", others, what, least, most)
        pairs = zip(found["source"], found["target"], strict=True)
        keys = found["feature_id"].tolist() if what == "features" else list(pairs)
        assert set(keys) == set(wanted)
        assert len(keys) == len(wanted)
        for key, row in zip(keys, found.itertuples(), strict=True):
            assert (row.graphs, row.other_graphs) == (len(mine[key]), len(theirs.get(key, ())))
            assert row.difference == pytest.approx(row.share - row.other_share)
            assert row.mean_influence == pytest.approx(np.mean(mine[key]), abs=CLOSE)
        assert found["difference"].is_monotonic_decreasing
    assert len(wanted) >= 3


# Paths and motifs --------------------------------------------------------------------------------


def subgraphs(edges_of_graph, least, max_size):
    """Every connected set of edges in enough graphs, by going through all sets of edges."""
    counted = defaultdict(int)
    for edges in edges_of_graph:
        for edge in edges:
            counted[edge] += 1
    recurring = sorted(edge for edge, count in counted.items() if count >= least)
    found = {}
    for size in range(2, max_size + 1):
        for chosen in itertools.combinations(recurring, size):
            support = sum(set(chosen) <= edges for edges in edges_of_graph)
            if support >= least and nx.is_weakly_connected(nx.DiGraph(chosen)):
                found[frozenset(chosen)] = support
    return found


def named_shape(edges):
    graph = nx.DiGraph(list(edges))
    degrees_out = sorted(d for _, d in graph.out_degree())
    degrees_in = sorted(d for _, d in graph.in_degree())
    if len(graph) == len(edges) + 1 and max(degrees_in) == max(degrees_out) == 1:
        return "chain"
    if degrees_out[-1] == len(edges):
        return "fork"
    if degrees_in[-1] == len(edges):
        return "join"
    return "triangle" if len(edges) == len(graph) == 3 else "other"


def edges_of(graph):
    adjacency = graph.adjacency.tocoo()
    ends = zip(adjacency.col, adjacency.row, strict=True)
    pairs = {(graph.feature_ids[s], graph.feature_ids[t]) for s, t in ends}
    return {pair for pair in pairs if None not in pair}


def of_table(found):
    return {
        frozenset(tuple(edge.split(" -> ")) for edge in row.edge_ids): row.graphs
        for row in found.itertuples()
    }


@pytest.mark.parametrize("least", [3, 4])
def test_planted_motifs_are_found_and_nothing_else(filled, least):
    edges = [edges_of(filled.graphs[graph_id]) for graph_id in filled.planted]
    expected = subgraphs(edges, least, 3)
    found = queries.motifs(filled.store, "made/planted", least)
    assert of_table(found) == expected
    assert len(found) == len(expected)
    assert found["complete"].all()
    assert found.attrs == {"complete": True, "found": len(expected)}
    for shape in ("chain", "fork", "join", "triangle"):
        wanted = {k: v for k, v in expected.items() if named_shape(k) == shape}
        only = queries.motifs(filled.store, "made/planted", least, shape=shape)
        assert of_table(only) == wanted
        assert (only["shape"] == shape).all()
    planted_triangle = frozenset((identifier(s), identifier(t)) for s, t in TRIANGLE)
    assert expected[planted_triangle] == 5
    strengths = queries.recurring_edges(filled.store, "made/planted").set_index(
        ["source", "target"]
    )["mean_share"]
    for row in found.itertuples():
        ends = [tuple(edge.split(" -> ")) for edge in row.edge_ids]
        assert row.strength == pytest.approx(np.prod([strengths[pair] for pair in ends]))
        assert set(row.members) == {end for pair in ends for end in pair}
        assert (row.size, row.share) == (len(ends), row.graphs / 8)


@pytest.mark.parametrize(("least", "max_length"), [(3, 4), (4, 2), (4, 9)])
def test_planted_paths_are_found_and_nothing_else(filled, least, max_length):
    edges = [edges_of(filled.graphs[graph_id]) for graph_id in filled.planted]
    every = nx.DiGraph([pair for each in edges for pair in each])
    expected = {}
    for source, target in itertools.permutations(every, 2):
        for path in nx.all_simple_paths(every, source, target, cutoff=max_length):
            support = sum(set(itertools.pairwise(path)) <= each for each in edges)
            if len(path) > 2 and support >= least:
                expected[tuple(path)] = support
    found = queries.recurring_paths(
        filled.store, "made/planted", min_share=least / 8, max_length=max_length
    )
    mine = {tuple(row.path): row.graphs for row in found.itertuples()}
    assert mine == expected
    assert expected
    assert (found["length"] == found["path"].map(len) - 1).all()
    assert found["graphs"].is_monotonic_decreasing


def random_pairs(seed, n_features=9, n_graphs=70, chance=0.35):
    """Edges among few features in many graphs, so that patterns overlap; more than 64 graphs."""
    random = np.random.default_rng(seed)
    ends = [pair for pair in itertools.combinations(range(n_features), 2) if random.random() < 0.55]
    graphs = [
        {pair for k, pair in enumerate(ends) if random.random() < chance + 0.05 * (k % 9)}
        for _ in range(n_graphs)
    ]
    held = [[g for g, edges in enumerate(graphs) if pair in edges] for pair in ends]
    names = [[f"m/{pair[i]}/0" for pair in ends] for i in (0, 1)]
    pairs = Pairs.of(*names, held, [0.5] * len(ends), n_graphs)
    return pairs, graphs


@pytest.mark.parametrize("seed", range(3))
def test_growth_is_exact_on_overlapping_patterns(seed):
    pairs, graphs = random_pairs(seed)
    number = [int(name.split("/")[1]) for name in pairs.features]
    ends = [(number[s], number[t]) for s, t in zip(pairs.source, pairs.target, strict=True)]
    least = 12
    expected = subgraphs(graphs, least, 3)
    mine = {}
    for level in grow_subgraphs(pairs, least, 3, 10**6):
        assert level.complete
        for items, count in zip(level.items, level.graphs, strict=True):
            key = frozenset(ends[e] for e in items)
            assert key not in mine
            mine[key] = count
    assert mine == expected
    assert len(mine) > 100
    for shape in ("chain", "fork", "join", "triangle"):
        found = {
            frozenset(ends[e] for e in items): count
            for level in grow_subgraphs(pairs, least, 3, 10**6, shape)
            for items, count in zip(level.items, level.graphs, strict=True)
        }
        assert found == {k: v for k, v in expected.items() if named_shape(k) == shape}
    # Four edges: chains by growth are the paths by growth.
    chains = {
        frozenset(ends[e] for e in items)
        for level in grow_subgraphs(pairs, least, 4, 10**6, "chain")
        for items in level.items
    }
    paths = {
        frozenset(itertools.pairwise(number[code] for code in items))
        for level in grow_paths(pairs, least, 4, 10**6)
        for items in level.items
    }
    assert chains == paths


def test_a_bound_that_is_hit_is_told(filled, caplog):
    pairs, graphs = random_pairs(1)
    expected = subgraphs(graphs, 12, 3)
    levels = list(grow_subgraphs(pairs, 12, 3, 20))
    assert not levels[-1].complete
    assert all(len(level.graphs) <= 20 for level in levels)
    number = [int(name.split("/")[1]) for name in pairs.features]
    ends = [(number[s], number[t]) for s, t in zip(pairs.source, pairs.target, strict=True)]
    for level in levels:
        for items, count in zip(level.items, level.graphs, strict=True):
            assert expected[frozenset(ends[e] for e in items)] == count  # what is told is true
    assert not list(grow_paths(pairs, 12, 4, 5))[-1].complete
    # Cut to what no triangle grows from: nothing is found, and that is told as partial.
    ends = [["a", "c", "d", "c"], ["b", "d", "e", "e"]]
    apart = Pairs.of(*ends, [[0, 1]] * 4, [1, 0.5, 0.5, 0.5], 2)
    (level,) = grow_subgraphs(apart, 2, 3, 1, "triangle")
    assert (len(level.graphs), level.complete) == (0, False)
    for found in (
        queries.motifs(filled.store, "made/planted", 3, bound=2),
        queries.recurring_paths(filled.store, "made/planted", 3, bound=1),
    ):
        assert not found["complete"].any()
        assert not found.attrs["complete"]
        assert len(found)
    assert "the answer is partial" in caplog.text
    whole = queries.motifs(filled.store, "made/planted", 3)
    few = queries.motifs(filled.store, "made/planted", 3, limit=2)
    assert few["complete"].all()
    assert few.attrs["found"] == len(whole) > 2
    pd.testing.assert_frame_equal(few, whole.head(2))
    steps = []
    queries.motifs(filled.store, "made", 3, progress=lambda *step: steps.append(step))
    assert steps == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda s: queries.motifs(s, "empty"), "set 'empty' holds no graph"),
        (lambda s: queries.motifs(s, "mixed"), "2 transcoders (made/up@1, an/other@2)"),
        (lambda s: queries.recurring_paths(s, "mixed"), "not comparable"),
        (lambda s: queries.family_minus_common(s, "mixed"), "not comparable"),
        (lambda s: queries.family_minus_common(s, "made", "mixed"), "not comparable"),
        (lambda s: queries.family_minus_common(s, "made", "made/common"), "one of the family"),
        (lambda s: queries.family_minus_common(s, "made", "empty"), "holds no graph"),
        (lambda s: queries.family_minus_common(s, "made", what="feature"), '"features"'),
        (lambda s: queries.family_minus_common(s, "made", max_other_share=2), "from 0 to 1"),
        (lambda s: queries.family_minus_common(s, "made", min_share=-1), "from 0 to 1"),
        (lambda s: queries.position_roles(s, prompt_set="mixed"), "not comparable"),
        (lambda s: queries.position_roles(s, prompt_set="made", min_share=1.5), "from 0 to 1"),
        (lambda s: queries.motifs(s, "made", shape="triangel"), '"triangle"'),
        (lambda s: queries.motifs(s, "made", shape="triangle", max_size=2), "from 3"),
        (lambda s: queries.motifs(s, "made", max_size=1), "from 2"),
        (lambda s: queries.motifs(s, "made", bound=0), "from 1"),
        (lambda s: queries.motifs(s, "made", min_share=7), "from 0 to 1"),
        (lambda s: queries.recurring_paths(s, "made", max_length=1), "from 2"),
        (lambda s: queries.recurring_edges(s, "made", align="roles"), '"role"'),
    ],
)
def test_what_is_wrong_is_named(filled, ask, says):
    with pytest.raises(QueryError) as caught:
        ask(filled.store)
    assert says in str(caught.value)


def test_a_set_of_one_graph_is_a_set(filled):
    graph = filled.graphs[filled.planted[0]]
    found = queries.recurring_features(filled.store, "single", min_share=1.0)
    assert set(found["feature_id"]) == {name for name in graph.feature_ids if name is not None}
    assert (found["share"] == 1).all()
    assert queries.recurring_features(filled.store, "single").empty
    assert queries.motifs(filled.store, "single").empty
    every = queries.motifs(filled.store, "single", min_graphs=1, max_size=2, limit=10**6)
    assert of_table(every).keys() == subgraphs([edges_of(graph)], 1, 2).keys()
