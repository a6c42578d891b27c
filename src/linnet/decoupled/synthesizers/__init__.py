"""Small networks that predict a gradient from the activations, a file for each."""
