"""The right to write or remove one graph (or global weights), held by one process at a time.

A graph that is not complete carries who is at work on it and a heartbeat. Every step of the work
is a transaction that first renews the heartbeat under that name, and fails if the name has changed.
A claim passes on only by one conditional statement, so of two that want it one gets it.

A worker's name is ``host/pid/start/machine/process-claim``. Host name and pid alone prove nothing:
pids are used again, and two containers may share both. ``start`` is when the process began, and
``machine`` the running kernel and the space in which it counts pids (Linux: proc(5),
pid_namespaces(7)); where a system does not tell them, only the heartbeat decides who is gone.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, TypeVar

import neo4j
from neo4j import exceptions as neo4j_errors

from graphstore.schema import VAULT
from tracer.errors import StoreError

if TYPE_CHECKING:
    from graphstore.client import Client

__all__ = ["SILENCE_LIMIT", "STATE", "Claim", "WeightsClaim", "has_died", "lock_vault"]

SILENCE_LIMIT: Final = 600.0  # seconds without a heartbeat after which a worker is taken for gone

_POLL: Final = 0.5  # seconds between looks at another worker's progress

T = TypeVar("T")

log = logging.getLogger(__name__)

_LOCK: Final = "MATCH (v:Vault {vault_id: $vault}) SET v.claims = coalesce(v.claims, 0) + 1"
# The vault is locked so that nobody removes unused features between a claim and its batches.
_MAKE: Final = (
    f"{_LOCK} "
    """
CREATE (:Graph {graph_id: $graph_id, complete: false, writer: $writer, heartbeat: timestamp()})
"""
)
_TAKE_OVER: Final = (
    f"{_LOCK} "
    """
WITH v
MATCH (g:Graph {graph_id: $graph_id})
WHERE g.complete = false AND coalesce(g.writer, '') = $from
      AND timestamp() - coalesce(g.heartbeat, 0) >= $silent_ms
SET g.writer = $writer, g.heartbeat = timestamp()
RETURN g.graph_id AS graph_id
"""
)
_WITHDRAW: Final = """
MATCH (g:Graph {graph_id: $graph_id}) WHERE g.complete = true
SET g.complete = false, g.writer = $writer, g.heartbeat = timestamp()
RETURN g.graph_id AS graph_id
"""
_HOLD: Final = """
MATCH (g:Graph {graph_id: $graph_id, writer: $writer}) WHERE g.complete = false
SET g.heartbeat = timestamp() RETURN g.graph_id AS graph_id
"""
STATE: Final = """
MATCH (g:Graph {graph_id: $graph_id})
RETURN g.complete AS complete, g.writer AS writer,
       (timestamp() - coalesce(g.heartbeat, 0)) / 1000.0 AS silent
"""


def _of_weights(text: str) -> str:
    """Turn a statement about a graph into the same about global weights."""
    return text.replace(":Graph {graph_id:", ":GlobalWeights {weights_id:")


# Claims that this process is at work on; others under its name are from work that failed.
_held: set[str] = set()


class Claim:
    """The right to work on one graph; use it in a ``with`` statement.

    Parameters
    ----------
    store, graph_id
        The graph, stored or not.
    """

    what: ClassVar = "graph"
    _texts: ClassVar = {
        "make": _MAKE,
        "take over": _TAKE_OVER,
        "withdraw": _WITHDRAW,
        "hold": _HOLD,
        "state": STATE,
    }

    def __init__(self, store: Client, graph_id: str) -> None:
        self.store = store
        self.graph_id = graph_id
        self.writer = f"{_process(os.getpid())}-{uuid.uuid4().hex}"

    def __enter__(self) -> Claim:
        _held.add(self.writer)
        return self

    def __exit__(self, *_: object) -> None:
        _held.discard(self.writer)

    def take(self, clear: Callable[[Claim], None]) -> bool:
        """Claim what is to be written, or wait for whoever works on it; True if it is ours.

        Parameters
        ----------
        clear
            Removes what an interrupted writer left.
        """
        told = False
        while True:
            found = self.store.rows(self._texts["state"], graph_id=self.graph_id)
            if not found:
                if self.make():
                    return True
                continue
            state = found[0]
            if state["complete"]:
                return False
            dead = has_died(state["writer"])
            if dead or state["silent"] >= SILENCE_LIMIT:
                if self.take_over(state["writer"], silent_for=0.0 if dead else SILENCE_LIMIT):
                    name = f"{self.what} {self.graph_id}"
                    log.warning("%s left half-written; writing it again", name)
                    clear(self)
                    return True
                continue
            if not told:
                log.warning("%s works on %s %s; waiting", state["writer"], self.what, self.graph_id)
                told = True
            time.sleep(_POLL)

    def make(self) -> bool:
        """Make the graph's node, incomplete; False if another was faster."""
        try:
            self.store.change(
                self._texts["make"], vault=VAULT, graph_id=self.graph_id, writer=self.writer
            )
        except StoreError as error:
            if isinstance(error.__cause__, neo4j_errors.ConstraintError):
                return False
            raise
        return True

    def take_over(self, previous: str | None, *, silent_for: float = 0.0) -> bool:
        """Take an incomplete graph from who worked on it, if still silent for so many seconds."""
        taken = self.store.change(
            self._texts["take over"],
            **{"from": previous or ""},
            vault=VAULT,
            graph_id=self.graph_id,
            writer=self.writer,
            silent_ms=silent_for * 1000.0,
        )
        return bool(taken)

    def withdraw(self, tx: neo4j.ManagedTransaction) -> bool:
        """Make a complete graph incomplete and ours; False if it is not complete."""
        done = tx.run(self._texts["withdraw"], graph_id=self.graph_id, writer=self.writer).single()
        return done is not None

    def run(self, work: Callable[[neo4j.ManagedTransaction], T]) -> T:
        """Run a function in one transaction that fails if the claim was lost."""

        def held(tx: neo4j.ManagedTransaction) -> T:
            given = {"graph_id": self.graph_id, "writer": self.writer}
            if tx.run(self._texts["hold"], given).single() is None:
                raise StoreError(
                    f"{self.what} {self.graph_id} was taken over by another process",
                    "This one was silent too long; run it again",
                )
            return work(tx)

        return self.store.transact(held, merges=True)


class WeightsClaim(Claim):
    """The right to work on global weights; `graph_id` is their id."""

    what = "global weights"
    _texts: ClassVar = {name: _of_weights(text) for name, text in Claim._texts.items()}


def lock_vault(tx: neo4j.ManagedTransaction) -> None:
    """Wait until no other transaction changes what all graphs share, and keep others from it."""
    tx.run(_LOCK, vault=VAULT).consume()


def has_died(writer: str | None) -> bool:
    """Whether a claim's owner was a process of this machine that is no more, or gave up.

    False where that cannot be known: then only the heartbeat tells.
    """
    name = writer or ""
    if name.startswith(f"{_process(os.getpid())}-"):
        return name not in _held
    host, _, rest = name.partition("/")
    pid, _, rest = rest.partition("/")
    start, _, rest = rest.partition("/")
    machine = rest.partition("/")[0]
    if not (pid.isdecimal() and start.isdecimal() and machine):
        return False
    if (host, machine) != (socket.gethostname(), _machine()):
        return False
    return not _is_alive(int(pid), start)


@functools.cache
def _process(pid: int) -> str:
    """Name this process; by its id, because a forked one is another."""
    start = (_stat(pid) or {}).get("start", "")
    return f"{socket.gethostname()}/{pid}/{start}/{_machine()}/{uuid.uuid4().hex}"


def _machine() -> str:
    """Name the running kernel and the space of its pids, or nothing where it does not tell."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}:{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _is_alive(pid: int, start: str) -> bool:
    """Whether the process of this id that began then is at work; true if it cannot be told."""
    found = _stat(pid)
    if found is None:  # gone, or hidden from us
        return _is_there(pid)
    # A killed process that nobody has waited for is still listed.
    ended = found["state"] in ("Z", "X") and int(found["threads"]) <= 1
    return found["start"] == start and not ended


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it is somebody else's, or no id of this system
        return True
    return True


def _stat(pid: int) -> dict[str, str] | None:
    """State, threads and start time (ticks after the system's start) of a process: proc(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the program's name may hold anything
    if len(fields) < 20 or not fields[17].isdecimal() or not fields[19].isdecimal():
        return None
    return {"state": fields[0], "threads": fields[17], "start": fields[19]}
