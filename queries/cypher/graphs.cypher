// Graphs
// purpose     which graphs are stored, or belong to a prompt set, in the order stored
// parameters  prompt_set: set = null
// filled      graph_ids: the complete graphs of $prompt_set, or of the store
// columns     graph_id, slug, prompt, model_id, transcoder_id, nodes, edges, features, unpruned, prompt_sets, created_at, stored_at
// cost        one record a graph
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})
OPTIONAL MATCH (p:PromptSet)-[:INCLUDES]->(g)
WITH g, p ORDER BY p.name
WITH g, collect(p.name) AS prompt_sets
RETURN g.graph_id AS graph_id, g.slug AS slug, g.prompt AS prompt, g.model_id AS model_id,
       g.transcoder_id AS transcoder_id, g.n_nodes AS nodes, g.n_edges AS edges,
       g.n_features AS features, g.unpruned AS unpruned, prompt_sets,
       g.created_at AS created_at, g.stored_at AS stored_at
