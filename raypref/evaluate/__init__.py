"""Measure a trained model on held-out comparisons, and show what was found."""
