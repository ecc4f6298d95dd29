"""Talks to systemd: ready, stopping, reloading, alive. Without it, everything here does nothing.

    NOTIFY_SOCKET    datagrams go there: a path, or with a leading @ an abstract name
    WATCHDOG_USEC    how often systemd wants to hear that the daemon is alive; WATCHDOG_PID: whom it means

Decides only how it is said; when, is ``daemon``'s decision.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Mapping


class Notifier:
    """Says it to whoever started the process.

    Args:
        environment: of the process; what is for it alone is taken out, so that children do not speak in its name.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        known = os.environ if environment is None else environment
        self._address = known.get("NOTIFY_SOCKET", "")
        self.watchdog_seconds = _watchdog(known)
        if environment is None:
            for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
                os.environ.pop(name, None)
        if self._address.startswith("@"):
            self._address = "\0" + self._address[1:]
        self._socket: socket.socket | None = None

    def ready(self) -> None:
        """The start, or a reload, is complete."""
        self._say("READY=1")

    def status(self, text: str) -> None:
        """One line that people see in ``systemctl status``."""
        self._say(f"STATUS={text}")

    def reloading(self) -> None:
        """A reload has begun; :meth:`ready` ends it."""
        self._say(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """The end has begun."""
        self._say("STOPPING=1")

    def alive(self) -> None:
        """All is well. Called at least twice in ``watchdog_seconds``."""
        self._say("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """A start or a stop goes on, and needs so much more."""
        self._say(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def close(self) -> None:
        """Harmless the second time."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _say(self, text: str) -> None:
        if not self._address:
            return
        with contextlib.suppress(OSError):  # nobody listens: then nobody can be told that either
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.settimeout(1.0)
            self._socket.sendto(text.encode(), self._address)


def _watchdog(environment: Mapping[str, str]) -> float | None:
    text, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not text.isdecimal() or int(text) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(text) / 1e6
