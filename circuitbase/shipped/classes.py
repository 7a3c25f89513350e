"""Classes of the shipped corpus' words, from its facts: what computed labels may name.

A class is what words have in common in `facts`, and nothing else: the cities of Texas, the capitals
of states, whatever belongs to Texas. Labels name one where a feature's activation falls on it.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Final

from circuitbase.shipped.corpus import SUMMANDS
from circuitbase.shipped.facts import COUNTRIES, OPPOSITES, STATES

__all__ = ["word_classes"]

_LARGEST: Final = 2 * (SUMMANDS - 1)  # sum


@cache
def word_classes() -> dict[str, tuple[str, ...]]:
    """Names of the classes of every word that has one.

    Examples
    --------
    >>> word_classes()["Dallas"]
    ('cities', 'cities of states', 'Texas', 'Texas cities')
    """
    found: dict[str, list[str]] = defaultdict(list)

    def add(name: str, *words: str) -> None:
        for word in words:
            found[word].append(name)

    for state in STATES:
        cities = (state.capital, *state.cities)
        facts = (state.name, state.abbreviation, state.nickname)
        add("cities", *cities)
        add("cities of states", *cities)
        add("state capitals", state.capital)
        add("states", state.name)
        add("state abbreviations", state.abbreviation)
        add("state nicknames", state.nickname)
        add(state.name, *facts, *cities)
        add(f"{state.name} cities", *cities)
        add("regions", state.region)
    for country in COUNTRIES:
        cities = (country.capital, *country.cities)
        add("cities", *cities)
        add("cities of countries", *cities)
        add("country capitals", country.capital)
        add("countries", country.name)
        add(country.name, country.name, *cities)
        add(f"{country.name} cities", *cities)
        add("languages", country.language)
        add("continents", country.continent)
        add("currencies", country.currency)
    for pair in OPPOSITES:
        add("English words", *pair.english)
        add("French words", *pair.french)
    for number in range(_LARGEST + 1):
        add("numbers", str(number))
        add(f"numbers ending in {number % 10}", str(number))
        tens = number // 10 * 10
        add(f"numbers {tens} to {min(tens + 9, _LARGEST)}", str(number))
    return {word: tuple(dict.fromkeys(names)) for word, names in found.items()}
