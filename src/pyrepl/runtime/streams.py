"""The standard streams of a process that was started without one of them.

Decides that such a stream leads nowhere. Must not know what is said on it.
"""

from __future__ import annotations

import os
import sys
from typing import Literal


def stand_in() -> None:
    """A standard stream that is closed becomes one that leads nowhere: what is opened next must not get its number, and
    what is said there is lost. Who cannot do without it asks :func:`is_closed`."""
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            fd = os.open(os.devnull, os.O_RDWR)
            setattr(sys, name, open(fd, mode, closefd=fd != number))  # noqa: SIM115  for as long as the process lasts


def is_closed(stream: Literal["stdin", "stdout"]) -> bool:
    """Whether the process was started without it."""
    return getattr(sys, f"__{stream}__") is None


__all__ = ["is_closed", "stand_in"]
