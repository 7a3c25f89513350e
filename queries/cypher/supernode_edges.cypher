// Supernode edges
// purpose     edges between the supernodes of a graph: the share of the target group's input, from
//             outside itself, that comes from the source group; each member of the target counts
//             by the part of its input that comes from outside the group
// parameters  graph_id: string
// columns     source, target, share, source_id, target_id
// cost        the edges into the members of supernodes
MATCH (g:Graph {graph_id: $graph_id, complete: true})
WITH g.graph_id AS graph_id
MATCH (b:Supernode {graph_id: graph_id})-[:GROUPS]->(m:Node)
WITH b, collect(m.ord) AS inside
MATCH (b)-[:GROUPS]->(t:Node)<-[r:CONTRIBUTES]-(s:Node)
WITH b, t, sum(CASE WHEN s.ord IN inside THEN 0.0 ELSE r.share END) AS outside
WITH b, sum(outside) AS total, collect({node: t, outside: outside}) AS members
WHERE total > 0.0
UNWIND members AS member
WITH b, total, member.node AS t, member.outside AS outside
MATCH (t)<-[r:CONTRIBUTES]-(:Node)<-[:GROUPS]-(a:Supernode)
WHERE a.supernode_id <> b.supernode_id
WITH a, b, total, sum(outside * r.share) AS part
RETURN a.name AS source, b.name AS target, part / total AS share,
       a.supernode_id AS source_id, b.supernode_id AS target_id
ORDER BY share DESC, source_id, target_id
