"""The GPU acceptance (``python -m bench gpu``): its sections, and what a results file says."""
