"""The border of the public API: errors of native rooms become typed ones, once, here.

Decides which class a foreign error becomes. What happened, and to which group or store, is the caller's to say.
"""

from __future__ import annotations

import copy
import errno
import os
from typing import Any

from pyrepl.errors import (
    DeviceError,
    InternalError,
    InUse,
    NotFound,
    PyreplError,
    Refused,
    UsageError,
    WaitTimeout,
)

_ABSENT = (errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.ENOTDIR)


def typed(error: Exception, what: str, **context: Any) -> PyreplError:
    """The error as callers of the API meet it; its own text stays part of the new one.

    Args:
        error: anything that the engine or the system raised; an error that is typed already is returned as it is.
        what: what was attempted and on what, as the beginning of a sentence: "group 'db': writing volume 'data'".
    """
    match error:
        case PyreplError():
            return error
        case TimeoutError():
            return WaitTimeout(f"{what}: the time given is over; it goes on", **context)
        case OSError(errno=errno.ESHUTDOWN):
            return Refused(f"{what}: closed meanwhile", reason="closed", **context)
        case OSError(errno=errno.EBUSY):
            return InUse(f"{what}: {_words(error)}: release it there, or give another device", **context)
        case OSError(errno=errno.EROFS):
            return Refused(f"{what}: read-only here", reason="role", **context)
        case OSError():
            return _device_error(error, what, context)
        case LookupError():
            return NotFound(f"{what}: {_words(error)}", **context)
        case ValueError() | TypeError() | OverflowError() | BufferError():
            return UsageError(f"{what}: {_words(error)}", **context)
        case _:
            return InternalError(f"{what}: {type(error).__name__}: {error}", **context)


def _device_error(error: OSError, what: str, context: dict[str, Any]) -> PyreplError:
    if error.errno in _ABSENT:
        cure = ": check the path"
    elif error.errno in (errno.EACCES, errno.EPERM):
        cure = ": run as a user who may use it"
    elif error.errno == errno.ENOSPC:
        cure = ": free some space"
    else:
        cure = ""
    context = {"device": error.filename, "errno": error.errno, **context}
    converted = DeviceError(f"{what}: {_words(error)}{cure}", **context)
    converted.errno, converted.filename = error.errno, error.filename
    return converted


def _words(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        text = error.strerror or os.strerror(error.errno)
        return f"{error.filename}: {text}" if error.filename else text
    if isinstance(error, LookupError) and len(error.args) == 1:
        return str(error.args[0])  # str() of a KeyError is a repr
    return str(error)


def again(fault: PyreplError) -> PyreplError:
    """The same failure for another caller: a copy, for tracebacks grow on what is raised twice."""
    fresh = copy.copy(fault).with_traceback(None)
    fresh.__cause__ = fault.__cause__
    if isinstance(fault, OSError) and isinstance(fresh, OSError):
        fresh.errno, fresh.filename = fault.errno, fault.filename  # slots: not in the __dict__ that copy takes over
    return fresh
