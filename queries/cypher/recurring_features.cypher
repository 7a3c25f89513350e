// Recurring features
// purpose     which features act in at least $min_graphs graphs of a prompt set (null: of the
//             store), or in at least a share $min_share of them, which then replaces $min_graphs;
//             mean_influence: summed over a graph's nodes of the feature, mean of the graphs that
//             have it
// parameters  prompt_set: string = null · min_graphs: integer = 2 · min_share: number = null
// filled      graph_ids: the complete graphs of the set · least: the number of graphs that
//             $min_graphs or $min_share mean
// columns     feature_id, layer, index, graphs, share, mean_influence, label
// cost        one pass over HAS_FEATURE of the set
UNWIND $graph_ids AS id
MATCH (:Graph {graph_id: id, complete: true})-[h:HAS_FEATURE]->(f:Feature)
WITH f, count(*) AS graphs, sum(h.influence) AS influence WHERE graphs >= $least
RETURN collect(f.feature_id) AS feature_id, collect(f.layer) AS layer, collect(f.index) AS index,
       collect(graphs) AS graphs, collect(influence / graphs) AS mean_influence,
       collect(coalesce(f.label, '')) AS label
