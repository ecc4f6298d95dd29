"""The token bucket: what may go never exceeds rate * time + burst, by a clock that the test turns."""

from __future__ import annotations

import random
import threading
import time

import pytest

from pyrepl.runtime.bucket import LEAST_BURST, Bucket, burst_of


class Clock:
    """Time that passes only when somebody waits, or when it is told to."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


def timed(bucket: Bucket, clock: Clock) -> Bucket:
    """Its waiting turns the clock instead."""
    class Turned:
        def __enter__(self) -> None: ...
        def __exit__(self, *_: object) -> None: ...
        def notify_all(self) -> None: ...
        def wait(self, seconds: float) -> None:
            assert seconds > 0
            clock.time += seconds + 1e-9

    bucket._changed = Turned()
    return bucket


@pytest.mark.parametrize("rate", [1024, 4097, 100_000, 1 << 20, 1 << 30])
def test_no_more_than_rate_and_burst_over_any_time(clock: Clock, rate: int) -> None:
    bucket, rng = timed(Bucket(rate, clock), clock), random.Random(rate)
    sent: list[tuple[float, int]] = []
    asked = 0
    while clock.time < 130 and len(sent) < 20_000:
        if rng.random() < 0.02:
            clock.time += rng.random() * 3
        if rng.random() < 0.1:
            asked = rng.randrange(100)
            bucket.charge(asked)
            sent.append((clock.time, asked))
        most = rng.choice([1, 40, 5000, 1 << 22])
        begin = clock.time
        taken = bucket.take(most)
        assert 1 <= taken <= most
        assert clock.time - begin < 0.55 + 4000 / rate, "whoever waits hears of a change, and the peer of us, soon enough"
        sent.append((clock.time, taken))
    for start in range(0, len(sent), 97):
        total = 0
        for when, count in sent[start:start + 400]:
            total += count
            assert total <= rate * (when - sent[start][0]) + burst_of(rate) + 100 + 1e-3 * rate * 1e-3


@pytest.mark.parametrize("rate", [1024, 4097, 100_000, 1 << 30])
def test_who_always_has_something_to_send_gets_the_rate(clock: Clock, rate: int) -> None:
    bucket, total, begin = timed(Bucket(rate, clock), clock), 0, clock.time
    while clock.time < begin + 20:
        total += bucket.take(1 << 30)
    assert total >= rate * 19.5


def test_what_did_not_ask_makes_others_wait(clock: Clock) -> None:
    bucket = timed(Bucket(10_000, clock), clock)
    assert bucket.has(LEAST_BURST) and not bucket.has(LEAST_BURST + 1)
    bucket.charge(LEAST_BURST + 10_000)
    assert not bucket.has(1)
    begin = clock.time
    bucket.take(1)
    assert 1.0 <= clock.time - begin < 1.1


def test_without_a_limit(clock: Clock) -> None:
    bucket = Bucket(0, clock)
    bucket.charge(1 << 40)
    assert bucket.has(1 << 40) and bucket.take(1 << 40) == 1 << 40 and bucket.rate == 0


def test_a_change_wakes_who_waits() -> None:
    bucket = Bucket(1024)
    bucket.charge(1 << 30)  # a million seconds' worth
    taken: list[int] = []
    waiter = threading.Thread(target=lambda: taken.append(bucket.take(5000)), daemon=True)
    waiter.start()
    bucket.set_rate(2048)
    waiter.join(0.2)
    assert waiter.is_alive() and not taken
    bucket.set_rate(0)
    waiter.join(60)
    assert taken == [5000]


def test_what_was_saved_up_under_a_higher_limit_does_not_count(clock: Clock) -> None:
    bucket = timed(Bucket(1 << 30, clock), clock)
    clock.time += 10
    bucket.set_rate(8192)
    assert bucket.has(LEAST_BURST) and not bucket.has(LEAST_BURST + 1)


def test_the_clock_is_the_systems() -> None:
    bucket = Bucket(1 << 20)
    begin, total = time.monotonic(), 0
    while total < 512 * 1024:
        total += bucket.take(1 << 20)
    assert total <= (time.monotonic() - begin) * (1 << 20) + burst_of(1 << 20)
