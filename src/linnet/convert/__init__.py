"""Conversion and export: replace, sparsify and constrain make maps of torch modules; bake and to_onnx undo it."""
