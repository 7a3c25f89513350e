"""Fixtures shared by the tests: data folders, golden graphs, stores on both engines."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_array

import graphstore
from graphstore.connection import open_connection
from tracer import AttributionGraph

HERE = Path(__file__).parent
GOLDEN = (
    "gemma2_clt_residmid",
    "gemma2_plt_ln2",
    "gpt2_clt_residmid",
    "gpt2_plt_ln2",
    "llama_clt_residmid",
    "llama_plt_mlp",
    "llama_pltskip_mlp",
    "qwen3_clt_mlp",
)


def pytest_collection_finish() -> None:
    """Keep torch to one thread: tests run side by side, on matrices where threads cost time."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def data() -> Path:
    """Folder of the data that ships with the tests."""
    return HERE / "data"


@pytest.fixture(scope="session")
def real_graphs() -> list[Path]:
    """Published attribution graphs; they are other people's, so they lie beside the project."""
    folder = Path(os.environ.get("CIRCUITBASE_GRAPHS") or HERE.parent.parent / "shared/data/graphs")
    files = sorted(folder.glob("*.json"))
    if not files:
        pytest.skip(f"no real graphs in {folder} (set CIRCUITBASE_GRAPHS)")
    return files


@pytest.fixture(scope="session")
def golden(data: Path):
    """Read a golden file by name as an unpruned graph and its arrays."""

    def read(name: str) -> tuple[AttributionGraph, dict[str, np.ndarray]]:
        with np.load(data / "golden" / f"{name}_a.npz") as file:
            arrays = {key: file[key] for key in file.files}
        return golden_graph(name, arrays), arrays

    return read


def golden_graph(name: str, arrays: dict[str, np.ndarray]) -> AttributionGraph:
    """Make the graph that the reference tool's arrays describe (order: its README)."""
    features, tokens = arrays["active_features"], arrays["input_tokens"]
    n_features, n_tokens, n_logits = len(features), len(tokens), len(arrays["logit_tokens"])
    n_layers = (len(arrays["adjacency"]) - n_features - n_tokens - n_logits) // n_tokens
    n_errors = n_layers * n_tokens
    nodes = pd.DataFrame(
        {
            "kind": ["feature"] * n_features
            + ["error"] * n_errors
            + ["embedding"] * n_tokens
            + ["logit"] * n_logits,
            "layer": [
                *features[:, 0],
                *np.repeat(np.arange(n_layers), n_tokens),
                *[-1] * n_tokens,
                *[n_layers] * n_logits,
            ],
            "position": [
                *features[:, 1],
                *np.tile(np.arange(n_tokens), n_layers),
                *range(n_tokens),
                *[n_tokens - 1] * n_logits,
            ],
            "index": [*features[:, 2], *[-1] * n_errors, *tokens, *arrays["logit_tokens"]],
            "activation": [*arrays["activations"], *[np.nan] * (n_errors + n_tokens + n_logits)],
            "probability": [
                *[np.nan] * (n_features + n_errors + n_tokens),
                *arrays["logit_probabilities"],
            ],
        }
    )
    return AttributionGraph(
        nodes,
        csr_array(arrays["adjacency"]),
        prompt=str(arrays["prompt"]),
        tokens=[f"<{i}>" for i in tokens],
        token_ids=tokens.tolist(),
        model_id=name.split("_")[0],
        transcoder_id=name,
        slug=name,
        unpruned=True,
    )


@pytest.fixture(params=GOLDEN)
def golden_pair(request, golden):
    """Each golden graph in turn, with its arrays."""
    return golden(request.param)


@pytest.fixture(scope="session")
def made() -> Any:
    """Functions of made_weights.py: global weights of random numbers."""
    spec = importlib.util.spec_from_file_location("made_weights", HERE / "made_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Stores ------------------------------------------------------------------------------------------

ENGINES = ("embedded", "neo4j-lts", "neo4j-calendar")
VERSIONS = {"neo4j-lts": "5.26.30", "neo4j-calendar": "2026.08.1"}
SCRIPT = HERE.parent / "docker" / "neo4j.sh"


class Servers:
    """Neo4j servers of this test run, each started when first asked for."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environments: dict[str, dict[str, str]] = {}
        self.refused: dict[str, str] = {}

    def environment(self, name: str) -> dict[str, str]:
        """Address and credentials of a server; skips the test where its Java is absent."""
        if name in self.refused:
            pytest.skip(self.refused[name])
        if name not in self.environments:
            self.environments[name] = self._given() if self._is_given(name) else self._start(name)
        return self.environments[name]

    @staticmethod
    def _is_given(name: str) -> bool:
        return name == "neo4j-lts" and "NEO4J_URI" in os.environ

    @staticmethod
    def _given() -> dict[str, str]:
        found = {key: value for key, value in os.environ.items() if key.startswith("NEO4J_")}
        with graphstore.connect(found["NEO4J_URI"]) as store:
            if store.rows("MATCH (n) WHERE NOT n:Vault RETURN n LIMIT 1"):
                pytest.exit(
                    f"The database at {found['NEO4J_URI']} is not empty, and tests wipe theirs. "
                    "Set NEO4J_URI to an empty one, or unset it.",
                    returncode=1,
                )
        return found

    def _start(self, name: str) -> dict[str, str]:
        if name == "neo4j-calendar" and not any(
            java_version(java) >= 21 for java in Path("/usr/lib/jvm").glob("*/bin/java")
        ):
            self.refused[name] = "the calendar release needs Java 21 or later in /usr/lib/jvm"
            pytest.skip(self.refused[name])
        environment = self._of(name)
        done = subprocess.run(
            [SCRIPT, "start"], env=environment, capture_output=True, text=True, timeout=900
        )
        if done.returncode:
            pytest.fail(f"{SCRIPT.name} start failed: {done.stderr}")
        # A test run that is killed stops nothing by itself; its servers should not outlive it.
        watch = (
            '(while kill -0 "$1"; do sleep 1; done; exec "$2" stop) >/dev/null 2>&1 </dev/null &'
        )
        subprocess.run(
            ["/bin/sh", "-c", watch, "watch", str(os.getpid()), str(SCRIPT)],
            env=environment,
            start_new_session=True,
            check=True,
        )
        pairs = [line.removeprefix("export ").split("=", 1) for line in done.stdout.splitlines()]
        return {key: "".join(shlex.split(value)) for key, value in pairs}

    def _of(self, name: str) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("NEO4J_")}
        version, home = VERSIONS[name], self.home / name
        return {**kept, "NEO4J_VERSION": version, "NEO4J_HOME": str(home), "NEO4J_HEAP": "768m"}

    def stop(self) -> None:
        """Stop what was started here, not what was given."""
        for name in self.environments:
            if not self._is_given(name):
                subprocess.run(
                    [SCRIPT, "stop"], env=self._of(name), capture_output=True, timeout=60
                )


def java_version(java: Path) -> int:
    """Major version of a java program."""
    text = subprocess.run([java, "-version"], capture_output=True, text=True).stderr
    found = re.search(r'version "(\d+)', text)
    return int(found[1]) if found else 0


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """Neo4j servers, started from their Maven artifacts unless NEO4J_URI names one."""
    made = Servers(tmp_path_factory.mktemp("neo4j"))
    yield made
    made.stop()


@pytest.fixture(scope="session")
def embedded_server(tmp_path_factory):
    """Folder of an embedded store whose engine stays up for the whole run."""
    folder = tmp_path_factory.mktemp("embedded") / "circuits.db"
    with graphstore.connect(folder):
        yield folder


def wipe(target: dict[str, Any]) -> None:
    """Empty a store of everything but its constraints, whatever state a test left it in."""
    connection = open_connection(**target)
    try:
        text = (
            "MATCH (n) WITH n LIMIT 20000 WITH collect(n) AS ns UNWIND ns AS n "
            "DETACH DELETE n RETURN count(*) AS n"
        )
        while connection.driver.execute_query(text, database_=connection.database).records[0]["n"]:
            pass
    finally:
        connection.close()


def target_of(name: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Arguments of ``graphstore.connect`` for an engine's test store."""
    if name == "embedded":
        return {"target": request.getfixturevalue("embedded_server")}
    environment = request.getfixturevalue("servers").environment(name)
    auth = (environment["NEO4J_USERNAME"], environment["NEO4J_PASSWORD"])
    return {"target": environment["NEO4J_URI"], "auth": auth}


@pytest.fixture(
    params=[pytest.param(e, marks=[pytest.mark.neo4j] * (e != "embedded")) for e in ENGINES]
)
def any_target(request) -> dict[str, Any]:
    """Where an empty store of each engine in turn is."""
    target = target_of(request.param, request)
    wipe(target)
    return target


@pytest.fixture
def any_store(any_target):
    """Empty store of each engine in turn."""
    with graphstore.connect(**any_target) as store:
        yield store


@pytest.fixture
def embedded_store(embedded_server):
    """Empty embedded store."""
    wipe({"target": embedded_server})
    with graphstore.connect(embedded_server) as store:
        yield store
