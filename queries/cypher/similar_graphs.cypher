// Similar graphs
// purpose     the graphs that share the most features with one: by the Jaccard index, features in
//             both over features in either; graphs without a shared feature are left out
// parameters  graph_id: string · prompt_set: set = null · limit: integer = 10
// filled      flags: of every graph, by gno, whether it is compared
// columns     graph_id, other, jaccard, shared, slug
// cost        one pass over HAS_FEATURE of the graphs that share a feature
MATCH (a:Graph {graph_id: $graph_id, complete: true})-[:HAS_FEATURE]->(:Feature)<-[:HAS_FEATURE]-(b:Graph)
WHERE b <> a
WITH a, b, count(*) AS shared WHERE b.complete = true AND $flags[b.gno]
RETURN a.graph_id AS graph_id, b.graph_id AS other,
       toFloat(shared) / (a.n_features + b.n_features - shared) AS jaccard, shared, b.slug AS slug
ORDER BY jaccard DESC, other LIMIT $limit
