// Hubs of global weights
// purpose     the $limit features with the largest sums of absolute inputs, outputs or both
//             ($direction in, out, both), by virtual weight, ERA or TWERA; $weights_id may be left
//             out where one is stored
// parameters  weights_id: string = null · by: weight|era|twera = "twera" · direction: in|out|both = "out" · limit: integer = 20
// columns     feature_id, layer, index, label, strength, input, output, inputs, outputs, influence
// cost        one pass over the features of the weights: sums are kept with them
MATCH (:GlobalWeights {weights_id: $weights_id, complete: true})-[c:COVERS]->(f:Feature)
WITH f, c,
     CASE $by WHEN 'weight' THEN c.input_weight WHEN 'era' THEN c.input_era
     ELSE c.input_twera END AS input,
     CASE $by WHEN 'weight' THEN c.output_weight WHEN 'era' THEN c.output_era
     ELSE c.output_twera END AS output
WITH f, c, input, output,
     CASE $direction WHEN 'in' THEN input WHEN 'out' THEN output ELSE input + output END AS strength,
     f.feature_id AS feature_id
ORDER BY strength DESC, feature_id LIMIT $limit
RETURN feature_id, f.layer AS layer, f.index AS index, f.label AS label, strength, input, output,
       c.n_inputs AS inputs, c.n_outputs AS outputs, c.influence AS influence
ORDER BY strength DESC, feature_id
