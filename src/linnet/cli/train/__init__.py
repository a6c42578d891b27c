"""``linnet train``."""
