"""Abstract classes that several maps share; none of them is a layer."""
