"""The engine of decoupled training: places of cuts, the forward pass, immediate updates, optimizers inside modules."""
