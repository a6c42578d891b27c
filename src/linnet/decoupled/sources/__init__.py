"""Where the gradient at a cut comes from, a file for each."""
