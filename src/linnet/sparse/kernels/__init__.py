"""Products with a sparse matrix: operators, what runs inside them, and the function that chooses it."""
