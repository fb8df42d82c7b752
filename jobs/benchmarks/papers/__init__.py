"""The papers' claims as named checks: `python jobs/benchmarks/claims.py`."""
