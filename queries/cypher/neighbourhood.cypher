// Neighbourhood
// purpose     the strongest edges (by score, the influence that runs over them) into and out of a
//             node: $limit for each hop and direction, followed for $hops; the node is named by
//             its key (feature/12/4711/8), node id, or id in its file; kind to label are those of
//             the edge's far end
// parameters  graph_id: string · node: string · direction: in|out|both = "both" · hops: integer = 1 · min_share: number = 0.0 · limit: integer = 20
// filled      nodes: ids of the nodes that the hop starts from
// columns     direction, hop, source, target, weight, share, score, kind, layer, position, token, label
// cost        the edges of at most $limit nodes a hop
// statement in
UNWIND $nodes AS id
MATCH (t:Node {node_id: id})<-[r:CONTRIBUTES]-(s:Node) WHERE r.share >= $min_share
WITH s, r, t ORDER BY r.score DESC, s.ord, t.ord LIMIT $limit
OPTIONAL MATCH (s)-[:INSTANCE_OF]->(f:Feature)
RETURN s.node_id AS source, t.node_id AS target, r.weight AS weight, r.share AS share,
       r.score AS score, s.kind AS kind, s.layer AS layer, s.position AS position,
       s.token AS token, coalesce(f.label, s.label) AS label, s.ord AS far, t.ord AS near
ORDER BY score DESC, far, near
// statement out
UNWIND $nodes AS id
MATCH (s:Node {node_id: id})-[r:CONTRIBUTES]->(t:Node) WHERE r.share >= $min_share
WITH s, r, t ORDER BY r.score DESC, t.ord, s.ord LIMIT $limit
OPTIONAL MATCH (t)-[:INSTANCE_OF]->(f:Feature)
RETURN s.node_id AS source, t.node_id AS target, r.weight AS weight, r.share AS share,
       r.score AS score, t.kind AS kind, t.layer AS layer, t.position AS position,
       t.token AS token, coalesce(f.label, t.label) AS label, t.ord AS far, s.ord AS near
ORDER BY score DESC, far, near
