"""``linnet task``."""
