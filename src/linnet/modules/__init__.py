"""Modules built of maps: blocks, recurrent networks, 1×1 convolutions, and parameter groups for weight decay."""
