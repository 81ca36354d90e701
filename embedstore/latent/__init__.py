"""What is computed in the spaces of a collection: reductions, directions, analogies, clusters, reports."""
