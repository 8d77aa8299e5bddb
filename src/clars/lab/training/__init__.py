"""The training loop on Accelerate: from a resolved recipe to a record."""
