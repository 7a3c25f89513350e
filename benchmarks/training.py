"""Measure training against a plain PyTorch loop of the same matrix products.

``python -m benchmarks.training [--json FILE] [--markdown FILE] [--small]``

The plain loop has the products of a training step and no more: encoders, decoders, the squared
error, its gradient by autograd, Adam; dense, on activations that lie ready. It selects no features,
draws no batches, normalises nothing and keeps no figures. Ours is a whole step of ``tracer.train``,
as users run it, once the corpus is in the buffer. Each measurement is a process of its own, and the
two take turns. Progress goes to standard error, tables to standard output.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.report import Table, as_markdown, as_text
from benchmarks.timing import machine, peak_memory, say, versions

REPOSITORY = Path(__file__).resolve().parents[1]
BATCH = 1024
# (layers, features, width): the shipped model's first; then what grows.
SIZES = ((4, 1024, 128), (4, 2048, 128), (4, 4096, 128), (2, 1024, 128), (8, 1024, 128))
KINDS = (("clt", "batchtopk"), ("clt", "jumprelu"), ("plt", "batchtopk"))
TARGET = 0.6  # of the plain loop's tokens a second


def main() -> None:
    """Read the command line, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--small", action="store_true", help="only the first size")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(_measure(json.loads(given.one))))
        return
    start = time.perf_counter()
    results: dict[str, Any] = {
        "command": f"python -m benchmarks.training --threads {given.threads}",
        "machine": machine(),
        "versions": versions(),
        "points": [],
    }
    for size in SIZES[: 1 if given.small else None]:
        for kind, activation in KINDS if size == SIZES[0] else KINDS[:1]:
            point = _point(given, size, kind, activation)
            results["points"].append(point)
    results["seconds"] = time.perf_counter() - start
    results["machine_after"] = machine()
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    tables = tables_of(results)
    if given.markdown:
        given.markdown.write_text(as_markdown(tables))
    print(as_text(tables))


def _point(
    given: argparse.Namespace, size: tuple[int, int, int], kind: str, activation: str
) -> dict[str, Any]:
    """Both sides of one size, in turns."""
    layers, features, width = size
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "plain": []}
    for _ in range(given.repeats):
        for side, found in runs.items():
            say(f"{kind} {activation}, {layers} layers × {features} features, d = {width}: {side}")
            wanted = {
                "side": side,
                "layers": layers,
                "features": features,
                "width": width,
                "kind": kind,
                "activation": activation,
                "steps": given.steps,
                "threads": given.threads,
            }
            command = [sys.executable, "-m", "benchmarks.training", "--one", json.dumps(wanted)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(given.threads)}
            done = subprocess.run(
                command, cwd=REPOSITORY, stdout=subprocess.PIPE, check=True, env=environment
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
    return {
        "layers": layers,
        "features": features,
        "width": width,
        "kind": kind,
        "activation": activation,
        "runs": runs,
    }


# One process --------------------------------------------------------------------------------------


def _measure(wanted: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(wanted["threads"])
    measure = _ours if wanted["side"] == "ours" else _plain
    before = peak_memory() or 0
    seconds, more = measure(wanted)
    peak = peak_memory() or 0
    return {
        "seconds": seconds,  # of a step, median
        "peak_memory": peak,
        "memory_of_run": peak - before,
        **more,
    }


def _ours(wanted: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """Steps of ``tracer.train`` on a random GPT-2 and random tokens."""
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from tracer.corpora import Corpus
    from tracer.models import Model
    from tracer.training import TrainSettings, train

    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=wanted["layers"],
        n_embd=wanted["width"],
        n_head=4,
        vocab_size=900,
        n_positions=32,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    model = Model(GPT2LMHeadModel(config))
    draw = np.random.default_rng(0)
    corpus = Corpus.of([draw.integers(1, 900, size=16).tolist() for _ in range(2000)])
    warm = 200  # steps until activity is sparse and its cut is steady
    settings = TrainSettings(
        kind=wanted["kind"],
        features=wanted["features"],
        activation=wanted["activation"],
        steps=warm + wanted["steps"],
        batch=BATCH,
        learning_rate=2e-3,
        evaluate_every=0,
        checkpoint_every=0,
        log_every=50,
    )
    marks: list[float] = []
    last: dict[str, float] = {}

    def progress(step: int, row: Any) -> None:
        marks.append(time.perf_counter())
        last.update(row or {})

    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        train(model, corpus, settings, folder, progress=progress)
    steps = np.diff(marks[warm - 1 :])
    return float(np.median(steps)), {
        "whole": time.perf_counter() - start,
        "steps": settings.steps,
        "l0": last["l0"],
        "dead": last["dead"],
    }


def _plain(wanted: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    """The same products, dense."""
    import torch

    torch.manual_seed(0)
    layers, features, width = wanted["layers"], wanted["features"], wanted["width"]
    clt = wanted["kind"] == "clt"
    x, y = torch.randn(layers, BATCH, width), torch.randn(layers, BATCH, width)
    encoders = [torch.randn(features, width).mul_(0.1).requires_grad_() for _ in range(layers)]
    biases = [torch.zeros(features, requires_grad=True) for _ in range(layers)]
    pairs = [(s, t) for s in range(layers) for t in (range(s, layers) if clt else (s,))]
    decoders = {p: torch.randn(features, width).mul_(0.01).requires_grad_() for p in pairs}
    optimizer = torch.optim.Adam([*encoders, *biases, *decoders.values()], lr=1e-3, fused=True)
    times = []
    for _ in range(5 + wanted["steps"]):
        start = time.perf_counter()
        optimizer.zero_grad()
        active = [
            torch.relu(torch.addmm(b, x[i], e.T))
            for i, (e, b) in enumerate(zip(encoders, biases, strict=True))
        ]
        made: list[Any] = [0.0] * layers
        for (source, target), decoder in decoders.items():
            made[target] = made[target] + active[source] @ decoder
        loss = sum((one - y[i]).square().sum() for i, one in enumerate(made)) / BATCH
        loss.backward()  # type: ignore[union-attr]
        optimizer.step()
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:]), {}


# Tables -------------------------------------------------------------------------------------------


def tables_of(results: dict[str, Any]) -> list[Table]:
    """Tables of a run's figures."""
    rows, growth = [], []
    for point in results["points"]:
        ours, plain = (
            statistics.median(run["seconds"] for run in point["runs"][side])
            for side in ("ours", "plain")
        )
        memory = [
            statistics.median(run["peak_memory"] for run in point["runs"][side]) / 2**20
            for side in ("ours", "plain")
        ]
        last = point["runs"]["ours"][-1]
        share = plain / ours
        rows.append(
            [
                f"{point['kind'].upper()} {point['activation']}, {point['layers']} layers × "
                f"{point['features']:,}, d = {point['width']}",
                f"{BATCH / ours:,.0f}",
                f"{BATCH / plain:,.0f}",
                f"{share:.2f}",
                "met" if share >= TARGET else "missed",
                f"{memory[0]:,.0f} MiB",
                f"{memory[1]:,.0f} MiB",
                f"{last['l0']:.1f}",
                f"{last['dead']:.2f}",
                f"{last['whole']:.0f} s for {last['steps']}",
            ]
        )
        growth.append((point, ours, plain, memory[0]))
    header = ["", "ours, tokens/s", "plain loop", "share of it", f"target {TARGET}"]
    header += ["peak memory", "plain", "L0", "dead", "whole run, steps"]
    tables: list[Table] = [("Training: throughput", header, rows)]
    return [*tables, _exponents(growth), _circumstances(results)]


def _exponents(growth: list[tuple[dict[str, Any], float, float, float]]) -> Table:
    """Slopes of log cost against log size, by least squares."""
    chosen = [g for g in growth if (g[0]["kind"], g[0]["activation"]) == KINDS[0]]
    rows = []
    for size, fixed in (("features", "layers"), ("layers", "features")):
        base = chosen[0][0][fixed]
        points = [g for g in chosen if g[0][fixed] == base]
        if len({g[0][size] for g in points}) < 2:
            continue
        logs = [math.log(g[0][size]) for g in points]
        slopes = [
            statistics.linear_regression(logs, [math.log(g[i]) for g in points]).slope
            for i in (1, 2, 3)
        ]
        rows.append([size, *(f"{slope:.2f}" for slope in slopes), str(len(points))])
    header = ["CLT, batchtopk", "time of a step, ours", "plain", "peak memory, ours", "points"]
    return "Training: cost grows as size^k", header, rows


def _circumstances(results: dict[str, Any]) -> Table:
    before, after = results["machine"], results["machine_after"]
    cores = f"{before['cores']} cores, {before['memory_bytes'] / 2**30:.0f} GiB"
    rows = [
        ["command", results["command"]],
        ["machine", f"{before['system']} {before['architecture']}, {cores}"],
        ["load (one minute)", f"{before['load']} before, {after['load']} after"],
        ["versions", ", ".join(f"{k} {v}" for k, v in results["versions"].items())],
        ["whole run", f"{results['seconds'] / 60:.1f} minutes"],
    ]
    return "Training: circumstances", ["", ""], rows


if __name__ == "__main__":
    main()
