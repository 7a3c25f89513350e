// Top nodes
// purpose     the nodes of a graph with the most influence on its logits, of one $kind or of all
// parameters  graph_id: string · kind: feature|error|embedding|logit = null · limit: integer = 20
// columns     node_id, kind, layer, position, index, token, label, activation, probability, influence, error_fraction, influence_full
// cost        the nodes of one graph
MATCH (:Graph {graph_id: $graph_id, complete: true})-[:CONTAINS]->(n:Node)
WHERE $kind IS NULL OR n.kind = $kind
WITH n ORDER BY n.influence DESC, coalesce(n.probability, 0.0) DESC, n.ord LIMIT $limit
OPTIONAL MATCH (n)-[:INSTANCE_OF]->(f:Feature)
RETURN n.node_id AS node_id, n.kind AS kind, n.layer AS layer, n.position AS position,
       n.index AS index, n.token AS token, coalesce(f.label, n.label) AS label,
       n.activation AS activation, n.probability AS probability, n.influence AS influence,
       n.error_fraction AS error_fraction, n.influence_full AS influence_full
ORDER BY n.influence DESC, coalesce(n.probability, 0.0) DESC, n.ord
