// Features by graph
// purpose     which features act in which graphs of a prompt set (null: of the store), each with its
//             influence there (summed over its nodes); of features in at least $min_graphs of them
// parameters  prompt_set: set = null · min_graphs: integer = 1
// filled      graph_ids: the complete graphs of the set
// columns     feature_id, layer, index, label, graph_id, influence
// cost        one pass over HAS_FEATURE of the set; a row a feature and graph
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})-[h:HAS_FEATURE]->(f:Feature)
WITH f, collect(g.gno) AS gnos, collect(h.influence) AS influences
WITH f, gnos, influences, size(gnos) AS graphs WHERE graphs >= $min_graphs
RETURN collect(f.feature_id) AS feature_id, collect(f.layer) AS layer, collect(f.index) AS index,
       collect(coalesce(f.label, '')) AS label, collect(gnos) AS gnos,
       collect(influences) AS influences
