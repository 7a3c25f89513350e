// Recurring edges
// purpose     which pairs of features have an edge in at least $min_graphs graphs of a prompt set
//             (null: of the store), or in at least a share $min_share of them, which then replaces
//             $min_graphs; means are over the graphs that have the pair: its share is the mean over
//             the target's nodes of what the source's nodes add up to, its weight the signed sum,
//             its influence what runs over it; $align: positions are dropped, or the pair counts
//             once for each position of both ends, or place relative to the prompt's roles
// parameters  prompt_set: set = null · min_graphs: integer = 2 · min_share: number = null · align: none|position|role = "none"
// filled      flags: of every graph, by gno, whether it counts · least: the number of graphs that
//             $min_graphs or $min_share mean · graph_ids: some of its graphs
// columns     source, target, graphs, share, mean_weight, mean_share, mean_influence, sign_agreement, source_place, target_place
// cost        one pass over the pairs of features of the store; for a set, over the lists of those
//             that enough graphs of it have, unless all graphs of a pair are in the set; aligned,
//             over the edges of the set's graphs
// statement store
MATCH (x:FeatureEdge) WHERE x.n_graphs >= $least
RETURN collect(x.source) AS source, collect(x.target) AS target, collect(x.n_graphs) AS graphs,
       collect(x.sum_weight / x.n_graphs) AS mean_weight,
       collect(x.sum_share / x.n_graphs) AS mean_share,
       collect(coalesce(x.sum_influence, -1.0) / x.n_graphs) AS mean_influence,
       collect(coalesce(x.n_positive, -1)) AS positive
// statement set
MATCH (x:FeatureEdge) WHERE x.n_graphs >= $least
WITH x, size([y IN x.graphs WHERE $flags[y]]) AS graphs WHERE graphs >= $least
WITH x, graphs, graphs = x.n_graphs AS every, x.graphs AS gnos, x.shares AS shares,
     x.weights AS weights, x.influences AS influences
WITH x, graphs, every, shares, weights, influences,
     CASE WHEN every THEN [] ELSE [i IN range(0, size(gnos) - 1) WHERE $flags[gnos[i]]] END AS at
RETURN collect(x.source) AS source, collect(x.target) AS target, collect(graphs) AS graphs,
       collect(CASE WHEN every THEN x.sum_weight
                    ELSE reduce(z = 0.0, i IN at | z + weights[i]) END / graphs) AS mean_weight,
       collect(CASE WHEN every THEN x.sum_share
                    ELSE reduce(z = 0.0, i IN at | z + shares[i]) END / graphs) AS mean_share,
       collect(coalesce(CASE WHEN every THEN x.sum_influence
                    ELSE reduce(z = 0.0, i IN at | z + influences[i]) END / graphs, -1.0))
         AS mean_influence,
       collect(coalesce(CASE WHEN every THEN x.n_positive
                    ELSE size([i IN at WHERE weights[i] > 0]) END, -1)) AS positive
// statement nodes
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})-[:CONTAINS]->(n:Node)-[:INSTANCE_OF]->(f:Feature)
WITH g, collect(n.ord) AS ord, collect(n.position) AS position, collect(f.feature_id) AS feature_id
RETURN g.graph_id AS graph_id, g.n_tokens AS n_tokens, g.role_names AS role_names,
       g.role_positions AS role_positions, ord, position, feature_id
// statement edges
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})-[:CONTAINS]->(t:Node {kind: 'feature'})
MATCH (s:Node {kind: 'feature'})-[r:CONTRIBUTES]->(t)
WITH g, collect(s.ord) AS source, collect(t.ord) AS target, collect(r.weight) AS weight,
     collect(r.share) AS share, collect(r.score) AS score
RETURN g.graph_id AS graph_id, source, target, weight, share, score
