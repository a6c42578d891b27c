"""Modules built of maps: blocks, recurrent nets, maps at every place of an image."""
