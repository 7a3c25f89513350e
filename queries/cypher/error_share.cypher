// Error share
// purpose     where the unexplained part sits: influence of the error nodes of each layer, position
//             or token (by $by), as a share of that of all error nodes; the columns
//             completeness_lost and replacement_lost sum to 1 - completeness and 1 - replacement
//             (as stored); over several graphs, numerators and denominators are summed
// parameters  graph_id: string = null · prompt_set: set = null · by: layer|position|token = "layer"
// filled      graph_ids: the graph, or the complete graphs of $prompt_set, or of the store
// columns     layer, position, token, nodes, influence, share, completeness_lost, replacement_lost
// cost        the nodes of each graph
// statement totals
UNWIND $graph_ids AS id
MATCH (:Graph {graph_id: id, complete: true})-[:CONTAINS]->(n:Node)
RETURN sum(n.influence + CASE WHEN n.kind = 'logit' THEN coalesce(n.probability, 0.0)
                              ELSE 0.0 END) AS through,
       sum(CASE WHEN n.kind = 'embedding' OR n.kind = 'error' THEN n.influence
                ELSE 0.0 END) AS sources
// statement errors
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})-[:CONTAINS]->(n:Node {kind: 'error'})
WITH g.tokens AS tokens, n.layer AS layer, n.position AS position, n.influence AS influence
WITH CASE WHEN $by = 'layer' THEN layer END AS layer,
     CASE WHEN $by = 'position' THEN position END AS position,
     CASE WHEN $by = 'token' THEN tokens[position] END AS token, influence
RETURN layer, position, token, count(*) AS nodes, sum(influence) AS influence
