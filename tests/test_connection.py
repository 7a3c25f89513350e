"""Opening stores: which one, by whom, and what is said when it cannot be."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import neo4j
import pytest

import graphstore
from graphstore.connection import translated
from tracer import AttributionGraph, prune
from tracer.errors import (
    CircuitError,
    StoreConnectionError,
    StoreError,
    StoreLockedError,
)

TESTS = Path(__file__).parent


@pytest.fixture(scope="session")
def graph(golden):
    """One pruned graph."""
    return prune(golden("gpt2_plt_ln2")[0], 0.95, 0.995)


def scaled(graph: AttributionGraph, factor: float) -> AttributionGraph:
    """Make another graph: the same nodes, other weights."""
    weights = graph.adjacency.copy()
    weights.data = weights.data * factor
    return graph.replace(adjacency=weights, graph_id=None)


def run_python(text: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program of our own in a fresh process."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(text), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=environment.get("PWD"),
    )


def test_without_an_argument_the_environment_decides(tmp_path, monkeypatch):
    from graphstore.connection import default_store

    for name in ("NEO4J_URI", "CIRCUITBASE_STORE"):
        monkeypatch.delenv(name, raising=False)
    assert default_store() == "circuits.db"
    monkeypatch.setenv("CIRCUITBASE_STORE", "elsewhere")
    assert default_store() == "elsewhere"
    monkeypatch.setenv("NEO4J_URI", "bolt://host")
    assert default_store() == "bolt://host"


def test_the_embedded_store_is_quiet_and_leaves_nothing_beside_it(tmp_path):
    done = run_python(
        """
        import graphstore
        with graphstore.connect() as store:
            print(store.engine, len(store.graphs()))
        """,
        PWD=str(tmp_path),
        CIRCUITBASE_STORE="",
    )
    assert (done.stdout, done.stderr, done.returncode) == ("arcadedb 0\n", "", 0)
    assert [path.name for path in tmp_path.iterdir()] == ["circuits.db"]


def test_linear_algebra_and_a_store_left_open_crash_nothing(tmp_path):
    """A thread that Java knows has guard pages in its stack, which threaded BLAS runs into."""
    done = run_python(
        """
        import sys, threading, numpy, graphstore
        store = graphstore.connect(sys.argv[1])
        store.rows("RETURN 1 AS one")
        matrix = numpy.random.default_rng(0).random((400, 400))
        numpy.linalg.inv(matrix) @ matrix
        thread = threading.Thread(target=lambda: numpy.linalg.inv(matrix) @ matrix)
        thread.start()
        thread.join()
        other = graphstore.connect(sys.argv[1])
        print("done")
        """,
        str(tmp_path / "a.db"),
    )
    assert (done.stdout, done.stderr, done.returncode) == ("done\n", "", 0)
    with graphstore.connect(tmp_path / "a.db") as store:
        assert store.verify().empty


def test_a_second_sigterm_ends_what_swallowed_the_first(tmp_path):
    done = run_python(
        """
        import signal, sys, graphstore.embedded
        graphstore.embedded._GRACE = 0.0
        with graphstore.connect(sys.argv[1]):
            for _ in range(2):
                try:
                    signal.raise_signal(signal.SIGTERM)
                except SystemExit:
                    print("swallowed", flush=True)
        """,
        str(tmp_path / "a.db"),
    )
    assert (done.stdout, done.stderr, done.returncode) == ("swallowed\n", "", -signal.SIGTERM)


@pytest.mark.parametrize("ending", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("failure", [neo4j.exceptions.ClientError("BEGIN"), IndexError("deque")])
def test_an_interruption_is_not_lost_to_what_it_causes(ending, failure):
    """The driver may fail to tidy up a session that was interrupted; that is not the news."""

    def fail(*_: object) -> None:
        raise failure

    def work() -> None:
        with contextlib.ExitStack() as session:
            session.callback(fail)
            raise ending

    with pytest.raises(ending), translated("a.db"):
        work()
    failure.__context__ = None
    try:  # an error of its own, while an interruption is being handled
        raise ending
    except ending:
        with pytest.raises((StoreError, IndexError)), translated("a.db"):
            fail()


@pytest.mark.parametrize(
    ("chosen", "status", "says"),
    [
        ("", 143, "closed\n"),
        (
            "signal.signal(signal.SIGTERM, lambda *_: print('mine', flush=True))",
            0,
            "mine\nclosed\n",
        ),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", 0, "closed\n"),
    ],
    ids=["default", "the program's own", "ignored"],
)
def test_sigterm_is_the_programs_own_where_it_has_chosen(tmp_path, chosen, status, says):
    done = run_python(
        f"""
        import os, signal, sys, graphstore
        {chosen}
        try:
            with graphstore.connect(sys.argv[1]) as store:
                store.rows("RETURN 1 AS one")
                os.kill(os.getpid(), signal.SIGTERM)
                store.rows("RETURN 1 AS one")
        finally:
            print("closed", flush=True)
        """,
        str(tmp_path / "a.db"),
    )
    assert (done.stdout, done.stderr, done.returncode) == (says, "", status)
    assert list(tmp_path.rglob("hs_err*")) == []


def test_sigterm_in_a_destructor_is_heeded_at_the_next_write(tmp_path, data):
    """Python drops what a signal's handler raises there; the import would go on for hours."""
    done = run_python(
        """
        import os, signal, sys, graphstore
        class Dropped:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)
        sys.unraisablehook = lambda what: print(type(what.exc_value).__name__, flush=True)
        graph = graphstore.read_graph(sys.argv[2])
        with graphstore.connect(sys.argv[1]) as store:
            dropped = Dropped()
            del dropped
            print("goes on", flush=True)
            store.write(graph)
            print("written", flush=True)
        """,
        str(tmp_path / "a.db"),
        str(data / "graphs/gpt2_plt_ln2.circuit"),
    )
    assert (done.stdout, done.returncode) == ("SystemExit\ngoes on\n", 143), done.stderr


def test_connecting_twice_in_one_process_shares_the_engine(tmp_path, graph):
    with graphstore.connect(tmp_path / "a.db") as one:
        with graphstore.connect(tmp_path / "a.db") as two:
            one.write(graph)
            assert two.find(graph.graph_id) == graph.graph_id
        assert len(one.graphs()) == 1  # the second one's end is not the engine's
    with pytest.raises(StoreError, match="is closed"):
        one.graphs()


def test_a_second_process_joins_the_first_ones_engine(embedded_server, embedded_store, graph):
    embedded_store.write(graph)
    done = run_python(
        """
        import sys, graphstore
        with graphstore.connect(sys.argv[1]) as store:
            store.add_set("from the second process")
            print(store.graphs()["graph_id"].tolist(), store.embedded.owner)
        """,
        str(embedded_server),
    )
    assert done.stdout == f"['{graph.graph_id}'] False\n", done.stderr
    assert embedded_store.sets()["name"].tolist() == ["from the second process"]
    assert oct((embedded_server / "server.json").stat().st_mode)[-3:] == "600"


def test_a_store_whose_holder_does_not_answer_is_locked(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr("graphstore.embedded._START_WAIT", 0.3)
    with graphstore.connect(tmp_path / "a.db"):
        pass
    with (tmp_path / "a.db" / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StoreLockedError, match=r"held by another process.*--store"):
            graphstore.connect(tmp_path / "a.db")
    with graphstore.connect(tmp_path / "a.db") as store:
        assert store.verify().empty


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: p.write_text("x"), "is a file, not a store"),
        (lambda p: (p.mkdir(), (p / "thesis.tex").write_text("x")), "did not write"),
        (
            lambda p: (p.mkdir(), (p / "store.json").write_text('{"engine": "other"}')),
            "was made by another version",
        ),
        (lambda p: (p.mkdir(), (p / "store.json").write_text("{")), "cannot be opened"),
    ],
)
def test_what_is_no_store_is_refused(tmp_path, make, message):
    path = tmp_path / "here"
    make(path)
    with pytest.raises(StoreError, match=message):
        graphstore.connect(path)


def test_a_place_that_cannot_be_written_is_named():
    with pytest.raises(StoreError, match=r"/proc/nowhere.*cannot be opened.*--store"):
        graphstore.connect("/proc/nowhere")


@pytest.mark.parametrize("uri", ["bolt://127.0.0.1:1", "neo4j://127.0.0.1:1"])
def test_no_server(uri):
    with pytest.raises(StoreConnectionError, match=r"no database answers at .*neo4j\.sh start"):
        graphstore.connect(uri, auth=("neo4j", "x"))


@pytest.mark.parametrize("uri", ["http://127.0.0.1:7474", "bolt:/x://"])
def test_no_address(uri):
    with pytest.raises(StoreConnectionError, match="is no address"):
        graphstore.connect(uri)


@pytest.mark.neo4j
def test_wrong_password(servers):
    uri = servers.environment("neo4j-lts")["NEO4J_URI"]
    with pytest.raises(StoreConnectionError, match="refuses the user name or password"):
        graphstore.connect(uri, auth=("neo4j", "not-the-password"))


@pytest.mark.neo4j
def test_a_driver_given_is_not_closed(servers):
    found = servers.environment("neo4j-lts")
    auth = (found["NEO4J_USERNAME"], found["NEO4J_PASSWORD"])
    with neo4j.GraphDatabase.driver(found["NEO4J_URI"], auth=auth) as driver:
        with graphstore.connect(driver=driver) as store:
            assert store.engine == "neo4j"
            assert store.driver is driver
        driver.verify_connectivity()
        with pytest.raises(StoreError, match="Give one of the two"):
            graphstore.connect("bolt://x", driver=driver)
        with pytest.raises(CircuitError, match="nowhere"):
            graphstore.connect(driver=driver, database="nowhere")
        driver.verify_connectivity()


def test_a_server_that_goes_away_mid_write_is_an_error_and_loses_nothing(tmp_path, graph):
    """The engine of another process is killed while this one writes through its listener."""
    folder = tmp_path / "a.db"
    program = """
        import sys, graphstore
        store = graphstore.connect(sys.argv[1])
        print("open", flush=True)
        sys.stdin.read()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "open\n"
        with graphstore.connect(folder) as store:
            assert not store.embedded.owner
            store.write(graph)
            threading.Timer(0.05, holder.kill).start()
            copies = (scaled(graph, 1 + number) for number in range(10_000))
            with pytest.raises(StoreConnectionError, match=r"no database answers at .*a\.db"):
                store.write_many(copies)
    with graphstore.connect(folder) as store:
        assert store.read(graph.graph_id) == graph
        assert store.verify().empty


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path, graph):
    """Files of the store may not grow past a limit: what a full disk does, without one."""
    folder = tmp_path / "a.db"
    with graphstore.connect(folder) as store:
        store.write(graph)
    largest = max(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    graphstore.write_graph(graph, tmp_path / "graph.circuit")
    done = run_python(
        """
        import resource, signal, sys, json, graphstore
        from tracer.errors import StoreError
        folder, graph_file, limit = sys.argv[1], sys.argv[2], int(sys.argv[3])
        graph = graphstore.read_graph(graph_file)
        stored = []
        try:
            with graphstore.connect(folder) as store:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                for number in range(2, 400):
                    weights = graph.adjacency.copy()
                    weights.data = weights.data * number
                    copy = graph.replace(adjacency=weights, graph_id=None)
                    store.write(copy)
                    stored.append(copy.graph_id)
        except StoreError as error:
            print(json.dumps({"stored": stored, "error": str(error)}))
        """,
        str(folder),
        str(tmp_path / "graph.circuit"),
        str(largest + 2_000_000),
    )
    assert done.stdout, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert "a.db" in found["error"]
    with graphstore.connect(folder) as store:
        assert store.read(graph.graph_id) == graph
        assert set(found["stored"]) <= set(store.graphs()["graph_id"])
        assert store.verify().empty


def test_limits_of_this_process_are_as_before():
    """The test above limits a process of its own, not this one."""
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
