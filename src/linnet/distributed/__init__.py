"""What programs of several processes share."""
