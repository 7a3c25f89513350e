// Family minus common
// purpose     what a family of prompts has beyond what unrelated prompts have, too: features or pairs
//             of features in at least a share $min_share of its graphs, and in at most a share
//             $max_other_share of the $others (null: all other graphs of the same transcoder)
// parameters  prompt_set: set · others: set = null · what: features|edges = "features" · min_share: number = 0.5 · max_other_share: number = 0.1
// filled      graph_ids: the complete graphs of both · flags: of every graph, by gno, whether it is
//             of the family · other_flags: whether it is of the others · least: the number of
//             graphs that $min_share means
// columns     feature_id, source, target, graphs, share, other_graphs, other_share, difference, mean_influence, label
// cost        one pass over HAS_FEATURE of both; for edges, over the lists of the pairs that enough
//             graphs of the store have
// statement features
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})-[h:HAS_FEATURE]->(f:Feature)
WITH f, sum(CASE WHEN $flags[g.gno] THEN 1 ELSE 0 END) AS graphs,
     sum(CASE WHEN $other_flags[g.gno] THEN 1 ELSE 0 END) AS other_graphs,
     sum(CASE WHEN $flags[g.gno] THEN h.influence ELSE 0.0 END) AS influence
WHERE graphs >= $least
RETURN collect(f.feature_id) AS feature_id, collect(graphs) AS graphs,
       collect(other_graphs) AS other_graphs, collect(influence / graphs) AS mean_influence,
       collect(coalesce(f.label, '')) AS label
// statement edges
MATCH (x:FeatureEdge) WHERE x.n_graphs >= $least
WITH x, size([y IN x.graphs WHERE $flags[y]]) AS graphs WHERE graphs >= $least
WITH x, graphs, graphs = x.n_graphs AS every, x.graphs AS gnos, x.influences AS influences
WITH x, graphs, every, influences, size([y IN gnos WHERE $other_flags[y]]) AS other_graphs,
     CASE WHEN every THEN [] ELSE [i IN range(0, size(gnos) - 1) WHERE $flags[gnos[i]]] END AS at
RETURN collect(x.source) AS source, collect(x.target) AS target, collect(graphs) AS graphs,
       collect(other_graphs) AS other_graphs,
       collect(coalesce(CASE WHEN every THEN x.sum_influence
                    ELSE reduce(z = 0.0, i IN at | z + influences[i]) END / graphs, -1.0))
         AS mean_influence
