"""Which features a submatrix is of, and why each was chosen.

All × all does not fit, so features are chosen: those that a corpus uses often enough, those of some
graphs, a list, a random sample of each layer, or several of these together.

Source: spec, section 6.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from tracer.errors import SettingError

if TYPE_CHECKING:
    from tracer.graph import AttributionGraph
    from tracer.transcoders import Transcoder
    from tracer.weights.collecting import FeatureCounts

__all__ = ["FeatureSelection", "check_features"]

Indices = NDArray[np.int64]
_JOIN: Final = "; "


@dataclass(frozen=True, eq=False)
class FeatureSelection:
    """Features, each with the reason why it was chosen.

    ``a | b`` chooses what either does, ``a & b`` what both do.

    Attributes
    ----------
    features
        ``layer``, ``index``, ``reason``; by layer, then index, each feature once.
    record
        How they were chosen, JSON-able.

    Examples
    --------
    >>> mine = FeatureSelection.of([(1, 7)], reason="mine")
    >>> chosen = FeatureSelection.of([(1, 7), (0, 3)]) | mine
    >>> chosen.features.to_numpy().tolist()
    [[0, 3, 'listed'], [1, 7, 'listed; mine']]
    """

    features: pd.DataFrame
    record: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.features)

    def __or__(self, other: FeatureSelection) -> FeatureSelection:
        both = pd.concat([self.features, other.features])
        return _made(both, {"any_of": [self.record, other.record]})

    def __and__(self, other: FeatureSelection) -> FeatureSelection:
        mine, theirs = (
            pd.MultiIndex.from_frame(one.features[["layer", "index"]]) for one in (self, other)
        )
        both = pd.concat(
            [self.features[mine.isin(theirs)], other.features[theirs.isin(mine)]],
        )
        return _made(both, {"all_of": [self.record, other.record]})

    @classmethod
    def of(
        cls,
        features: Iterable[tuple[int, int]] | pd.DataFrame,
        reason: str = "listed",
        **record: Any,
    ) -> FeatureSelection:
        """Choose listed features.

        Parameters
        ----------
        features
            Pairs of layer and index, or a table with these columns (and perhaps ``reason``).
        reason
            Why, for those that come without.
        **record
            What else to keep with the choice.

        Raises
        ------
        SettingError
            If something in the list is not a layer and an index.
        """
        if isinstance(features, pd.DataFrame):
            if not {"layer", "index"} <= set(features.columns):
                raise SettingError("the table lacks layer or index", "Give both columns")
            table = features[["layer", "index"]].copy()
            table["reason"] = features.get("reason", reason)
        else:
            pairs = list(features)
            try:
                numbers = [(int(layer), int(index)) for layer, index in pairs]
                wrong = any((a, b) != tuple(pair) for (a, b), pair in zip(numbers, pairs))  # noqa: B905
            except (TypeError, ValueError):
                wrong = True
            if wrong:
                raise SettingError(
                    "the list of features holds something else than pairs of layer and index",
                    "Give pairs such as (3, 1024)",
                )
            table = pd.DataFrame(numbers, columns=["layer", "index"], dtype=np.int64)
            table["reason"] = reason
        return _made(table, {"rule": reason, "features": len(table), **record})

    @classmethod
    def of_graphs(
        cls, graphs: Iterable[AttributionGraph], name: str = "graphs"
    ) -> FeatureSelection:
        """Choose every feature that is a node of some graphs.

        Parameters
        ----------
        graphs
            Graphs of one transcoder.
        name
            What they are, such as the name of their prompt set.

        Raises
        ------
        SettingError
            If they are of several transcoders, or hold no feature.
        """
        found, transcoders, n = [], set(), 0
        for graph in graphs:
            nodes = graph.nodes[graph.nodes["kind"] == "feature"]
            found.append(nodes[["layer", "index"]])
            transcoders.add(graph.transcoder_id)
            n += 1
        if len(transcoders) > 1:
            raise SettingError(
                f"the graphs are of {len(transcoders)} transcoders: "
                f"{', '.join(sorted(map(str, transcoders))[:3])}",
                "Give graphs of one",
            )
        table = pd.concat(found).drop_duplicates() if found else pd.DataFrame()
        if not len(table):
            raise SettingError(f"{name}: holds no feature", "Give graphs with features")
        return cls.of(table.astype(np.int64), f"in {name}", graphs=n)

    @classmethod
    def active(cls, counts: FeatureCounts, at_least: int) -> FeatureSelection:
        """Choose features that are active on so many tokens of a corpus, or more.

        Parameters
        ----------
        counts
            From :func:`tracer.feature_counts`.
        at_least
            Tokens.
        """
        if at_least < 1:
            raise SettingError(f"active is {at_least}", "Give a number of tokens, 1 or more")
        pairs = [
            (layer, int(index))
            for layer, found in enumerate(counts.counts)
            for index in np.flatnonzero(found >= at_least)
        ]
        return cls.of(
            pairs,
            f"active on {at_least:,} tokens or more",
            corpus_id=counts.corpus_id,
            tokens=counts.tokens,
        )

    @classmethod
    def sample(
        cls,
        transcoder: Transcoder,
        per_layer: int,
        *,
        seed: int = 0,
        among: FeatureSelection | None = None,
    ) -> FeatureSelection:
        """Choose features at random, so many of each layer (all, where there are fewer).

        Parameters
        ----------
        transcoder
            Its layers and features.
        per_layer
            How many.
        seed
            Of the draw.
        among
            Draw from these alone.
        """
        if per_layer < 1:
            raise SettingError(f"a sample of {per_layer} a layer", "Give 1 or more")
        pairs = []
        for layer in range(transcoder.n_layers):
            pool = np.arange(transcoder.features(layer))
            if among is not None:
                own = among.features
                pool = own["index"].to_numpy(np.int64)[own["layer"].to_numpy() == layer]
            draw = np.random.default_rng([seed, layer])
            chosen = draw.choice(pool, size=min(per_layer, len(pool)), replace=False)
            pairs += [(layer, int(index)) for index in chosen]
        record: dict[str, Any] = {"seed": seed}
        if among is not None:
            record["among"] = among.record
        return cls.of(pairs, f"sample of {per_layer:,} a layer", **record)

    def by_layer(self, transcoder: Transcoder) -> list[Indices]:
        """Give the indices of each layer in rising order.

        Raises
        ------
        SettingError
            If there is no feature, or one does not exist.
        """
        check_features(self.features, transcoder)
        layers, indices = (self.features[name].to_numpy(np.int64) for name in ("layer", "index"))
        return [indices[layers == layer] for layer in range(transcoder.n_layers)]


def check_features(features: pd.DataFrame, transcoder: Transcoder) -> None:
    """Refuse an empty choice, and features that the transcoder does not have."""
    if not len(features):
        raise SettingError("no feature is chosen", "Choose by another rule, or a lower number")
    layers, indices = (features[name].to_numpy(np.int64) for name in ("layer", "index"))
    counts = np.array([transcoder.features(layer) for layer in range(transcoder.n_layers)])
    known = (layers >= 0) & (layers < len(counts)) & (indices >= 0)
    known[known] = indices[known] < counts[layers[known]]
    if not known.all():
        wrong = int(np.argmin(known))
        raise SettingError(
            f"feature {layers[wrong]}/{indices[wrong]} does not exist in "
            f"{transcoder.transcoder_id}",
            f"Layers go from 0 to {len(counts) - 1}, features from 0 to {int(counts.max()) - 1:,}",
        )


def _made(table: pd.DataFrame, record: Mapping[str, Any]) -> FeatureSelection:
    """Sort, and join the reasons of features that were chosen twice."""
    table = table.copy()
    table["reason"] = table["reason"].astype(object)
    grouped = (
        table.groupby(["layer", "index"], sort=True)["reason"]
        .agg(lambda reasons: _JOIN.join(dict.fromkeys(map(str, reasons))))
        .reset_index()
    )
    return FeatureSelection(grouped.astype({"layer": np.int64, "index": np.int64}), dict(record))
