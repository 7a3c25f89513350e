// Strongest paths
// purpose     the $limit strongest paths between two nodes, or from any node of a kind to any of
//             another, with the product of shares as strength; $source and $target are kinds
//             (feature, error, embedding, logit) or name a node by key, node id or id in its file;
//             exact: what is left of a path is bounded by the best way to finish it
// parameters  graph_id: string · source: string = "embedding" · target: string = "logit" · limit: integer = 10 · max_length: integer = null
// filled      values: of every node (by ord) the strength of the best way to a target over k - 1
//             edges · node_id: the node whose edges are wanted
// columns     rank, strength, length, source, target, path, shares
// cost        every edge that leads to a target once a hop, then the edges of the nodes on the
//             best paths; grows with $limit, not with the number of paths
// statement ends
MATCH (:Graph {graph_id: $graph_id, complete: true})-[:CONTAINS]->(n:Node)
WITH n ORDER BY n.ord
RETURN collect(n.node_id) AS node_id, collect(n.kind) AS kind
// statement hop
MATCH (:Graph {graph_id: $graph_id, complete: true})-[:CONTAINS]->(t:Node)
WITH t, $values[t.ord] AS value WHERE value > 0.0
MATCH (t)<-[r:CONTRIBUTES]-(s:Node)
WITH s.ord AS ord, max(r.share * value) AS strength
RETURN collect(ord) AS ord, collect(strength) AS strength
// statement onward
MATCH (:Node {node_id: $node_id})-[r:CONTRIBUTES]->(t:Node)
WITH t.ord AS ord, r.share AS share ORDER BY ord
RETURN collect(ord) AS ord, collect(share) AS share
