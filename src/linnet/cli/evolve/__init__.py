"""``linnet evolve``."""
