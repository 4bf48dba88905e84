"""`python -m models profile`: where the time of a step goes."""
