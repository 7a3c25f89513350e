"""``circuitbase compare`` and ``set-report``: what they print, write and refuse."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

import graphstore
import queries
from circuitbase.cli import cli
from tracer.pruning import prune


class Result:
    def __init__(self, done) -> None:
        self.status, self.out, self.err = done.exit_code, done.stdout, done.stderr

    @property
    def records(self) -> list[dict]:
        assert self.status == 0, self.err
        return json.loads(self.out)


def run(*words, store) -> Result:
    words = [*map(str, words), "--store", str(store)]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    assert "Traceback" not in done.stderr
    return Result(done)


@pytest.fixture(autouse=True)
def no_server_by_accident(monkeypatch, tmp_path):
    for name in ("NEO4J_URI", "NEO4J_USERNAME", "NEO4J_PASSWORD", "NEO4J_DATABASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def full(golden, tmp_path_factory) -> Path:
    """Two sets of prunings of one graph, and a graph of another transcoder."""
    folder = tmp_path_factory.mktemp("compared") / "store.db"
    with graphstore.connect(folder) as store:
        for name, prompt_set, thresholds in (
            ("gpt2_clt_residmid", "high", (0.8, 0.77, 0.74)),
            ("gpt2_clt_residmid", "low", (0.7, 0.67, 0.64)),
            ("llama_plt_mlp", "other", (0.8,)),
        ):
            for threshold in thresholds:
                graph = prune(golden(name)[0], threshold)
                metadata = {"template": f"t{threshold < 0.75}", "answer": str(threshold)}
                source = {**graph.source, "metadata": metadata}
                graph = graph.replace(slug=f"{prompt_set}-{threshold}", source=source)
                store.write(graph, prompt_set)
        store.add_set("none")
        store.include(store.find("high-0.8"), "high-0.8")  # a set called as a graph
        store.include(store.find("low-0.7"), "low-0.7")
    return folder


class Page(HTMLParser):
    """What a page refers to, and its headings."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads, self.tags, self.headings, self._in = [], [], [], ""
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._in = tag
        for name, value in attrs:
            if (
                name in ("src", "href", "xlink:href")
                and value
                and not value.startswith(("#", "data:"))
            ):
                self.loads.append(value)

    def handle_data(self, data):
        if self._in == "h2":
            self.headings.append(data)
            self._in = ""


def test_two_graphs_in_the_terminal(full):
    done = run("compare", "high-0.77", "low-0.7", store=full)
    assert done.status == 0
    for word in ("features", "only a", "only b", "largest changes", "Positions are dropped"):
        assert word in done.out
    done = run("compare", "high-0.77", "low-0.7", "--positions", "align", store=full)
    assert "Positions are aligned" in done.out


def test_two_graphs_for_programs(full):
    records = run("compare", "high-0.77", "low-0.7", "--format", "json", store=full).records
    assert {record["what"] for record in records} == {"node", "edge"}
    with graphstore.connect(full) as store:
        found = queries.compare(store, "high-0.77", "low-0.7")
    assert len(records) == len(found.nodes) + len(found.edges)
    assert records[0]["key"] == found.nodes["key"].iloc[0]
    assert records[0]["change"] == pytest.approx(found.nodes["change"].iloc[0])


@pytest.mark.parametrize("positions", ["drop", "align"])
def test_two_graphs_as_a_picture(full, tmp_path, positions):
    texts = []
    for _ in range(2):
        words = ("compare", "high-0.8", "low-0.64", "--kind", "graphs", "--out", "d.svg")
        done = run(*words, "--positions", positions, store=full)
        assert done.status == 0, done.err
        assert done.out == ""
        texts.append((tmp_path / "d.svg").read_text())
    assert texts[0] == texts[1]  # the same, byte for byte
    assert texts[0].startswith("<?xml")
    assert "#0072b2" in texts[0]
    assert run("compare", "high-0.77", "low-0.7", "--out", "d.png", store=full).status == 0
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")


def test_two_sets_in_the_terminal_and_for_programs(full):
    words = ("compare", "high", "low", "--n-permutations", "20")
    done = run(*words, store=full)
    assert done.status == 0
    assert "Fisher's exact test" in done.out
    assert "pairs of features, smallest p" in done.out
    assert "note: With 3 and 3 graphs" in done.err
    records = run(*words, "--format", "json", store=full).records
    assert {record["what"] for record in records} == {"feature", "edge"}
    with graphstore.connect(full) as store:
        found = queries.compare(store, "high", "low", n_permutations=20)
    assert len(records) == len(found.features) + len(found.edges)
    lines = run(*words, "--format", "csv", store=full).out.splitlines()
    assert len(lines) == len(records) + 1


def test_the_page_of_two_graphs(full, tmp_path):
    done = run("compare", "high-0.77", "low-0.7", "--html", "g.html", store=full)
    assert done.status == 0
    assert "wrote g.html" in done.err
    page = Page(tmp_path / "g.html")
    whole_page(page)
    assert page.headings[:2] == ["What they share", "One over the other"]
    assert "graph_edges, b" in page.text


def test_the_page_of_two_sets(full, tmp_path):
    words = ("compare", "high", "low", "--n-permutations", "20", "--html", "s.html")
    assert run(*words, store=full).status == 0
    page = Page(tmp_path / "s.html")
    whole_page(page)
    assert "How alike the graphs are" in page.headings
    assert page.tags.count("svg") >= 5
    assert "Before believing it." in page.text
    assert "MATCH" in page.text


def test_the_page_of_a_set(full, tmp_path):
    done = run("set-report", "high", "--html", "out/r.html", "--min-share", "1", store=full)
    assert done.status == 0, done.err
    page = Page(tmp_path / "out/r.html")
    whole_page(page)
    for heading in ("At a glance", "What recurs", "Consensus circuit", "How it was asked"):
        assert heading in page.headings
    assert page.tags.count("svg") >= 4
    assert "Beyond the template" in page.text
    single = run("set-report", "other", "--html", "one.html", store=full)
    assert single.status == 0, single.err
    assert "One graph has no consensus" in Page(tmp_path / "one.html").text


def test_a_page_says_how_long_the_lists_were_that_were_asked_with(tmp_path):
    from circuitbase.page import Page as Made
    from circuitbase.reports.comparison_page import add_cypher

    made = Made("Asked")
    add_cypher(made, "graph_details", {"graph_ids": [f"{k:016x}" for k in range(28)]})
    made.write(tmp_path / "asked.html")
    assert "(28 in all)" in Page(tmp_path / "asked.html").text


def whole_page(page):
    """Nothing is loaded from elsewhere, and nothing is left open or undefined."""
    assert not page.loads
    assert "script" not in page.tags
    assert re.search(r"\bnan\b|None,", re.sub(r"<svg.*?</svg>", "", page.text, flags=re.S)) is None
    ids = re.findall(r'\bid="([^"]+)"', page.text)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("compare", "high", "lwo"), 'Did you mean "low"'),
        (("compare", "high", "none"), "holds no graph"),
        (("compare", "high", "other"), "not comparable"),
        (("compare", "high-0.77", "other-0.8"), "not comparable"),
        (("compare", "high-0.77", "low"), "is a graph and 'low' a prompt set"),
        (("compare", "high-0.8", "low-0.7"), "Say which: --kind"),
        (("compare", "high", "low", "--min-graphs", "0"), "from 1"),
        (("compare", "high", "low", "--within", "city"), "no graph has a value of 'city'"),
        (("compare", "high-0.77", "low-0.67", "--out", "x.pdf"), "Use .svg or .png"),
        (("compare", "high-0.77", "low-0.67", "--out", "no/x.svg"), "Choose a folder"),
        (("set-report", "hihg", "--html", "x.html"), 'Did you mean "high"'),
        (("set-report", "none", "--html", "x.html"), "holds no graph"),
        (("set-report", "high", "--html", "x.html", "--min-share", "2"), "from 0 to 1"),
    ],
)
def test_what_is_wrong_is_one_line(full, words, message):
    done = run(*words, store=full)
    assert done.status == 1
    assert done.out == ""
    (line,) = done.err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_options_of_the_other_kind_are_wrong_usage(full):
    done = run("compare", "high-0.77", "low-0.67", "--seed", "3", store=full)
    assert done.status == 2
    assert "--seed is for two sets" in done.err
    done = run("compare", "high", "low", "--positions", "align", store=full)
    assert done.status == 2
    assert "--positions is for two graphs" in done.err


# The page of the manual --------------------------------------------------------------------------


def test_the_pages_examples_run(tmp_path):
    root = Path(__file__).parent.parent
    text = (root / "docs/comparing.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) >= 6
    (tmp_path / "tests").symlink_to(root / "tests")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NEO4J_", "PYTHONPATH"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", "\n".join(examples)],
        cwd=tmp_path,
        env=kept,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Fisher's exact test" in done.stdout
