"""Pipelines: the stages of a network in separate processes."""
