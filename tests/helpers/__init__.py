"""What the gates share: making operands, calling an op, the error budget, and fresh processes."""
