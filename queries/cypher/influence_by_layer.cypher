// Influence by layer
// purpose     which layers the influence on the logits runs through: summed over the nodes of
//             each (-1: embeddings), by kind; share is of the influence of all nodes
// parameters  graph_id: string
// columns     layer, nodes, influence, share, embedding, feature, error
// cost        the nodes of one graph
MATCH (:Graph {graph_id: $graph_id, complete: true})-[:CONTAINS]->(n:Node)
WITH n.layer AS layer, n.kind AS kind, n.influence AS influence
RETURN layer, count(*) AS nodes, sum(influence) AS influence,
       sum(CASE WHEN kind = 'embedding' THEN influence ELSE 0.0 END) AS embedding,
       sum(CASE WHEN kind = 'feature' THEN influence ELSE 0.0 END) AS feature,
       sum(CASE WHEN kind = 'error' THEN influence ELSE 0.0 END) AS error
ORDER BY layer
