"""The application interfaces of other packages, name for name, on linnet's layers; nothing in linnet imports them."""
