"""What the chapters of the demonstration know: the store, the sets, what was found so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

import queries
from circuitbase.demo.prompts import HERO, TWO_HOP, prompts_of
from circuitbase.demo.telling import Telling
from tracer.influence import influence
from tracer.prompts import Prompt

if TYPE_CHECKING:
    from graphstore import Store
    from tracer.graph import AttributionGraph
    from tracer.models import Model
    from tracer.transcoders import Transcoder

__all__ = ["Story"]


@dataclass
class Story:
    """A filled store and what is told of it.

    Attributes
    ----------
    store
        Holds the graphs and the labels.
    model, transcoder
        Of which the graphs are.
    sets
        Prompts by the set that they are in.
    tell
        Where what is found goes to.
    ids
        Id of the stored graph of each prompt, by the prompt's id.
    findings
        Figures that chapters have found, by name: what tests look at.
    """

    store: Store
    model: Model
    transcoder: Transcoder
    sets: Mapping[str, list[Prompt]]
    tell: Telling
    ids: Mapping[str, str]
    findings: dict[str, Any] = field(default_factory=dict)

    def tell_all(self, chapters: Iterable[Callable[[Story], None]]) -> None:
        """Tell chapters, one after another."""
        for chapter in chapters:
            chapter(self)

    def prompts(self, name: str) -> list[Prompt]:
        """Prompts of a set and of those below it."""
        return prompts_of(self.sets, name)

    @property
    def hero(self) -> Prompt:
        """The prompt that the story follows."""
        chosen = self.prompts(TWO_HOP)
        return next((p for p in chosen if HERO in str(p.prompt)), chosen[0])

    @property
    def hero_id(self) -> str:
        """Id of its graph."""
        return self.ids[self.hero.id]

    @cached_property
    def hero_name(self) -> str:
        """What to call its graph: its slug, or its id where another graph has that slug too."""
        slugs = self.store.rows(
            "MATCH (g:Graph) WHERE g.slug = $slug AND g.complete = true RETURN count(g) AS n",
            slug=self.hero.name,
        )
        return self.hero.name if slugs[0]["n"] == 1 else self.hero_id

    @cached_property
    def hero_graph(self) -> AttributionGraph:
        """Its graph, with the labels that its features have."""
        graph = self.store.read(self.hero_id)
        nodes = graph.nodes.copy()
        labels = [None if name is None else self.labels.get(name) for name in graph.feature_ids]
        nodes["label"] = pd.Series(labels, index=nodes.index, dtype=object)
        return graph.replace(nodes=nodes)

    @cached_property
    def known(self) -> pd.DataFrame:
        """What is known of the features of the hero's graph, by their ids."""
        return queries.features(self.store, [self.hero_id], limit=10_000).set_index("feature_id")

    @cached_property
    def labels(self) -> dict[str, str]:
        """Label of every feature of the hero's graph that has one."""
        return {str(name): str(label) for name, label in self.known["label"].dropna().items()}

    @cached_property
    def sources(self) -> dict[str, str]:
        """Why each of them has its label."""
        return {str(name): str(why) for name, why in self.known["label_source"].dropna().items()}

    @cached_property
    def promoted(self) -> dict[str, list[str]]:
        """The tokens that each of them promotes most."""
        return {str(name): list(found) for name, found in self.known["promoted"].dropna().items()}

    @cached_property
    def influence(self) -> NDArray[np.float64]:
        """Influence of each node of the hero's graph on the answer."""
        return influence(self.hero_graph)

    def ask(self, name: str, /, *, folded: bool = True, **parameters: Any) -> pd.DataFrame:
        """Ask a query of the library, and show its Cypher."""
        found = queries.run(self.store, name, **parameters)
        self.tell.query(queries.describe(name), parameters, folded=folded)
        return found

    def cypher(self, text: str, title: str, **parameters: Any) -> pd.DataFrame:
        """Run Cypher of our own, and show it."""
        found = self.store.cypher(text, parameters=parameters)
        self.tell.cypher(text, parameters, title)
        return found

    def row_of(self, node_id: str) -> int:
        """Row of a node in the hero's graph."""
        return self.hero_graph.node_ids.index(node_id)

    def city_position(self) -> int:
        """Where the hero's city stands."""
        word = self.hero.metadata["roles"]["city"]
        return [token.strip() for token in self.hero_graph.tokens].index(str(word))

    def target_row(self) -> int:
        """Row of the likeliest token in the hero's graph."""
        return int(np.argmax(np.where(self.hero_graph.is_logit, self.hero_graph.logit_weights, -1)))
