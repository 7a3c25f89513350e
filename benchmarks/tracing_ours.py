"""One measurement of circuitbase's tracer, in a process that does nothing else.

``python -m benchmarks.tracing_ours WHAT ROOT [--kind clt] [--transcoder FOLDER] [--prompt FILE]``

WHAT is ``trace``; ``parts`` (with residual and attention parts); ``pieces`` (the steps of a trace
by themselves); ``walk`` and ``products``, the two floors of :mod:`benchmarks.tracing_floor`; or
``scale``, which writes transcoders whose thresholds let a wanted number of features through.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import tracer
from benchmarks.reference_tracing import LAYERS, ZEROED
from benchmarks.tracing_floor import Recorder, replay, walk_down
from benchmarks.tracing_process import Watch, answer
from tracer.attribution.edges import residual_rows, rows
from tracer.attribution.local import LocalModel
from tracer.attribution.selecting import feature_targets
from tracer.attribution.targets import find_outputs
from tracer.attribution.tracing import local_model

if TYPE_CHECKING:
    from tracer.attribution.edges import Targets

MEASUREMENTS = ("trace", "parts", "pieces", "walk", "products")


class Case:
    """The model, a transcoder and a prompt, loaded."""

    def __init__(self, given: argparse.Namespace) -> None:
        prompt = given.prompt or given.root / "prompt.json"
        self.ids: list[int] = json.loads(prompt.read_text())["input_ids"]
        self.model = tracer.load_model(str(given.root / "model"), check=False)
        folder = given.transcoder or given.root / given.kind
        self.transcoder = tracer.load_transcoder(str(folder))

    def prepared(self) -> tuple[LocalModel, Targets]:
        """What edges are computed from."""
        local = local_model(self.model, self.transcoder, self.ids, ZEROED)
        return local, self.targets(local)

    def targets(self, local: LocalModel) -> Targets:
        """Every feature and the likeliest tokens."""
        outputs = find_outputs(local, None, self.model)
        return feature_targets(local, np.arange(local.n_features), outputs)


def trace(case: Case, given: argparse.Namespace) -> dict[str, Any]:
    """From token ids to the graph."""
    with Watch() as watch:
        graph = tracer.trace(case.model, case.transcoder, case.ids, parts=given.what == "parts")
    nodes = graph.nodes
    features = nodes[graph.is_feature]
    if given.save:
        logits = nodes[nodes["kind"] == "logit"]
        np.savez(
            given.save,
            adjacency=graph.adjacency.toarray(),
            active_features=features[["layer", "position", "index"]].to_numpy(np.int64),
            activations=features["activation"].to_numpy(),
            logit_tokens=logits["index"].to_numpy(np.int64),
            logit_probabilities=logits["probability"].to_numpy(),
        )
    counts = {"features": len(features), "nodes": graph.n_nodes, "edges": graph.n_edges}
    return watch.figures | counts | {"tokens": len(case.ids)}


def pieces(case: Case, given: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each step; what is left of a trace is making the graph and checking its rows."""
    del given
    with torch.no_grad():
        return {"pieces": [_pieces(case) for _ in range(2)][-1]}  # the second time counts


def _pieces(case: Case) -> dict[str, float]:
    found: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        with Watch() as watch:
            made = work()
        found[name] = watch.figures["seconds"]
        return made

    timed("trace", lambda: tracer.trace(case.model, case.transcoder, case.ids))
    frozen = timed("forward", lambda: case.model.freeze(case.ids))
    local = timed("local", lambda: LocalModel(frozen, case.transcoder, ZEROED))
    targets = timed("targets", lambda: case.targets(local))
    timed("rows", lambda: rows(local, targets))
    timed("residual", lambda: residual_rows(local, targets))
    steps = ("forward", "local", "targets", "rows")
    return found | {"graph": found["trace"] - sum(found[step] for step in steps)}


def walk(case: Case, given: argparse.Namespace) -> dict[str, Any]:
    """The products of carrying every target down to layer 0."""
    del given
    with torch.no_grad():
        local, targets = case.prepared()
        return walk_down(local, targets)


def products(case: Case, given: argparse.Namespace) -> dict[str, Any]:
    """The products that the tracer's edges take, by themselves."""
    del given
    with torch.no_grad():
        local, targets = case.prepared()
        with Recorder() as recorder:
            rows(local, targets)
        return replay(recorder)


def scale(given: argparse.Namespace) -> dict[str, Any]:
    """Write both transcoders with all thresholds multiplied, so that N features are active."""
    from safetensors.torch import load_file, save_file

    case = Case(given)
    with torch.no_grad():
        frozen = case.model.freeze(case.ids)
        ratios = []
        for layer in range(LAYERS):
            tensors = load_file(given.root / "plt" / f"layer_{layer}.safetensors")
            threshold = tensors["activation_function.threshold"]
            before = case.transcoder.preactivations(layer, frozen.streams[layer][ZEROED:])
            ratios.append((before / threshold).flatten())
    top = torch.topk(torch.cat(ratios), given.features + 1).values
    multiplier = float(top[-2:].double().mean())
    for kind in ("clt", "plt"):
        into = given.out / kind
        into.mkdir(parents=True)
        for file in (given.root / kind).resolve().iterdir():
            if not (file.name.startswith("W_enc") or file.name.startswith("layer_")):
                (into / file.name).symlink_to(file)
                continue
            tensors = load_file(file)
            for name in tensors:
                if "threshold" in name:
                    tensors[name].mul_(multiplier)
            save_file(tensors, into / file.name)
    return {"multiplier": multiplier}


def main() -> None:
    """Read the command line, measure, answer."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.tracing_ours",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=(*MEASUREMENTS, "scale"))
    parser.add_argument("root", type=Path, help="folder of the workload")
    parser.add_argument("--kind", choices=("clt", "plt"), default="clt")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--transcoder", type=Path, help="another folder than ROOT/KIND")
    parser.add_argument("--prompt", type=Path, help="another prompt.json than the workload's")
    parser.add_argument("--save", type=Path, metavar="FILE.npz", help="write the adjacency")
    parser.add_argument("--features", type=int, help="of scale: how many are to be active")
    parser.add_argument("--out", type=Path, help="of scale: folder to make")
    given = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    torch.set_num_threads(given.threads)
    if given.what == "scale":
        answer(scale(given))
        return
    measure = {"trace": trace, "parts": trace, "pieces": pieces, "walk": walk, "products": products}
    with Watch() as loading:
        case = Case(given)
    figures = measure[given.what](case, given)
    answer(figures | {"load_seconds": loading.figures["seconds"]})


if __name__ == "__main__":
    main()
