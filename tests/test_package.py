"""The project as others meet it: the README's example, the wheel, the plain install."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def run(*command: str | Path, cwd: Path = ROOT, **environment: str) -> str:
    """Run a command; its output, or a failure that shows it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("NEO4J_", "PYTHONPATH"))}
    done = subprocess.run(
        command, cwd=cwd, env={**kept, **environment}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_readmes_example_runs(tmp_path):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len([line for line in example.splitlines() if line.strip()]) <= 10
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    out = run(sys.executable, "-W", "error", "-c", example, cwd=tmp_path)
    # The golden file's replacement score; ours is traced in float32.
    assert float(out.split()[0]) == pytest.approx(0.5609827897551353, abs=1e-6)
    assert "gpt2_clt_residmid-" in out


def test_the_pages_examples_of_graphs_run(tmp_path):
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "docs/graphs.md").read_text(), re.DOTALL)
    (tmp_path / "tests").symlink_to(ROOT / "tests")
    run(sys.executable, "-W", "error", "-c", "\n".join(examples), cwd=tmp_path)


def test_every_page_that_is_linked_exists():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), ROOT / "docker/README.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"


@pytest.mark.slow
def test_a_wheel_has_everything_it_needs(tmp_path):
    """Built from the tree, installed apart from it; libraries are those of this environment."""
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert sum(name.endswith(".cypher") for name in names) == len(
        list((ROOT / "queries").rglob("*.cypher"))
    )
    assert {"tracer/py.typed", "graphstore/py.typed", "queries/py.typed"} <= set(names)
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "docker"))]
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    pip = (python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, wheel, cwd=tmp_path)
    libraries = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    (site,) = (tmp_path / "env" / "lib").glob("python*/site-packages")
    # The tree is installed here in editable form: a .pth line would bring its .pth files along.
    for entry in libraries.iterdir():
        if "circuitbase" not in entry.name and not (site / entry.name).exists():
            (site / entry.name).symlink_to(entry)
    out = run(
        python,
        "-c",
        "import tracer, graphstore, queries, sys; print(tracer.__file__, len(queries.names())); "
        "sys.exit('torch' in sys.modules)",
        cwd=tmp_path,
    )
    assert str(tmp_path) in out
    script = tmp_path / "env" / "bin" / "circuitbase"
    file = ROOT / "tests/data/graphs/gpt2_plt_ln2.circuit"
    run(script, "import", file, "--store", tmp_path / "w.db", cwd=tmp_path)
    out = run(
        script,
        "query",
        "top_nodes",
        "graph_id=gpt2_plt_ln2",
        "--store",
        tmp_path / "w.db",
        "--format",
        "json",
        cwd=tmp_path,
    )
    assert out.startswith("[{")


def test_constraints_hold_versions_only():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"[A-Za-z0-9_.-]+==[A-Za-z0-9_.]+", line), line


def test_ci_runs_make_test():
    assert "make test" in (ROOT / ".ci/run").read_text()
