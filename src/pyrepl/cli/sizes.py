"""Sizes on the command line: bytes, or with a binary suffix (64K, 256M, 1G, 2T; MiB is understood too)."""

from __future__ import annotations

import re

import click

UNITS = "KMGTP"


def size(text: str) -> int:
    """The number of bytes that a text means (a click type)."""
    found = re.fullmatch(r"(\d{1,18})(?:([KMGTP])(?:iB|B)?|B)?", str(text).strip(), re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"{text!r} is not a size: write bytes, or 64K, 256M, 1G")
    power = UNITS.index(found[2].upper()) + 1 if found[2] else 0
    return int(found[1]) << 10 * power
