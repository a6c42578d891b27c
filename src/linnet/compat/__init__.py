"""The interfaces of other packages, name for name, on linnet's layers; nothing else in linnet imports them."""
