"""The training loop, and what it needs: run folders, checkpoints, ranks, schedules, losses."""
