"""What a linear map is: the contract, the catalogue, the matrix kept; no family is known here."""
