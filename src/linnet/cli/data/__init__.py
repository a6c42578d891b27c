"""Data of the command line."""
