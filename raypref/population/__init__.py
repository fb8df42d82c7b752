"""Whole populations: user vectors of everybody, and everybody's scores, streamed through Ray Data actors."""
