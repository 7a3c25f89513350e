// Path lengths
// purpose     how the influence on the logits spreads over embedding-to-logit paths of each
//             length (edges): of each graph, or $pooled over all of them (graph_id is then null,
//             mass the mean of the graphs' masses)
// parameters  graph_id: string = null · prompt_set: set = null · pooled: boolean = false
// filled      graph_ids: the graph, or the complete graphs of $prompt_set, or of the store
// columns     graph_id, length, mass, share, cumulative
// cost        the embedding nodes of each graph
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})-[:CONTAINS]->(n:Node {kind: 'embedding'})
WITH g, coalesce(n.influence_by_length, []) AS parts
UNWIND range(1, size(parts)) AS length
WITH g, length, sum(parts[length - 1]) AS mass
RETURN g.graph_id AS graph_id, length, mass
ORDER BY graph_id, length
