"""`python -m models study`: people judge results against their references."""
