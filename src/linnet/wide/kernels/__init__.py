"""Batched kernels of a population for the leaf modules of torch.nn."""
