// Edge totals
// purpose     how many pairs of features have an edge in each graph of a prompt set (null: of the
//             store), and the sums over them of their share of the target's input and its square:
//             what similarity divides by
// parameters  prompt_set: set = null
// filled      graph_ids: the complete graphs of the set
// columns     graph_id, pairs, share, square
// cost        one pass over HAS_EDGE of the set
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})-[h:HAS_EDGE]->(:FeatureEdge)
WITH g.graph_id AS graph_id, count(*) AS pairs, sum(h.share) AS share,
     sum(h.share * h.share) AS square
RETURN collect(graph_id) AS graph_id, collect(pairs) AS pairs, collect(share) AS share,
       collect(square) AS square
