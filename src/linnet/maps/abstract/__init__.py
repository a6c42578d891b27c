"""What several maps share as classes; none of them is a layer."""
