// Feature occurrences
// purpose     where a feature acts: its nodes in every graph (of a prompt set), most influence
//             first
// parameters  feature_id: string · prompt_set: set = null
// filled      flags: of every graph, by gno, whether it counts
// columns     graph_id, slug, node_id, position, token, activation, influence, influence_full
// cost        the nodes of the feature
MATCH (:Feature {feature_id: $feature_id})<-[:INSTANCE_OF]-(n:Node)
MATCH (n)<-[:CONTAINS]-(g:Graph {complete: true})
WHERE $flags[g.gno]
RETURN g.graph_id AS graph_id, g.slug AS slug, n.node_id AS node_id, n.position AS position,
       n.token AS token, n.activation AS activation, n.influence AS influence,
       n.influence_full AS influence_full
ORDER BY influence DESC, node_id
