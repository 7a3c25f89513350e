"""Figures as tables: engines beside memory, ratios, and targets."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

__all__ = ["Table", "as_markdown", "as_text", "tables_of"]

# Title, header, rows of cells.
Table = tuple[str, list[str], list[list[str]]]
Results = dict[str, Any]


def tables_of(results: Results) -> list[Table]:
    """Tables of a run's figures."""
    tables = [_targets(results), _stores(results), _questions(results), _solver(results)]
    return [table for table in tables if table[2]] + [_circumstances(results)]


def as_text(tables: list[Table]) -> str:
    """Tables with aligned columns."""
    blocks = []
    for title, header, rows in tables:
        cells = [header, *rows]
        widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
        lines = [
            "  ".join(
                cell.ljust(width) if i == 0 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in cells
        ]
        blocks.append("\n".join([title, "-" * len(title), *lines]))
    return "\n\n".join(blocks)


def as_markdown(tables: list[Table]) -> str:
    """Tables in Markdown."""
    blocks = []
    for title, header, rows in tables:
        rule = ["---", *["---:"] * (len(header) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (header, rule, *rows)]
        blocks.append("\n".join([f"### {title}", "", *lines]))
    return "\n\n".join(blocks) + "\n"


def _targets(results: Results) -> Table:
    """Figures that have a target."""
    rows = []

    def add(name: str, target: str, value: float, met: bool, show: Callable[[float], str]) -> None:
        rows.append([name, target, show(value), "met" if met else "missed"])

    for engine, found in results["stores"].items():
        seconds = found["questions"]["scores, one graph"]["seconds"]
        add(f"scores of one graph, {engine}", "< 50 ms", seconds, seconds < 0.05, _time)
        add(f"append, {engine}", "< 0.5 s", found["append"], found["append"] < 0.5, _time)
        if engine == "embedded":
            rate = found["load"]["rows_per_second"]
            add(f"load, {engine}", "≥ 20,000 rows/s", rate, rate >= 20_000, _count)
    seconds = results["reference"]["scores"]
    add("scores of one graph, in memory", "< 50 ms", seconds, seconds < 0.05, _time)
    ratio = _solver_ratio(results["solver"])
    add("influence and scores, in products", "≤ 3 × lengths", ratio, ratio <= 3, _ratio)
    return "Targets", ["figure", "target", "measured", ""], rows


def _stores(results: Results) -> Table:
    """Loading and single graphs, a column an engine."""
    stores, memory = results["stores"], results["reference"]
    rows = []

    def add(
        name: str, get: Callable[[Results], Any], show: Callable[[Any], str], floor: Any = None
    ) -> None:
        values = [get(found) for found in stores.values()]
        cells = [show(v) if v is not None else "–" for v in values]
        ratios = [_ratio(v / floor) if floor and v is not None else "" for v in values]
        rows.append([name, *cells, show(floor) if floor else "", *ratios])

    rate = memory["rows_per_second"]
    add("load, rows (nodes + edges) a second", lambda f: f["load"]["rows_per_second"], _count, rate)
    add("… first tenth", lambda f: f["load"]["rows_per_second_first_tenth"], _count)
    add("… last tenth", lambda f: f["load"]["rows_per_second_last_tenth"], _count)
    add("… all records a second", lambda f: f["load"]["entities_per_second"], _count)
    add("load, seconds", lambda f: f["load"]["seconds"], _time)
    add("rows loaded", lambda f: f["load"]["rows"], _count)
    add("records in the store", lambda f: f["load"]["entities"], _count)
    add("features", lambda f: f["load"]["features"], _count, memory["features"])
    add("feature pairs", lambda f: f["load"]["feature_pairs"], _count, memory["feature_pairs"])
    add("append of one graph", lambda f: f["append"], _time, memory["append"])
    add("read back of one graph", lambda f: f["read"], _time, memory["read"])
    add("delete of one graph", lambda f: f["delete"], _time)
    add("size on disk", lambda f: f["disk"], _bytes)
    add("… of it transaction logs", lambda f: f.get("disk_transaction_logs"), _bytes)
    held = memory["peak_memory"]["client"]
    add("peak memory of the client", lambda f: f["peak_memory"]["client"], _bytes, held)
    add("peak memory of the server", lambda f: f["peak_memory"].get("server"), _bytes)
    header = ["", *stores, "in memory or file", *(f"{name} ÷" for name in stores)]
    return f"Stores of {results['graphs']:,} graphs", header, rows


def _questions(results: Results) -> Table:
    """Every query's time, and how it compares with memory."""
    stores = results["stores"]
    memory = results["reference"]["questions"]
    rows = []
    for name in next(iter(stores.values()), {"questions": {}})["questions"]:
        asked = [found["questions"][name] for found in stores.values()]
        floor = memory.get(name)
        ratios = [_ratio(a["seconds"] / floor["seconds"]) if floor else "" for a in asked]
        rows.append(
            [
                name,
                f"{asked[0]['rows']:,}",
                *(_time(a["seconds"]) for a in asked),
                _time(floor["seconds"]) if floor else "",
                *ratios,
                _agreement(asked, floor),
            ]
        )
    header = ["query", "rows", *stores, "in memory", *(f"{e} ÷" for e in stores), "answers"]
    return "Queries", header, rows


def _agreement(asked: list[Results], floor: Results | None) -> str:
    """Whether all answers have as many rows, and the same sum where there is one."""
    answers = [*asked, floor] if floor else asked
    rows = {answer["rows"] for answer in answers}
    sums = [answer["sum"] for answer in answers if "sum" in answer]
    same = len(rows) == 1 and all(math.isclose(s, sums[0], rel_tol=1e-9) for s in sums)
    return ("agree" if len(answers) > 1 else "") if same else "DIFFER"


def _solver(results: Results) -> Table:
    """The sparse solve, in seconds and in products."""
    found = results["solver"]
    product = found["product"] * found["lengths"]
    names = {
        "product": f"one product (there are {found['lengths']} lengths)",
        "influence_and_scores": "influence and scores, from the weights",
        "normalisation": "… of it normalisation",
        "series": "… of it the series",
        "triangular_setup": "triangular solve instead of the series: ordering, I − Âᵀ",
        "triangular_solve": "… and the solve",
        "construction": "validating the graph",
        "pruning": "pruning, with scores under four rules",
    }
    rows = [[name, _time(found[key]), _ratio(found[key] / product)] for key, name in names.items()]
    rows.append(["largest difference of the two", f"{found['largest_difference']:.1e}", ""])
    title = f"Sparse solve: {found['nodes']:,} nodes, {found['edges']:,} edges"
    return title, ["", "time", "÷ a product a length"], rows


def _solver_ratio(found: Results) -> float:
    return float(found["influence_and_scores"] / (found["product"] * found["lengths"]))


def _circumstances(results: Results) -> Table:
    """What the figures depend on."""
    machine, after = results["machine"], results["machine_after"]
    cores = f"{machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GiB"
    loads = f"{machine['load']} before, {after['load']} after ({machine['cores']} cores)"
    rows = [
        ["command", results["command"]],
        ["machine", f"{machine['system']} {machine['architecture']}, {cores}"],
        ["load (one minute)", loads],
        ["server memory", f"heap {results['heap']}; Neo4j's page cache {results['page_cache']}"],
        ["versions", ", ".join(f"{k} {v}" for k, v in results["versions"].items())],
        ["whole run", f"{results['seconds'] / 60:.1f} minutes"],
    ]
    return "Circumstances", ["", ""], rows


def _time(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{1000 * seconds:,.1f} ms"


def _count(value: float) -> str:
    return f"{value:,.0f}"


def _ratio(value: float) -> str:
    return f"{value:,.2f}" if value < 10 else f"{value:,.0f}"


def _bytes(value: float) -> str:
    return f"{value / 2**20:,.0f} MiB"
