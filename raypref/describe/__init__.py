"""What the bases of a trained method mean: texts, contrasts, features of text, shares, names."""

from raypref.describe.result import Description

__all__ = ["Description"]
