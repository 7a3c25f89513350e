// Candidate pairs
// purpose     the $limit strongest pairs of global weights, by virtual weight, ERA or TWERA, among
//             the features of a prompt set that act in at least $min_graphs of its graphs: a short
//             list for tracing and interventions; graphs counts those in which both act, edges
//             those in which the pair has a local edge; $weights_id may be left out where one is
//             stored
// parameters  prompt_set: set · weights_id: string = null · by: weight|era|twera = "twera" · min_graphs: integer = 1 · limit: integer = 50
// filled      graph_ids: complete graphs of the set · ids: features whose inputs are looked at,
//             those with the largest first · flags: of every feature, by its place in the weights,
//             whether it counts as a source; of every graph, by gno, whether it is of the set ·
//             least: what a pair must exceed to be among the strongest
// columns     source, target, source_label, target_label, weight, era, twera, cofiring,
//             standard_error_era, standard_error_twera, graphs, edges
// cost        HAS_FEATURE of the set, then the VIRTUAL relationships into its features, until no
//             other feature has one that is large enough
// statement features
UNWIND $graph_ids AS id
MATCH (:Graph {graph_id: id, complete: true})-[:HAS_FEATURE]->(f:Feature)
WITH f, count(*) AS graphs WHERE graphs >= $min_graphs
MATCH (f)<-[c:COVERS]-(:GlobalWeights {weights_id: $weights_id, complete: true})
RETURN collect(f.feature_id) AS feature_id, collect(c.ord) AS ord,
       collect(CASE $by WHEN 'weight' THEN c.largest_weight WHEN 'era' THEN c.largest_era
               ELSE c.largest_twera END) AS largest
// statement pairs
WITH $flags AS flags
UNWIND $ids AS id
MATCH (t:Feature {feature_id: id})<-[r:VIRTUAL]-(s:Feature)
WHERE r.weights_id = $weights_id AND flags[r.source]
WITH r, s, t, abs(CASE $by WHEN 'weight' THEN r.weight WHEN 'era' THEN r.era
                  ELSE r.twera END) AS size
WHERE size >= $least AND size > 0.0
WITH r, s, t, size, s.feature_id AS source, t.feature_id AS target
ORDER BY size DESC, source, target LIMIT $limit
RETURN source, target, s.label AS source_label, t.label AS target_label, r.weight AS weight,
       r.era AS era, r.twera AS twera, r.cofiring AS cofiring,
       r.standard_error_era AS standard_error_era,
       r.standard_error_twera AS standard_error_twera, size
// statement together
WITH $flags AS flags
UNWIND $ids AS id
MATCH (f:Feature {feature_id: id})<-[:HAS_FEATURE]-(g:Graph)
WHERE g.complete = true AND flags[g.gno]
RETURN f.feature_id AS feature_id, collect(g.gno) AS graphs
// statement edges
UNWIND $ids AS id
MATCH (x:FeatureEdge {edge_id: id})
WITH id, x.graphs AS graphs
RETURN id AS edge_id, size([y IN graphs WHERE $flags[y]]) AS edges
