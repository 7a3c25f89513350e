// Graph details
// purpose     what comparing needs to know of each graph of a prompt set (null: of the store): its
//             transcoder, tokens, likeliest token, and what the prompt file said of it
// parameters  prompt_set: set = null
// filled      graph_ids: the complete graphs of the set
// columns     graph_id, slug, prompt, model_id, transcoder_id, features, tokens, target, template, family, answer, hops, language, split, metadata
// cost        one record a graph
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})
RETURN g.graph_id AS graph_id, g.slug AS slug, g.prompt AS prompt, g.model_id AS model_id,
       g.transcoder_id AS transcoder_id, g.n_features AS features,
       coalesce(g.tokens, []) AS tokens, coalesce(g.target_tokens, []) AS targets,
       coalesce(g.target_probabilities, []) AS probabilities, g.template AS template,
       g.family AS family, g.answer AS answer, g.hops AS hops, g.language AS language,
       g.split AS split, g.metadata AS metadata
