"""The chapters of the demonstration, in the order in which they are told.

Each asks the store, tells what it found, and leaves the figures in ``story.findings``. What is
claimed depends on the figures: a sentence that they do not bear out is not told.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import queries
from circuitbase.demo.chapters_circuit import path_aloud, supernodes
from circuitbase.demo.chapters_compare import clt_and_plt
from circuitbase.demo.chapters_global import whole_corpus
from circuitbase.demo.drawing import graph_svg, lengths_svg
from circuitbase.demo.prompts import FIRST_HOP, ONE_HOP, ONE_WORDING, SECOND_HOP, SUMS, TWO_HOP
from circuitbase.demo.story import Story
from circuitbase.shipped import MODEL

__all__ = ["CHAPTERS"]

Chapter = Callable[[Story], None]

_OVERVIEW: Final = """
MATCH (p:PromptSet)-[:INCLUDES]->(g:Graph {complete: true})
WHERE p.name IN $sets AND g.transcoder_id = $transcoder_id
WITH p.name AS prompt_set, count(g) AS prompts,
     sum(CASE WHEN g.right THEN 1 ELSE 0 END) AS answered, avg(g.n_features) AS features,
     avg(g.replacement_full) AS replacement, avg(g.completeness_full) AS completeness,
     avg(g.mean_path_length_full) AS path_length
RETURN prompt_set, prompts, answered, features, replacement, completeness, path_length
ORDER BY prompt_set
"""


def overview(story: Story) -> None:
    """Tell what was traced, and how well the features explain it."""
    tell, sets = story.tell, story.sets
    total = sum(map(len, sets.values()))
    tell.section(
        "The prompts",
        f"{total} prompts were traced through a cross-layer transcoder and stored as graphs: nodes "
        "are tokens, active features, what the transcoder misses (errors), and predicted tokens; "
        "edges say how much of a node's input another one makes. Two-hop prompts ask for the "
        f"capital of what contains a city (`{story.hero.prompt}`); the two sets of one-hop prompts "
        "ask for either half alone (`address : Dallas`, `the capital of Texas is`).",
    )
    found = story.cypher(
        _OVERVIEW,
        "Cypher: what each set holds",
        sets=list(sets),
        transcoder_id=story.transcoder.transcoder_id,
    )
    order = {name: place for place, name in enumerate(sets)}
    found = found.sort_values("prompt_set", key=lambda names: names.map(order), ignore_index=True)
    story.findings["sets"] = found.set_index("prompt_set").to_dict("index")
    tell.table(
        found,
        "Means over the graphs of a set. Replacement: the share of the influence on the answer "
        "that comes from tokens and not from errors; completeness: the share of all inputs that "
        "are features or tokens. Both of unpruned graphs, as is the mean length of paths.",
        names={
            "prompt_set": "set",
            "answered": "right",
            "features": "features a graph",
            "path_length": "path length",
        },
    )


def one_graph(story: Story) -> None:
    """One graph as a picture, with its scores and its strongest nodes."""
    tell, graph = story.tell, story.hero_graph
    row = story.target_row()
    answer = str(graph.nodes["token"].iloc[row]).strip()
    probability = float(graph.logit_weights[row])
    story.findings |= {"answer": answer, "probability": probability}
    tell.section(
        "One graph",
        f"`{story.hero.prompt}` — the model answers **{answer}** with a probability of "
        f"{100 * probability:.1f} %. Tokens stand at the bottom, layers above them, the answer on "
        "top.",
    )
    tell.figure(
        graph_svg(graph, str(story.hero.prompt)),
        "Larger and darker features carry more influence on the answer; the numbered ones are "
        "listed with labels that were computed from a corpus. Blue edges push, red ones hold back.",
    )
    scores = queries.scores(story.store, [story.hero_id], rule="full").iloc[0]
    kept = queries.scores(story.store, [story.hero_id], rule="as_stored").iloc[0]
    story.findings |= {
        "replacement": float(scores["replacement"]),
        "mean_path_length": float(scores["mean_path_length"]),
    }
    tell.facts(
        {
            "replacement score": float(scores["replacement"]),
            "completeness score": float(scores["completeness"]),
            "mean path length": float(scores["mean_path_length"]),
            "nodes stored": graph.n_nodes,
            "edges stored": graph.n_edges,
        }
    )
    tell.aside(
        f"The scores are those of the unpruned graph. The store keeps {graph.n_nodes} nodes of it, "
        f"by which replacement is {kept['replacement']:.3f}: pruning takes errors and features "
        "alike, and every result says which of the two it is of."
    )
    found = story.ask("top_nodes", graph_id=story.hero_name, kind="feature", limit=12)
    tell.table(
        found,
        "The features with the most influence on the answer.",
        columns=["layer", "index", "token", "label", "activation", "influence"],
        names={"token": "at token"},
        bars=["influence"],
    )


def path_lengths(story: Story) -> None:
    """Tell how far influence travels in prompts that take one fact, and in those that take two."""
    tell = story.tell
    sets = [name for name in (SECOND_HOP, TWO_HOP, SUMS) if story.prompts(name)]
    means = {
        name: float(
            queries.scores(story.store, prompt_set=name, rule="full")["mean_path_length"].mean()
        )
        for name in sets
    }
    story.findings["path_lengths"] = means
    text = (
        "A path is a chain of edges from a token to the answer; each carries a share of the "
        "influence. "
    )
    one, two = means.get(SECOND_HOP), means.get(TWO_HOP)
    if one is not None and two is not None:
        text += (
            f"Their mean length is {one:.2f} edges in prompts like `the capital of Texas is`, and "
            f"{two:.2f} in two-hop prompts."
        )
        if two > one + 0.1:
            text += " **The second fact shows as longer paths**, before one looks at any feature."
    tell.section("How far influence travels", text)
    found = {name: queries.path_lengths(story.store, prompt_set=name, pooled=True) for name in sets}
    shares = {
        name: [float(x) for x in frame["share"] if x >= 0.002] for name, frame in found.items()
    }
    tell.figure(
        lengths_svg(shares),
        "Share of the influence that paths of each length carry, in the graphs as stored, pooled "
        "over each set.",
        white=False,
        wide=False,
    )
    shown = story.ask("path_lengths", prompt_set=TWO_HOP, pooled=True)
    tell.table(shown, f"Pooled over the {TWO_HOP} sets.", columns=["length", "share", "cumulative"])


def shared(story: Story) -> None:
    """Find what two-hop prompts have in common that one-hop prompts lack."""
    tell = story.tell
    wording = story.sets[ONE_WORDING]
    tell.section(
        "What two-hop prompts share",
        f"Which features act in every one of the {len(wording)} two-hop prompts of the first "
        "wording, and in no one-hop prompt? The database keeps for each graph the features that it "
        "has, so that is one pass over two sets.",
    )
    found = story.ask(
        "features_only_in", folded=False, prompt_set=ONE_WORDING, other=ONE_HOP, min_share=1.0
    )
    known = queries.features(story.store, ONE_WORDING, limit=100_000).set_index("feature_id")
    found = found.merge(known[["density"]], left_on="feature_id", right_index=True, how="left")
    others = [name for name in story.sets if name.startswith(TWO_HOP) and name != ONE_WORDING]
    for name in others:
        there = queries.recurring_features(story.store, name, min_graphs=1)
        shares = dict(zip(there["feature_id"], there["share"], strict=True))
        found[name] = [float(shares.get(feature, 0.0)) for feature in found["feature_id"]]
    nowhere = found[(found[others] < 0.5).any(axis=1)] if others else found.iloc[:0]
    story.findings |= {
        "shared": found[["feature_id", "share", "label"]].to_dict("records"),
        "shared_by_wording": len(nowhere),
    }
    tell.table(
        found,
        "Features in all of them and in no one-hop prompt; density is the share of the corpus' "
        "tokens at which a feature is active. The last columns: in which share of the two-hop "
        "prompts of the other wordings they act.",
        columns=["layer", "index", "label", "graphs", "density", *others],
        names={"graphs": "in graphs", **{name: f"in {name}" for name in others}},
        bars=others,
        limit=14,
    )
    if len(found):
        tell.text(
            "Their labels were computed without knowing of this question, and they tell what a "
            f"shared wording does: {len(nowhere)} of the {len(found)} act in fewer than half of "
            "the prompts of another wording. **Whoever compares sets of prompts should let the "
            "wording vary**, or compare within one. What the question itself has in common shows "
            "in another way:"
        )
    _halves(story)


_HALF: Final = """
UNWIND $pairs AS pair
MATCH (a:Graph {graph_id: pair[0]})-[:HAS_FEATURE]->(f:Feature)<-[:HAS_FEATURE]-
      (b:Graph {graph_id: pair[1]})
WITH pair, a.n_features AS n, b.n_features AS m, count(f) AS shared
RETURN avg(toFloat(shared) / (n + m - shared)) AS jaccard, avg(shared) AS shared
"""


def _halves(story: Story) -> None:
    """Compare each two-hop graph with the graphs of its two halves, and with those of others."""
    tell = story.tell
    tell.heading("Two hops are made of single hops")
    wording = {str(p.metadata["bridge"]): story.ids[p.id] for p in story.sets[ONE_WORDING]}
    rows = []
    for name, key in ((FIRST_HOP, "answer"), (SECOND_HOP, "roles")):
        half = {_place(p.metadata[key]): story.ids[p.id] for p in story.prompts(name)}
        places = [place for place in wording if place in half]
        own = [[wording[place], half[place]] for place in places]
        others = [[wording[a], half[b]] for a in places for b in places if a != b]
        if not others:
            continue
        for told, pairs in (("its own", own), ("another", others)):
            found = story.store.cypher(_HALF, parameters={"pairs": pairs}).iloc[0]
            rows.append(
                {
                    "half": name,
                    "of": told,
                    "pairs": len(pairs),
                    "shared": float(found["shared"]),
                    "jaccard": float(found["jaccard"]),
                }
            )
    if not rows:
        return
    import pandas as pd

    table = pd.DataFrame(rows)
    story.findings["halves"] = {
        (row["half"], row["of"]): row["jaccard"] for row in table.to_dict("records")
    }
    tell.text(
        "A graph of `the capital of the state containing Dallas is` can be compared with those of "
        "its two halves, `address : Dallas` and `the capital of Texas is`, and, as a control, with "
        "the same halves of other cities and states."
    )
    tell.cypher(_HALF, {"pairs": [["two-hop graph", "half"], "…"]}, "Cypher: shared features")
    tell.table(
        table,
        "Mean over pairs of graphs. Jaccard: features in both over features in either.",
        names={"of": "of which city or state", "shared": "shared features"},
        bars=["jaccard"],
    )
    found = story.findings["halves"]
    if all(found[half, "its own"] > found[half, "another"] for half in {r["half"] for r in rows}):
        tell.text(
            "**A two-hop prompt shares features with both of its own halves**, and far fewer with "
            "those of others: the model puts the two facts together from the parts that it uses "
            "for each alone."
        )


def _place(value: object) -> str:
    """Name the state or country that a one-hop prompt is about."""
    if isinstance(value, dict):
        value = next(iter(value.values()))
    return str(value["text"] if isinstance(value, dict) else value)


def next_steps(story: Story) -> None:
    """Say what to type next."""
    tell, name = story.tell, story.hero_name
    tell.section("What to type next", "The store stays. Everything above can be asked again.")
    feature = story.findings.get("feature", "FEATURE")
    lines = [
        f"circuitbase show {name}",
        f"circuitbase query strongest_paths graph_id={name} limit=5",
        "circuitbase query features label=Texas",
        f"circuitbase query feature_examples feature_id={feature}",
        "circuitbase query hubs",
        "circuitbase query family_minus_common prompt_set=two-hop others=one-hop",
        "circuitbase compare two-hop one-hop",
        f'circuitbase trace -m {MODEL} -t {MODEL.parent / "clt"} "the region of Texas is"',
        "circuitbase queries",
    ]
    tell.code("\n".join(lines), "In a terminal")


CHAPTERS: Final[tuple[Chapter, ...]] = (
    overview,
    one_graph,
    path_aloud,
    supernodes,
    path_lengths,
    shared,
    whole_corpus,
    clt_and_plt,
    next_steps,
)
