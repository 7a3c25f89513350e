"""A connection that runs statements: what every part of this package needs, and no more."""

from __future__ import annotations

import contextlib
import fcntl
import threading
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import neo4j
import neo4j.exceptions
import pandas as pd
from neo4j import graph as neo4j_graph

from graphstore import dialect
from graphstore.connection import Connection, translated
from tracer.errors import QueryError, StoreError

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """Statements in managed transactions, with errors that say what to do.

    Attributes
    ----------
    driver
        The ``neo4j`` driver, for whatever this class does not do.
    engine
        ``"neo4j"`` or ``"arcadedb"``.
    address
        Where the store is, for messages.
    embedded
        The engine in this process or another one's, if the store is embedded.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.driver = connection.driver
        self.database = connection.database
        self.engine = connection.engine
        self.address = connection.address
        self.embedded = connection.embedded
        self._open = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        closed = "" if self._open else ", closed"
        return f"<{type(self).__name__} {self.address} ({self.engine}{closed})>"

    def close(self) -> None:
        """Close the connection, and the embedded engine if nobody else uses it."""
        if self._open:
            self._open = False
            self._connection.close()

    def run_named(
        self, name: str, text: str, parameters: Mapping[str, Any], *, write: bool = False
    ) -> pd.DataFrame:
        """Run a query; its errors carry `name`."""

        def work(tx: neo4j.ManagedTransaction) -> tuple[list[str], list[list[Any]]]:
            result = tx.run(text, dict(parameters))
            keys = list(result.keys())
            values = [[_plain(value) for value in record.values()] for record in result]
            if not write and result.consume().counters.contains_updates:
                raise _would_write(name)
            return keys, values

        self._check_open()
        if not write:
            dialect.refuse_writing(self, name, text)
        turn = self._turn() if write else contextlib.nullcontext()
        with turn, translated(self.address, name), self._session(write) as session:
            try:
                keys, values = (session.execute_write if write else session.execute_read)(work)
            except neo4j.exceptions.ClientError as error:
                if error.code == "Neo.ClientError.Statement.AccessMode":
                    raise _would_write(name) from error
                raise
        return pd.DataFrame(values, columns=keys)

    def rows(self, text: str, **parameters: Any) -> list[dict[str, Any]]:
        """Run a statement that reads; one dictionary a row."""

        def work(tx: neo4j.ManagedTransaction) -> list[dict[str, Any]]:
            return [dict(record) for record in tx.run(text, parameters)]

        self._check_open()
        with translated(self.address), self._session(False) as session:
            return session.execute_read(work)

    def change(self, text: str, **parameters: Any) -> list[dict[str, Any]]:
        """Run one statement that writes, in a transaction of its own; one dictionary a row."""
        return self.transact(lambda tx: [dict(record) for record in tx.run(text, parameters)])

    def transact(self, work: Callable[[neo4j.ManagedTransaction], T], *, merges: bool = False) -> T:
        """Run a function in one write transaction, again if the engine says that this helps.

        Parameters
        ----------
        work
            The function; it may run more than once.
        merges
            Whether it merges nodes that other writers may be making at this moment.
        """
        self._check_open()
        with self._turn(), translated(self.address), self._session(True) as session:
            for _ in range(dialect.MERGE_TRIES - 1):
                try:
                    return session.execute_write(work)
                except neo4j.exceptions.ConstraintError:
                    if not (merges and dialect.merge_can_lose_a_race(self)):
                        raise
            return session.execute_write(work)

    @contextlib.contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait until no other writer of an embedded store is in a transaction.

        The embedded engine does not make writers wait: of two that meet, one fails when it
        commits and has to begin again, after a second and more. Writers of one store, in this
        process and in others, hold a lock on a file instead; what dies lets go of it.
        """
        if self.embedded is None or getattr(_in_turn, "held", False):
            yield
            return
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):  # a disk that is full or read-only: no writer either
                file = stack.enter_context((self.embedded.path / "writing").open("a"))
                fcntl.flock(file, fcntl.LOCK_EX)
            _in_turn.held = True
            try:
                yield
            finally:
                _in_turn.held = False

    def _session(self, write: bool) -> neo4j.Session:
        mode = neo4j.WRITE_ACCESS if write else neo4j.READ_ACCESS
        return self.driver.session(database=self.database, default_access_mode=mode)

    def _check_open(self) -> None:
        if not self._open:
            raise StoreError(f"store {self.address} is closed", "Connect again")


# A function in a transaction may begin another one.
_in_turn = threading.local()


def _plain(value: Any) -> Any:
    """Nodes and relationships as dictionaries of their properties, paths as lists of them."""
    if isinstance(value, neo4j_graph.Node | neo4j_graph.Relationship):
        return dict(value)
    if isinstance(value, neo4j_graph.Path):
        return [
            dict(part)
            for pair in zip(value.nodes, [*value.relationships, None], strict=True)
            for part in pair
            if part is not None
        ]
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _would_write(name: str) -> QueryError:
    return QueryError(
        f"{name} would change the store",
        "Allow it with --write on the command line, write=True in Python",
    )
