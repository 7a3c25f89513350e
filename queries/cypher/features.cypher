// Features
// purpose     what is known of features: label, how often they are active in a corpus, and which
//             output tokens they promote; of the graphs of a prompt set (null: of every feature
//             that has a label or figures), of one layer, or whose label holds a text
// parameters  prompt_set: set = null · label: string = null · layer: integer = null · limit: integer = 50
// filled      graph_ids: the complete graphs of the set
// columns     feature_id, layer, index, label, label_source, density, mean_activation, max_activation, promoted, graphs
// cost        one pass over HAS_FEATURE of the set, or over all features
// statement set
UNWIND $graph_ids AS id
MATCH (:Graph {graph_id: id, complete: true})-[:HAS_FEATURE]->(f:Feature)
WITH f, count(*) AS graphs
WHERE ($label IS NULL OR toLower(coalesce(f.label, '')) CONTAINS $label)
  AND ($layer IS NULL OR f.layer = $layer)
WITH f, graphs ORDER BY graphs DESC, f.layer, f.index, f.feature_id LIMIT $limit
RETURN f.feature_id AS feature_id, f.layer AS layer, f.index AS index, f.label AS label,
       f.label_source AS label_source, f.density AS density, f.mean_activation AS mean_activation,
       f.max_activation AS max_activation, f.statistics AS statistics, graphs
// statement store
MATCH (f:Feature)
WHERE (f.statistics IS NOT NULL OR f.label IS NOT NULL)
  AND ($label IS NULL OR toLower(coalesce(f.label, '')) CONTAINS $label)
  AND ($layer IS NULL OR f.layer = $layer)
OPTIONAL MATCH (f)<-[:HAS_FEATURE]-(g:Graph {complete: true})
WITH f, count(g) AS graphs
WITH f, graphs ORDER BY graphs DESC, f.layer, f.index, f.feature_id LIMIT $limit
RETURN f.feature_id AS feature_id, f.layer AS layer, f.index AS index, f.label AS label,
       f.label_source AS label_source, f.density AS density, f.mean_activation AS mean_activation,
       f.max_activation AS max_activation, f.statistics AS statistics, graphs
