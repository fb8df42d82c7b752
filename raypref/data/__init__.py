"""From preferences in files to comparisons in tables, and to training steps."""
