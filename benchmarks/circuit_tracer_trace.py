"""Does circuit-tracer draw the same conclusions from our traces as we do?

Two environments take part, because circuit-tracer pins older libraries::

    .venv/bin/python benchmarks/circuit_tracer_trace.py make FOLDER [WORKLOAD]
    OTHER/bin/python benchmarks/circuit_tracer_trace.py check FOLDER

``make`` (circuitbase) traces one prompt with each golden transcoder, and with both of the tracing
benchmark's WORKLOAD where it is named; it writes each graph whole and pruned as ``.circuit``,
pruned as JSON, and scores, influence and masks beside them.

``check`` (circuit-tracer 0.5.0) makes its own ``Graph`` of each and compares
``compute_graph_scores``, ``compute_node_influence`` and the masks of ``prune_graph`` at three pairs
of thresholds. It validates the JSON by its pydantic models, and compares nodes and weights with
those that its own ``create_nodes`` and ``create_used_nodes_and_edges`` make of the whole graph.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from circuit_tracer_schema import (
    INFLUENCE_TOLERANCE,
    ROOT,
    SCORE_TOLERANCE,
    reference_graph,
    validate,
)

THRESHOLDS = ((0.8, 0.98), (0.5, 0.5), (0.6, 0.7))
# Masks are decided by sums in float32 there and float64 here: where they differ, the influence or
# score must be this close to the cutoff.
TIE = 1e-5


# circuitbase's side -------------------------------------------------------------------------------


def make(folder: Path, workload: Path | None) -> None:
    """Trace, prune, and write graphs and figures with circuitbase."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from conftest import GOLDEN

    import tracer
    from graphstore.files import write_graph

    folder.mkdir(parents=True, exist_ok=True)
    golden = ROOT / "tests/data/golden"
    cases = []
    for name in GOLDEN:
        with np.load(golden / f"{name}_a.npz") as file:
            ids = file["input_tokens"].tolist()
        model = golden / "models" / name.split("_")[0]
        cases.append((name, model, golden / "transcoders" / name, ids))
    if workload:
        ids = json.loads((workload / "prompt.json").read_text())["input_ids"]
        cases += [
            (f"bench_{kind}", workload / "model", workload / kind, ids) for kind in ("clt", "plt")
        ]
    for name, model, transcoder, ids in cases:
        graph = tracer.trace(
            tracer.load_model(str(model)), tracer.load_transcoder(str(transcoder)), ids, slug=name
        )
        pruned = tracer.prune(graph)
        write_graph(graph, folder / f"{name}.circuit")
        write_graph(pruned, folder / f"{name}-pruned.circuit")
        write_graph(pruned, folder / f"{name}.json")
        found = tracer.scores(graph, "full")
        figures = {"replacement": found.replacement, "completeness": found.completeness}
        (folder / f"{name}.figures").write_text(json.dumps(figures))
        arrays = {"influence": tracer.influence(graph)}
        for node_threshold, edge_threshold in THRESHOLDS:
            nodes, edges = tracer.prune_masks(graph, node_threshold, edge_threshold)
            of = f"{node_threshold}_{edge_threshold}"
            arrays |= {f"nodes_{of}": nodes, f"edges_{of}": np.stack(edges.nonzero())}
        np.savez(folder / f"{name}.npz", **arrays)
        print(f"{name}: {graph.n_nodes} nodes, {graph.n_edges} edges")


# circuit-tracer's side ----------------------------------------------------------------------------


def check(folder: Path) -> int:
    """Compare every graph of a folder; number of graphs that disagree."""
    import torch
    from circuit_tracer.graph import compute_graph_scores, compute_node_influence, prune_graph

    wrong = 0
    print(f"{'graph':22} {'nodes':>5} {'edges':>9} {'replacement':>11} {'completeness':>12} "
          f"{'|Δ scores|':>10} {'|Δ infl.|':>9}  masks at {THRESHOLDS}; JSON")  # fmt: skip
    for path in sorted(folder.glob("*.figures")):
        graph, rows = reference_graph(path.with_suffix(".circuit"))
        figures = json.loads(path.read_text())
        with np.load(path.with_suffix(".npz")) as file:
            arrays = {key: file[key] for key in file.files}
        replacement, completeness = compute_graph_scores(graph)
        scores_off = max(
            abs(replacement - figures["replacement"]), abs(completeness - figures["completeness"])
        )
        weights = torch.zeros(len(graph.adjacency_matrix))
        weights[-len(graph.logit_targets) :] = graph.logit_probabilities
        influence = compute_node_influence(graph.adjacency_matrix, weights)
        influence_off = float(np.abs(influence.numpy()[rows] - arrays["influence"]).max())
        masks = []
        for pair in THRESHOLDS:
            of = f"{pair[0]}_{pair[1]}"
            theirs = prune_graph(graph, *pair)
            nodes = np.zeros(len(theirs.node_mask), dtype=bool)
            nodes[rows] = arrays[f"nodes_{of}"]
            edges = np.zeros(tuple(theirs.edge_mask.shape), dtype=bool)
            ends = arrays[f"edges_{of}"]
            edges[rows[ends[0]], rows[ends[1]]] = True
            masks.append(_difference(graph, theirs, nodes, edges, weights, pair))
        schema = _json(path.with_suffix(".json"), graph)
        good = (
            scores_off < SCORE_TOLERANCE
            and influence_off < INFLUENCE_TOLERANCE
            and all(mask.startswith(("equal", "ties")) for mask in masks)
            and schema.startswith("valid")
        )
        wrong += not good
        n_edges = int((graph.adjacency_matrix != 0).sum())
        print(f"{path.stem:22} {len(rows):5} {n_edges:9} {replacement:11.6f} {completeness:12.6f} "
              f"{scores_off:10.1e} {influence_off:9.1e}  {'; '.join(masks)}; {schema}")  # fmt: skip
    print(f"{wrong} disagree" if wrong else "all agree")
    return wrong


def _difference(graph, theirs, nodes: np.ndarray, edges: np.ndarray, weights, pair) -> str:
    """How our masks differ from theirs, and how far from the cutoff what differs is."""
    from circuit_tracer.graph import (
        compute_edge_influence,
        compute_node_influence,
        find_threshold,
    )

    other_nodes = np.flatnonzero(nodes != theirs.node_mask.numpy())
    other_edges = np.nonzero(edges != theirs.edge_mask.numpy())
    if not (len(other_nodes) or len(other_edges[0])):
        return f"equal ({nodes.sum()} nodes, {edges.sum()} edges)"
    influence = compute_node_influence(graph.adjacency_matrix, weights)
    cutoff = find_threshold(influence, pair[0])
    kept = influence >= cutoff
    kept[-len(graph.logit_targets) - len(graph.input_tokens) :] = True
    left = graph.adjacency_matrix.clone()
    left[~kept] = 0
    left[:, ~kept] = 0
    scores = compute_edge_influence(left, weights)
    edge_cutoff = find_threshold(scores.flatten(), pair[1])
    off = [abs(float(influence[n]) / float(cutoff) - 1) for n in other_nodes]
    off += [
        abs(float(scores[target, source]) / float(edge_cutoff) - 1)
        for target, source in zip(*other_edges, strict=True)
    ]
    what = f"{len(other_nodes)} nodes, {len(other_edges[0])} of {edges.sum()} edges differ"
    return (
        f"{'ties' if max(off) < TIE else 'DIFFER'}: {what}, at most {max(off):.1e} off the cutoff"
    )


def _json(path: Path, graph) -> str:
    """Validate our JSON, and compare it with what circuit-tracer would write of the whole graph."""
    from circuit_tracer.graph import prune_graph
    from circuit_tracer.utils.create_graph_files import create_nodes, create_used_nodes_and_edges

    pruned, rows = reference_graph(path.with_name(f"{path.stem}-pruned.circuit"))
    found = validate(path, pruned, rows)
    if not found.startswith("valid"):
        return found
    theirs = prune_graph(graph)
    nodes = create_nodes(graph, theirs.node_mask, None, theirs.cumulative_scores)
    nodes, links = create_used_nodes_and_edges(graph, nodes, theirs.edge_mask)
    ours = json.loads(path.read_bytes())
    # Not by id: in 0.5.0 an error's can be a feature's too, and a token's names a tensor.
    count = len({(n.feature_type, n.layer, n.ctx_idx, n.feature) for n in nodes})
    mine = {(n["feature_type"], n["layer"], n["ctx_idx"], n["feature"]) for n in ours["nodes"]}
    same = {(n.feature_type, n.layer, n.ctx_idx, n.feature) for n in nodes} == mine
    weights = np.sort([link["weight"] for link in links])
    our_weights = np.sort([link["weight"] for link in ours["links"]])
    if not same or len(weights) != len(our_weights):
        return f"valid; but {count} nodes, {len(links)} links there"
    off = float(np.abs(weights - our_weights).max())
    return (
        f"valid; its own writer: the same {count} nodes, {len(links)} links, weights to {off:.0e}"
    )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", folder, *workload]:
            make(Path(folder), Path(workload[0]) if workload else None)
        case ["check", folder]:
            sys.exit(1 if check(Path(folder)) else 0)
        case _:
            sys.exit(__doc__)
