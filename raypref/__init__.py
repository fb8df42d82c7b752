"""raypref: personal reward models, at population scale, on Ray."""

__version__ = "0.1.0"
