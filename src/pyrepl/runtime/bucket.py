"""A token bucket: how many bytes may be sent now, so that over any time no more than rate * time + burst go.

Decides how long whoever has much to send waits, and for how little. Must not know what the bytes are. What cannot wait
(heartbeats, answers) is charged instead: it goes at once, and what follows waits the longer for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

LEAST_BURST = 2048  # bytes


def burst_of(rate: int) -> int:
    """Bytes that may go at once after a pause: an eighth of a second's, so that a sender sleeps but a few times a
    second."""
    return max(rate // 8, LEAST_BURST)


class Bucket:
    """One limit, which may change at any time. From any thread.

    Args:
        rate: bytes per second; 0: no limit.
        now: the clock, in seconds.
    """

    def __init__(self, rate: int = 0, now: Callable[[], float] = time.monotonic) -> None:
        self._changed = threading.Condition()
        self._now = now
        self._rate = rate
        self._tokens = float(burst_of(rate))
        self._filled = now()

    @property
    def rate(self) -> int:
        """Bytes per second; 0: no limit."""
        return self._rate

    def set_rate(self, rate: int) -> None:
        """Another limit from here on; whoever waits goes on by it. What was saved up under the old one does not
        count."""
        with self._changed:
            self._fill()
            self._rate = rate
            self._tokens = min(self._tokens, float(burst_of(rate)))
            self._changed.notify_all()

    def charge(self, count: int) -> None:
        """So many bytes went without asking: what follows waits for them."""
        if self._rate:
            with self._changed:
                self._fill()
                self._tokens -= count

    def has(self, count: int) -> bool:
        """Whether so many bytes may go without waiting."""
        if not self._rate:
            return True
        with self._changed:
            self._fill()
            return not self._rate or self._tokens >= count

    def take(self, most: int) -> int:
        """Waits until some may go: how many, from 1 to ``most`` (at least 1)."""
        if not self._rate:
            return most
        with self._changed:
            while self._rate:
                self._fill()
                wanted = min(most, burst_of(self._rate) // 4)
                if self._tokens >= wanted:
                    taken = min(most, int(self._tokens))
                    self._tokens -= taken
                    return taken
                self._changed.wait((wanted - self._tokens) / self._rate)
            return most

    def _fill(self) -> None:
        now = self._now()
        self._tokens = min(self._tokens + (now - self._filled) * self._rate, float(burst_of(self._rate)))
        self._filled = now
