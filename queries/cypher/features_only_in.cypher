// Features only in
// purpose     which features act in at least $min_graphs graphs of one prompt set (or in a share
//             $min_share of them, which then replaces $min_graphs), and in none of the $other set
// parameters  prompt_set: string · other: string · min_graphs: integer = 1 · min_share: number = null
// filled      least: the number of graphs that $min_graphs or $min_share mean
// columns     feature_id, layer, index, graphs, share, label
// cost        one pass over HAS_FEATURE of both sets
MATCH (p:PromptSet)-[:INCLUDES]->(:Graph {complete: true})-[:HAS_FEATURE]->(f:Feature)
WHERE p.name IN [$prompt_set, $other]
WITH f, sum(CASE WHEN p.name = $prompt_set THEN 1 ELSE 0 END) AS graphs,
     sum(CASE WHEN p.name = $other THEN 1 ELSE 0 END) AS others
WHERE graphs >= $least AND others = 0
RETURN collect(f.feature_id) AS feature_id, collect(f.layer) AS layer, collect(f.index) AS index,
       collect(graphs) AS graphs, collect(coalesce(f.label, '')) AS label
