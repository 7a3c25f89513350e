"""Figures of the tracing benchmark as tables: ours beside the reference and the floors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

from benchmarks.report import Table

__all__ = ["tables_of"]

Results = dict[str, Any]
Runs = Sequence[Results | None]

NAMES = {
    "reference": "circuit-tracer 0.5, batch 16 (its best)",
    "reference-256": "… batch 256 (its command line's default)",
    "reference-512": "… batch 512 (its Python default)",
    "trace": "`tracer.trace`",
    "parts": "… `parts=True`",
    "walk": "floor: a plain walk down, bare products",
    "products": "floor: our own bare products",
}
PIECES = {
    "forward": "forward pass and freeze",
    "local": "active features, decoder rows, errors",
    "targets": "encoder rows",
    "rows": "edges",
    "graph": "sparse matrix, node table, check of every row",
    "residual": "with parts: residual-direct edges",
}


def tables_of(results: Results) -> list[Table]:
    """Tables of a run's figures."""
    tables = [_targets(results)]
    tables += [_times(kind, found["runs"]) for kind, found in results["kinds"].items()]
    tables += [_agreement(results), _pieces(results), _growth(results), _exponents(results)]
    return [table for table in tables if table[2]] + [_circumstances(results)]


def _targets(results: Results) -> Table:
    """Figures that have a target (all without the reference's are left out)."""
    rows = []

    def add(name: str, target: str, value: float | None, met: bool) -> None:
        if value is not None:
            rows.append([name, target, f"{value:.2f}", "met" if met else "missed"])

    for kind, found in results["kinds"].items():
        runs = found["runs"]
        ours, walk = _median(runs["trace"]), _median(runs["walk"])
        if (best := _median(runs.get("reference", []))) and ours:
            least = {"clt": 5, "plt": 2.2}[kind]
            add(f"{kind}: times faster, batch 16", f"≥ {least}", best / ours, best / ours >= least)
        if (usual := _median(runs.get("reference-256", []))) and ours:
            least = {"clt": 12, "plt": 6}[kind]
            ratio = usual / ours
            add(f"{kind}: times faster, batch 256", f"≥ {least}", ratio, ratio >= least)
        if ours and walk:
            add(f"{kind}: ÷ floor of a walk", "≤ 1.3", ours / walk, ours / walk <= 1.3)
        if (parts := _median(runs["parts"])) and walk:
            add(f"{kind}: parts, ÷ floor", "≤ 2.5", parts / walk, parts / walk <= 2.5)
        mine, theirs = _memory(runs["trace"]), _memory(runs.get("reference", []))
        if mine and theirs:
            add(f"{kind}: memory ÷ reference", "≤ 0.5", mine / theirs, mine / theirs <= 0.5)
        if (same := found["agreement"]) and "frobenius" in same:
            value = f"{same['frobenius']:.1e}"
            met = "met" if same["frobenius"] <= 1e-4 else "missed"
            rows.append([f"{kind}: adjacency, relative", "≤ 1e-4", value, met])
    return "Tracing: targets", ["figure", "target", "measured", ""], rows


def _times(kind: str, runs: dict[str, Runs]) -> Table:
    """Times and memory of one kind, and their ratios."""
    reference, walk = _median(runs.get("reference", [])), _median(runs["walk"])
    products = _median(runs["products"])
    rows = []
    for name, label in NAMES.items():
        done = [run for run in runs.get(name, []) if run]
        middle = _median(done)
        if middle is None:
            continue
        floor = name in ("walk", "products")
        spread = [run["seconds"] for run in done]
        rows.append(
            [
                label,
                str(len(done)),
                _seconds(middle),
                f"{min(spread):.2f}–{max(spread):.2f}",
                "" if floor else _gibibytes(_memory(done)),
                "" if floor else _gibibytes(_grown(done)),
                f"{reference / middle:.2f}" if reference else "",
                f"{middle / walk:.2f}" if walk else "",
                f"{middle / products:.2f}" if products else "",
                f"{done[0]['multiply_adds'] / 1e9:.0f}" if floor else "",
            ]
        )
    one = next(run for run in runs["trace"] if run)
    title = (
        f"Tracing with a {kind.upper()}: {one['tokens']} tokens, {one['features']:,} features, "
        f"{one['edges']:,} edges"
    )
    header = ["", "runs", "median", "range, s", "peak memory", "… grown by"]
    header += ["× faster than batch 16", "÷ walk", "÷ own products", "10⁹ multiply-adds"]
    return title, header, rows


def _agreement(results: Results) -> Table:
    rows = []
    for kind, found in results["kinds"].items():
        if not (same := found["agreement"]):
            continue
        row = [
            kind,
            *("the same" if same[k] else "DIFFER" for k in ("same_features", "same_logits")),
        ]
        for figure in ("frobenius", "largest", "activations", "probabilities"):
            row.append(f"{same[figure]:.1e}" if figure in same else "")
        rows.append(row)
    header = ["", "active features", "logits in order", "adjacency: relative Frobenius"]
    header += ["largest difference ÷ largest entry", "activations", "probabilities"]
    return "Tracing: agreement with circuit-tracer", header, rows


def _pieces(results: Results) -> Table:
    kinds = {k: v["runs"]["pieces"][0]["pieces"] for k, v in results["kinds"].items()}
    rows = [
        [name, *(f"{1000 * found[key]:,.0f} ms" for found in kinds.values())]
        for key, name in PIECES.items()
    ]
    return "Tracing: where the time goes (second trace of a process)", ["", *kinds], rows


def _growth(results: Results) -> Table:
    rows = []
    for point in results["growth"]:
        runs = point["runs"]
        ours, theirs = _median(runs["trace"]), _median(runs["reference"])
        walk, products = _median(runs["walk"]), _median(runs["products"])
        asked = bool(runs["reference"])
        late = f"> {results['limit']:g} s" if asked else ""
        one = next(run for run in runs["trace"] if run)
        rows.append(
            [
                f"{point['kind']}, {point['tokens']} tokens",
                f"{one['features']:,}",
                f"{one['edges'] / 1e6:.1f} M",
                _seconds(ours),
                _gibibytes(_memory(runs["trace"])),
                _seconds(theirs) if theirs else late,
                _gibibytes(_memory(runs["reference"])) if theirs else "",
                f"{theirs / ours:.1f}" if theirs and ours else "",
                f"{ours / walk:.2f}" if ours and walk else "",
                f"{ours / products:.2f}" if ours and products else "",
            ]
        )
    header = ["", "features", "edges", "ours", "peak", "circuit-tracer", "peak", "× faster"]
    return "Tracing: how cost grows", [*header, "÷ walk", "÷ own products"], rows


def _exponents(results: Results) -> Table:
    """Slopes of log time against log size, by least squares."""
    rows = []
    kinds = list(results["kinds"])
    for name, label in (
        ("trace", "ours"),
        ("reference", "circuit-tracer, batch 16"),
        ("walk", "floor: a plain walk down"),
        ("products", "floor: our own products"),
    ):
        row = [label]
        for kind in kinds:
            points = [p for p in results["growth"] if p["kind"] == kind]
            for size, fixed in (("features", "tokens"), ("tokens", "features")):
                base = points[0][fixed] if points else 0
                measured = [
                    (p[size], seconds)
                    for p in points
                    if p[fixed] == base and (seconds := _median(p["runs"][name]))
                ]
                row.append(_slope(measured))
        if any(cell != "–" for cell in row[1:]):
            rows.append(row)
    header = [""]
    for kind in kinds:
        header += [f"{kind}: features^k", f"{kind}: tokens^k"]
    return "Tracing: time grows as size^k", header, rows


def _slope(points: list[tuple[int, float]]) -> str:
    if len(points) < 2:
        return "–"
    sizes, times = ([math.log(value) for value in values] for values in zip(*points, strict=True))
    slope = statistics.linear_regression(sizes, times).slope
    return f"{slope:.2f} ({len(points)} points)"


def _circumstances(results: Results) -> Table:
    """What the figures depend on."""
    machine, after = results["machine"], results["machine_after"]
    cores = f"{machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
    every = [
        run
        for found in (*results["kinds"].values(), *results["growth"])
        for runs in found["runs"].values()
        for run in runs
        if run and "others" in run
    ]
    others = [run["others"] for run in every]
    theirs: dict[str, str] = next((run["versions"] for run in every if "versions" in run), {})
    listed = ", ".join(f"{k} {v}" for k, v in results["versions"].items())
    rows = [
        ["command", results["command"]],
        ["machine", f"{machine['system']} {machine['architecture']}, {cores}"],
        ["threads", f"{results['threads']} on each side, float32"],
        ["load (one minute)", f"{machine['load']} before, {after['load']} after"],
        [
            "cores that other work kept busy",
            f"median {statistics.median(others):.1f}, at most {max(others):.1f}",
        ],
        ["versions", listed],
        ["versions of the reference", ", ".join(f"{k} {v}" for k, v in theirs.items())],
        ["whole run", f"{results['seconds'] / 60:.1f} minutes"],
    ]
    return "Tracing: circumstances", ["", ""], rows


def _median(runs: Runs) -> float | None:
    times = [run["seconds"] for run in runs if run]
    return statistics.median(times) if times else None


def _memory(runs: Runs) -> float | None:
    peaks = [run["peak_memory"] for run in runs if run and run["peak_memory"]]
    return statistics.median(peaks) if peaks else None


def _grown(runs: Runs) -> float | None:
    """Peak memory beyond what was resident when the trace began: libraries, model, encoders."""
    grown = [
        run["peak_memory"] - run["memory_before"] for run in runs if run and run["peak_memory"]
    ]
    return statistics.median(grown) if grown else None


def _seconds(value: float | None) -> str:
    return f"{value:.2f} s" if value is not None else "–"


def _gibibytes(value: float | None) -> str:
    return f"{value / 2**30:.2f} GiB" if value is not None else "–"
