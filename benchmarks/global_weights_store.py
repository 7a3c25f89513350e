"""Global weights in the store: writing a million pairs, and every question about them.

``python -m benchmarks.global_weights_store --out FILE`` measures both engines one after another;
``--corpora 2`` stores a second submatrix of the same features first, so that every feature has
pairs of two. What is stored is made up: 10,000 features of 26 layers, a million pairs among which
some features are hubs, and a prompt set of graphs of a thousand features.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import csr_array

import queries
from benchmarks.engines import ENGINES, opened, peak_memories
from benchmarks.timing import machine, median_time, say, size_of, versions
from graphstore import Store
from tracer import AttributionGraph
from tracer.weights import GlobalWeights

__all__ = ["made_graph", "made_weights", "measure"]

_LAYERS = 26
_TRANSCODER = "made/clt@main"
_GRAPHS = 20


def made_weights(n_features: int, n_pairs: int, seed: int, corpus: str) -> GlobalWeights:
    """Weights of random numbers with hubs: a source is drawn in proportion to a power law."""
    random = np.random.default_rng(0)  # features do not depend on the seed
    layers = np.sort(random.integers(0, _LAYERS, n_features))
    features = pd.DataFrame({"layer": layers, "index": np.arange(n_features)})
    random = np.random.default_rng(seed)
    features["reason"] = "active"
    features["active"] = 1_000_000
    features["mean_activation"] = random.uniform(0.1, 1, n_features)
    below = np.searchsorted(layers, layers)  # features of lower layers
    wanted = np.minimum(below, np.ceil(1.05 * n_pairs / n_features).astype(int))
    targets = np.repeat(np.arange(n_features), wanted)
    sources = (below[targets] * random.uniform(0, 1, len(targets)) ** 1.5).astype(int)
    pairs = np.unique(np.stack([targets, sources]), axis=1)
    keep = np.sort(random.permutation(pairs.shape[1])[:n_pairs])
    targets, sources = pairs[:, keep]
    k = len(targets)
    weight = random.standard_normal(k) * random.lognormal(0, 1, k)
    cofiring = np.where(random.uniform(size=k) < 0.1, 0, random.integers(1, 100_000, k))
    expected = np.where(cofiring > 0, random.lognormal(-3, 1, k), 0.0)
    product = expected * random.lognormal(0, 1, k)
    mean = features["mean_activation"].to_numpy()[targets]
    values = {
        "weights": weight,
        "era": expected * weight,
        "twera": product / mean * weight,
        "cofiring": cofiring,
        "standard_error_era": np.abs(expected * weight) / 100,
        "standard_error_twera": np.abs(expected * weight) / 50,
        "expected_source": expected,
        "expected_product": product,
    }
    indptr = np.searchsorted(targets, np.arange(n_features + 1))
    shape = (n_features, n_features)
    matrices: dict[str, Any] = {
        name: csr_array((data, sources, indptr), shape=shape) for name, data in values.items()
    }
    return GlobalWeights(
        features,
        **matrices,
        tokens=10_000_000,
        norm="omitted",
        corpus_id=corpus,
        model_id="made",
        transcoder_id=_TRANSCODER,
    )


def made_graph(weights: GlobalWeights, number: int) -> AttributionGraph:
    """A graph of a thousand features of the weights, with 8,000 edges and their two parts."""
    random = np.random.default_rng(number)
    n = len(weights)
    # Half of the features are common to all graphs, as they are in a family of prompts.
    common = np.random.default_rng(0).choice(n, n // 20, replace=False)
    own = random.choice(np.setdiff1d(np.arange(n), common), n // 20, replace=False)
    chosen = np.sort(np.concatenate([common, own]))
    m = len(chosen)
    layers = weights.features["layer"].to_numpy()[chosen]
    nodes = pd.DataFrame(
        {
            "kind": ["feature"] * m + ["logit"],
            "layer": [*layers, _LAYERS],
            "position": [*random.integers(0, 10, m), 9],
            "index": [*weights.features["index"].to_numpy()[chosen], 1],
            "activation": [*random.uniform(1, 10, m), np.nan],
            "probability": [*[np.nan] * m, 0.9],
        }
    )
    below = np.searchsorted(layers, layers)
    targets = np.repeat(np.flatnonzero(below), 8)
    sources = (below[targets] * random.uniform(0, 1, len(targets))).astype(int)
    rows = np.concatenate([targets, np.full(m, m)])
    columns = np.concatenate([sources, np.arange(m)])
    whole = csr_array((random.standard_normal(len(rows)), (rows, columns)), shape=(m + 1, m + 1))
    whole.sum_duplicates()
    residual = whole.copy()
    residual.data = residual.data * (random.uniform(size=whole.nnz) < 0.4)
    return AttributionGraph(
        nodes,
        whole,
        tokens=["t"] * 10,
        model_id="made",
        transcoder_id=_TRANSCODER,
        slug=f"graph-{number}",
        residual=residual,
        attention=whole - residual,
    )


def measure(engine: str, weights: list[GlobalWeights], folder: Path) -> dict[str, Any]:
    """Figures of one engine; times in seconds, sizes in bytes."""
    with opened(engine, folder) as store:
        found: dict[str, Any] = {"engine": engine, "machine": machine()}
        for number in range(_GRAPHS):
            store.write(made_graph(weights[0], number), "family")
        empty = size_of(folder)
        for each in weights:
            seconds = _time(partial(store.write_weights, each))
            found.setdefault("write", []).append(seconds)
            say(f"{engine}: written in {seconds:.1f} s, {each.weights.nnz / seconds:,.0f} pairs/s")
        found["disk"] = size_of(folder) - empty
        found["questions"] = _ask(engine, store, weights[0])
        back = store.read_weights(weights[0].weights_id)
        if not np.array_equal(back.twera.data, weights[0].twera.data):
            raise SystemExit("error: the weights came back different. Report a defect.")
        found["read"] = median_time(lambda: store.read_weights(back.weights_id), repeats=3)
        found["verify"] = _time(store.verify)
        found["delete"] = _time(lambda: store.delete_weights(weights[-1].weights_id))
        found["peak_memory"] = peak_memories(engine, folder)
        found["machine_after"] = machine()
    times = ", ".join(f"{name} {found[name]:.1f} s" for name in ("read", "verify", "delete"))
    say(f"{engine}: {times}")
    return found


def _ask(engine: str, store: Store, weights: GlobalWeights) -> dict[str, Any]:
    """Time every question; rows and the sum of a column, to compare answers with."""
    which = weights.weights_id
    ids = weights.feature_ids
    pairs = weights.weights
    hub = ids[int(np.argmax(np.bincount(pairs.indices, minlength=len(ids))))]
    last = len(ids) - 1
    first = int(pairs.indices[pairs.indptr[last]])
    paths = partial(
        queries.global_paths, store, source=ids[first], target=ids[last], weights_id=which
    )
    questions: dict[str, tuple[str, Callable[[], pd.DataFrame]]] = {
        "global_inputs": (
            "twera",
            lambda: queries.global_inputs(store, ids[last], weights_id=which),
        ),
        "global_outputs of a hub": (
            "twera",
            lambda: queries.global_outputs(store, hub, weights_id=which),
        ),
        "hubs": ("strength", lambda: queries.hubs(store, weights_id=which)),
        "interference, unused": ("weight", lambda: queries.interference(store, weights_id=which)),
        "interference, tiny": (
            "twera",
            lambda: queries.interference(store, weights_id=which, kind="tiny"),
        ),
        "global_paths, 1 other": ("strength", partial(paths, others=1)),
        "global_paths, 2 others": ("strength", partial(paths, others=2)),
        "global_paths, 3 others": ("strength", partial(paths, others=3)),
        "candidate_pairs": (
            "twera",
            lambda: queries.candidate_pairs(store, "family", weights_id=which),
        ),
        "candidate_pairs of a graph": (
            "twera",
            lambda: queries.candidate_pairs(store, ["graph-0"], weights_id=which),
        ),
        "local_against_global, a graph": (
            "global_share",
            lambda: queries.local_against_global(store, "graph-0", weights_id=which),
        ),
        "local_against_global, 20 graphs": (
            "global_share",
            lambda: queries.local_against_global(store, prompt_set="family", weights_id=which),
        ),
    }
    found = {}
    for name, (column, ask) in questions.items():
        answer = ask()
        seconds = median_time(ask)
        total = float(answer[column].sum())
        found[name] = {"seconds": seconds, "rows": len(answer), "sum": total}
        say(f"{engine}: {name} {1000 * seconds:,.0f} ms, {len(answer):,} rows")
    return found


def _time(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    """Measure, compare the engines' answers, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=int, default=10_000)
    parser.add_argument("--pairs", type=int, default=1_000_000)
    parser.add_argument("--corpora", type=int, default=1)
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    weights = [
        made_weights(options.features, options.pairs, seed, f"corpus-{seed}")
        for seed in range(options.corpora)
    ]
    figures: dict[str, Any] = {
        "versions": versions(),
        "features": len(weights[0]),
        "pairs": int(weights[0].weights.nnz),
        "corpora": len(weights),
        "engines": [],
    }
    for engine in options.engines:
        with tempfile.TemporaryDirectory() as folder:
            figures["engines"].append(measure(engine, weights, Path(folder)))
    answers = [
        {name: (each["rows"], round(each["sum"], 6)) for name, each in found["questions"].items()}
        for found in figures["engines"]
    ]
    if any(answer != answers[0] for answer in answers):
        raise SystemExit(f"error: the engines answer differently: {answers}. Report a defect.")
    options.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
