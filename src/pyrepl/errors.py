"""The tree of errors: each class says its consequence, so a caller decides by class and words come from attributes.

Decides: code, exit status and retryability of every failure that leaves the package. Knows nothing of what raised it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

__all__ = [
    "Corrupt",
    "DeviceError",
    "Diverged",
    "Exists",
    "InUse",
    "InternalError",
    "NotFound",
    "PeerError",
    "ProtocolError",
    "PyreplError",
    "Refused",
    "UsageError",
    "WaitTimeout",
]


class PyreplError(Exception):
    """The root. ``code`` is stable for programs, ``context`` holds what the text was made from.

    Args:
        text: what happened, why, and what to do about it.
        retryable: the same call may succeed later without anybody changing anything.
        context: names and numbers of the case.
    """

    code: ClassVar[str] = "error"
    exit_status: ClassVar[int] = 1

    def __init__(self, text: str, *, retryable: bool = False, **context: Any) -> None:
        super().__init__(text)
        self.text = text
        self.retryable = retryable
        self.context = context

    def __str__(self) -> str:
        return self.text


class UsageError(PyreplError, ValueError):
    """You used it wrongly; nothing was changed."""

    code = "usage"
    exit_status = 2


class NotFound(PyreplError, LookupError):
    """There is no such group, store or link."""

    code = "not-found"
    exit_status = 3


class Exists(PyreplError):
    """The name is taken."""

    code = "exists"
    exit_status = 4


class Refused(PyreplError):
    """Not now, or not here; ``reason`` is one word of a closed list. Nothing was changed."""

    code = "refused"
    exit_status = 5

    def __init__(self, text: str, *, reason: str = "state", retryable: bool = False, **context: Any) -> None:
        super().__init__(text, retryable=retryable, reason=reason, **context)
        self.reason = reason


def wants_force(error: PyreplError) -> bool:
    """Whether it is a refusal of what would lose something, and is done all the same if that is wanted."""
    return isinstance(error, Refused) and error.reason == "force"


class InUse(PyreplError):
    """A device or store is used by somebody else."""

    code = "in-use"
    exit_status = 6


class Diverged(PyreplError):
    """Two sites have histories that do not follow from each other; ``context`` has both positions."""

    code = "diverged"
    exit_status = 7


class PeerError(PyreplError, ConnectionError):
    """The other site cannot be reached, or ended the connection."""

    code = "peer"
    exit_status = 8


class ProtocolError(PeerError):
    """The other site sent what it must not: the connection is closed, nothing of it was taken."""

    code = "protocol"


class DeviceError(PyreplError, OSError):
    """A disk failed. The group that uses it stops acknowledging."""

    code = "device"
    exit_status = 9


class Corrupt(PyreplError):
    """What stands on a device cannot be what was written there; ``context`` has device, position and reason."""

    code = "corrupt"
    exit_status = 10


class WaitTimeout(PyreplError, TimeoutError):
    """The time given for waiting is over; what was waited for goes on."""

    code = "timeout"
    exit_status = 11

    def __init__(self, text: str, **context: Any) -> None:
        super().__init__(text, retryable=True, **context)


class InternalError(PyreplError):
    """Ours: an invariant does not hold. The group stops rather than carry on."""

    code = "internal"
    exit_status = 12


def counted(number: int, what: str) -> str:
    """So many of something, for people: "1 group", "2 groups"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def some_of(names: Iterable[str]) -> str:
    """What there is, for who asked for something else: the first five names."""
    found = sorted(names)
    return ", ".join([*found[:5], *(["…"] if len(found) > 5 else [])]) or "none"


def check(condition: object, reason: str, **context: Any) -> None:
    """An invariant, never compiled out.

    Raises:
        InternalError: the condition does not hold.
    """
    if not condition:
        raise InternalError(f"invariant broken: {reason}; please report this with the journal", **context)
