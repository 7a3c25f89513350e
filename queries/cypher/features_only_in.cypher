// Features only in
// purpose     which features act in at least $min_graphs graphs of one prompt set (or in a share
//             $min_share of them, which then replaces $min_graphs), and in none of the $other set
// parameters  prompt_set: set · other: set · min_graphs: integer = 1 · min_share: number = null
// filled      graph_ids: the complete graphs of both sets · flags: of every graph, by gno, whether
//             it is in the first · other_flags: whether it is in the other · least: the number of
//             graphs that $min_graphs or $min_share mean
// columns     feature_id, layer, index, graphs, share, label
// cost        one pass over HAS_FEATURE of both sets
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})-[:HAS_FEATURE]->(f:Feature)
WITH f, sum(CASE WHEN $flags[g.gno] THEN 1 ELSE 0 END) AS graphs,
     sum(CASE WHEN $other_flags[g.gno] THEN 1 ELSE 0 END) AS others
WHERE graphs >= $least AND others = 0
RETURN collect(f.feature_id) AS feature_id, collect(f.layer) AS layer, collect(f.index) AS index,
       collect(graphs) AS graphs, collect(coalesce(f.label, '')) AS label
