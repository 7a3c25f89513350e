// Graph edges
// purpose     every edge of a graph between two nodes: signed weight, share of the target's input,
//             score (influence that runs over it)
// parameters  graph_id: string
// columns     source, target, weight, share, score
// cost        the edges of one graph
MATCH (:Graph {graph_id: $graph_id, complete: true})-[:CONTAINS]->(t:Node)<-[r:CONTRIBUTES]-(s:Node)
RETURN collect(s.node_id) AS source, collect(t.node_id) AS target, collect(r.weight) AS weight,
       collect(r.share) AS share, collect(r.score) AS score
