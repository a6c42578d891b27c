"""Where connections start, a file for each wiring."""
