// Edges by graph
// purpose     which pairs of features have an edge in which graphs of a prompt set (null: of the
//             store), each with its signed weight, its share of the target's input and the influence
//             that runs over it there; of pairs in at least $min_graphs of them
// parameters  prompt_set: set = null · min_graphs: integer = 2
// filled      flags: of every graph, by gno, whether it counts · graph_ids: the graphs
// columns     source, target, graph_id, weight, share, influence
// cost        one pass over the lists of the pairs of features that enough graphs of the store have;
//             with $min_graphs of 1, over HAS_EDGE of the graphs; a row a pair and graph
// statement pairs
MATCH (x:FeatureEdge) WHERE x.n_graphs >= $min_graphs
WITH x.source AS source, x.target AS target, x.graphs AS gnos, x.shares AS shares,
     x.weights AS weights, x.influences AS influences
WITH source, target, gnos, shares, weights, influences,
     [i IN range(0, size(gnos) - 1) WHERE $flags[gnos[i]]] AS at
WITH source, target, gnos, shares, weights, influences, at, size(at) AS graphs
WHERE graphs >= $min_graphs AND graphs > 0
RETURN collect(source) AS source, collect(target) AS target,
       collect([i IN at | gnos[i]]) AS gnos, collect([i IN at | weights[i]]) AS weights,
       collect([i IN at | shares[i]]) AS shares,
       collect([i IN at | coalesce(influences[i], -1.0)]) AS influences
// statement graphs
UNWIND $graph_ids AS id
MATCH (g:Graph {graph_id: id, complete: true})-[h:HAS_EDGE]->(x:FeatureEdge)
RETURN g.gno AS gno, collect(x.source) AS source, collect(x.target) AS target,
       collect(h.weight) AS weight, collect(h.share) AS share,
       collect(coalesce(h.influence, -1.0)) AS influence
