"""The whole job on text that ships with raypref: a bank of answers, and a population with conflicting tastes."""
