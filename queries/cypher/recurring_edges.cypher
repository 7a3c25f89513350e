// Recurring edges
// purpose     which pairs of features have an edge in at least $min_graphs graphs of a prompt set
//             (null: of the store), or in at least a share $min_share of them, which then replaces
//             $min_graphs; means are over the graphs that have the pair: its share is the mean over
//             the target's nodes of what the source's nodes add up to, its weight the signed sum
// parameters  prompt_set: string = null · min_graphs: integer = 2 · min_share: number = null
// filled      flags: of every graph, by gno, whether it counts · least: the number of graphs that
//             $min_graphs or $min_share mean
// columns     source, target, graphs, share, mean_weight, mean_share
// cost        one pass over the pairs of features of the store; for a set, over the lists of those
//             that enough graphs of the store have
// statement store
MATCH (x:FeatureEdge) WHERE x.n_graphs >= $least
RETURN collect(x.source) AS source, collect(x.target) AS target, collect(x.n_graphs) AS graphs,
       collect(x.sum_weight / x.n_graphs) AS mean_weight,
       collect(x.sum_share / x.n_graphs) AS mean_share
// statement set
MATCH (x:FeatureEdge) WHERE x.n_graphs >= $least
WITH x.source AS source, x.target AS target, x.graphs AS gnos, x.shares AS shares,
     x.weights AS weights
WITH source, target, shares, weights, [i IN range(0, size(gnos) - 1) WHERE $flags[gnos[i]]] AS at
WITH source, target, shares, weights, at, size(at) AS graphs WHERE graphs >= $least
RETURN collect(source) AS source, collect(target) AS target, collect(graphs) AS graphs,
       collect(reduce(z = 0.0, i IN at | z + weights[i]) / graphs) AS mean_weight,
       collect(reduce(z = 0.0, i IN at | z + shares[i]) / graphs) AS mean_share
