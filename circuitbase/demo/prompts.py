"""The prompts of the demonstration: a few of each family of the shipped corpus, in prompt sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from circuitbase.shipped.corpus import Corpus, Sentence, make_corpus
from tracer.prompts import Prompt

__all__ = [
    "FIRST_HOP",
    "HERO",
    "ONE_HOP",
    "ONE_WORDING",
    "SECOND_HOP",
    "SUMS",
    "TWO_HOP",
    "choose_prompts",
    "prompts_of",
]

HERO: Final = "Dallas"  # the city that the story follows
TWO_HOP: Final = "two-hop"
ONE_HOP: Final = "one-hop"
FIRST_HOP: Final = "one-hop/city"
SECOND_HOP: Final = "one-hop/capital"
ONE_WORDING: Final = "two-hop/of"
SUMS: Final = "sums"

_IN_STATES: Final = (
    *(HERO, "Oakland", "Chicago", "Miami", "Seattle"),
    *("Detroit", "Cleveland", "Memphis", "Reno", "Tucson"),
)
_IN_COUNTRIES: Final = ("Lyon", "Osaka", "Milan", "Munich", "Krakow", "Busan")
_SUMMANDS: Final = ((12, 7), (3, 28), (15, 16), (24, 9), (8, 21), (27, 14))


def choose_prompts(limit: int | None = None) -> dict[str, list[Prompt]]:
    """Prompts by the set that they go into, about sixty.

    Parameters
    ----------
    limit
        The most of each set; None for all.

    Examples
    --------
    >>> sets = choose_prompts(2)
    >>> sets["two-hop/of"][0].prompt
    'the capital of the state containing Dallas is'
    """
    corpus = make_corpus()
    known = {sentence.id: sentence for sentence in corpus.sentences}
    sets = {
        **_two_hop(known),
        FIRST_HOP: [
            known[name]
            for kind, cities in (("state", _IN_STATES), ("country", _IN_COUNTRIES[:2]))
            for city in cities
            if (name := f"city-{kind}/address/{city}") in known
        ],
        SECOND_HOP: [
            known[name]
            for kind, cities in (("state", _IN_STATES), ("country", _IN_COUNTRIES[:2]))
            for city in cities
            if (name := f"{kind}-capital/of/{_container(known, kind, city)}") in known
        ],
        "opposites": [s for s in corpus.of(family="opposite") if s.template == "of"][:12:2],
        SUMS: [known[name] for i, j in _SUMMANDS if (name := f"sum/plus/{i}+{j}") in known],
        "induction": _induction(corpus, 4),
    }
    return {name: [_prompt(s) for s in chosen[:limit]] for name, chosen in sets.items()}


def prompts_of(sets: Mapping[str, list[Prompt]], name: str) -> list[Prompt]:
    """Prompts of a set and of those below it, as the store understands names of sets."""
    return [
        prompt
        for set_, prompts in sets.items()
        if set_ == name or set_.startswith(f"{name}/")
        for prompt in prompts
    ]


def _two_hop(known: dict[str, Sentence]) -> dict[str, list[Sentence]]:
    """Capitals of what contains a city: a set for each wording, the first one the largest."""
    sizes = {"of": (10, 6), "has": (4, 2), "belongs": (4, 2)}
    return {
        f"{TWO_HOP}/{template}": list(_capitals(known, template, *size))
        for template, size in sizes.items()
    }


def _capitals(
    known: dict[str, Sentence], template: str, states: int, countries: int
) -> Iterator[Sentence]:
    for kind, cities in (("state", _IN_STATES[:states]), ("country", _IN_COUNTRIES[:countries])):
        for city in cities:
            name = f"city-{kind}-capital/{template}/{city}"
            if name in known:
                yield known[name]


def _container(known: dict[str, Sentence], kind: str, city: str) -> str:
    found = known.get(f"city-{kind}-capital/of/{city}")
    return found.bridge if found is not None else ""


def _induction(corpus: Corpus, count: int) -> list[Sentence]:
    return [s for s in corpus.of("held_out", family="induction") if s.template == "4"][:count]


def _prompt(sentence: Sentence) -> Prompt:
    known: dict[str, Any] = sentence.record()
    prompt, name = known.pop("prompt"), known.pop("id")
    slug = "-".join(name.replace("/", " ").split())
    return Prompt(prompt, id=name, slug=slug, metadata=known)
