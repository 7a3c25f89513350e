"""The embedded store: ArcadeDB inside this process, behind a Bolt listener on loopback.

The engine brings its own Java runtime, so a plain install has a graph database. It is spoken to
through the same official ``neo4j`` driver as a server; nothing else in this project knows that it
runs in-process. A store is a folder::

    circuits.db/
        store.json       which engine, and which version of it, wrote the folder
        lock             held (flock) by the one process that runs the engine
        server.json      where that process listens, readable by its owner only
        databases/  config/  log/

A second process that opens the same folder becomes a client of the first one's listener.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import logging
import os
import resource
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

from tracer.errors import StoreConnectionError, StoreError, StoreLockedError

if TYPE_CHECKING:
    import neo4j

__all__ = ["DATABASE", "EmbeddedServer", "open_embedded"]

DATABASE: Final = "circuits"
USER: Final = "root"
_MARKER: Final = "store.json"
_HEAP: Final = "2g"  # a million edges need one; CIRCUITBASE_HEAP overrides
_START_WAIT: Final = 20.0  # seconds a second process gives the first one to start listening
_GRACE: Final = (
    10.0  # seconds in which a second SIGTERM does not disturb the end begun by the first
)

log = logging.getLogger(__name__)


class EmbeddedServer:
    """A running engine (owned by this process) or the address of another process's.

    Attributes
    ----------
    path
        The store's folder.
    uri, auth, database
        What a driver needs.
    owner
        Whether the engine runs in this process.
    """

    def __init__(self, path: Path, port: int, password: str, *, owner: bool, pid: int) -> None:
        self.path = path
        self.uri = f"bolt://127.0.0.1:{port}"
        self.auth = (USER, password)
        self.database = DATABASE
        self.owner = owner
        self.pid = pid
        self.users = 1
        self.drivers: list[neo4j.Driver] = []
        self._fresh = owner
        self._java: Any = None
        self._lock: IO[str] | None = None

    def announce(self) -> None:
        """Tell other processes of this user where the engine listens, once the store is ready."""
        path = self.path / "server.json"
        if not self.owner or path.exists():
            return
        temporary = path.with_suffix(".tmp")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        port = int(self.uri.rpartition(":")[2])
        with os.fdopen(os.open(temporary, flags, 0o600), "w") as file:
            json.dump({"port": port, "password": self.auth[1], "pid": self.pid}, file)
        temporary.replace(path)

    def first_use(self) -> bool:
        """Whether this process just started the engine; true once."""
        first, self._fresh = self._fresh, False
        return first

    def close(self) -> None:
        """Leave the store; the last user in the owning process stops the engine."""
        with _registry_lock:
            self.users -= 1
            if self.users > 0 or not self.owner:
                return
            _running.pop(self.path, None)
            self._stop()

    def _stop(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.path / "server.json").unlink()
        # The engine waits for connections that are still open, and would do so for ever.
        for driver in self.drivers:
            driver.close()
        if self._java is not None:
            self._java.stop()
            self._java = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


# One engine a folder and process: a notebook may call connect() in every cell.
_running: dict[Path, EmbeddedServer] = {}
_registry_lock = threading.RLock()


def open_embedded(path: str | Path) -> EmbeddedServer:
    """Start the engine on a store's folder, or find the process that already runs it.

    Parameters
    ----------
    path
        The folder; made if absent.

    Raises
    ------
    StoreError
        If the path is no store, cannot be written, or the engine does not start.
    StoreLockedError
        If another process holds the store and does not answer.
    """
    folder = Path(path).expanduser().resolve()
    with _registry_lock:
        if (server := _running.get(folder)) is not None:
            server.users += 1
            return server
        _prepare(folder)
        lock = _acquire(folder)
        if lock is None:
            return _join(folder)
        try:
            _mark(folder)
            server = _start(folder)
        except BaseException:
            lock.close()
            raise
        server._lock = lock
        _running[folder] = server
        return server


def _prepare(folder: Path) -> None:
    """Make the folder, or check that it may be a store."""
    try:
        if folder.exists() and not folder.is_dir():
            raise StoreError(
                f"{folder} is a file, not a store", "Name a folder, new or made by circuitbase"
            )
        folder.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in folder.iterdir()}
    except OSError as error:
        raise _cannot_open(folder, error) from error
    # Another process may be making the same store at this moment.
    if _MARKER not in names and names - {"lock", "log", f"{_MARKER}.tmp"}:
        raise StoreError(
            f"{folder} holds files that circuitbase did not write",
            "Name an empty or new folder with --store or $CIRCUITBASE_STORE",
        )


def _mark(folder: Path) -> None:
    """Under the lock: write which engine the store is of, or check it."""
    marker = folder / _MARKER
    mine = {"engine": "arcadedb", "engine_version": version("arcadedb-embedded"), "layout": 1}
    try:
        (folder / "log").mkdir(exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            (folder / "server.json").unlink()  # of a process that was killed
        if not marker.exists():
            temporary = folder / f"{_MARKER}.tmp"
            temporary.write_text(json.dumps(mine))
            temporary.replace(marker)
        found = json.loads(marker.read_text())
    except (OSError, ValueError) as error:
        raise _cannot_open(folder, error) from error
    if not isinstance(found, dict) or found.get("engine") != "arcadedb" or found.get("layout") != 1:
        raise StoreError(
            f"store {folder} was made by another version ({marker.name}: {found})",
            "Export it with the version that made it (circuitbase export --all), import it here",
        )


def _cannot_open(folder: Path, error: Exception) -> StoreError:
    return StoreError(
        f"store {folder} cannot be opened ({error})",
        "Check that the disk is writable and has space, or name another folder with --store",
    )


def _acquire(folder: Path) -> IO[str] | None:
    """Take the store's lock, or return None if another process has it."""
    try:
        file = (folder / "lock").open("a")
    except OSError as error:
        raise StoreError(
            f"store {folder} cannot be written ({error})",
            "Check its permissions, or name another folder with --store",
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return None
    return file


def _join(folder: Path) -> EmbeddedServer:
    """Find the listener of the process that holds the store."""
    deadline = time.monotonic() + _START_WAIT
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found = json.loads((folder / "server.json").read_text())
            port, password, pid = int(found["port"]), str(found["password"]), int(found["pid"])
            with socket.create_connection(("127.0.0.1", port), timeout=2):
                log.info("store %s is held by process %d; connecting to it", folder, pid)
                return EmbeddedServer(folder, port, password, owner=False, pid=pid)
        time.sleep(0.1)
    raise StoreLockedError(
        f"store {folder} is held by another process, which does not answer",
        "Close that process, or name another store with --store",
    )


def _start(folder: Path) -> EmbeddedServer:
    """Start engine and listener on free loopback ports, with a fresh password."""
    _start_java(folder)
    from arcadedb_embedded.exceptions import ArcadeDBError
    from arcadedb_embedded.server import ArcadeDBServer

    password = secrets.token_urlsafe(24)
    # The engine keeps its first password; ours is new at each start.
    with contextlib.suppress(FileNotFoundError):
        (folder / "config" / "server-users.jsonl").unlink()
    bolt, http = _free_ports(2)
    java = ArcadeDBServer(
        str(folder),
        password,
        {
            "host": "127.0.0.1",
            "http_port": http,
            "mode": "development",  # "production" hides what is wrong with a query
            "server_plugins": "Bolt:com.arcadedb.bolt.BoltProtocolPlugin",
            "bolt_port": bolt,
            "server_databaseDirectory": str(folder / "databases"),
        },
    )
    try:
        java.start()
        java.create_database(DATABASE)
    except ArcadeDBError as error:
        raise StoreError(
            f"the embedded engine did not start on {folder} ({error})",
            f"Look into {folder / 'log'}; if it is damaged, import its last export elsewhere",
        ) from error
    server = EmbeddedServer(folder, bolt, password, owner=True, pid=os.getpid())
    server._java = java
    return server


def _start_java(folder: Path) -> None:
    """Start the one Java runtime of this process, quietly: its log goes to the store's folder."""
    import jpype

    if jpype.isJVMStarted():
        return
    from arcadedb_embedded.exceptions import ArcadeDBError
    from arcadedb_embedded.jvm import start_jvm

    logs = folder / "log"
    configuration = logs / "logging.properties"
    configuration.write_text(
        "handlers=java.util.logging.FileHandler\n"
        ".level=WARNING\n"
        f"java.util.logging.FileHandler.pattern={logs}/engine.%g.log\n"
        "java.util.logging.FileHandler.limit=5000000\n"
        "java.util.logging.FileHandler.count=3\n"
        "java.util.logging.FileHandler.formatter=java.util.logging.SimpleFormatter\n"
    )
    arguments = [
        f"-Djava.util.logging.config.file={configuration}",
        f"-Xss{_stack_size()}k",
        "--sun-misc-unsafe-memory-access=allow",  # else four lines of warning at every start
        # Collecting in pauses takes less of the machine than collecting beside the work.
        "-XX:+UseParallelGC",
        # Not to keep what merging two writers' pages would need: writers take turns (client.py).
        "-Darcadedb.txPageSlotMerge=false",
        "-Darcadedb.graph.edgeAppendMerge=false",
        "-Xrs",  # signals are Python's: Java would end the process under its feet, and crash
    ]
    heap = os.environ.get("CIRCUITBASE_HEAP", _HEAP)
    os.environ.setdefault("ARCADEDB_JVM_ERROR_FILE", f"{logs}/hs_err_pid%p.log")
    try:
        with _quiet_stderr(logs / "java.log"):
            start_jvm(heap_size=heap, jvm_args=arguments)
    except ArcadeDBError as error:
        raise StoreError(
            f"the embedded engine's Java runtime did not start ({error})",
            f"Is CIRCUITBASE_HEAP={heap} a size such as 2g, and is that much memory free?",
        ) from error
    # Registered after the runtime's own hook, so run before it: listeners first, then Java.
    atexit.register(_stop_all)
    _heed_termination()


def _heed_termination() -> None:
    """End on SIGTERM as on an exit: what is open is closed, and the engine stopped.

    Not where the program has chosen otherwise, or starts the engine beside its main thread.
    """
    chosen = signal.getsignal(signal.SIGTERM)
    if chosen is not signal.SIG_DFL or threading.current_thread() is not threading.main_thread():
        return

    def end(number: int, _: object) -> None:
        if not _told:
            _told.append(time.monotonic())
            raise SystemExit(128 + number)
        # timeout(1) sends it twice at once; later, the program has not heeded the first one.
        if time.monotonic() - _told[0] >= _GRACE:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    signal.signal(signal.SIGTERM, end)


_told: list[float] = []  # when the first SIGTERM came


def end_if_told() -> None:
    """Raise again the end that SIGTERM asked for, before new work is begun.

    Python drops what is raised inside a destructor, and a signal may well arrive in one.
    """
    if _told and threading.current_thread() is threading.main_thread():
        raise SystemExit(128 + signal.SIGTERM)


def _stack_size() -> int:
    """Stack of Java's threads in KiB: as large as that of this process's main thread.

    A thread that calls Java gets guard pages in its stack, as far down as Java thinks that stacks
    go: a megabyte, unless told. Multi-threaded linear algebra (NumPy with OpenBLAS) uses more, and
    would crash the interpreter on such a thread.
    """
    limit = resource.getrlimit(resource.RLIMIT_STACK)[0]
    if limit == resource.RLIM_INFINITY:
        return 64 * 1024
    return min(max(limit // 1024, 1024), 1024 * 1024)


@contextlib.contextmanager
def _quiet_stderr(path: Path) -> Iterator[None]:
    """Send what Java writes on standard error at its start (a fixed warning) to a file."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with path.open("a") as file:
            os.dup2(file.fileno(), 2)
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _stop_all() -> None:
    with _registry_lock:
        for server in list(_running.values()):
            server._stop()
        _running.clear()


def _free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nothing listens on now."""
    with contextlib.ExitStack() as stack:
        ports = []
        for _ in range(count):
            probe = stack.enter_context(socket.socket())
            try:
                probe.bind(("127.0.0.1", 0))
            except OSError as error:
                raise StoreConnectionError(
                    f"no port of 127.0.0.1 can be opened ({error})",
                    "The embedded engine needs two; allow loopback sockets",
                ) from error
            ports.append(probe.getsockname()[1])
        return ports
