"""Truncated backpropagation through time with a synthetic gradient at the end of each window."""
