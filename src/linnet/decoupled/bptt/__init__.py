"""Truncated backpropagation through time with a synthetic gradient behind each window."""
