"""The whole job on text that ships with raypref, judged by a population with conflicting tastes."""
