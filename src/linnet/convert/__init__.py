"""Ways in and out: replace nn.Linear, sparsify, constrain a tensor; bake back, ONNX."""
