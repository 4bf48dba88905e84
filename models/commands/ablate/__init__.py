"""`python -m models ablate`: the tables of a paper in miniature."""
