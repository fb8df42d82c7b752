"""The few errors that a user of raypref can cause, each saying what to do about it."""


class RayprefError(Exception):
    """Base of everything a user can get wrong; the command line prints it and exits with 2."""


class InputError(RayprefError):
    """Input data is missing, malformed or too often bad."""


class ConfigError(RayprefError):
    """A run's configuration is invalid: unknown key, wrong type, impossible combination."""


class MismatchError(RayprefError):
    """Two artefacts do not belong together: another embedder, dimension or schema version."""


class CorruptError(RayprefError):
    """A bundle or table is damaged: a checksum, a length or a header is wrong."""


class EngineError(RayprefError):
    """An embedding engine is unavailable or kept failing."""


class RefusedError(EngineError):
    """An embedding engine that works refused these texts, or has no usable vector for them."""


class DivergedError(RayprefError):
    """Training left the finite numbers; the same run would do so again."""


class AggregationError(RayprefError):
    """A round of secure aggregation cannot finish: too few clients, a changed message, a number too large."""
