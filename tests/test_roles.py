"""Roles of a prompt's words: resolved to tokens, stored with the graph, aligned across prompts."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

import graphstore
import tracer
from circuitbase.cli import cli
from graphstore.metadata import described, graph_roles
from queries.roles import Place, places
from tests.made_graphs import made_graph
from tracer.errors import TracingError
from tracer.prompts import Prompt
from tracer.roles import answer_tokens, resolve_roles

TEXT = "The capital of the state containing Dallas is"


@pytest.fixture(scope="module")
def names(data) -> tuple[str, str]:
    golden = data / "golden"
    return str(golden / "models/gpt2"), str(golden / "transcoders/gpt2_clt_residmid")


@pytest.fixture(scope="module")
def pair(names):
    return tracer.load_model(names[0]), tracer.load_transcoder(names[1])


@pytest.fixture(scope="module")
def model(pair):
    return pair[0]


def by_hand(model, ids, words):
    """Positions of the tokens whose texts lie in words: the oracle, on decoded prefixes."""
    found = []
    text = ""
    for position, token in enumerate(model.tokens(ids)):
        start, text = len(text), text + token
        whole = "".join(model.tokens(ids))
        at = whole.index(words)
        if start < at + len(words) and len(text) > at and token.strip() and token != "<bos>":
            found.append(position)
    return found


@pytest.mark.parametrize("words", ["Dallas", "The", "state", "capital of", "containing Dallas"])
def test_words_are_found_in_the_tokens(model, words):
    ids = model.tokenize(TEXT)
    found = resolve_roles(model, TEXT, ids, {"it": words})
    assert found == {"it": by_hand(model, ids, words), "last": [len(ids) - 1]}
    # Without the tokenizer's offsets, by the tokens' texts; and from token ids alone.
    slow = SimpleNamespace(
        tokenizer=SimpleNamespace(is_fast=False), tokens=model.tokens, bos_id=model.bos_id
    )
    assert resolve_roles(slow, TEXT, ids, {"it": words}) == found
    assert resolve_roles(model, ids, ids, {"it": words}) == found


def pieces_of(*pieces, bos=None):
    """A model that only knows the texts of its tokens."""
    return SimpleNamespace(tokenizer=None, bos_id=bos, tokens=lambda ids: [pieces[i] for i in ids])


def test_words_of_several_tokens_without_spaces_between_them():
    model = pieces_of("<bos>", "Lit", "tle", "Rock", "is", bos=0)
    ids = [0, 1, 2, 3, 4]
    found = resolve_roles(model, "Little Rock is", ids, {"city": "Little Rock", "verb": "is"})
    assert found == {"city": [1, 2, 3], "verb": [4], "last": [4]}
    with pytest.raises(TracingError, match=r"do not add up to its text.*by position"):
        resolve_roles(model, "Another text is", ids, {"verb": "is"})
    assert resolve_roles(model, "Another text", ids, {"verb": 4, "city": {"position": 2}}) == {
        "verb": [4],
        "city": [2],
        "last": [4],
    }


def test_whole_words_come_before_parts_of_words():
    model = pieces_of("This", " is", " an", " island")
    found = resolve_roles(model, "This is an island", [0, 1, 2, 3], {"verb": "is", "end": "land"})
    assert found == {"verb": [1], "end": [3], "last": [3]}


def test_roles_as_lists_and_by_number(model):
    text = "Dallas and Austin and Dallas"
    pieces = pieces_of("Dallas", " and", " Austin", " and", " Dallas")
    ids = [0, 1, 2, 3, 4]
    nth = {"text": "Dallas", "nth": -1}
    assert resolve_roles(pieces, text, ids, {"second": nth})["second"] == [4]
    cities = ["Austin", {"text": "Dallas", "nth": 1}, {"position": 4}]
    assert resolve_roles(pieces, text, ids, {"cities": cities})["cities"] == [0, 2, 4]
    listed = [{"role": "city", "text": "Austin"}, {"role": "city", "position": 0}]
    assert resolve_roles(pieces, text, ids, listed) == {"city": [0, 2], "last": [4]}
    assert resolve_roles(pieces, text, ids, {"last": nth}) == {"last": [4]}
    # A cell of a CSV file.
    assert resolve_roles(pieces, text, ids, '{"city": "Austin"}')["city"] == [2]
    assert resolve_roles(pieces, text, ids, None) == resolve_roles(pieces, text, ids, {})


@pytest.mark.parametrize(
    ("roles", "says"),
    [
        ({"city": "Houston"}, "role 'city' ('Houston') is not in the prompt"),
        ({"city": "Dalas"}, 'Did you mean "Dallas"?'),
        ({"city": "Dallas"}, "role 'city' ('Dallas') is 2 times in the prompt"),
        ({"city": {"text": "Dallas", "nth": 3}}, "Give 1 to 2, or −1"),
        ({"city": {"text": "Dallas", "nht": 1}}, 'Did you mean "nth"?'),
        ({"city": 7}, "tokens are 0 to 4"),
        ({"city": True}, "not words of the prompt"),
        ({"city": ""}, "not words of the prompt"),
        ({"city": []}, "names no token"),
        ({"": "Austin"}, "is no name"),
        ({"city+1": "Austin"}, "ends in no offset"),
        ({"last": "Austin"}, "is the last token of every prompt"),
        ("city", "not JSON"),
        ("7", "not a mapping"),
        ([1], "not a role"),
    ],
)
def test_wrong_roles_are_explained(roles, says):
    model = pieces_of("Dallas", " and", " Austin", " and", " Dallas")
    with pytest.raises(TracingError) as caught:
        resolve_roles(model, "Dallas and Austin and Dallas", [0, 1, 2, 3, 4], roles)
    assert says in str(caught.value)


def test_answers_begin_with_a_token(model):
    first = model.tokens(model.tokenizer.encode(" Austin", add_special_tokens=False)[:1])
    assert answer_tokens(model, " Austin") == first
    assert first[0] in answer_tokens(model, "Austin")
    assert answer_tokens(model, None) == answer_tokens(model, True) == []
    assert set(answer_tokens(model, [" Austin", " Dallas"])) > set(first)


# Traced and stored -------------------------------------------------------------------------------


def test_roles_and_answers_are_kept_with_a_traced_graph(pair, any_store):
    prompt = Prompt(
        TEXT,
        "dallas",
        metadata={
            "family": "capital",
            "template": "of",
            "hops": 2,
            "answer": " Austin",
            "roles": {"city": "Dallas", "state": "the state"},
        },
    )
    wrong = Prompt(TEXT, metadata={"roles": {"city": "Houston"}}, where="f.jsonl:7")
    bad, result = tracer.trace_many(*pair, [wrong, prompt], finish=tracer.prune)
    assert str(bad.error).startswith("f.jsonl:7: role 'city' ('Houston') is not in the prompt")
    graph = result.graph
    expected = resolve_roles(pair[0], TEXT, graph.token_ids, prompt.metadata["roles"])
    assert graph.source["roles"] == graph_roles(graph) == result.source["roles"] == expected
    any_store.write(graph)
    record = any_store.rows("MATCH (g:Graph) RETURN properties(g) AS p")[0]["p"]
    pairs = sorted(zip(record["role_names"], record["role_positions"], strict=True))
    assert pairs == sorted((name, p) for name, held in expected.items() for p in held)
    assert (record["family"], record["template"], record["hops"]) == ("capital", "of", 2)
    assert json.loads(record["metadata"]) == prompt.metadata
    best = graph.nodes[graph.is_logit].nlargest(1, "probability")["token"].iloc[0]
    assert record["right"] is (best in answer_tokens(pair[0], " Austin"))
    assert any_store.read(graph.graph_id) == graph
    assert any_store.verify().empty
    # The same prompt again, with more known of it: what is stored stays, the rest is added.
    more = Prompt(TEXT, metadata={"template": "in", "language": "en", "roles": {"verb": "is"}})
    (skipped,) = tracer.trace_many(*pair, [more], skip={result.graph_id})
    assert skipped.status == "skipped"
    from graphstore.metadata import add_metadata

    assert add_metadata(any_store, graph.graph_id, skipped.source) == ["roles", "template"]
    source = any_store.read(graph.graph_id).source
    assert source["metadata"]["template"] == "of"
    assert source["metadata"]["language"] == "en"
    assert source["roles"].keys() == {"city", "state", "verb", "last"}
    assert any_store.verify().empty


def test_a_role_that_is_not_there_is_named_with_its_line(names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = [
        {"prompt": TEXT, "roles": {"city": "Dallas"}, "hops": 2},
        {"prompt": TEXT, "roles": {"city": "Huston"}},
    ]
    path = tmp_path / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    words = ["trace", "-m", names[0], "-t", names[1], "--prompts", str(path), "--store", "a.db"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert line.startswith(f"error: {path}:2: role 'city' ('Huston') is not in the prompt")
    path.write_text(json.dumps({**lines[0], "hops": 3, "family": "capital"}))
    again = CliRunner().invoke(cli, words)
    assert again.exit_code == 0
    assert "stored with another hops, which stays" in again.stderr
    with graphstore.connect("a.db") as store:
        (record,) = store.rows("MATCH (g:Graph) RETURN g.hops AS hops, g.family AS family")
    assert record == {"hops": 2, "family": "capital"}


# Without a tokenizer: what the source of any file says --------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "more", "right"),
    [
        ({"answer": "yes"}, {}, True),
        ({"answer": " yes"}, {}, True),
        ({"answer": ["maybe", "yes"]}, {}, True),
        ({"answer": "no"}, {}, False),
        ({"answer": "yes"}, {"answer_tokens": [" no"]}, False),
        ({"answer": "yessir"}, {"answer_tokens": [" yes"]}, True),
        ({}, {}, None),
        ({"answer": {}}, {}, None),
    ],
)
def test_right_is_whether_the_likeliest_token_is_the_answer(metadata, more, right):
    graph = made_graph([(0, 1, 2)], {}, slug="a", metadata=metadata)
    graph = graph.replace(source={**graph.source, **more})
    assert described(graph)["right"] is right
    chosen = graph.replace(settings={"targets": [" yes"]})
    assert described(chosen)["right"] is None


def test_what_a_file_says_wrongly_is_passed_over():
    graph = made_graph([(0, 1, 2)], {}, slug="a")
    for source in (
        {"metadata": 7, "roles": 7, "prompt_id": 7, "answer_tokens": 7},
        {"metadata": {"hops": "two", "family": [1], "answer": []}, "roles": {"a": [99], "b": 1}},
        {"metadata": {"hops": 1e400, "template": True}, "roles": {"last": [0], "": [1]}},
    ):
        found = described(graph.replace(source=source))
        assert {k: v for k, v in found.items() if v not in (None, [])}.keys() <= {
            *("metadata", "role_names", "role_positions")
        }
        assert (found["role_names"], found["role_positions"]) == (["last"], [5])
    told = described(graph.replace(source={"metadata": {"hops": "2", "family": 4}}))
    assert (told["hops"], told["family"]) == (2, "4")


def test_places_are_relative_to_the_nearest_role():
    prompt = {"n_tokens": 9, "role_names": ["city", "city", "state"], "role_positions": [2, 3, 6]}
    assert [str(place) for place in places(prompt)] == [
        *("city-2", "city-1", "city", "city", "city+1", "state-1", "state", "state+1", "last")
    ]
    assert places({"n_tokens": 3}) == [Place("last", -2), Place("last", -1), Place("last", 0)]
