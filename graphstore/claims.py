"""The right to write or remove one graph, held by one process at a time.

A graph that is not complete carries who is at work on it and a heartbeat. Every step of the work
is a transaction that first renews the heartbeat under that name, and fails if the name has changed.
A claim passes on only by one conditional statement, so of two that want it one gets it.
"""

from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

import neo4j
from neo4j import exceptions as neo4j_errors

from graphstore.schema import VAULT
from tracer.errors import StoreError

if TYPE_CHECKING:
    from graphstore.client import Client

__all__ = ["SILENCE_LIMIT", "Claim", "has_died"]

SILENCE_LIMIT: Final = 600.0  # seconds without a heartbeat after which a worker is taken for gone

T = TypeVar("T")

# The vault is locked so that nobody removes unused features between a claim and its batches.
_MAKE: Final = """
MATCH (v:Vault {vault_id: $vault}) SET v.claims = coalesce(v.claims, 0) + 1
CREATE (:Graph {graph_id: $graph_id, complete: false, writer: $writer, heartbeat: timestamp()})
"""
_TAKE_OVER: Final = """
MATCH (v:Vault {vault_id: $vault}) SET v.claims = coalesce(v.claims, 0) + 1
WITH v
MATCH (g:Graph {graph_id: $graph_id})
WHERE g.complete = false AND coalesce(g.writer, '') = $from
      AND timestamp() - coalesce(g.heartbeat, 0) >= $silent_ms
SET g.writer = $writer, g.heartbeat = timestamp()
RETURN g.graph_id AS graph_id
"""
_WITHDRAW: Final = """
MATCH (g:Graph {graph_id: $graph_id}) WHERE g.complete = true
SET g.complete = false, g.writer = $writer, g.heartbeat = timestamp()
RETURN g.graph_id AS graph_id
"""
_HOLD: Final = """
MATCH (g:Graph {graph_id: $graph_id, writer: $writer}) WHERE g.complete = false
SET g.heartbeat = timestamp() RETURN g.graph_id AS graph_id
"""

# Claims that this process is at work on; others under its name are from work that failed.
_held: set[str] = set()


class Claim:
    """The right to work on one graph; use it in a ``with`` statement.

    Parameters
    ----------
    store, graph_id
        The graph, stored or not.
    """

    def __init__(self, store: Client, graph_id: str) -> None:
        self.store = store
        self.graph_id = graph_id
        self.writer = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex}"

    def __enter__(self) -> Claim:
        _held.add(self.writer)
        return self

    def __exit__(self, *_: object) -> None:
        _held.discard(self.writer)

    def make(self) -> bool:
        """Make the graph's node, incomplete; False if another was faster."""
        try:
            self.store.change(_MAKE, vault=VAULT, graph_id=self.graph_id, writer=self.writer)
        except StoreError as error:
            if isinstance(error.__cause__, neo4j_errors.ConstraintError):
                return False
            raise
        return True

    def take_over(self, previous: str | None, *, silent_for: float = 0.0) -> bool:
        """Take an incomplete graph from who worked on it, if still silent for so many seconds."""
        taken = self.store.change(
            _TAKE_OVER,
            **{"from": previous or ""},
            vault=VAULT,
            graph_id=self.graph_id,
            writer=self.writer,
            silent_ms=silent_for * 1000.0,
        )
        return bool(taken)

    def withdraw(self, tx: neo4j.ManagedTransaction) -> bool:
        """Make a complete graph incomplete and ours; False if it is not complete."""
        done = tx.run(_WITHDRAW, graph_id=self.graph_id, writer=self.writer).single()
        return done is not None

    def run(self, work: Callable[[neo4j.ManagedTransaction], T]) -> T:
        """Run a function in one transaction that fails if the claim was lost."""

        def held(tx: neo4j.ManagedTransaction) -> T:
            if tx.run(_HOLD, graph_id=self.graph_id, writer=self.writer).single() is None:
                raise StoreError(
                    f"graph {self.graph_id} was taken over by another process",
                    "This one was silent too long; run it again",
                )
            return work(tx)

        return self.store.transact(held, merges=True)


def has_died(writer: str | None) -> bool:
    """Whether a claim's owner was a process of this machine that is no more, or gave up."""
    host, _, rest = (writer or "").partition("/")
    pid = rest.partition("/")[0]
    if host != socket.gethostname() or not pid.isdecimal():
        return False
    if int(pid) == os.getpid():
        return writer not in _held
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:  # it lives, and is somebody else's
        return False
    return False
