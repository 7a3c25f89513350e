"""Where a store is, and a driver for it: embedded folder, server address, or a driver given."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import neo4j
from neo4j import exceptions as neo4j_errors

from graphstore.embedded import EmbeddedServer, open_embedded
from tracer.errors import CircuitError, QueryError, StoreConnectionError, StoreError

__all__ = ["Connection", "Engine", "default_store", "open_connection", "translated"]

Engine = Literal["neo4j", "arcadedb"]

_SCHEMES: Final = ("bolt", "bolt+s", "bolt+ssc", "neo4j", "neo4j+s", "neo4j+ssc")


@dataclass
class Connection:
    """A driver, the database it should use, the engine behind it, and who closes what."""

    driver: neo4j.Driver
    database: str | None
    engine: Engine
    address: str
    embedded: EmbeddedServer | None = None
    owns_driver: bool = True

    def close(self) -> None:
        """Close the driver if it is ours, then the embedded engine: in this order."""
        if self.owns_driver:
            self.driver.close()
        if self.embedded is not None:
            self.embedded.drivers.remove(self.driver)
            self.embedded.close()
            self.embedded = None


def default_store() -> str:
    """Where ``connect()`` goes without an argument: $NEO4J_URI, $CIRCUITBASE_STORE, circuits.db."""
    return os.environ.get("NEO4J_URI") or os.environ.get("CIRCUITBASE_STORE") or "circuits.db"


def open_connection(
    target: str | Path | None,
    *,
    auth: Any = None,
    database: str | None = None,
    driver: neo4j.Driver | None = None,
) -> Connection:
    """Open what :func:`graphstore.connect` was given; its docstring says what that may be."""
    if driver is not None:
        if target is not None or auth is not None:
            raise StoreError("connect() was given a driver and an address", "Give one of the two")
        return _checked(driver, database, "the given driver", embedded=None, owns_driver=False)
    place = str(target) if target is not None else default_store()
    scheme = place.partition("://")[0] if "://" in place else None
    if scheme is None:
        return _embedded(place)
    if scheme not in _SCHEMES:
        raise StoreConnectionError(
            f"{place} is no address of a graph database",
            f"Use {', '.join(_SCHEMES)}://host:port, or a folder for the embedded store",
        )
    if auth is None and (password := os.environ.get("NEO4J_PASSWORD")):
        auth = (os.environ.get("NEO4J_USERNAME", "neo4j"), password)
    database = database or os.environ.get("NEO4J_DATABASE") or None
    with translated(place):
        made = neo4j.GraphDatabase.driver(place, auth=auth, **_OPTIONS)
    return _checked(made, database, place, embedded=None, owns_driver=True)


_OPTIONS: Final[dict[str, Any]] = {
    "user_agent": f"circuitbase/{version('circuitbase')}",
    # Hints about labels that an empty store does not have yet are no news to anybody.
    "notifications_min_severity": "OFF",
    "connection_timeout": 10.0,
    "max_transaction_retry_time": 15.0,
}


def _embedded(place: str) -> Connection:
    server = open_embedded(place)
    try:
        with translated(str(server.path)):
            driver = neo4j.GraphDatabase.driver(server.uri, auth=server.auth, **_OPTIONS)
        server.drivers.append(driver)
        return _checked(
            driver, server.database, str(server.path), embedded=server, owns_driver=True
        )
    except BaseException:
        server.close()
        raise


def _checked(
    driver: neo4j.Driver,
    database: str | None,
    address: str,
    *,
    embedded: EmbeddedServer | None,
    owns_driver: bool,
) -> Connection:
    """Ask the server who it is; a connection that cannot be used is not returned."""
    try:
        with translated(address), driver.session(database=database) as session:
            agent = session.run("RETURN 1").consume().server.agent
    except CircuitError:
        if owns_driver:
            driver.close()
        raise
    engine: Engine = "arcadedb" if "ArcadeDB" in agent else "neo4j"
    return Connection(driver, database, engine, address, embedded, owns_driver)


@contextlib.contextmanager
def translated(address: str, query: str | None = None) -> Iterator[None]:
    """Turn the driver's errors into ours, with what to do next.

    Parameters
    ----------
    address
        Names the store in the message.
    query
        Name of the query that runs, if a user asked for one: its errors are then the user's.
    """
    handled = sys.exception()
    try:
        with _translated(address, query):
            yield
    except Exception as error:
        # The driver tidies up a session that Ctrl-C or SIGTERM left half-way, which may fail in
        # any way.
        if (ending := _interruption(error, handled)) is not None:
            raise ending from None
        raise


def _interruption(
    error: BaseException | None, handled: BaseException | None
) -> BaseException | None:
    """Find what ended the program and led to an error, unless it was being handled before."""
    while error is not None and error is not handled:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def _translated(address: str, query: str | None) -> Iterator[None]:
    try:
        yield
    except neo4j_errors.AuthError as error:
        if "://" not in address:  # the embedded store gets a new password at each start
            raise _ended(address) from error
        raise StoreConnectionError(
            f"{address} refuses the user name or password",
            "Set NEO4J_USERNAME and NEO4J_PASSWORD, or pass auth=(user, password)",
        ) from error
    except neo4j_errors.ConfigurationError as error:
        raise StoreConnectionError(
            f"{address} is no usable address ({error})", "Check the URI's scheme, host and port"
        ) from error
    except (
        neo4j_errors.ServiceUnavailable,
        neo4j_errors.SessionExpired,
        neo4j_errors.IncompleteCommit,
        OSError,
    ) as error:
        if "://" not in address:
            raise _ended(address) from error
        raise StoreConnectionError(
            f"no database answers at {address} ({_short(error)})",
            "Is it running? docker/neo4j.sh start, or leave the address out for the embedded store."
            " What was complete is stored; run the command again for the rest",
        ) from error
    except (neo4j_errors.CypherSyntaxError, neo4j_errors.CypherTypeError) as error:
        raise QueryError(
            f"{query or 'query'}: {_short(error)}", "Check the text and its parameters"
        ) from error
    except neo4j_errors.ClientError as error:
        if query is not None:
            raise QueryError(
                f"{query}: {_short(error)}", "Check the text and its parameters"
            ) from error
        raise StoreError(
            f"{address} refused a statement ({error.code}: {_short(error)})",
            "circuitbase verify tells whether the store is sound",
        ) from error
    except neo4j_errors.Neo4jError as error:
        raise StoreError(
            f"{address} failed ({error.code}: {_short(error)})",
            "What was complete is stored; the server's log tells more (is a disk full?)",
        ) from error
    except neo4j_errors.DriverError as error:
        raise StoreError(
            f"{address}: {_short(error)}", "Close this store and connect again"
        ) from error


def _ended(address: str) -> StoreConnectionError:
    return StoreConnectionError(
        f"no database answers at {address}: the process that ran the store has ended",
        "Connect again. What was complete is stored; run the command again for the rest",
    )


def _short(error: BaseException) -> str:
    """First line of a message, without the driver's wrapping."""
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    return str(text).strip().splitlines()[0][:300]
