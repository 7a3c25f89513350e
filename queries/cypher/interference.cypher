// Interference in global weights
// purpose     pairs whose virtual weight misleads: unused, the largest weights of pairs that never
//             fire together in the corpus; tiny, the largest TWERA of pairs whose weight is
//             below the median of all; $weights_id may be left out where one is stored
// parameters  weights_id: string = null · kind: unused|tiny = "unused" · limit: integer = 20
// filled      least: the $limit-th largest of what the features' records say (0 if there are fewer),
//             so nothing smaller counts
// columns     source, target, source_label, target_label, weight, era, twera, cofiring,
//             expected_source, standard_error_era, standard_error_twera
// cost        one pass over the features of the weights, then the VIRTUAL relationships into about
//             $limit of them
// statement least
MATCH (:GlobalWeights {weights_id: $weights_id, complete: true})-[c:COVERS]->(:Feature)
WITH CASE $kind WHEN 'unused' THEN c.largest_unused ELSE c.largest_tiny END AS largest
WHERE largest > 0.0
WITH largest ORDER BY largest DESC LIMIT $limit
RETURN min(largest) AS least, count(largest) AS features
// statement unused
MATCH (:GlobalWeights {weights_id: $weights_id, complete: true})-[c:COVERS]->(t:Feature)
WHERE c.largest_unused >= $least
MATCH (t)<-[r:VIRTUAL]-(s:Feature)
WHERE r.weights_id = $weights_id AND r.cofiring = 0 AND abs(r.weight) >= $least
      AND r.weight <> 0.0
WITH r, s, t, abs(r.weight) AS size, s.feature_id AS source, t.feature_id AS target
ORDER BY size DESC, source, target LIMIT $limit
RETURN source, target, s.label AS source_label, t.label AS target_label, r.weight AS weight,
       r.era AS era, r.twera AS twera, r.cofiring AS cofiring,
       r.expected_source AS expected_source, r.standard_error_era AS standard_error_era,
       r.standard_error_twera AS standard_error_twera
ORDER BY size DESC, source, target
// statement tiny
MATCH (w:GlobalWeights {weights_id: $weights_id, complete: true})-[c:COVERS]->(t:Feature)
WHERE c.largest_tiny >= $least
WITH w.small_weight AS small, t
MATCH (t)<-[r:VIRTUAL]-(s:Feature)
WHERE r.weights_id = $weights_id AND abs(r.weight) < small AND abs(r.twera) >= $least
      AND r.twera <> 0.0
WITH r, s, t, abs(r.twera) AS size, s.feature_id AS source, t.feature_id AS target
ORDER BY size DESC, source, target LIMIT $limit
RETURN source, target, s.label AS source_label, t.label AS target_label, r.weight AS weight,
       r.era AS era, r.twera AS twera, r.cofiring AS cofiring,
       r.expected_source AS expected_source, r.standard_error_era AS standard_error_era,
       r.standard_error_twera AS standard_error_twera
ORDER BY size DESC, source, target
