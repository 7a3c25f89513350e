"""Do circuit-tracer's own classes agree with circuitbase's files and figures?

Two environments take part, because circuit-tracer pins older libraries::

    .venv/bin/python benchmarks/circuit_tracer_schema.py make FOLDER [GRAPH.json …]
    OTHER/bin/python benchmarks/circuit_tracer_schema.py check FOLDER

``make`` (circuitbase) writes every golden graph and every file named as ``.circuit`` and as JSON,
with circuitbase's scores and influence beside them. ``check`` (circuit-tracer 0.5.0) opens each
``.circuit`` with zipfile and NumPy alone, makes a circuit-tracer ``Graph`` of it, and compares
``compute_graph_scores`` and ``compute_node_influence``; and it validates the JSON by
circuit-tracer's pydantic models, and its ids by those that its functions would give.

``save GOLDEN.npz OUT.pt`` and ``save-variants FOLDER`` (circuit-tracer) make the small ``.pt``
files of ``tests/data/files``.
"""

from __future__ import annotations

import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
# circuit-tracer computes in float32: sums of a few hundred terms agree to a few units of 1e-6.
SCORE_TOLERANCE = 1e-5
INFLUENCE_TOLERANCE = 1e-5


# circuitbase's side ----------------------------------------------------------------------------


def make(folder: Path, files: list[Path]) -> None:
    """Write graphs and figures with circuitbase."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    from conftest import GOLDEN, golden_graph

    from graphstore.files import read_graph, write_graph
    from tracer.influence import influence
    from tracer.pruning import prune
    from tracer.scores import scores

    folder.mkdir(parents=True, exist_ok=True)
    graphs = {}
    for name in GOLDEN:
        with np.load(ROOT / "tests/data/golden" / f"{name}_a.npz") as file:
            graphs[name] = golden_graph(name, {key: file[key] for key in file.files})
    graphs |= {f"{name}-pruned": prune(graph) for name, graph in graphs.items()}
    graphs |= {path.stem: read_graph(path) for path in files}
    for name, graph in graphs.items():
        write_graph(graph, folder / f"{name}.circuit")
        write_graph(graph, folder / f"{name}.json")
        found = scores(graph, "as_stored")
        figures = {
            "replacement": found.replacement,
            "completeness": found.completeness,
            "influence": influence(graph).tolist(),
        }
        (folder / f"{name}.figures").write_text(json.dumps(figures))
    print(f"{len(graphs)} graphs in {folder}")


# circuit-tracer's side -------------------------------------------------------------------------


def check(folder: Path) -> int:
    """Compare every graph of a folder; number of graphs that disagree."""
    import torch
    from circuit_tracer.graph import compute_graph_scores, compute_node_influence

    wrong = 0
    print(f"{'graph':40} {'nodes':>6} {'replacement':>11} {'completeness':>12} "
          f"{'|Δ scores|':>10} {'|Δ influence|':>13}  JSON")  # fmt: skip
    for path in sorted(folder.glob("*.circuit")):
        graph, rows = reference_graph(path)
        figures = json.loads(path.with_suffix(".figures").read_text())
        replacement, completeness = compute_graph_scores(graph)
        weights = torch.zeros(len(graph.adjacency_matrix))
        weights[-len(graph.logit_targets) :] = graph.logit_probabilities
        influence = compute_node_influence(graph.adjacency_matrix, weights).numpy()[rows]
        ours = np.array(figures["influence"])
        scores_off = max(
            abs(replacement - figures["replacement"]), abs(completeness - figures["completeness"])
        )
        influence_off = float(np.abs(influence - ours).max())
        schema = validate(path.with_suffix(".json"), graph, rows)
        good = (
            scores_off < SCORE_TOLERANCE
            and influence_off < INFLUENCE_TOLERANCE
            and schema.startswith("valid")
        )
        wrong += not good
        print(f"{path.stem:40} {len(rows):6} {replacement:11.6f} {completeness:12.6f} "
              f"{scores_off:10.1e} {influence_off:13.1e}  {schema}")  # fmt: skip
    print(f"{wrong} disagree" if wrong else "all agree")
    return wrong


def reference_graph(path: Path):
    """Make circuit-tracer's Graph of a .circuit file; and the row in it of each of our nodes."""
    import torch
    from circuit_tracer.attribution.targets import LogitTarget
    from circuit_tracer.graph import Graph
    from circuit_tracer.utils.tl_nnsight_mapping import UnifiedConfig

    with zipfile.ZipFile(path) as archive:

        def array(member: str) -> np.ndarray:
            return np.load(io.BytesIO(archive.read(f"{member}.npy")), allow_pickle=False)

        header = json.loads(archive.read("header.json"))
        kind = np.array(json.loads(archive.read("nodes/kind.json")))
        token = json.loads(archive.read("nodes/token.json"))
        columns = ("layer", "position", "index", "activation", "probability")
        node = {name: array(f"nodes/{name}") for name in columns}
        indptr, indices, data = (array(f"adjacency/{p}") for p in ("indptr", "indices", "data"))
    features, logits = np.flatnonzero(kind == "feature"), np.flatnonzero(kind == "logit")
    n_tokens, n_layers = len(header["tokens"]), int(node["layer"][logits[0]])
    # circuit-tracer's order: features, errors by layer, tokens, logits; it has every error node.
    rows = np.empty(len(kind), dtype=int)
    rows[features] = np.arange(len(features))
    errors, embeddings = kind == "error", kind == "embedding"
    start = len(features)
    rows[errors] = start + node["layer"][errors] * n_tokens + node["position"][errors]
    start += n_layers * n_tokens
    rows[embeddings] = start + node["position"][embeddings]
    start += n_tokens
    rows[logits] = start + np.arange(len(logits))
    adjacency = np.zeros((start + len(logits),) * 2, dtype=np.float32)
    targets = np.repeat(np.arange(len(kind)), np.diff(indptr))
    adjacency[rows[targets], rows[indices]] = data
    graph = Graph(
        input_string=header["prompt"],
        input_tokens=torch.tensor(header["token_ids"] or [0] * n_tokens),
        active_features=torch.tensor(
            np.stack([node[c][features] for c in ("layer", "position", "index")], axis=1)
        ),
        adjacency_matrix=torch.tensor(adjacency),
        cfg=UnifiedConfig(n_layers, 32, 8, 4, 64, 1 << 20, "unknown", "unknown", "unknown"),
        selected_features=torch.arange(len(features)),
        activation_values=torch.tensor(node["activation"][features]),
        logit_targets=[LogitTarget(token[row] or "", int(node["index"][row])) for row in logits],
        logit_probabilities=torch.tensor(node["probability"][logits], dtype=torch.float32),
        scan=header["transcoder_id"],
    )
    return graph, rows


def validate(path: Path, graph, rows: np.ndarray) -> str:
    """Read our JSON by circuit-tracer's models, and compare ids with those it would give."""
    from circuit_tracer.frontend.graph_models import Link, Model, Node

    model = Model.model_validate_json(path.read_bytes())
    known = {node.node_id for node in model.nodes}
    links = [Link(**link) for link in model.links]
    if not {end for link in links for end in (link.source, link.target)} <= known:
        return "links name unknown nodes"
    if len(known) != len(model.nodes) or len(model.nodes) != len(rows):
        return "node ids are not unique"
    raw = json.loads(path.read_bytes())["metadata"]["circuitbase"].get("source", {})
    if raw.get("format") == "anthropic":
        return "valid (Anthropic's ids kept)"
    n_features, layers = len(graph.selected_features), graph.cfg.n_layers
    for node, row in zip(model.nodes, rows, strict=True):
        if row < n_features:
            layer, position, index = graph.active_features[row].tolist()
            expected = Node.feature_node(layer, position, index)
        elif node.feature_type == "logit":
            place = row - (len(graph.adjacency_matrix) - len(graph.logit_targets))
            text, token = graph.logit_targets[place]
            expected = Node.logit_node(
                node.ctx_idx,
                token,
                text,
                layers,
                place == 0,
                float(graph.logit_probabilities[place]),
            )
        elif node.feature_type == "embedding":
            expected = Node.token_node(node.ctx_idx, node.node_id.split("_")[1])
        else:
            expected = Node.error_node(int(node.layer), node.ctx_idx)
            expected.node_id = node.node_id  # released 0.5.0 still writes the id that collides
        for key in ("node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId"):
            if getattr(node, key) != getattr(expected, key):
                return f"{node.node_id}.{key}: {getattr(node, key)} != {getattr(expected, key)}"
    return f"valid, {len(model.nodes)} nodes as circuit-tracer names them"


def save(golden: Path, out: Path, kept: int = 40) -> None:
    """Save part of a golden graph with Graph.to_pt: some of its features, all its other nodes."""
    import torch
    from circuit_tracer.attribution.targets import LogitTarget
    from circuit_tracer.graph import Graph
    from circuit_tracer.utils.tl_nnsight_mapping import UnifiedConfig

    with np.load(golden) as file:
        arrays = {key: file[key] for key in file.files}
    n_features, n_tokens = len(arrays["active_features"]), len(arrays["input_tokens"])
    rest = np.arange(n_features, len(arrays["adjacency"]))
    selected = np.sort(np.random.default_rng(0).choice(n_features, kept, replace=False))
    rows = np.concatenate([selected, rest])
    n_layers = (len(rest) - n_tokens - len(arrays["logit_tokens"])) // n_tokens
    family = golden.name.split("_")[0]
    Graph(
        input_string=str(arrays["prompt"]),
        input_tokens=torch.tensor(arrays["input_tokens"]),
        active_features=torch.tensor(arrays["active_features"]),
        adjacency_matrix=torch.tensor(arrays["adjacency"][np.ix_(rows, rows)]),
        cfg=UnifiedConfig(
            n_layers, 32, 8, 4, 64, 296, family, family, "Llama", 2, dtype=torch.float32
        ),
        selected_features=torch.tensor(selected),
        activation_values=torch.tensor(arrays["activations"]),
        logit_targets=[LogitTarget(f"<{t}>", int(t)) for t in arrays["logit_tokens"]],
        logit_probabilities=torch.tensor(arrays["logit_probabilities"]),
        vocab_size=296,
        scan=golden.stem.removesuffix("_a"),
    ).to_pt(str(out))


def save_variants(folder: Path) -> None:
    """Save tiny graphs as circuit-tracer's older versions and other types of number leave them."""
    import torch
    from transformer_lens import HookedTransformerConfig

    config = HookedTransformerConfig(
        n_layers=1, d_model=4, n_ctx=8, d_head=2, n_heads=2, d_vocab=10, act_fn="relu",
        model_name="tiny",
    )  # fmt: skip
    # One feature, one error, two tokens (so two errors), one logit: 1 + 2 + 2 + 1 nodes.
    adjacency = torch.zeros(6, 6)
    adjacency[0, 4], adjacency[5, 0], adjacency[5, 2], adjacency[5, 3] = 1.5, -2.0, 0.25, 3.0
    for name, dtype in (("bfloat16", torch.bfloat16), ("float16", torch.float16)):
        torch.save(
            {
                "input_string": "a b",
                "adjacency_matrix": adjacency.to(dtype).t().contiguous().t(),  # columns first
                "cfg": config,
                "active_features": torch.tensor([[0, 0, 3], [0, 1, 7]]),
                "logit_targets": torch.tensor([9]),
                "logit_probabilities": torch.tensor([0.75], dtype=dtype),
                "vocab_size": 10,
                "input_tokens": torch.tensor([2, 5]),
                "selected_features": torch.tensor([1]),
                "activation_values": torch.tensor([0.5, 1.25], dtype=dtype),
                "scan": ["owner/one", "owner/two"],
            },
            folder / f"tiny-{name}.pt",
        )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make", folder, *files]:
            make(Path(folder), [Path(file) for file in files])
        case ["check", folder]:
            sys.exit(1 if check(Path(folder)) else 0)
        case ["save", golden, out]:
            save(Path(golden), Path(out))
        case ["save-variants", folder]:
            save_variants(Path(folder))
        case _:
            sys.exit(__doc__)
