"""Attribution graphs made to order, small enough to check by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

from tracer import AttributionGraph

TRANSCODER = "made/up@1"
Feature = tuple[int, int, int]  # layer, index, position


def made_graph(
    features: Sequence[Feature],
    edges: Mapping[tuple[Feature, Feature], float],
    *,
    slug: str,
    n_tokens: int = 6,
    transcoder: str = TRANSCODER,
    metadata: Mapping[str, Any] | None = None,
    roles: Mapping[str, list[int]] | None = None,
    targets: Sequence[tuple[str, float]] = ((" yes", 0.6), (" no", 0.3)),
) -> AttributionGraph:
    """Make a graph whose features each read an embedding and an error, and feed the targets."""
    features = sorted(set(features))
    nodes = [("feature", layer, position, index, None) for layer, index, position in features]
    errors = sorted({(layer, position) for layer, _, position in features})
    nodes += [("error", layer, position, -1, None) for layer, position in errors]
    nodes += [("embedding", -1, position, 100 + position, None) for position in range(n_tokens)]
    nodes += [("logit", 9, n_tokens - 1, 50 + i, p) for i, (_, p) in enumerate(targets)]
    row = {node[:4]: number for number, node in enumerate(nodes)}
    weights = np.zeros((len(nodes), len(nodes)))
    for number, feature in enumerate(features):
        layer, index, position = feature
        mine = row["feature", layer, position, index]
        weights[mine, row["embedding", -1, position, 100 + position]] = 1.0 + number % 3
        if layer:
            weights[
                mine, row["error", min(e for e, p in errors if p == position), position, -1]
            ] = 0.5 if min(e for e, p in errors if p == position) < layer else 0.0
        for target in range(len(targets)):
            weights[row["logit", 9, n_tokens - 1, 50 + target], mine] = 0.3 + 0.1 * number
    for (source, target), weight in edges.items():
        s = row["feature", source[0], source[2], source[1]]
        weights[row["feature", target[0], target[2], target[1]], s] = weight
    frame = pd.DataFrame(nodes, columns=["kind", "layer", "position", "index", "probability"])
    frame["token"] = [f"t{p}" for p in frame["position"]]
    frame.loc[frame["kind"] == "logit", "token"] = [text for text, _ in targets]
    source: dict[str, Any] = {"format": "made"}
    if metadata:
        source["metadata"] = dict(metadata)
    if roles:
        source["roles"] = dict(roles)
    return AttributionGraph(
        frame,
        csr_array(weights),
        prompt=slug,
        tokens=[f"t{i}" for i in range(n_tokens)],
        model_id="made/model",
        transcoder_id=transcoder,
        slug=slug,
        source=source,
    )


def identifier(feature: tuple[int, int] | Feature) -> str:
    """Id of a feature."""
    return f"{TRANSCODER}/{feature[0]}/{feature[1]}"
