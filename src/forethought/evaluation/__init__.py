"""Held-out pass@1, its errors, and the report of a run."""
