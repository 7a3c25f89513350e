// Graph nodes
// purpose     every node of a graph, in the order of its matrix
// parameters  graph_id: string
// columns     node_id, kind, layer, position, index, token, label, influence, probability
// cost        the nodes of one graph
MATCH (:Graph {graph_id: $graph_id, complete: true})-[:CONTAINS]->(n:Node)
OPTIONAL MATCH (n)-[:INSTANCE_OF]->(f:Feature)
WITH n, coalesce(f.label, n.label, '') AS label ORDER BY n.ord
RETURN collect(n.node_id) AS node_id, collect(n.kind) AS kind, collect(n.layer) AS layer,
       collect(n.position) AS position, collect(n.index) AS index,
       collect(coalesce(n.token, '')) AS token, collect(label) AS label,
       collect(n.influence) AS influence, collect(coalesce(n.probability, -1.0)) AS probability
