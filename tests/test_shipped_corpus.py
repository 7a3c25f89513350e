"""The corpus of the shipped model: true, complete, held out as it says, the same from a seed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

import tracer
from circuitbase.shipped.corpus import Corpus, Sentence, make_corpus, write_prompts
from circuitbase.shipped.facts import COUNTRIES, OPPOSITES, STATES

# Written down here from general knowledge, not read from the module under test.
KNOWN_CONTAINERS = {
    "Dallas": "Texas",
    "Oakland": "California",
    "Seattle": "Washington",
    "Chicago": "Illinois",
    "Miami": "Florida",
    "Philadelphia": "Pennsylvania",
    "Detroit": "Michigan",
    "Las Vegas": "Nevada",
    "New Orleans": "Louisiana",
    "Anchorage": "Alaska",
    "Lyon": "France",
    "Munich": "Germany",
    "Osaka": "Japan",
    "Sydney": "Australia",
    "Rio de Janeiro": "Brazil",
    "Lagos": "Nigeria",
}
KNOWN_ATTRIBUTES = {
    ("Texas", "capital"): "Austin",
    ("California", "capital"): "Sacramento",
    ("New York", "capital"): "Albany",
    ("Georgia", "capital"): "Atlanta",
    ("Illinois", "capital"): "Springfield",
    ("Alaska", "abbreviation"): "AK",
    ("Missouri", "abbreviation"): "MO",
    ("Iowa", "abbreviation"): "IA",
    ("Maine", "region"): "Northeast",
    ("Ohio", "region"): "Midwest",
    ("Texas", "nickname"): "Lone Star State",
    ("Florida", "nickname"): "Sunshine State",
    ("France", "capital"): "Paris",
    ("Australia", "capital"): "Canberra",
    ("Brazil", "capital"): "Brasilia",
    ("Brazil", "language"): "Portuguese",
    ("Austria", "language"): "German",
    ("Egypt", "continent"): "Africa",
    ("Chile", "continent"): "South America",
    ("Japan", "currency"): "yen",
    ("Poland", "currency"): "zloty",
}
KNOWN_OPPOSITES = {"hot": "cold", "big": "small", "always": "never", "chaud": "froid"}
ABBREVIATIONS = (
    "AKALARAZCACOCTDEFLGAHIIAIDILINKSKYLAMAMDMEMIMNMOMSMTNCNDNENHNJNMNVNYOHOKORPARISCSDTNTXUTVAVT"
    "WAWIWVWY"
)


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    return make_corpus()


def test_the_same_seed_gives_the_same_corpus(corpus: Corpus) -> None:
    assert make_corpus(corpus.seed) == corpus
    other = make_corpus(corpus.seed + 1)
    assert [s.id for s in other.sentences] == [s.id for s in corpus.sentences]
    held_out = {s.id for s in corpus.of("held_out")}
    assert held_out != {s.id for s in other.of("held_out")}


def test_there_are_as_many_facts_as_it_says() -> None:
    assert len(STATES) == 50
    assert len(COUNTRIES) == 45
    assert len(OPPOSITES) == 35
    assert all(len(state.cities) in (3, 4) for state in STATES)
    assert all(len(country.cities) == 2 for country in COUNTRIES)
    assert "".join(sorted(state.abbreviation for state in STATES)) == ABBREVIATIONS
    # Census Bureau: nine states in the Northeast, twelve, sixteen (without the capital), thirteen.
    assert Counter(state.region for state in STATES) == {
        "Northeast": 9,
        "Midwest": 12,
        "South": 16,
        "West": 13,
    }


def test_every_name_stands_for_one_thing() -> None:
    names = [
        name
        for state in STATES
        for name in (state.name, state.abbreviation, state.nickname, state.capital, *state.cities)
    ]
    names += [c for country in COUNTRIES for c in (country.name, country.capital, *country.cities)]
    names += [word for pair in OPPOSITES for word in (*pair.english, *pair.french)]
    assert [name for name, times in Counter(names).items() if times > 1] == []


def test_known_facts_are_told(corpus: Corpus) -> None:
    asked = {(s.roles.get("city"), s.family.split("-")[0]): s for s in corpus.of(hops=1)}
    for city, container in KNOWN_CONTAINERS.items():
        assert asked[city, "city"].answer == container
    relations: dict[tuple[str, str], set[str]] = {}
    two_hops: dict[tuple[str, str], set[str]] = {}
    for s in corpus.sentences:
        relation = s.family.rsplit("-", 1)[-1]
        for role in ("state", "country"):
            if role in s.roles:
                relations.setdefault((s.roles[role], relation), set()).add(s.answer)
        if s.hops == 2 and "city" in s.roles:
            two_hops.setdefault((s.roles["city"], relation), set()).add(s.answer)
    for (place, relation), answer in KNOWN_ATTRIBUTES.items():
        assert relations[place, relation] == {answer}
    for city, container in KNOWN_CONTAINERS.items():
        for (place, relation), answer in KNOWN_ATTRIBUTES.items():
            if place == container:
                assert two_hops[city, relation] == {answer}


def test_opposites_are_symmetric_and_translated(corpus: Corpus) -> None:
    told = {(s.family, s.roles["word"]): s.answer for s in corpus.sentences if "word" in s.roles}
    for word, opposite in KNOWN_OPPOSITES.items():
        family = "contraire" if ("contraire", word) in told else "opposite"
        assert told[family, word] == opposite
        assert told[family, opposite] == word
    assert told["opposite-in-french", "hot"] == "froid"
    assert told["opposite-in-english", "petit"] == "big"
    assert told["to-french", "small"] == "petit"
    for (family, word), answer in told.items():
        if family == "to-french":
            assert told["to-english", answer] == word


def test_sums_are_right_and_held_out_in_every_wording(corpus: Corpus) -> None:
    splits: dict[tuple[int, ...], list[str]] = {}
    for s in corpus.of(family="sum"):
        i, j = (int(number) for number in re.findall(r"\d+", s.prompt))
        assert i + j == int(s.answer)
        splits.setdefault((i, j), []).append(s.split)
    assert len(splits) == 30 * 30
    assert all(len(found) == 2 and len(set(found)) == 1 for found in splits.values())
    assert sum("held_out" in found for found in splits.values()) == 180


def test_all_two_hop_sentences_of_a_held_out_city_are_held_out(corpus: Corpus) -> None:
    splits: dict[str, set[str]] = {}
    for s in corpus.of(hops=2):
        if "city" in s.roles:
            splits.setdefault(s.roles["city"], set()).add(s.split)
    assert all(len(found) == 1 for found in splits.values())
    held_out = {city for city, found in splits.items() if found == {"held_out"}}
    capitals = {place.capital for place in (*STATES, *COUNTRIES)}
    assert not held_out & capitals
    assert len(held_out) == pytest.approx(0.2 * (len(splits) - len(capitals)), abs=2)
    one_hop = {s.roles["city"] for s in corpus.of("train", hops=1) if "city" in s.roles}
    assert held_out <= one_hop


def test_a_prompt_has_one_answer(corpus: Corpus) -> None:
    answers: dict[str, set[str]] = {}
    for s in corpus.sentences:
        if s.family != "induction":
            answers.setdefault(s.prompt, set()).add(s.answer)
    assert [prompt for prompt, found in answers.items() if len(found) > 1] == []


def test_induction_ends_where_the_pattern_goes_on(corpus: Corpus) -> None:
    names = sorted(corpus.content, key=len, reverse=True)
    splitter = re.compile("|".join(re.escape(name) for name in names))
    for s in corpus.of("held_out", family="induction"):
        words = splitter.findall(s.prompt)
        length = int(s.template)
        again = len(words) - length
        assert words[length:] == words[:again]
        assert words[again] == s.answer


def test_prompts_are_read_by_the_tracer(corpus: Corpus, tmp_path: Path) -> None:
    chosen: list[Sentence] = [*corpus.of("held_out")[:5], *corpus.of(family="sum")[:2]]
    path = tmp_path / "prompts.jsonl"
    write_prompts(chosen, path)
    read = tracer.read_prompts(path)
    assert [prompt.id for prompt in read] == [s.id for s in chosen]
    for prompt, sentence in zip(read, chosen, strict=True):
        assert prompt.prompt == sentence.prompt
        assert prompt.metadata["answer"] == sentence.answer
        roles = dict(prompt.metadata["roles"])
        named = {k: v["text"] if isinstance(v, dict) else v for k, v in roles.items()}
        assert named == dict(sentence.roles)
        for word in sentence.roles.values():
            assert word in sentence.prompt


def test_words_that_stand_twice_are_told_apart(corpus):
    known = {s.id: s.record()["roles"] for s in corpus.sentences}
    assert known["sum/plus/3+3"] == {
        "first": {"text": "3", "nth": 1},
        "second": {"text": "3", "nth": 2},
    }
    assert known["sum/plus/3+13"] == {"first": "3", "second": "13"}
    assert {type(r["previous"]) for k, r in known.items() if k.startswith("induction")} == {dict}
