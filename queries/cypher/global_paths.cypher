// Global paths
// purpose     the $limit strongest paths from one feature to another through at most $others
//             others, with the product of shares as strength: the share of a pair is that of its
//             target's absolute inputs, by virtual weight, ERA or TWERA, among the pairs stored;
//             exact; $weights_id may be left out where one is stored
// parameters  source: string · target: string · others: integer = 2 · weights_id: string = null · by: weight|era|twera = "twera" · limit: integer = 10
// filled      ids: features whose pairs are wanted · flags: of every feature, by its place in the
//             weights, whether a pair may have it as its other end
// columns     rank, strength, length, source, target, path, labels, shares, values
// cost        the VIRTUAL relationships of features that a path can still run through: from both
//             ends in turn, whichever has fewer, and only where a path can be among the strongest
// statement features
MATCH (:GlobalWeights {weights_id: $weights_id, complete: true})-[c:COVERS]->(f:Feature)
WITH c.ord AS ord, f.feature_id AS feature_id, c.n_inputs AS n_inputs, c.n_outputs AS n_outputs,
     CASE $by WHEN 'weight' THEN c.input_weight WHEN 'era' THEN c.input_era
     ELSE c.input_twera END AS total
RETURN collect(ord) AS ord, collect(feature_id) AS feature_id, collect(total) AS total,
       collect(n_inputs) AS n_inputs, collect(n_outputs) AS n_outputs
// statement outputs
WITH $flags AS flags
UNWIND $ids AS id
MATCH (:Feature {feature_id: id})-[r:VIRTUAL]->(:Feature)
WHERE r.weights_id = $weights_id AND flags[r.target]
RETURN collect(r.source) AS source, collect(r.target) AS target,
       collect(CASE $by WHEN 'weight' THEN r.weight WHEN 'era' THEN r.era
               ELSE r.twera END) AS value
// statement inputs
WITH $flags AS flags
UNWIND $ids AS id
MATCH (:Feature {feature_id: id})<-[r:VIRTUAL]-(:Feature)
WHERE r.weights_id = $weights_id AND flags[r.source]
RETURN collect(r.source) AS source, collect(r.target) AS target,
       collect(CASE $by WHEN 'weight' THEN r.weight WHEN 'era' THEN r.era
               ELSE r.twera END) AS value
// statement labels
UNWIND $ids AS id
MATCH (f:Feature {feature_id: id}) WHERE f.label IS NOT NULL
RETURN f.feature_id AS feature_id, f.label AS label
