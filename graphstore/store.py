"""A store of attribution graphs: the one class that people hold."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import neo4j
import pandas as pd

from graphstore.circuits import (
    delete_circuit,
    keep_circuit,
    list_circuits,
    read_circuit_record,
)
from graphstore.client import Client
from graphstore.connection import open_connection
from graphstore.deleting import (
    interrupted,
    remove_graph,
    remove_interrupted,
    remove_left_features,
    remove_unused_features,
)
from graphstore.describing import describe_stored_features
from graphstore.grouping import group_nodes, label_features
from graphstore.metadata import add_metadata, checked_metadata
from graphstore.reading import read_stored_graph
from graphstore.schema import ensure_schema
from graphstore.sets import (
    Combination,
    combine,
    drop_set,
    exclude_graphs,
    graphs_where,
    ids_of_answer,
    include_graphs,
    list_sets,
    members,
)
from graphstore.verifying import verify_store
from graphstore.weights import find_weights, list_weights, read_weights_from, write_weights_to
from graphstore.weights_deleting import (
    interrupted_weights,
    remove_interrupted_weights,
    remove_weights,
)
from graphstore.writing import write_graph_to
from tracer.errors import NotFoundError, QueryError, StoreError, nearest
from tracer.graph import AttributionGraph
from tracer.weights import GlobalWeights

__all__ = ["Store", "connect"]

log = logging.getLogger(__name__)


def connect(
    target: str | Path | None = None,
    *,
    auth: Any = None,
    database: str | None = None,
    driver: neo4j.Driver | None = None,
) -> Store:
    """Open a store.

    Parameters
    ----------
    target
        A folder (the embedded engine), or the address of a Neo4j server (``bolt://…``,
        ``neo4j://…``). Without it: ``$NEO4J_URI``, else ``$CIRCUITBASE_STORE``, else
        ``./circuits.db``.
    auth
        ``(user, password)`` of a server; else ``$NEO4J_USERNAME``, ``$NEO4J_PASSWORD``.
    database
        A server's database; else ``$NEO4J_DATABASE``, else the server's default.
    driver
        A driver of your own, used instead of an address and never closed by us.

    Returns
    -------
    Store
        Use it in a ``with`` statement, or close it.

    Raises
    ------
    StoreConnectionError
        If no server answers or it refuses the credentials.
    StoreLockedError
        If another process holds the embedded store and does not answer.
    SchemaVersionError
        If the store was written by another version.
    """
    connection = open_connection(target, auth=auth, database=database, driver=driver)
    store = Store(connection)
    try:
        ensure_schema(store)
        if connection.embedded is not None:
            if connection.embedded.first_use():
                _clean_up(store)
            connection.embedded.announce()
    except BaseException:
        store.close()
        raise
    return store


def _clean_up(store: Store) -> None:
    """Remove what was interrupted; nobody else can be writing before the store is announced."""
    left = interrupted(store, silent_for=0)
    for graph_id in left:
        log.warning("removing graph %s, whose writing was interrupted", graph_id)
        remove_interrupted(store, graph_id, silent_for=0)
    half = interrupted_weights(store, silent_for=0)
    for weights_id in half:
        log.warning("removing global weights %s, whose writing was interrupted", weights_id)
        remove_interrupted_weights(store, weights_id, silent_for=0)
    if left or half:
        remove_unused_features(store)
    else:
        remove_left_features(store)


class Store(Client):
    """Attribution graphs in a graph database; made by :func:`connect`.

    Its ``driver`` is the ``neo4j`` driver, for whatever this class does not do; ``engine`` is
    ``"neo4j"`` or ``"arcadedb"``, ``address`` says where the store is.
    """

    # Graphs ------------------------------------------------------------------------------------

    def write(self, graph: AttributionGraph, prompt_set: str | None = None) -> bool:
        """Store a graph, with everything the sparse solve knows of it.

        Readers see the whole graph or nothing. A graph that is stored already is left as it is;
        labels it brings for unlabelled features and its place in `prompt_set` are added.

        Parameters
        ----------
        graph
            The graph; its features need a transcoder.
        prompt_set
            Name of the set that includes it; made if new.

        Returns
        -------
        bool
            Whether the graph is new to the store.
        """
        new = write_graph_to(self, graph, prompt_set)
        if new:
            remove_left_features(self)
        return new

    def include(self, graph_id: str, prompt_set: str) -> None:
        """Add a stored graph to a prompt set, which is made if new.

        Raises
        ------
        NotFoundError
            If no complete graph has this id.
        """
        self.transact(
            lambda tx: self._include(tx, graph_id, prompt_set),
            merges=True,
        )

    def _include(self, tx: neo4j.ManagedTransaction, graph_id: str, prompt_set: str) -> None:
        found = tx.run(
            "MATCH (g:Graph {graph_id: $graph_id, complete: true}) "
            "MERGE (p:PromptSet {name: $name}) MERGE (p)-[:INCLUDES]->(g) "
            "RETURN g.graph_id AS graph_id",
            graph_id=graph_id,
            name=prompt_set,
        ).single()
        if found is None:
            raise NotFoundError(f"no graph {graph_id!r} is stored", "See circuitbase graphs")

    def write_many(
        self,
        graphs: Iterable[AttributionGraph],
        prompt_set: str | None = None,
        progress: Callable[[AttributionGraph, bool], None] | None = None,
    ) -> int:
        """Store graphs one after another; the number that were new.

        Parameters
        ----------
        graphs
            Any iterable; each is stored before the next is asked for.
        prompt_set
            As in :meth:`write`.
        progress
            Called after each graph with it and whether it was new.
        """
        count = 0
        for graph in graphs:
            new = self.write(graph, prompt_set)
            count += new
            if progress is not None:
                progress(graph, new)
        return count

    def read(self, graph_id: str) -> AttributionGraph:
        """Read a graph back, equal to the one written.

        Parameters
        ----------
        graph_id
            Its id, or a name that :meth:`find` understands.

        Raises
        ------
        NotFoundError
            If no complete graph, or more than one, is called so.
        """
        return read_stored_graph(self, self.find(graph_id))

    def delete(self, graph_id: str) -> None:
        """Remove a graph and what only it used.

        Features with a label, statistics or global weights stay; sets stay, even empty.

        Parameters
        ----------
        graph_id
            Its whole id: what cannot be undone takes no slug and no beginning of an id.

        Raises
        ------
        NotFoundError
            If no complete graph has this id; the message says which graph a name means.
        """
        self.require_id(graph_id)
        remove_graph(self, graph_id)

    def require_id(self, graph_id: str) -> None:
        """Check that a complete graph has exactly this id, as deleting needs it.

        Raises
        ------
        NotFoundError
            If none has; the message says which graph a name means.
        """
        found = self.find(graph_id)
        if found != graph_id:
            raise NotFoundError(
                f"{graph_id!r} is a name of graph {found}, and deleting takes whole ids only",
                f"Name it as {found}",
            )

    def graphs(self, prompt_set: str | None = None) -> pd.DataFrame:
        """One row a stored graph, in the order stored.

        Columns: graph_id, slug, prompt, model_id, transcoder_id, nodes, edges, features,
        prompt_sets, created_at, stored_at.
        """
        if prompt_set is not None:
            members(self, prompt_set)  # it must be known
        found = self.rows(
            """
            MATCH (g:Graph) WHERE g.complete = true
            OPTIONAL MATCH (p:PromptSet)-[:INCLUDES]->(g)
            WITH g, collect(p.name) AS sets
            WHERE $prompt_set IS NULL
               OR any(s IN sets WHERE s = $prompt_set OR s STARTS WITH $below)
            RETURN g.graph_id AS graph_id, g.slug AS slug, g.prompt AS prompt,
                   g.model_id AS model_id, g.transcoder_id AS transcoder_id, g.n_nodes AS nodes,
                   g.n_edges AS edges, g.n_features AS features, sets AS prompt_sets,
                   g.created_at AS created_at, g.stored_at AS stored_at, g.gno AS gno
            ORDER BY gno
            """,
            prompt_set=prompt_set,
            below=f"{prompt_set}/",
        )
        columns = [
            *("graph_id", "slug", "prompt", "model_id", "transcoder_id", "nodes", "edges"),
            *("features", "prompt_sets", "created_at", "stored_at"),
        ]
        table = pd.DataFrame(found, columns=columns)
        table["prompt_sets"] = [sorted(sets) for sets in table["prompt_sets"]]
        return table

    def find(self, name: str) -> str:
        """Id of the graph that has this id, this beginning of an id, or this slug.

        Raises
        ------
        NotFoundError
            If none has, or more than one; the message suggests.
        """
        # Most callers have the id itself, which the index answers; names take a look at them all.
        if self.rows(
            "MATCH (g:Graph {graph_id: $name}) WHERE g.complete = true RETURN g.graph_id AS id",
            name=name,
        ):
            return name
        found = self.rows(
            "MATCH (g:Graph) WHERE g.complete = true RETURN g.graph_id AS id, g.slug AS slug"
        )
        for matches in (
            [row["id"] for row in found if row["slug"] == name],
            [row["id"] for row in found if len(name) >= 4 and row["id"].startswith(name)],
        ):
            if len(matches) == 1:
                return str(matches[0])
            if matches:
                raise NotFoundError(
                    f"{len(matches)} graphs are called {name!r}: {', '.join(matches[:4])}",
                    "Name one by its id",
                )
        known = [row["id"] for row in found] + [row["slug"] for row in found if row["slug"]]
        raise NotFoundError(
            f"no graph {name!r} is stored",
            nearest(name, known) or "circuitbase graphs lists what is",
        )

    # Sets, supernodes, labels ------------------------------------------------------------------

    def sets(self) -> pd.DataFrame:
        """One row a prompt set: name, description, graphs.

        Sets are nested by their names: the graphs of ``capitals`` are its own and those of
        ``capitals/states``. A set above others is listed even where nobody made it.
        """
        return list_sets(self)

    def fill_set(
        self,
        name: str,
        where: Mapping[str, Any] | None = None,
        /,
        *,
        graphs: Sequence[str] | None = None,
        cypher: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        within: str | Sequence[str] | None = None,
        **more: Any,
    ) -> list[str]:
        """Add graphs to a prompt set: by hand, by what is known of their prompts, or by a query.

        Parameters
        ----------
        name
            The set, made if new; ``capitals/states`` lies in ``capitals``.
        where
            Conditions, all of which hold: keys of the metadata (``template``, ``family``,
            ``answer``, ``hops``, ``language``, ``split``, or any other), ``right`` (the most
            probable token is the answer), ``model_id``, ``transcoder_id``, ``prompt_id``,
            ``slug``, ``unpruned``; each a value, or a list of values any of which will do.
        graphs
            Graphs by hand: ids, beginnings of ids or slugs.
        cypher, parameters
            A query that returns ``graph_id``, and its parameters.
        within
            Only graphs of this set (or of this list).
        **more
            Conditions as keywords: ``fill_set("two-hop", hops=2, right=True)``.

        Returns
        -------
        list of str
            Ids of the graphs that were found, in the order stored; they are in the set now.

        Raises
        ------
        NotFoundError
            If no graph, set or key of the metadata has a name.
        StoreError
            If nothing says which graphs, or the query returns no ids.
        QueryError
            If the engine refuses the query.
        """
        conditions = {**(where or {}), **more}
        if graphs is None and cypher is None and not conditions and within is None:
            raise StoreError(
                f"nothing says which graphs set {name!r} gets",
                "Give conditions (hops=2), graphs, or cypher",
            )
        ids = graphs_where(self, conditions, within)
        if graphs is not None:
            chosen = set(members(self, [graphs] if isinstance(graphs, str) else graphs))
            ids = [graph_id for graph_id in ids if graph_id in chosen]
        if cypher is not None:
            rows = self.cypher(cypher, parameters=parameters or {}).to_dict("records")
            chosen = set(ids_of_answer([{str(k): v for k, v in row.items()} for row in rows]))
            ids = [graph_id for graph_id in ids if graph_id in chosen]
        include_graphs(self, name, ids)
        return ids

    def combine_sets(
        self,
        how: Combination,
        sets: Sequence[str | Sequence[str]],
        into: str | None = None,
    ) -> list[str]:
        """Union, intersection or difference of prompt sets.

        Parameters
        ----------
        how
            ``union``, ``intersection``, or ``difference`` (the first without the others).
        sets
            Names of sets, or lists of graphs.
        into
            Set that gets the graphs, made if new; left out, nothing is stored.

        Returns
        -------
        list of str
            Ids of the graphs; every query takes such a list in the place of a set's name.

        Raises
        ------
        NotFoundError
            If no set or graph has a name.
        StoreError
            If `how` is unknown, or no set is given.
        """
        return combine(self, how, sets, into)

    def exclude(self, graph_id: str, prompt_set: str) -> None:
        """Take a graph out of a prompt set; both stay.

        Raises
        ------
        NotFoundError
            If no graph or set has the name.
        """
        exclude_graphs(self, prompt_set, [self.find(graph_id)])

    def drop_set(self, name: str) -> None:
        """Remove a prompt set; its graphs and the sets below it stay.

        Raises
        ------
        NotFoundError
            If no set has the name.
        """
        drop_set(self, name)

    def annotate(self, graph_id: str, metadata: Mapping[str, Any]) -> list[str]:
        """Add metadata to a stored graph: what is there stays, and its id does not change.

        Parameters
        ----------
        graph_id
            The graph: its id, or a name that :meth:`find` understands.
        metadata
            ``template``, ``family``, ``answer``, ``hops``, ``language``, ``split``, or any other.

        Returns
        -------
        list of str
            Keys that are stored with another value, which was kept.

        Raises
        ------
        NotFoundError
            If no graph has the name.
        StoreError
            If a value is no JSON, or has not the type of its key.
        """
        checked = checked_metadata(metadata)
        return add_metadata(self, self.find(graph_id), {"metadata": checked})

    def add_set(self, name: str, description: str | None = None) -> None:
        """Make a prompt set, or describe one."""
        self.change(
            "MERGE (p:PromptSet {name: $name}) "
            "SET p.description = coalesce($description, p.description)",
            name=name,
            description=description,
        )

    def group(
        self, graph_id: str, name: str, node_ids: Sequence[str], author: str | None = None
    ) -> str:
        """Group nodes of a graph under a name: a supernode.

        Parameters
        ----------
        graph_id
            The graph: its id, or a name that :meth:`find` understands.
        name
            What to call the group.
        node_ids
            Nodes by key (``feature/12/4711/8``), node id, or id in the graph's file.
        author
            Who grouped them.

        Returns
        -------
        str
            Id of the supernode.
        """
        return group_nodes(self, self.find(graph_id), name, node_ids, author)

    def label(self, labels: pd.DataFrame, source: str) -> int:
        """Label features, replacing the labels they have.

        Parameters
        ----------
        labels
            Columns ``feature_id`` (``{transcoder_id}/{layer}/{index}``) and ``label``.
        source
            Where the labels are from; kept with each.

        Returns
        -------
        int
            How many features were labelled; those not yet seen in a graph are made.

        Raises
        ------
        StoreError
            If an id is none; then no label is stored.
        """
        return label_features(self, labels, source)

    def describe_features(
        self, table: pd.DataFrame, progress: Callable[[int, int], None] | None = None
    ) -> int:
        """Keep what a corpus told of features: figures, examples, and computed labels.

        Parameters
        ----------
        table
            What :func:`tracer.describe_features` returns: ``feature_id``, ``density``,
            ``mean_activation``, ``max_activation``, ``statistics``, ``examples``, and perhaps
            ``label`` with a ``label_source`` that begins with ``computed:``.
        progress
            Called with how many features are described, and how many there are.

        Returns
        -------
        int
            How many features were described; those not yet seen in a graph are made. Figures and
            computed labels that are there are replaced; a label of another source (given by hand,
            or in a graph file) stays.

        Raises
        ------
        StoreError
            If an id is none, or a figure or text is not as it should be; then nothing is stored.
        """
        return describe_stored_features(self, table, progress)

    # Global weights ----------------------------------------------------------------------------

    def write_weights(self, weights: GlobalWeights) -> bool:
        """Store global weights: their features, pairs, and influence where it is attached.

        Readers see all of it or nothing. Weights that are stored already are left as they are;
        influence is added to them where they have none.

        Returns
        -------
        bool
            Whether they are new to the store.
        """
        new = write_weights_to(self, weights)
        if new:
            remove_left_features(self)
        return new

    def read_weights(self, weights_id: str | None = None) -> GlobalWeights:
        """Read global weights back, equal to those written.

        Parameters
        ----------
        weights_id
            Their id, or its beginning; left out, the only ones stored.

        Raises
        ------
        NotFoundError
            If no complete ones, or more than one, are called so.
        """
        return read_weights_from(self, self.find_weights(weights_id))

    def weights(self) -> pd.DataFrame:
        """One row for each stored submatrix of global weights, in the order stored.

        Columns: weights_id, corpus_id, norm, features, pairs, tokens, model_id, transcoder_id,
        influence_by, stored_at.
        """
        return list_weights(self)

    def delete_weights(self, weights_id: str) -> None:
        """Remove global weights and the features that only they used.

        Parameters
        ----------
        weights_id
            Their whole id: what cannot be undone takes no beginning of an id.

        Raises
        ------
        NotFoundError
            If no complete ones have this id.
        """
        if self.find_weights(weights_id) != weights_id:
            raise NotFoundError(
                f"{weights_id!r} is the beginning of an id, and deleting takes whole ids only",
                f"Name them as {self.find_weights(weights_id)}",
            )
        remove_weights(self, weights_id)

    def find_weights(self, name: str | None = None) -> str:
        """Id of the global weights that have this id, or this beginning of one.

        Parameters
        ----------
        name
            Left out, the only ones stored.

        Raises
        ------
        NotFoundError
            If none are called so, or several; the message lists them.
        """
        return find_weights(self, name)

    # Circuits: made and read by queries.consensus_circuit, keep_circuit, read_circuit -----------

    def circuits(self) -> pd.DataFrame:
        """One row a kept circuit: name, features, edges, min_share, graphs, transcoder_id, …."""
        return list_circuits(self)

    def circuit(self, name: str) -> dict[str, Any]:
        """Read the record of a kept circuit; :func:`queries.read_circuit` makes it an object.

        Raises
        ------
        NotFoundError
            If none has the name.
        """
        return read_circuit_record(self, name)

    def keep_circuit(self, record: Mapping[str, Any]) -> None:
        """Keep the record of a circuit under its name; see :func:`queries.keep_circuit`.

        Raises
        ------
        StoreError
            If there is a circuit of this name, or the record is malformed.
        """
        keep_circuit(self, record)

    def delete_circuit(self, name: str) -> None:
        """Remove a kept circuit; features that nothing else uses go with it.

        Raises
        ------
        NotFoundError
            If none has the name.
        """
        delete_circuit(self, name)
        remove_unused_features(self)

    # Checking ----------------------------------------------------------------------------------

    def verify(
        self, repair: bool = False, progress: Callable[[int, int], None] | None = None
    ) -> pd.DataFrame:
        """Check every invariant of the store; changes nothing unless asked to repair.

        Parameters
        ----------
        repair
            First remove what interrupted writers left (no heartbeat for ten minutes) and
            features that nothing uses; make missing constraints, damaged indexes and summaries
            that disagree with their graphs anew. Graphs themselves are never changed.
        progress
            Called with how many graphs are checked, and how many there are.

        Returns
        -------
        DataFrame
            One row a problem: ``check``, ``id``, ``problem``; empty if the store is sound.
        """
        return verify_store(self, repair=repair, progress=progress)

    # Cypher ------------------------------------------------------------------------------------

    def cypher(
        self,
        text: str,
        /,
        *,
        write: bool = False,
        parameters: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> pd.DataFrame:
        """Run a query of your own.

        Only graphs with ``complete = true`` are whole; ask for them.

        Parameters
        ----------
        text
            Cypher; values belong in parameters, never in the text.
        write
            Allow it to change the store.
        parameters
            Values of the text's ``$names``, whatever they are called.
        **more
            The same as keywords: all but ``write`` and ``parameters`` can be given so.

        Returns
        -------
        DataFrame
            One column a returned name; nodes and relationships as dictionaries. The embedded
            engine names the columns of rows only: from it, a table without rows has none.

        Raises
        ------
        QueryError
            If the engine refuses the text, it would write without `write`, or a parameter is given
            twice.
        """
        given = dict(parameters or {})
        if twice := sorted(given.keys() & more.keys()):
            raise QueryError(
                f"parameter {twice[0]!r} is given in parameters and as a keyword", "Give it once"
            )
        return self.run_named("query", text, given | more, write=write)
