"""What is measured and drawn of a network's pictures."""
