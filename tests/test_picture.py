"""Pictures: what they show is what the graph holds, whatever its texts and sizes are."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from rich.console import Console
from scipy.sparse import csr_array

import graphstore
from circuitbase.picture import (
    draw_figure,
    draw_terminal,
    figure,
    strongest_edges,
    visible,
)
from tracer import AttributionGraph, Supernode
from tracer.errors import FormatError
from tracer.pruning import prune

ODD = ["$x_1$", "a$b", "[bold]", "\x1b[31m", "\n", "日本", "\u202eabc", "^\\frac{", "", " the"]


def made(tokens=("a", "b"), n_layers=3, *, errors=True, label=None, seed=0) -> AttributionGraph:
    """Make a small graph: a feature and an error in each layer and position, and two logits."""
    rows = []
    for position in range(len(tokens)):
        rows.append(("embedding", -1, position, 10 + position, tokens[position], np.nan, None))
        for layer in range(n_layers):
            rows.append(("feature", layer, position, layer, tokens[position], np.nan, label))
            if errors:
                rows.append(("error", layer, position, -1, tokens[position], np.nan, None))
    last = len(tokens) - 1
    rows += [
        ("logit", n_layers, last, k, tokens[k % len(tokens)], 0.6 / (k + 1), None) for k in (0, 1)
    ]
    names = ["kind", "layer", "position", "index", "token", "probability", "label"]
    nodes = pd.DataFrame(rows, columns=names).astype({"token": object, "label": object})
    rng = np.random.default_rng(seed)
    layer, position = nodes["layer"].to_numpy(), nodes["position"].to_numpy()
    later = layer[:, None] > layer[None, :]
    can = later & (position[:, None] >= position[None, :])
    can &= (nodes["kind"].isin(["feature", "logit"])).to_numpy()[:, None]
    weights = np.where(can, rng.normal(size=can.shape), 0.0)
    return AttributionGraph(nodes, csr_array(weights), prompt="".join(tokens), tokens=tokens)


def text_of(graph: AttributionGraph, width: int = 100, **how) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(draw_terminal(graph, width, **how))
    return stream.getvalue()


# Terminal --------------------------------------------------------------------------------------


def test_terminal_shows_counts_and_influence_of_each_layer(golden):
    graph, arrays = golden("gpt2_clt_residmid")
    text = text_of(graph, 120)
    influence = arrays["node_influence"]  # the reference tool's: float32, so compare at 0.1 %
    for layer in range(3):
        line = next(part for part in text.splitlines() if part.startswith(f"    {layer}  "))
        here = graph.is_feature & (graph.nodes["layer"] == layer).to_numpy()
        share = influence[here].sum() / influence.sum()
        shown = float(re.search(r"([\d.]+)%", line)[1])
        assert shown == pytest.approx(100 * share, abs=0.06)
        counts = [int(n) for n in re.findall(r"(\d+)[·░▒▓█] ", line.split("%")[0])]
        expected = np.bincount(graph.nodes["position"][here], minlength=len(graph.tokens))
        assert counts == [n for n in expected if n]


def test_terminal_lists_strongest_first(golden):
    graph, arrays = golden("llama_plt_mlp")
    lines = text_of(graph, 120, nodes=5).splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith("strongest nodes"))
    listed = [line.split()[0] for line in lines[start + 1 : start + 6]]
    order = np.argsort(-arrays["node_influence"], kind="stable")[:5]
    assert listed == [graph.keys[row] for row in order]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 100, 170, 250])
def test_terminal_stays_within_its_width(width):
    graph = made(tokens=[f"token{k}" for k in range(30)])
    assert max(map(len, text_of(graph, max(width, 40)).splitlines())) <= max(width, 40)


def test_terminal_says_what_it_leaves_out():
    graph = made(tokens=[f"t{k}" for k in range(30)])
    assert "of 30 positions are left out" in text_of(graph, 80)
    assert "left out" not in text_of(graph, 200)


def test_terminal_groups_layers_of_deep_models():
    text = text_of(made(n_layers=50), 80, max_rows=10)
    assert " 0–4 " in text
    assert "45–49" in text


def test_terminal_with_odd_texts_has_no_control_signs_and_no_markup():
    text = text_of(made(tokens=ODD, label="[red]$label$\x07"), 160)
    assert "[bold]" in text
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text


def test_terminal_without_errors_edges_or_features():
    assert "completeness" in text_of(made(errors=False))
    lone = AttributionGraph(
        pd.DataFrame({"kind": ["embedding"], "layer": [-1], "position": [0], "index": [3]}),
        csr_array((1, 1)),
        tokens=("a",),
    )
    assert "1 embedding" in text_of(lone)


def test_visible():
    assert visible("a\nb\tc\x1b[0m") == "a↵b⇥c\\x1b[0m"
    assert visible("naïve 日本 ▁x") == "naïve 日本  x"


# Figure ----------------------------------------------------------------------------------------


def test_svg_is_the_same_byte_for_byte(tmp_path, golden):
    graph = prune(golden("gpt2_clt_residmid")[0])
    for name in ("a.svg", "b.svg"):
        draw_figure(graph, tmp_path / name)
    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes()
    assert b"<dc:date>" not in first
    ET.fromstring(first)  # it is XML


def test_svg_does_not_depend_on_the_process_or_the_users_settings(tmp_path):
    code = (
        "import sys; sys.path[:0] = sys.argv[2:];"
        "import matplotlib as m; m.rcParams['text.usetex'] = True; m.rcParams['font.size'] = 40;"
        "from test_picture import made; from circuitbase.picture import draw_figure;"
        "draw_figure(made(), sys.argv[1]);"
        "assert 'matplotlib.pyplot' not in sys.modules;"
        "assert m.rcParams['text.usetex'] and m.rcParams['font.size'] == 40"
    )
    here = __file__.rpartition("/")[0]
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.svg", here, f"{here}/.."], check=True)
    draw_figure(made(), tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_png(tmp_path, golden):
    draw_figure(prune(golden("gemma2_plt_ln2")[0]), tmp_path / "a.PNG", dpi=50)
    assert (tmp_path / "a.PNG").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["a.PNG"]


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_odd_texts_are_drawn(tmp_path, ending):
    graph = made(tokens=ODD, label="$\\broken{ 日本 \x07").replace(
        supernodes=(Supernode("$$ [x]", (1, 2)), Supernode("\n", (3,))),
        slug="$",
        prompt="$a$ $ \x00",
    )
    draw_figure(graph, tmp_path / f"a.{ending}", dpi=40)  # a warning about a glyph would raise


def test_figure_draws_every_node_and_the_strongest_edges(golden):
    graph = golden("qwen3_clt_mlp")[0].replace(supernodes=(Supernode("two", (0, 1)),))
    main = figure(graph, edges=37).axes[0]
    curves = [c for c in main.collections if type(c).__name__ == "PathCollection"]
    edges = next(c for c in curves if c.get_facecolors().size == 0 and len(c.get_paths()) > 1)
    assert len(edges.get_paths()) == 37
    points = sum(len(c.get_offsets()) for c in curves if c is not edges)
    assert points == graph.n_nodes + 2  # the supernode's outlines
    texts = [text.get_text() for text in main.texts]
    assert all(token in texts for token in graph.tokens)
    best = graph.logit_weights.max()
    assert f"{best:.0%}" in texts


def test_figure_colours_edges_by_sign():
    graph = made()
    edges = next(
        c for c in figure(graph, edges=10**6).axes[0].collections if not c.get_facecolors().size
    )
    targets, sources, scores = strongest_edges(graph, 10**6)
    assert len(edges.get_paths()) == len(scores) > 10
    red, _, blue, _ = edges.get_edgecolors().T
    # Drawn weakest first.
    positive = [graph.adjacency[t, s] > 0 for t, s in zip(targets, sources, strict=True)][::-1]
    assert (blue > red).tolist() == positive


@pytest.mark.parametrize(
    "graph",
    [
        made(tokens=["only"], n_layers=1),
        made(errors=False),
        made(tokens=[f"t{k}" for k in range(120)], n_layers=2),
        made(n_layers=90),
        made().replace(adjacency=csr_array((16, 16)), graph_id=None),
    ],
    ids=["one", "no errors", "long", "deep", "no edges"],
)
def test_figures_of_extreme_graphs(tmp_path, graph):
    draw_figure(graph, tmp_path / "a.svg")
    draw_figure(graph, tmp_path / "b.svg", edges=0, nodes=0)


def test_nodes_of_a_cell_do_not_leave_their_column(real_graphs):
    for path in real_graphs:
        graph = graphstore.read_graph(path)
        main = figure(graph).axes[0]
        left, right = main.get_xlim()
        for collection in main.collections:
            points = np.asarray(collection.get_offsets())
            assert ((points[:, 0] >= left) & (points[:, 0] <= right)).all()


def test_unknown_ending_and_unwritable_folder(tmp_path):
    with pytest.raises(FormatError, match=r"a\.svgg.*Use \.svg or \.png"):
        draw_figure(made(), tmp_path / "a.svgg")
    with pytest.raises(FormatError, match=r"Use \.svg or \.png"):
        draw_figure(made(), tmp_path / "picture")
    with pytest.raises(FormatError, match="No such file or directory"):
        draw_figure(made(), tmp_path / "nowhere" / "a.svg")
    assert not list(tmp_path.iterdir())


def test_strongest_edges_against_dense_formula():
    graph = made(seed=3)
    dense = np.abs(graph.adjacency.toarray())
    sums = dense.sum(axis=1, keepdims=True)
    normal = np.divide(dense, sums, out=np.zeros_like(dense), where=sums > 0)
    w = graph.logit_weights
    influence = w @ (np.linalg.inv(np.eye(len(w)) - normal) - np.eye(len(w)))
    score = normal * (influence + w)[:, None]
    targets, sources, scores = strongest_edges(graph, 8)
    # Float64 on both sides, a few sums each.
    np.testing.assert_allclose(scores, np.sort(score.ravel())[::-1][:8], rtol=1e-12)
    np.testing.assert_allclose(scores, score[targets, sources], rtol=1e-12)
