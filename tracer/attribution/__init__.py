"""Local attribution: the linear model of one prompt, its edges, and the graph they make."""
