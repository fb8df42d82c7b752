"""Fit a method's shared weights: a pure torch loop, and the one file that knows Ray Train."""
