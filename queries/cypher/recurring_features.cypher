// Recurring features
// purpose     which features act in at least $min_graphs graphs of a prompt set (null: of the
//             store), or in at least a share $min_share of them, which then replaces $min_graphs;
//             mean_influence: summed over a graph's nodes of the feature, mean of the graphs that
//             have it; $align: positions are dropped, or a feature counts once for each position,
//             or place relative to the prompt's roles
// parameters  prompt_set: set = null · min_graphs: integer = 2 · min_share: number = null · align: none|position|role = "none"
// filled      graph_ids: the complete graphs of the set · least: the number of graphs that
//             $min_graphs or $min_share mean
// columns     feature_id, layer, index, graphs, share, mean_influence, label, place
// cost        one pass over HAS_FEATURE of the set; aligned, over the feature nodes of its graphs
// statement dropped
UNWIND $graph_ids AS id
MATCH (:Graph {graph_id: id, complete: true})-[h:HAS_FEATURE]->(f:Feature)
WITH f, count(*) AS graphs, sum(h.influence) AS influence WHERE graphs >= $least
RETURN collect(f.feature_id) AS feature_id, collect(f.layer) AS layer, collect(f.index) AS index,
       collect(graphs) AS graphs, collect(influence / graphs) AS mean_influence,
       collect(coalesce(f.label, '')) AS label
// statement nodes
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})-[:CONTAINS]->(n:Node)-[:INSTANCE_OF]->(f:Feature)
WITH g, collect(n.position) AS position, collect(n.influence) AS influence,
     collect(f.feature_id) AS feature_id, collect(f.layer) AS layer, collect(f.index) AS index,
     collect(coalesce(f.label, '')) AS label
RETURN g.graph_id AS graph_id, g.n_tokens AS n_tokens, g.role_names AS role_names,
       g.role_positions AS role_positions, position, influence, feature_id, layer, index, label
