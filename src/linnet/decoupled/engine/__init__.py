"""What cuts a network in stages and trains each: places, the forward pass, optimizers inside."""
