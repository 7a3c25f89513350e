"""Measure global weights: the pass over a corpus, and the products of virtual weights.

``python -m benchmarks.weights [--json FILE] [--markdown FILE] [--small] [--threads N]``

*The pass* is ``tracer.corpus_statistics`` for about 2,000 chosen features, the most active ones,
against the bare pass: the model's forward pass and the encoding of all features, batch by batch,
with nothing done with them. *Virtual weights* are the tiles of ``tracer.weights.virtual``, decoder
rows held in memory or read from disk (bfloat16), against plain products of matrices of the same
shapes that lie ready; then ``tracer.global_weights`` as a whole, with its cut. Each measurement is
a process of its own, and the sides take turns. Shares are of CPU seconds, which other work on the
machine disturbs less than the clock. Progress goes to standard error, tables to standard output.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.report import Table, as_markdown, as_text
from benchmarks.timing import machine, peak_memory, say, versions

REPOSITORY = Path(__file__).resolve().parents[1]
CHOSEN = 2000
# What is run through: the shipped model, and a random model of GPT-2's shape.
PASSES: dict[str, dict[str, Any]] = {
    "shipped model, CLT of 4 × 1,024": {"model": "shipped", "repeat": 2},
    "GPT-2 shape, PLT of 12 × 8,192": {
        "model": "gpt2", "layers": 12, "width": 768, "features": 8192, "l0": 50, "tokens": 8192,
    },
}  # fmt: skip
# Layers, features of each layer (all chosen), width: together 10,010 features.
PRODUCTS = {"CLT of 26 layers, d = 2,304, 10,010 features": (26, 385, 2304)}
SMALL_PRODUCTS = {"CLT of 8 layers, d = 768, 2,000 features": (8, 250, 768)}
TARGETS = {"pass": 0.7, "products": 0.6, "memory": 4.0}


def main() -> None:
    """Read the command line, measure, report."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--small", action="store_true", help="only what takes a minute")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(json.dumps(_measure(json.loads(given.one))))
        return
    start = time.perf_counter()
    results: dict[str, Any] = {
        "command": f"python -m benchmarks.weights --threads {given.threads}",
        "machine": machine(),
        "versions": versions(),
        "passes": {},
        "products": {},
    }
    for name, point in list(PASSES.items())[: 1 if given.small else None]:
        results["passes"][name] = _turns(given, name, ("ours", "bare"), {"pass": point})
    sizes = SMALL_PRODUCTS if given.small else PRODUCTS
    with tempfile.TemporaryDirectory() as folder:
        for name, size in sizes.items():
            say(f"{name}: writing the transcoder")
            _write_clt(Path(folder), *size)
            wanted = {"products": list(size), "folder": folder}
            sides = ("held", "read", "plain", "whole")
            results["products"][name] = _turns(given, name, sides, wanted)
    results["seconds"] = time.perf_counter() - start
    results["machine_after"] = machine()
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    tables = tables_of(results)
    if given.markdown:
        given.markdown.write_text(as_markdown(tables))
    print(as_text(tables))


def _turns(
    given: argparse.Namespace, name: str, sides: tuple[str, ...], wanted: dict[str, Any]
) -> dict[str, list[dict[str, Any]]]:
    """Measure all sides, in turns, each time in a process of its own."""
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(given.repeats):
        for side, found in runs.items():
            say(f"{name}: {side}")
            one = json.dumps({**wanted, "side": side, "threads": given.threads})
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.weights", "--one", one],
                cwd=REPOSITORY,
                stdout=subprocess.PIPE,
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": str(given.threads)},
            )
            found.append(json.loads(done.stdout.splitlines()[-1]))
    return runs


# One process --------------------------------------------------------------------------------------


def _measure(wanted: dict[str, Any]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(wanted["threads"])
    before = peak_memory() or 0
    with torch.no_grad():
        is_pass = "pass" in wanted
        made = _pass(wanted["pass"], wanted["side"]) if is_pass else _products(wanted)
    peak = peak_memory() or 0
    return {"peak_memory": peak, "memory_of_run": peak - before, **made}


def _pass(point: dict[str, Any], side: str) -> dict[str, Any]:
    import numpy as np

    import tracer

    model, transcoder, docs = _shipped(point) if point["model"] == "shipped" else _random(point)
    counts = tracer.feature_counts(model, transcoder, docs)
    flat = np.sort(np.concatenate(counts.counts))[::-1]
    chosen = tracer.FeatureSelection.active(counts, max(1, int(flat[CHOSEN - 1])))
    start, cpu = time.perf_counter(), time.process_time()
    if side == "ours":
        made = tracer.corpus_statistics(model, transcoder, docs, chosen)
        more = {"pairs": made.n_pairs, "chosen": len(chosen), "tokens": made.tokens}
    else:
        more = {"tokens": _bare(model, transcoder, docs)}
    return {**_taken(start, cpu), **more}


def _taken(start: float, cpu: float) -> dict[str, float]:
    return {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}


def _bare(model: Any, transcoder: Any, docs: list[list[int]]) -> int:
    """Forward pass and encoding of all features; nothing is kept."""
    import numpy as np

    from tracer.corpora import Corpus
    from tracer.training.activations import MlpHooks, padded

    hooks = MlpHooks(model, transcoder.read_hook, transcoder.write_hook)
    corpus, tokens = Corpus.of(docs), 0
    for batch in padded(corpus, np.arange(len(corpus)), 4096, model.context):
        with hooks.running():
            model.module(input_ids=batch.token_ids, use_cache=False, logits_to_keep=1)
        live = batch.live(1)
        for layer, reads in enumerate(hooks.reads):
            transcoder.active(layer, reads[live])
        tokens += int(live.sum())
    return tokens


def _shipped(point: dict[str, Any]) -> tuple[Any, Any, list[list[int]]]:
    import tracer
    from circuitbase.shipped import CLT, MODEL
    from circuitbase.shipped.corpus import make_corpus

    model = tracer.load_model(MODEL, check=False)
    transcoder = tracer.load_transcoder(CLT, lazy=False)
    sentences = make_corpus().of("train")
    docs = [model.tokenize(f"{one.prompt} {one.answer}") for one in sentences]
    return model, transcoder, docs * point["repeat"]


def _random(point: dict[str, Any]) -> tuple[Any, Any, list[list[int]]]:
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from tracer.corpora import Corpus
    from tracer.models import Model
    from tracer.training.activations import MlpHooks, padded
    from tracer.transcoders.saving import PlainTranscoder

    torch.manual_seed(0)
    layers, width, features = point["layers"], point["width"], point["features"]
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=12, attn_implementation="eager")
    model = Model(GPT2LMHeadModel(config))
    draw = np.random.default_rng(0)
    docs = [draw.integers(1, 50_000, size=256).tolist() for _ in range(point["tokens"] // 256)]
    encoders = [torch.randn(features, width) for _ in range(layers)]
    hooks = MlpHooks(model, "hook_resid_mid", "hook_mlp_out")
    first = next(padded(Corpus.of(docs[:4]), np.arange(4), 1024, 1024))
    with hooks.running():
        model.module(input_ids=first.token_ids, use_cache=False, logits_to_keep=1)
    share = 1 - point["l0"] / features
    thresholds = [
        torch.quantile(read[0] @ encoder.T, share, dim=0)
        for read, encoder in zip(hooks.reads, encoders, strict=True)
    ]
    made = PlainTranscoder(
        "plt",
        encoders,
        [torch.zeros(features)] * layers,
        [torch.zeros(features, 1, width)] * layers,
        [torch.zeros(width)] * layers,
        [threshold.clamp(min=0.0) for threshold in thresholds],
    )
    return model, made.open("random"), docs


def _products(wanted: dict[str, Any]) -> dict[str, Any]:
    import numpy as np
    import torch

    import tracer
    from tracer.weights.virtual import tiles

    layers, features, width = wanted["products"]
    if wanted["side"] == "plain":
        ready = [torch.randn(features, width) for _ in range(2)]
        start, cpu, pairs = time.perf_counter(), time.process_time(), 0
        for source in range(layers):
            for _ in range(source + 1, layers):
                pairs += (ready[0] @ ready[1].T).numel()
        return {**_taken(start, cpu), "pairs": pairs}
    transcoder = tracer.load_transcoder(wanted["folder"], lazy=wanted["side"] != "held")
    model: Any = SimpleNamespace(
        n_layers=layers,
        width=width,
        model_id="none",
        info={},
        has_post_norm=False,
        parts=lambda: SimpleNamespace(
            layers=[SimpleNamespace(mlp_norm=None, post_mlp_norm=None)] * layers
        ),
    )
    every = [np.arange(features) for _ in range(layers)]
    start, cpu, pairs = time.perf_counter(), time.process_time(), 0
    if wanted["side"] != "whole":
        for tile in tiles(model, transcoder, every, every):
            pairs += tile.weights.numel()
        return {**_taken(start, cpu), "pairs": pairs}
    statistics_ = _no_sums(model, transcoder, every)
    start, cpu = time.perf_counter(), time.process_time()
    made = tracer.global_weights(model, transcoder, statistics_, top_k=100)
    return {**_taken(start, cpu), "pairs": made.cut["pairs"], "kept": made.cut["kept"]}


def _no_sums(model: Any, transcoder: Any, every: list[Any]) -> Any:
    """Statistics of a corpus in which nothing fires: only virtual weights are computed."""
    import tracer
    from tracer.weights.collecting import _identity
    from tracer.weights.documents import Counting

    chosen = tracer.FeatureSelection.of(
        [(layer, int(i)) for layer, mine in enumerate(every) for i in mine]
    )
    counting = Counting(256, None, False, 1, (), 65_536)
    model.dtype = "torch.float32"
    made = tracer.CorpusStatistics.empty(
        chosen.features, {}, _identity(model, transcoder, counting), ("omitted",), len(every)
    )
    made.units.add("none", 0, 0, 1, 1000, 1)
    return made


def _write_clt(folder: Path, layers: int, features: int, width: int) -> None:
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    for layer in range(layers):
        decoder = torch.randn(features, layers - layer, width, dtype=torch.bfloat16)
        save_file({f"W_dec_{layer}": decoder}, folder / f"W_dec_{layer}.safetensors")
        encoder = {
            f"W_enc_{layer}": torch.randn(features, width, dtype=torch.bfloat16),
            f"b_enc_{layer}": torch.zeros(features),
            f"b_dec_{layer}": torch.zeros(width),
        }
        save_file(encoder, folder / f"W_enc_{layer}.safetensors")
    (folder / "config.yaml").write_text(
        "model_name: none\nmodel_kind: cross_layer_transcoder\n"
        "feature_input_hook: hook_resid_mid\nfeature_output_hook: hook_mlp_out\n"
    )


# Tables -------------------------------------------------------------------------------------------


def tables_of(results: dict[str, Any]) -> list[Table]:
    """Tables of a run's figures."""
    passes, products = [], []
    for name, runs in results["passes"].items():
        rate, cpu = (
            {
                side: statistics.median(run["tokens"] / run[of] for run in runs[side])
                for side in runs
            }
            for of in ("seconds", "cpu")
        )
        last, share = runs["ours"][-1], cpu["ours"] / cpu["bare"]
        passes.append(
            [
                name,
                f"{rate['ours']:,.0f}",
                f"{rate['bare']:,.0f}",
                f"{share:.2f}",
                "met" if share >= TARGETS["pass"] else "missed",
                f"{last['chosen']:,}",
                f"{last['pairs']:,}",
                f"{last['tokens']:,}",
                f"{last['peak_memory'] / 2**20:,.0f} MiB",
            ]
        )
    for name, runs in results["products"].items():
        cpu = {side: statistics.median(run["cpu"] for run in runs[side]) for side in runs}
        peak = max(run["peak_memory"] for run in runs["whole"]) / 2**30
        held, read = cpu["plain"] / cpu["held"], cpu["plain"] / cpu["read"]
        products.append(
            [
                name,
                *(f"{cpu[side]:.2f} s" for side in ("plain", "held", "read", "whole")),
                f"{held:.2f}",
                f"{read:.2f}",
                "met" if held >= TARGETS["products"] else "missed",
                f"{peak:.2f} GiB",
                "met" if peak < TARGETS["memory"] else "missed",
            ]
        )
    header = ["tokens/s", "ours", "bare pass", "share", f"target {TARGETS['pass']}", "features"]
    more = ["CPU seconds", "plain products", "V, held", "V, read from disk", "with the cut"]
    more += ["share, held", "share, read", f"target {TARGETS['products']}"]
    return [
        ("Global weights: the pass", [*header, "pairs", "tokens", "peak memory"], passes),
        (
            "Global weights: products",
            [*more, "peak memory", f"target {TARGETS['memory']:.0f} GiB"],
            products,
        ),
        _circumstances(results),
    ]


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
    return "Global weights: circumstances", ["", ""], rows


if __name__ == "__main__":
    main()
