"""Ports for those who listen, go, and listen at the same port again.

A port that the kernel chose comes from the range out of which it also gives one to each connection that anybody makes: while
nobody listens there another process may get it, or the link that dials it may be connected to itself.
"""

from __future__ import annotations

import random
import socket
from pathlib import Path

LEAST = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def lasting_port(host: str = "127.0.0.1") -> int:
    """A port that is free now, and that nobody gets without asking for it."""
    end = int(_RANGE.read_text().split()[0])
    choose = random.SystemRandom()
    for _ in range(1000):
        port = choose.randrange(LEAST, end) if end > LEAST else 0
        with socket.socket() as sock:
            try:
                sock.bind((host, port))
            except OSError:
                continue
            return int(sock.getsockname()[1])
    raise AssertionError(f"no port from {LEAST} to {end} is free at {host}")
