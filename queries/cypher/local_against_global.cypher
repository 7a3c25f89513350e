// Local against global
// purpose     which strong residual-direct edges of a graph ($graph_id) or a prompt set are
//             globally typical, which are specific to the prompt, which global connections of the
//             features that act here stayed silent, and which strong edges the weights do not
//             cover; a pair is strong where it has at least $min_share of its target's absolute
//             inputs: locally of the residual-direct ones from features (mean over the target's
//             nodes), globally of the pairs stored, by virtual weight, ERA or TWERA; $weights_id
//             may be left out where one is stored
// parameters  graph_id: string = null · prompt_set: set = null · weights_id: string = null · by: weight|era|twera = "twera" · min_share: number = 0.05 · limit: integer = 50
// filled      graph_ids: the graphs · ids: features, by id · rows: features, each with the places in
//             the weights of those of its inputs that are wanted
// columns     kind, source, target, source_label, target_label, residual, local_share, weight, era,
//             twera, cofiring, global_share, source_acts, nodes
// cost        the nodes and edges of the graphs, and the VIRTUAL relationships into their features,
//             those first that can be among the $limit of a kind
// statement graphs
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})
RETURN g.graph_id AS graph_id, g.part_type AS parts
// statement nodes
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})-[:CONTAINS]->(n:Node)-[:INSTANCE_OF]->(f:Feature)
RETURN collect(g.gno) AS gno, collect(n.ord) AS ord, collect(f.feature_id) AS feature_id
// statement local
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})-[:CONTAINS]->(t:Node)
WHERE t.kind = 'feature'
MATCH (s:Node)-[r:CONTRIBUTES]->(t)
WHERE r.residual <> 0.0 AND s.kind = 'feature'
RETURN collect(g.gno) AS gno, collect(s.ord) AS source, collect(t.ord) AS target,
       collect(r.residual) AS residual
// statement covered
UNWIND $ids AS id
MATCH (f:Feature {feature_id: id})<-[c:COVERS]-(:GlobalWeights {weights_id: $weights_id, complete: true})
WITH f.feature_id AS feature_id, c.ord AS ord,
     CASE $by WHEN 'weight' THEN c.input_weight WHEN 'era' THEN c.input_era
     ELSE c.input_twera END AS total,
     CASE $by WHEN 'weight' THEN c.largest_weight WHEN 'era' THEN c.largest_era
     ELSE c.largest_twera END AS largest
RETURN collect(feature_id) AS feature_id, collect(ord) AS ord, collect(total) AS total,
       collect(CASE WHEN total > 0.0 THEN largest / total ELSE 0.0 END) AS largest
// statement pairs
UNWIND $rows AS x
MATCH (t:Feature {feature_id: x[0]})<-[r:VIRTUAL]-(s:Feature)
WHERE r.source IN x[1] AND r.weights_id = $weights_id
RETURN collect(s.feature_id) AS source, collect(t.feature_id) AS target,
       collect(r.weight) AS weight, collect(r.era) AS era, collect(r.twera) AS twera,
       collect(r.cofiring) AS cofiring
// statement strong
UNWIND $ids AS id
MATCH (t:Feature {feature_id: id})<-[c:COVERS]-(:GlobalWeights {weights_id: $weights_id, complete: true})
WITH t, $min_share * CASE $by WHEN 'weight' THEN c.input_weight WHEN 'era' THEN c.input_era
                     ELSE c.input_twera END AS least
WHERE least > 0.0
MATCH (t)<-[r:VIRTUAL]-(s:Feature)
WHERE r.weights_id = $weights_id
      AND abs(CASE $by WHEN 'weight' THEN r.weight WHEN 'era' THEN r.era ELSE r.twera END) >= least
RETURN collect(s.feature_id) AS source, collect(t.feature_id) AS target,
       collect(r.weight) AS weight, collect(r.era) AS era, collect(r.twera) AS twera,
       collect(r.cofiring) AS cofiring
// statement labels
UNWIND $ids AS id
MATCH (f:Feature {feature_id: id}) WHERE f.label IS NOT NULL
RETURN f.feature_id AS feature_id, f.label AS label
