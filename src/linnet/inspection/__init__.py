"""What a model is made of, to read, to look at, to log."""
