"""``linnet tour``."""
