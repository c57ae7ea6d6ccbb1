"""Errors that a user can act on: each message names the file or key, what was expected, and what to do."""

import errno
from concurrent.futures import BrokenExecutor

__all__ = ["ConfigError", "DamagedFile", "InvalidData", "PrefrlError", "RunDirectoryError", "explain"]


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


def explain(error: BaseException) -> str:
    """What went wrong and what to do about it, of an error that is not a bug.

    >>> explain(OSError(errno.ENOSPC, "No space left on device", "runs/a/metrics.jsonl"))
    'runs/a/metrics.jsonl: No space left on device. Free some space; `prefrl resume RUN` continues a run.'
    """
    if isinstance(error, BrokenExecutor):
        return (
            "A worker process was killed, probably because memory ran out. "
            "Continue with `prefrl resume RUN`, with a lower workers=…"
        )
    if isinstance(error, ModuleNotFoundError):
        return f"{error}. Install what prefrl needs: pip install -c constraints.txt -e . (`prefrl doctor` says more)."
    return _explain_os(error) if isinstance(error, OSError) else str(error)


def _explain_os(error: OSError) -> str:
    file, reason = error.filename, error.strerror or str(error)
    if error.args and type(error.args[0]) is list:  # shutil.Error: (from, to, why) of every file
        _, file, reason = error.args[0][0]
    remedy = "Check the path, and that its folder can be read and written."
    if error.errno in (errno.ENOSPC, errno.EDQUOT) or "No space" in reason:
        remedy = "Free some space; `prefrl resume RUN` continues a run."
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        remedy = "Change its permissions, or choose another place with out=PATH."
    return f"{file}: {reason}. {remedy}" if file else f"{reason}. {remedy}"
