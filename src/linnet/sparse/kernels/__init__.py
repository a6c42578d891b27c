"""Products with a sparse matrix."""
