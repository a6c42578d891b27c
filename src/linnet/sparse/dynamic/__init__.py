"""Dynamic sparse training: connections are dropped and grown while a model is trained."""
