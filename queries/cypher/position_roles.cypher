// Position roles
// purpose     at which places a feature acts, relative to the named tokens of its prompts (city,
//             city+1, last-2); of one feature, or of those that act in at least a share $min_share
//             of the graphs of a prompt set (null: of the store)
// parameters  feature_id: string = null · prompt_set: set = null · min_share: number = 0.5
// filled      graph_ids: the complete graphs of the set · flags: of every graph, by gno, whether
//             it counts · least: the number of graphs that $min_share means · feature_ids: the
//             features asked for
// columns     feature_id, layer, index, place, role, offset, graphs, share, nodes, mean_influence, mean_activation, label
// cost        one pass over the nodes of the features
// statement features
UNWIND $graph_ids AS id
MATCH (:Graph {graph_id: id, complete: true})-[:HAS_FEATURE]->(f:Feature)
WITH f, count(*) AS graphs WHERE graphs >= $least
RETURN collect(f.feature_id) AS feature_id
// statement nodes
UNWIND $feature_ids AS id
MATCH (f:Feature {feature_id: id})<-[:INSTANCE_OF]-(n:Node)<-[:CONTAINS]-(g:Graph {complete: true})
WHERE $flags[g.gno]
WITH f, collect(g.gno) AS gno, collect(n.position) AS position, collect(n.influence) AS influence,
     collect(coalesce(n.activation, -1.0)) AS activation
RETURN f.feature_id AS feature_id, f.layer AS layer, f.index AS index,
       coalesce(f.label, '') AS label, gno, position, influence, activation
// statement prompts
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})
RETURN g.gno AS gno, g.n_tokens AS n_tokens, g.role_names AS role_names,
       g.role_positions AS role_positions
