"""Sweeps: many settings of one run, tried side by side with Ray Tune."""
