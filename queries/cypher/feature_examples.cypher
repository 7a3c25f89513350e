// Feature examples
// purpose     where in a corpus a feature is most active: the token, what follows it, and the
//             context with the token in brackets
// parameters  feature_id: string · limit: integer = 10
// columns     rank, activation, token, next, context
// cost        one feature
MATCH (f:Feature {feature_id: $feature_id})
RETURN f.feature_id AS feature_id, f.examples AS examples
