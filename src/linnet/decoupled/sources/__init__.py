"""Gradient sources, which give the gradient at a cut: one file for each."""
