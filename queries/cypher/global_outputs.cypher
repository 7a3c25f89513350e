// Global outputs of a feature
// purpose     the $limit strongest outputs of a feature in global weights, by virtual weight, ERA
//             or TWERA; share is that of the other feature's absolute inputs among the pairs
//             stored; $weights_id may be left out where one is stored
// parameters  feature_id: string · weights_id: string = null · by: weight|era|twera = "twera" · limit: integer = 20
// columns     feature_id, layer, index, label, weight, era, twera, cofiring, standard_error_era,
//             standard_error_twera, share
// cost        the VIRTUAL relationships out of one feature
MATCH (s:Feature {feature_id: $feature_id})<-[:COVERS]-(w:GlobalWeights {weights_id: $weights_id, complete: true})
MATCH (s)-[r:VIRTUAL]->(t:Feature) WHERE r.weights_id = $weights_id
WITH w, t, r, abs(CASE $by WHEN 'weight' THEN r.weight WHEN 'era' THEN r.era
                  ELSE r.twera END) AS size, t.feature_id AS feature_id
ORDER BY size DESC, feature_id LIMIT $limit
MATCH (t)<-[c:COVERS]-(v:GlobalWeights) WHERE v.weights_id = $weights_id
WITH t, r, size, feature_id, CASE $by WHEN 'weight' THEN c.input_weight WHEN 'era' THEN c.input_era
                             ELSE c.input_twera END AS total
RETURN feature_id, t.layer AS layer, t.index AS index, t.label AS label, r.weight AS weight,
       r.era AS era, r.twera AS twera, r.cofiring AS cofiring,
       r.standard_error_era AS standard_error_era,
       r.standard_error_twera AS standard_error_twera,
       CASE WHEN total > 0.0 THEN size / total ELSE 0.0 END AS share
ORDER BY size DESC, feature_id
