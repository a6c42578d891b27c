"""Synthesizers, small networks that predict a gradient from activations: one file for each."""
