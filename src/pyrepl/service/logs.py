"""Where the daemon's log goes and how it looks: with levels for systemd's journal, with times for people.

Decides form and level. What is logged is decided where it happens; nothing secret is (no key, no data).
"""

from __future__ import annotations

import logging
import os
import sys

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))  # of syslog; audit lines are 5


class _JournalFormatter(logging.Formatter):
    """``<priority>name: text``, one line for each line of the text: a priority counts for one line."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next(number for level, number in _PRIORITIES if record.levelno >= level)
        if record.name == "pyrepl.audit":
            priority = 5
        prefix = f"<{priority}>{record.name.removeprefix('pyrepl.')}: "
        return "\n".join(prefix + line for line in super().format(record).splitlines())


def is_under_systemd() -> bool:
    """Whether stderr goes to systemd's journal."""
    return "JOURNAL_STREAM" in os.environ or "INVOCATION_ID" in os.environ


def start(level: str) -> None:
    """Lets the package's log go to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    if is_under_systemd():
        handler.setFormatter(_JournalFormatter("%(message)s"))
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger("pyrepl")
    root.handlers[:] = [handler]
    root.propagate = False
    set_level(level)


def set_level(level: str) -> None:
    """From here on; the audit log is written at every level but "error"."""
    logging.getLogger("pyrepl").setLevel(LEVELS[level])
    logging.getLogger("pyrepl.audit").setLevel(min(LEVELS[level], logging.INFO))
