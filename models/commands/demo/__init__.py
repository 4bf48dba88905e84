"""`python -m models demo`: a method in miniature."""
