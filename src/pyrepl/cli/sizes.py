"""Sizes, times and shares as people write and read them: bytes, or with a binary suffix (64K, 256M, 1G; MiB too)."""

from __future__ import annotations

import re

import click

from pyrepl.errors import counted

UNITS = "KMGTP"


def size(text: str) -> int:
    """The number of bytes that a text means (a click type)."""
    found = re.fullmatch(r"(\d{1,18})(?:([KMGTP])(?:iB|B)?|B)?", str(text).strip(), re.IGNORECASE)
    if found is None:
        raise click.BadParameter(f"{text!r} is not a size: write bytes, or 64K, 256M, 1G")
    power = UNITS.index(found[2].upper()) + 1 if found[2] else 0
    return int(found[1]) << 10 * power


def percent(text: str) -> float:
    """A share from 0 to 100, with or without the sign (a click type)."""
    found = re.fullmatch(r"(\d{1,3}(?:\.\d+)?)\s*%?", str(text).strip())
    if found is None or float(found[1]) > 100:
        raise click.BadParameter(f"{text!r} is not a share: write a number from 0 to 100")
    return float(found[1])


def seconds(text: str) -> float:
    """A time in seconds, or with a suffix: 90, 0.5, 30s, 5m, 2h (a click type)."""
    found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smh]?)", str(text).strip())
    if found is None:
        raise click.BadParameter(f"{text!r} is not a time: write seconds, or 30s, 5m, 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def rate(text: str) -> int:
    """Bytes per second, as a size; "none" is 0 (a click type)."""
    if str(text).strip().lower() in ("none", "0"):
        return 0
    try:
        return size(text)
    except click.BadParameter:
        raise click.BadParameter(f"{text!r} is not a rate: write bytes per second, or 64K, 10M, or none") from None


def limit(text: str) -> int:
    """A size; "none" is 0 (a click type)."""
    return 0 if str(text).strip().lower() == "none" else size(text)


def limit_seconds(text: str) -> float:
    """A time; "none" is 0 (a click type)."""
    return 0.0 if str(text).strip().lower() == "none" else seconds(text)


def human(count: float) -> str:
    """Bytes for people, with a binary unit."""
    if abs(count) < 1024:
        return f"{count:.0f} B"
    for unit in UNITS:
        count /= 1024
        if abs(count) < 1024 or unit == UNITS[-1]:
            break
    return f"{count:.0f} {unit}iB" if count == int(count) else f"{count:.1f} {unit}iB"


def duration(time: float) -> str:
    """Seconds for people."""
    if time < 59.95:
        return f"{time:.1f} s"
    whole = round(time)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def share(part: float, whole: float) -> str:
    """``part`` of ``whole`` in percent; what is there at all is never 0 %."""
    value = 100 * part / whole if whole else 0.0
    return "< 1 %" if 0 < value < 1 else f"{value:.0f} %"


__all__ = ["counted", "duration", "human", "limit", "limit_seconds", "percent", "rate", "seconds", "share", "size"]
