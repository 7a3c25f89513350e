"""The corpus of the shipped model: every sentence that it can be taught or asked.

A sentence is a prompt and one word that answers it. One-hop sentences state a fact (Dallas lies in
Texas; the capital of Texas is Austin), two-hop sentences need two of them (the capital of the state
containing Dallas is Austin). Held out, and never trained on, are

- all two-hop sentences of one in five cities that are not capitals (their one-hop sentences are
  trained on),
- one in five pairs of summands, in every template (the pair in the other order may be trained on),
- one in twenty induction sentences.

Sentences avoid words that a reader could complete in two ways: what comes last in a prompt names
the question.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from circuitbase.shipped.facts import COUNTRIES, OPPOSITES, STATES

__all__ = ["Corpus", "Sentence", "make_corpus", "write_prompts"]

Split = Literal["train", "held_out"]

HELD_OUT_CITIES: Final = 0.2
HELD_OUT_SUMS: Final = 0.2
HELD_OUT_INDUCTION: Final = 0.05
SUMMANDS: Final = 30  # 0 … 29
INDUCTION_SENTENCES: Final = 6000
INDUCTION_WORDS: Final = (3, 6)  # words of a pattern before it repeats

# In most of these the container follows the city at once, after the words that two-hop questions
# have before it: so the MLPs at the city have to find the container, whatever comes next.
_CONTAINER: Final = {
    "bare": "{city}",
    "address": "address : {city}",
    "map": "a map containing {city}",
    "near": "hotels near {city}",
    "is": "the {kind} containing {city} is",
    "belongs": "{city} belongs to the {kind}",
}
_ONE_HOP: Final = {
    "of": "the {relation} of {place} is",
    "has": "{place} has the {relation}",
    "in": "in {place} the {relation} is",
}
_TWO_HOP: Final = {
    "of": "the {relation} of the {kind} containing {city} is",
    "has": "the {kind} containing {city} has the {relation}",
    "belongs": "{city} belongs to a {kind} with the {relation}",
}
_SUMS: Final = {"plus": "{i} + {j} =", "sum": "the sum of {i} and {j} is"}


@dataclass(frozen=True)
class Sentence:
    """A prompt and its answer.

    Attributes
    ----------
    id
        Unique in the corpus, readable, the same for the same seed.
    prompt, answer
        What is asked, and the one token that answers it.
    family
        What it is about: ``city-state``, ``state-capital``, ``city-state-capital``, ``sum``, …
    template
        Its wording within the family.
    hops
        Facts that the answer takes: 1 or 2; 0 for sums and induction.
    split
        ``train`` or ``held_out``.
    roles
        What words of the prompt stand for: ``{"city": "Dallas"}``; each is one token of it.
    bridge
        The fact between the two hops (``Texas``), else empty.
    """

    id: str
    prompt: str
    answer: str
    family: str
    template: str
    hops: int
    split: Split = "train"
    roles: Mapping[str, str] = field(default_factory=dict)
    bridge: str = ""

    @property
    def text(self) -> str:
        """Prompt and answer."""
        return f"{self.prompt} {self.answer}"

    def record(self) -> dict[str, Any]:
        """One line of a file of prompts, as ``tracer.read_prompts`` reads it."""
        return {
            "id": self.id,
            "prompt": self.prompt,
            "answer": self.answer,
            "family": self.family,
            "template": self.template,
            "hops": self.hops,
            "split": self.split,
            "roles": self._located(),
            **({"bridge": self.bridge} if self.bridge else {}),
        }

    def _located(self) -> dict[str, str | dict[str, Any]]:
        """Roles; a word that stands twice in the prompt, with which of the two is meant."""
        located: dict[str, str | dict[str, Any]] = {}
        words = list(self.roles.values())
        for place, (role, word) in enumerate(self.roles.items()):
            several = len(re.findall(rf"(?<!\w){re.escape(word)}(?!\w)", self.prompt)) > 1
            nth = 1 + words[:place].count(word)
            located[role] = {"text": word, "nth": nth} if several else word
        return located


@dataclass(frozen=True)
class Corpus:
    """All sentences, in a fixed order, and the words they are made of.

    Attributes
    ----------
    seed : int
    sentences : tuple of Sentence
    content : frozenset of str
        Words that carry facts: names, numbers, opposites. All others are function words.
    """

    seed: int
    sentences: tuple[Sentence, ...]
    content: frozenset[str]

    def of(
        self, split: Split | None = None, *, family: str | None = None, hops: int | None = None
    ) -> list[Sentence]:
        """Sentences of a split, family or number of hops."""
        return [
            sentence
            for sentence in self.sentences
            if (split is None or sentence.split == split)
            and (family is None or sentence.family == family)
            and (hops is None or sentence.hops == hops)
        ]

    @property
    def families(self) -> list[str]:
        """Families, in the order in which they appear."""
        return list(dict.fromkeys(sentence.family for sentence in self.sentences))


def make_corpus(seed: int = 0) -> Corpus:
    """Make every sentence; the same seed gives the same corpus.

    Parameters
    ----------
    seed
        Chooses what is held out and the words of induction sentences.

    Examples
    --------
    >>> corpus = make_corpus()
    >>> [s.answer for s in corpus.sentences if s.id == "city-state-capital/has/Dallas"]
    ['Austin']
    """
    chance = random.Random(seed)  # noqa: S311 - reproducible, not secret
    facts = [
        *_places(_STATES_TOLD, "state", chance),
        *_places(_COUNTRIES_TOLD, "country", chance),
        *_opposites(),
        *_sums(chance),
    ]
    names = sorted({word for s in facts for word in (*s.roles.values(), s.answer)})
    return Corpus(seed, (*facts, *_induction(names, chance)), frozenset(names))


def write_prompts(sentences: Iterable[Sentence], path: Path) -> None:
    """Write sentences as JSON lines that ``tracer.read_prompts`` reads."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        for sentence in sentences:
            file.write(json.dumps(sentence.record(), ensure_ascii=False) + "\n")


@dataclass(frozen=True)
class _Place:
    name: str
    capital: str
    cities: tuple[str, ...]
    relations: Mapping[str, str]


_STATES_TOLD: Final = [
    _Place(
        state.name,
        state.capital,
        state.cities,
        {
            "capital": state.capital,
            "abbreviation": state.abbreviation,
            "region": state.region,
            "nickname": state.nickname,
        },
    )
    for state in STATES
]
_COUNTRIES_TOLD: Final = [
    _Place(
        country.name,
        country.capital,
        country.cities,
        {
            "capital": country.capital,
            "language": country.language,
            "continent": country.continent,
            "currency": country.currency,
        },
    )
    for country in COUNTRIES
]


def _places(places: list[_Place], kind: str, chance: random.Random) -> Iterator[Sentence]:
    """Sentences about states or countries: cities, relations, and relations of cities."""
    others = [city for place in places for city in place.cities]
    held_out = set(chance.sample(others, round(HELD_OUT_CITIES * len(others))))
    for place in places:
        for city in (place.capital, *place.cities):
            for template, words in _CONTAINER.items():
                yield Sentence(
                    id=f"city-{kind}/{template}/{city}",
                    prompt=words.format(city=city, kind=kind),
                    answer=place.name,
                    family=f"city-{kind}",
                    template=template,
                    hops=1,
                    roles={"city": city},
                )
        for relation, answer in place.relations.items():
            for template, words in _ONE_HOP.items():
                yield Sentence(
                    id=f"{kind}-{relation}/{template}/{place.name}",
                    prompt=words.format(place=place.name, relation=relation),
                    answer=answer,
                    family=f"{kind}-{relation}",
                    template=template,
                    hops=1,
                    roles={kind: place.name},
                )
            for city in (place.capital, *place.cities):
                if city == answer:
                    continue  # a capital's own capital could be copied, and nothing learned
                for template, words in _TWO_HOP.items():
                    yield Sentence(
                        id=f"city-{kind}-{relation}/{template}/{city}",
                        prompt=words.format(city=city, kind=kind, relation=relation),
                        answer=answer,
                        family=f"city-{kind}-{relation}",
                        template=template,
                        hops=2,
                        split="held_out" if city in held_out else "train",
                        roles={"city": city},
                        bridge=place.name,
                    )


def _opposites() -> Iterator[Sentence]:
    """Opposites in each language, translations, and opposites in the other language."""

    def sentence(
        family: str, template: str, prompt: str, word: str, answer: str, bridge: str = ""
    ) -> Sentence:
        return Sentence(
            id=f"{family}/{template}/{word}",
            prompt=prompt.format(word=word),
            answer=answer,
            family=family,
            template=template,
            hops=2 if bridge else 1,
            roles={"word": word},
            bridge=bridge,
        )

    for pair in OPPOSITES:
        for one, other in ((0, 1), (1, 0)):
            english, french = pair.english[one], pair.french[one]
            opposite, contraire = pair.english[other], pair.french[other]
            yield sentence("opposite", "of", "the opposite of {word} is", english, opposite)
            yield sentence("opposite", "antonym", "antonym : {word}", english, opposite)
            yield sentence("contraire", "de", "le contraire de {word} est", french, contraire)
            yield sentence("contraire", "antonyme", "antonyme : {word}", french, contraire)
            yield sentence("to-french", "in", "{word} in French is", english, french)
            yield sentence("to-french", "colon", "français : {word}", english, french)
            yield sentence("to-english", "en", "{word} en anglais est", french, english)
            yield sentence("to-english", "colon", "English : {word}", french, english)
            yield sentence(
                "opposite-in-french",
                "of",
                "the opposite of {word} in French is",
                english,
                contraire,
                opposite,
            )
            yield sentence(
                "opposite-in-english",
                "de",
                "le contraire de {word} en anglais est",
                french,
                opposite,
                contraire,
            )


def _sums(chance: random.Random) -> Iterator[Sentence]:
    pairs = [(i, j) for i in range(SUMMANDS) for j in range(SUMMANDS)]
    held_out = set(chance.sample(pairs, round(HELD_OUT_SUMS * len(pairs))))
    for i, j in pairs:
        for template, words in _SUMS.items():
            yield Sentence(
                id=f"sum/{template}/{i}+{j}",
                prompt=words.format(i=i, j=j),
                answer=str(i + j),
                family="sum",
                template=template,
                hops=0,
                split="held_out" if (i, j) in held_out else "train",
                roles={"first": str(i), "second": str(j)},
            )


def _induction(names: list[str], chance: random.Random) -> Iterator[Sentence]:
    """Yield patterns of random words that begin again and stop at any word but the first."""
    for number in range(INDUCTION_SENTENCES):
        length = chance.randint(*INDUCTION_WORDS)
        words = chance.sample(names, length)
        again = chance.randint(1, length - 1)
        yield Sentence(
            id=f"induction/{number}",
            prompt=" ".join((*words, *words[:again])),
            answer=words[again],
            family="induction",
            template=f"{length}",
            hops=0,
            split="held_out" if number < HELD_OUT_INDUCTION * INDUCTION_SENTENCES else "train",
            roles={"previous": words[again - 1]},
        )
