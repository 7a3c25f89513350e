// Recurring paths
// purpose     chains of features that recur: each two that follow one another have an edge in at
//             least $min_graphs of the same graphs of a prompt set (null: of the store), or in a
//             share $min_share of them, which then replaces $min_graphs; positions are dropped;
//             strength: product of the mean shares of its edges
// parameters  prompt_set: set = null · min_graphs: integer = 2 · min_share: number = null · max_length: integer = 4 · limit: integer = 1000 · bound: integer = 100000
// filled      flags: of every graph, by gno, whether it counts · least: the number of graphs that
//             $min_graphs or $min_share mean
// columns     path, length, graphs, share, strength, complete
// cost        one pass over the pairs of features that recur, with their graphs; then growth in
//             memory, of at most $bound paths of each length: complete says whether that sufficed
MATCH (x:FeatureEdge) WHERE x.n_graphs >= $least
WITH x, [y IN x.graphs WHERE $flags[y]] AS held WHERE size(held) >= $least
WITH x, held, size(held) AS graphs, size(held) = x.n_graphs AS every, x.graphs AS gnos,
     x.shares AS shares
WITH x, held, graphs, every, shares,
     CASE WHEN every THEN [] ELSE [i IN range(0, size(gnos) - 1) WHERE $flags[gnos[i]]] END AS at
RETURN collect(x.source) AS source, collect(x.target) AS target, collect(held) AS gnos,
       collect(CASE WHEN every THEN x.sum_share
                    ELSE reduce(z = 0.0, i IN at | z + shares[i]) END / graphs) AS mean_share
