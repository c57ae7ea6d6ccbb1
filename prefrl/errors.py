"""Errors that a user can act on: each message names the file or key, what was expected, and what to do."""

__all__ = ["ConfigError", "DamagedFile", "InvalidData", "PrefrlError", "RunDirectoryError"]


class PrefrlError(Exception):
    """Base of every error that the command line prints without a traceback."""


class InvalidData(PrefrlError, ValueError):
    """Values that must not reach a learner: NaN, a label outside [0, 1], a segment past its episode's end."""


class DamagedFile(InvalidData):
    """A file that is missing, truncated, foreign, or of another format version."""


class ConfigError(PrefrlError, ValueError):
    """An unknown, misspelt, mistyped or ineffective configuration key."""


class RunDirectoryError(PrefrlError):
    """A run directory that cannot be used: occupied, unwritable, or not one of ours."""
