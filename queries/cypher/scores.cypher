// Scores
// purpose     how much of each graph is explained: completeness, replacement, mean path length,
//             and the share of the targets' weight that is lost at features without inputs;
//             $rule says what became of the part that pruning removed (null: full where that is
//             known, else as_stored)
// parameters  graphs: strings = null · prompt_set: set = null · rule: full|merge|masked|as_stored = null
// filled      graph_ids: the complete graphs of $graphs and $prompt_set, or of the store
// columns     graph_id, slug, rule, completeness, replacement, mean_path_length, lost, completeness_full, replacement_full, mean_path_length_full
// cost        as_stored: the nodes of each graph, and the edges out of its error nodes; the other
//             rules: one record a graph
// statement recorded
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})
RETURN g.graph_id AS graph_id, g.slug AS slug,
       g.completeness_full AS completeness_full, g.replacement_full AS replacement_full,
       g.mean_path_length_full AS mean_path_length_full, g.lost_full AS lost_full,
       g.completeness_merge AS completeness_merge, g.replacement_merge AS replacement_merge,
       g.mean_path_length_merge AS mean_path_length_merge, g.lost_merge AS lost_merge,
       g.completeness_masked AS completeness_masked, g.replacement_masked AS replacement_masked,
       g.mean_path_length_masked AS mean_path_length_masked, g.lost_masked AS lost_masked
// statement as_stored
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})-[:CONTAINS]->(n:Node)
WITH g, n.kind AS kind, n.influence AS influence, coalesce(n.influence_by_length, []) AS parts,
     CASE WHEN n.kind = 'logit' THEN coalesce(n.probability, 0.0) ELSE 0.0 END AS weight
WITH g, sum(weight) AS weights, sum(influence + weight) AS through,
     sum(CASE WHEN kind = 'embedding' THEN influence ELSE 0.0 END) AS embeddings,
     sum(CASE WHEN kind = 'error' THEN influence ELSE 0.0 END) AS errors,
     sum(CASE WHEN kind = 'embedding'
              THEN reduce(z = 0.0, k IN range(1, size(parts)) | z + k * parts[k - 1])
              ELSE 0.0 END) AS steps
RETURN g.graph_id AS graph_id, through,
       CASE WHEN embeddings + errors > 0 THEN embeddings / (embeddings + errors) END AS replacement,
       CASE WHEN embeddings > 0 THEN steps / embeddings END AS mean_path_length,
       CASE WHEN weights > 0 THEN 1 - (embeddings + errors) / weights END AS lost
// statement unexplained
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})-[:CONTAINS]->(:Node {kind: 'error'})-[r:CONTRIBUTES]->(t:Node)
WITH g, r.share AS share, t.influence AS influence,
     CASE WHEN t.kind = 'logit' THEN coalesce(t.probability, 0.0) ELSE 0.0 END AS weight
RETURN g.graph_id AS graph_id, sum(share * (influence + weight)) AS unexplained
