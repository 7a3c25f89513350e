// Influence by path length
// purpose     influence of every node over paths of exactly k edges to a logit, worked out hop by
//             hop from the shares of the edges; agrees with influence_by_length of the nodes
// parameters  graph_id: string
// filled      values: influence of every node over k - 1 edges, in the order of ord
// columns     node_id, length, influence
// cost        every edge once a hop, as many hops as the longest path has edges
// statement targets
MATCH (:Graph {graph_id: $graph_id, complete: true})-[:CONTAINS]->(n:Node)
WITH n ORDER BY n.ord
RETURN collect(n.node_id) AS node_id,
       collect(CASE WHEN n.kind = 'logit' THEN coalesce(n.probability, 0.0) ELSE 0.0 END) AS value
// statement hop
MATCH (:Graph {graph_id: $graph_id, complete: true})-[:CONTAINS]->(t:Node)
WITH t, $values[t.ord] AS value WHERE value <> 0.0
MATCH (t)<-[r:CONTRIBUTES]-(s:Node)
WITH s.ord AS ord, sum(r.share * value) AS influence
RETURN collect(ord) AS ord, collect(influence) AS influence
