"""Embedding engines, and the pipeline from preferences to an items table."""
