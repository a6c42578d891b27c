"""Data and training loops of the command line."""
