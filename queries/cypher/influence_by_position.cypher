// Influence by position
// purpose     which positions of the prompt the influence on the logits runs through: summed over
//             the nodes of each, by kind; share is of the influence of all nodes
// parameters  graph_id: string
// columns     position, token, nodes, influence, share, embedding, feature, error
// cost        the nodes of one graph
MATCH (g:Graph {graph_id: $graph_id, complete: true})-[:CONTAINS]->(n:Node)
WITH g.tokens AS tokens, n.position AS position, n.kind AS kind, n.influence AS influence
RETURN position, tokens[position] AS token, count(*) AS nodes, sum(influence) AS influence,
       sum(CASE WHEN kind = 'embedding' THEN influence ELSE 0.0 END) AS embedding,
       sum(CASE WHEN kind = 'feature' THEN influence ELSE 0.0 END) AS feature,
       sum(CASE WHEN kind = 'error' THEN influence ELSE 0.0 END) AS error
ORDER BY position
