"""Inspection of models: describe prints, diagram draws, log writes measurements in training."""
