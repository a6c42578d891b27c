"""Dynamic sparse training: how connections are dropped and grown while a model is trained."""
