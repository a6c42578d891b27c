"""What every linear map is made of: contract, catalogue, populations, cached matrices; no family is known here."""
