"""Consensus circuits kept in a store under a name, and read back as they were."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from scipy.sparse import csr_array

from queries.consensus import EDGE_COLUMNS, FEATURE_COLUMNS, ConsensusCircuit, prompts_table
from tracer.errors import StoreError
from tracer.graph import AttributionGraph

if TYPE_CHECKING:
    from graphstore import Store

__all__ = ["keep_circuit", "read_circuit"]


def keep_circuit(store: Store, circuit: ConsensusCircuit, name: str) -> ConsensusCircuit:
    """Store a circuit under a name.

    Parameters
    ----------
    store
        The store.
    circuit
        From :func:`consensus_circuit`.
    name
        One that no other circuit has.

    Returns
    -------
    ConsensusCircuit
        The same, with its name.

    Raises
    ------
    StoreError
        If there is a circuit of this name, or it is empty.
    """
    store.keep_circuit(
        {
            "name": name,
            "model_id": circuit.model_id,
            "transcoder_id": circuit.transcoder_id,
            "min_share": circuit.min_share,
            "graph_ids": list(circuit.graph_ids),
            "created_at": circuit.created_at,
            "picture": _picture(circuit),
            "features": _records(
                circuit.features[["feature_id", "place", "graphs", "share", "mean_influence"]]
            ),
            "edges": _records(circuit.edges[list(EDGE_COLUMNS)]),
        }
    )
    return replace(circuit, name=name)


def read_circuit(store: Store, name: str) -> ConsensusCircuit:
    """Read a stored circuit back.

    Raises
    ------
    NotFoundError
        If none has the name.
    StoreError
        If what is stored of it is damaged.
    """
    record = store.circuit(name)
    features = pd.DataFrame(record["features"], columns=["feature_id", *FEATURE_COLUMNS[3:]])
    parts = features["feature_id"].str.rsplit("/", n=2)
    features["layer"], features["index"] = parts.str[1].astype(int), parts.str[2].astype(int)
    texts = {"feature_id": object, "place": object}
    try:
        made = json.loads(record["picture"])
        graph = AttributionGraph(
            pd.DataFrame(made["nodes"]),
            csr_array(
                (made["weights"], (made["targets"], made["sources"])),
                shape=(len(made["nodes"]),) * 2,
            ),
            **made["rest"],
            model_id=record["model_id"],
            transcoder_id=record["transcoder_id"],
        )
        prompts = prompts_table(made["prompts"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(
            f"circuit {name!r} is damaged ({error})", "Restore it from an export, or find it anew"
        ) from error
    return ConsensusCircuit(
        features=features[list(FEATURE_COLUMNS)].astype(texts),
        edges=_typed(pd.DataFrame(record["edges"], columns=list(EDGE_COLUMNS))),
        graph=graph,
        prompts=prompts,
        min_share=record["min_share"],
        graph_ids=tuple(record["graph_ids"]),
        model_id=record["model_id"],
        transcoder_id=record["transcoder_id"],
        name=name,
        created_at=record["created_at"],
    )


def _typed(edges: pd.DataFrame) -> pd.DataFrame:
    """Edges with the types that queries give them, also where there are none."""
    types = dict.fromkeys(EDGE_COLUMNS, "float64")
    return edges.astype({**types, "source": object, "target": object, "graphs": "int64"})


def _picture(circuit: ConsensusCircuit) -> str:
    """Text form of the circuit's graph, and of how it explains the prompts it was found in."""
    graph = circuit.graph
    coo = graph.adjacency.tocoo()
    return json.dumps(
        {
            "nodes": _records(graph.nodes),
            "targets": coo.row.tolist(),
            "sources": coo.col.tolist(),
            "weights": coo.data.tolist(),
            "rest": {
                "prompt": graph.prompt,
                "tokens": list(graph.tokens),
                "slug": graph.slug,
                "settings": graph.settings,
                "source": graph.source,
                "graph_id": graph.graph_id,
            },
            "prompts": _records(circuit.prompts),
        },
        ensure_ascii=False,
    )


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values; an unknown number is None."""
    return [
        {str(name): None if value != value else value for name, value in row.items()}
        for row in frame.astype(object).to_dict("records")
    ]
