// Global inputs of a feature
// purpose     the $limit strongest inputs of a feature in global weights, by virtual weight, ERA or
//             TWERA; share is that of the feature's absolute inputs among the pairs stored;
//             $weights_id may be left out where one is stored
// parameters  feature_id: string · weights_id: string = null · by: weight|era|twera = "twera" · limit: integer = 20
// columns     feature_id, layer, index, label, weight, era, twera, cofiring, standard_error_era,
//             standard_error_twera, share
// cost        the VIRTUAL relationships into one feature
MATCH (t:Feature {feature_id: $feature_id})<-[c:COVERS]-(:GlobalWeights {weights_id: $weights_id, complete: true})
WITH t, CASE $by WHEN 'weight' THEN c.input_weight WHEN 'era' THEN c.input_era
        ELSE c.input_twera END AS total
MATCH (t)<-[r:VIRTUAL]-(s:Feature) WHERE r.weights_id = $weights_id
WITH s, r, total, abs(CASE $by WHEN 'weight' THEN r.weight WHEN 'era' THEN r.era
                      ELSE r.twera END) AS size, s.feature_id AS feature_id
ORDER BY size DESC, feature_id LIMIT $limit
RETURN feature_id, s.layer AS layer, s.index AS index, s.label AS label, r.weight AS weight,
       r.era AS era, r.twera AS twera, r.cofiring AS cofiring,
       r.standard_error_era AS standard_error_era,
       r.standard_error_twera AS standard_error_twera,
       CASE WHEN total > 0.0 THEN size / total ELSE 0.0 END AS share
ORDER BY size DESC, feature_id
