"""Wirings: how connections are drawn when a layer is constructed."""
